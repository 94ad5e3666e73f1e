// Layers of a small network in plain C++: products with weights, activations, dropout, the softmax,
// and optimizers of weights. Activations are rows of channels, row by row: samples, then positions
// (nhwc, nc). `Real` is what everything is computed in.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

namespace train {

enum class Optimizer { Sgd, Momentum, RMSprop, Adam };
constexpr Optimizer kOptimizers[] = {Optimizer::Sgd, Optimizer::Momentum, Optimizer::RMSprop,
                                     Optimizer::Adam};
constexpr const char *kOptimizerNames[] = {"sgd", "momentum", "rmsprop", "adam"};
/// Keras 3's rates.
constexpr double kRates[] = {0.01, 0.01, 0.001, 0.001};

/// Numbers that are the same wherever the library of mathematics is.
class Random {
public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(6.28318530717958647692 * uniform());
  }

private:
  std::mt19937_64 engine_;
};

/// Learned numbers, their gradient, and what the optimizer keeps of them; Keras 3's formulas.
template <typename Real> struct Learned {
  std::vector<Real> values, gradient, first, second;

  void resize(size_t count) {
    for (auto *of : {&values, &gradient, &first, &second})
      of->assign(count, 0);
  }
  void update(Optimizer optimizer, Real rate, int64_t step) {
    const Real t = static_cast<Real>(step);
    const Real corrected = rate * std::sqrt(-std::expm1(t * std::log(Real(0.999)))) /
                           -std::expm1(t * std::log(Real(0.9)));
    for (size_t i = 0; i < values.size(); ++i) {
      const Real g = gradient[i];
      switch (optimizer) {
      case Optimizer::Sgd:
        values[i] -= rate * g;
        break;
      case Optimizer::Momentum:
        first[i] = Real(0.9) * first[i] - rate * g;
        values[i] += first[i];
        break;
      case Optimizer::RMSprop:
        second[i] = Real(0.9) * second[i] + Real(0.1) * g * g;
        values[i] -= rate * g / std::sqrt(second[i] + Real(1e-7));
        break;
      case Optimizer::Adam:
        first[i] = Real(0.9) * first[i] + Real(0.1) * g;
        second[i] = Real(0.999) * second[i] + Real(0.001) * g * g;
        values[i] -= corrected * first[i] / (std::sqrt(second[i]) + Real(1e-7));
        break;
      }
    }
  }
};

/// c += a*b, of rows x inner and inner x columns.
template <typename Real>
void addProduct(const Real *a, const Real *b, Real *c, int64_t rows, int64_t inner,
                int64_t columns) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t k = 0; k < inner; ++k) {
      const Real by = a[row * inner + k];
      for (int64_t column = 0; column < columns; ++column)
        c[row * columns + column] += by * b[k * columns + column];
    }
}

/// Square images of `side` with as many `channels`; side 1 is a vector.
struct Shape {
  int64_t side = 1, channels = 1;
  int64_t positions() const { return side * side; }
  int64_t size() const { return positions() * channels; }
};

/// A convolution of windows x windows, padded so that windows lie around each position; of windows
/// and side 1 it is a dense layer.
template <typename Real> class Linear {
public:
  Linear(Shape in, int64_t channels, int64_t window, int64_t stride, bool hasBias)
      : in_(in), window_(window), stride_(stride) {
    out_ = {(in.side + stride - 1) / stride, channels};
    weights.resize(static_cast<size_t>(inner() * channels));
    bias.resize(hasBias ? static_cast<size_t>(channels) : 0);
  }
  Shape out() const { return out_; }
  int64_t inner() const { return window_ * window_ * in_.channels; }

  const std::vector<Real> &forward(const std::vector<Real> &x, int64_t batch) {
    rows_ = batch * out_.positions();
    windows_.assign(static_cast<size_t>(rows_ * inner()), 0);
    forEachWindow(batch,
                  [&](size_t ofWindows, size_t ofImage) { windows_[ofWindows] = x[ofImage]; });
    y_.assign(static_cast<size_t>(rows_ * out_.channels), 0);
    for (size_t i = 0; !bias.values.empty() && i < y_.size(); ++i)
      y_[i] = bias.values[i % bias.values.size()];
    addProduct(windows_.data(), weights.values.data(), y_.data(), rows_, inner(), out_.channels);
    return y_;
  }
  std::vector<Real> backward(const std::vector<Real> &dy, int64_t batch) {
    const int64_t columns = out_.channels;
    std::vector<Real> turned(weights.values.size()), dwindows(windows_.size(), 0);
    for (int64_t k = 0; k < inner(); ++k)
      for (int64_t c = 0; c < columns; ++c)
        turned[static_cast<size_t>(c * inner() + k)] =
            weights.values[static_cast<size_t>(k * columns + c)];
    weights.gradient.assign(weights.values.size(), 0);
    bias.gradient.assign(bias.values.size(), 0);
    for (int64_t row = 0; row < rows_; ++row) // of each row the outer product
      addProduct(windows_.data() + row * inner(), dy.data() + row * columns,
                 weights.gradient.data(), inner(), 1, columns);
    for (size_t i = 0; !bias.values.empty() && i < dy.size(); ++i)
      bias.gradient[i % bias.values.size()] += dy[i];
    addProduct(dy.data(), turned.data(), dwindows.data(), rows_, columns, inner());
    std::vector<Real> dx(static_cast<size_t>(batch * in_.size()), 0);
    forEachWindow(batch,
                  [&](size_t ofWindows, size_t ofImage) { dx[ofImage] += dwindows[ofWindows]; });
    return dx;
  }

  Learned<Real> weights, bias; ///< weights: window positions and channels, then those of y

private:
  template <typename Take> void forEachWindow(int64_t batch, Take take) const {
    size_t at = 0;
    for (int64_t n = 0; n < batch; ++n)
      for (int64_t h = 0; h < out_.side; ++h)
        for (int64_t w = 0; w < out_.side; ++w)
          for (int64_t i = 0; i < window_; ++i)
            for (int64_t j = 0; j < window_; ++j) {
              const int64_t row = h * stride_ + i - window_ / 2,
                            column = w * stride_ + j - window_ / 2;
              const bool isInside = row >= 0 && row < in_.side && column >= 0 && column < in_.side;
              for (int64_t c = 0; c < in_.channels; ++c, ++at)
                if (isInside)
                  take(at, static_cast<size_t>(
                               ((n * in_.side + row) * in_.side + column) * in_.channels + c));
            }
  }

  Shape in_, out_;
  int64_t window_, stride_, rows_ = 0;
  std::vector<Real> windows_, y_;
};

/// The layer that follows a product: an activation, with a normalization or without.
template <typename Real> class Activation {
public:
  virtual ~Activation() = default;
  virtual std::vector<Real> training(const std::vector<Real> &z, int64_t batch) = 0;
  virtual std::vector<Real> backward(const std::vector<Real> &dy, int64_t batch) = 0;
  virtual void update(double /*rate*/, int64_t /*step*/) {}
  virtual std::vector<Real> inference(const std::vector<Real> &z, int64_t batch) = 0;
  /// With the statistics of these samples alone, as mode 2.
  virtual std::vector<Real> ofBatch(const std::vector<Real> &z, int64_t batch) {
    return inference(z, batch);
  }
  /// Takes new moving statistics of all of these samples.
  virtual void takePopulation(const std::vector<Real> & /*z*/, int64_t /*batch*/) {}
};

template <typename Real> class Relu : public Activation<Real> {
public:
  std::vector<Real> training(const std::vector<Real> &z, int64_t batch) override {
    z_ = z;
    return inference(z, batch);
  }
  std::vector<Real> backward(const std::vector<Real> &dy, int64_t) override {
    std::vector<Real> dz = dy;
    for (size_t i = 0; i < dz.size(); ++i)
      dz[i] = z_[i] > 0 ? dz[i] : 0;
    return dz;
  }
  std::vector<Real> inference(const std::vector<Real> &z, int64_t) override {
    std::vector<Real> y = z;
    for (Real &of : y)
      of = of < 0 ? 0 : of;
    return y;
  }

private:
  std::vector<Real> z_;
};

} // namespace train
