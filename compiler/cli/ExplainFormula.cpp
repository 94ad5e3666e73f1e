#include "compiler/cli/Explain.h"

#include "compiler/cli/Terminal.h"

namespace normforge::cli {

namespace {

std::string numberInWords(const Number &number, const char *argument) {
  return number.isArgument ? fmt::format("the number {}", argument)
                           : fmt::format("{}", number.value);
}

std::string_view rootInWords(const Spec &spec) {
  return spec.epsilonPosition == EpsilonPosition::Outside ? "sqrt(variance)"
                                                          : "sqrt(variance + epsilon)";
}

/// How the second moving vector is made of a sum of squares over n values.
void printStored(const Spec &spec, std::string_view squares, std::string_view n) {
  std::string divisor(n);
  if (spec.runningVariance == RunningVariance::Bessel)
    divisor = fmt::format("({} - 1)", n);
  else if (spec.runningVariance == RunningVariance::Keras2)
    divisor = fmt::format("({} - 1 - epsilon)", n);
  printFolded("  the variance in {}: {} / {}{}\n", spec.movingSpreadName(), squares, divisor,
              spec.movingSpread == MovingSpread::Deviation
                  ? fmt::format(", as {}", rootInWords(spec))
                  : "");
}

} // namespace

void printFormula(const Spec &whole, Phase phase) {
  const Spec spec = ofPhase(whole, phase);
  if (isUpdate(phase)) {
    printFolded("\nOptimizer, by {}\n  {}\n", toString(spec.semantics), textOf(*spec.optimizer));
    if (spec.learnsGamma())
      printFolded("  gamma  {}\n", textOf(spec.gammaLearned));
    if (spec.learnsBeta())
      printFolded("  beta   {}\n", textOf(spec.betaLearned));
  }
  if (phase == Phase::Update)
    return;
  if (spec.hasRange()) {
    if (phase == Phase::Population)
      printFolded(
          "\nFormula\n  minimum' = the least of minimum and {0}, maximum' = the greatest of "
          "maximum and {0}\n",
          spec.prologue.empty() ? "x" : "what the prologue makes of x");
    else
      printFolded(
          "\nFormula\n  y = (x - minimum) / (maximum - minimum){}{}, the divisor 1 where it "
          "is not above 0\n{}",
          spec.scale ? " * gamma" : "", spec.center ? " + beta" : "",
          spec.prologue.empty() ? "" : "  x stands for what the prologue makes of it\n");
    return;
  }
  if (phase == Phase::Moments) {
    printFolded(
        "\nFormula\n  count, mean as rounded, sums of what remains and of its squares, of these "
        "samples{}{}:\n  nf_plan_merge makes those of all ranks' of them\n",
        spec.prologue.empty() ? "" : ", of what the prologue makes of x",
        spec.mask ? ", weighed by mask" : "");
    return;
  }
  if (phase == Phase::Population) {
    printFolded("\nFormula (Chan, Golub, LeVeque 1983), in f64\n"
                "  count' = count + n, mean' = mean + (batch_mean - mean) * n / count',\n"
                "  m2' = m2 + batch_m2 + (batch_mean - mean)^2 * n * count / count'\n"
                "  of n values{}{}; moving_mean' = mean'\n",
                spec.prologue.empty() ? "" : " that the prologue makes of x",
                spec.mask ? ", weighed by mask, n their sum" : "");
    printStored(spec, "m2'", "count'");
    return;
  }
  const EpsilonPosition position = spec.epsilonPosition;
  const bool keepsDeviation = spec.movingSpread == MovingSpread::Deviation;
  const std::string root(rootInWords(spec));
  const std::string deviation =
      keepsDeviation && spec.takesMovingStatistics(phase) ? "moving_stddev" : root;
  const std::string denominator =
      position == EpsilonPosition::Inside ? deviation : fmt::format("({} + epsilon)", deviation);
  printFolded("\nFormula, by {}\n  y = {} / {}{}{}\n  epsilon {}\n", toString(spec.semantics),
              spec.hasMean() ? "(x - mean)" : "x", denominator, spec.scale ? " * gamma" : "",
              spec.center ? " + beta" : "", numberInWords(spec.epsilon, "epsilon"));
  if (!spec.prologue.empty())
    printFolded("  x stands for what the prologue makes of it\n");
  if (!spec.hasMean())
    printFolded("  variance is the mean of x * x\n");
  if (spec.takesBatchStatistics(phase)) {
    if (spec.renorm)
      printFolded("  then times r, plus d, before gamma and beta: t = max(renorm_stddev, "
                  "sqrt(epsilon)),\n  r = {} / t in [{}, {}], d = (mean - renorm_mean) / t in "
                  "[-{}, {}]\n",
                  root, spec.renorm->rMin, spec.renorm->rMax, spec.renorm->dMax, spec.renorm->dMax);
    if (spec.adjustment)
      printFolded("  then times adjust_scale, plus adjust_bias, before gamma and beta\n");
    if (spec.mask)
      printFolded("  mean and variance are weighed by mask, their divisor sum(mask) + 1e-7\n");
    if (spec.synchronized)
      printFolded("  statistics{} are of all ranks' samples: {}\n",
                  isBackward(phase) ? " and sums of gradients" : "",
                  phase == Phase::GradientSums
                      ? "dgamma and dbeta are of these samples"
                      : "nf_plan_merge has made what the partial arrays hold");
    if (spec.ghostBatch > 0)
      printFolded("  statistics are of ghost batches of {} samples, every (samples / {})-th; the "
                  "moving ones\n  take the means of theirs\n",
                  spec.ghostBatch, spec.ghostBatch);
  }
  if (spec.frozen != Frozen::Nothing)
    printFolded("  trainable: false keeps gamma and beta{} as they are\n",
                spec.frozen == Frozen::ParametersAndStatistics ? " and the moving statistics" : "");
  if (!spec.updatesMovingStatistics(phase))
    return;
  const Momentum &momentum = spec.momentum;
  if (momentum.cumulative)
    printFolded("  moving = (1 - 1/count) * moving + 1/count * batch, count a number\n");
  else {
    const std::string mean = numberInWords(momentum.mean, "momentum"),
                      variance = numberInWords(momentum.variance, "momentum");
    printFolded(
        "  moving = {}\n  momentum {}\n",
        momentum.weighs == MomentumWeighs::Old ? "momentum * moving + (1 - momentum) * batch"
                                               : "(1 - momentum) * moving + momentum * batch",
        mean == variance ? mean
                         : fmt::format("{} for the mean, {} for the variance", mean, variance));
  }
  printStored(spec, "sum of squares", "m");
  printFolded("  m elements are in a statistic\n");
}

} // namespace normforge::cli
