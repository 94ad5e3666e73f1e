#include "compiler/cli/Export.h"

#include "compiler/cli/Files.h"
#include "compiler/export/CHeader.h"
#include "compiler/export/Manifest.h"
#include "compiler/export/SharedLibrary.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"

#include <cstdio>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <map>
#include <unistd.h>

namespace normforge::cli {

namespace {

struct KindNames {
  FileKind kind;
  std::string_view name, extension;
};
constexpr KindNames kKinds[] = {{FileKind::Object, "obj", ".o"},
                                {FileKind::SharedLibrary, "so", ".so"},
                                {FileKind::Assembly, "asm", ".s"},
                                {FileKind::Header, "header", ".h"},
                                {FileKind::Manifest, "manifest", ".json"}};

const KindNames &namesOf(FileKind kind) {
  return *llvm::find_if(kKinds, [&](const KindNames &names) { return names.kind == kind; });
}

/// A set of files: which specs are in it, and what it is called.
struct FileSet {
  std::vector<Spec> specs;
  std::vector<std::vector<Phase>> phases; ///< by spec
  std::string stem;                       ///< path without an ending
};

std::string inWords(const Spec &spec, Phase phase) {
  return fmt::format("{} of {} ({}), mode {}, {} {}{}", toString(phase), spec.name,
                     toString(spec.semantics), toString(spec.mode), spec.layout.text,
                     toString(spec.dtype), stepsInWords(spec));
}

class Exporter {
public:
  explicit Exporter(const ExportRequest &request) : request_(request) {}
  llvm::Error run();

private:
  bool has(FileKind kind) const { return llvm::is_contained(request_.kinds, kind); }
  llvm::Error checkKinds() const;
  llvm::Expected<std::vector<FileSet>> readSets();
  /// Adds the texts of the set's files to `texts_`.
  llvm::Error compile(const FileSet &set);
  std::string pathOf(const FileSet &set, FileKind kind) const;

  const ExportRequest &request_;
  bool isDirectory_ = false;
  std::vector<TargetDescription> targets_;
  std::vector<std::unique_ptr<Session>> sessions_; ///< by target
  std::map<std::string, std::string> texts_;       ///< by path
  std::vector<std::string> paths_;                 ///< of the specs
};

llvm::Error Exporter::checkKinds() const {
  for (const TargetDescription &target : targets_)
    if (target.triple != targets_.front().triple)
      return badInput(fmt::format("--cpu: {} and {} are of different machines",
                                  targets_.front().cpu, target.cpu));
  // Only a library can choose between CPUs.
  for (FileKind kind : request_.kinds) {
    const bool mayChoose =
        kind == FileKind::SharedLibrary ||
        (has(FileKind::SharedLibrary) && (kind == FileKind::Header || kind == FileKind::Manifest));
    if (targets_.size() > 1 && !mayChoose)
      return badInput(fmt::format("--emit={} is of one CPU, and --cpu names {}; a library (so) or "
                                  "`normforge pack` chooses between them when it is loaded",
                                  namesOf(kind).name, targets_.size()));
  }
  if (request_.output.empty() && request_.kinds.size() > 1)
    return badInput("several kinds of files need a name: a directory or a file with -o");
  if (request_.kinds.size() > 1 && !isDirectory_) {
    const llvm::StringRef extension = llvm::sys::path::extension(request_.output);
    std::vector<std::string_view> extensions;
    for (FileKind kind : request_.kinds)
      extensions.push_back(namesOf(kind).extension);
    if (!llvm::is_contained(extensions, std::string_view(extension)))
      return badInput(fmt::format("-o {}: expected a directory, or a file of one of the kinds: {}",
                                  request_.output, fmt::join(extensions, ", ")));
  }
  return llvm::Error::success();
}

llvm::Expected<std::vector<FileSet>> Exporter::readSets() {
  auto paths = findSpecs(request_.specs);
  if (!paths)
    return paths.takeError();
  paths_ = *paths;
  auto specs = readSpecs(*paths, parsePhase(request_.phase));
  if (!specs)
    return specs.takeError();
  if (llvm::Error error = checkDistinctNames(*paths, *specs))
    return error;
  std::vector<FileSet> sets;
  std::map<std::string, std::string> symbols; // and what they are of
  for (size_t i = 0; i < specs->size(); ++i) {
    Spec &spec = (*specs)[i];
    auto phases = choosePhases(spec, (*paths)[i], request_.phase);
    if (!phases)
      return phases.takeError();
    for (const Phase phase : *phases) {
      const std::string symbol = exportedSymbol(spec.name, toString(phase)),
                        own = fmt::format("{} of {}", toString(phase), (*paths)[i]);
      if (const auto [other, isNew] = symbols.emplace(symbol, own); !isNew)
        return badInput(
            fmt::format("{} and {} would both be the function {}; give one of the specs "
                        "another name",
                        other->second, own, symbol));
    }
    if (sets.empty() || isDirectory_) {
      FileSet &set = sets.emplace_back();
      llvm::SmallString<128> stem(request_.output);
      if (isDirectory_)
        llvm::sys::path::append(stem, identifierOf(spec.name));
      else
        llvm::sys::path::replace_extension(stem, "");
      set.stem = stem.str().str();
    }
    sets.back().phases.push_back(std::move(*phases));
    sets.back().specs.push_back(std::move(spec));
  }
  return sets;
}

std::string Exporter::pathOf(const FileSet &set, FileKind kind) const {
  if (!isDirectory_ && request_.kinds.size() == 1)
    return request_.output;
  return set.stem + std::string(namesOf(kind).extension);
}

/// That a manifest is one that a runtime would take: what the header and the JSON text are made of.
static llvm::Error readBack(Artifact manifest) {
  for (Variant &variant : manifest.variants) // an object has the code, and entries are symbols
    variant.image.bytes.resize(1);
  for (Variant &variant : manifest.variants)
    for (Stage &stage : variant.stages)
      stage.entry = 0;
  std::string problem;
  return deserialize(serialize(manifest), problem)
             ? llvm::Error::success()
             : llvm::createStringError(
                   "internal error: the manifest that was made cannot be read: " + problem);
}

llvm::Error Exporter::compile(const FileSet &set) {
  ExportedHeader header;
  const std::string stem = llvm::sys::path::filename(set.stem).str();
  header.name = stem.empty() ? set.specs.front().name : stem;
  if (has(FileKind::SharedLibrary))
    header.cpuFunction = identifierOf(header.name) + "_cpu";
  std::vector<std::string> objects;
  for (size_t t = 0; t < targets_.size(); ++t) {
    if (sessions_.size() == t)
      sessions_.push_back(std::make_unique<Session>(targets_[t], /*verify=*/true));
    std::vector<ObjectKernel> kernels;
    for (size_t i = 0; i < set.specs.size(); ++i)
      for (Phase phase : set.phases[i]) {
        const Operator op = makeOperator(set.specs[i], phase);
        const std::string symbol = exportedSymbol(set.specs[i].name, toString(phase));
        if (t == 0)
          header.kernels.push_back({symbol, inWords(set.specs[i], phase), {}});
        auto variants = chooseVariants(op, targets_[t], request_.schedule);
        if (!variants)
          return variants.takeError();
        kernels.push_back({op, std::move(*variants),
                           fmt::format("{}__{}", symbol, identifierOf(targets_[t].cpu))});
      }
    auto object = sessions_[t]->compileObject(kernels, has(FileKind::Assembly));
    if (!object)
      return internalError(object.takeError());
    for (size_t k = 0; k < kernels.size(); ++k) {
      if (llvm::Error error = readBack(object->kernels[k]))
        return internalError(std::move(error));
      header.kernels[k].variants.push_back(std::move(object->kernels[k]));
    }
    if (has(FileKind::Assembly))
      texts_[pathOf(set, FileKind::Assembly)] = object->assembly;
    objects.push_back(std::move(object->object));
  }
  if (has(FileKind::SharedLibrary)) {
    std::vector<std::string> all = objects;
    auto selector = selectorObject(header.cpuFunction, targets_);
    if (!selector)
      return badInput("--emit=so: " + llvm::toString(selector.takeError()));
    all.push_back(std::move(*selector));
    const std::string path = pathOf(set, FileKind::SharedLibrary);
    auto library = linkSharedLibrary(all, llvm::sys::path::filename(path).str());
    if (!library)
      return badInput("--emit=so: " + llvm::toString(library.takeError()));
    texts_[path] = std::move(*library);
  }
  if (has(FileKind::Object))
    texts_[pathOf(set, FileKind::Object)] = std::move(objects.front());
  if (has(FileKind::Header))
    texts_[pathOf(set, FileKind::Header)] = cHeader(header);
  if (has(FileKind::Manifest))
    texts_[pathOf(set, FileKind::Manifest)] = jsonManifest(header);
  return llvm::Error::success();
}

llvm::Error Exporter::run() {
  isDirectory_ = llvm::StringRef(request_.output).ends_with("/") ||
                 llvm::sys::fs::is_directory(request_.output);
  auto targets = chooseTargets(request_.target);
  if (!targets)
    return targets.takeError();
  targets_ = std::move(*targets);
  if (llvm::Error error = checkKinds())
    return error;
  const bool isBinary = has(FileKind::Object) || has(FileKind::SharedLibrary);
  if (request_.output.empty() && isBinary && isatty(STDOUT_FILENO))
    return badInput("an object is not for a terminal; name a file with -o, or a pipe");
  auto sets = readSets();
  if (!sets)
    return sets.takeError();
  for (const FileSet &set : *sets)
    if (llvm::Error error = compile(set))
      return error;
  if (request_.output.empty()) {
    const std::string &text = texts_.begin()->second;
    std::fwrite(text.data(), 1, text.size(), stdout);
    return llvm::Error::success();
  }
  if (isDirectory_)
    if (std::error_code code = llvm::sys::fs::create_directories(request_.output))
      return badInput(fmt::format("-o {}: cannot be made: {}", request_.output, code.message()));
  std::vector<FileToWrite> files;
  std::vector<std::string> written;
  for (const auto &[path, text] : texts_) {
    files.push_back({path, "", text});
    written.push_back(path);
  }
  if (const std::string path = overwritten(paths_, written); !path.empty())
    return badInput(fmt::format("-o: {} is a spec that was read; it is left as it is", path));
  llvm::Error error = writeFiles(files);
  return error ? located(std::move(error)) : llvm::Error::success();
}

} // namespace

std::optional<FileKind> parseFileKind(std::string_view text) {
  for (const KindNames &names : kKinds)
    if (names.name == text)
      return names.kind;
  return std::nullopt;
}

std::string_view fileKindNames() { return "obj, so, asm, header, manifest"; }

llvm::Error exportKernels(const ExportRequest &request) { return Exporter(request).run(); }

} // namespace normforge::cli
