#include "bench/Contender.h"

#include "bench/HandWritten.h"
#include "normforge/openmp.h"
#include "runtime/measure/Copy.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace normforge::bench {

namespace {

/// Page-aligned memory, filled with NaN.
class Buffer {
public:
  explicit Buffer(uint64_t bytes)
      : memory_(std::aligned_alloc(4096, (bytes + 4096) / 4096 * 4096), std::free) {
    if (!memory_)
      throw std::bad_alloc();
    std::memset(memory_.get(), 0xFF, bytes);
  }
  explicit Buffer(const HostArray &array) : Buffer(array.bytes.size()) {
    std::memcpy(memory_.get(), array.bytes.data(), array.bytes.size());
  }
  void *get() const { return memory_.get(); }
  float *floats() const { return static_cast<float *>(memory_.get()); }

private:
  std::unique_ptr<void, void (*)(void *)> memory_;
};

bool isLast(const Spec &spec) {
  return spec.axes.back() + 1 == static_cast<int>(spec.shape.size());
}
bool isBlocked(const Spec &spec) { return spec.layout.blockedAxis >= 0; }

class HandWritten : public HandWrittenContender {
public:
  HandWritten(const Case &problem, int64_t streamingBytes)
      : training_(problem.phase == Phase::Training) {
    const Spec &spec = problem.spec;
    const std::vector<int64_t> shape = oracle::argumentShape(spec, "x", problem.sizes);
    nhwc_ = isLast(spec);
    p_.n = shape.front();
    p_.channels = shape[static_cast<size_t>(spec.axes[0])];
    for (size_t i = 1; i < shape.size(); ++i)
      if (static_cast<int>(i) != spec.axes[0])
        p_.pixels *= shape[i];
    for (const auto &[name, array] : problem.inputs)
      buffers_.emplace(name, array);
    buffers_.emplace("y", problem.inputs.at("x").bytes.size());
    auto find = [&](const char *name) -> float * {
      auto at = buffers_.find(name);
      return at == buffers_.end() ? nullptr : at->second.floats();
    };
    p_.x = find("x");
    p_.y = find("y");
    p_.gamma = find("gamma");
    p_.beta = find("beta");
    p_.mean = find("moving_mean");
    p_.variance = find("moving_variance");
    p_.epsilon = static_cast<float>(spec.epsilon.value);
    p_.relu = !spec.fuse.empty();
    p_.streams = bytesMoved(problem).all() > streamingBytes;
    p_.threads = problem.threads;
    workspace_.resize(static_cast<size_t>((problem.threads + 3) * p_.channels));
  }
  void run() override {
    if (training_)
      nhwc_ ? trainingNhwc(p_, workspace_.data()) : trainingNchw(p_);
    else
      nhwc_ ? inferenceNhwc(p_) : inferenceNchw(p_);
  }
  const float *y() const override { return p_.y; }

private:
  bool training_, nhwc_ = false;
  HandWrittenProblem p_;
  std::map<std::string, Buffer> buffers_;
  std::vector<float> workspace_;
};

class Roofline : public Contender {
public:
  Roofline(const Case &problem, bool streams)
      : streams_(streams), executor_(nf_openmp_executor(problem.threads)),
        bytes_(bytesMoved(problem)),
        copy_(static_cast<uint64_t>(bytes_.read), static_cast<uint64_t>(bytes_.written)) {}
  void run() override { copy_.run(streams_, executor_); }
  double scale() const override { return copy_.scale(); }

private:
  bool streams_;
  nf_executor executor_;
  Bytes bytes_;
  MemoryCopy copy_;
};

} // namespace

struct Normforge::State {
  nf_executor executor;
  std::unique_ptr<KernelCall> call;
};

Normforge::Normforge(Session &session, const Case &problem) : state_(std::make_unique<State>()) {
  State &s = *state_;
  s.executor = nf_openmp_executor(problem.threads);
  const Operator op = makeOperator(problem.spec, problem.phase);
  auto variants = chooseSchedules(op, session.target(),
                                  {.forced = problem.schedule,
                                   .tuned = problem.tuned,
                                   .heuristicAlone = problem.heuristicAlone});
  if (!variants)
    throw std::runtime_error("--schedule: " + llvm::toString(variants.takeError()));
  auto artifact = session.compile(op, *variants);
  if (!artifact)
    throw std::runtime_error(llvm::toString(artifact.takeError()));
  Failure failure;
  std::shared_ptr<const Kernel> kernel = Kernel::load(std::move(*artifact), {}, failure);
  std::vector<int64_t> sizes;
  if (kernel) {
    for (const std::string &name : kernel->artifact().sizes)
      sizes.push_back(problem.sizes.at(name));
    s.call = KernelCall::make(kernel, sizes, failure);
  }
  if (!s.call)
    throw std::runtime_error(failure.message);
  s.call->allocate();
  for (const auto &[name, array] : problem.inputs)
    s.call->set(name, std::as_bytes(std::span(array.bytes)));
  std::vector<nf_scalar> scalars;
  for (const Scalar &scalar : kernel->artifact().scalars)
    scalars.push_back(problem.scalars.at(scalar.name));
  s.call->setScalars(std::move(scalars));
}
Normforge::~Normforge() = default;

void Normforge::run() {
  Failure failure;
  if (!state_->call->run(state_->executor, failure))
    throw std::runtime_error(failure.message);
}

HostArray Normforge::output(const std::string &name) const {
  const auto &arguments = state_->call->plan().kernel().artifact().arguments;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].written && arguments[i].name == name)
      return oracle::outputOf(*state_->call, i);
  throw std::runtime_error("no output " + name);
}

std::string Normforge::schedule() const {
  const Plan &plan = state_->call->plan();
  return plan.kernel().artifact().variants[plan.variant()].schedule;
}

std::unique_ptr<OneDnnContender> OneDnnContender::create(const Case &problem, std::string &whyNot) {
  auto made = std::make_unique<OneDnnContender>();
  made->primitive_ =
      oracle::OneDnn::create(problem.spec, problem.phase, problem.sizes, problem.inputs,
                             problem.scalars, problem.threads, whyNot);
  return made->primitive_ ? std::move(made) : nullptr;
}

std::unique_ptr<HandWrittenContender> makeHandWritten(const Case &problem, int64_t streamingBytes) {
  const Spec spec = ofPhase(problem.spec, problem.phase);
  const bool channelsFirst = spec.axes[0] == 1 && !isLast(spec);
  const bool fits = canRunHandWritten() &&
                    (problem.phase == Phase::Inference || problem.phase == Phase::Training) &&
                    (spec.mode == Mode::Feature || spec.mode == Mode::Batch) &&
                    spec.axes.size() == 1 && spec.dtype == DType::F32 && !isBlocked(spec) &&
                    (channelsFirst || isLast(spec)) && !spec.renorm && spec.ghostBatch == 0 &&
                    !spec.adjustment && !spec.mask &&
                    (spec.fuse.empty() || spec.fuse == std::vector<FuseStep>{{"relu"}});
  return fits ? std::make_unique<HandWritten>(problem, streamingBytes) : nullptr;
}

Bytes bytesMoved(const Case &problem) {
  const Operator op = makeOperator(problem.spec, problem.phase);
  std::vector<int64_t> sizes;
  for (const std::string &name : op.sizes)
    sizes.push_back(problem.sizes.at(name));
  Bytes bytes;
  for (const Operand &operand : op.operands)
    if (op.isWhole(operand))
      (operand.written ? bytes.written : bytes.read) += operand.bytes().evaluate(sizes).value();
  return bytes;
}

std::unique_ptr<Contender> makeRoofline(const Case &problem, bool streams) {
  return std::make_unique<Roofline>(problem, streams);
}

} // namespace normforge::bench
