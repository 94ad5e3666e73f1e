#include "compiler/tune/Worker.h"

#include "compiler/records/Choose.h"
#include "normforge/openmp.h"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <fmt/format.h>
#include <set>
#include <thread>

namespace normforge::tune {

namespace {

int64_t elementsAt(const Operator &op, const oracle::Sizes &sizes) {
  return op.elements.evaluate(orderedSizes(op, sizes)).value_or(INT64_MAX);
}

/// Bytes of an array over and over.
std::vector<std::byte> repeated(const std::vector<std::byte> &bytes, size_t size) {
  std::vector<std::byte> result(size);
  for (size_t at = 0; at < size && !bytes.empty(); at += bytes.size())
    std::memcpy(result.data() + at, bytes.data(), std::min(bytes.size(), size - at));
  return result;
}

/// How many elements of two arrays differ by more than is allowed. Of bits, bytes: where sums are
/// about 0 either bit is right, but few are.
int64_t differing(const HostArray &expected, std::span<const std::byte> bytes, double allowed) {
  int64_t count = 0;
  if (expected.dtype == DType::Bit) {
    for (size_t i = 0; i < bytes.size(); ++i)
      count += bytes[i] != expected.bytes[i];
    return std::max<int64_t>(0, count - static_cast<int64_t>(bytes.size()) / 100);
  }
  auto differs = [&](auto x, auto y) {
    const auto error = std::abs(x - y);
    return !(error <= allowed + 1e-6 * std::abs(y)) && x != y && !(std::isnan(x) && std::isnan(y));
  };
  if (expected.dtype == DType::F32) { // most are, and many
    const auto *x = reinterpret_cast<const float *>(bytes.data());
    const auto *y = expected.data<float>();
    for (size_t i = 0; i < bytes.size() / sizeof(float); ++i)
      count += differs(x[i], y[i]);
    return count;
  }
  HostArray actual(expected.dtype, expected.shape);
  std::memcpy(actual.bytes.data(), bytes.data(), bytes.size());
  for (int64_t i = 0, n = actual.count(); i < n; ++i)
    count += differs(actual.get(i), expected.get(i));
  return count;
}

} // namespace

oracle::Sizes checkedSizes(const Case &problem) {
  oracle::Sizes sizes = problem.sizes;
  // From the outermost size inwards: what is repeated is whole samples.
  for (const std::string &name : problem.op.sizes)
    while (sizes[name] > 1 && elementsAt(problem.op, sizes) > kCheckedElements)
      sizes[name] = (sizes[name] + 1) / 2;
  const bool allowed =
      std::ranges::all_of(problem.op.constraints, [&](const Constraint &constraint) {
        const int64_t size = sizes[problem.op.sizes[constraint.size]];
        return size >= constraint.atLeast && size % constraint.multipleOf == 0;
      });
  return allowed ? sizes : problem.sizes;
}

struct Worker::State {
  const Case *problem = nullptr;
  nf_executor executor{};
  std::optional<Race> race;
  std::vector<nf_scalar> scalars;
  oracle::Sizes checked;
  oracle::Arrays inputs, expected; ///< at the checked sizes
  std::map<std::string, oracle::Tolerance> tolerances;
  std::unique_ptr<KernelCall> check;        ///< the default's, at those
  std::unique_ptr<KernelCall> buffers;      ///< the default's, at the case's own; what others share
  std::map<size_t, HostArray> ofDefault;    ///< at the own sizes where those are not checked
  std::map<size_t, double> allowed;         ///< of them
  std::unique_ptr<KernelCall> standard;     ///< what candidates are measured against
  std::map<std::string, std::string> known; ///< schedules by their code

  Failure failure;

  bool isChecked() const { return checked == problem->sizes; }
  std::unique_ptr<KernelCall> callOf(const std::shared_ptr<const Kernel> &kernel,
                                     const oracle::Sizes &sizes) {
    return KernelCall::make(kernel, orderedSizes(problem->op, sizes), failure);
  }
};

Worker::Worker(const TargetDescription &target, bool verify, std::vector<Fault> faults)
    : session_(std::make_unique<Session>(target, verify)), faults_(std::move(faults)) {}
Worker::~Worker() = default;

namespace {

/// A kernel of one schedule, for all sizes.
llvm::Expected<std::shared_ptr<const Kernel>>
compileOne(Session &session, const Operator &op, const Schedule &schedule, std::string &code) {
  auto artifact = session.compile(op, ScheduleVariant{schedule, Guard{}, "", true});
  if (!artifact)
    return artifact.takeError();
  const Variant &variant = artifact->variants.front();
  std::string text(reinterpret_cast<const char *>(variant.image.bytes.data()),
                   variant.image.bytes.size());
  for (const Stage &stage : variant.stages)
    text += fmt::format("{} {} ", stage.entry, stage.tasks.text(op.sizes));
  code = digestOf(text + variant.workspaceBytes.text(op.sizes));
  Failure failure;
  auto kernel = Kernel::load(std::move(*artifact), {}, failure);
  if (!kernel)
    return llvm::createStringError(failure.message);
  return kernel;
}

/// The first of a kernel's outputs that is not as expected, in words; empty: all are.
std::string disagreement(const KernelCall &call, const oracle::Arrays &expected,
                         const std::map<std::string, oracle::Tolerance> &tolerances) {
  const auto &arguments = call.plan().kernel().artifact().arguments;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!arguments[i].written)
      continue;
    const std::string &name = arguments[i].name;
    const oracle::Comparison found =
        oracle::compare(oracle::outputOf(call, i), expected.at(name), tolerances.at(name));
    if (!found.agrees())
      return fmt::format("{}[{}] is {}, expected {} within {:.1e}", name, found.worst, found.actual,
                         found.expected, found.allowed);
  }
  return {};
}

} // namespace

llvm::Expected<double> Worker::begin(const Case &problem, uint64_t seed) {
  state_ = std::make_unique<State>();
  State &s = *state_;
  s.problem = &problem;
  s.executor = nf_openmp_executor(problem.threads);
  s.race.emplace(s.executor, problem.cache == CacheState::Cold);
  s.checked = checkedSizes(problem);
  s.inputs = oracle::drawInputs(problem.spec, problem.phase, s.checked, seed, oracle::Data::Normal,
                                problem.scalars);
  s.expected = oracle::reference(problem.spec, problem.phase, s.checked, s.inputs, problem.scalars);
  s.tolerances =
      oracle::tolerances(problem.spec, problem.phase, s.checked, s.inputs, problem.scalars);
  for (const Scalar &scalar : problem.op.scalars)
    s.scalars.push_back(problem.scalars.at(scalar.name));

  std::string code;
  auto kernel = compileOne(*session_, problem.op, problem.standard, code);
  if (!kernel)
    return kernel.takeError();
  s.known[code] = problem.key.standard;
  s.check = s.callOf(*kernel, s.checked);
  s.buffers = s.check ? s.callOf(*kernel, problem.sizes) : nullptr;
  if (!s.buffers)
    return llvm::createStringError(s.failure.message);
  s.check->allocate();
  s.buffers->allocate();
  for (const auto &[name, array] : s.inputs)
    s.check->set(name, array.bytes);
  const auto &arguments = (*kernel)->artifact().arguments;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (!arguments[i].written)
      s.buffers->set(arguments[i].name, repeated(s.inputs.at(arguments[i].name).bytes,
                                                 s.buffers->plan().arrays()[i].bytes));
  for (KernelCall *call : {s.check.get(), s.buffers.get()}) {
    call->setScalars(s.scalars);
    if (!call->run(s.executor, s.failure))
      return llvm::createStringError(s.failure.message);
  }
  if (std::string wrong = disagreement(*s.check, s.expected, s.tolerances); !wrong.empty())
    return llvm::createStringError("the default itself is wrong: " + wrong);
  if (!s.isChecked()) {
    const double growth = std::sqrt(static_cast<double>(elementsAt(problem.op, problem.sizes)) /
                                    static_cast<double>(elementsAt(problem.op, s.checked)));
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (!arguments[i].written)
        continue;
      s.ofDefault.emplace(i, oracle::outputOf(*s.buffers, i));
      const HostArray &expected = s.expected.at(arguments[i].name);
      const oracle::Tolerance &tolerance = s.tolerances.at(arguments[i].name);
      double most = 0;
      for (int64_t e = 0; e < expected.count(); ++e)
        most = std::max(most, tolerance.allowed(e, expected.get(e)));
      s.allowed[i] = 2 * growth * most;
    }
  }
  s.standard = s.callOf(*kernel, problem.sizes);
  s.standard->share(*s.buffers);
  return s.race->seconds(*s.standard) * 1e6;
}

Trial Worker::attempt(const std::string &text, const Limits &limits) {
  State &s = *state_;
  const Case &problem = *s.problem;
  auto refused = [](llvm::Error error) {
    return Trial{CandidateState::Refused, {}, 0, 0, llvm::toString(std::move(error))};
  };
  auto hasFault = [&](llvm::StringRef kind) {
    return std::ranges::any_of(faults_, [&](const Fault &fault) {
      return kind == fault.kind && text.find(fault.word) != std::string::npos;
    });
  };
  if (hasFault("crash"))
    std::raise(SIGSEGV);
  while (hasFault("hang"))
    std::this_thread::sleep_for(std::chrono::seconds(1));
  if (hasFault("exhaust")) {
    std::vector<std::string> memory;
    while (true)
      memory.emplace_back(64 << 20, 'x');
  }

  const std::vector<ScheduleVariant> variants = [&] {
    auto chosen = chooseSchedules(problem.op, session_->target(), {.forced = text});
    if (chosen)
      return std::move(*chosen);
    llvm::consumeError(chosen.takeError());
    return std::vector<ScheduleVariant>();
  }();
  if (variants.empty())
    return {CandidateState::Refused, {}, 0, 0, "the schedule is not legal"};
  std::string code;
  auto kernel = compileOne(*session_, problem.op, variants.front().schedule, code);
  if (!kernel)
    return refused(kernel.takeError());
  if (const auto [same, isNew] = s.known.emplace(code, text); !isNew)
    return {CandidateState::Same, {}, 0, 0, same->second};

  auto check = s.callOf(*kernel, s.checked);
  auto call = check ? s.callOf(*kernel, problem.sizes) : nullptr;
  if (!call)
    return {CandidateState::Refused, {}, 0, 0, s.failure.message};
  check->share(*s.check);
  check->poison();
  if (!check->run(s.executor, s.failure))
    return {CandidateState::Refused, {}, 0, 0, s.failure.message};
  std::string wrong =
      hasFault("wrong") ? "a planted fault" : disagreement(*check, s.expected, s.tolerances);
  if (!wrong.empty())
    return {CandidateState::Wrong, {}, 0, 0, std::move(wrong)};

  call->share(*s.buffers);
  const Race::Result found = s.race->against(*s.standard, *call, limits);
  if (!found.isBehind && !s.isChecked()) {
    call->poison();
    if (!call->run(s.executor, s.failure))
      return {CandidateState::Refused, {}, 0, 0, s.failure.message};
    for (const auto &[i, expected] : s.ofDefault)
      if (const int64_t count = differing(expected, call->array(i), s.allowed[i]); count > 0)
        return {CandidateState::Wrong,
                {},
                0,
                0,
                fmt::format("{} elements of {} differ from the default's by more than {:.1e}",
                            count, call->plan().kernel().artifact().arguments[i].name,
                            s.allowed[i])};
  }
  return {found.isBehind ? CandidateState::Behind : CandidateState::Measured, found.gain,
          found.pairs, found.seconds * 1e6};
}

llvm::Expected<Finals> Worker::finish(const std::vector<std::string> &schedules,
                                      const Finals::Limits &limits) {
  State &s = *state_;
  const Case &problem = *s.problem;
  std::vector<Artifact> kernels;
  auto add = [&](Schedule schedule) -> llvm::Error {
    auto artifact =
        session_->compile(problem.op, ScheduleVariant{std::move(schedule), Guard{}, ""});
    if (artifact)
      kernels.push_back(std::move(*artifact));
    return artifact.takeError();
  };
  if (llvm::Error error = add(problem.standard))
    return error;
  for (const std::string &text : schedules) {
    auto schedule = parseSchedule(text, problem.op);
    if (!schedule)
      return schedule.takeError();
    if (llvm::Error error = add(std::move(*schedule)))
      return error;
  }
  uint64_t read = 0, written = 0;
  for (size_t i = 0; i < problem.op.operands.size(); ++i)
    if (problem.op.isWhole(problem.op.operands[i]))
      (problem.op.operands[i].written ? written : read) += s.buffers->plan().arrays()[i].bytes;
  auto found = decide(*s.race, *s.buffers, kernels, read, written, limits, s.failure);
  if (!found)
    return llvm::createStringError(s.failure.message);
  return *found;
}

} // namespace normforge::tune
