// `normforge convert`: what one framework's layers have saved, as another's take it.
#include "compiler/spec/Convert.h"
#include "compiler/cli/Help.h"
#include "compiler/cli/SharedOptions.h"
#include "compiler/cli/Terminal.h"

#include "compiler/cli/Command.h"
#include "compiler/cli/Files.h"
#include "compiler/cli/Npz.h"
#include "compiler/spec/Diagnostics.h"
#include "compiler/spec/Npy.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <set>

namespace normforge::cli {

namespace {

struct Options {
  std::string from, to, mode, fromEpsilon, toEpsilon, input, output;
  std::vector<std::string> prefixes;
  bool forInference = false;
};

/// A spec says what words its keys take, and what is wrong with others.
llvm::Expected<Spec> readKey(const char *option, const std::string &key, const std::string &word) {
  const bool isWord = !word.empty() && llvm::all_of(word, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_';
  });
  const bool isMode = key == "mode", ofLast = word == "1" || word == "layer" || word == "sample";
  auto spec = parseSpec(
      fmt::format("input: {{shape: [2, 2, 2], layout: nct}}\naxis: {}\n{}{}: {}\n",
                  isMode && ofLast ? "t" : "c", isMode && word == "group" ? "groups: 1\n" : "", key,
                  isWord ? word : spec::quoted(word)),
      option);
  if (spec && isWord)
    return spec;
  const std::string text = spec ? fmt::format("error: unknown {} {}", key, spec::quoted(word))
                                : llvm::toString(spec.takeError());
  return badInput(fmt::format(
      "{}: {}", option, llvm::StringRef(text).split('\n').first.split("error: ").second.str()));
}

llvm::Expected<std::optional<double>> readEpsilon(const char *option, const std::string &word) {
  if (word.empty())
    return std::nullopt;
  double value = 0;
  if (!llvm::to_float(word, value) || !(value > 0) || std::isinf(value))
    return badInput(fmt::format("{} must be a number above 0; found '{}'", option, word));
  return value;
}

llvm::Expected<Conversion> readConversion(const Options &options) {
  Conversion conversion;
  for (auto [option, word, into] : {std::tuple("--from", &options.from, &conversion.from),
                                    std::tuple("--to", &options.to, &conversion.to)}) {
    auto spec = readKey(option, "semantics", *word);
    if (!spec)
      return spec.takeError();
    *into = spec->semantics;
  }
  if (!options.mode.empty()) {
    auto spec = readKey("--mode", "mode", options.mode);
    if (!spec)
      return spec.takeError();
    conversion.mode = spec->mode;
  }
  for (auto [option, word, into] :
       {std::tuple("--from-epsilon", &options.fromEpsilon, &conversion.fromEpsilon),
        std::tuple("--to-epsilon", &options.toEpsilon, &conversion.toEpsilon)}) {
    auto epsilon = readEpsilon(option, *word);
    if (!epsilon)
      return epsilon.takeError();
    *into = *epsilon;
  }
  conversion.forInference = options.forInference;
  conversion.prefixes = options.prefixes;
  return conversion;
}

llvm::Error convertFile(const Options &options) {
  auto conversion = readConversion(options);
  if (!conversion)
    return conversion.takeError();
  if (!overwritten(options.input, options.output).empty())
    return badInput(fmt::format("-o: {} is the file that is read", options.output));
  auto members = readNpz(options.input);
  if (!members)
    return located(members.takeError());
  // A member that is no array of a layer may be one that this command cannot read.
  std::map<std::string, HostArray> arrays;
  std::map<std::string, std::string> unread;
  for (const NpzMember &member : *members)
    if (auto array =
            parseNpy(member.bytes, fmt::format("{}({})", options.input, shownName(member.name))))
      arrays.emplace(member.name, std::move(*array));
    else
      unread.emplace(member.name, llvm::toString(array.takeError()));
  auto converted = convert(*conversion, arrays, unread);
  if (!converted) {
    std::string text;
    llvm::SmallVector<llvm::StringRef> lines;
    const std::string problems = llvm::toString(converted.takeError());
    llvm::StringRef(problems).split(lines, '\n');
    for (llvm::StringRef line : lines) // those of arrays have their place
      text +=
          fmt::format("{}{}{}", text.empty() ? "" : "\n",
                      line.contains(": error: ") ? "" : options.input + ": error: ", line.str());
    return located(llvm::createStringError(text));
  }

  std::set<std::string> gone(converted->left.begin(), converted->left.end());
  for (const ConvertedLayer &layer : converted->layers)
    gone.insert(layer.taken.begin(), layer.taken.end());
  std::vector<NpzMember> written;
  std::set<std::string> names;
  for (const ConvertedLayer &layer : converted->layers)
    for (const auto &[name, array] : layer.made) {
      auto head = npyHead(array);
      if (!head)
        return head.takeError();
      written.push_back({name, *head + bytesOf(array).str()});
      names.insert(name);
    }
  size_t copied = 0;
  for (NpzMember &member : *members) {
    if (gone.contains(member.name))
      continue;
    if (!names.insert(member.name).second)
      return located(llvm::createStringError(
          fmt::format("{}: error: {} is the name of a converted array and of another one",
                      options.input, shownName(member.name))));
    written.push_back(std::move(member));
    ++copied;
  }
  auto bytes = npzOf(written);
  if (!bytes)
    return located(llvm::createStringError(fmt::format(
        "{}: error: cannot be made: {}", options.output, llvm::toString(bytes.takeError()))));
  if (llvm::Error error = writeFiles(FileToWrite{options.output, "", *bytes}))
    return located(std::move(error));

  for (const ConvertedLayer &layer : converted->layers) {
    std::vector<std::string> taken, made;
    for (const std::string &name : layer.taken)
      taken.push_back(shownName(name));
    for (const auto &[name, array] : layer.made)
      made.push_back(shownName(name));
    fmt::print("{} -> {}\n", fmt::join(taken, ", "), fmt::join(made, ", "));
  }
  for (const std::string &name : converted->left)
    if (llvm::is_contained(llvm::map_range(*members, [](auto &m) { return m.name; }), name))
      fmt::print("{} is left out: {} has none\n", shownName(name), toString(conversion->to));
  if (copied > 0)
    fmt::print("{} array{} of no layer copied as {}\n", copied, copied == 1 ? "" : "s",
               copied == 1 ? "it is" : "they are");
  fmt::print("give the layers of {} epsilon {}\n", toString(conversion->to), converted->epsilon);
  for (const std::string &note : converted->notes)
    fmt::print("note: {}\n", note);
  return llvm::Error::success();
}

} // namespace

void declareConvert(CLI::App &app, int &status) {
  CLI::App *command = app.add_subcommand(
      "convert", "Turn saved parameters and statistics of one framework's layers into another's");
  auto options = std::make_shared<Options>();
  command
      ->add_option("FILE.npz", options->input,
                   "Arrays by the framework's names, alone or behind prefixes: bn1.running_mean")
      ->required();
  command->add_option("--from", options->from, "Their framework, as in a spec's semantics")
      ->required();
  command->add_option("--to", options->to, "The framework that the arrays are to be for")
      ->required();
  command->add_option("-o,--output", options->output, "The .npz file to write")->required();
  command->add_option("--mode", options->mode,
                      "Of the layers: 0 (default), 1 or layer, 2, instance, group, rms");
  command->add_option("--from-epsilon", options->fromEpsilon,
                      "Of the layers that were saved; the framework's default");
  command->add_option("--to-epsilon", options->toEpsilon,
                      "Of the layers that take the arrays; the same, or where their formula is "
                      "another one their framework's default");
  command
      ->add_option("--layers", options->prefixes,
                   "Prefixes of the layers' arrays, such as bn1.; without it every layer")
      ->delimiter(',');
  command->add_flag("--inference", options->forInference,
                    "Leave out what training alone takes and the other framework has none of");
  addExamples(*command, "convert model.npz --from pytorch --to tf-keras -o build/tf.npz",
              "convert build/tf.npz --from tf-keras --to pytorch --inference -o build/torch.npz");
  command->callback([options, &status] {
    llvm::Error error = convertFile(*options);
    status = error ? report(std::move(error)) : Success;
  });
}

} // namespace normforge::cli
