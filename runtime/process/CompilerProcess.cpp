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
#include <sys/wait.h>

extern char **environ;

namespace normforge {
namespace {

using Clock = std::chrono::steady_clock;

/// What posix_spawn is told, freed at the end.
struct SpawnPlan {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  bool ok;
  SpawnPlan()
      : ok(posix_spawn_file_actions_init(&actions) == 0 && posix_spawnattr_init(&attributes) == 0) {
  }
  ~SpawnPlan() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  SpawnPlan(const SpawnPlan &) = delete;
  SpawnPlan &operator=(const SpawnPlan &) = delete;
};

/// The socket is descriptor 0, errors are kept in `errors`, and the host's descriptors, handlers
/// and masks of signals are not inherited.
bool plan(SpawnPlan &spawn, int socket, int errors) {
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  return spawn.ok && posix_spawn_file_actions_adddup2(&spawn.actions, socket, 0) == 0 &&
         posix_spawn_file_actions_addopen(&spawn.actions, 1, "/dev/null", O_WRONLY, 0) == 0 &&
         posix_spawn_file_actions_adddup2(&spawn.actions, errors, 2) == 0 &&
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
         posix_spawn_file_actions_addclosefrom_np(&spawn.actions, 3) == 0 &&
#endif
         posix_spawnattr_setsigmask(&spawn.attributes, &none) == 0 &&
         posix_spawnattr_setsigdefault(&spawn.attributes, &all) == 0 &&
         posix_spawnattr_setflags(&spawn.attributes,
                                  POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF) == 0;
}

/// A descriptor that is none of 0, 1 and 2, which the host may have closed: the process' own would
/// be put over it.
FileDescriptor awayFromStandard(FileDescriptor given) {
  if (given.get() < 0 || given.get() > 2)
    return given;
  return FileDescriptor(fcntl(given.get(), F_DUPFD_CLOEXEC, 3));
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

struct CompilerProcess::Process {
  pid_t pid = -1;
  FileDescriptor socket, errors;
  unsigned generation = 0; ///< of the process that started it
  bool hasAnswered = false;
  bool reaped = false;
  int status = -1; ///< of waitpid; -1 where somebody else took it

  ~Process() { end(); }
  /// Kills it and waits; a fork's child leaves its parent's alone.
  void end() {
    if (pid < 0 || reaped || generation != forkGeneration())
      return;
    reaped = true;
    kill(pid, SIGKILL);
    pid_t found;
    do
      found = waitpid(pid, &status, 0);
    while (found < 0 && errno == EINTR);
    if (found != pid)
      status = -1;
  }
  /// Waits a moment for one that has closed its socket, so that its own end is told, not ours.
  void awaitEnd() {
    for (int i = 0; i < 200 && !reaped; ++i) {
      const pid_t found = waitpid(pid, &status, WNOHANG);
      if (found == pid || (found < 0 && errno != EINTR)) {
        reaped = true;
        if (found != pid)
          status = -1;
      } else {
        poll(nullptr, 0, 5);
      }
    }
    end();
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
    std::string tried;
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
  FileDescriptor ours(sockets[0]);
  const FileDescriptor theirs = awayFromStandard(FileDescriptor(sockets[1]));
  FileDescriptor errors =
      awayFromStandard(FileDescriptor(memfd_create("normforge-compile-errors", MFD_CLOEXEC)));
  if (!theirs || !errors)
    return fail(codeOfErrno(errno),
                std::string("no descriptor for a compiler's process: ") + std::strerror(errno));
  SpawnPlan spawn;
  if (!plan(spawn, theirs.get(), errors.get()))
    throw std::bad_alloc();
  const std::string version = std::to_string(protocolVersion);
  const std::string seconds = std::to_string(limits_.seconds);
  const std::string bytes = std::to_string(limits_.bytes);
  const std::array<const char *, 6> words = {program.c_str(), version.c_str(), library.c_str(),
                                             seconds.c_str(), bytes.c_str(),   nullptr};
  auto process = std::make_unique<Process>();
  pid_t pid;
  const int error = posix_spawn(&pid, program.c_str(), &spawn.actions, &spawn.attributes,
                                const_cast<char *const *>(words.data()), environ);
  if (error == ENOMEM)
    throw std::bad_alloc();
  if (error != 0)
    return fail(error == ENOENT || error == EACCES ? NF_NO_COMPILER : NF_SYSTEM_ERROR,
                program + " cannot be started: " + std::strerror(error));
  process->pid = pid;
  process->socket = std::move(ours);
  process->errors = std::move(errors);
  process->generation = forkGeneration();
  return process;
}

std::unique_ptr<CompilerProcess::Process> CompilerProcess::takeResting() {
  std::lock_guard lock(mutex_);
  // A fork's child must not talk to its parent's processes.
  std::erase_if(resting_,
                [](const auto &process) { return process->generation != forkGeneration(); });
  if (resting_.empty())
    return nullptr;
  auto process = std::move(resting_.back());
  resting_.pop_back();
  return process;
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
  if (process.status != -1 && WIFSIGNALED(process.status))
    text += ": signal " + std::to_string(WTERMSIG(process.status)) + " (" +
            strsignal(WTERMSIG(process.status)) + ")";
  else if (process.status != -1)
    text += ": exit status " + std::to_string(WEXITSTATUS(process.status));
  if (limits_.bytes > 0)
    text += "; its memory is limited to " + std::to_string(limits_.bytes) + " bytes";
  std::array<char, 1024> said;
  const ssize_t got = pread(process.errors.get(), said.data(), said.size(), 0);
  std::string_view last(said.data(), got > 0 ? static_cast<size_t>(got) : 0);
  while (!last.empty() && (last.back() == '\n' || last.back() == '\0'))
    last.remove_suffix(1);
  if (!last.empty())
    text += "; it said: " + std::string(last);
  return failure.set(NF_COMPILER_ENDED, std::move(text));
}

bool CompilerProcess::ask(Question question, const nf_compiler_request &request,
                          std::vector<std::byte> &answer, Failure &failure) {
  const std::vector<std::byte> message = writeQuestion(question, request);
  struct Turn { // one of mostProcesses_, given back whatever happens
    CompilerProcess &all;
    explicit Turn(CompilerProcess &all) : all(all) {
      std::unique_lock lock(all.mutex_);
      all.rested_.wait(lock, [&] { return all.working_ < all.mostProcesses_; });
      ++all.working_;
    }
    ~Turn() {
      std::lock_guard lock(all.mutex_);
      --all.working_;
      all.rested_.notify_one();
    }
  } const turn(*this);
  // A process that has answered before may have been ended since, by the system or a person: that
  // is no fault of this request, which a new one answers.
  for (bool onlyNew : {false, true}) {
    auto process = onlyNew ? nullptr : takeResting();
    if (!process)
      process = start(failure);
    if (!process)
      return false;
    const Talk result = talk(*process, message, answer);
    if (result == Talk::Answered) {
      process->hasAnswered = true;
      std::lock_guard lock(mutex_);
      resting_.push_back(std::move(process));
      return true;
    }
    if (result == Talk::Died && process->hasAnswered && !onlyNew)
      continue;
    return describeEnd(*process, result, failure);
  }
  return false;
}

std::optional<Compiler::Identity> CompilerProcess::identify(const nf_compiler_request &request,
                                                            Failure &failure) {
  std::vector<std::byte> answer;
  if (!ask(Question::Identify, request, answer, failure))
    return std::nullopt;
  Identity identity;
  if (readIdentity(answer, identity, failure))
    return identity;
  if (failure.code == NF_OK)
    failure.set(NF_INTERNAL, "the compiler's process gave an answer that is none");
  return std::nullopt;
}

std::optional<std::vector<std::byte>> CompilerProcess::compile(const nf_compiler_request &request,
                                                               Failure &failure) {
  std::vector<std::byte> answer, artifact;
  if (!ask(Question::Compile, request, answer, failure))
    return std::nullopt;
  if (readArtifact(answer, artifact, failure))
    return artifact;
  if (failure.code == NF_OK)
    failure.set(NF_INTERNAL, "the compiler's process gave an answer that is none");
  return std::nullopt;
}

} // namespace normforge
