// Digests of kernels, one line each, to be compared before and after a change of the compiler.
//
//   normforge_digest code      machine code, manifest and workspace of every schedule
//   normforge_digest outputs   what kernels write for fixed inputs, on the CPUs that run here
//   normforge_digest schedules [TABLE]
//                              which schedules the specs get, by phase and CPU: all, or those that
//                              TABLE, an earlier output, has lines for
//
// A change that only moves code changes no line of `code`; one that keeps every bit changes none of
// `outputs`. The specs are those of specs/ and, but for `schedules`, random ones of a fixed seed.
// tests/data/schedules.txt is a table that a test holds the heuristic to.
#include "tests/numerics/KernelCase.h"
#include "tests/numerics/SpecDraw.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/SHA1.h"

#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <set>

using namespace normforge;
using namespace normforge::test;

namespace {

constexpr const char *kCpus[] = {"x86-64-v2",      "haswell",     "skylake-avx512", "znver4",
                                 "sapphirerapids", "neoverse-n1", "neoverse-v1",    "a64fx"};

std::string digestOf(llvm::ArrayRef<std::byte> bytes) {
  const llvm::ArrayRef<uint8_t> data(reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size());
  return llvm::toHex(llvm::SHA1::hash(data), /*LowerCase=*/true).substr(0, 16);
}

/// A spec and the sizes that it is run with.
struct Subject {
  std::string name;
  Spec spec;
  oracle::Sizes sizes;
};

/// Ends the program on an error: there is nothing to compare then.
template <typename T> T valueOf(llvm::Expected<T> value, const std::string &of) {
  if (value)
    return std::move(*value);
  fmt::print(stderr, "{}: {}\n", of, llvm::toString(value.takeError()));
  std::exit(1);
}

std::vector<Subject> specsOfNetworks() {
  std::set<std::string> paths;
  for (const auto &entry :
       std::filesystem::recursive_directory_iterator(NORMFORGE_SOURCE_DIR "/specs"))
    if (entry.path().extension() == ".yaml")
      paths.insert(entry.path().string());
  std::vector<Subject> subjects;
  for (const std::string &path : paths) {
    Subject subject{path.substr(std::string(NORMFORGE_SOURCE_DIR "/specs/").size()),
                    valueOf(readSpec(path), path),
                    {}};
    for (const std::string &size : subject.spec.sizeNames())
      subject.sizes[size] = 2;
    subjects.push_back(std::move(subject));
  }
  return subjects;
}

std::vector<Subject> randomSpecs(int count) {
  SpecDraw draw(12);
  std::vector<Subject> subjects;
  for (int i = 0; i < count; ++i) {
    const DrawnSpec drawn = draw.draw();
    const std::string name = fmt::format("random{}", i);
    subjects.push_back({name, valueOf(parseSpec(drawn.yaml(), name), name), drawn.sizes()});
  }
  return subjects;
}

void printCode(const std::vector<Subject> &subjects) {
  for (const char *cpu : kCpus) {
    Session session(valueOf(describeTarget(cpu), cpu));
    for (const Subject &subject : subjects)
      for (Phase phase : subject.spec.phases) {
        Artifact artifact = valueOf(session.compile(subject.spec, phase), subject.name);
        for (const Variant &variant : artifact.variants)
          fmt::print("{} {} {} {} {} {}\n", cpu, subject.name, toString(phase),
                     digestOf(variant.image.bytes), variant.workspaceBytes.text(artifact.sizes),
                     variant.schedule);
        for (Variant &variant : artifact.variants)
          variant.image.bytes.resize(1);
        fmt::print("{} {} {} manifest {}\n", cpu, subject.name, toString(phase),
                   digestOf(serialize(artifact)));
      }
  }
}

void printOutputs(const std::vector<Subject> &subjects) {
  for (const char *cpu : kCpus) {
    std::string whyNot;
    Session *session = TestKernel::session(cpu, whyNot);
    if (!session) {
      fmt::print(stderr, "SKIP: {}\n", whyNot);
      continue;
    }
    for (const Subject &subject : subjects)
      for (Phase phase : subject.spec.phases) {
        const oracle::Arrays inputs = oracle::drawInputs(subject.spec, phase, subject.sizes, 5,
                                                         oracle::Data::Normal, drawnScalars());
        const Operator op = makeOperator(subject.spec, phase);
        for (const ScheduleVariant &variant : forms(op, session->target())) {
          const TestKernel kernel(op, variant, *session);
          for (const auto &[name, array] : kernel.run(subject.sizes, inputs, drawnScalars()))
            fmt::print("{} {} {} {} {} {}\n", cpu, subject.name, toString(phase), name,
                       digestOf(array.bytes), variant.schedule.text(op));
        }
      }
  }
}

/// The keys that lines of a table begin with.
std::set<std::string> keysOf(const char *table) {
  std::set<std::string> keys;
  std::ifstream file(table);
  for (std::string line; std::getline(file, line);)
    keys.insert(line.substr(0, line.find(':')));
  if (keys.empty()) {
    fmt::print(stderr, "{}: no lines\n", table);
    std::exit(1);
  }
  return keys;
}

void printSchedules(const std::vector<Subject> &subjects, const char *table) {
  const std::set<std::string> keys = table ? keysOf(table) : std::set<std::string>();
  for (const Subject &subject : subjects)
    for (Phase phase : subject.spec.phases)
      for (const char *cpu : kCpus) {
        const std::string key = fmt::format("{} {} {}", subject.name, toString(phase), cpu);
        if (table && !keys.contains(key))
          continue;
        const Operator op = makeOperator(subject.spec, phase);
        for (const ScheduleVariant &variant :
             selectSchedules(op, valueOf(describeTarget(cpu), cpu)))
          fmt::print("{}: when {} <= {}: {}\n", key, variant.guard.value.text(op.sizes),
                     variant.guard.limit, variant.schedule.text(op));
      }
}

} // namespace

int main(int argc, char **argv) {
  const std::string_view what = argc > 1 ? argv[1] : "";
  std::vector<Subject> subjects = specsOfNetworks();
  if (what == "schedules") {
    printSchedules(subjects, argc > 2 ? argv[2] : nullptr);
    return 0;
  }
  for (Subject &subject : randomSpecs(250))
    subjects.push_back(std::move(subject));
  if (what == "code")
    printCode(subjects);
  else if (what == "outputs")
    printOutputs(subjects);
  else
    fmt::print(stderr, "usage: normforge_digest code|outputs|schedules [TABLE]\n");
  return what == "code" || what == "outputs" ? 0 : 2;
}
