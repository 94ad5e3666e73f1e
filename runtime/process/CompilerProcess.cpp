#include "runtime/process/CompilerProcess.h"

#include "runtime/cpu_info/CpuInfo.h"
#include "runtime/fork/ForkGate.h"
#include "runtime/loader/CompilerLibrary.h"
#include "runtime/loader/CompilerPath.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

extern char **environ;

namespace normforge {
namespace {

using Clock = std::chrono::steady_clock;

/// The settings of posix_spawn: the socket is descriptor 0, errors are kept in `errors`, and the
/// host's descriptors, handlers and masks of signals are not inherited. The process has a group of
/// its own: the host answers what a terminal sends to the host's group (Ctrl-C).
class SpawnPlan {
public:
  SpawnPlan() {
    if (posix_spawn_file_actions_init(&actions) != 0)
      throw std::bad_alloc();
    if (posix_spawnattr_init(&attributes) != 0) {
      posix_spawn_file_actions_destroy(&actions);
      throw std::bad_alloc();
    }
  }
  ~SpawnPlan() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  SpawnPlan(const SpawnPlan &) = delete;
  SpawnPlan &operator=(const SpawnPlan &) = delete;

  /// 0, or an errno.
  int fill(int socket, int errors) {
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    int error = posix_spawn_file_actions_adddup2(&actions, socket, 0);
    if (!error)
      error = posix_spawn_file_actions_adddup2(&actions, errors, 1);
    if (!error)
      error = posix_spawn_file_actions_adddup2(&actions, errors, 2);
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
    if (!error)
      error = posix_spawn_file_actions_addclosefrom_np(&actions, 3);
#endif
    if (!error)
      error = posix_spawnattr_setsigmask(&attributes, &none);
    if (!error)
      error = posix_spawnattr_setsigdefault(&attributes, &all);
    if (!error)
      error = posix_spawnattr_setpgroup(&attributes, 0);
    return error ? error
                 : posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK |
                                                             POSIX_SPAWN_SETSIGDEF |
                                                             POSIX_SPAWN_SETPGROUP);
  }

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
};

/// The end of what a process wrote to its errors, in one line that a terminal may be given.
std::string lastWords(int errors) {
  constexpr off_t most = 1024;
  struct stat status;
  std::array<char, most> said;
  const off_t size = fstat(errors, &status) == 0 ? status.st_size : 0;
  const ssize_t got = pread(errors, said.data(), said.size(), std::max<off_t>(0, size - most));
  std::string text;
  for (char c : std::string_view(said.data(), got > 0 ? static_cast<size_t>(got) : 0))
    text += c == '\n' ? ' ' : c >= 0x20 && c < 0x7f ? c : '?';
  text.erase(text.find_last_not_of(' ') + 1);
  return text;
}

/// Waits for the socket until `end`: 1 where it is ready, 0 where the time is over, -1 for an
/// error.
int await(int socket, short events, Clock::time_point end) {
  while (true) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    pollfd wait = {socket, events, 0};
    const int ready =
        left <= 0 ? 0 : poll(&wait, 1, static_cast<int>(std::min<int64_t>(left + 1, 1 << 30)));
    if (ready >= 0 || errno != EINTR)
      return ready;
  }
}

} // namespace

/// Named by a descriptor: a host that waits for all children itself may have taken its end, and its
/// number may be another's by now.
struct CompilerProcess::Process {
  FileDescriptor handle, socket, errors;
  pid_t pid = -1;
  ino_t socketFile = 0, errorsFile = 0; ///< which files those are
  unsigned generation = 0;              ///< of the process that started it
  bool isReaped = false;
  siginfo_t ending = {}; ///< of waitid; si_code 0 where somebody else took it

  ~Process() {
    if (generation == forkGeneration()) {
      end();
      return;
    }
    // A fork's child leaves its parent's process alone. It may have closed all descriptors: their
    // numbers are closed only where they are what they were.
    (void)handle.release();
    for (auto [file, number] : {std::pair(&socket, socketFile), std::pair(&errors, errorsFile)})
      if (inodeOf(*file) != number)
        (void)file->release();
  }
  static ino_t inodeOf(const FileDescriptor &file) {
    struct stat status;
    return fstat(file.get(), &status) == 0 ? status.st_ino : 0;
  }
  bool hasEnded(int milliseconds) const {
    pollfd wait = {handle.get(), POLLIN, 0};
    int ready;
    do
      ready = poll(&wait, 1, milliseconds);
    while (ready < 0 && errno == EINTR);
    return ready > 0;
  }
  /// Ends it, by its closed socket at the least, and takes its end.
  void end() {
    if (!handle || isReaped)
      return;
    socket = FileDescriptor();
    // While it runs, nobody else can have its number.
    if (!hasEnded(0) && syscall(SYS_pidfd_send_signal, handle.get(), SIGKILL, nullptr, 0) != 0)
      kill(pid, SIGKILL);
    constexpr int longest = 5000; // of a system that is busy ending it
    if (hasEnded(longest))
      reap();
    isReaped = true;
  }
  /// Waits a moment for one that has closed its socket, so that its own end is told, not ours.
  void awaitEnd() {
    socket = FileDescriptor();
    if (hasEnded(1000)) {
      reap();
      isReaped = true;
    }
    end();
  }

private:
  void reap() {
    constexpr auto byHandle = static_cast<idtype_t>(3); // P_PIDFD, from Linux 5.4
    if (waitid(byHandle, static_cast<id_t>(handle.get()), &ending, WEXITED | WNOHANG) == 0)
      return;
    // Not taken yet, its number is still its own.
    if (errno == EINVAL || errno == ENOSYS) {
      int status;
      if (waitpid(pid, &status, WNOHANG) == pid) {
        ending.si_code = WIFEXITED(status) ? CLD_EXITED : CLD_KILLED;
        ending.si_status = WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status);
        return;
      }
    }
    ending = {};
  }
};

CompilerProcess::CompilerProcess(std::string path, Limits limits)
    : path_(std::move(path)), limits_(limits),
      mostProcesses_(static_cast<size_t>(std::max(1, usableProcessors()))) {}

CompilerProcess::~CompilerProcess() = default;

std::string CompilerProcess::path() const { return findCompilerFile(path_); }

std::unique_ptr<CompilerProcess::Process> CompilerProcess::start(Failure &failure) const {
  auto fail = [&](nf_code code, std::string text) {
    failure.set(code, std::move(text));
    return nullptr;
  };
  const std::string library = path();
  if (library.empty()) {
    std::string tried; // a bare name is the loader's to find, and tells no folder
    for (const std::string &candidate : compilerCandidates(path_))
      if (candidate.find('/') != std::string::npos)
        tried += "\n  " + candidate;
    return fail(NF_NO_COMPILER, "compiling in a process of its own needs the path of the compiler "
                                "library, and it was not found; tried:" +
                                    tried);
  }
  const std::string program = library.substr(0, library.rfind('/') + 1) + compilerProgramName;
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
    return fail(codeOfErrno(errno),
                std::string("no socket for a compiler's process: ") + std::strerror(errno));
  FileDescriptor ours = awayFromStandard(FileDescriptor(sockets[0]));
  const FileDescriptor theirs = awayFromStandard(FileDescriptor(sockets[1]));
  FileDescriptor errors =
      awayFromStandard(FileDescriptor(memfd_create("normforge-compile-errors", MFD_CLOEXEC)));
  if (!ours || !theirs || !errors)
    return fail(codeOfErrno(errno),
                std::string("no descriptor for a compiler's process: ") + std::strerror(errno));
  SpawnPlan spawn;
  if (const int error = spawn.fill(theirs.get(), errors.get()))
    return fail(codeOfErrno(error),
                std::string("a compiler's process cannot be prepared: ") + std::strerror(error));
  const std::string version = std::to_string(protocolVersion);
  const std::string seconds = std::to_string(limits_.seconds);
  const std::string bytes = std::to_string(limits_.bytes);
  const std::array<const char *, 6> words = {program.c_str(), version.c_str(), library.c_str(),
                                             seconds.c_str(), bytes.c_str(),   nullptr};
  auto process = std::make_unique<Process>();
  pid_t pid;
  int error = posix_spawn(&pid, program.c_str(), &spawn.actions, &spawn.attributes,
                          const_cast<char *const *>(words.data()), environ);
  if (error != 0)
    return fail(error == ENOENT || error == EACCES || error == ENOEXEC ? NF_NO_COMPILER
                                                                       : codeOfErrno(error),
                program + " cannot be started: " + std::strerror(error) +
                    "; compile_in_child needs it beside the compiler library");
  process->pid = pid;
  process->handle = FileDescriptor(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  error = errno;
  if (process->handle)
    process->handle = awayFromStandard(std::move(process->handle));
  process->socketFile = Process::inodeOf(ours);
  process->errorsFile = Process::inodeOf(errors);
  process->socket = std::move(ours);
  process->errors = std::move(errors);
  process->generation = forkGeneration();
  if (process->handle)
    return process;
  if (error == ESRCH) // a host that takes the ends of all children has taken this one's already
    return fail(NF_COMPILER_ENDED, "the compiler's process ended as soon as it was started");
  process->socket = FileDescriptor(); // it ends by that
  while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR)
    ;
  return fail(codeOfErrno(error),
              std::string("no descriptor of a compiler's process: ") + std::strerror(error));
}

std::unique_ptr<CompilerProcess::Process> CompilerProcess::takeResting() {
  std::vector<std::unique_ptr<Process>> gone; // end after the lock
  std::lock_guard lock(mutex_);
  // A fork's child must not talk to its parent's processes; and some have ended.
  for (auto &process : resting_)
    if (process->generation != forkGeneration() || process->hasEnded(0))
      gone.push_back(std::move(process));
  std::erase(resting_, nullptr);
  if (resting_.empty())
    return nullptr;
  auto process = std::move(resting_.back());
  resting_.pop_back();
  return process;
}

void CompilerProcess::rest(std::unique_ptr<Process> process) {
  std::unique_ptr<Process> oldest; // ends after the lock
  std::lock_guard lock(mutex_);
  resting_.push_back(std::move(process));
  if (resting_.size() > mostResting) {
    oldest = std::move(resting_.front());
    resting_.erase(resting_.begin());
  }
}

CompilerProcess::Talk CompilerProcess::talk(Process &process, std::span<const std::byte> question,
                                            std::vector<std::byte> &answer) const {
  const Clock::time_point end = Clock::now() + std::chrono::seconds(limits_.seconds);
  const int socket = process.socket.get();
  // Moves all of `bytes`, or says why not.
  auto transfer = [&](std::span<std::byte> bytes, bool sends) {
    for (size_t done = 0; done < bytes.size();) {
      const int ready = await(socket, sends ? POLLOUT : POLLIN, end);
      if (ready <= 0)
        return ready == 0 ? Talk::TimedOut : Talk::Failed;
      const auto rest = bytes.subspan(done);
      const ssize_t moved =
          sends ? send(socket, rest.data(), rest.size(), MSG_NOSIGNAL | MSG_DONTWAIT)
                : recv(socket, rest.data(), rest.size(), MSG_DONTWAIT);
      if (moved < 0 && (errno == EINTR || errno == EAGAIN))
        continue;
      if (moved < 0 && errno != EPIPE && errno != ECONNRESET)
        return Talk::Failed;
      if (moved <= 0)
        return Talk::Died;
      done += static_cast<size_t>(moved);
    }
    return Talk::Answered;
  };
  uint64_t length = question.size();
  std::array<std::byte, sizeof length> header;
  std::memcpy(header.data(), &length, sizeof length); // both ends are this machine
  std::vector<std::byte> sent(question.begin(), question.end());
  for (std::span<std::byte> part : {std::span<std::byte>(header), std::span<std::byte>(sent)})
    if (const Talk result = transfer(part, true); result != Talk::Answered)
      return result;
  if (const Talk result = transfer(header, false); result != Talk::Answered)
    return result;
  std::memcpy(&length, header.data(), sizeof length);
  if (length > mostMessageBytes)
    return Talk::NoAnswer;
  answer.resize(length);
  return transfer(answer, false);
}

bool CompilerProcess::describeEnd(Process &process, Talk talk, Failure &failure) const {
  if (talk == Talk::TimedOut) {
    process.end();
    return failure.set(NF_COMPILER_ENDED, "the compiler's process gave no answer within " +
                                              std::to_string(limits_.seconds) + " s and was ended");
  }
  if (talk == Talk::Failed) {
    const nf_code error = codeOfErrno(errno);
    const std::string why = std::strerror(errno);
    process.end();
    return failure.set(error, "no talk with the compiler's process: " + why);
  }
  if (talk == Talk::NoAnswer) {
    process.end();
    return failure.set(NF_INTERNAL, "the compiler's process gave an answer that is none");
  }
  process.awaitEnd();
  std::string text = "the compiler's process ended before it answered";
  if (process.ending.si_code == CLD_EXITED)
    text += ": exit status " + std::to_string(process.ending.si_status);
  else if (process.ending.si_code != 0)
    text += ": signal " + std::to_string(process.ending.si_status) + " (" +
            strsignal(process.ending.si_status) + ")";
  if (limits_.bytes > 0)
    text +=
        "; its memory is limited to " + std::to_string(limits_.bytes) + " bytes (compile_bytes)";
  if (const std::string last = lastWords(process.errors.get()); !last.empty())
    text += "; it said: " + last;
  return failure.set(NF_COMPILER_ENDED, std::move(text));
}

template <typename Read>
bool CompilerProcess::ask(Question question, const nf_compiler_request &request, Read read,
                          Failure &failure) {
  std::vector<std::byte> answer;
  const std::vector<std::byte> message = writeQuestion(question, request);
  struct Turn { // one of mostProcesses_, given back whatever happens
    CompilerProcess &all;
    explicit Turn(CompilerProcess &all) : all(all) {
      std::unique_lock lock(all.mutex_);
      all.turnEnds_.wait(lock, [&] { return all.working_ < all.mostProcesses_; });
      ++all.working_;
    }
    ~Turn() {
      std::lock_guard lock(all.mutex_);
      --all.working_;
      all.turnEnds_.notify_one();
    }
  } const turn(*this);
  // One at rest may have ended since, of its own or by somebody else: that is no fault of this
  // request, which a new one answers.
  for (bool isFirst : {true, false}) {
    auto process = isFirst ? takeResting() : nullptr;
    const bool rested = process != nullptr;
    if (!process)
      process = start(failure);
    if (!process)
      return false;
    const Talk result = talk(*process, message, answer);
    if (result == Talk::Answered) {
      const bool isRead = read(answer);
      if (!isRead && failure.code == NF_OK)
        return describeEnd(*process, Talk::NoAnswer, failure); // nor is it asked again
      rest(std::move(process));
      tellLimit(failure);
      return isRead;
    }
    if (result == Talk::Died && rested)
      continue;
    return describeEnd(*process, result, failure);
  }
  return false;
}

/// Adds the limit of memory to an error for lack of memory that a process has answered.
void CompilerProcess::tellLimit(Failure &failure) const {
  if (limits_.bytes > 0 && (failure.code == NF_OUT_OF_MEMORY || failure.code == NF_NO_COMPILER))
    failure.message += "; the compiler's memory is limited to " + std::to_string(limits_.bytes) +
                       " bytes (compile_bytes)";
}

std::optional<Compiler::Identity> CompilerProcess::identify(const nf_compiler_request &request,
                                                            Failure &failure) {
  Identity identity;
  const auto read = [&](std::span<const std::byte> answer) {
    return readIdentity(answer, identity, failure);
  };
  return ask(Question::Identify, request, read, failure) ? std::optional(std::move(identity))
                                                         : std::nullopt;
}

std::optional<std::vector<std::byte>> CompilerProcess::compile(const nf_compiler_request &request,
                                                               Failure &failure) {
  std::vector<std::byte> artifact;
  const auto read = [&](std::span<const std::byte> answer) {
    return readArtifact(answer, artifact, failure);
  };
  return ask(Question::Compile, request, read, failure) ? std::optional(std::move(artifact))
                                                        : std::nullopt;
}

} // namespace normforge
