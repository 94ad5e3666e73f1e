// Options that several subcommands take, each declared once.
#pragma once

#include "compiler/cli/Command.h"

namespace normforge::cli {

/// `what` begins the description where a subcommand says more than that it takes the option.
void addSpecArgument(CLI::App &command, std::string &path);
void addSizeOption(CLI::App &command, std::vector<std::string> &words,
                   const std::string &what = "A named size");
/// `what` follows the names of the phases: "(default: the spec's first)".
void addPhaseOption(CLI::App &command, std::string &word, const std::string &what);
/// --cpu of one CPU, and --cache; `what` is what the CPU is for.
void addCpuOption(CLI::App &command, TargetOptions &options, const std::string &what);
/// The same of several.
void addCpusOption(CLI::App &command, TargetOptions &options, const std::string &what);
void addMachineOption(CLI::App &command, TargetOptions &options);
void addThreadsOption(CLI::App &command, std::string &word, const std::string &what = "Threads");
void addSeedOption(CLI::App &command, std::string &word);
void addJsonFlag(CLI::App &command, bool &flag,
                 const std::string &what = "Print one JSON object a line, units in the names");
/// --schedule and --tuned.
void addScheduleOptions(CLI::App &command, ScheduleOptions &options);
void addTunedOption(CLI::App &command, ScheduleOptions &options);

} // namespace normforge::cli
