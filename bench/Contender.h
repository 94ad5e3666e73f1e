// What is measured side by side: each on buffers of its own, holding the same data.
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

/// Bytes of x and a fused addend, read once, and y, written once.
int64_t bytesMoved(const Case &problem);

/// Moves as many bytes with a scale and an addition.
std::unique_ptr<Contender> makeRoofline(const Case &problem, bool streams);

} // namespace normforge::bench
