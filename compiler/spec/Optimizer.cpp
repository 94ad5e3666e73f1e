#include "compiler/spec/Optimizer.h"

#include <fmt/format.h>

namespace normforge {

llvm::StringRef toString(WeightConstraint constraint) {
  switch (constraint) {
  case WeightConstraint::None:
    return "none";
  case WeightConstraint::MaxNorm:
    return "max_norm";
  case WeightConstraint::UnitNorm:
    return "unit_norm";
  case WeightConstraint::MinMaxNorm:
    return "min_max_norm";
  case WeightConstraint::NonNegative:
    return "non_neg";
  }
  return "";
}

std::string textOf(const Optimizer &o) {
  const std::string rate =
      o.learningRate.isArgument ? std::string("argument") : fmt::format("{}", o.learningRate.value);
  std::string text;
  switch (o.kind) {
  case Optimizer::Kind::Sgd:
    text = fmt::format("sgd momentum={}{}{}", o.momentum, o.nesterov ? " nesterov" : "",
                       o.momentum > 0 && o.ratesMomentum ? " of rates" : "");
    break;
  case Optimizer::Kind::Rmsprop:
    text = fmt::format("rmsprop rho={} epsilon={}{} momentum={}{}{}", o.rho, o.epsilon,
                       o.epsilonInRoot ? " in root" : "", o.momentum,
                       o.momentum > 0 && o.ratesMomentum ? " of rates" : "",
                       o.centered ? " centered" : "");
    break;
  case Optimizer::Kind::Adam:
    text = fmt::format("adam beta={},{} epsilon={}{}{}", o.beta1, o.beta2, o.epsilon,
                       o.correctsRoot ? " beside the corrected root" : "",
                       o.amsgrad ? " amsgrad" : "");
    break;
  }
  return fmt::format("{} rate={} decay={} weight_decay={}{}", text, rate, o.decay, o.weightDecay,
                     o.weightDecay > 0 && o.decouplesDecay ? " apart" : "");
}

std::string textOf(const Learned &l) {
  std::string text = fmt::format("l1={} l2={} factors={},{}", l.l1, l.l2, l.rateFactor, l.l2Factor);
  if (l.constraint != WeightConstraint::None)
    text += fmt::format(" {}", toString(l.constraint).str());
  if (l.constraint == WeightConstraint::MaxNorm)
    text += fmt::format("={}", l.most);
  else if (l.constraint == WeightConstraint::MinMaxNorm)
    text += fmt::format("={},{},{}", l.least, l.most, l.rate);
  if (l.takesNorm() && l.normsElements)
    text += " of elements";
  return text;
}

} // namespace normforge
