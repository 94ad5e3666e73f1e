// `normforge import`: specs of the norms of an ONNX model.
#include "compiler/cli/Files.h"
#include "compiler/cli/Help.h"
#include "compiler/cli/SharedOptions.h"
#include "compiler/cli/Terminal.h"
#include "compiler/model/Rewrite.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/JSON.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>
#include <memory>

namespace normforge::cli {

namespace {

struct Options {
  std::string path, output, rewritten;
  bool json = false, verbose = false;
};

/// A node as people find it: its name, and the body that it is in.
std::string placeOf(const model::Model &model, size_t graph, int node) {
  const model::Graph &of = model.graphs[graph];
  return of.nodes[static_cast<size_t>(node)].name +
         (of.path.empty() ? "" : fmt::format(" ({})", of.path));
}

std::string nodeOf(const model::Model &model, const model::Place &place) {
  return placeOf(model, place.graph, place.norm.nodes.front());
}

/// The first few, and how many more there are.
std::string listed(const std::vector<std::string> &words, size_t most) {
  const size_t shown = std::min(words.size(), words.size() <= most + 1 ? words.size() : most);
  std::string text = fmt::format(
      "{}", fmt::join(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(shown), ", "));
  return shown < words.size() ? fmt::format("{} and {} more", text, words.size() - shown) : text;
}

/// The notes of a layer's norms, each once.
std::vector<std::string> notesOf(const model::Layer &layer) {
  std::vector<std::string> notes;
  for (const model::Place &place : layer.places)
    for (const std::string &note : place.norm.notes)
      if (!llvm::is_contained(notes, note))
        notes.push_back(note);
  return notes;
}

std::string commentOf(const model::Model &model, const model::Layer &layer,
                      const std::string &source) {
  std::vector<std::string> places;
  for (const model::Place &place : layer.places)
    places.push_back(nodeOf(model, place));
  std::string text = fmt::format("{}: {}", source, listed(places, 4));
  for (const std::string &note : notesOf(layer))
    text += "\n" + note;
  std::string comment;
  // Names of nodes may have any characters.
  llvm::SmallVector<llvm::StringRef> lines;
  const std::string lined = folded(text, 98);
  llvm::StringRef(lined).split(lines, '\n');
  for (llvm::StringRef line : lines) {
    comment += "# ";
    for (char c : line)
      comment += static_cast<unsigned char>(c) < ' ' || c == 0x7f                    ? ' '
                 : static_cast<unsigned char>(c) > 0x7f && !llvm::json::isUTF8(line) ? '?'
                                                                                     : c;
    comment += "\n";
  }
  return comment;
}

std::string textOf(const model::Model &model, const model::Layer &layer,
                   const std::string &source) {
  return commentOf(model, layer, source) +
         fmt::format("name: {}\ncount: {}\n", layer.name, layer.places.size()) + layer.text;
}

/// An error where a file holds another model's spec: the first line of each says which it is of.
llvm::Error checkIsOurs(const std::string &path, const std::string &text,
                        const std::string &source) {
  auto file = llvm::MemoryBuffer::getFile(path);
  const llvm::StringRef own = llvm::StringRef(text).take_front(source.size() + 3); // "# SOURCE:"
  if (!file || (*file)->getBuffer().starts_with(own) || (*file)->getBuffer() == text)
    return llvm::Error::success();
  return badInput(
      fmt::format("-o: {} is no spec of {}; expected a folder without it", path, source));
}

struct Reason {
  std::string why;
  std::vector<std::string> ops, places;
};

/// Groups the refused nodes by their reasons.
std::vector<Reason> reasonsOf(const model::Model &model, const model::Imported &imported) {
  std::vector<Reason> reasons;
  for (const auto &refused : imported.refused) {
    const model::Node &node =
        model.graphs[refused.graph].nodes[static_cast<size_t>(refused.left.node)];
    auto same = llvm::find_if(reasons, [&](const Reason &r) { return r.why == refused.left.why; });
    if (same == reasons.end())
      same = reasons.insert(reasons.end(), Reason{refused.left.why, {}, {}});
    if (!llvm::is_contained(same->ops, node.op))
      same->ops.push_back(node.op);
    same->places.push_back(placeOf(model, refused.graph, refused.left.node));
  }
  return reasons;
}

void printTable(const model::Model &model, const model::Imported &imported,
                const std::vector<std::string> &files, const Options &options) {
  size_t norms = 0, nodes = 0, width = 0;
  for (const model::Graph &graph : model.graphs)
    nodes += graph.nodes.size();
  for (size_t i = 0; i < files.size(); ++i) {
    width = std::max(width, files[i].size());
    norms += imported.layers[i].places.size();
  }
  printFolded("{}: opset {}, {} nodes; {} norm{}, {} spec{}\n", options.path, model.opset, nodes,
              norms, norms == 1 ? "" : "s", files.size(), files.size() == 1 ? "" : "s");
  if (!files.empty()) {
    Columns columns({{.title = "spec", .width = width},
                     {.title = "count", .isNumber = true},
                     {.title = "layer", .width = 40}});
    printFolded("{}", columns.titles());
    for (size_t i = 0; i < files.size(); ++i) {
      const model::Layer &layer = imported.layers[i];
      printFolded("{}", columns.row({files[i], std::to_string(layer.places.size()), layer.what}));
      for (const model::Place &place : layer.places)
        if (options.verbose) {
          std::vector<std::string> ops;
          for (int node : place.norm.nodes)
            ops.push_back(model.graphs[place.graph].nodes[static_cast<size_t>(node)].op);
          printFolded("    {}: {}\n", nodeOf(model, place), fmt::join(ops, ", "));
        }
      for (const std::string &note : notesOf(layer))
        printFolded("    note: {}\n", note);
    }
  }
  const std::vector<Reason> reasons = reasonsOf(model, imported);
  if (!reasons.empty())
    printFolded("not taken:\n");
  for (const Reason &reason : reasons)
    printFolded("  {} {}: {}: {}\n", reason.places.size(), fmt::join(reason.ops, ", "), reason.why,
                options.verbose ? fmt::format("{}", fmt::join(reason.places, ", "))
                                : listed(reason.places, 2));
}

void printJson(const model::Model &model, const model::Imported &imported,
               const std::vector<std::string> &files,
               const std::optional<model::Rewritten> &rewritten) {
  llvm::json::Array layers, left;
  for (size_t i = 0; i < files.size(); ++i) {
    const model::Layer &layer = imported.layers[i];
    llvm::json::Array places;
    for (const model::Place &place : layer.places) {
      llvm::json::Array nodes, notes;
      for (int node : place.norm.nodes)
        nodes.push_back(model.graphs[place.graph].nodes[static_cast<size_t>(node)].name);
      for (const std::string &note : place.norm.notes)
        notes.push_back(note);
      places.push_back(llvm::json::Object{{"graph", model.graphs[place.graph].path},
                                          {"nodes", std::move(nodes)},
                                          {"notes", std::move(notes)}});
    }
    layers.push_back(llvm::json::Object{{"spec", files[i]},
                                        {"name", layer.name},
                                        {"count", static_cast<int64_t>(layer.places.size())},
                                        {"layer", layer.what},
                                        {"places", std::move(places)}});
  }
  for (const auto &refused : imported.refused) {
    const model::Graph &graph = model.graphs[refused.graph];
    const model::Node &node = graph.nodes[static_cast<size_t>(refused.left.node)];
    left.push_back(llvm::json::Object{
        {"graph", graph.path}, {"node", node.name}, {"op", node.op}, {"why", refused.left.why}});
  }
  llvm::json::Object object{
      {"opset", model.opset}, {"layers", std::move(layers)}, {"not_taken", std::move(left)}};
  if (rewritten) {
    llvm::json::Array kept;
    for (const auto &one : rewritten->kept)
      kept.push_back(
          llvm::json::Object{{"node", placeOf(model, one.graph, one.node)}, {"why", one.why}});
    object["rewritten"] = llvm::json::Object{{"nodes", static_cast<int64_t>(rewritten->nodes)},
                                             {"kept", std::move(kept)}};
  }
  const llvm::json::Value value(std::move(object));
  fmt::print("{}\n", llvm::formatv("{0:2}", value).str());
}

llvm::Error run(const Options &options) {
  auto model = model::readModel(options.path);
  if (!model)
    return located(model.takeError());
  const model::Imported imported = model::importNorms(*model);

  std::vector<FileToWrite> written;
  std::vector<std::string> files;
  const std::string source = llvm::sys::path::filename(options.path).str();
  for (const model::Layer &layer : imported.layers) {
    llvm::SmallString<128> path(options.output);
    llvm::sys::path::append(path, layer.name + ".yaml");
    files.push_back(options.output.empty() ? layer.name : std::string(path));
    if (options.output.empty())
      continue;
    written.push_back({std::string(path), textOf(*model, layer, source), {}});
    if (llvm::Error error = checkIsOurs(written.back().path, written.back().head, source))
      return error;
  }
  // The model's protobuf is changed by this; what is printed is not of it.
  std::optional<model::Rewritten> rewritten;
  if (!options.rewritten.empty()) {
    namespace path = llvm::sys::path;
    const std::vector<std::string> external = model::externalFiles(*model);
    auto folderOf = [](const std::string &file) {
      return path::parent_path(file).empty() ? "." : path::parent_path(file).str();
    };
    if (!external.empty() &&
        !llvm::sys::fs::equivalent(folderOf(options.path), folderOf(options.rewritten)))
      return badInput(fmt::format("--rewrite: {} has weights in other files beside it; write the "
                                  "new model into its folder",
                                  options.path));
    std::vector<std::string> read{options.path};
    for (const std::string &file : external) {
      llvm::SmallString<128> whole(folderOf(options.path));
      path::append(whole, file);
      read.emplace_back(whole);
    }
    if (const std::string same = overwritten(read, {options.rewritten}); !same.empty())
      return badInput(fmt::format("--rewrite: {} is a file that is read", same));
    for (const FileToWrite &file : written)
      if (fileOf(file.path) == fileOf(options.rewritten))
        return badInput(fmt::format("--rewrite: {} is the file of a spec", options.rewritten));
    auto made = model::rewrite(*model, imported);
    if (!made)
      return badInput("--rewrite: " + llvm::toString(made.takeError()));
    rewritten = std::move(*made);
    written.push_back({options.rewritten, "", rewritten->bytes});
  }
  if (!options.output.empty())
    if (std::error_code code = llvm::sys::fs::create_directories(options.output))
      return badInput(fmt::format("-o: {} cannot be made: {}", options.output, code.message()));
  if (llvm::Error error = writeFiles(written))
    return located(std::move(error));
  if (options.json)
    printJson(*model, imported, files, rewritten);
  else
    printTable(*model, imported, files, options);
  if (rewritten && !options.json) {
    printFolded("{}: {} of these are nodes of normforge now\n", options.rewritten,
                rewritten->nodes);
    std::map<std::string, std::vector<std::string>> kept;
    for (const auto &one : rewritten->kept)
      kept[one.why].push_back(placeOf(*model, one.graph, one.node));
    for (const auto &[why, places] : kept)
      printFolded("  {} stay: {}: {}\n", places.size(), why, listed(places, 2));
  }
  return llvm::Error::success();
}

} // namespace

void declareImport(CLI::App &app, int &status) {
  auto options = std::make_shared<Options>();
  CLI::App *sub = app.add_subcommand(
      "import", "Find the norms of an ONNX model, and write a spec of each distinct layer");
  sub->add_option("MODEL", options->path, "The model, an .onnx file")
      ->required()
      ->type_name("PATH");
  sub->add_option("-o", options->output,
                  "The folder to write specs into (default: none are written, all is told)")
      ->type_name("FOLDER");
  sub->add_option("--rewrite", options->rewritten,
                  "Also write the model with nodes of ours in the norms' place, for ONNX Runtime "
                  "with libnormforge-onnxruntime.so")
      ->type_name("FILE");
  addJsonFlag(*sub, options->json, "Print one JSON object");
  sub->add_flag("--verbose", options->verbose, "Print every norm with its nodes");
  addWideOption(*sub);
  addExamples(*sub, "import model.onnx -o build/specs",
              "import model.onnx --rewrite build/rewritten.onnx --verbose");
  sub->callback([options, &status] {
    if (llvm::Error error = run(*options))
      status = report(std::move(error));
  });
}

} // namespace normforge::cli
