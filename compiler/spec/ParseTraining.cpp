// Keys of what training does otherwise: `renorm`, `virtual_batch_size`, `adjustment`, `mask`.
#include "compiler/spec/Parser.h"

#include "compiler/spec/Values.h"

#include <algorithm>
#include <cmath>

namespace normforge::spec {
namespace {

/// tf.keras's 0.99 on the side of the new value.
constexpr double kNewRenormMomentum = 0.01;
constexpr std::string_view renormKeys[] = {"r_max", "r_min", "d_max", "momentum"};

} // namespace

void Parser::readTraining() {
  /// A key that belongs to modes with these statistics.
  auto find = [&](const char *key, bool takesModeTwo) -> const Entry * {
    const Entry *entry = keys_.find(key);
    if (!entry || !modeKnown_ || spec_.mode == Mode::Feature ||
        (takesModeTwo && spec_.mode == Mode::Batch))
      return entry;
    diagnostics_.error(entry->offset,
                       fmt::format("'{}' belongs to mode{} 0 (feature){}; found mode {}", key,
                                   takesModeTwo ? "s" : "", takesModeTwo ? " and 2 (batch)" : "",
                                   toString(spec_.mode)));
    return nullptr;
  };
  if (const Entry *entry = find("renorm", false))
    readRenorm(*entry);
  if (const Entry *entry = find("virtual_batch_size", false))
    readGhosts(*entry);
  if (const Entry *entry = find("adjustment", false); entry && !isNull(entry->value))
    readFlag("adjustment", spec_.adjustment);
  if (find("mask", true))
    readFlag("mask", spec_.mask);
  if (find("synchronized", true))
    readFlag("synchronized", spec_.synchronized);
  checkSynchronized();
  const Entry *ghosts = keys_.find("virtual_batch_size");
  if (spec_.ghostBatch == 0 || !ghosts)
    return;
  if (spec_.adjustment)
    diagnostics_.error(keys_.find("adjustment")->offset,
                       "adjustment and virtual_batch_size contradict each other: an adjustment is "
                       "of a whole batch");
  if (spec_.mask)
    diagnostics_.error(keys_.find("mask")->offset,
                       "mask and virtual_batch_size: no framework has both; expected one of them");
  if (spec_.renorm)
    diagnostics_.unbuilt(keys_.find("renorm")->offset,
                         "renorm with virtual_batch_size is not built yet");
}

/// The phases that make what is exchanged are there where those that take it are.
void Parser::checkSynchronized() {
  constexpr Phase kExchanges[] = {Phase::Moments, Phase::GradientSums};
  const Entry *listed = keys_.find("phases");
  if (!spec_.synchronized) {
    for (Phase phase : kExchanges)
      if (spec_.hasPhase(phase))
        error(listed->value, fmt::format("phase {} makes what ranks exchange; expected "
                                         "synchronized: true beside it",
                                         toString(phase)));
    return;
  }
  const Entry &entry = *keys_.find("synchronized");
  if (spec_.frozen == Frozen::ParametersAndStatistics) { // a note says so
    spec_.synchronized = false;
    for (Phase phase : kExchanges)
      if (spec_.hasPhase(phase))
        error(listed->value,
              fmt::format("phase {} makes what ranks exchange of a batch; trainable: "
                          "false takes the moving statistics",
                          toString(phase)));
    return;
  }
  if (spec_.ghostBatch > 0)
    diagnostics_.error(entry.offset, "synchronized and virtual_batch_size contradict each other: "
                                     "one batch of all ranks, or several of each");
  if (spec_.hasPhase(Phase::BackwardUpdate))
    error(listed->value, "backward+update takes a step by the gradients of one rank; with "
                         "synchronized: true expected backward, then update of the gradients that "
                         "the ranks have added up");
  if (spec_.hasPhase(Phase::Population))
    diagnostics_.unbuilt(entry.offset, "synchronized with phase population is not built yet: "
                                       "expected populations of each rank, which hosts merge");
  // Behind what is listed, whose first is the default of commands.
  auto add = [&](Phase phase, auto isTaker) {
    const bool isTaken = std::ranges::any_of(spec_.phases, [&](Phase taker) {
      return isTaker(taker) && spec_.takesBatchStatistics(taker);
    });
    if (isTaken && !spec_.hasPhase(phase))
      spec_.phases.push_back(phase);
    if (!isTaken && spec_.hasPhase(phase) && spec_.canHavePhase(phase))
      error(listed->value,
            fmt::format("phase {} makes what no other phase takes; expected {} "
                        "beside it",
                        toString(phase), phase == Phase::Moments ? "training" : "backward"));
  };
  add(Phase::Moments,
      [](Phase taker) { return taker == Phase::Training || taker == Phase::Inference; });
  add(Phase::GradientSums, [](Phase taker) { return taker == Phase::Backward; });
  for (Phase phase : kExchanges)
    if (spec_.hasPhase(phase) && !spec_.canHavePhase(phase))
      error(listed->value, fmt::format("phase {} makes sums of gradients through the batch's "
                                       "statistics; found backward_statistics: moving",
                                       toString(phase)));
}

/// Once the steps are read.
void Parser::checkStoredSums() {
  if (spec_.hasPhase(Phase::Moments) && spec_.storedStep() >= 0)
    diagnostics_.unbuilt(keys_.find("synchronized")->offset,
                         "synchronized with a prologue that stores a sum is not built yet");
}

void Parser::readRenorm(const Entry &entry) {
  const Value &value = entry.value;
  if (isNull(value) || asBool(value) == false)
    return;
  Renorm renorm;
  if (asBool(value) != true && !value.isMapping()) {
    error(value, fmt::format("renorm must be true, false or a mapping {{r_max: ..., r_min: ..., "
                             "d_max: ..., momentum: ...}}; found {}",
                             found(value)));
    return;
  }
  if (spec_.movingSpread == MovingSpread::Deviation) {
    diagnostics_.error(entry.offset,
                       fmt::format("renorm belongs to semantics that keep a moving variance; {} "
                                   "keeps a deviation",
                                   toString(spec_.semantics)));
    return;
  }
  if (spec_.epsilonPosition != EpsilonPosition::Inside) {
    diagnostics_.error(entry.offset, fmt::format("renorm averages sqrt(v+e) (Ioffe 2017): expected "
                                                 "epsilon_position: inside; found {}",
                                                 toString(spec_.epsilonPosition)));
    return;
  }
  if (const Entry *running = keys_.find("running_variance");
      running && spec_.runningVariance != RunningVariance::Biased)
    error(running->value, fmt::format("renorm averages the root of the biased variance; found {}",
                                      found(running->value)));
  spec_.runningVariance = RunningVariance::Biased; // whatever else the preset averages
  if (spec_.momentum.weighs == MomentumWeighs::New)
    renorm.momentum = kNewRenormMomentum;
  if (spec_.takesPopulation) {
    diagnostics_.error(entry.offset, "renorm corrects towards averages that training keeps; "
                                     "statistics: population keeps none");
    return;
  }
  if (value.isMapping()) {
    Keys keys(value, "renorm", renormKeys, diagnostics_);
    for (const Entry *key : keys.entries()) {
      const bool isInfinite = key->value.isScalar() && key->value.text == ".inf";
      const std::optional<double> number =
          isInfinite ? std::numeric_limits<double>::infinity() : asNumber(key->value);
      const bool isMomentum = key->key == "momentum";
      if (!number || *number < 0 || (isMomentum && *number > 1) ||
          (key->key == "r_min" && isInfinite)) {
        error(key->value, fmt::format("renorm.{} must be a number {}; found {}", key->key,
                                      isMomentum            ? "from 0 to 1"
                                      : key->key == "r_min" ? "of at least 0"
                                                            : "of at least 0, or .inf",
                                      found(key->value)));
        continue;
      }
      (isMomentum            ? renorm.momentum
       : key->key == "r_max" ? renorm.rMax
       : key->key == "r_min" ? renorm.rMin
                             : renorm.dMax) = *number;
    }
    if (renorm.rMax < renorm.rMin)
      error(value, fmt::format("renorm.r_max {} is less than r_min {}", renorm.rMax, renorm.rMin));
  }
  spec_.renorm = renorm;
}

void Parser::readGhosts(const Entry &entry) {
  const std::optional<Integer> size = asInteger(entry.value);
  if (isNull(entry.value))
    return;
  if (!size || size->tooLarge || size->value < 1) {
    error(entry.value, fmt::format("virtual_batch_size must be a whole number of at least 1; "
                                   "found {}",
                                   found(entry.value)));
    return;
  }
  if (!layoutKnown_ || !axesKnown_)
    return;
  const int samples = spec_.samplesAxis();
  const char letter = spec_.layout.axes[static_cast<size_t>(samples)];
  if (spec_.isAxis(samples)) {
    error(entry.value, fmt::format("virtual_batch_size cuts the samples axis '{}', of which axis "
                                   "keeps every index",
                                   letter));
    return;
  }
  if (samples == spec_.layout.blockedAxis) {
    diagnostics_.unbuilt(entry.value.offset, fmt::format("virtual_batch_size with blocks of the "
                                                         "samples axis '{}' is not built yet",
                                                         letter));
    return;
  }
  const Size &batch =
      spec_.shape[static_cast<size_t>(samples)]; // a named one is checked at the call
  if (!batch.isNamed() && batch.value % size->value != 0) {
    error(entry.value, fmt::format("virtual_batch_size {} does not divide {}, the size of axis {}",
                                   size->value, batch.value, letter));
    return;
  }
  if (batch.isNamed() || batch.value != size->value) // one ghost is the batch
    spec_.ghostBatch = size->value;
}

} // namespace normforge::spec
