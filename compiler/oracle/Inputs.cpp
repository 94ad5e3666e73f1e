// Names, shapes and drawn values of the kernels' arguments.

#include "compiler/operator/Operator.h"
#include "compiler/oracle/Coordinates.h"
#include "compiler/spec/Initialize.h"
#include "runtime/measure/Draw.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace normforge::oracle {

std::vector<int64_t> argumentShape(const Spec &spec, const std::string &name, const Sizes &sizes) {
  for (Phase phase : kPhases) {
    if (!spec.canHavePhase(phase))
      continue;
    const Operator op = makeOperator(spec, phase);
    std::vector<int64_t> values;
    for (const std::string &size : op.sizes)
      values.push_back(sizes.at(size));
    for (const Operand &operand : op.operands) {
      if (operand.name != name)
        continue;
      std::vector<int64_t> shape;
      for (const SizeExpr &size : operand.shape)
        shape.push_back(size.evaluate(values).value());
      return shape;
    }
  }
  throw std::out_of_range("no argument '" + name + "'");
}

static std::vector<std::string> names(const Spec &spec, Phase phase, bool written) {
  std::vector<std::string> names;
  for (const Operand &operand : makeOperator(spec, phase).operands)
    if (operand.written == written)
      names.push_back(operand.name);
  return names;
}
std::vector<std::string> inputNames(const Spec &spec, Phase phase) {
  return names(spec, phase, /*written=*/false);
}
std::vector<std::string> outputNames(const Spec &spec, Phase phase) {
  return names(spec, phase, /*written=*/true);
}

static constexpr std::pair<Data, std::string_view> dataNames[] = {
    {Data::Normal, "normal"},   {Data::Offset, "offset"},     {Data::Constant, "constant"},
    {Data::Outlier, "outlier"}, {Data::Denormal, "denormal"}, {Data::Large, "large"},
};

std::optional<Data> parseData(std::string_view text) {
  for (auto [data, name] : dataNames)
    if (name == text)
      return data;
  return std::nullopt;
}

std::string_view toString(Data data) {
  for (auto [candidate, name] : dataNames)
    if (candidate == data)
      return name;
  return "";
}

namespace {

constexpr Stream kGroups = streamOf("the groups' distributions"), kSpots = streamOf("outliers");

/// Mean and deviation that a statistics group is drawn with.
struct Distribution {
  double mean, deviation;
};

Distribution groupDistribution(const Draw &draw, Data data, DType dtype, int64_t group) {
  const double a = draw.uniform(kGroups, 2 * group);
  const double b = draw.uniform(kGroups, 2 * group + 1);
  switch (data) {
  case Data::Normal:
  case Data::Outlier:
    return {0.5 + 0.5 * (a - 0.5), 2 * (0.75 + 0.5 * b)};
  case Data::Offset:
    return {2e4 * (0.9 + 0.2 * a), 2 * (0.9 + 0.2 * b)};
  case Data::Constant:
    return {4 * (a - 0.5), 0};
  case Data::Denormal:
    return {0.5e-40, 1e-40};
  case Data::Large:
    return {0, dtype == DType::F16 ? 1e4 : 1e19};
  }
  return {0, 1};
}

} // namespace

Arrays drawInputs(const Spec &spec, Phase phase, const Sizes &sizes, uint64_t seed, Data data,
                  const Numbers &scalars) {
  const Coordinates at(ofPhase(spec, phase), sizes);
  const Draw draw(seed);
  std::vector<Distribution> distributions;
  for (int64_t g = 0; g < at.groups(); ++g)
    distributions.push_back(groupDistribution(draw, data, spec.dtype, g));

  /// Element `index` of an operand; of data and statistics, of statistics group `group`.
  auto value = [&](const Operand &operand, uint64_t index, size_t group) {
    const Stream stream = streamOf(operand.name);
    switch (operand.values) {
    case Values::Sample: {
      const Distribution &d = distributions[group];
      return d.mean + d.deviation * draw.normal(stream, index);
    }
    case Values::Any:
      break;
    case Values::Bit:
      return static_cast<double>(draw.bits(stream, index) & 1);
    case Values::Factor: {
      // A factor of either sign, never near 0, where nothing of x would be seen in y.
      const double magnitude = 0.5 + draw.uniform(stream, 2 * index);
      return draw.bits(stream, 2 * index + 1) % 4 == 0 ? -magnitude : magnitude;
    }
    case Values::Mean: {
      // Near the batch's statistics, but distinct from them.
      const Distribution &d = distributions[group];
      return d.mean + 0.25 * d.deviation * draw.normal(stream, index);
    }
    case Values::Variance: {
      const double deviation = distributions[group].deviation;
      return deviation * deviation * (0.75 + 0.5 * draw.uniform(stream, index));
    }
    case Values::Least:
    case Values::Greatest: {
      const Distribution &d = distributions[group];
      const double distance = d.deviation * (1 + draw.uniform(stream, index));
      return operand.values == Values::Least ? d.mean - distance : d.mean + distance;
    }
    case Values::Count: // of batches before this one, or of none
      return static_cast<double>(draw.bits(stream, index) % 1000);
    case Values::Fraction:
      return draw.uniform(stream, index) - 0.5;
    case Values::Ratio:
      return 0.5 + draw.uniform(stream, index);
    case Values::Weight: { // most of what is masked is 0 or 1
      const double weight = draw.uniform(stream, 2 * index);
      const uint64_t kind = draw.bits(stream, 2 * index + 1) % 4;
      return kind == 0 ? 0 : kind == 1 ? weight : 1;
    }
    case Values::Deviation:
      return distributions[group].deviation * (0.75 + 0.5 * draw.uniform(stream, index));
    }
    return draw.normal(stream, index);
  };

  Arrays inputs, saved;
  std::vector<Operand> operands = makeOperator(spec, phase).operands;
  std::erase_if(operands, [](const Operand &operand) { return operand.written; });
  // Saved statistics are made of the others, and what is exchanged of all.
  auto isPartial = [](const Operand &operand) {
    return operand.role == Role::PartialMoments || operand.role == Role::PartialSum;
  };
  auto turn = [&](const Operand &operand) {
    return operand.role == Role::Statistic ? 1 : isPartial(operand) ? 2 : 0;
  };
  std::ranges::stable_sort(operands, {}, turn);
  bool hasPartials = false;
  for (const Operand &operand : operands) {
    if (operand.role == Role::Statistic && saved.empty())
      saved = batchStatistics(spec, sizes, inputs, scalars);
    if (isPartial(operand) && !std::exchange(hasPartials, true))
      saved.merge(partials(spec, phase, sizes, inputs, scalars));
    HostArray array(operand.dtype, argumentShape(spec, operand.name, sizes));
    if (saved.contains(operand.name)) { // as training has saved them
      const HostArray &exact = saved.at(operand.name);
      for (int64_t i = 0, n = array.count(); i < n; ++i)
        array.set(i, exact.get(i));
      inputs.emplace(operand.name, std::move(array));
      continue;
    }
    if (operand.isBits()) { // what is no element's must not matter
      for (int64_t i = 0, n = array.count(); i < n; ++i)
        array.set(i, value(operand, ~static_cast<uint64_t>(i), 0));
      uint64_t index = 0;
      for (int64_t position : at.positionsIn(*keptBits(spec)))
        array.set(position, value(operand, index++, 0));
      inputs.emplace(operand.name, std::move(array));
      continue;
    }
    if ((operand.role != Role::Data && operand.role != Role::Gradient) ||
        array.shape != at.memoryShape()) {
      for (int64_t i = 0, n = array.count(); i < n; ++i)
        array.set(i, value(operand, static_cast<uint64_t>(i), static_cast<size_t>(i)));
      inputs.emplace(operand.name, std::move(array));
      continue;
    }
    if (operand.padded) // it must not matter
      for (int64_t i = 0, n = array.count(); i < n; ++i)
        array.set(i, NAN);
    // The index counts logical elements, so that layouts of one problem see the same values.
    uint64_t index = 0;
    std::vector<int64_t> visited(static_cast<size_t>(at.groups())); // elements of each group so far
    at.forEach([&](Place p) {
      const auto group = static_cast<size_t>(p.group);
      double drawn = value(operand, index++, group);
      if (operand.values == Values::Sample && data == Data::Outlier &&
          static_cast<uint64_t>(visited[group]++) ==
              draw.bits(kSpots, group) % static_cast<uint64_t>(at.groupSize()))
        drawn = operand.dtype == DType::F16 ? 3e4 : 1e6; // that f16 can hold
      array.set(p.offset, drawn);
    });
    inputs.emplace(operand.name, std::move(array));
  }
  // An array whose values the kernel has within it is no argument of the kernel, but one of the
  // reference.
  for (const std::string &name : foldedNames(spec))
    inputs.emplace(name, foldedValue(spec, name, sizes));
  return inputs;
}

} // namespace normforge::oracle
