// The command `normforge`: reads the command line and hands it to a subcommand.
#include "compiler/cli/Command.h"
#include "compiler/cli/Help.h"
#include "compiler/oracle/Oracle.h"
#include "normforge/normforge.h"

#include "llvm/Config/llvm-config.h"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <new>

using namespace normforge;

namespace {

constexpr const char *description =
    "Compiles normalization operators from YAML specs into kernels for this machine's CPU or "
    "another one, runs them, and checks them against oneDNN and an f64 reference.";

std::string versions() {
  return fmt::format("normforge {}\nLLVM {}\noneDNN {}", nf_version(), LLVM_VERSION_STRING,
                     oracle::oneDnnVersion());
}

/// The message for an error that the parser has no words for: an unknown subcommand, or an empty
/// word, such as an unset variable of a shell leaves.
std::string wrongWord(const CLI::App &app, int argc, char **argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word.empty())
      return fmt::format("argument {} is empty", i);
    if (word.starts_with("--") && word.ends_with("="))
      return fmt::format("{} has no value", word.substr(0, word.size() - 1));
  }
  std::vector<std::string> names;
  for (const CLI::App *sub : app.get_subcommands({}))
    names.push_back(sub->get_name());
  if (argc < 2 || argv[1][0] == '-' || std::ranges::find(names, argv[1]) != names.end())
    return {};
  return fmt::format("unknown command '{}'; expected one of {}", argv[1], fmt::join(names, ", "));
}

int parseAndRun(int argc, char **argv) {
  int status = cli::Success;
  CLI::App app(description, "normforge");
  app.set_version_flag("--version", versions, "Print the versions of normforge, LLVM and oneDNN");
  app.set_help_flag("-h,--help", "Print this help");
  app.formatter(cli::makeHelpFormatter()); // before the subcommands, which inherit it
  app.require_subcommand(1);
  app.footer("Exit status: 0 success; 1 a check that disagrees, or cache entries that would not be "
             "used; 2 bad input; 3 out of memory or a "
             "defect of normforge.");
  cli::declareCheck(app, status);
  cli::declareCompile(app, status);
  cli::declarePack(app, status);
  cli::declareRoofline(app, status);
  cli::declareTune(app, status);
  cli::declareRun(app, status);
  cli::declareConvert(app, status);
  cli::declareImport(app, status);
  cli::declareExplain(app, status);
  cli::declareTargets(app, status);
  cli::declareCache(app, status);
  cli::declareHelp(app, status);

  if (std::string wrong = wrongWord(app, argc, argv); !wrong.empty())
    return cli::report(cli::badInput(wrong));
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success &asked) { // --help, --version
    return app.exit(asked);
  } catch (const CLI::ParseError &error) {
    // The parser's own exit statuses, from 100 on, say what no script asks for.
    std::string command = "normforge";
    for (const CLI::App *sub : app.get_subcommands())
      command += " " + sub->get_name();
    return cli::report(
        cli::badInput(fmt::format("{}; {} --help lists what it takes", error.what(), command)));
  }
  return status;
}

} // namespace

int main(int argc, char **argv) {
  int status;
  try {
    status = parseAndRun(argc, argv);
  } catch (const std::bad_alloc &) {
    std::fputs("normforge: error: out of memory\n", stderr);
    return cli::InternalError;
  } catch (const std::exception &error) {
    fmt::print(stderr, "normforge: internal error: {}\n", error.what());
    return cli::InternalError;
  }
  // A full disk or a closed pipe shows when the last of the output is flushed.
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
    std::fputs("normforge: error: standard output cannot be written\n", stderr);
    return cli::BadInput;
  }
  return status;
}
