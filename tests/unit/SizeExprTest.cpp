// Size expressions: folding, evaluation, text, and nodes that are none.
#include "runtime/artifact/SizeExpr.h"

#include <doctest/doctest.h>

#include <random>

using namespace normforge;

namespace {

const SizeExpr N = SizeExpr::size(0);

} // namespace

TEST_CASE("size expressions fold constants") {
  SizeExpr M = SizeExpr::size(1);
  std::vector<std::string> names = {"N", "M"};
  CHECK((SizeExpr(2) + 3) == SizeExpr(5));
  CHECK((N + 0) == N);
  CHECK((SizeExpr(0) + N) == N);
  CHECK((N * 1) == N);
  CHECK((N * 0) == SizeExpr(0));
  CHECK(ceilDivide(N, 1) == N);
  CHECK(ceilDivide(SizeExpr(7), 2) == SizeExpr(4));
  CHECK((N * 4 * 8) == (N * 32));
  CHECK((SizeExpr(4) * N) == (N * 4));
  CHECK((N * 4 * M).text(names) == "N * M * 4");
  CHECK((N + 1 + 2).text(names) == "N + 3");
  CHECK(((N + 1) * 3136).text(names) == "(N + 1) * 3136");
  CHECK((N * 3136 + 16).text(names) == "N * 3136 + 16");
  CHECK(ceilDivide(N + M, M * 2).text(names) == "ceil((N + M) / (M * 2))");
  CHECK((ceilDivide(N, 16) * 64).text({}) == "ceil(size0 / 16) * 64");
  CHECK(SizeExpr(7).constant() == 7);
  CHECK(!N.constant());
}

TEST_CASE("size expressions evaluate or overflow") {
  auto at = [](const SizeExpr &expr, std::initializer_list<int64_t> sizes) {
    return expr.evaluate({sizes.begin(), sizes.size()});
  };
  SizeExpr M = SizeExpr::size(1);
  CHECK(at(ceilDivide(N, 16), {33}) == 3);
  CHECK(at(ceilDivide(N, 16), {INT64_MAX}) == INT64_MAX / 16 + 1);
  CHECK(at(N * M + 5, {6, 7}) == 47);
  CHECK(!at(N * 2, {INT64_MAX}));
  CHECK(!at(N + 1, {INT64_MAX}));
  CHECK(!at(N * M, {INT64_MAX / 2, 3}));
  CHECK(!at(ceilDivide(N, M), {5, 0}));
  CHECK(!at(ceilDivide(SizeExpr(5), 0), {}));
  CHECK(!at(M, {5}));
  CHECK(!at(N, {-1}));
  CHECK(!at(SizeExpr(INT64_MAX) * 2, {})); // folds to nothing that is wrong

  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) { // folding changes no value
    int64_t n = random() % 9 + 1, m = random() % 9 + 1;
    SizeExpr expr = N;
    int64_t value = n;
    for (int step = 0; step < 6; ++step) {
      bool useConstant = random() % 2;
      int64_t c = random() % 5 + 1;
      SizeExpr b = useConstant ? SizeExpr(c) : M;
      int64_t v = useConstant ? c : m;
      switch (random() % 3) {
      case 0:
        expr = random() % 2 ? expr + b : b + expr;
        value += v;
        break;
      case 1:
        expr = random() % 2 ? expr * b : b * expr;
        value *= v;
        break;
      default:
        expr = ceilDivide(expr, b);
        value = (value + v - 1) / v;
      }
    }
    REQUIRE(at(expr, {n, m}) == value);
    std::span<const SizeExpr::Node> nodes = expr.nodes();
    REQUIRE(SizeExpr::fromNodes({nodes.begin(), nodes.end()}, 2) == expr);
  }
}

TEST_CASE("malformed nodes are refused") {
  using Op = SizeExpr::Op;
  auto ok = [](std::vector<SizeExpr::Node> nodes) {
    return SizeExpr::fromNodes(std::move(nodes), 1).has_value();
  };
  CHECK(ok({{Op::Size, 0}}));
  CHECK(ok({{Op::Size, 0}, {Op::Constant, 2}, {Op::CeilDivide, 0}}));
  CHECK(!ok({}));
  CHECK(!ok({{Op::Size, 1}}));
  CHECK(!ok({{Op::Size, -1}}));
  CHECK(!ok({{Op::Constant, -1}}));
  CHECK(!ok({{Op::Add, 0}}));
  CHECK(!ok({{Op::Size, 0}, {Op::Size, 0}}));
  CHECK(!ok({{Op::Size, 0}, {Op::Multiply, 0}}));
  CHECK(!ok({{Op::Size, 0}, {Op::Size, 0}, {Op::Add, 7}}));
  CHECK(!ok({{Op::Size, 0}, {Op::Constant, 0}, {Op::CeilDivide, 0}}));
  CHECK(!ok({{static_cast<Op>(9), 0}}));
}
