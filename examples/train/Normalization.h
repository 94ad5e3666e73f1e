// Batch normalization before a relu or after it: by kernels of Normforge, and in plain C++ to
// compare them with.
#pragma once

#include "Layers.h"

#include "normforge/normforge.hpp"

#include <map>
#include <optional>
#include <string>

namespace train {

enum class Place { None, Before, After };
constexpr const char *kPlaceNames[] = {"none", "before", "after"};

constexpr double kEpsilon = 1e-3, kMomentum = 0.9;

/// One spec a layer, of f32 or f64; its arrays are kept by their names, old and new of a state in
/// one buffer.
template <typename Real> class KernelNormalization : public Activation<Real> {
public:
  KernelNormalization(const nf::Engine &engine, Shape shape, Place place, Optimizer optimizer);
  std::vector<Real> training(const std::vector<Real> &z, int64_t batch) override {
    return apply("training", 0, z, batch);
  }
  std::vector<Real> backward(const std::vector<Real> &dy, int64_t batch) override;
  void update(double rate, int64_t step) override;
  std::vector<Real> inference(const std::vector<Real> &z, int64_t batch) override {
    return apply("inference", 0, z, batch);
  }
  std::vector<Real> ofBatch(const std::vector<Real> &z, int64_t batch) override {
    return apply("inference", 2, z, batch);
  }
  void takePopulation(const std::vector<Real> &z, int64_t batch) override;

private:
  struct Prepared {
    nf::Kernel kernel;
    nf::Plan plan;
    nf::Workspace workspace;
  };
  /// y of a forward phase.
  std::vector<Real> apply(const char *phase, int mode, const std::vector<Real> &z, int64_t batch);
  void run(const char *phase, int mode, int64_t batch, std::vector<double> scalars = {});
  void set(const char *name, const std::vector<Real> &values);
  std::vector<Real> get(const char *name) const;

  const nf::Engine &engine_;
  Shape shape_;
  std::string keys_; ///< of the spec, but for mode and phases
  std::map<std::string, Prepared> prepared_;
  std::map<std::string, std::vector<std::byte>> arrays_;
};

/// Ioffe and Szegedy 2015, Algorithm 1 and section 3.
class PlainNormalization : public Activation<double> {
public:
  PlainNormalization(Shape shape, Place place, Optimizer optimizer);
  std::vector<double> training(const std::vector<double> &z, int64_t batch) override;
  std::vector<double> backward(const std::vector<double> &dy, int64_t batch) override;
  void update(double rate, int64_t step) override;
  std::vector<double> inference(const std::vector<double> &z, int64_t batch) override;

private:
  size_t channels_;
  Place place_;
  Optimizer optimizer_;
  Relu<double> relu_;
  Learned<double> gamma_, beta_;
  std::vector<double> movingMean_, movingVariance_, xhat_, deviation_;
};

} // namespace train
