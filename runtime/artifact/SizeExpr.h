// Integer expressions over a kernel's named sizes.
//
// Task counts, workspace bytes, shapes and guards are such expressions: closed forms that the
// compiler lowers into code, the runtime evaluates at each plan and a file can be checked for.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace normforge {

/// A value in postfix form. All values are non-negative; division rounds up.
class SizeExpr {
public:
  enum class Op : uint8_t { Constant, Size, Add, Multiply, CeilDivide };
  struct Node {
    Op op;
    int64_t value; ///< Constant: the number. Size: the index of a named size. Otherwise 0.
    bool operator==(const Node &) const = default;
  };

  /// The constant 0.
  SizeExpr() : SizeExpr(0) {}
  /// A constant; `value` is at least 0.
  SizeExpr(int64_t value) : nodes_{{Op::Constant, value}} {}
  /// The named size with this index in the kernel's list of sizes.
  static SizeExpr size(uint32_t index);
  /// From nodes read from a file; empty unless they form one well-formed expression over at most
  /// `sizeCount` named sizes with no negative constant and no division by the constant 0.
  static std::optional<SizeExpr> fromNodes(std::vector<Node> nodes, size_t sizeCount);

  /// Sums, products and quotients fold constants and drop neutral elements.
  friend SizeExpr operator+(const SizeExpr &a, const SizeExpr &b);
  friend SizeExpr operator*(const SizeExpr &a, const SizeExpr &b);
  friend SizeExpr ceilDivide(const SizeExpr &a, const SizeExpr &b);

  /// The constant this is, if it is one.
  std::optional<int64_t> constant() const;
  /// The index of the named size that this is, if it is nothing else.
  std::optional<size_t> name() const;
  /// The value for these named sizes; empty when an intermediate result exceeds int64_t or a
  /// divisor is 0.
  std::optional<int64_t> evaluate(std::span<const int64_t> sizes) const;
  std::span<const Node> nodes() const { return nodes_; }
  /// Infix text with the names of the sizes, such as "N * 3136".
  std::string text(std::span<const std::string> sizeNames) const;
  bool operator==(const SizeExpr &) const = default;

private:
  std::vector<Node> nodes_;
};

} // namespace normforge
