#include "compiler/cli/CheckCase.h"

#include "compiler/cli/Command.h"
#include "compiler/cli/NamedArrays.h"
#include "compiler/oracle/Coordinates.h"
#include "normforge/openmp.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallVector.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

namespace normforge::cli {

namespace {

using Clock = std::chrono::steady_clock;

/// Timing ends after this long: a check of hundreds of cases is to take seconds.
constexpr std::chrono::milliseconds timeBudget(50);
constexpr size_t leastRounds = 3, mostRounds = 101;
/// Arguments, inputs, expected values in f64, and oneDNN's copies, in multiples of the arguments.
constexpr double copiesOfArguments = 6;

double microseconds(Clock::duration time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

double median(std::vector<double> &values) {
  auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// The kernel and oneDNN by turns, so that both see the machine in the same state.
bool timeBoth(KernelCall &call, const nf_executor &executor, oracle::OneDnn *oneDnn,
              CaseResult &result, Failure &failure) {
  std::vector<double> ours, theirs;
  const Clock::time_point end = Clock::now() + timeBudget;
  while (ours.size() < leastRounds || (ours.size() < mostRounds && Clock::now() < end)) {
    Clock::time_point start = Clock::now();
    if (!call.run(executor, failure))
      return false;
    ours.push_back(microseconds(Clock::now() - start));
    if (!oneDnn)
      continue;
    start = Clock::now();
    oneDnn->run();
    theirs.push_back(microseconds(Clock::now() - start));
  }
  result.timeMicroseconds = median(ours);
  if (oneDnn)
    result.oneDnnMicroseconds = median(theirs);
  return true;
}

void takeNotes(const std::string &notes, std::vector<std::string> &all) {
  llvm::SmallVector<llvm::StringRef> parts;
  llvm::StringRef(notes).split(parts, "; ", -1, /*KeepEmpty=*/false);
  for (llvm::StringRef part : parts)
    if (!llvm::is_contained(all, part.str()))
      all.push_back(part.str());
}

/// Where the values of a group, or their squares, sum to more than f32 holds, and a kernel computes
/// in it.
std::optional<std::string> noteOverflow(const CheckCase &check, const oracle::Arrays &inputs) {
  const Spec &spec = check.spec;
  if (spec.accumulate != DType::F32 ||
      (check.phase != Phase::Inference && check.phase != Phase::Training) ||
      spec.takesMovingStatistics(check.phase))
    return std::nullopt;
  const oracle::Arrays statistics =
      oracle::batchStatistics(spec, check.sizes, inputs, check.scalars);
  const HostArray &variance = statistics.at("batch_variance");
  const auto mean = statistics.find("batch_mean");
  const auto n = static_cast<double>(oracle::Coordinates(spec, check.sizes).groupSize());
  constexpr auto most = static_cast<double>(std::numeric_limits<float>::max());
  int64_t overflows = 0, squares = 0;
  for (int64_t i = 0; i < variance.count(); ++i) {
    overflows += mean != statistics.end() && std::abs(mean->second.get(i)) * n > most;
    squares += variance.get(i) * n > most;
  }
  if (overflows > 0)
    return fmt::format("the values of {} of {} groups sum to more than f32 holds, their mean is "
                       "infinite, and y NaN: accumulate: f64 computes in f64",
                       overflows, variance.count());
  if (squares == 0)
    return std::nullopt;
  return fmt::format(
      "the squares of {} of {} groups sum to more than f32 holds, and their variance "
      "is infinite: accumulate: f64 computes in f64",
      squares, variance.count());
}

Compared compareWith(const HostArray &actual, const HostArray &expected,
                     oracle::Tolerance tolerance) {
  return {oracle::compare(actual, expected, tolerance), std::move(tolerance)};
}

/// A file that is to hold the output that is the operator's operand `operand`.
llvm::Expected<Compared> compareGiven(const Operator &op, const std::string &path,
                                      const HostArray &expected, const oracle::Tolerance &tolerance,
                                      size_t operand) {
  auto given = readArray(op.operands[operand], path);
  if (!given)
    return given.takeError();
  if (given->count() != expected.count())
    return located(llvm::createStringError(
        fmt::format("{}: error: argument {} takes shape {}, found {}", path,
                    op.operands[operand].name, describe(expected.shape), describe(given->shape))));
  HostArray actual = expected;
  actual.dtype = given->dtype;
  actual.bytes = given->bytes;
  return compareWith(actual, expected, tolerance);
}

} // namespace

bool OutputResult::agrees() const {
  return reference.comparison.agrees() && (!oneDnn || oneDnn->comparison.agrees()) &&
         (!transposed || transposed->comparison.agrees());
}

bool CaseResult::agrees() const {
  return llvm::all_of(outputs, [](const OutputResult &output) { return output.agrees(); });
}

const OutputResult &CaseResult::worstByReference() const {
  return *std::max_element(outputs.begin(), outputs.end(), [](const auto &a, const auto &b) {
    return a.reference.comparison.largestExcess < b.reference.comparison.largestExcess;
  });
}

const OutputResult *CaseResult::worstByOneDnn() const {
  const OutputResult *worst = nullptr;
  auto excess = [](const OutputResult &output) {
    return std::max(output.oneDnn ? output.oneDnn->comparison.largestExcess : -1,
                    output.transposed ? output.transposed->comparison.largestExcess : -1);
  };
  for (const OutputResult &output : outputs)
    if ((output.oneDnn || output.transposed) && (!worst || excess(output) > excess(*worst)))
      worst = &output;
  return worst;
}

llvm::Expected<CaseResult> runCase(Session &session, const CheckCase &check,
                                   const CheckSettings &settings) {
  CaseResult result;
  result.targetCpu = session.target().cpu;
  const Spec &spec = check.spec;

  // From the spec in hand to a kernel that can be called.
  const Clock::time_point start = Clock::now();
  const Operator op = makeOperator(spec, check.phase);
  auto artifact = compileOperator(session, op, settings.schedules(check));
  if (!artifact)
    return artifact.takeError();
  Failure failure;
  auto kernel = Kernel::load(std::move(*artifact), {}, failure);
  result.compileMilliseconds = microseconds(Clock::now() - start) / 1000;

  std::unique_ptr<KernelCall> call;
  std::vector<nf_scalar> scalars;
  if (kernel) {
    std::vector<int64_t> sizes;
    for (const std::string &name : kernel->artifact().sizes)
      sizes.push_back(check.sizes.at(name));
    for (const Scalar &scalar : kernel->artifact().scalars)
      scalars.push_back(check.scalars.at(scalar.name));
    call = KernelCall::make(kernel, sizes, failure);
  }
  if (!call)
    return badInput(fmt::format("{}: {}", check.path, failure.message));
  const double bytes = copiesOfArguments * static_cast<double>(call->bytes());
  if (const auto memory = static_cast<double>(physicalMemory()); bytes > memory)
    return badInput(fmt::format("{}: a check at these sizes takes some {} of memory; this machine "
                                "has {}",
                                check.path, describeBytes(bytes), describeBytes(memory)));
  const Artifact &loaded = kernel->artifact();
  result.schedule = loaded.variants[call->plan().variant()].schedule;

  oracle::Arrays inputs = oracle::drawInputs(spec, check.phase, check.sizes, settings.seed,
                                             settings.data, check.scalars);
  if (check.own)
    for (const auto &[name, array] : *check.own)
      inputs.at(name).bytes = array.bytes; // whose shape has perhaps more axes of size 1
  result.notes = spec.notes;
  if (settings.gpu)
    result.notes.push_back(fmt::format("launched on {}", settings.gpu->device()->name()));
  else if (session.target().device)
    result.notes.push_back("emulated by this machine, whose times they are");
  if (const std::string_view source = recordsOf(loaded.variants[call->plan().variant()].reason);
      !source.empty())
    result.notes.push_back(fmt::format("schedule from {}", source));
  if (auto overflow = noteOverflow(check, inputs))
    result.notes.push_back(std::move(*overflow));
  call->use(settings.gpu);
  call->allocate();
  for (const auto &[name, array] : inputs)
    call->set(name, array.bytes);
  call->setScalars(std::move(scalars));
  const nf_executor executor = nf_openmp_executor(settings.threads);
  if (!call->run(executor, failure))
    return badInput(fmt::format("{}: {}", check.path, failure.message));

  std::string whyNot;
  auto oneDnn = oracle::OneDnn::create(spec, check.phase, check.sizes, inputs, check.scalars,
                                       settings.threads, whyNot);
  oracle::Arrays theirs, transposed;
  if (oneDnn) {
    oneDnn->run();
    theirs = oneDnn->outputs();
    result.oneDnnImplementation = oneDnn->implementation();
    takeNotes(oneDnn->notes(), result.oneDnnNotes);
  } else {
    result.oneDnnNotes.push_back(whyNot);
  }
  if (spec.mode == Mode::Sample || spec.mode == Mode::Instance || spec.mode == Mode::Group) {
    auto other = oracle::OneDnn::createTransposed(spec, check.phase, check.sizes, inputs,
                                                  check.scalars, settings.threads, whyNot);
    if (other) {
      other->run();
      transposed = other->outputs();
      takeNotes("transposed problem: " + other->notes(), result.oneDnnNotes);
    } else if (!llvm::is_contained(result.oneDnnNotes, whyNot)) {
      result.oneDnnNotes.push_back("transposed problem: " + whyNot);
    }
  }
  if (theirs.empty() && transposed.empty())
    result.oneDnnNotes.push_back("the f64 reference stands alone");

  const oracle::Arrays expected =
      oracle::reference(spec, check.phase, check.sizes, inputs, check.scalars);
  const auto tolerances = oracle::tolerances(spec, check.phase, check.sizes, inputs, check.scalars);
  std::map<std::string, oracle::Tolerance> oneDnnTolerances;
  if (!theirs.empty() || !transposed.empty())
    oneDnnTolerances =
        oracle::oneDnnTolerances(spec, check.phase, check.sizes, inputs, check.scalars);
  for (size_t i = 0; i < loaded.arguments.size(); ++i) {
    if (!loaded.arguments[i].written)
      continue;
    const std::string &name = loaded.arguments[i].name;
    const HostArray actual = oracle::outputOf(*call, i);
    OutputResult output;
    output.name = name;
    output.reference = compareWith(actual, expected.at(name), tolerances.at(name));
    auto against = [&](const oracle::Arrays &arrays) -> std::optional<Compared> {
      const auto found = arrays.find(name);
      if (found == arrays.end())
        return std::nullopt;
      const oracle::Tolerance &allowed = oneDnnTolerances.at(name);
      Compared compared = compareWith(actual, found->second, allowed);
      if (compared.comparison.agrees() || !output.reference.comparison.agrees())
        return compared;
      // One of the two is wrong, and the reference says which.
      const Compared own = compareWith(found->second, expected.at(name), allowed);
      if (own.comparison.agrees())
        return compared;
      takeNotes(
          fmt::format("{}: oneDNN errs by {:.1e} where {:.1e} is allowed, and is not compared",
                      name, own.comparison.worstError, own.comparison.allowed),
          result.oneDnnNotes);
      return std::nullopt;
    };
    output.oneDnn = against(theirs);
    output.transposed = against(transposed);
    result.outputs.push_back(std::move(output));
    if (const auto given = check.results.find(name); given != check.results.end()) {
      auto own = compareGiven(op, given->second, expected.at(name), tolerances.at(name), i);
      if (!own)
        return own.takeError();
      result.notes.push_back(fmt::format("{}: {} is off by {:.1e} where {:.1e} is allowed",
                                         given->second, name, own->comparison.worstError,
                                         own->comparison.allowed));
      result.outputs.push_back(
          {fmt::format("{} of {}", name, given->second), std::move(*own), {}, {}});
    }
  }

  if (!timeBoth(*call, executor, oneDnn.get(), result, failure))
    return internalError(
        llvm::createStringError("internal error in a repeated call: " + failure.message));
  return result;
}

} // namespace normforge::cli
