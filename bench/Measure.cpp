#include "bench/Measure.h"

#include <algorithm>
#include <chrono>

namespace normforge::bench {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<Timing> measure(std::span<Contender *const> contenders, double seconds) {
  auto timed = [](Contender &contender, int calls) {
    const double begin = now();
    for (int i = 0; i < calls; ++i)
      contender.run();
    return (now() - begin) / calls;
  };
  std::vector<int> calls;
  double round = 0;
  for (Contender *contender : contenders) {
    contender->run();
    const double once = std::max(timed(*contender, 2), 1e-8);
    calls.push_back(std::clamp(static_cast<int>(1e-3 / once), 2, 20000));
    round += (calls.back() + 1) * once;
  }
  const int rounds = std::clamp(static_cast<int>(seconds / round), 7, 400);
  std::vector<Timing> timings(contenders.size());
  for (int i = 0; i < rounds; ++i)
    for (size_t c = 0; c < contenders.size(); ++c) {
      // Not counted: it pays for what the one before left in the caches.
      contenders[c]->run();
      timings[c].blocks.push_back(timed(*contenders[c], calls[c]) * 1e6 * contenders[c]->scale());
    }
  for (Timing &timing : timings) {
    std::vector<double> sorted = timing.blocks;
    std::sort(sorted.begin(), sorted.end());
    timing.us = sorted[sorted.size() / 2];
    timing.spread = (sorted[sorted.size() * 3 / 4] - sorted[sorted.size() / 4]) / timing.us;
  }
  return timings;
}

} // namespace normforge::bench
