// The limit that memory sets: the time of the bytes that must move at least.
#pragma once

#include "normforge/normforge.h"

#include <memory>

namespace normforge {

/// y = a*x + b, or y = a*x + z, over arrays of its own: as many bytes written as asked for, and as
/// many read, or twice as many where those are nearer. Where next to nothing is written, the sum of
/// as many bytes as are read. Shared out and joined as kernels are.
class MemoryCopy {
public:
  MemoryCopy(uint64_t read, uint64_t written);
  /// `streams`: y past the caches, where the machine can.
  void run(bool streams, const nf_executor &executor);
  /// Times of run() times this are those of exactly what was asked for.
  double scale() const { return scale_; }

private:
  struct Free {
    void operator()(float *memory) const;
  };
  using Buffer = std::unique_ptr<float, Free>;
  static Buffer make(int64_t count);

  bool onlyReads_;
  int64_t count_;    ///< of floats in each array
  Buffer x_, z_, y_; ///< y: a task's sum each where it only reads
  double scale_ = 1;
};

} // namespace normforge
