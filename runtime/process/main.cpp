// normforge-compile: compiles for one host, in a process of its own.
//
//   normforge-compile PROTOCOL LIBRARY SECONDS BYTES     started by CompilerProcess.cpp, by nobody
//   else
//
// Descriptor 0 is a socket: questions come in, answers go out, until the host closes it. Descriptor
// 2 keeps what LLVM says before it ends the process. Within `BYTES` of memory (0: no limit) and
// `SECONDS` a question, so that it ends even where nobody is left to end it.
#include "runtime/loader/CompilerLibrary.h"
#include "runtime/process/Protocol.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

using namespace normforge;

namespace {

constexpr int socketDescriptor = 0;
constexpr rlim_t mostErrorBytes = 64 << 10;

void limit(int resource, rlim_t most) {
  rlimit current;
  if (getrlimit(static_cast<__rlimit_resource_t>(resource), &current) != 0)
    return;
  current.rlim_cur = std::min<rlim_t>(most, current.rlim_max);
  setrlimit(static_cast<__rlimit_resource_t>(resource), &current);
}

/// Processor time used so far and `seconds` more.
void limitTime(unsigned long seconds) {
  rusage used;
  if (seconds > 0 && getrusage(RUSAGE_SELF, &used) == 0)
    limit(RLIMIT_CPU,
          static_cast<rlim_t>(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + seconds + 2);
}

/// Moves all of the bytes; false where the host has gone.
bool receive(void *bytes, size_t size) {
  for (size_t done = 0; done < size;) {
    const ssize_t got = recv(socketDescriptor, static_cast<char *>(bytes) + done, size - done, 0);
    if (got < 0 && errno == EINTR)
      continue;
    if (got <= 0)
      return false;
    done += static_cast<size_t>(got);
  }
  return true;
}
bool give(const void *bytes, size_t size) {
  for (size_t done = 0; done < size;) {
    const ssize_t put =
        send(socketDescriptor, static_cast<const char *>(bytes) + done, size - done, MSG_NOSIGNAL);
    if (put < 0 && errno == EINTR)
      continue;
    if (put <= 0)
      return false;
    done += static_cast<size_t>(put);
  }
  return true;
}

std::vector<std::byte> answer(CompilerLibrary &compiler, const ReadQuestion &asked) {
  Failure failure;
  if (asked.question == Question::Identify) {
    if (auto identity = compiler.identify(asked.request, failure))
      return writeIdentity(*identity);
  } else if (auto artifact = compiler.compile(asked.request, failure)) {
    return writeArtifact(*artifact);
  }
  return writeFailure(failure);
}

/// Waits for the next question; false where none comes for a while: the host starts another process
/// when it has one.
bool isAsked() {
  constexpr int mostIdleMilliseconds = 10'000;
  pollfd wait = {socketDescriptor, POLLIN, 0};
  int ready;
  do
    ready = poll(&wait, 1, mostIdleMilliseconds);
  while (ready < 0 && errno == EINTR);
  return ready > 0;
}

/// Until the host has gone or asks no more; the exit status.
int serve(CompilerLibrary &compiler, unsigned long seconds) {
  uint64_t length;
  while (isAsked() && receive(&length, sizeof length)) {
    if (length > mostMessageBytes) {
      std::fputs("a question is longer than any\n", stderr);
      return 2;
    }
    std::vector<std::byte> question(length);
    ReadQuestion asked;
    if (!receive(question.data(), question.size()))
      return 0;
    if (!readQuestion(question, asked)) {
      std::fputs("a question is none of this version's\n", stderr);
      return 2;
    }
    limitTime(seconds);
    if (ftruncate(2, 0) == 0) // what is said is said of this question
      lseek(2, 0, SEEK_SET);
    // Not by the processor alone: a compiler that waits for ever would outlive a host that is gone.
    alarm(seconds > 0 ? static_cast<unsigned>(seconds) + 10 : 0);
    std::vector<std::byte> reply;
    try {
      reply = answer(compiler, asked);
    } catch (const std::bad_alloc &) {
      reply = writeFailure({NF_OUT_OF_MEMORY, "out of memory"});
    }
    alarm(0);
    length = reply.size();
    if (!give(&length, sizeof length) || !give(reply.data(), reply.size()))
      return 0;
  }
  return 0;
}

} // namespace

int main(int argc, char **argv) {
  if (argc != 5 || std::strtoull(argv[1], nullptr, 10) != protocolVersion) {
    std::fputs("normforge-compile is started by libnormforge of its own version, not by hand\n",
               stderr);
    return 2;
  }
  if (chdir("/") != 0)
    return 2;
  limit(RLIMIT_CORE, 0);
  limit(RLIMIT_FSIZE, mostErrorBytes); // what is written goes to the host's memory
  if (const rlim_t bytes = std::strtoull(argv[4], nullptr, 10); bytes > 0)
    limit(RLIMIT_AS, bytes);
  std::signal(SIGXFSZ, SIG_IGN); // what is beyond that is left out
  prctl(PR_SET_NAME, "normforge-comp");
  CompilerLibrary compiler(argv[2]);
  return serve(compiler, std::strtoul(argv[3], nullptr, 10));
}
