// The contenders that are timed side by side: each on buffers of its own, holding the same data.
#pragma once

#include "compiler/oracle/Oracle.h"
#include "compiler/records/Choose.h"
#include "compiler/session/Session.h"

#include <memory>
#include <string>
#include <vector>

namespace normforge::bench {

/// One problem: a spec in one layout, a phase, its sizes and data.
struct Case {
  Spec spec;
  Phase phase = Phase::Inference;
  oracle::Sizes sizes;
  oracle::Numbers scalars; ///< of the call
  oracle::Arrays inputs;
  int threads = 1;
  std::string schedule{};              ///< a forced one's text; empty: what is chosen
  const TunedRecords *tuned = nullptr; ///< that schedules are chosen from
  bool heuristicAlone = false;         ///< no records, the project's neither
};

class Contender {
public:
  virtual ~Contender() = default;
  virtual void run() = 0;
  /// The time of run() times this is that of what it stands for.
  virtual double scale() const { return 1; }
};

/// Our kernel. Compiles; throws std::runtime_error.
class Normforge : public Contender {
public:
  Normforge(Session &session, const Case &problem);
  ~Normforge() override;
  void run() override;
  HostArray output(const std::string &name) const;
  std::string schedule() const;

private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Kernels one after the other, each on buffers of its own.
class Sequence : public Contender {
public:
  explicit Sequence(std::vector<std::unique_ptr<Contender>> parts) : parts_(std::move(parts)) {}
  void run() override {
    for (const auto &part : parts_)
      part->run();
  }

private:
  std::vector<std::unique_ptr<Contender>> parts_;
};

/// oneDNN, with nothing where it does not compute this; `whyNot` says so.
class OneDnnContender : public Contender {
public:
  static std::unique_ptr<OneDnnContender> create(const Case &problem, std::string &whyNot);
  void run() override { primitive_->run(); }
  oracle::OneDnn &primitive() { return *primitive_; }

private:
  std::unique_ptr<oracle::OneDnn> primitive_;
};

class HandWrittenContender : public Contender {
public:
  /// As long and in the same layout as Normforge's; owned by the contender.
  virtual const float *y() const = 0;
};

/// Kernels by hand (HandWritten.h) for layouts nchw and nhwc and their kind in any rank; nothing
/// elsewhere. `streamingBytes`: y goes past the caches where x and y are larger.
std::unique_ptr<HandWrittenContender> makeHandWritten(const Case &problem, int64_t streamingBytes);

/// Bytes of the arrays of the data's shape, each read or written once.
struct Bytes {
  int64_t read = 0, written = 0;
  int64_t all() const { return read + written; }
};
Bytes bytesMoved(const Case &problem);

/// Moves as many bytes: a MemoryCopy.
std::unique_ptr<Contender> makeRoofline(const Case &problem, bool streams);

} // namespace normforge::bench
