// The command's help, its manual page and its completion in shells, made of the declarations of its
// options.
#pragma once

#include <memory>
#include <string>

namespace CLI {
class App;
class FormatterBase;
} // namespace CLI

namespace normforge::cli {

/// Prints help folded at the terminal's width, at 80 columns where there is none.
std::shared_ptr<CLI::FormatterBase> makeHelpFormatter();

/// Two command lines that end a subcommand's help. They work in a folder that has the project's
/// specs and the files that they name, which a test runs them in.
void addExamples(CLI::App &command, const std::string &first, const std::string &second);

/// `normforge help`, last: it knows the subcommands that were declared before.
void declareHelp(CLI::App &app, int &status);

} // namespace normforge::cli
