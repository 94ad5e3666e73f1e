// normforge-tune-run: runs a sweep that `normforge tune export` has made, on a machine without a
// compiler.
//
//   normforge-tune-run sweep.nfs -o r.jsonl
//
// Each case runs in a process of its own: a candidate that ends it costs itself. Lines are appended
// to the file as they come; cases and candidates that it holds are not run again.
// `normforge tune import r.jsonl -o all.jsonl` makes records of it.
#include "runtime/artifact/Element.h"
#include "runtime/cpu_info/CpuInfo.h"
#include "runtime/kernel/Kernel.h"
#include "runtime/measure/Finals.h"
#include "runtime/measure/SweepFile.h"
#include "runtime/threads/ThreadPool.h"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <fstream>
#include <iterator>
#include <map>
#include <poll.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace normforge;

namespace {

constexpr Race::Limits kLimits = {4, 9, 0.1};
constexpr Finals::Limits kFinals = {.seconds = 0.3};
/// A candidate that has said nothing for so long is given up.
constexpr int kMostSeconds = 120;

/// Text within a JSON string.
std::string quoted(std::string_view text) {
  std::string result = "\"";
  for (char c : text)
    if (c == '"' || c == '\\')
      result += std::string("\\") + c;
    else // texts are ASCII but for names, whose encoding nobody knows
      result += c >= 0x20 && c < 0x7f ? c : '?';
  return result + "\"";
}
std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.5g", std::isfinite(value) ? value : 0);
  return text;
}

/// Whether this is a program for another machine that an emulator runs: times say nothing then.
/// QEMU's user mode shows the CPUs of the machine that it runs on.
bool isEmulated() {
  std::ifstream file("/proc/cpuinfo");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const bool isX86 = text.find("vendor_id") != std::string::npos;
  return !text.empty() && isX86 != (hostArchitecture() == "x86_64");
}

std::string candidateLine(const SweepFile::Case &of, const std::string &schedule,
                          std::string_view state, const Race::Result *found,
                          const std::string &note) {
  std::string line = "{\"case\":" + quoted(of.id);
  if (found && found->pairs > 0)
    line += ",\"gain\":" + number(found->gain.value) +
            ",\"gain_high\":" + number(found->gain.high) +
            ",\"gain_low\":" + number(found->gain.low);
  if (!note.empty())
    line += ",\"note\":" + quoted(note);
  if (found && found->pairs > 0)
    line += ",\"pairs\":" + std::to_string(found->pairs);
  line +=
      ",\"record\":\"candidate\",\"schedule\":" + quoted(schedule) + ",\"state\":" + quoted(state);
  if (found && found->pairs > 0)
    line += ",\"us\":" + number(found->seconds * 1e6);
  return line + ",\"version\":1}";
}

/// Whether two kernels may share their buffers.
bool hasSameArguments(const KernelCall &a, const KernelCall &b) {
  const auto &one = a.plan().kernel().artifact().arguments,
             &other = b.plan().kernel().artifact().arguments;
  return std::equal(one.begin(), one.end(), other.begin(), other.end(),
                    [](const Argument &x, const Argument &y) {
                      return x.name == y.name && x.dtype == y.dtype && x.written == y.written;
                    }) &&
         std::equal(a.plan().arrays().begin(), a.plan().arrays().end(), b.plan().arrays().begin(),
                    b.plan().arrays().end(),
                    [](const Plan::Array &x, const Plan::Array &y) { return x.bytes == y.bytes; });
}

/// A case in a process of its own.
class CaseRun {
public:
  CaseRun(const SweepFile &sweep, const SweepFile::Case &of)
      : sweep_(sweep), case_(of), pool_(static_cast<int>(of.threads)), executor_(pool_.executor()),
        race_(executor_, of.isCold) {}

  /// Empty, or why the case cannot be run.
  std::string begin();
  /// A line for the candidate.
  std::string attempt(const SweepFile::Candidate &candidate, double &gain);
  /// The line that ends the case, or "? " and why there is none. `gains`: by schedule.
  std::string finish(const std::map<std::string, double> &gains);

private:
  std::unique_ptr<KernelCall> callOf(const SweepFile::Candidate &candidate,
                                     const std::vector<int64_t> &sizes, std::string &why) const;
  /// The first element that is not as expected at the checked sizes, in words; empty: all are.
  std::string disagreement(KernelCall &call) const;
  std::string difference(KernelCall &call) const;
  size_t argumentOf(const KernelCall &call, const std::string &name) const;

  const SweepFile &sweep_;
  const SweepFile::Case &case_;
  ThreadPool pool_;
  const nf_executor executor_;
  Race race_;
  std::unique_ptr<KernelCall> check_, standard_;
  std::map<std::string, std::vector<std::byte>> ofDefault_; ///< outputs at the own sizes
};

std::unique_ptr<KernelCall> CaseRun::callOf(const SweepFile::Candidate &candidate,
                                            const std::vector<int64_t> &sizes,
                                            std::string &why) const {
  auto artifact = deserialize(candidate.artifact, why);
  if (!artifact)
    return nullptr;
  Failure failure;
  auto kernel = Kernel::load(std::move(*artifact), {}, failure);
  auto call = kernel ? KernelCall::make(std::move(kernel), sizes, failure) : nullptr;
  why = failure.message;
  return call;
}

size_t CaseRun::argumentOf(const KernelCall &call, const std::string &name) const {
  const auto &arguments = call.plan().kernel().artifact().arguments;
  size_t i = 0;
  while (i < arguments.size() && !(arguments[i].written && arguments[i].name == name))
    ++i;
  return i;
}

std::string CaseRun::disagreement(KernelCall &call) const {
  Failure failure;
  call.poison();
  if (!call.run(executor_, failure))
    return failure.message;
  const auto &arguments = call.plan().kernel().artifact().arguments;
  for (const SweepFile::Output &output : case_.outputs) {
    const size_t argument = argumentOf(call, output.name);
    if (argument == arguments.size())
      return "it has no output " + output.name;
    const uint64_t count =
        call.array(argument).size() * (arguments[argument].dtype == DType::Bit ? 8 : 1) /
        (arguments[argument].dtype == DType::Bit ? 1 : byteSize(arguments[argument].dtype));
    for (const SweepFile::Expected &expected : output.expected) {
      if (expected.element >= count)
        return "it has no element " + std::to_string(expected.element) + " of " + output.name;
      const double found =
          elementOf(arguments[argument].dtype, call.array(argument), expected.element);
      if (found == expected.value || (std::isnan(found) && std::isnan(expected.value)) ||
          std::abs(found - expected.value) <= expected.allowed)
        continue;
      return output.name + "[" + std::to_string(expected.element) + "] is " +
             (std::isnan(found) ? "NaN" : number(found)) + ", expected " + number(expected.value) +
             " within " + number(expected.allowed);
    }
  }
  return {};
}

/// From the default's outputs at the own sizes.
std::string CaseRun::difference(KernelCall &call) const {
  Failure failure;
  call.poison();
  if (!call.run(executor_, failure))
    return failure.message;
  const auto &arguments = call.plan().kernel().artifact().arguments;
  for (const SweepFile::Output &output : case_.outputs) {
    const size_t argument = argumentOf(call, output.name);
    const DType dtype = arguments[argument].dtype;
    const std::span<const std::byte> own = call.array(argument),
                                     theirs = ofDefault_.at(output.name);
    if (dtype == DType::Bit || std::memcmp(own.data(), theirs.data(), own.size()) == 0)
      continue; // where sums are about 0 either bit is right
    for (uint64_t i = 0; i < own.size() / byteSize(dtype); ++i) {
      const double a = elementOf(dtype, own, i), b = elementOf(dtype, theirs, i);
      if (!(std::abs(a - b) <= output.allowed + 1e-6 * std::abs(b)) && a != b &&
          !(std::isnan(a) && std::isnan(b)))
        return output.name + "[" + std::to_string(i) + "] is " + number(a) + ", the default's " +
               number(b);
    }
  }
  return {};
}

std::string CaseRun::begin() {
  std::string why;
  check_ = callOf(case_.candidates.front(), case_.checkedSizes, why);
  standard_ = check_ ? callOf(case_.candidates.front(), case_.sizes, why) : nullptr;
  if (!standard_)
    return why;
  check_->allocate();
  standard_->allocate();
  check_->setScalars(case_.scalars);
  standard_->setScalars(case_.scalars);
  const auto &arguments = check_->plan().kernel().artifact().arguments;
  for (const SweepFile::Input &input : case_.inputs)
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (arguments[i].written || arguments[i].name != input.name)
        continue;
      std::vector<std::byte> bytes(check_->array(i).size());
      fill(input, sweep_.seed, arguments[i].dtype, bytes);
      check_->set(input.name, bytes);
      // At the own sizes over and over.
      std::vector<std::byte> own(standard_->array(i).size());
      for (size_t at = 0; at < own.size() && !bytes.empty(); at += bytes.size())
        std::memcpy(own.data() + at, bytes.data(), std::min(bytes.size(), own.size() - at));
      standard_->set(input.name, own);
    }
  if (std::string wrong = disagreement(*check_); !wrong.empty())
    return "the default itself is wrong: " + wrong;
  Failure failure;
  if (!standard_->run(executor_, failure))
    return failure.message;
  for (const SweepFile::Output &output : case_.outputs) {
    const auto bytes = standard_->array(argumentOf(*standard_, output.name));
    ofDefault_[output.name].assign(bytes.begin(), bytes.end());
  }
  return {};
}

std::string CaseRun::attempt(const SweepFile::Candidate &candidate, double &gain) {
  gain = 0;
  std::string why;
  auto check = callOf(candidate, case_.checkedSizes, why);
  auto call = check ? callOf(candidate, case_.sizes, why) : nullptr;
  if (!call || !hasSameArguments(*check, *check_) || !hasSameArguments(*call, *standard_))
    return candidateLine(case_, candidate.schedule, "refused", nullptr,
                         call ? "its arguments are others than the default's" : why);
  check->share(*check_);
  std::string wrong = disagreement(*check);
  call->share(*standard_);
  if (wrong.empty())
    wrong = difference(*call);
  if (!wrong.empty())
    return candidateLine(case_, candidate.schedule, "wrong", nullptr, wrong);
  const Race::Result found = race_.against(*standard_, *call, kLimits);
  gain = found.isBehind ? 0 : found.gain.value;
  return candidateLine(case_, candidate.schedule, found.isBehind ? "behind" : "measured", &found,
                       "");
}

std::string CaseRun::finish(const std::map<std::string, double> &gains) {
  std::vector<std::pair<double, std::string>> own; // a file may hold those of a larger sweep
  for (size_t i = 1; i < case_.candidates.size(); ++i)
    if (const auto gain = gains.find(case_.candidates[i].schedule); gain != gains.end())
      own.emplace_back(gain->second, gain->first);
  const std::vector<std::string> schedules = finalistsOf(std::move(own));
  std::vector<Artifact> kernels;
  std::string why;
  auto add = [&](const SweepFile::Candidate &candidate) {
    auto artifact = deserialize(candidate.artifact, why);
    if (artifact)
      kernels.push_back(std::move(*artifact));
    return artifact.has_value();
  };
  bool isWhole = add(case_.candidates.front());
  for (const std::string &schedule : schedules)
    isWhole =
        isWhole && add(*std::find_if(case_.candidates.begin(), case_.candidates.end(),
                                     [&](const auto &one) { return one.schedule == schedule; }));
  if (!isWhole)
    return "? " + why;
  Failure failure;
  const auto found =
      decide(race_, *standard_, kernels, case_.read, case_.written, kFinals, failure);
  if (!found) {
    std::replace(failure.message.begin(), failure.message.end(), '\n', ' ');
    return "? " + failure.message;
  }
  const std::string &schedule =
      found->best ? schedules[*found->best] : case_.candidates.front().schedule;
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char date[32];
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &utc);
  auto ratio = [](const Ratio &r) {
    return "[" + number(r.value) + "," + number(r.low) + "," + number(r.high) + "]";
  };
  return "{\"record\":\"measured\",\"version\":1,\"case\":" + quoted(case_.id) +
         ",\"schedule\":" + quoted(schedule) + ",\"gain\":" + ratio(found->result.gain) +
         ",\"noise\":" + ratio(found->noise) + ",\"pairs\":" + std::to_string(found->result.pairs) +
         ",\"us\":" + number(found->result.seconds * 1e6) +
         ",\"default_us\":" + number(found->standardSeconds * 1e6) +
         ",\"copy_us\":" + number(found->copySeconds * 1e6) + ",\"date\":" + quoted(date) +
         ",\"model\":" + quoted(hostCpuName()) +
         ",\"emulated\":" + (isEmulated() ? "true" : "false") + ",\"result\":" + case_.record + "}";
}

/// The results of a case that a file holds already: the schedules tried with their gains, and
/// whether the case has ended.
struct Held {
  std::map<std::string, double> gains;
  bool hasEnded = false;
};

std::string fieldOf(const std::string &line, const std::string &name);

/// The gain in a candidate's line; 0 where it was not measured to the end.
double gainOf(const std::string &line) {
  const size_t gain = line.find("\"gain\":");
  return gain != std::string::npos && fieldOf(line, "state") == "measured"
             ? std::strtod(line.c_str() + gain + 7, nullptr)
             : 0;
}

std::string fieldOf(const std::string &line, const std::string &name) {
  const std::string key = "\"" + name + "\":\"";
  const size_t at = line.find(key);
  if (at == std::string::npos)
    return {};
  const size_t begin = at + key.size();
  return line.substr(begin, line.find('"', begin) - begin);
}

/// Lines, each appended whole. One writer a file.
class Output {
public:
  /// Empty, or why not.
  std::string open(const std::string &path, std::map<std::string, Held> &held) {
    file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file_ < 0)
      return std::strerror(errno);
    if (flock(file_, LOCK_EX | LOCK_NB) != 0)
      return errno == EWOULDBLOCK ? "another process writes it" : std::strerror(errno);
    std::ifstream before(path);
    bool isWhole = true;
    for (std::string line; std::getline(before, line);) {
      isWhole = !before.eof();
      if (!isWhole || !line.ends_with("}")) // half written
        continue;
      Held &of = held[fieldOf(line, "case")];
      of.hasEnded |= line.starts_with("{\"record\":\"measured\"");
      if (fieldOf(line, "record") == "candidate")
        of.gains[fieldOf(line, "schedule")] = gainOf(line);
    }
    return isWhole || append("") ? "" : std::strerror(errno);
  }
  /// False with errno set; nothing half written stays then.
  bool append(const std::string &line) {
    const std::string text = line + "\n";
    const off_t before = lseek(file_, 0, SEEK_END);
    for (size_t done = 0; done < text.size();) {
      const ssize_t put = ::write(file_, text.data() + done, text.size() - done);
      if (put < 0 && errno == EINTR)
        continue;
      if (put <= 0) {
        const int error = put < 0 ? errno : ENOSPC;
        (void)!ftruncate(file_, before);
        errno = error;
        return false;
      }
      done += static_cast<size_t>(put);
    }
    return true;
  }

private:
  int file_ = -1;
};

/// The child: a line "! N" before candidate N begins, then its line; at the end the case's. "? WHY"
/// where the case cannot be run.
[[noreturn]] void runChild(const SweepFile &sweep, const SweepFile::Case &of, Held held, int out) {
  std::FILE *file = fdopen(out, "w");
  auto say = [&](const std::string &line) {
    if (std::fprintf(file, "%s\n", line.c_str()) < 0 || std::fflush(file) != 0)
      _exit(0); // nobody listens
  };
  CaseRun run(sweep, of);
  say("! 0");
  if (std::string why = run.begin(); !why.empty()) {
    std::replace(why.begin(), why.end(), '\n', ' ');
    say("? " + why);
    _exit(0);
  }
  for (size_t i = 1; i < of.candidates.size(); ++i) {
    const SweepFile::Candidate &candidate = of.candidates[i];
    if (held.gains.contains(candidate.schedule))
      continue;
    say("! " + std::to_string(i));
    say(run.attempt(candidate, held.gains[candidate.schedule]));
  }
  say("! " + std::to_string(of.candidates.size()));
  say(run.finish(held.gains));
  _exit(0);
}

/// Reads lines with a limit of time.
class Lines {
public:
  explicit Lines(int fd) : fd_(fd) {}
  enum class Read { Line, Ended, Late };
  Read next(std::string &line) {
    while (true) {
      if (const size_t end = text_.find('\n'); end != std::string::npos) {
        line = text_.substr(0, end);
        text_.erase(0, end + 1);
        return Read::Line;
      }
      pollfd wait{fd_, POLLIN, 0};
      const int ready = poll(&wait, 1, kMostSeconds * 1000);
      if (ready < 0 && errno == EINTR)
        continue;
      if (ready == 0)
        return Read::Late;
      char buffer[8192];
      const ssize_t got = read(fd_, buffer, sizeof buffer);
      if (got <= 0)
        return Read::Ended;
      text_.append(buffer, static_cast<size_t>(got));
    }
  }

private:
  int fd_;
  std::string text_;
};

/// False with `error` set where it cannot go on.
bool runCase(const SweepFile &sweep, const SweepFile::Case &of, Held held, Output &output,
             bool &failed, std::string &error) {
  while (true) {
    int ends[2];
    std::fflush(nullptr);
    const pid_t child = pipe(ends) == 0 ? fork() : -1;
    if (child < 0) {
      error = std::string("no process can be started: ") + std::strerror(errno);
      return false;
    }
    if (child == 0) {
      close(ends[0]);
      runChild(sweep, of, held, ends[1]);
    }
    close(ends[1]);
    Lines lines(ends[0]);
    size_t current = 0;
    bool hasEnded = false, isWritten = true;
    Lines::Read read;
    for (std::string line; isWritten && (read = lines.next(line)) == Lines::Read::Line;) {
      if (line.starts_with("! ")) {
        current = std::strtoull(line.c_str() + 2, nullptr, 10);
      } else if (line.starts_with("? ")) {
        std::fprintf(stderr, "%s: failed: %s\n", of.title.c_str(), line.c_str() + 2);
        failed = hasEnded = true;
      } else {
        isWritten = output.append(line);
        if (!isWritten)
          error = std::string("the file cannot be written: ") + std::strerror(errno);
        held.gains[fieldOf(line, "schedule")] =
            gainOf(line); // the next child does not try it again
        hasEnded = line.starts_with("{\"record\":\"measured\"");
      }
    }
    close(ends[0]);
    if (read == Lines::Read::Late)
      kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    if (!isWritten)
      return false;
    if (hasEnded)
      return true;
    if (current == 0 || current >= of.candidates.size()) {
      std::fprintf(stderr, "%s: failed: the default's process ended\n", of.title.c_str());
      failed = true;
      return true;
    }
    const std::string &schedule = of.candidates[current].schedule;
    const bool isLate = read == Lines::Read::Late;
    const std::string note = isLate                ? "no answer in time"
                             : WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                                                   : "it ended its process";
    held.gains[schedule] = 0;
    if (!output.append(
            candidateLine(of, schedule, isLate ? "timed out" : "crashed", nullptr, note))) {
      error = std::string("the file cannot be written: ") + std::strerror(errno);
      return false;
    }
  }
}

} // namespace

int main(int argc, char **argv) {
  std::string path, outPath;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "-o" && i + 1 < argc)
      outPath = argv[++i];
    else if (word == "--version") {
      std::printf("normforge-tune-run %s\n", nf_version());
      return 0;
    } else if (!word.starts_with("-") && path.empty())
      path = word;
    else
      path = outPath = "", i = argc;
  }
  if (path.empty() || outPath.empty()) {
    std::fputs("usage: normforge-tune-run SWEEP.nfs -o FILE.jsonl\n"
               "Runs a sweep that `normforge tune export` has made; the file is added to.\n",
               stderr);
    return 2;
  }
  auto fail = [](const std::string &text) {
    std::fprintf(stderr, "normforge-tune-run: error: %s\n", text.c_str());
    return 2;
  };
  std::ifstream file(path, std::ios::binary);
  if (!file)
    return fail(path + ": cannot be read: " + std::strerror(errno));
  const std::vector<char> text((std::istreambuf_iterator<char>(file)),
                               std::istreambuf_iterator<char>());
  std::string error;
  const auto sweep = sweepFromBytes(std::as_bytes(std::span(text)), error);
  if (!sweep)
    return fail(path + ": " + error);
  if (!sweep->machine.empty() && sweep->machine != hostIdentity())
    return fail(path + ": the sweep is for the machine that exported it; export it with --cpu NAME "
                       "to run it on others");
  std::map<std::string, Held> held;
  Output output;
  if (const std::string why = output.open(outPath, held); !why.empty())
    return fail(outPath + ": cannot be written: " + why);
  if (isEmulated())
    std::fputs("this machine is emulated: times are marked and never used\n", stderr);
  bool failed = false;
  for (size_t i = 0; i < sweep->cases.size(); ++i) {
    const SweepFile::Case &one = sweep->cases[i];
    Held &of = held[one.id];
    std::printf("[%zu/%zu] %s: %zu candidates%s\n", i + 1, sweep->cases.size(), one.title.c_str(),
                one.candidates.size() - 1, of.hasEnded ? ", were there" : "");
    std::fflush(stdout);
    if (!of.hasEnded && !runCase(*sweep, one, of, output, failed, error))
      return fail(outPath + ": " + error);
  }
  return failed ? 1 : 0;
}
