// A sweep for a machine without a compiler: cases with compiled candidates, their data and what is
// expected of them, in one file.
//
// Made by `normforge tune export`, run by normforge-tune-run, whose records `normforge tune import`
// reads. A file is a magic, a version, a checksum of the rest, and fields
// (runtime/artifact/Fields.h). Machine code is in it that will run: it must come from a source that
// is trusted.
#pragma once

#include "runtime/artifact/Artifact.h"
#include "runtime/measure/Draw.h"

namespace normforge {

struct SweepFile {
  static constexpr uint64_t version = 2;

  /// An argument that is read, at the checked sizes.
  struct Input {
    std::string name;
    /// Whether the elements are drawn, as many f32 or f64 ones are: mean + deviation *
    /// Draw(seed).normal(streamOf(name), i), by their places in memory. Otherwise they are `bytes`.
    bool isDrawn = false;
    double mean = 0, deviation = 1;
    std::vector<std::byte> bytes;
  };
  /// An element of a written argument at the checked sizes.
  struct Expected {
    uint64_t element = 0;
    double value = 0, allowed = 0; ///< |element - value| <= allowed; NaN is NaN
  };
  struct Output {
    std::string name;
    std::vector<Expected> expected;
    double allowed = 0; ///< at the own sizes, between a candidate's elements and the default's
  };
  struct Candidate {
    std::string schedule;
    std::vector<std::byte> artifact;
  };
  struct Case {
    std::string title, id;
    std::string record; ///< a line of a result without measurements, for the import
    std::vector<int64_t> sizes, checkedSizes;
    std::vector<double> scalars;
    uint64_t threads = 1;
    bool isCold = false;
    uint64_t read = 0, written = 0; ///< bytes of the data's arrays, at the own sizes
    std::vector<Input> inputs;
    std::vector<Output> outputs;
    std::vector<Candidate> candidates; ///< the default first
  };

  uint64_t seed = 0;
  /// hostIdentity() of the machine that made it for itself, whose records it gives; empty: it is
  /// for a CPU by its name.
  std::string machine;
  std::vector<Case> cases;
};

std::vector<std::byte> toBytes(const SweepFile &sweep);
/// Whether these are the first bytes of one, of whatever version.
bool isSweep(std::string_view bytes);
/// Empty with `error` set where the bytes are no whole file of this version. Each case has a
/// default, and a number of threads from 1 to 1024.
std::optional<SweepFile> sweepFromBytes(std::span<const std::byte> bytes, std::string &error);

/// An input's elements, as many as `bytes` has; of f32 or f64 where it is drawn.
void fill(const SweepFile::Input &input, uint64_t seed, DType dtype, std::span<std::byte> bytes);

} // namespace normforge
