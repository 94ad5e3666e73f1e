#include "compiler/tune/WorkerProcess.h"

#include "llvm/Support/JSON.h"
#include "llvm/Support/raw_ostream.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

namespace normforge::tune {

namespace {

using Clock = std::chrono::steady_clock;
namespace json = llvm::json;

constexpr uint64_t kWorkerBytes = uint64_t(2) << 30;
/// Arrays of a case, inputs, values in f64 and bounds, in multiples of the arguments.
constexpr uint64_t kCopiesOfArguments = 12;
/// Seconds that the reference takes for an element of the data at most, and those of a start.
constexpr double kReferenceSeconds = 4e-6, kStartSeconds = 60;

// AddressSanitizer reserves more than any limit of memory allows.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kLimitsMemory = false;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
constexpr bool kLimitsMemory = false;
#else
constexpr bool kLimitsMemory = true;
#endif
#else
constexpr bool kLimitsMemory = true;
#endif

std::string printed(json::Value value) {
  std::string text;
  llvm::raw_string_ostream(text) << value;
  return text;
}

json::Array toJson(const Ratio &ratio) { return json::Array{ratio.value, ratio.low, ratio.high}; }
Ratio ratioOf(const json::Array *array) {
  auto at = [&](size_t i) {
    return array && i < array->size() ? (*array)[i].getAsNumber().value_or(0) : 0;
  };
  return {at(0), at(1), at(2)};
}

json::Object toJson(const Trial &trial) {
  return json::Object{{"state", toString(trial.state)},
                      {"gain", toJson(trial.gain)},
                      {"pairs", trial.pairs},
                      {"us", trial.microseconds},
                      {"note", json::fixUTF8(trial.note)}};
}
Trial trialOf(const json::Object &object) {
  Trial trial;
  for (CandidateState state : kCandidateStates)
    if (object.getString("state") == toString(state))
      trial.state = state;
  trial.gain = ratioOf(object.getArray("gain"));
  trial.pairs = static_cast<int>(object.getInteger("pairs").value_or(0));
  trial.microseconds = object.getNumber("us").value_or(0);
  trial.note = object.getString("note").value_or("").str();
  return trial;
}

json::Object toJson(const Race::Result &result) {
  return json::Object{
      {"gain", toJson(result.gain)}, {"pairs", result.pairs}, {"seconds", result.seconds}};
}
Race::Result resultOf(const json::Object &object) {
  return {ratioOf(object.getArray("gain")),
          static_cast<int>(object.getInteger("pairs").value_or(0)),
          object.getNumber("seconds").value_or(0)};
}

/// Sends a line whole; false where nobody is there.
bool sendLine(int socket, std::string line) {
  line += '\n';
  for (size_t done = 0; done < line.size();) {
    const ssize_t put = send(socket, line.data() + done, line.size() - done, MSG_NOSIGNAL);
    if (put < 0 && errno == EINTR)
      continue;
    if (put <= 0)
      return false;
    done += static_cast<size_t>(put);
  }
  return true;
}

enum class Received : uint8_t { Line, Closed, Late };
/// The next line; what follows it stays in `unread`. `seconds` below 0: no limit.
Received receiveLine(int socket, double seconds, std::string &unread, std::string &line) {
  const Clock::time_point end =
      Clock::now() + std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
  while (true) {
    if (const size_t newline = unread.find('\n'); newline != std::string::npos) {
      line = unread.substr(0, newline);
      unread.erase(0, newline + 1);
      return Received::Line;
    }
    int wait = -1;
    if (seconds >= 0)
      wait = static_cast<int>(std::max<int64_t>(
          0, std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count()));
    pollfd ready = {socket, POLLIN, 0};
    const int count = poll(&ready, 1, wait);
    if (count < 0 && errno == EINTR)
      continue;
    if (count == 0)
      return Received::Late;
    char buffer[16384];
    const ssize_t got = recv(socket, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EINTR)
      continue;
    if (got <= 0)
      return Received::Closed;
    unread.append(buffer, static_cast<size_t>(got));
  }
}

uint64_t argumentBytes(const Case &problem) {
  uint64_t sum = 0;
  for (const Operand &operand : problem.op.operands)
    sum += static_cast<uint64_t>(operand.bytes().evaluate(problem.sizeValues).value_or(0));
  return sum;
}

} // namespace

WorkerProcess::WorkerProcess(WorkerOptions options, std::span<const Case> cases, uint64_t seed)
    : options_(std::move(options)), cases_(cases), seed_(seed) {}

WorkerProcess::~WorkerProcess() {
  if (pid_ > 0)
    reap(/*isLate=*/true);
}

/// Answers until the sweep has gone.
void WorkerProcess::serve(int socket) {
  prctl(PR_SET_PDEATHSIG, SIGKILL); // nobody is left to measure for
  prctl(PR_SET_NAME, "normforge-tune");
  rlimit core{0, 0};
  setrlimit(RLIMIT_CORE, &core);
  // The sweep answers the signal by which a terminal ends it (Ctrl-C).
  std::signal(SIGINT, SIG_IGN);
  if (kLimitsMemory) {
    uint64_t most = 0;
    for (const Case &problem : cases_)
      most = std::max(most, argumentBytes(problem));
    const uint64_t bytes = std::min<uint64_t>((options_.bytes ? options_.bytes : kWorkerBytes) +
                                                  kCopiesOfArguments * most,
                                              physicalMemory());
    const rlimit limit{bytes, bytes};
    setrlimit(RLIMIT_DATA, &limit);
  }
  std::string unread, line;
  Worker worker(options_.target, options_.verify, options_.faults);
  while (receiveLine(socket, -1, unread, line) == Received::Line) {
    auto parsed = json::parse(line);
    if (!parsed)
      _exit(2);
    const json::Object &question = *parsed->getAsObject();
    const llvm::StringRef ask = question.getString("ask").value_or("");
    json::Object answer;
    try {
      if (ask == "begin") {
        auto us = worker.begin(cases_[static_cast<size_t>(*question.getInteger("case"))], seed_);
        if (us)
          answer["us"] = *us;
        else
          answer["error"] = json::fixUTF8(llvm::toString(us.takeError()));
      } else if (ask == "attempt") {
        Limits limits;
        limits.leastPairs = static_cast<int>(*question.getInteger("least_pairs"));
        limits.mostPairs = static_cast<int>(*question.getInteger("most_pairs"));
        limits.seconds = *question.getNumber("seconds");
        answer = toJson(worker.attempt(question.getString("schedule")->str(), limits));
      } else {
        std::vector<std::string> schedules;
        for (const json::Value &text : *question.getArray("schedules"))
          schedules.push_back(text.getAsString()->str());
        Finals::Limits limits;
        limits.seconds = *question.getNumber("seconds");
        limits.fewPlaces = static_cast<int>(*question.getInteger("few_places"));
        limits.places = static_cast<int>(*question.getInteger("places"));
        auto found = worker.finish(schedules, limits);
        if (found) {
          answer = json::Object{{"result", toJson(found->result)},
                                {"noise", toJson(found->noise)},
                                {"default", found->standardSeconds},
                                {"copy", found->copySeconds}};
          if (found->best)
            answer["best"] = static_cast<int64_t>(*found->best);
        } else {
          answer["error"] = json::fixUTF8(llvm::toString(found.takeError()));
        }
      }
    } catch (const std::bad_alloc &) {
      // Within LLVM, perhaps, which is written for no exception: the process goes on no more.
      answer = ask == "attempt" ? toJson(Trial{CandidateState::Refused, {}, 0, 0, "out of memory"})
                                : json::Object{{"error", "out of memory"}};
      answer["ends"] = true;
      sendLine(socket, printed(std::move(answer)));
      _exit(0);
    }
    if (!sendLine(socket, printed(std::move(answer))))
      break;
  }
  _exit(0);
}

bool WorkerProcess::start(End &end) {
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
    end.note = fmt::format("no worker can be started: {}", std::strerror(errno));
    return false;
  }
  FileDescriptor own(sockets[0]), other(sockets[1]);
  std::fflush(stdout);
  std::fflush(stderr);
  pid_ = fork();
  if (pid_ < 0) {
    end.note = fmt::format("no worker can be started: {}", std::strerror(errno));
    return false;
  }
  if (pid_ == 0) {
    own = FileDescriptor();
    serve(other.get());
  }
  socket_ = std::move(own);
  unread_.clear();
  hasBegun_ = false;
  return true;
}

WorkerProcess::End WorkerProcess::reap(bool isLate) {
  if (isLate)
    kill(pid_, SIGKILL);
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR)
    ;
  pid_ = -1;
  socket_ = FileDescriptor();
  hasBegun_ = false;
  if (isLate)
    return {CandidateState::TimedOut, "no answer in time"};
  if (WIFSIGNALED(status))
    return {CandidateState::Crashed,
            fmt::format("signal {}, {}", WTERMSIG(status), sigdescr_np(WTERMSIG(status)))};
  return {CandidateState::Crashed, fmt::format("exit status {}", WEXITSTATUS(status))};
}

std::optional<json::Object> WorkerProcess::ask(json::Object question, double seconds, End &end) {
  if (!sendLine(socket_.get(), printed(std::move(question)))) {
    end = reap(/*isLate=*/false);
    return std::nullopt;
  }
  std::string text;
  const Received received = receiveLine(socket_.get(), seconds, unread_, text);
  if (received != Received::Line) {
    end = reap(received == Received::Late);
    return std::nullopt;
  }
  auto answer = json::parse(text);
  if (!answer || !answer->getAsObject()) {
    if (!answer)
      llvm::consumeError(answer.takeError());
    reap(/*isLate=*/true);
    end = {CandidateState::Crashed, "an answer that is none"};
    return std::nullopt;
  }
  if (answer->getAsObject()->getBoolean("ends").value_or(false))
    reap(/*isLate=*/false);
  return std::move(*answer->getAsObject());
}

llvm::Expected<double> WorkerProcess::begin(size_t index) {
  current_ = index;
  hasBegun_ = false;
  End end;
  if (!prepare(end))
    return llvm::createStringError(end.note);
  return microseconds_;
}

bool WorkerProcess::prepare(End &end) {
  if (pid_ < 0 && !start(end))
    return false;
  if (hasBegun_)
    return true;
  const Case &problem = cases_[*current_];
  const std::vector<int64_t> values = orderedSizes(problem.op, checkedSizes(problem));
  const double elements =
      static_cast<double>(problem.op.elements.evaluate(values).value_or(0)) +
      static_cast<double>(argumentBytes(problem)) / 64; // filling and comparing them
  const auto answer = ask(json::Object{{"ask", "begin"}, {"case", static_cast<int64_t>(*current_)}},
                          kStartSeconds + kReferenceSeconds * elements, end);
  if (!answer)
    return false;
  if (const auto error = answer->getString("error")) {
    end = {CandidateState::Refused, error->str()};
    return false;
  }
  microseconds_ = answer->getNumber("us").value_or(0);
  hasBegun_ = true;
  return true;
}

llvm::Expected<Trial> WorkerProcess::attempt(const std::string &schedule, const Limits &limits) {
  End end;
  if (!prepare(end))
    return llvm::createStringError("the case cannot be begun again: " + end.note);
  // A candidate that is a hundred times slower is none.
  const double seconds = options_.secondsPerCandidate + 4 * limits.seconds +
                         100e-6 * microseconds_ * (2 + limits.leastPairs);
  const auto answer = ask(json::Object{{"ask", "attempt"},
                                       {"schedule", schedule},
                                       {"least_pairs", limits.leastPairs},
                                       {"most_pairs", limits.mostPairs},
                                       {"seconds", limits.seconds}},
                          seconds, end);
  return answer ? trialOf(*answer) : Trial{end.state, {}, 0, 0, end.note};
}

llvm::Expected<Finals> WorkerProcess::finish(const std::vector<std::string> &schedules,
                                             const Finals::Limits &limits) {
  End end;
  if (!prepare(end))
    return llvm::createStringError(end.note);
  const auto contenders = static_cast<double>(2 + schedules.size());
  const double limit = options_.secondsPerCandidate * contenders + 4 * limits.seconds +
                       20e-6 * microseconds_ * contenders * (limits.fewPlaces + limits.places);
  const auto answer = ask(json::Object{{"ask", "finish"},
                                       {"schedules", json::Array(schedules)},
                                       {"seconds", limits.seconds},
                                       {"few_places", limits.fewPlaces},
                                       {"places", limits.places}},
                          limit, end);
  if (!answer)
    return llvm::createStringError(end.note);
  if (const auto error = answer->getString("error"))
    return llvm::createStringError(error->str());
  Finals finals;
  if (const auto best = answer->getInteger("best"))
    finals.best = static_cast<size_t>(*best);
  finals.result = resultOf(*answer->getObject("result"));
  finals.noise = ratioOf(answer->getArray("noise"));
  finals.standardSeconds = answer->getNumber("default").value_or(0);
  finals.copySeconds = answer->getNumber("copy").value_or(0);
  return finals;
}

} // namespace normforge::tune
