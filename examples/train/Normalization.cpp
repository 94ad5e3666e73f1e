#include "Normalization.h"

#include <cstring>

namespace train {

template <typename Real>
KernelNormalization<Real>::KernelNormalization(const nf::Engine &engine, Shape shape, Place place,
                                               Optimizer optimizer)
    : engine_(engine), shape_(shape) {
  const std::string channels = std::to_string(shape.channels), side = std::to_string(shape.side),
                    type = sizeof(Real) == sizeof(float) ? "f32" : "f64";
  keys_ = "name: layer\nsemantics: keras-3\naxis: c\nepsilon: 1.0e-3\n";
  keys_ += shape.side == 1
               ? "input: {shape: [N, " + channels + "], layout: nc, dtype: " + type + "}\n"
               : "input: {shape: [N, " + side + ", " + side + ", " + channels +
                     "], layout: nhwc, dtype: " + type + "}\n";
  keys_ += place == Place::Before ? "fuse: [relu]\n" : "prologue: [relu]\n";
  keys_ += std::string("optimizer: {") + kOptimizerNames[static_cast<size_t>(optimizer)] +
           ": {learning_rate: argument}}\n";
  const auto count = static_cast<size_t>(shape.channels);
  set("gamma", std::vector<Real>(count, 1));
  set("beta", std::vector<Real>(count, 0));
  set("moving_mean", std::vector<Real>(count, 0));
  set("moving_variance", std::vector<Real>(count, 1));
}

template <typename Real>
void KernelNormalization<Real>::run(const char *phase, int mode, int64_t batch,
                                    std::vector<double> scalars) {
  const std::string key =
      std::string(phase) + " " + std::to_string(mode) + " " + std::to_string(batch);
  auto found = prepared_.find(key);
  if (found == prepared_.end()) {
    const std::string text =
        keys_ +
        (mode == 0 ? "momentum: 0.9\nphases: [training, backward, update, inference, population]\n"
                   : "mode: 2\nphases: [inference, update]\n");
    const nf::Kernel kernel = engine_.compile(text, {.phase = phase, .cpu = {}, .sourceName = {}});
    const std::vector<int64_t> sizes(kernel.sizeCount(), batch);
    const nf::Plan plan = kernel.plan(sizes);
    found = prepared_.emplace(key, Prepared{kernel, plan, plan.makeWorkspace()}).first;
  }
  const auto &[kernel, plan, workspace] = found->second;
  std::vector<void *> args;
  for (size_t i = 0; i < kernel.argumentCount(); ++i) {
    std::vector<std::byte> &array = arrays_[std::string(kernel.argumentName(i))];
    array.resize(plan.bytes(i)); // what is new is 0
    args.push_back(array.data());
  }
  plan.run(args, scalars, workspace.get());
}

template <typename Real>
void KernelNormalization<Real>::set(const char *name, const std::vector<Real> &values) {
  std::vector<std::byte> &array = arrays_[name];
  array.resize(values.size() * sizeof(Real));
  std::memcpy(array.data(), values.data(), array.size());
}

template <typename Real> std::vector<Real> KernelNormalization<Real>::get(const char *name) const {
  const std::vector<std::byte> &array = arrays_.at(name);
  std::vector<Real> values(array.size() / sizeof(Real));
  std::memcpy(values.data(), array.data(), array.size());
  return values;
}

template <typename Real>
std::vector<Real> KernelNormalization<Real>::apply(const char *phase, int mode,
                                                   const std::vector<Real> &z, int64_t batch) {
  set("x", z);
  run(phase, mode, batch);
  return get("y");
}

template <typename Real>
std::vector<Real> KernelNormalization<Real>::backward(const std::vector<Real> &dy, int64_t batch) {
  set("dy", dy);
  run("backward", 0, batch);
  return get("dx");
}

template <typename Real> void KernelNormalization<Real>::update(double rate, int64_t step) {
  std::vector<double> scalars{rate};
  if (keys_.find("adam") != std::string::npos)
    scalars.push_back(static_cast<double>(step));
  run("update", 0, 0, scalars);
}

template <typename Real>
void KernelNormalization<Real>::takePopulation(const std::vector<Real> &z, int64_t batch) {
  set("x", z);
  for (const char *name : {"population_count", "population_mean", "population_m2"})
    arrays_[name].assign(static_cast<size_t>(shape_.channels) * sizeof(double), std::byte(0));
  run("population", 0, batch);
}

template class KernelNormalization<float>;
template class KernelNormalization<double>;

PlainNormalization::PlainNormalization(Shape shape, Place place, Optimizer optimizer)
    : channels_(static_cast<size_t>(shape.channels)), place_(place), optimizer_(optimizer) {
  gamma_.resize(channels_);
  beta_.resize(channels_);
  gamma_.values.assign(channels_, 1);
  movingMean_.assign(channels_, 0);
  movingVariance_.assign(channels_, 1);
}

std::vector<double> PlainNormalization::training(const std::vector<double> &z, int64_t batch) {
  std::vector<double> x = place_ == Place::After ? relu_.training(z, batch) : z;
  const double n = static_cast<double>(x.size() / channels_);
  std::vector<double> mean(channels_, 0), variance(channels_, 0);
  for (size_t i = 0; i < x.size(); ++i)
    mean[i % channels_] += x[i] / n;
  for (size_t i = 0; i < x.size(); ++i) {
    const double centered = x[i] - mean[i % channels_];
    variance[i % channels_] += centered * centered / n;
  }
  deviation_.resize(channels_);
  for (size_t c = 0; c < channels_; ++c) {
    deviation_[c] = std::sqrt(variance[c] + kEpsilon);
    movingMean_[c] = kMomentum * movingMean_[c] + (1 - kMomentum) * mean[c];
    movingVariance_[c] = kMomentum * movingVariance_[c] + (1 - kMomentum) * variance[c];
  }
  xhat_.resize(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t c = i % channels_;
    xhat_[i] = (x[i] - mean[c]) / deviation_[c];
    x[i] = gamma_.values[c] * xhat_[i] + beta_.values[c];
  }
  return place_ == Place::Before ? relu_.training(x, batch) : x;
}

std::vector<double> PlainNormalization::backward(const std::vector<double> &dy, int64_t batch) {
  const std::vector<double> u = place_ == Place::Before ? relu_.backward(dy, batch) : dy;
  gamma_.gradient.assign(channels_, 0);
  beta_.gradient.assign(channels_, 0);
  for (size_t i = 0; i < u.size(); ++i) {
    gamma_.gradient[i % channels_] += u[i] * xhat_[i];
    beta_.gradient[i % channels_] += u[i];
  }
  const double n = static_cast<double>(u.size() / channels_);
  std::vector<double> dx(u.size());
  for (size_t i = 0; i < u.size(); ++i) {
    const size_t c = i % channels_;
    dx[i] = gamma_.values[c] / deviation_[c] *
            (u[i] - beta_.gradient[c] / n - xhat_[i] * gamma_.gradient[c] / n);
  }
  return place_ == Place::After ? relu_.backward(dx, batch) : dx;
}

void PlainNormalization::update(double rate, int64_t step) {
  gamma_.update(optimizer_, rate, step);
  beta_.update(optimizer_, rate, step);
}

std::vector<double> PlainNormalization::inference(const std::vector<double> &z, int64_t batch) {
  std::vector<double> x = place_ == Place::After ? relu_.inference(z, batch) : z;
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t c = i % channels_;
    x[i] = gamma_.values[c] * (x[i] - movingMean_[c]) / std::sqrt(movingVariance_[c] + kEpsilon) +
           beta_.values[c];
  }
  return place_ == Place::Before ? relu_.inference(x, batch) : x;
}

} // namespace train
