// Names, shapes and drawn values of the kernels' arguments.

#include "compiler/oracle/Coordinates.h"

#include <algorithm>
#include <cmath>

namespace normforge::oracle {

std::vector<int64_t> argumentShape(const Spec &spec, const std::string &name, const Sizes &sizes) {
  const Coordinates at(spec, sizes);
  if (name == "x" || name == "y" || name == "addend")
    return at.memoryShape();
  if (name == "gamma" || name == "beta")
    return at.parameterShape();
  return at.groupShape();
}

static bool hasAddend(const Spec &spec) {
  return std::find(spec.fuse.begin(), spec.fuse.end(), Fused::Add) != spec.fuse.end();
}

std::vector<std::string> inputNames(const Spec &spec, Phase phase) {
  std::vector<std::string> names{"x"};
  if (spec.scale)
    names.push_back("gamma");
  if (spec.center)
    names.push_back("beta");
  if (spec.hasMovingStatistics()) {
    names.push_back("moving_mean");
    names.push_back("moving_variance");
  }
  if (hasAddend(spec))
    names.push_back("addend");
  return names;
}

std::vector<std::string> outputNames(const Spec &spec, Phase phase) {
  std::vector<std::string> names{"y"};
  if (phase == Phase::Training) {
    if (spec.hasMovingStatistics()) {
      names.push_back("moving_mean");
      names.push_back("moving_variance");
    }
    names.push_back("batch_mean");
    names.push_back("batch_variance");
  }
  return names;
}

static constexpr std::pair<Data, std::string_view> dataNames[] = {
    {Data::Normal, "normal"},   {Data::Offset, "offset"},     {Data::Constant, "constant"},
    {Data::Outlier, "outlier"}, {Data::Denormal, "denormal"},
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

/// What a number is drawn for: each stream is independent of the others.
enum class Stream : uint64_t {
  X = 1,
  Addend,
  Gamma,
  Beta,
  MovingMean,
  MovingVariance,
  Group,
  Spot
};

/// Numbers by their index, so that an element's value depends on nothing but
/// the seed and its place. No function of the C library is involved: the same
/// numbers on every machine.
class Draw {
public:
  explicit Draw(uint64_t seed) : seed_(seed) {}

  uint64_t bits(Stream stream, uint64_t index) const {
    return mix(mix(mix(seed_) + static_cast<uint64_t>(stream)) + index);
  }
  /// 0 to 1, without 1.
  double uniform(Stream stream, uint64_t index) const {
    return static_cast<double>(bits(stream, index) >> 11) * 0x1p-53;
  }
  /// Mean 0, deviation 1, between -6 and 6: the sum of twelve uniform 16-bit
  /// numbers, exact in f64.
  double normal(Stream stream, uint64_t index) const {
    double sum = 0;
    for (uint64_t part = 0; part < 3; ++part)
      for (uint64_t word = bits(stream, 3 * index + part), i = 0; i < 4; ++i, word >>= 16)
        sum += static_cast<double>(word & 0xffff) + 0.5;
    return sum * 0x1p-16 - 6;
  }

private:
  // The finalizer of splitmix64 (Steele, Lea, Flood 2014).
  static uint64_t mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t seed_;
};

/// Mean and deviation that a statistics group is drawn with.
struct Distribution {
  double mean, deviation;
};

Distribution groupDistribution(const Draw &draw, Data data, int64_t group) {
  const double a = draw.uniform(Stream::Group, 2 * group);
  const double b = draw.uniform(Stream::Group, 2 * group + 1);
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
  }
  return {0, 1};
}

} // namespace

Arrays drawInputs(const Spec &spec, Phase phase, const Sizes &sizes, uint64_t seed, Data data) {
  const Coordinates at(spec, sizes);
  const Draw draw(seed);
  std::vector<Distribution> distributions;
  for (int64_t g = 0; g < at.groups(); ++g)
    distributions.push_back(groupDistribution(draw, data, g));

  Arrays inputs;
  for (const std::string &name : inputNames(spec, phase)) {
    if (name == "x" || name == "addend") {
      HostArray array(spec.dtype, at.memoryShape());
      if (spec.layout.isBlocked()) // padding must not matter
        for (int64_t i = 0, n = array.count(); i < n; ++i)
          array.set(i, NAN);
      // The index counts logical elements, so that layouts of one problem see
      // the same values.
      uint64_t index = 0;
      if (name == "addend") {
        at.forEach([&](Place p) { array.set(p.offset, draw.normal(Stream::Addend, index++)); });
      } else {
        std::vector<uint64_t> visited(at.groups(),
                                      0); // elements of each group so far
        at.forEach([&](Place p) {
          const Distribution &d = distributions[p.group];
          double value = d.mean + d.deviation * draw.normal(Stream::X, index++);
          if (data == Data::Outlier &&
              visited[p.group]++ == draw.bits(Stream::Spot, p.group) % at.groupSize())
            value = spec.dtype == DType::F16 ? 3e4 : 1e6; // that f16 can hold
          array.set(p.offset, value);
        });
      }
      inputs.emplace(name, std::move(array));
      continue;
    }

    HostArray array(spec.parameterDType, argumentShape(spec, name, sizes));
    for (int64_t i = 0, n = array.count(); i < n; ++i) {
      if (name == "gamma") {
        // Of both signs, never near 0, where nothing of x would be seen in y.
        const double magnitude = 0.5 + draw.uniform(Stream::Gamma, 2 * i);
        array.set(i, draw.bits(Stream::Gamma, 2 * i + 1) % 4 == 0 ? -magnitude : magnitude);
      } else if (name == "beta") {
        array.set(i, draw.normal(Stream::Beta, i));
      } else if (name == "moving_mean") {
        // Near the batch's statistics, but distinct from them.
        const Distribution &d = distributions[i];
        array.set(i, d.mean + 0.25 * d.deviation * draw.normal(Stream::MovingMean, i));
      } else {
        const double deviation = distributions[i].deviation;
        const double factor = 0.75 + 0.5 * draw.uniform(Stream::MovingVariance, i);
        array.set(i, deviation * deviation * factor);
      }
    }
    inputs.emplace(name, std::move(array));
  }
  return inputs;
}

} // namespace normforge::oracle
