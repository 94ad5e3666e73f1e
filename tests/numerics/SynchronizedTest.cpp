// A batch of several ranks: partial statistics and sums of gradients are merged, and what the ranks
// compute is what one rank with the whole batch does.
#include "runtime/kernel/Exchange.h"
#include "tests/numerics/KernelCase.h"

#include <cmath>
#include <cstring>
#include <doctest/doctest.h>
#include <fmt/format.h>

using namespace normforge;
using namespace normforge::test;

namespace {

constexpr int64_t kSamples = 10;
constexpr int64_t kEnds[] = {3, 4, 8, 10}; ///< of the ranks' samples

/// A rank's samples of the operands that begin with the samples, and all of the others.
oracle::Arrays partOf(const Operator &op, const oracle::Arrays &all, int64_t first, int64_t last) {
  oracle::Arrays part;
  for (const Operand &operand : op.operands) {
    const auto found = all.find(operand.name);
    if (operand.written || found == all.end())
      continue;
    const bool isCut = !operand.shape.empty() && operand.shape[0].constant() == std::nullopt;
    part.emplace(operand.name, isCut ? samplesOf(found->second, first, last) : found->second);
  }
  return part;
}

/// The arrays that the ranks exchange, and their merge by the runtime.
class Exchanged {
public:
  explicit Exchanged(const Operator &op) {
    for (const Operand &operand : op.operands)
      if (operand.role == Role::PartialMoments || operand.role == Role::PartialSum) {
        names_.push_back(operand.name);
        exchange_.role = operand.role;
        exchange_.dtype = operand.dtype;
        exchange_.elements = static_cast<uint64_t>(*operand.shape[0].constant());
      }
    exchange_.arrays = names_.size();
  }
  void add(const oracle::Arrays &outputs) {
    ++ranks_;
    for (const std::string &name : names_) {
      const HostArray &array = outputs.at(name);
      shape_ = array.shape;
      bytes_.insert(bytes_.end(), array.bytes.begin(), array.bytes.end());
    }
  }
  oracle::Arrays merged() const {
    std::vector<std::byte> all(exchange_.arrays * exchange_.bytes());
    mergePartials(exchange_, bytes_.data(), ranks_, all.data());
    oracle::Arrays arrays;
    for (size_t i = 0; i < names_.size(); ++i) {
      HostArray array(exchange_.dtype, shape_);
      std::memcpy(array.bytes.data(), all.data() + i * exchange_.bytes(), array.bytes.size());
      arrays.emplace(names_[i], std::move(array));
    }
    return arrays;
  }

private:
  Exchange exchange_;
  std::vector<std::string> names_;
  std::vector<int64_t> shape_;
  std::vector<std::byte> bytes_;
  size_t ranks_ = 0;
};

/// The ranks' outputs as those of one: samples one after the other, dgamma and dbeta added up.
void append(oracle::Arrays &all, const Operator &op, const oracle::Arrays &part) {
  for (const Operand &operand : op.operands) {
    if (!operand.written)
      continue;
    const HostArray &own = part.at(operand.name);
    auto [found, isNew] = all.emplace(operand.name, own);
    if (isNew)
      continue;
    HostArray &whole = found->second;
    if (!operand.shape[0].constant()) {
      whole.shape[0] += own.shape[0];
      whole.bytes.insert(whole.bytes.end(), own.bytes.begin(), own.bytes.end());
    } else if (operand.role == Role::Gradient) {
      for (int64_t i = 0; i < own.count(); ++i)
        whole.set(i, whole.get(i) + own.get(i));
    } else {
      CHECK(whole.bytes == own.bytes); // the same bits on every rank
    }
  }
}

struct Ranks {
  const Spec &spec;
  Session &session;
  int threads = 2;

  /// `phase` on every rank, after `exchange`.
  oracle::Arrays run(Phase exchange, Phase phase, const oracle::Arrays &inputs) const {
    const TestKernel before(spec, exchange, session), after(spec, phase, session);
    const Operator ofBefore = makeOperator(spec, exchange), op = makeOperator(spec, phase);
    Exchanged exchanged(ofBefore);
    oracle::Arrays all;
    int64_t first = 0;
    for (int64_t last : kEnds) {
      const oracle::Arrays outputs =
          before.run({{"N", last - first}}, partOf(ofBefore, inputs, first, last));
      exchanged.add(outputs);
      oracle::Arrays own = outputs; // dgamma and dbeta
      for (const Operand &operand : ofBefore.operands)
        if (operand.role != Role::Gradient)
          own.erase(operand.name);
      for (const auto &[name, array] : own) {
        auto [found, isNew] = all.emplace(name, array);
        for (int64_t i = 0; !isNew && i < array.count(); ++i)
          found->second.set(i, found->second.get(i) + array.get(i));
      }
      first = last;
    }
    oracle::Arrays given = inputs;
    given.merge(exchanged.merged());
    first = 0;
    for (int64_t last : kEnds) {
      RunOptions options; // states in place, and by several threads
      options.inPlace = 0;
      options.threads = threads;
      append(all, op,
             after.run({{"N", last - first}}, partOf(op, given, first, last), {}, options));
      first = last;
    }
    return all;
  }
};

} // namespace

TEST_CASE("ranks that share a batch compute what one with all of it does") {
  for (const char *input :
       {"{shape: [N, 7, 5, 3], layout: nchw}", "{shape: [N, 5, 3, 16], layout: nhwc}",
        "{shape: [N, 33], layout: nc}", "{shape: [N, 7, 5, 3], layout: nchw, dtype: bf16}",
        "{shape: [N, 7, 5, 3], layout: nchw, dtype: f64}", "{shape: [N, 7, 5, 3], layout: nChw4c}"})
    for (const char *keys :
         {"semantics: pytorch\nfuse: [add, relu]\n", "semantics: keras-3\nmask: true\n",
          "semantics: tf-keras\nrenorm: {r_max: 2, d_max: 1}\nadjustment: true\n",
          "semantics: keras-1.2\nmode: 2\nprologue: [bias, silu]\n",
          "accumulate: f64\nparameter_dtype: f64\n"})
      for (oracle::Data data : {oracle::Data::Normal, oracle::Data::Offset}) {
        Session *session = sessionOrSkip("native");
        if (!session)
          return;
        const std::string text =
            fmt::format("input: {}\naxis: c\nphases: [training, backward]\n{}", input, keys);
        INFO(repeatCommand("ranks that share*"), "\n", text, oracle::toString(data));
        const Spec one = specOf(text), spec = specOf(text + "synchronized: true\n");
        CHECK(spec.phases == std::vector<Phase>{Phase::Training, Phase::Backward, Phase::Moments,
                                                Phase::GradientSums});
        const Ranks ranks{spec, *session};
        const oracle::Sizes sizes{{"N", kSamples}};
        const oracle::Arrays inputs =
            oracle::drawInputs(one, Phase::Training, sizes, testSeed(), data);
        oracle::Arrays made = ranks.run(Phase::Moments, Phase::Training, inputs);
        const oracle::Arrays shared = made;
        for (const char *name : {"batch_residual", "batch_count"})
          made.erase(name);
        CHECK(wrongOutputs(one, Phase::Training, sizes, inputs, made) == "");

        oracle::Arrays before = oracle::drawInputs(one, Phase::Backward, sizes, testSeed(), data);
        for (const auto &[name, array] : inputs)
          before.insert_or_assign(name, array);
        for (const auto &[name, array] : shared) // as saved
          if (name.starts_with("batch_") || name.starts_with("renorm_") || name == "relu_mask")
            before.insert_or_assign(name, array);
        const oracle::Arrays gradients = ranks.run(Phase::GradientSums, Phase::Backward, before);
        CHECK(wrongOutputs(one, Phase::Backward, sizes, before, gradients) == "");
        // The same bits whenever the samples are split in the same way, whatever the threads.
        const Ranks alone{spec, *session, /*threads=*/0};
        const oracle::Arrays again = alone.run(Phase::GradientSums, Phase::Backward, before),
                             forward = alone.run(Phase::Moments, Phase::Training, inputs);
        for (const auto &[name, array] : gradients)
          CHECK(again.at(name).bytes == array.bytes);
        for (const auto &[name, array] : shared)
          CHECK(forward.at(name).bytes == array.bytes);
      }
}

TEST_CASE("a mean far from 0 costs ranks nothing, whatever the dtype of parameters") {
  Session *session = sessionOrSkip("native");
  if (!session)
    return;
  for (const char *dtype : {"f32", "f64"}) {
    const std::string text =
        fmt::format("input: {{shape: [N, 33], layout: nc}}\nsemantics: pytorch\naxis: c\n"
                    "phases: [training]\nparameter_dtype: {}\n",
                    dtype);
    const Spec one = specOf(text), spec = specOf(text + "synchronized: true\n");
    INFO(dtype);
    oracle::Arrays inputs = oracle::drawInputs(one, Phase::Training, {{"N", kSamples}}, testSeed());
    HostArray &x = inputs.at("x");
    std::vector<double> mean(33), squares(33);
    for (int64_t i = 0; i < x.count(); ++i) {
      x.set(i, x.get(i) + 1e4);
      mean[static_cast<size_t>(i % 33)] += x.get(i) / kSamples;
    }
    for (int64_t i = 0; i < x.count(); ++i)
      squares[static_cast<size_t>(i % 33)] +=
          std::pow(x.get(i) - mean[static_cast<size_t>(i % 33)], 2);
    const oracle::Arrays made = Ranks{spec, *session}.run(Phase::Moments, Phase::Training, inputs);
    double largest = 0;
    for (int64_t i = 0; i < x.count(); ++i) {
      const auto c = static_cast<size_t>(i % 33);
      const double xhat = (x.get(i) - mean[c]) / std::sqrt(squares[c] / kSamples + 1e-5);
      const auto at = static_cast<int64_t>(c);
      const double y = xhat * inputs.at("gamma").get(at) + inputs.at("beta").get(at);
      largest = std::max(largest, std::abs(made.at("y").get(i) - y));
    }
    CHECK(largest < 2e-5);
  }
}

TEST_CASE("moments and sums of ranks are merged by hand") {
  // 1 and 3, then 8, of two ranks, and one that has none: mean 4, squares 26.
  Exchange exchange;
  exchange.arrays = 4;
  exchange.role = Role::PartialMoments;
  exchange.elements = 1;
  std::vector<float> ranks = {2, 2, 0, 2, 1, 8, 0, 0, 0, NAN, NAN, 0};
  mergePartials(exchange, ranks.data(), 3, ranks.data());
  CHECK(ranks[0] == 3);
  CHECK(ranks[1] == 4);
  CHECK(ranks[2] == 0);
  CHECK(ranks[3] == 26);
  // 16777216 + {0, 0, 1} and 16777216 + {4, 8}, whose means of f32 leave something out: of all five
  // the mean is 16777218.6 and squares are 47.2.
  ranks = {3, 16777216, 1, 1, 2, 16777222, 0, 8};
  mergePartials(exchange, ranks.data(), 2, ranks.data() + 4);
  CHECK(ranks[4] == 5);
  CHECK(ranks[5] == 16777218);
  CHECK(ranks[6] == doctest::Approx(3).epsilon(1e-6));
  CHECK(ranks[7] == doctest::Approx(49).epsilon(1e-6)); // 4 + 4 + 1 + 4 + 36
  exchange.dtype = DType::F64;                          // of nothing
  std::vector<double> none = {0, 5, 0, 0, 0, INFINITY, NAN, 0};
  mergePartials(exchange, none.data(), 2, none.data());
  for (size_t i = 0; i < 4; ++i)
    CHECK(none[i] == 0);
  none = {1, INFINITY, NAN, NAN, 1, 0, 0, 0};
  mergePartials(exchange, none.data(), 2, none.data());
  CHECK(none[1] == INFINITY);
  exchange.arrays = 2;
  exchange.role = Role::PartialSum;
  exchange.dtype = DType::F64;
  std::vector<double> sums = {1, 2, 1e16, 4, -1e16, 8};
  mergePartials(exchange, sums.data(), 3, sums.data());
  CHECK(sums[0] == 0); // in the ranks' order: 1 + 1e16 is 1e16
  CHECK(sums[1] == 14);
}
