// A scalar expression that a spec writes, as a tree of calls: "x * sigmoid(1.702 * x)".
//
// Those who use a formula say what its calls mean: compiler/operator for kernels, compiler/oracle
// for the reference.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace normforge {

struct Formula {
  enum class Kind : uint8_t { Number, Operand, Scalar, Call };
  Kind kind = Kind::Number;
  double number = 0;
  /// The index of an operand: 0 is x, the value so far, then those that the step names, in its
  /// order. Or the index of a scalar among those that the step names.
  size_t index = 0;
  /// "+", "-", "*", "/", "neg", "<", "<=", ">", ">=", "where", or a function's name.
  std::string call;
  std::vector<Formula> arguments;
};

} // namespace normforge
