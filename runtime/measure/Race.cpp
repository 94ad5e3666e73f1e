#include "runtime/measure/Race.h"

#include "runtime/measure/Copy.h"

#include <algorithm>
#include <chrono>

namespace normforge {

namespace {

using Clock = std::chrono::steady_clock;

/// A block of calls is as long as this, so that reading the clock does not show.
constexpr double kBlockSeconds = 5e-4;
/// Calls that take longer than this have no call before them that is not counted: what the other
/// kernel has left in the caches is little beside them.
constexpr double kLongSeconds = 1e-3;
/// A gain so low twice in a row is no noise.
constexpr double kFarBehind = 0.75;
constexpr size_t kLeastRounds = 3, kMostRounds = 200;

double secondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}
int callsOf(double seconds) {
  return std::clamp(static_cast<int>(kBlockSeconds / std::max(seconds, 1e-8)), 1, 20000);
}

} // namespace

/// Seconds of a call in a block of them.
double Race::block(KernelCall &call, int calls, bool isFirstCounted) {
  Failure ignored; // what ran once runs again
  if (isCold_) {
    double sum = 0;
    for (int i = 0; i < calls; ++i) {
      call.evict();
      const Clock::time_point start = Clock::now();
      (void)call.run(executor_, ignored);
      sum += secondsSince(start);
    }
    return sum / calls;
  }
  if (!isFirstCounted)
    (void)call.run(executor_, ignored);
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < calls; ++i)
    (void)call.run(executor_, ignored);
  return secondsSince(start) / calls;
}

double Race::seconds(KernelCall &call) {
  const double once = block(call, 2, /*isFirstCounted=*/false);
  return block(call, callsOf(once), /*isFirstCounted=*/once > kLongSeconds);
}

Race::Result Race::against(KernelCall &standard, KernelCall &candidate, const Limits &limits) {
  Result result;
  const double once = block(candidate, 1, /*isFirstCounted=*/false);
  const bool isLong = once > kLongSeconds;
  const int calls = callsOf(std::min(once, block(standard, 1, isLong)));
  std::vector<double> ofStandard, own;
  const Clock::time_point start = Clock::now();
  do {
    ofStandard.push_back(block(standard, calls, isLong));
    own.push_back(block(candidate, calls, isLong));
    result.pairs = static_cast<int>(own.size());
    result.gain = pairedRatio(own, ofStandard);
    const double most = result.pairs >= limits.leastPairs ? 1 : result.pairs >= 2 ? kFarBehind : 0;
    result.isBehind = result.gain.high < most;
  } while (!result.isBehind &&
           (result.pairs < limits.leastPairs ||
            (result.pairs < limits.mostPairs && secondsSince(start) < limits.seconds)));
  result.seconds = median(own);
  return result;
}

Race::Final Race::finish(std::span<KernelCall *const> contenders, uint64_t read, uint64_t written,
                         double seconds) {
  MemoryCopy copy(read, written);
  const double once = block(*contenders.front(), 1, /*isFirstCounted=*/false);
  const bool isLong = once > kLongSeconds;
  const int calls = callsOf(once);
  std::vector<std::vector<double>> blocks(contenders.size());
  std::vector<double> copies[2]; // plain, streaming
  const Clock::time_point start = Clock::now();
  for (size_t round = 0;
       round < kLeastRounds || (round < kMostRounds && secondsSince(start) < seconds); ++round) {
    for (size_t i = 0; i < contenders.size(); ++i) {
      const size_t turn = (i + round) % contenders.size(); // what comes after what is no matter
      blocks[turn].push_back(block(*contenders[turn], calls, isLong));
    }
    for (bool streams : {false, true}) {
      if (isCold_ || round >= kLeastRounds)
        break;
      copy.run(streams, executor_);
      const Clock::time_point begin = Clock::now();
      for (int i = 0; i < calls; ++i)
        copy.run(streams, executor_);
      copies[streams].push_back(secondsSince(begin) / calls * copy.scale());
    }
  }
  Final result;
  result.standardSeconds = median(blocks[0]);
  if (!isCold_)
    result.copySeconds = std::min(median(copies[0]), median(copies[1]));
  result.noise = pairedRatio(blocks[1], blocks[0]);
  for (size_t i = 2; i < contenders.size(); ++i)
    result.results.push_back(
        {pairedRatio(blocks[i], blocks[0]), static_cast<int>(blocks[i].size()), median(blocks[i])});
  return result;
}

} // namespace normforge
