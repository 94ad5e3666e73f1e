#include "compiler/spec/Keys.h"

#include "compiler/spec/Values.h"

#include <algorithm>
#include <map>

namespace normforge::spec {
namespace {

constexpr std::string_view specKeyNames[] = {"name",
                                             "count",
                                             "semantics",
                                             "input",
                                             "output",
                                             "axis",
                                             "mode",
                                             "groups",
                                             "epsilon",
                                             "epsilon_position",
                                             "momentum",
                                             "running_variance",
                                             "statistics",
                                             "center",
                                             "scale",
                                             "trainable",
                                             "backward_statistics",
                                             "phases",
                                             "prologue",
                                             "fuse",
                                             "mask",
                                             "synchronized",
                                             "parameters",
                                             "parameter_dtype",
                                             "optimizer",
                                             "renorm",
                                             "virtual_batch_size",
                                             "adjustment",
                                             "fused",
                                             "weights",
                                             "accumulate"};
constexpr std::string_view inputKeyNames[] = {"shape", "layout", "dtype", "strides"};
constexpr std::string_view outputKeyNames[] = {"layout", "dtype", "scale", "zero_point", "strides"};

/// Keys that are known and refused, and what their paths begin with.
constexpr std::pair<std::string_view, std::string_view> unbuiltKeys[] = {
    {"input", "strides"}, {"output", "strides"}, {"output", "scale"}, {"output", "zero_point"}};

/// Another framework's word, and what a spec says instead.
struct ForeignName {
  std::string_view theirs, ours;
};
/// The same of a key within another: `in` is what its path begins with.
struct ForeignPart {
  std::string_view in, theirs, ours;
};
constexpr ForeignPart foreignParts[] = {
    {"optimizer.", "lr", "'learning_rate'"},
    {"optimizer.", "InitialLearnRate", "'learning_rate'"},
    {"optimizer.", "betas", "'beta_1' and 'beta_2'"},
    {"optimizer.", "eps", "'epsilon'"},
    {"optimizer.", "Epsilon", "'epsilon'"},
    {"optimizer.", "alpha", "'rho'"},
    {"optimizer.", "Momentum", "'momentum'"},
    {"optimizer.", "GradientDecayFactor", "'beta_1'"},
    {"optimizer.rmsprop", "SquaredGradientDecayFactor", "'rho'"},
    {"optimizer.", "SquaredGradientDecayFactor", "'beta_2'"},
    {"optimizer.", "L2Regularization", "'weight_decay'"},
    {"optimizer.", "norm_coefficient", "'weight_decay'"},
    {"optimizer.", "clipnorm", "the host's: gradients are clipped before the step"},
    {"optimizer.", "clipvalue", "the host's: gradients are clipped before the step"},
    {"optimizer.", "global_clipnorm", "the host's: gradients are clipped before the step"},
    {"optimizer.", "GradientThreshold", "the host's: gradients are clipped before the step"},
    {"optimizer.", "dampening", "none: it is 0"},
    {"parameters.", "min_value", "'min'"},
    {"parameters.", "max_value", "'max'"},
    {"parameters.", "minval", "'min'"},
    {"parameters.", "maxval", "'max'"},
    {"parameters.", "std", "'stddev'"},
};
constexpr ForeignName foreignNames[] = {
    {"beta_init", "'parameters.beta.initializer'"},
    {"gamma_init", "'parameters.gamma.initializer'"},
    {"beta_initializer", "'parameters.beta.initializer'"},
    {"gamma_initializer", "'parameters.gamma.initializer'"},
    {"beta_regularizer", "'parameters.beta.regularizer'"},
    {"gamma_regularizer", "'parameters.gamma.regularizer'"},
    {"beta_constraint", "'parameters.beta.constraint'"},
    {"gamma_constraint", "'parameters.gamma.constraint'"},
    {"moving_mean_initializer", "'parameters.moving_mean.initializer'"},
    {"moving_variance_initializer", "'parameters.moving_variance.initializer'"},
    {"process_group", "'synchronized': the ranks are the host's"},
    {"running_mean", "'moving_mean', an argument of the kernel"},
    {"running_std",
     "'moving_variance', an argument of the kernel ('moving_stddev' of keras-1.0.4)"},
    {"running_var", "'moving_variance', an argument of the kernel"},
    {"moving_mean", "an argument of the kernel, its start 'parameters.moving_mean'"},
    {"moving_variance", "an argument of the kernel, its start 'parameters.moving_variance'"},
    {"MeanDecay", "'momentum: {mean: ..., variance: ...}'"},
    {"VarianceDecay", "'momentum: {mean: ..., variance: ...}'"},
    {"TrainedMean", "'parameters.moving_mean.value'"},
    {"TrainedVariance", "'parameters.moving_variance.value'"},
    {"BatchNormalizationStatistics", "'statistics'"},
    {"Offset", "'parameters.beta.value'"},
    {"Scale", "'parameters.gamma.value'"},
    {"OffsetInitializer", "'parameters.beta.initializer'"},
    {"ScaleInitializer", "'parameters.gamma.initializer'"},
    {"OffsetLearnRateFactor", "'parameters.beta.learn_rate_factor'"},
    {"ScaleLearnRateFactor", "'parameters.gamma.learn_rate_factor'"},
    {"OffsetL2Factor", "'parameters.beta.l2_factor'"},
    {"ScaleL2Factor", "'parameters.gamma.l2_factor'"},
    {"beta", "'center', its start 'parameters.beta'"},
    {"gamma", "'scale', its start 'parameters.gamma'"},
    {"NumChannels", "the size in 'input.shape'"},
    {"num_features", "the size in 'input.shape'"},
    {"num_channels", "the size in 'input.shape'"},
    {"NumGroups", "'groups'"},
    {"num_groups", "'groups'"},
    {"normalized_shape", "'axis'"},
    {"Epsilon", "'epsilon'"},
    {"eps", "'epsilon'"},
    {"Name", "'name'"},
    {"decay", "'momentum'"},
    {"affine", "'center' and 'scale'"},
    {"elementwise_affine", "'center' and 'scale'"},
    {"track_running_stats", "'mode': 0 keeps moving statistics, 2 does not"},
    {"training_mode", "'phases'"},
    {"training", "'phases'"},
    {"is_test", "'phases'"},
    {"spatial", "'axis'"},
    {"activation", "'fuse'"},
    {"input_shape", "'input.shape', the samples axis included"},
    {"batch_input_shape", "'input.shape'"},
    {"input_dtype", "'input.dtype'"},
    {"input_dim", "the size in 'input.shape'"},
    {"moving_stddev", "an argument of the kernel with 'renorm'"},
    {"renorm_mean", "an argument of the kernel with 'renorm'"},
    {"renorm_stddev", "an argument of the kernel with 'renorm'"},
    {"renorm_clipping", "'renorm: {r_max: ..., r_min: ..., d_max: ...}'"},
    {"renorm_momentum", "'renorm: {momentum: ...}'"},
    {"rms_scaling", "'mode: rms'"},
    {"OperationDimension", "'axis'"},
    {"num_batches_tracked", "'momentum: cumulative', whose count is given at the call"},
    {"data_format", "'input.layout'"},
    {"dtype", "'input.dtype'"},
    {"bias", "'center': true where beta is added"},
    {"weight", "'scale': true where gamma is multiplied with"},
    {"use_global_stats", "'phases': inference takes the moving statistics"},
    {"begin_norm_axis", "'axis', a list of this axis and those after it"},
    {"exponential_avg_factor", "'momentum'"},
    {"exponential_average_factor", "'momentum'"},
    {"moving_average_fraction", "'momentum'"},
    {"stash_type", "nothing to choose: statistics of half precision are in f32"},
};

std::string unknownKey(const std::string &key, std::string_view path,
                       std::span<const std::string_view> known) {
  std::string message = fmt::format("unknown key {}", quoted(key));
  if (!path.empty())
    message += fmt::format(" in '{}'", path);
  if (path.empty())
    for (const ForeignName &name : foreignNames)
      if (key == name.theirs)
        return message + fmt::format("; here it is {}", name.ours);
  for (const ForeignPart &part : foreignParts)
    if (key == part.theirs && path.starts_with(part.in))
      return message + fmt::format("; here it is {}", part.ours);
  if (std::optional<std::string_view> word = nearest(key, known))
    return message + fmt::format("; did you mean '{}'?", *word);
  std::string_view home;
  if (path != "input" &&
      std::find(std::begin(inputKeyNames), std::end(inputKeyNames), key) != std::end(inputKeyNames))
    home = "input";
  else if (path.empty() && key == "zero_point")
    home = "output";
  if (!home.empty())
    return message + fmt::format("; it belongs in '{}'", home);
  if (!path.empty() &&
      std::find(std::begin(specKeyNames), std::end(specKeyNames), key) != std::end(specKeyNames))
    return message + fmt::format("; it belongs to the spec itself");
  std::vector<std::string> marked;
  for (std::string_view word : known) {
    const bool isUnbuilt =
        std::ranges::find(unbuiltKeys, std::pair(path, word)) != std::end(unbuiltKeys);
    marked.push_back(std::string(word) + (isUnbuilt ? " (not built yet)" : ""));
  }
  const std::vector<std::string_view> words(marked.begin(), marked.end());
  return message + fmt::format("; expected {}", listed(words));
}

} // namespace

std::span<const std::string_view> specKeys() { return specKeyNames; }
std::span<const std::string_view> inputKeys() { return inputKeyNames; }
std::span<const std::string_view> outputKeys() { return outputKeyNames; }

Keys::Keys(const Value &mapping, std::string_view path, std::span<const std::string_view> known,
           Diagnostics &diagnostics) {
  // Ordered: keys of one hash are easily made, and would take quadratic time.
  std::map<std::string_view, size_t> firstOffsets;
  for (const Entry &entry : mapping.entries) {
    auto [first, isNew] = firstOffsets.try_emplace(entry.key, entry.offset);
    if (!isNew) {
      diagnostics.error(entry.offset, fmt::format("key {} is repeated", quoted(entry.key)));
      diagnostics.note(first->second, "its first value is here");
    } else if (std::find(known.begin(), known.end(), entry.key) == known.end()) {
      diagnostics.error(entry.offset, unknownKey(entry.key, path, known));
    } else {
      entries_.push_back(&entry);
    }
  }
}

const Entry *Keys::find(std::string_view key) const {
  for (const Entry *entry : entries_)
    if (entry->key == key)
      return entry;
  return nullptr;
}

} // namespace normforge::spec
