// oneDNN's backward passes.
#include "compiler/oracle/OneDnnMemory.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace normforge::oracle {

namespace {

using dnnl::memory;
using dnnl::normalization_flags;
using BatchNorm = dnnl::batch_normalization_backward;
using LayerNorm = dnnl::layer_normalization_backward;
using BatchNormForward = dnnl::batch_normalization_forward;
using LayerNormForward = dnnl::layer_normalization_forward;

#if DNNL_VERSION_MAJOR >= 3
BatchNorm::primitive_desc describeBatchNorm(const dnnl::engine &engine, const memory::desc &data,
                                            float epsilon, normalization_flags flags) {
  const BatchNormForward::primitive_desc forward(engine, dnnl::prop_kind::forward_training, data,
                                                 data, epsilon, flags);
  return BatchNorm::primitive_desc(engine, dnnl::prop_kind::backward, data, data, data, epsilon,
                                   flags, forward);
}
LayerNorm::primitive_desc describeLayerNorm(const dnnl::engine &engine, const memory::desc &data,
                                            const memory::desc &statistics, float epsilon,
                                            normalization_flags flags) {
  const LayerNormForward::primitive_desc forward(engine, dnnl::prop_kind::forward_training, data,
                                                 data, statistics, epsilon, flags);
  return LayerNorm::primitive_desc(engine, dnnl::prop_kind::backward, data, data, data, statistics,
                                   epsilon, flags, forward);
}
#else
BatchNorm::primitive_desc describeBatchNorm(const dnnl::engine &engine, const memory::desc &data,
                                            float epsilon, normalization_flags flags) {
  const BatchNormForward::primitive_desc forward(
      BatchNormForward::desc(dnnl::prop_kind::forward_training, data, epsilon, flags), engine);
  return BatchNorm::primitive_desc(
      BatchNorm::desc(dnnl::prop_kind::backward, data, data, epsilon, flags), engine, forward);
}
LayerNorm::primitive_desc describeLayerNorm(const dnnl::engine &engine, const memory::desc &data,
                                            const memory::desc &statistics, float epsilon,
                                            normalization_flags flags) {
  const LayerNormForward::primitive_desc forward(
      LayerNormForward::desc(dnnl::prop_kind::forward_training, data, statistics, epsilon, flags),
      engine);
  return LayerNorm::primitive_desc(
      LayerNorm::desc(dnnl::prop_kind::backward, data, data, statistics, epsilon, flags), engine,
      forward);
}
#endif

class Backward final : public OneDnn {
public:
  Backward(const Spec &spec, const Sizes &sizes, const Arrays &inputs, const Numbers &scalars,
           float epsilon, int threads, Way way, const OneDnnView &view)
      : spec_(spec), at_(spec, sizes), threads_(threads), way_(way),
        engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    const ThreadLimit limit(threads_);
    const memory::desc data = describe(view);
    const bool moving = spec.backwardStatistics == BackwardStatistics::Moving;
    const std::string prefix = moving ? "moving_" : "batch_";
    dx_ = memory(data, engine_);
    arguments_ = {{DNNL_ARG_SRC, copyData(inputs.at("x"), at_, data, engine_)},
                  {DNNL_ARG_DIFF_DST, gradient(inputs, sizes, scalars, data)},
                  {DNNL_ARG_DIFF_SRC, dx_}};
    for (auto [argument, name] :
         {std::pair{DNNL_ARG_MEAN, "mean"}, {DNNL_ARG_VARIANCE, "variance"}}) {
      HostArray statistic = inputs.at(prefix + name);
      if (way_ == Way::LayerNorm) { // of the shape of its statistics
        memory shaped(dense({view.dims.begin(), view.dims.end() - 1}), engine_);
        std::memcpy(shaped.get_data_handle(), statistic.bytes.data(), statistic.bytes.size());
        arguments_[argument] = shaped;
      } else {
        arguments_[argument] = copyVector(statistic, engine_);
      }
    }
    normalization_flags flags =
        moving ? normalization_flags::use_global_stats : normalization_flags::none;
    if (spec.scale && way_ != Way::TransposedBatchNorm) {
      flags = flags | normalization_flags::use_scale;
      arguments_[DNNL_ARG_SCALE] = copyVector(inputs.at("gamma"), engine_);
      dgamma_ = memory(dense({at_.parameters()}), engine_);
      arguments_[DNNL_ARG_DIFF_SCALE] = dgamma_;
    }
    if (spec.center && way_ != Way::TransposedBatchNorm) {
      flags = flags | normalization_flags::use_shift;
      // 2.x asks for beta, too, whose value is of no matter.
      arguments_[DNNL_ARG_SHIFT] = copyVector(HostArray(DType::F32, at_.parameterShape()), engine_);
      dbeta_ = memory(dense({at_.parameters()}), engine_);
      arguments_[DNNL_ARG_DIFF_SHIFT] = dbeta_;
    }
    if (way_ == Way::LayerNorm) {
      const auto description = describeLayerNorm(
          engine_, data, dense({view.dims.begin(), view.dims.end() - 1}), epsilon, flags);
      primitive_ = LayerNorm(description);
      implementation_ = description.impl_info_str();
    } else {
      const auto description = describeBatchNorm(engine_, data, epsilon, flags);
      primitive_ = BatchNorm(description);
      implementation_ = description.impl_info_str();
    }
    if (!spec.fuse.empty())
      notes_.push_back("fused steps: dy is taken through them outside oneDNN");
    if (way_ == Way::TransposedBatchNorm)
      notes_.push_back("dgamma, dbeta: not in the transposed problem");
  }

  void run() override {
    const ThreadLimit limit(threads_);
    primitive_.execute(stream_, arguments_);
    stream_.wait();
  }

  Arrays outputs() override {
    Arrays result;
    auto take = [&](const char *name, const memory &from, const std::vector<int64_t> &shape) {
      HostArray array(DType::F32, shape);
      std::memcpy(array.bytes.data(), from.get_data_handle(), array.bytes.size());
      result.emplace(name, std::move(array));
    };
    take("dx", dx_, at_.memoryShape());
    if (dgamma_ && spec_.learnsGamma())
      take("dgamma", dgamma_, at_.parameterShape());
    if (dbeta_ && spec_.learnsBeta())
      take("dbeta", dbeta_, at_.parameterShape());
    return result;
  }

  std::string implementation() const override { return implementation_; }
  std::string notes() const override { return fmt::format("{}", fmt::join(notes_, "; ")); }

private:
  /// dy behind the fused steps, and behind gamma where the primitive does not have it.
  memory gradient(const Arrays &inputs, const Sizes &sizes, const Numbers &scalars,
                  const memory::desc &data) {
    HostArray value = epilogueGradients(spec_, sizes, inputs, scalars).value;
    if (way_ == Way::TransposedBatchNorm && spec_.scale)
      at_.forEach([&](Place p) {
        value.set(p.offset, value.get(p.offset) * inputs.at("gamma").get(p.parameter));
      });
    return copyData(value, at_, data, engine_);
  }

  const Spec spec_;
  const Coordinates at_;
  const int threads_;
  const Way way_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  memory dx_, dgamma_, dbeta_;
  dnnl::primitive primitive_;
  std::unordered_map<int, memory> arguments_;
  std::string implementation_;
  std::vector<std::string> notes_;
};

} // namespace

std::unique_ptr<OneDnn> makeOneDnnBackward(const Spec &spec, const Sizes &sizes,
                                           const Arrays &inputs, const Numbers &scalars,
                                           float epsilon, int threads, Way way,
                                           const OneDnnView &view) {
  return std::make_unique<Backward>(spec, sizes, inputs, scalars, epsilon, threads, way, view);
}

} // namespace normforge::oracle
