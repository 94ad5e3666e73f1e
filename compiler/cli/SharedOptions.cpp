#include "compiler/cli/SharedOptions.h"

#include <CLI/CLI.hpp>

namespace normforge::cli {

void addSpecArgument(CLI::App &command, std::string &path) {
  command.add_option("SPEC", path, "The spec, a YAML file")->required()->type_name("PATH");
}

void addSizeOption(CLI::App &command, std::vector<std::string> &words, const std::string &what) {
  command.add_option("--size", words, what)->type_name("NAME=VALUE")->allow_extra_args(false);
}

void addPhaseOption(CLI::App &command, std::string &word, const std::string &what) {
  command.add_option("--phase", word, phaseChoices() + " " + what)->type_name("PHASE");
}

static void addCachesOption(CLI::App &command, TargetOptions &options) {
  command
      .add_option("--cache", options.caches,
                  "Bytes of the CPU's caches, where they are others than are known of it: "
                  "l1=32K,l2=512K,l3=2M")
      ->type_name("LEVEL=BYTES,...");
}

void addCpuOption(CLI::App &command, TargetOptions &options, const std::string &what) {
  command.add_option("--cpu", options.cpus, what + " (default: native)")
      ->expected(1)
      ->allow_extra_args(false)
      ->type_name("CPU");
  addCachesOption(command, options);
}

void addCpusOption(CLI::App &command, TargetOptions &options, const std::string &what) {
  command.add_option("--cpu", options.cpus, what + " (default: native)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("CPU[,CPU]");
  addCachesOption(command, options);
}

void addMachineOption(CLI::App &command, TargetOptions &options) {
  command
      .add_option("--target", options.machine,
                  "The machine: x86_64-linux-gnu, aarch64-linux-gnu, or aarch64-none-elf without a "
                  "system (default: the CPU's)")
      ->type_name("TRIPLE");
}

void addThreadsOption(CLI::App &command, std::string &word, const std::string &what) {
  command.add_option("--threads", word, what + " (default: as many as processors may be used)")
      ->type_name("COUNT");
}

void addSeedOption(CLI::App &command, std::string &word) {
  command
      .add_option("--seed", word,
                  "Draw the same inputs again (default: a new seed, which is printed)")
      ->type_name("NUMBER");
}

void addJsonFlag(CLI::App &command, bool &flag, const std::string &what) {
  command.add_flag("--json", flag, what);
}

void addScheduleOptions(CLI::App &command, ScheduleOptions &options) {
  command
      .add_option("--schedule", options.forced,
                  "Compute by this schedule, for all sizes, instead of those that are chosen; "
                  "`normforge explain` shows them")
      ->type_name("TEXT");
  addTunedOption(command, options);
}

void addTunedOption(CLI::App &command, ScheduleOptions &options) {
  command
      .add_option("--tuned", options.tuned,
                  "Take schedules from these records of `normforge tune` where they are of this "
                  "machine")
      ->type_name("FILE");
}

} // namespace normforge::cli
