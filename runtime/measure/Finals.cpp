#include "runtime/measure/Finals.h"

#include <algorithm>
#include <numeric>

namespace normforge {

namespace {

constexpr size_t kFinalists = 3;
/// A candidate with less than this is none.
constexpr double kLeastGain = 1.01;
/// Buffers of places before that are kept, so that those that follow lie elsewhere. Past this,
/// most of a buffer is in no cache.
constexpr uint64_t kKeptBytes = uint64_t(64) << 20;

/// Contenders at places.
class Places {
public:
  Places(Race &race, const KernelCall &data, std::span<const Artifact> kernels, Failure &failure)
      : race_(race), data_(data), kernels_(kernels), failure_(failure) {}

  /// One measurement: the default, another copy of it and these kernels, in `count` places. Its
  /// ratios are over places.
  bool measure(const std::vector<size_t> &kernels, uint64_t read, uint64_t written, int count,
               double seconds, Race::Final &result);

private:
  using Calls = std::vector<std::unique_ptr<KernelCall>>;
  bool make(const std::vector<size_t> &kernels, Calls &calls);

  Race &race_;
  const KernelCall &data_;
  const std::span<const Artifact> kernels_;
  Failure &failure_;
  std::vector<Calls> before_;
  uint64_t bytesBefore_ = 0;
};

bool Places::make(const std::vector<size_t> &kernels, Calls &calls) {
  for (size_t i = 0; i < kernels.size(); ++i) {
    auto kernel = Kernel::load(kernels_[kernels[i]], {}, failure_);
    if (!kernel)
      return false;
    auto call = KernelCall::make(std::move(kernel), data_.plan().sizes(), failure_);
    if (!call)
      return false;
    if (i == 0)
      call->copy(data_);
    else
      call->share(*calls.front());
    calls.push_back(std::move(call));
  }
  return true;
}

bool Places::measure(const std::vector<size_t> &kernels, uint64_t read, uint64_t written, int count,
                     double seconds, Race::Final &result) {
  std::vector<size_t> all{0, 0};
  all.insert(all.end(), kernels.begin(), kernels.end());
  // The medians of each place.
  std::vector<double> standard, other, copies;
  std::vector<std::vector<double>> own(kernels.size());
  result = {};
  result.results.resize(kernels.size());
  for (int place = 0; place < count; ++place) {
    Calls calls;
    if (!make(all, calls))
      return false;
    std::vector<KernelCall *> contenders;
    for (const auto &call : calls)
      contenders.push_back(call.get());
    const Race::Final found = race_.finish(contenders, read, written, seconds / count);
    standard.push_back(found.standardSeconds);
    other.push_back(found.standardSeconds / found.noise.value);
    copies.push_back(found.copySeconds);
    for (size_t i = 0; i < kernels.size(); ++i) {
      own[i].push_back(found.standardSeconds / found.results[i].gain.value);
      result.results[i].pairs += found.results[i].pairs;
    }
    if (bytesBefore_ + calls.front()->bytes() <= kKeptBytes) {
      bytesBefore_ += calls.front()->bytes();
      before_.push_back(std::move(calls));
    }
  }
  result.standardSeconds = median(standard);
  result.copySeconds = median(copies);
  result.noise = pairedRatio(other, standard);
  for (size_t i = 0; i < kernels.size(); ++i) {
    result.results[i].gain = pairedRatio(own[i], standard);
    result.results[i].seconds = median(own[i]);
  }
  return true;
}

} // namespace

std::vector<std::string> finalistsOf(std::vector<std::pair<double, std::string>> gains) {
  std::erase_if(gains, [](const auto &one) { return one.first <= kLeastGain; });
  std::stable_sort(gains.begin(), gains.end(),
                   [](const auto &a, const auto &b) { return a.first > b.first; });
  std::vector<std::string> schedules;
  for (size_t i = 0; i < std::min(gains.size(), kFinalists); ++i)
    schedules.push_back(std::move(gains[i].second));
  return schedules;
}

std::optional<Finals> decide(Race &race, const KernelCall &data, std::span<const Artifact> kernels,
                             uint64_t read, uint64_t written, const Finals::Limits &limits,
                             Failure &failure) {
  Places places(race, data, kernels, failure);
  std::vector<size_t> left(kernels.size() - 1);
  std::iota(left.begin(), left.end(), size_t(1));
  Race::Final found;
  if (left.size() > 1) {
    if (!places.measure(left, read, written, limits.fewPlaces, limits.seconds, found))
      return std::nullopt;
    const auto best =
        std::max_element(found.results.begin(), found.results.end(),
                         [](const auto &a, const auto &b) { return a.gain.value < b.gain.value; });
    left = {left[static_cast<size_t>(best - found.results.begin())]};
  }
  if (!places.measure(left, read, written, limits.places, limits.seconds, found))
    return std::nullopt;
  Finals finals;
  finals.noise = found.noise;
  finals.standardSeconds = finals.result.seconds = found.standardSeconds;
  finals.copySeconds = found.copySeconds;
  if (left.empty())
    return finals;
  const Race::Result &best = found.results.front();
  finals.result.pairs = best.pairs;
  if (Race::isSure(best.gain, found.noise)) {
    finals.best = left.front() - 1;
    finals.result = best;
  }
  return finals;
}

} // namespace normforge
