#include "tests/cross/CrossProgram.h"

#include "compiler/export/CHeader.h"

#include "llvm/Support/Program.h"

#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace normforge::test {

namespace fs = std::filesystem;

namespace {

constexpr const char *compiler = "aarch64-linux-gnu-gcc", *emulator = "qemu-aarch64";
constexpr const char *libraries = "/usr/aarch64-linux-gnu";

TargetDescription targetOf(const std::string &cpu) {
  auto target = describeTarget(cpu);
  if (!target)
    throw std::runtime_error(llvm::toString(target.takeError()));
  return std::move(*target);
}

void write(const fs::path &path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush())
    throw std::runtime_error("cannot write " + path.string());
}

std::string read(const fs::path &path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// Runs a shell's line in `folder`.
void execute(const fs::path &folder, const std::string &line) {
  const std::string whole = "cd '" + folder.string() + "' && " + line + " >log 2>&1";
  if (const int status = std::system(whole.c_str()); status != 0)
    throw std::runtime_error(
        fmt::format("{}\nended with {}:\n{}", whole, status, read(folder / "log")));
}

std::vector<std::string> numbers(const Operator &op, const oracle::Sizes &sizes) {
  std::vector<std::string> texts;
  for (const std::string &name : op.sizes)
    texts.push_back(std::to_string(sizes.at(name)));
  return texts;
}

/// The read argument that a written one lies over, and none of those before, or -1.
int aliasOf(const Operator &op, size_t argument, bool inPlace, const std::vector<int> &before) {
  for (uint32_t alias : op.operands[argument].mayAlias)
    if (inPlace && std::ranges::find(before, static_cast<int>(alias)) == before.end())
      return static_cast<int>(alias);
  return -1;
}

} // namespace

std::string CrossProgram::whyNot() {
  for (const char *program : {compiler, emulator})
    if (!llvm::sys::findProgramByName(program))
      return fmt::format("{} is not installed (Debian has it in {})", program,
                         program == compiler ? "gcc-aarch64-linux-gnu" : "qemu-user");
  return fs::exists(libraries) ? "" : "Debian's libc6-dev-arm64-cross is not installed";
}

CrossProgram::CrossProgram(const std::string &cpu, fs::path folder)
    : folder_(std::move(folder)), session_(targetOf(cpu), /*verify=*/true) {
  fs::remove_all(folder_);
  fs::create_directories(folder_);
}

size_t CrossProgram::add(const Operator &op, std::vector<ScheduleVariant> variants) {
  kernels_.push_back({op, std::move(variants), fmt::format("k{}__code", kernels_.size())});
  return kernels_.size() - 1;
}

std::string CrossProgram::driver(const std::vector<Artifact> &manifests) const {
  std::string text = R"(#include "kernels.h"
typedef struct {
  uint32_t count;
  const unsigned char *written;
  const int *over;
  uint64_t (*bytes)(uint32_t), (*workspace)(void), (*tasks)(uint32_t);
  uint32_t (*stages)(void);
  nf_stage_fn *(*stage)(uint32_t);
  const int64_t *sizes;
} item;
)";
  std::string items;
  for (size_t i = 0; i < calls_.size(); ++i) {
    const CrossCall &call = calls_[i];
    const Artifact &manifest = manifests[call.kernel];
    const auto sizes = numbers(op(call.kernel), call.sizes);
    const std::string all = fmt::format("{}", fmt::join(sizes, ", "));
    const std::string more = sizes.empty() ? "" : ", " + all;
    std::vector<int> written, over;
    for (size_t a = 0; a < manifest.arguments.size(); ++a) {
      written.push_back(manifest.arguments[a].written);
      over.push_back(aliasOf(op(call.kernel), a, call.inPlace, over));
    }
    text += fmt::format(
        "static uint64_t b{0}(uint32_t a) {{ return k{1}_bytes(a{3}); }}\n"
        "static uint64_t w{0}(void) {{ return k{1}_workspace_bytes({2}); }}\n"
        "static uint64_t t{0}(uint32_t s) {{ return k{1}_tasks(s{3}); }}\n"
        "static uint32_t n{0}(void) {{ return k{1}_stages({2}); }}\n"
        "static nf_stage_fn *f{0}(uint32_t s) {{ return k{1}_stage(s{3}); }}\n"
        "static const unsigned char r{0}[] = {{{4}}};\nstatic const int o{0}[] = {{{5}}};\n"
        "static const int64_t s{0}[] = {{{6}}};\n",
        i, call.kernel, all, more, fmt::join(written, ","), fmt::join(over, ","),
        sizes.empty() ? "0" : all);
    items += fmt::format("  {{{1}, r{0}, o{0}, b{0}, w{0}, t{0}, n{0}, f{0}, s{0}}},\n", i,
                         manifest.arguments.size());
  }
  return text + "static const item items[] = {\n" + items +
         "};\n#define ITEMS (sizeof items / sizeof items[0])\n#include \"" NORMFORGE_TEST_DATA_DIR
         "/cross/driver.c\"\n";
}

void CrossProgram::build() {
  auto object = session_.compileObject(kernels_, /*withAssembly=*/false);
  if (!object)
    throw std::runtime_error(llvm::toString(object.takeError()));
  ExportedHeader header{"kernels", "", {}};
  for (size_t k = 0; k < kernels_.size(); ++k)
    header.kernels.push_back({fmt::format("k{}", k), "a test", {object->kernels[k]}});
  write(folder_ / "kernels.o", object->object);
  write(folder_ / "kernels.h", cHeader(header));
  write(folder_ / "driver.c", driver(object->kernels));
  std::string inputs;
  for (const CrossCall &call : calls_)
    for (const Operand &argument : op(call.kernel).operands)
      if (!argument.written) {
        const auto &bytes = call.inputs.at(argument.name).bytes;
        inputs.append(reinterpret_cast<const char *>(bytes.data()), bytes.size());
      }
  write(folder_ / "in", inputs);
  execute(folder_,
          fmt::format("{} -std=gnu99 -Wall -Wextra -Werror -O0 driver.c kernels.o -o driver",
                      compiler));
}

std::vector<oracle::Arrays> CrossProgram::run(const std::string &emulated, uint64_t seed) const {
  execute(folder_,
          fmt::format("{} -cpu {} -L {} ./driver in out {}", emulator, emulated, libraries, seed));
  const std::string bytes = read(folder_ / "out");
  size_t at = 0;
  std::vector<oracle::Arrays> results;
  for (const CrossCall &call : calls_) {
    oracle::Arrays &outputs = results.emplace_back();
    std::vector<int64_t> sizes;
    for (const std::string &name : op(call.kernel).sizes)
      sizes.push_back(call.sizes.at(name));
    for (const Operand &argument : op(call.kernel).operands) {
      if (!argument.written)
        continue;
      std::vector<int64_t> shape;
      for (const SizeExpr &size : argument.shape)
        shape.push_back(*size.evaluate(sizes));
      HostArray array(argument.dtype, shape);
      if (at + array.bytes.size() > bytes.size())
        throw std::runtime_error("the driver wrote too little");
      std::memcpy(array.bytes.data(), bytes.data() + at, array.bytes.size());
      at += array.bytes.size();
      outputs.emplace(argument.name, std::move(array));
    }
  }
  if (at != bytes.size())
    throw std::runtime_error("the driver wrote too much");
  return results;
}

} // namespace normforge::test
