#include "tests/fuzz/Reduce.h"

#include <algorithm>
#include <chrono>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <set>

namespace normforge::test {

namespace {

using Candidates = std::vector<Candidate>;

/// `from` with one thing done to its spec, where that changes anything.
template <typename Change> Candidates changed(const Candidate &from, Change change) {
  Candidate to = from;
  change(to.spec);
  return to.spec.yaml() == from.spec.yaml() ? Candidates{} : Candidates{to};
}

/// One proposal for each index below `count`: `from` with `change` done for it.
template <typename Change>
Candidates changedEach(const Candidate &from, size_t count, Change change) {
  Candidates all;
  for (size_t i = 0; i < count; ++i) {
    all.push_back(from);
    change(all.back().spec, i);
  }
  return all;
}

// The CPUs and the phases come first: one of each makes the trials that follow several times
// cheaper.

Candidates oneCpu(const Candidate &from) {
  Candidates all;
  if (from.cpus.size() > 1)
    for (const std::string &cpu : from.cpus)
      all.push_back({from.spec, {cpu}});
  return all;
}

Candidates onePhase(const Candidate &from) {
  if (from.spec.phases.size() < 2)
    return {};
  return changedEach(from, from.spec.phases.size(),
                     [](DrawnSpec &spec, size_t i) { spec.phases = {spec.phases[i]}; });
}

Candidates fewerAxes(const Candidate &from) {
  return changedEach(from, from.spec.axes.size(), [](DrawnSpec &spec, size_t i) {
    const int axis = static_cast<int>(i);
    spec.axes.erase(spec.axes.begin() + axis);
    if (spec.blockedAxis == axis)
      spec.blockedAxis = -1;
    else if (spec.blockedAxis > axis)
      --spec.blockedAxis;
  });
}

Candidates fewerListed(const Candidate &from) {
  Candidates all;
  for (size_t i = 0; i < from.spec.axes.size(); ++i)
    if (from.spec.axes[i].listed) {
      all.push_back(from);
      all.back().spec.axes[i].listed = false;
    }
  return all;
}

/// 1, then a half, a quarter, ... and one less: a size that has to be 2000 of 3136 is found in 20
/// steps.
Candidates smallerSizes(const Candidate &from) {
  Candidates all;
  for (size_t i = 0; i < from.spec.axes.size(); ++i) {
    const int64_t size = from.spec.axes[i].size;
    auto propose = [&](int64_t smaller) {
      all.push_back(from);
      all.back().spec.axes[i].size = smaller;
    };
    if (size > 2)
      propose(1);
    for (int64_t less = size / 2; less > 0; less /= 2)
      propose(size - less);
  }
  return all;
}

/// A grouped axis keeps as many channels a group.
Candidates fewerGroups(const Candidate &from) {
  if (from.spec.mode != Mode::Group || from.spec.groups < 2)
    return {};
  return changedEach(from, from.spec.axes.size(), [](DrawnSpec &spec, size_t i) {
    DrawnAxis &axis = spec.axes[i];
    if (!axis.listed)
      return;
    axis.size = axis.size / spec.groups * (spec.groups / 2);
    spec.groups /= 2;
  });
}

Candidates staticSizes(const Candidate &from) {
  Candidates all;
  for (size_t i = 0; i < from.spec.axes.size(); ++i)
    if (from.spec.axes[i].named) {
      all.push_back(from);
      all.back().spec.axes[i].named = false;
    }
  return all;
}

Candidates plainLayout(const Candidate &from) {
  return changed(from, [](DrawnSpec &spec) { spec.blockedAxis = -1; });
}

Candidates smallerBlock(const Candidate &from) {
  Candidates all;
  if (from.spec.blockedAxis >= 0)
    for (int64_t block = 2; block < from.spec.block; block *= 2) {
      all.push_back(from);
      all.back().spec.block = block;
    }
  return all;
}

Candidates singlePrecision(const Candidate &from) {
  return changed(from, [](DrawnSpec &spec) { spec.dtype = DType::F32; });
}

Candidates defaultDTypes(const Candidate &from) {
  Candidates all = changed(from, [](DrawnSpec &spec) { spec.parameterDType.reset(); });
  for (Candidate &candidate : changed(from, [](DrawnSpec &spec) { spec.accumulatesF64 = false; }))
    all.push_back(std::move(candidate));
  return all;
}

Candidates lessFused(const Candidate &from) {
  return changedEach(from, from.spec.fuse.size(), [](DrawnSpec &spec, size_t i) {
    spec.fuse.erase(spec.fuse.begin() + static_cast<std::ptrdiff_t>(i));
  });
}

Candidates lessPrologue(const Candidate &from) {
  return changedEach(from, from.spec.prologue.size(), [](DrawnSpec &spec, size_t i) {
    spec.prologue.erase(spec.prologue.begin() + static_cast<std::ptrdiff_t>(i));
  });
}

Candidates defaultCenter(const Candidate &from) {
  return changed(from, [](DrawnSpec &spec) { spec.center = spec.mode != Mode::Rms; });
}
Candidates defaultScale(const Candidate &from) {
  return changed(from, [](DrawnSpec &spec) { spec.scale = true; });
}
Candidates defaultEpsilon(const Candidate &from) {
  return changed(from, [](DrawnSpec &spec) { spec.epsilon = DrawnEpsilon::Default; });
}
Candidates batchBackward(const Candidate &from) {
  return changed(from, [](DrawnSpec &spec) { spec.movingBackward = false; });
}
Candidates defaultMomentum(const Candidate &from) {
  return changed(from, [](DrawnSpec &spec) { spec.momentum = DrawnMomentum::Default; });
}
Candidates defaultRunningVariance(const Candidate &from) {
  return changed(from, [](DrawnSpec &spec) { spec.runningVariance.reset(); });
}
Candidates defaultEpsilonPosition(const Candidate &from) {
  return changed(from, [](DrawnSpec &spec) { spec.epsilonPosition.reset(); });
}
Candidates trainable(const Candidate &from) {
  return changed(from, [](DrawnSpec &spec) { spec.trainable = true; });
}
Candidates plainTraining(const Candidate &from) {
  return changed(from, [](DrawnSpec &spec) {
    spec.renorm = spec.adjustment = spec.mask = spec.takesPopulation = false;
    spec.parameters.clear();
    spec.ghostBatch = 0;
  });
}
/// The language's default, which takes no line.
Candidates defaultSemantics(const Candidate &from) {
  return changed(from, [](DrawnSpec &spec) { spec.semantics = Semantics::Keras_1_2; });
}
Candidates defaultMode(const Candidate &from) {
  return changed(from, [](DrawnSpec &spec) { spec.mode = Mode::Feature; });
}

using Step = Candidates (*)(const Candidate &);
constexpr Step kSteps[] = {
    oneCpu,
    onePhase,
    fewerAxes,
    smallerSizes,
    fewerListed,
    staticSizes,
    plainLayout,
    smallerBlock,
    singlePrecision,
    lessFused,
    defaultCenter,
    defaultScale,
    defaultEpsilon,
    defaultMomentum,
    defaultRunningVariance,
    defaultSemantics,
    defaultMode,
    batchBackward,
    lessPrologue,
    fewerGroups,
    defaultDTypes,
    defaultEpsilonPosition,
    trainable,
    plainTraining,
};

bool isValid(const DrawnSpec &spec) {
  auto parsed = parseSpec(spec.yaml(), "candidate.yaml");
  if (!parsed)
    llvm::consumeError(parsed.takeError());
  return static_cast<bool>(parsed);
}

/// All that a trial depends on: equal for candidates whose outcomes are.
std::string keyOf(const Candidate &candidate) {
  std::string key = candidate.spec.yaml();
  for (const auto &[name, size] : candidate.spec.sizes())
    key += fmt::format("{}={}\n", name, size);
  return key + fmt::format("{}", fmt::join(candidate.cpus, ","));
}

} // namespace

Reduction reduce(const Candidate &failing, const Outcome &outcome,
                 const std::function<Outcome(const Candidate &)> &run, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  Reduction result{failing, outcome};
  std::set<std::string> seen{keyOf(failing)};
  // Takes the first proposal that fails as the first candidate did.
  auto takeOne = [&](Step step) {
    for (Candidate &candidate : step(result.smallest)) {
      if (!isValid(candidate.spec) || !seen.insert(keyOf(candidate)).second)
        continue;
      if (Clock::now() > end) {
        result.outOfTime = true;
        return false;
      }
      ++result.tried;
      if (Outcome found = run(candidate); found.isLike(outcome)) {
        result.smallest = std::move(candidate);
        result.outcome = std::move(found);
        return true;
      }
    }
    return false;
  };
  for (bool isSmaller = true; isSmaller && !result.outOfTime;) {
    isSmaller = false;
    for (Step step : kSteps)
      while (takeOne(step))
        isSmaller = true;
  }
  return result;
}

} // namespace normforge::test
