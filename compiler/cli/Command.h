// The code that subcommands share: errors and exit statuses, reading of their options, writing of
// files.
//
// Enters: the words of the command line. Leaves: checked values, or an llvm::Error that report()
// prints and turns into an exit status. Every error is one text on stderr, and nothing is left half
// written.
#pragma once

#include "compiler/records/Choose.h"
#include "compiler/session/Session.h"
#include "compiler/spec/Initialize.h"

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace normforge::cli {

enum ExitStatus : int {
  Success = 0,
  Disagrees = 1,     ///< `check` found a kernel that computes something else
  BadInput = 2,      ///< the command line, a spec or a file
  InternalError = 3, ///< a defect of Normforge
};

/// Each adds its subcommand; parsing runs it and puts its exit status into `status`.
void declareCache(CLI::App &app, int &status);
void declareCheck(CLI::App &app, int &status);
void declareCompile(CLI::App &app, int &status);
void declareConvert(CLI::App &app, int &status);
void declareRun(CLI::App &app, int &status);
void declareExplain(CLI::App &app, int &status);
void declareImport(CLI::App &app, int &status);
void declarePack(CLI::App &app, int &status);
void declareRoofline(CLI::App &app, int &status);
void declareTargets(CLI::App &app, int &status);
void declareTune(CLI::App &app, int &status);

/// "normforge: error: TEXT".
llvm::Error badInput(const std::string &text);
/// An error that begins with its place: "x.npy: error: TEXT". Takes it over as it is.
llvm::Error located(llvm::Error error);
/// A compilation that failed for no fault of the spec: exit status 3. A StackError stays one,
/// which is bad input.
llvm::Error internalError(llvm::Error error);
/// Prints an error on stderr and gives its exit status.
int report(llvm::Error error);

// Options. `option` names them in errors: "--size".

/// Named sizes as NAME=VALUE, each value at least 1.
using NamedSizes = std::map<std::string, int64_t>;
llvm::Expected<NamedSizes> parseSizes(const std::vector<std::string> &words);
/// That a spec, read from `path`, whose sizes have these names, has all that are given.
llvm::Error checkSizeNames(const std::vector<std::string> &names, const std::string &path,
                           const NamedSizes &sizes);
/// A number from `least` to `most`; nothing where `word` is empty.
llvm::Expected<std::optional<uint64_t>> parseNumber(llvm::StringRef option, llvm::StringRef word,
                                                    uint64_t least, uint64_t most);
/// NAME=TEXT; `what` says what TEXT is in the error: "FILE.npy".
struct NamedText {
  std::string name, text;
};
llvm::Expected<NamedText> parseNamedText(llvm::StringRef word, llvm::StringRef what);
/// The number of threads that --threads asks for; all hardware threads where it is empty.
llvm::Expected<int> parseThreads(llvm::StringRef word);
/// The steps of a spec, as a title has them: ", after bias, then add, relu"; empty where it has
/// none.
std::string stepsInWords(const Spec &spec);
/// "inference, training or backward"
std::string phaseChoices();
/// The phase that --phase asks for; the spec's first where it is empty.
llvm::Expected<Phase> choosePhase(const Spec &spec, llvm::StringRef path, llvm::StringRef word);
/// The same where all phases are wanted when none is asked for.
llvm::Expected<std::vector<Phase>> choosePhases(const Spec &spec, llvm::StringRef path,
                                                llvm::StringRef word);
/// Whether every session of the command verifies: the environment's NORMFORGE_VERIFY=1, for tests.
bool environmentVerifies();
/// Which machine a command compiles for: --cpu, --target, --cache.
struct TargetOptions {
  std::vector<std::string> cpus{}; ///< none: the native one
  std::string machine{}, caches{};
  bool takesGpus = false; ///< whether --cpu may be a GPU here

  bool isNative() const { return cpus.empty() || cpus.front() == "native"; }
};
/// The one machine, or an error as one of the options. A note on stderr where its caches are
/// assumed.
llvm::Expected<TargetDescription> chooseTarget(const TargetOptions &options = {});
/// Several, each once.
llvm::Expected<std::vector<TargetDescription>> chooseTargets(const TargetOptions &options);

/// Where a command's schedules come from: --schedule, --tuned.
struct ScheduleOptions {
  std::string forced{}, tuned{};
  std::shared_ptr<const TunedRecords> records{}; ///< of `tuned`, once read

  /// Reads the file that `tuned` names. Lines that are none are told of on stderr.
  llvm::Error read();
};
/// chooseSchedules, its error as one of --schedule.
llvm::Expected<std::vector<ScheduleVariant>>
chooseVariants(const Operator &op, const TargetDescription &target, const ScheduleOptions &options);
/// The artifact of the schedules that chooseVariants gives; errors as of internalError.
llvm::Expected<Artifact> compileOperator(Session &session, const Operator &op,
                                         const ScheduleOptions &options);

/// The files named, and every *.yaml below the directories named, ascending.
llvm::Expected<std::vector<std::string>> findSpecs(const std::vector<std::string> &paths);
/// The specs, or the errors of all of them; `asked` as readSpec takes it.
llvm::Expected<std::vector<Spec>> readSpecs(const std::vector<std::string> &paths,
                                            std::optional<Phase> asked = std::nullopt);
/// That no two specs, read from `paths`, have one name.
llvm::Error checkDistinctNames(const std::vector<std::string> &paths,
                               const std::vector<Spec> &specs);

/// A value for a named size that nobody gave, by the names that the specs of this project have.
std::optional<int64_t> defaultSize(llvm::StringRef name);
/// Values of the kernel's sizes in its order. `missing` gets the names that have none.
std::vector<int64_t> orderSizes(const std::vector<std::string> &names, const NamedSizes &sizes,
                                std::vector<std::string> &missing);

// Text.

/// "N * 3136 = 25088" where the sizes are known, "N * 3136" where not, "3136" for a constant.
std::string describe(const SizeExpr &expression, const std::vector<std::string> &names,
                     const std::optional<std::vector<int64_t>> &sizes);
/// "(N, 64, 7, 7)".
std::string describe(const std::vector<SizeExpr> &shape, const std::vector<std::string> &names);
std::string describe(const std::vector<int64_t> &shape);
/// When a variant is taken: "when N * 12544 <= 1048576", "otherwise", "always".
std::string describeGuard(llvm::ArrayRef<ScheduleVariant> variants, size_t index,
                          const std::vector<std::string> &names);
/// "1.5 MiB".
std::string describeBytes(double bytes);
/// The word as a POSIX shell reads it back, in quotes where it needs them.
std::string shellWord(const std::string &word);

} // namespace normforge::cli
