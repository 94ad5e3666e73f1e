// Runs kernels as hostile hosts would: guard pages around every buffer, poisoned outputs, tasks in
// any split and order.
#pragma once

#include "compiler/oracle/Oracle.h"
#include "compiler/session/Session.h"
#include "runtime/kernel/Plan.h"

#include <map>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>

namespace normforge::test {

/// Bytes that end (or begin) at a page that cannot be touched, or `shift` bytes off it.
class GuardedBuffer {
public:
  enum class Guard { After, Before };
  explicit GuardedBuffer(size_t bytes, Guard guard = Guard::After, size_t shift = 0);
  ~GuardedBuffer();
  GuardedBuffer(const GuardedBuffer &) = delete;
  GuardedBuffer &operator=(const GuardedBuffer &) = delete;
  void *data() const { return data_; }

private:
  void *mapping_;
  size_t mappedBytes_;
  void *data_;
};

struct RunOptions {
  /// Threads of an own pool; 0: one call a stage on the calling thread.
  int threads = 0;
  /// Splits every stage into ranges at random, run in random order.
  std::mt19937_64 *split = nullptr;
  /// Writes every output that may be an input's buffer there: of the inputs that it may be and that
  /// no output before it is, the one of this number, from 0 on, counted round.
  std::optional<size_t> inPlace{};
  GuardedBuffer::Guard guard = GuardedBuffer::Guard::After;
  /// Array i lies this and i elements off its guard: aligned to its elements alone, each array
  /// otherwise than the next. 0: arrays touch their guards.
  size_t shift = 0;
};

/// A compiled and loaded kernel.
class TestKernel {
public:
  /// The exception that a constructor throws where a schedule takes more stack than a kernel may.
  struct TooMuchStack : std::runtime_error {
    using std::runtime_error::runtime_error;
  };

  /// The session for a CPU, or for a GPU, emulated, with verifiers on; null where this machine
  /// cannot run its kernels, with the reason in `whyNot`.
  static Session *session(const std::string &cpu, std::string &whyNot);

  TestKernel(const Spec &spec, Phase phase, Session &session);
  TestKernel(const Operator &op, llvm::ArrayRef<ScheduleVariant> variants, Session &session);

  /// Outputs by name. Throws std::runtime_error on any failure.
  oracle::Arrays run(const oracle::Sizes &sizes, const oracle::Arrays &inputs,
                     const oracle::Numbers &scalars = {}, const RunOptions &options = {}) const;
  const Artifact &artifact() const { return kernel_->artifact(); }
  size_t variantFor(const oracle::Sizes &sizes) const;

private:
  void load(llvm::Expected<Artifact> artifact);
  std::shared_ptr<const Plan> plan(const oracle::Sizes &sizes) const;
  std::shared_ptr<const Kernel> kernel_;
};

/// The expected outputs for one set of inputs: costly to make, and the same for all kernels.
struct ExpectedOutputs {
  oracle::Arrays values;
  std::map<std::string, oracle::Tolerance> tolerances; ///< by output
};
ExpectedOutputs expectedOutputs(const Spec &spec, Phase phase, const oracle::Sizes &sizes,
                                const oracle::Arrays &inputs, const oracle::Numbers &scalars = {});
/// Compares all outputs with it; empty when they agree, else a line an output.
std::string disagreement(const ExpectedOutputs &expected, const oracle::Arrays &outputs);
/// Compares all outputs with the f64 reference.
std::string disagreement(const Spec &spec, Phase phase, const oracle::Sizes &sizes,
                         const oracle::Arrays &inputs, const oracle::Arrays &outputs,
                         const oracle::Numbers &scalars = {});
/// Bitwise equality of all arrays; NaNs of different payload differ.
bool sameBits(const oracle::Arrays &a, const oracle::Arrays &b);

/// A new seed each run, or NORMFORGE_TEST_SEED's; printed once.
uint64_t testSeed();
/// Whether a test of very many cases takes this one: one in three, which ones a matter of where the
/// test begins to count; all with NORMFORGE_TEST_ALL=1, as tests/nightly.sh has it.
bool isTaken(size_t turn);

} // namespace normforge::test
