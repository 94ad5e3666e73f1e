// A worker in a process of its own: what ends it ends no sweep.
//
// The process is a copy of this one (fork), which therefore has one thread when it starts one, and
// is used again for case after case. Within limits of time and memory; one that dies is named by
// its signal, one that does not answer is ended.
#pragma once

#include "compiler/tune/Worker.h"
#include "runtime/FileDescriptor.h"

#include "llvm/Support/JSON.h"

#include <sys/types.h>

namespace normforge::tune {

struct WorkerOptions {
  TargetDescription target;
  bool verify = false;
  std::vector<Fault> faults{};
  double secondsPerCandidate = 20; ///< beyond what the measurements themselves take
  uint64_t bytes = 0;              ///< of memory beyond what a case's arrays take; 0: 2 GiB
};

class WorkerProcess {
public:
  /// `cases` outlive it.
  WorkerProcess(WorkerOptions options, std::span<const Case> cases, uint64_t seed);
  ~WorkerProcess();
  WorkerProcess(const WorkerProcess &) = delete;
  WorkerProcess &operator=(const WorkerProcess &) = delete;

  /// As of Worker; a worker that died starts again with the same case at the next question. What
  /// happened to it is the Trial's state, or the error where that was before it had the candidate.
  llvm::Expected<double> begin(size_t index);
  llvm::Expected<Trial> attempt(const std::string &schedule, const Limits &limits);
  llvm::Expected<Finals> finish(const std::vector<std::string> &schedules,
                                const Finals::Limits &limits);

private:
  struct End {
    CandidateState state = CandidateState::Crashed;
    std::string note;
  };
  /// The answer, or how the process came to its end.
  std::optional<llvm::json::Object> ask(llvm::json::Object question, double seconds, End &end);
  bool start(End &end);
  End reap(bool isLate);
  [[noreturn]] void serve(int socket);
  /// Starts a process where there is none, with the current case.
  bool prepare(End &end);

  const WorkerOptions options_;
  const std::span<const Case> cases_;
  const uint64_t seed_;
  FileDescriptor socket_;
  pid_t pid_ = -1;
  std::optional<size_t> current_;
  bool hasBegun_ = false;   ///< the process has the current case
  double microseconds_ = 0; ///< of the current case's default
  std::string unread_;
};

} // namespace normforge::tune
