#include "compiler/cli/Help.h"

#include "compiler/cli/Command.h"
#include "compiler/cli/Terminal.h"
#include "compiler/target/CodeGen.h"
#include "normforge/normforge.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

namespace normforge::cli {

namespace {

constexpr size_t kHelpWidth = 80;
constexpr size_t kNameColumn = 24; ///< what options and subcommands take before their descriptions

std::vector<const CLI::App *> subcommandsOf(const CLI::App &app) {
  return app.get_subcommands([](const CLI::App *) { return true; });
}

std::vector<const CLI::Option *> optionsOf(const CLI::App &app) {
  return app.get_options([](const CLI::Option *option) {
    return option->nonpositional() && !option->get_group().empty();
  });
}

std::vector<const CLI::Option *> argumentsOf(const CLI::App &app) {
  return app.get_options([](const CLI::Option *option) { return option->get_positional(); });
}

/// "--cpu CPU[,CPU]"; empty of a flag.
std::string valueOf(const CLI::Option &option) {
  return option.get_type_size() == 0 ? "" : option.get_type_name();
}

class Formatter final : public CLI::Formatter {
public:
  std::string make_description(const CLI::App *app) const override {
    return folded(app->get_description(), width(), 0) + "\n\n";
  }
  std::string make_footer(const CLI::App *app) const override {
    return app->get_footer().empty() ? "" : folded(app->get_footer(), width(), 4) + "\n";
  }
  std::string make_usage(const CLI::App *app, std::string name) const override {
    std::string usage = CLI::Formatter::make_usage(app, std::move(name));
    return folded(usage, width(), 4);
  }
  std::string make_option(const CLI::Option *option, bool isPositional) const override {
    return entry(make_option_name(option, isPositional) + make_option_opts(option),
                 make_option_desc(option));
  }
  std::string make_subcommand(const CLI::App *app) const override {
    return entry(app->get_name(), app->get_description());
  }

private:
  static size_t width() {
    const size_t columns = lineWidth();
    return columns == SIZE_MAX ? kHelpWidth : std::min<size_t>(columns, 100);
  }
  static std::string entry(const std::string &name, const std::string &text) {
    std::string begin = "  " + name;
    if (begin.size() + 2 > kNameColumn)
      begin += "\n" + std::string(kNameColumn, ' ');
    else
      begin.resize(kNameColumn, ' ');
    // Folded as text of a column, indented afterwards.
    std::string column = folded(text, width() - kNameColumn, 0);
    std::string out = begin;
    for (char c : column)
      out += c == '\n' ? "\n" + std::string(kNameColumn, ' ') : std::string(1, c);
    return out + "\n";
  }
};

// ---- The manual page ----------------------------------------------------------------------------

/// As roff shows it and nothing else.
std::string roff(std::string_view text) {
  std::string out;
  bool isLineBegin = true;
  for (char c : text) {
    if (isLineBegin && (c == '.' || c == '\''))
      out += "\\&";
    out += c == '\\' ? "\\e" : c == '-' ? "\\-" : std::string(1, c);
    isLineBegin = c == '\n';
  }
  return out;
}

std::string manualOf(const CLI::App &app, const std::string &path) {
  std::string text = fmt::format(".SS {}\n{}\n", roff(path), roff(app.get_description()));
  std::string usage = fmt::format("\\fBnormforge {}\\fR", roff(path));
  if (!optionsOf(app).empty())
    usage += " [\\fIoptions\\fR]";
  for (const CLI::Option *argument : argumentsOf(app))
    usage += fmt::format(" {}\\fI{}\\fR{}{}", argument->get_required() ? "" : "[",
                         roff(argument->get_name(true, false)),
                         argument->get_expected_max() > 1 ? " ..." : "",
                         argument->get_required() ? "" : "]");
  if (!subcommandsOf(app).empty())
    usage += app.get_require_subcommand_min() ? " \\fIsubcommand\\fR" : " [\\fIsubcommand\\fR]";
  text += ".PP\n" + usage + "\n";
  for (const CLI::Option *argument : argumentsOf(app))
    text += fmt::format(".TP\n\\fI{}\\fR\n{}\n", roff(argument->get_name(true, false)),
                        roff(argument->get_description()));
  for (const CLI::Option *option : optionsOf(app)) {
    const std::string value = valueOf(*option);
    text += fmt::format(".TP\n\\fB{}\\fR{}\n{}\n", roff(option->get_name(false, true)),
                        value.empty() ? "" : " \\fI" + roff(value) + "\\fR",
                        roff(option->get_description()));
  }
  if (!app.get_footer().empty())
    text += fmt::format(".PP\n.nf\n{}\n.fi\n", roff(app.get_footer()));
  for (const CLI::App *sub : subcommandsOf(app))
    text += manualOf(*sub, path + " " + sub->get_name());
  return text;
}

std::string manual(const CLI::App &app) {
  std::string text = fmt::format(".TH NORMFORGE 1 \"\" \"normforge {}\" \"User Commands\"\n"
                                 ".SH NAME\nnormforge \\- normalization kernels from specs\n"
                                 ".SH SYNOPSIS\n\\fBnormforge\\fR \\fIcommand\\fR "
                                 "[\\fIoptions\\fR]\n.SH DESCRIPTION\n{}\n.SH COMMANDS\n",
                                 nf_version(), roff(app.get_description()));
  for (const CLI::App *sub : subcommandsOf(app))
    text += manualOf(*sub, sub->get_name());
  text += fmt::format(".SH EXIT STATUS\n{}\n", roff(app.get_footer()));
  return text + ".SH ENVIRONMENT\n"
                ".TP\n\\fBNORMFORGE_CACHE_DIR\\fR\nWhere programs keep compiled kernels; else "
                "\\fI$XDG_CACHE_HOME/normforge\\fR, else \\fI~/.cache/normforge\\fR.\n"
                ".TP\n\\fBNORMFORGE_PTXAS\\fR\nNVIDIA's assembler, for \\fIcompile "
                "--emit=cubin\\fR; else \\fIptxas\\fR on the path.\n"
                ".TP\n\\fBCOLUMNS\\fR\nThe width that output is folded at.\n"
                ".TP\n\\fBNO_COLOR\\fR\nIf not empty, no colours.\n";
}

// ---- Completion ---------------------------------------------------------------------------------

/// The values of an option that are words of a list; empty of others.
std::vector<std::string> choicesOf(const CLI::Option &option) {
  const std::string name = option.get_name(false, true);
  std::vector<std::string> words;
  if (name == "--cpu") {
    words = compilableCpus();
    words.insert(words.begin(), "native");
  } else if (name == "--phase") {
    for (Phase phase : kPhases)
      words.emplace_back(toString(phase));
  }
  return words;
}

/// Visits every command with its path: "" for the root, "tune merge".
void forEachCommand(const CLI::App &app, const std::string &path, auto visit) {
  visit(path, app);
  for (const CLI::App *sub : subcommandsOf(app))
    forEachCommand(*sub, path.empty() ? sub->get_name() : path + " " + sub->get_name(), visit);
}

std::vector<std::string> namesOf(const CLI::Option &option) {
  std::vector<std::string> names;
  for (const std::string &word : option.get_snames())
    names.push_back("-" + word);
  for (const std::string &word : option.get_lnames())
    names.push_back("--" + word);
  return names;
}

std::string bashCompletion(const CLI::App &app) {
  std::string steps, words, values;
  forEachCommand(app, "", [&](const std::string &path, const CLI::App &command) {
    std::vector<std::string> known;
    for (const CLI::App *sub : subcommandsOf(command)) {
      known.push_back(sub->get_name());
      steps += fmt::format("      '{}:{}') path='{}' ;;\n", path, sub->get_name(),
                           path.empty() ? sub->get_name() : path + " " + sub->get_name());
    }
    for (const CLI::Option *option : optionsOf(command)) {
      for (const std::string &name : namesOf(*option)) {
        known.push_back(name);
        if (const auto choices = choicesOf(*option); !choices.empty())
          values +=
              fmt::format("    '{}:{}') words='{}' ;;\n", path, name, fmt::join(choices, " "));
      }
    }
    words += fmt::format("    '{}') words='{}' ;;\n", path, fmt::join(known, " "));
  });
  return "# Completion of normforge in bash.\n"
         "_normforge() {\n"
         "  local path='' words='' i\n"
         "  local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}\n"
         "  for ((i = 1; i < COMP_CWORD; ++i)); do\n"
         "    case \"$path:${COMP_WORDS[i]}\" in\n" +
         steps +
         "    esac\n  done\n"
         "  case \"$path:$before\" in\n" +
         values +
         "  esac\n"
         "  if [ -z \"$words\" ]; then\n"
         "    case \"$path\" in\n" +
         words +
         "    esac\n"
         "    # Behind a command that takes files, options come after a dash alone.\n"
         "    [ -z \"$path\" ] || [ \"${current:0:1}\" = - ] ||\n"
         "      words=$(printf '%s\\n' $words | grep -v '^-' || :)\n"
         "  fi\n"
         "  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
         "}\n"
         "complete -o default -F _normforge normforge\n";
}

/// Within single quotes of a shell.
std::string singleQuoted(std::string_view text) {
  std::string out;
  for (char c : text)
    out += c == '\'' ? "'\\''" : std::string(1, c);
  return out;
}
/// The same within an argument of zsh's _arguments.
std::string described(std::string_view text) {
  std::string out;
  for (char c : text)
    out +=
        c == '[' || c == ']' || c == ':' || c == '\\' ? std::string("\\") + c : std::string(1, c);
  return singleQuoted(out);
}

std::string zshOf(const CLI::App &app, const std::string &path, const std::string &function) {
  std::string text = function + "() {\n  local state line\n  _arguments -C";
  for (const CLI::Option *option : optionsOf(app)) {
    const auto choices = choicesOf(*option);
    for (const std::string &name : namesOf(*option))
      text += fmt::format(" \\\n    '*{}[{}]{}'", name, described(option->get_description()),
                          option->get_type_size() == 0 ? ""
                          : choices.empty() ? fmt::format(":{}:_files", described(valueOf(*option)))
                                            : fmt::format(":{}:({})", described(valueOf(*option)),
                                                          fmt::join(choices, " ")));
  }
  const auto subs = subcommandsOf(app);
  if (subs.empty())
    return text + " \\\n    '*:file:_files'\n}\n";
  text += " \\\n    '1:command:->command' '*::argument:->argument'\n  case $state in\n"
          "    command)\n      local -a commands=(";
  for (const CLI::App *sub : subs)
    text += fmt::format("\n        '{}:{}'", sub->get_name(), singleQuoted(sub->get_description()));
  text += "\n      )\n      _describe command commands\n      _files\n      ;;\n    argument)\n"
          "      case $line[1] in\n";
  std::string further;
  for (const CLI::App *sub : subs) {
    const std::string name = function + "_" + sub->get_name();
    text += fmt::format("        {}) {} ;;\n", sub->get_name(), name);
    further += zshOf(*sub, path + " " + sub->get_name(), name);
  }
  return text + "        *) _files ;;\n      esac\n      ;;\n  esac\n}\n" + further;
}

std::string zshCompletion(const CLI::App &app) {
  return "#compdef normforge\n" + zshOf(app, "", "_normforge") + "_normforge \"$@\"\n";
}

std::string fishCompletion(const CLI::App &app) {
  std::string text = "# Completion of normforge in fish.\n";
  forEachCommand(app, "", [&](const std::string &path, const CLI::App &command) {
    std::vector<std::string> names;
    for (const CLI::App *sub : subcommandsOf(command))
      names.push_back(sub->get_name());
    // Within a command of this path, and none of its subcommands yet.
    std::string condition = path.empty() ? "__fish_use_subcommand" : "";
    if (!path.empty()) {
      for (size_t begin = 0; begin < path.size();) {
        const size_t end = std::min(path.find(' ', begin), path.size());
        condition += fmt::format("{}__fish_seen_subcommand_from {}", begin ? "; and " : "",
                                 path.substr(begin, end - begin));
        begin = end + 1;
      }
      if (!names.empty())
        condition += fmt::format("; and not __fish_seen_subcommand_from {}", fmt::join(names, " "));
    }
    for (const CLI::App *sub : subcommandsOf(command))
      text += fmt::format("complete -c normforge -n '{}' {}-a {} -d '{}'\n", condition,
                          path.empty() ? "-f " : "", sub->get_name(),
                          singleQuoted(sub->get_description()));
    for (const CLI::Option *option : optionsOf(command)) {
      const auto choices = choicesOf(*option);
      text += fmt::format("complete -c normforge -n '{}'", condition);
      for (const std::string &name : option->get_snames())
        text += " -s " + name;
      for (const std::string &name : option->get_lnames())
        text += " -l " + name;
      if (!choices.empty())
        text += fmt::format(" -x -a '{}'", fmt::join(choices, " "));
      else if (option->get_type_size() != 0)
        text += " -r";
      text += fmt::format(" -d '{}'\n", singleQuoted(option->get_description()));
    }
  });
  return text;
}

struct Options {
  std::vector<std::string> path;
  std::string completion;
  bool manual = false;
};

llvm::Error run(const CLI::App &app, const Options &options) {
  if (options.manual + !options.completion.empty() + !options.path.empty() > 1)
    return badInput("help takes a command, --man or --completion, one of them");
  if (options.manual) {
    fmt::print("{}", manual(app));
    return llvm::Error::success();
  }
  if (!options.completion.empty()) {
    if (options.completion != "bash" && options.completion != "zsh" && options.completion != "fish")
      return badInput(
          fmt::format("--completion: expected bash, zsh or fish, found '{}'", options.completion));
    fmt::print("{}", options.completion == "bash"  ? bashCompletion(app)
                     : options.completion == "zsh" ? zshCompletion(app)
                                                   : fishCompletion(app));
    return llvm::Error::success();
  }
  const CLI::App *command = &app;
  std::string path = "normforge";
  for (const std::string &word : options.path) {
    std::vector<std::string> names;
    const CLI::App *found = nullptr;
    for (const CLI::App *sub : subcommandsOf(*command)) {
      names.push_back(sub->get_name());
      if (sub->get_name() == word)
        found = sub;
    }
    if (!found)
      return badInput(names.empty() ? fmt::format("{} has no subcommands; found '{}'", path, word)
                                    : fmt::format("unknown command '{}'; expected one of {}", word,
                                                  fmt::join(names, ", ")));
    command = found;
    path += " " + word;
  }
  // Not App::help, which helps with the subcommand that was given: with help.
  fmt::print("{}", command->get_formatter()->make_help(command, path, CLI::AppFormatMode::Normal));
  return llvm::Error::success();
}

} // namespace

std::shared_ptr<CLI::FormatterBase> makeHelpFormatter() { return std::make_shared<Formatter>(); }

void addExamples(CLI::App &command, const std::string &first, const std::string &second) {
  command.footer("Examples:\n  normforge " + first + "\n  normforge " + second);
}

void declareHelp(CLI::App &app, int &status) {
  auto options = std::make_shared<Options>();
  CLI::App *sub = app.add_subcommand(
      "help", "Print a command's help, the manual page, or completions for a shell");
  sub->add_option("COMMAND", options->path, "A command, such as check or tune merge")
      ->type_name("COMMAND");
  sub->add_flag("--man", options->manual, "Print the manual page, in roff");
  sub->add_option("--completion", options->completion,
                  "Print completions for a shell: bash, zsh or fish")
      ->type_name("SHELL");
  addExamples(*sub, "help check", "help --completion bash");
  sub->callback([options, &app, &status] {
    if (llvm::Error error = run(app, *options))
      status = report(std::move(error));
  });
}

} // namespace normforge::cli
