// The two networks, their data, and a training run.
#pragma once

#include "Normalization.h"

#include <algorithm>
#include <numeric>

namespace train {

enum class Net { Dense, Convolutional };
constexpr const char *kNetNames[] = {"dense", "convolutional"};

/// Samples one after the other, and the number of each one's class.
struct Samples {
  Shape shape;
  int64_t count = 0, classes = 0;
  std::vector<double> x;
  std::vector<int64_t> labels;
};

/// Dense: three spirals that wind about each other, in a plane of 8 dimensions. Convolutional:
/// noisy images with a bar that lies, stands or leans, or a disc.
inline Samples drawSamples(Net net, int64_t count, uint64_t seed) {
  Random random(seed), fixed(1);
  Samples samples;
  samples.count = count;
  if (net == Net::Dense) {
    samples.shape = {1, 8};
    samples.classes = 3;
    std::vector<double> plane(16);
    for (double &of : plane)
      of = fixed.normal();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t label = i % 3;
      const double along = random.uniform();
      const double angle = 7 * along + 2.09439510239319549231 * static_cast<double>(label);
      const double u = along * std::cos(angle) + 0.02 * random.normal(),
                   v = along * std::sin(angle) + 0.02 * random.normal();
      for (size_t d = 0; d < 8; ++d)
        samples.x.push_back(u * plane[d] + v * plane[8 + d] + 0.02 * random.normal());
      samples.labels.push_back(label);
    }
    return samples;
  }
  constexpr int64_t side = 12;
  samples.shape = {side, 1};
  samples.classes = 4;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t label = i % 4;
    const double y = 3 + 6 * random.uniform(), x = 3 + 6 * random.uniform();
    const double strength = 0.5 + random.uniform();
    for (int64_t h = 0; h < side; ++h)
      for (int64_t w = 0; w < side; ++w) {
        const double dy = static_cast<double>(h) - y, dx = static_cast<double>(w) - x;
        const double distance = std::hypot(dy, dx), across = label == 0   ? dy
                                                             : label == 1 ? dx
                                                                          : (dy - dx) * 0.70710678;
        const bool isIn = label == 3 ? distance < 2.2 : std::abs(across) < 0.8 && distance < 4;
        samples.x.push_back((isIn ? strength : 0) + 0.25 * random.normal());
      }
    samples.labels.push_back(label);
  }
  return samples;
}

struct Configuration {
  Net net = Net::Dense;
  Place place = Place::None;
  Optimizer optimizer = Optimizer::Sgd;
  double rate = 1;    ///< times the optimizer's own
  double scale = 1;   ///< times the initial weights of He, Zhang, Ren, Sun 2015
  double dropout = 0; ///< after each activation, in training
  int64_t steps = 300;
};

constexpr int64_t kBatch = 64;

/// 8 dense layers of 32 channels, or 6 convolutions; then a mean over positions and a dense layer.
template <typename Real> class Network {
public:
  using MakeActivation = std::unique_ptr<Activation<Real>>(Shape);
  template <typename Make>
  Network(const Configuration &of, const Samples &data, uint64_t seed, Make make) : of_(of) {
    Random random(seed);
    Shape shape = data.shape;
    auto add = [&](int64_t channels, int64_t window, int64_t stride, bool isLast) {
      linear_.emplace_back(shape, channels, window, stride, isLast || of.place != Place::Before);
      Linear<Real> &made = linear_.back();
      const double deviation = of.scale * std::sqrt(2 / static_cast<double>(made.inner()));
      for (Real &weight : made.weights.values)
        weight = static_cast<Real>(deviation * random.normal());
      shape = made.out();
      if (!isLast)
        activations_.push_back(make(shape));
    };
    if (of.net == Net::Dense)
      for (int layer = 0; layer < 8; ++layer)
        add(32, 1, 1, false);
    else
      for (auto [channels, stride] : {std::pair(8, 1), std::pair(8, 1), std::pair(16, 2),
                                      std::pair(16, 1), std::pair(16, 2), std::pair(16, 1)})
        add(channels, 3, stride, false);
    pooled_ = shape;
    shape = {1, shape.channels};
    add(data.classes, 1, 1, true);
  }

  /// The batch's mean cross entropy, its gradients in every layer.
  double step(const std::vector<Real> &x, const std::vector<int64_t> &labels, Random &dropped) {
    const auto batch = static_cast<int64_t>(labels.size());
    std::vector<std::vector<Real>> kept(activations_.size());
    std::vector<Real> value = x;
    for (size_t i = 0; i < activations_.size(); ++i) {
      value = activations_[i]->training(linear_[i].forward(value, batch), batch);
      if (of_.dropout == 0)
        continue;
      for (Real &one : value) {
        kept[i].push_back(dropped.uniform() < of_.dropout
                              ? Real(0)
                              : Real(1) / static_cast<Real>(1 - of_.dropout));
        one *= kept[i].back();
      }
    }
    const std::vector<Real> logits = linear_.back().forward(pool(value, batch), batch);
    const size_t classes = logits.size() / labels.size();
    std::vector<Real> gradient(logits.size());
    double loss = 0;
    for (size_t n = 0; n < labels.size(); ++n) {
      const Real *const of = logits.data() + n * classes;
      const Real most = *std::max_element(of, of + classes);
      Real sum = 0;
      for (size_t c = 0; c < classes; ++c)
        sum += std::exp(of[c] - most);
      const auto label = static_cast<size_t>(labels[n]);
      loss -= static_cast<double>(of[label] - most - std::log(sum)) / static_cast<double>(batch);
      for (size_t c = 0; c < classes; ++c)
        gradient[n * classes + c] =
            (std::exp(of[c] - most) / sum - (c == label ? 1 : 0)) / static_cast<Real>(batch);
    }
    gradient = unpool(linear_.back().backward(gradient, batch), batch);
    for (size_t i = activations_.size(); i-- > 0;) {
      for (size_t k = 0; k < kept[i].size(); ++k)
        gradient[k] *= kept[i][k];
      gradient = linear_[i].backward(activations_[i]->backward(gradient, batch), batch);
    }
    return loss;
  }
  void update(double rate, int64_t step) {
    for (Linear<Real> &layer : linear_)
      for (Learned<Real> *of : {&layer.weights, &layer.bias})
        of->update(of_.optimizer, static_cast<Real>(rate), step);
    for (auto &activation : activations_)
      activation->update(rate, step);
  }
  /// The norms of the gradients of the weights of each layer but the last.
  std::vector<double> gradientNorms() const {
    std::vector<double> norms;
    for (size_t i = 0; i < activations_.size(); ++i) {
      double squares = 0;
      for (const Real g : linear_[i].weights.gradient)
        squares += static_cast<double>(g) * static_cast<double>(g);
      norms.push_back(std::sqrt(squares));
    }
    return norms;
  }
  /// The share of samples whose class is found; `apply` gives an activation's y.
  template <typename Apply> double accuracy(const Samples &data, Apply apply) {
    std::vector<Real> value(data.x.begin(), data.x.end());
    for (size_t i = 0; i < activations_.size(); ++i)
      value = apply(*activations_[i], linear_[i].forward(value, data.count));
    const std::vector<Real> logits = linear_.back().forward(pool(value, data.count), data.count);
    int64_t right = 0;
    for (int64_t n = 0; n < data.count; ++n) {
      const auto of = logits.begin() + n * data.classes;
      right += std::max_element(of, of + data.classes) - of == data.labels[static_cast<size_t>(n)];
    }
    return static_cast<double>(right) / static_cast<double>(data.count);
  }

private:
  std::vector<Real> pool(const std::vector<Real> &x, int64_t batch) const {
    std::vector<Real> mean(static_cast<size_t>(batch * pooled_.channels), 0);
    for (size_t i = 0; i < x.size(); ++i)
      mean[pooledOf(i)] += x[i] / static_cast<Real>(pooled_.positions());
    return mean;
  }
  std::vector<Real> unpool(const std::vector<Real> &dmean, int64_t batch) const {
    std::vector<Real> dx(static_cast<size_t>(batch * pooled_.size()));
    for (size_t i = 0; i < dx.size(); ++i)
      dx[i] = dmean[pooledOf(i)] / static_cast<Real>(pooled_.positions());
    return dx;
  }
  size_t pooledOf(size_t i) const {
    const auto channels = static_cast<size_t>(pooled_.channels);
    return i / static_cast<size_t>(pooled_.size()) * channels + i % channels;
  }

  Configuration of_;
  Shape pooled_;
  std::vector<Linear<Real>> linear_;
  std::vector<std::unique_ptr<Activation<Real>>> activations_;
};

/// Losses by step, of batches drawn alike for all configurations of a network.
template <typename Real>
std::vector<double> trainNetwork(Network<Real> &network, const Configuration &of,
                                 const Samples &data, std::vector<double> *norms = nullptr) {
  Random random(3), dropped(4);
  std::vector<double> losses;
  const int64_t size = data.shape.size();
  for (int64_t step = 1; step <= of.steps; ++step) {
    std::vector<Real> x;
    std::vector<int64_t> labels;
    for (int64_t n = 0; n < kBatch; ++n) {
      const auto sample = static_cast<int64_t>(random.uniform() * static_cast<double>(data.count));
      const auto first = data.x.begin() + sample * size;
      x.insert(x.end(), first, first + size);
      labels.push_back(data.labels[static_cast<size_t>(sample)]);
    }
    losses.push_back(network.step(x, labels, dropped));
    if (step == 1 && norms)
      *norms = network.gradientNorms();
    network.update(of.rate * kRates[static_cast<size_t>(of.optimizer)], step);
  }
  return losses;
}

} // namespace train
