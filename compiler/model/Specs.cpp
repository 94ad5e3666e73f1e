#include "compiler/model/Specs.h"

#include "compiler/export/CHeader.h"
#include "compiler/spec/Parser.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>
#include <set>

namespace normforge::model {

namespace {

bool isOfRows(const Norm &norm) { return norm.kind == Kind::Layer || norm.kind == Kind::Rms; }

/// Letters of x's axes: channels second, or the normalized ones last.
std::string layoutOf(const Norm &norm, size_t rank) {
  const bool isChannels = !isOfRows(norm) || (norm.axes == std::vector<int64_t>{1} && rank > 2);
  if (isChannels) {
    constexpr std::string_view places[] = {"", "", "", "l", "hw", "dhw", "udhw"};
    return "nc" + std::string(places[rank]);
  }
  const size_t lead = rank - std::min(rank, norm.axes.size());
  const std::string_view samples = "nbtdhw", normalized = "uvpqrc";
  return std::string(samples.substr(0, lead)) +
         std::string(normalized.substr(normalized.size() - (rank - lead)));
}

bool isIdentifier(const std::string &text) {
  return !text.empty() && !llvm::isDigit(text[0]) &&
         llvm::all_of(text, [](char c) { return llvm::isAlnum(c) || c == '_'; });
}

/// Sizes as a spec has them: names for those that the model does not know.
std::vector<std::string> sizesOf(const Shape &shape, const std::string &layout) {
  std::vector<std::string> sizes;
  std::set<std::string> used;
  for (size_t i = 0; i < shape.size(); ++i) {
    std::string size = shape[i].text();
    if (!shape[i].isKnown()) {
      // The letter of the axis, so that N is the batch; the model's own name where that is taken.
      size = std::string(1, llvm::toUpper(layout[i]));
      if (used.contains(size))
        size = isIdentifier(shape[i].name) ? shape[i].name : size + "_2";
      used.insert(size);
    }
    sizes.push_back(size);
  }
  return sizes;
}

std::string stepList(const std::vector<Step> &steps) {
  std::vector<std::string> texts;
  for (const Step &step : steps)
    texts.push_back(step.text);
  return fmt::format("[{}]", fmt::join(texts, ", "));
}

/// A step's name in words and names: "relu", "add".
std::string stepName(const Step &step) {
  const std::string text = step.text.substr(step.text.find_first_not_of("{ "));
  return text.substr(0, text.find_first_of(":}"));
}

std::string specText(const Graph &graph, const Norm &norm, const std::string &layout,
                     const std::vector<std::string> &sizes) {
  const Value &x = graph.values[norm.x];
  constexpr std::string_view modes[] = {"feature", "layer", "instance", "group", "rms"};
  std::string text = fmt::format(
      "semantics: onnx-15\ninput: {{shape: [{}], layout: {}, dtype: {}}}\nmode: {}\naxis: [{}]\n",
      fmt::join(sizes, ", "), layout, typeName(x.type), modes[static_cast<size_t>(norm.kind)],
      fmt::join(isOfRows(norm) ? norm.axes : std::vector<int64_t>{1}, ", "));
  if (norm.kind == Kind::Group)
    text += fmt::format("groups: {}\n", norm.groups);
  text += fmt::format("epsilon: {}\n", numberText(norm.epsilon, x.type));
  for (int v : {norm.gamma, norm.beta, norm.mean})
    if (v >= 0 && graph.values[v].type != 0) {
      text += fmt::format("parameter_dtype: {}\n", typeName(graph.values[v].type));
      break;
    }
  if (norm.gamma < 0)
    text += "scale: false\n";
  if (norm.beta < 0 && norm.kind != Kind::Rms)
    text += "center: false\n";
  if (norm.beta >= 0 && norm.kind == Kind::Rms)
    text += "center: true\n";
  if (norm.isTraining)
    text += fmt::format("momentum: {}\n", numberText(norm.momentum, x.type));
  if (!norm.prologue.empty())
    text += fmt::format("prologue: {}\n", stepList(norm.prologue));
  if (!norm.fuse.empty())
    text += fmt::format("fuse: {}\n", stepList(norm.fuse));
  return text + fmt::format("phases: [{}]\n", norm.isTraining ? "training" : "inference");
}

std::string nameOf(const Norm &norm, const std::vector<std::string> &sizes) {
  constexpr std::string_view kinds[] = {"batch_norm", "layer_norm", "instance_norm", "group_norm",
                                        "rms_norm"};
  std::string name(kinds[static_cast<size_t>(norm.kind)]);
  if (isOfRows(norm)) {
    for (int64_t axis : norm.axes)
      name += "_" + sizes[static_cast<size_t>(axis)];
  } else {
    for (size_t i = 1; i < sizes.size(); ++i)
      name += (i == 1 ? "_" : "x") + sizes[i];
  }
  for (const std::vector<Step> *steps : {&norm.prologue, &norm.fuse})
    for (const Step &step : *steps)
      name += "_" + stepName(step);
  return identifierOf(name);
}

} // namespace

Imported importNorms(const Model &model) {
  Imported imported;
  std::map<std::string, size_t> layers; // by their texts
  std::set<std::string> names;
  for (size_t g = 0; g < model.graphs.size(); ++g) {
    const Graph &graph = model.graphs[g];
    Found found = findNorms(graph);
    for (Left &left : found.left)
      imported.refused.push_back({g, std::move(left)});
    for (Norm &norm : found.norms) {
      const Shape &shape = *graph.shape(norm.x);
      const std::string layout = layoutOf(norm, shape.size());
      const std::vector<std::string> sizes = sizesOf(shape, layout);
      const std::string text = specText(graph, norm, layout, sizes);
      auto [known, isNew] = layers.emplace(text, imported.layers.size());
      if (isNew) {
        if (auto spec = parseSpec("name: check\n" + text, "spec"); !spec) {
          std::string why = llvm::toString(spec.takeError());
          why = why.substr(0, why.find('\n'));
          if (const size_t at = why.find("error: "); at != std::string::npos)
            why = why.substr(at + 7);
          imported.refused.push_back({g, {norm.nodes.back(), "its spec: " + why}});
          layers.erase(known);
          continue;
        }
        std::string name = nameOf(norm, sizes);
        for (int i = 2; !names.insert(name).second; ++i)
          name = fmt::format("{}_{}", nameOf(norm, sizes), i);
        std::vector<std::string> steps;
        for (const Step &step : norm.fuse)
          steps.push_back(stepName(step));
        imported.layers.push_back(
            {name,
             text,
             fmt::format("{}{} of ({}) {}{}", norm.isTraining ? "training of " : "",
                         inWords(norm.kind), fmt::join(sizes, ", "),
                         typeName(graph.values[norm.x].type),
                         steps.empty() ? "" : fmt::format(", then {}", fmt::join(steps, ", "))),
             {}});
      }
      imported.layers[known->second].places.push_back({g, std::move(norm)});
    }
  }
  return imported;
}

} // namespace normforge::model
