// The compiler in processes of its own: what ends it ends them, never the host.
//
// LLVM and MLIR do not check every allocation, and answer a defect of theirs with abort(). A host
// that must not end with them, or wants bounds on the compiler's time and memory, asks the program
// normforge-compile, which lies beside the compiler library. A process answers one question at a
// time and then rests for the next, so that a session's 40 ms are paid once; they are as many as
// threads ask at once, up to the processors, few of them rest, and one at rest ends after some
// seconds. One that dies, or takes too long and is killed, is an error of that one request; the
// next starts another.
//
// The host's side is careful: posix_spawn, which runs no handlers of fork and copies no memory; no
// signal (a dead process gives an error where a pipe would give SIGPIPE); descriptors of the host
// are not inherited (with glibc 2.34 or later; before, those that are close-on-exec); processes are
// named by descriptors (Linux 5.3), so that none is taken for another where a host reaps all
// children itself.
#pragma once

#include "runtime/FileDescriptor.h"
#include "runtime/loader/Compiler.h"
#include "runtime/process/Protocol.h"

#include <condition_variable>
#include <mutex>
#include <sys/types.h>

namespace normforge {

class CompilerProcess : public Compiler {
public:
  struct Limits {
    uint32_t seconds = 60; ///< for one answer
    uint64_t bytes = 0;    ///< of address space; 0: no limit
  };
  /// `path` is for compilerCandidates.
  CompilerProcess(std::string path, Limits limits);
  ~CompilerProcess() override;
  CompilerProcess(const CompilerProcess &) = delete;
  CompilerProcess &operator=(const CompilerProcess &) = delete;

  std::string path() const override;
  std::optional<Identity> identify(const nf_compiler_request &request, Failure &failure) override;
  std::optional<std::vector<std::byte>> compile(const nf_compiler_request &request,
                                                Failure &failure) override;

private:
  struct Process;
  enum class Talk : uint8_t {
    Answered,
    Died,     ///< the process closed its end
    Failed,   ///< the system refused, with errno
    TimedOut, ///< no answer in time
    NoAnswer  ///< an answer that is none
  };

  /// `read` takes the answer and gives false with `failure` set where that is an error, or with
  /// NF_OK where it is none.
  template <typename Read>
  bool ask(Question question, const nf_compiler_request &request, Read read, Failure &failure);
  /// One at rest; empty where there is none.
  std::unique_ptr<Process> takeResting();
  void rest(std::unique_ptr<Process> process);
  std::unique_ptr<Process> start(Failure &failure) const;
  Talk talk(Process &process, std::span<const std::byte> question,
            std::vector<std::byte> &answer) const;
  /// Why a process gave no answer; it is ended with that.
  bool describeEnd(Process &process, Talk talk, Failure &failure) const;

  static constexpr size_t mostResting = 4;

  void tellLimit(Failure &failure) const;

  const std::string path_;
  const Limits limits_;
  const size_t mostProcesses_;
  std::mutex mutex_; ///< of the following
  std::condition_variable turnEnds_;
  std::vector<std::unique_ptr<Process>> resting_;
  size_t working_ = 0;
};

} // namespace normforge
