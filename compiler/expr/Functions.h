// The scalar functions that specs name: activations and the like.
//
// A function is one row of one table: how it is written, and its expression. What a kernel
// computes, the formula that `explain` prints, its cost and how far it may be off all come from the
// row. (The f64 reference has formulas of its own.)
#pragma once

#include "compiler/expr/Expr.h"

#include <string_view>

namespace normforge {

struct Function {
  std::string_view name;
  std::string_view example; ///< how it is written: "leaky_relu: 0.01"
  unsigned parameters = 0;  ///< numbers after its name: none, one, or a range of two
  using Body = Term (*)(Term x, std::span<const double> parameters);
  Body body;
  /// `seed` times the derivative at x, where the chain rule would cancel, overflow, or take another
  /// side of a kink than frameworks do. NaN passes the seed on. nullptr: the chain rule.
  using Gradient = Term (*)(Term x, Term seed, std::span<const double> parameters);
  Gradient gradient = nullptr;
  /// The condition that alone decides the gradient, where one does, and the gradient made of it: a
  /// bit that training may keep for the backward phase.
  Body decides = nullptr;
  using GradientOfBit = Term (*)(Term bit, Term seed, std::span<const double> parameters);
  GradientOfBit gradientOfBit = nullptr;

  /// The function of x, whose gradient its Exprs then knows.
  Term operator()(Term x, std::span<const double> parameters) const;
  /// The same, with the gradient that `bit` decides.
  Term operator()(Term x, std::span<const double> parameters, Term bit) const;
};

/// All of them, in the order in which messages name them.
std::span<const Function> functions();
/// nullptr: there is none of this name.
const Function *findFunction(std::string_view name);

} // namespace normforge
