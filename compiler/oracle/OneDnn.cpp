// oneDNN set up for a spec. Written for the C++ API of 2.6 and of 3.x, which
// differ in how primitive descriptors are made and in nothing else that is used
// here.

#include "compiler/oracle/OneDnnMemory.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstring>
#include <unordered_map>

namespace normforge::oracle {

namespace {

using dnnl::memory;
using dnnl::normalization_flags;

// The two versions of the API.

using BatchNorm = dnnl::batch_normalization_forward;
using LayerNorm = dnnl::layer_normalization_forward;

#if DNNL_VERSION_MAJOR >= 3
BatchNorm::primitive_desc describeBatchNorm(const dnnl::engine &engine, dnnl::prop_kind kind,
                                            const memory::desc &data, float epsilon,
                                            normalization_flags flags) {
  return BatchNorm::primitive_desc(engine, kind, data, data, epsilon, flags);
}
LayerNorm::primitive_desc describeLayerNorm(const dnnl::engine &engine, dnnl::prop_kind kind,
                                            const memory::desc &data,
                                            const memory::desc &statistics, float epsilon,
                                            normalization_flags flags) {
  return LayerNorm::primitive_desc(engine, kind, data, data, statistics, epsilon, flags);
}
dnnl::binary::primitive_desc describeAdd(const dnnl::engine &engine, const memory::desc &data,
                                         bool thenRelu) {
  dnnl::post_ops postOps;
  if (thenRelu)
    postOps.append_eltwise(dnnl::algorithm::eltwise_relu, 0, 0);
  dnnl::primitive_attr attributes;
  attributes.set_post_ops(postOps);
  return dnnl::binary::primitive_desc(engine, dnnl::algorithm::binary_add, data, data, data,
                                      attributes);
}
dnnl::eltwise_forward::primitive_desc describeRelu(const dnnl::engine &engine,
                                                   const memory::desc &data) {
  return dnnl::eltwise_forward::primitive_desc(engine, dnnl::prop_kind::forward_inference,
                                               dnnl::algorithm::eltwise_relu, data, data, 0, 0);
}
#else
BatchNorm::primitive_desc describeBatchNorm(const dnnl::engine &engine, dnnl::prop_kind kind,
                                            const memory::desc &data, float epsilon,
                                            normalization_flags flags) {
  return BatchNorm::primitive_desc(BatchNorm::desc(kind, data, epsilon, flags), engine);
}
LayerNorm::primitive_desc describeLayerNorm(const dnnl::engine &engine, dnnl::prop_kind kind,
                                            const memory::desc &data,
                                            const memory::desc &statistics, float epsilon,
                                            normalization_flags flags) {
  return LayerNorm::primitive_desc(LayerNorm::desc(kind, data, statistics, epsilon, flags), engine);
}
dnnl::binary::primitive_desc describeAdd(const dnnl::engine &engine, const memory::desc &data,
                                         bool thenRelu) {
  dnnl::post_ops postOps;
  if (thenRelu)
    postOps.append_eltwise(1, dnnl::algorithm::eltwise_relu, 0, 0);
  dnnl::primitive_attr attributes;
  attributes.set_post_ops(postOps);
  return dnnl::binary::primitive_desc(
      dnnl::binary::desc(dnnl::algorithm::binary_add, data, data, data), attributes, engine);
}
dnnl::eltwise_forward::primitive_desc describeRelu(const dnnl::engine &engine,
                                                   const memory::desc &data) {
  return dnnl::eltwise_forward::primitive_desc(
      dnnl::eltwise_forward::desc(dnnl::prop_kind::forward_inference, dnnl::algorithm::eltwise_relu,
                                  data, 0, 0),
      engine);
}
#endif

class Problem final : public OneDnn {
public:
  Problem(const Spec &spec, Phase phase, const Sizes &sizes, const Arrays &inputs, float epsilon,
          int threads, Way way, const OneDnnView &view)
      : spec_(spec), phase_(phase), at_(spec, sizes), threads_(threads), way_(way),
        engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    const ThreadLimit limit(threads_);
    const memory::desc data = describe(view);
    y_ = memory(data, engine_);
    const memory x = copyOfData(inputs.at("x"), data);

    size_t next; // of the fused steps, the first that the normalization does
                 // not do itself
    if (way_ == Way::LayerNorm)
      next = addLayerNorm(view, data, x, inputs, epsilon);
    else
      next = addBatchNorm(data, x, inputs, epsilon);
    if (way_ == Way::TransposedBatchNorm) {
      inputs_ = inputs; // for what outputs() applies
      notes_.push_back("gamma, beta and fused steps: applied outside oneDNN");
    } else {
      addFusedSteps(next, data, inputs);
    }
    if (spec_.updatesMovingStatistics(phase_))
      notes_.push_back(
          fmt::format("moving_mean, moving_variance{}: not in oneDNN, checked "
                      "with the f64 reference alone",
                      spec_.runningVariance == RunningVariance::Biased
                          ? ""
                          : fmt::format(" ({} correction)", toString(spec_.runningVariance))));
  }

  void run() override {
    const ThreadLimit limit(threads_);
    for (const Step &step : steps_)
      step.primitive.execute(stream_, step.arguments);
    stream_.wait();
  }

  Arrays outputs() override {
    Arrays result;
    HostArray y(DType::F32, at_.memoryShape());
    std::memcpy(y.bytes.data(), y_.get_data_handle(), y.bytes.size());
    if (way_ == Way::TransposedBatchNorm)
      applyParameters(y);
    result.emplace("y", std::move(y));
    if (trains()) {
      for (auto [name, values] :
           {std::pair{"batch_mean", &mean_}, {"batch_variance", &variance_}}) {
        HostArray array(DType::F32, at_.groupShape());
        std::memcpy(array.bytes.data(), values->get_data_handle(), array.bytes.size());
        result.emplace(name, std::move(array));
      }
    }
    return result;
  }

  std::string implementation() const override {
    return fmt::format("{}", fmt::join(implementations_, " + "));
  }
  std::string notes() const override { return fmt::format("{}", fmt::join(notes_, "; ")); }

private:
  struct Step {
    dnnl::primitive primitive;
    std::unordered_map<int, memory> arguments;
  };

  /// With a padded last block oneDNN 2.6.3's binary forgets a relu behind it in that block; with an
  /// odd number of blocks of 8 it goes beyond the arrays' end.
  bool mayFuseRelu() const {
    const Layout &layout = spec_.layout;
    constexpr int64_t most = 16; // lanes
    return !layout.isBlocked() ||
           at_.shape()[layout.blockedAxis] % std::max<int64_t>(layout.block, most) == 0;
  }

  memory copyOfData(const HostArray &from, const memory::desc &desc) {
    return copyData(from, at_, desc, engine_);
  }
  memory copyOfVector(const HostArray &from) { return copyVector(from, engine_); }

  void addParameters(const Arrays &inputs, normalization_flags &flags, Step &step) {
    if (way_ == Way::TransposedBatchNorm)
      return;
    if (spec_.scale) {
      flags = flags | normalization_flags::use_scale;
      step.arguments[DNNL_ARG_SCALE] = copyOfVector(inputs.at("gamma"));
    }
    if (spec_.center) {
      flags = flags | normalization_flags::use_shift;
      step.arguments[DNNL_ARG_SHIFT] = copyOfVector(inputs.at("beta"));
    }
  }

  /// With the batch's statistics, which frozen layers do not take.
  bool trains() const { return phase_ == Phase::Training && !spec_.takesMovingStatistics(phase_); }

  dnnl::prop_kind kind() const {
    return trains() ? dnnl::prop_kind::forward_training : dnnl::prop_kind::forward_inference;
  }

  size_t addBatchNorm(const memory::desc &data, const memory &x, const Arrays &inputs,
                      float epsilon) {
    Step step;
    step.arguments = {{DNNL_ARG_SRC, x}, {DNNL_ARG_DST, y_}};
    normalization_flags flags = normalization_flags::none;
    addParameters(inputs, flags, step);
    if (trains()) {
      mean_ = memory(dense({at_.groups()}), engine_);
      variance_ = memory(dense({at_.groups()}), engine_);
    } else if (spec_.takesMovingStatistics(phase_)) {
      flags = flags | normalization_flags::use_global_stats;
      mean_ = copyOfVector(inputs.at("moving_mean"));
      variance_ = copyOfVector(inputs.at("moving_variance"));
    }
    if (mean_) {
      step.arguments[DNNL_ARG_MEAN] = mean_;
      step.arguments[DNNL_ARG_VARIANCE] = variance_;
    }

    // A relu right behind is part of the primitive; in training that writes a
    // mask for the backward pass as well.
    const bool reluFirst = way_ != Way::TransposedBatchNorm && !spec_.fuse.empty() &&
                           spec_.fuse.front().name == "relu";
    bool fused = false;
    BatchNorm::primitive_desc description;
    if (reluFirst) {
      try {
        description = describeBatchNorm(engine_, kind(), data, epsilon,
                                        flags | normalization_flags::fuse_norm_relu);
        // On plain channels-first layouts its generic code is several times slower with the relu
        // than without (8x64x56x56: 9.3 ms against 1.7 ms): there the relu comes after it.
        fused = std::string(description.impl_info_str()).find("ncsp") == std::string::npos;
        if (fused && trains()) {
          step.arguments[DNNL_ARG_WORKSPACE] = memory(description.workspace_desc(), engine_);
          notes_.push_back("relu: oneDNN's also writes a mask for the backward pass");
        }
      } catch (const dnnl::error &) {
        fused = false; // not built in; a step of its own follows
      }
    }
    if (!fused)
      description = describeBatchNorm(engine_, kind(), data, epsilon, flags);
    step.primitive = BatchNorm(description);
    implementations_.push_back(description.impl_info_str());
    steps_.push_back(std::move(step));
    return fused;
  }

  size_t addLayerNorm(const OneDnnView &view, const memory::desc &data, const memory &x,
                      const Arrays &inputs, float epsilon) {
    Step step;
    step.arguments = {{DNNL_ARG_SRC, x}, {DNNL_ARG_DST, y_}};
    normalization_flags flags = normalization_flags::none;
    addParameters(inputs, flags, step);
    const memory::desc statistics = dense({view.dims.begin(), view.dims.end() - 1});
    if (trains()) {
      mean_ = memory(statistics, engine_);
      variance_ = memory(statistics, engine_);
      step.arguments[DNNL_ARG_MEAN] = mean_;
      step.arguments[DNNL_ARG_VARIANCE] = variance_;
    }
    const LayerNorm::primitive_desc description =
        describeLayerNorm(engine_, kind(), data, statistics, epsilon, flags);
    step.primitive = LayerNorm(description);
    implementations_.push_back(description.impl_info_str());
    steps_.push_back(std::move(step));
    return 0;
  }

  /// The fused steps from `next` on as primitives of their own, y in place.
  void addFusedSteps(size_t next, const memory::desc &data, const Arrays &inputs) {
    memory addend;
    for (; next < spec_.fuse.size(); ++next) {
      Step step;
      if (spec_.fuse[next].isAdd()) {
        if (!addend)
          addend = copyOfData(inputs.at("addend"), data);
        const bool thenRelu =
            mayFuseRelu() && next + 1 < spec_.fuse.size() && spec_.fuse[next + 1].name == "relu";
        const auto description = describeAdd(engine_, data, thenRelu);
        step.primitive = dnnl::binary(description);
        step.arguments = {{DNNL_ARG_SRC_0, y_}, {DNNL_ARG_SRC_1, addend}, {DNNL_ARG_DST, y_}};
        implementations_.push_back(description.impl_info_str());
        notes_.push_back(thenRelu ? "add, relu: a second primitive of oneDNN"
                                  : "add: a second primitive of oneDNN");
        next += thenRelu;
      } else {
        const auto description = describeRelu(engine_, data);
        step.primitive = dnnl::eltwise_forward(description);
        step.arguments = {{DNNL_ARG_SRC, y_}, {DNNL_ARG_DST, y_}};
        implementations_.push_back(description.impl_info_str());
        notes_.push_back("relu: a primitive of its own in oneDNN");
      }
      steps_.push_back(std::move(step));
    }
  }

  /// gamma, beta and the fused steps on a normalized y, in f32.
  void applyParameters(HostArray &y) const {
    auto *values = y.data<float>();
    at_.forEach([&](Place p) {
      float value = values[p.offset];
      if (spec_.scale)
        value *= static_cast<float>(inputs_.at("gamma").get(p.parameter));
      if (spec_.center)
        value += static_cast<float>(inputs_.at("beta").get(p.parameter));
      for (const FuseStep &step : spec_.fuse)
        value = step.isAdd() ? value + static_cast<float>(inputs_.at("addend").get(p.offset))
                             : static_cast<float>(applyStep(step, value, {}, {}).value);
      values[p.offset] = value;
    });
  }

  const Spec spec_;
  const Phase phase_;
  const Coordinates at_;
  const int threads_;
  const Way way_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  memory y_, mean_, variance_;
  std::vector<Step> steps_;
  std::vector<std::string> implementations_, notes_;
  Arrays inputs_;
};

/// An addend of x's shape, the only one.
bool isPlainAdd(const FuseStep &step) { return step.text() == "add"; }

std::unique_ptr<OneDnn> make(const Spec &spec, Phase phase, const Sizes &sizes,
                             const Arrays &inputs, const Numbers &scalars, int threads, Way way,
                             std::string &whyNot) {
  if (!spec.prologue.empty()) {
    whyNot = "prologue: not computed with oneDNN here";
    return nullptr;
  }
  if (spec.dtype != DType::F32) {
    whyNot = spec.dtype == DType::F64 ? "oneDNN has no f64 normalization on CPUs"
                                      : "oneDNN is asked for f32 alone";
    return nullptr;
  }
  if (spec.parameterDType != DType::F32 && (spec.scale || spec.center)) {
    whyNot = fmt::format("parameter_dtype {}: oneDNN is asked for f32 alone",
                         toString(spec.parameterDType));
    return nullptr;
  }
  if (phase == Phase::Population || isUpdate(phase)) {
    whyNot =
        isUpdate(phase) ? "oneDNN has no optimizers" : "oneDNN takes no statistics of many batches";
    return nullptr;
  }
  if (spec.takesBatchStatistics(phase) && spec.synchronized) {
    whyNot = "oneDNN takes no statistics of several ranks";
    return nullptr;
  }
  if (spec.takesBatchStatistics(phase) &&
      (spec.renorm || spec.ghostBatch > 0 || spec.adjustment || spec.mask)) {
    whyNot = "oneDNN has no renorm, ghost batches, adjustment or mask";
    return nullptr;
  }
  if (spec.takesMovingStatistics(phase) && spec.movingSpread == MovingSpread::Deviation) {
    whyNot = "oneDNN takes a variance, not a deviation";
    return nullptr;
  }
  if (spec.epsilonPosition != EpsilonPosition::Inside) {
    whyNot = "oneDNN's epsilon is inside the root alone";
    return nullptr;
  }
  const Coordinates at(spec, sizes);
  if (at.elements() == 0) {
    whyNot = "there are no elements";
    return nullptr;
  }
  const std::optional<OneDnnView> view =
      way == Way::LayerNorm ? viewAsLayerNorm(spec, at, whyNot) : viewAsBatchNorm(spec, at, whyNot);
  if (!view)
    return nullptr;
  const double epsilon = spec.epsilon.isArgument ? scalars.at("epsilon") : spec.epsilon.value;
  try {
    if (phase == Phase::Backward)
      return makeOneDnnBackward(spec, sizes, inputs, scalars, static_cast<float>(epsilon), threads,
                                way, *view);
    return std::make_unique<Problem>(spec, phase, sizes, inputs, static_cast<float>(epsilon),
                                     threads, way, *view);
  } catch (const dnnl::error &error) {
    whyNot = fmt::format("oneDNN {} refuses the problem: {}", oneDnnVersion(), error.what());
    return nullptr;
  }
}

} // namespace

std::unique_ptr<OneDnn> OneDnn::create(const Spec &spec, Phase phase, const Sizes &sizes,
                                       const Arrays &inputs, const Numbers &scalars, int threads,
                                       std::string &whyNot) {
  if (spec.mode > Mode::Batch) {
    whyNot = fmt::format("mode {}: not in oneDNN as it is", toString(spec.mode));
    return nullptr;
  }
  for (const FuseStep &step : spec.fuse)
    if (phase != Phase::Backward && !isPlainAdd(step) && step.name != "relu") {
      whyNot = fmt::format("{}: not computed with oneDNN here", step.text());
      return nullptr;
    }
  return make(spec, phase, sizes, inputs, scalars, threads,
              spec.mode == Mode::Sample ? Way::LayerNorm : Way::BatchNorm, whyNot);
}

std::unique_ptr<OneDnn> OneDnn::createTransposed(const Spec &spec, Phase phase, const Sizes &sizes,
                                                 const Arrays &inputs, const Numbers &scalars,
                                                 int threads, std::string &whyNot) {
  for (const FuseStep &step : spec.fuse)
    if (phase != Phase::Backward && !step.operands.empty() && !isPlainAdd(step)) {
      whyNot = fmt::format("{}: not computed with oneDNN here", step.text());
      return nullptr;
    }
  if (spec.mode != Mode::Sample && spec.mode != Mode::Instance && spec.mode != Mode::Group) {
    whyNot = "modes 1, instance and group alone are checked through the transposed problem";
    return nullptr;
  }
  return make(spec, phase, sizes, inputs, scalars, threads, Way::TransposedBatchNorm, whyNot);
}

std::string oneDnnVersion() {
  const dnnl_version_t *version = dnnl_version();
  return fmt::format("{}.{}.{}", version->major, version->minor, version->patch);
}

} // namespace normforge::oracle
