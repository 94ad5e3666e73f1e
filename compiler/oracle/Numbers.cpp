// Values for the numbers that a spec leaves to the call.
#include "compiler/oracle/Oracle.h"

namespace normforge::oracle {

Numbers usualNumbers(const Spec &spec, Phase phase) {
  Numbers numbers;
  for (const std::string &name : spec.scalarNames(phase))
    numbers[name] = name == "epsilon"                             ? 1e-3
                    : name == "count" || name == "step"           ? 4
                    : name == "learning_rate"                     ? 0.01
                    : spec.momentum.weighs == MomentumWeighs::Old ? 0.9
                                                                  : 0.1;
  return numbers;
}

} // namespace normforge::oracle
