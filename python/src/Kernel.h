// A kernel of one phase that Python calls with arrays by their names.
#pragma once

#include "python/src/Arrays.h"

#include "normforge/normforge.hpp"

#include <map>
#include <memory>
#include <vector>

namespace normforge::python {

/// Called with the GIL, which is released while a kernel has more than a microsecond to compute.
class Kernel {
public:
  /// `copies`: arrays that are not dense are copied, instead of an error. `threads` are what the
  /// kernel computes with.
  Kernel(nf::Kernel kernel, std::shared_ptr<const void> threads, bool copies);
  Kernel(const Kernel &) = delete;
  Kernel(Kernel &&) = default;

  const nf::Kernel &kernel() const { return kernel_; }
  /// What its calls compute with, which lives as long as they are made.
  const std::shared_ptr<const void> &threads() const { return threads_; }
  bool copies() const { return copies_; }
  /// Names of the arrays that a call takes, in their order, and of those that it gives.
  const std::vector<std::string> &reads() const { return reads_; }
  const std::vector<std::string> &writes() const { return writes_; }
  /// "x, gamma and beta", numbers too.
  std::string takes() const;

  /// Arrays that are read, and run-time numbers, by their names; `out`, a mapping of names to
  /// arrays that are written. Those that it lacks are made by the library that the first array is
  /// of. Gives the one array that is written, or a named tuple of all.
  nb::object call(const nb::dict &given);
  /// The same of all arrays that are read and all numbers, in their order; gives those that are
  /// written: those of `out`, in their order, or new ones where it has None or is None itself.
  nb::list apply(const nb::list &arrays, const std::vector<double> &numbers, nb::handle out);
  /// Throws as a call would where arrays of these shapes and dtypes, by their order, are not those
  /// that it takes.
  void checkArrays(const std::vector<std::vector<int64_t>> &shapes,
                   const std::vector<std::string> &dtypes) const;

private:
  struct Argument {
    nb::object name; ///< interned
    std::string text;
    nf_dtype dtype;
    bool isWritten;
  };
  struct Prepared { ///< for the shapes of arrays
    nf::Plan plan;
    bool isSmall = false;
    std::vector<nb::object> shapes{};        ///< as tuples
    std::vector<nf::Workspace> workspaces{}; ///< at rest
  };
  using Shapes = std::vector<int64_t>; ///< of the arrays that are read, each after its rank

  /// Of all arrays; those that are written and not there are made.
  void compute(std::vector<nb::object> &objects, const std::vector<double> &numbers);
  std::shared_ptr<Prepared> prepare(const std::vector<Array> &arrays);
  nb::object dense(nb::handle array) const;
  [[noreturn]] void failNames(const nb::dict &given, const nb::object &out) const;

  std::shared_ptr<const void> threads_; ///< outlive the kernel and its plans
  nf::Kernel kernel_;
  bool copies_;
  std::vector<Argument> arguments_;
  std::vector<nb::object> scalars_; ///< their names
  std::vector<std::string> reads_, writes_;
  size_t readCount_ = 0;
  bool takesOut_ = false;    ///< an array of this name, which the mapping cannot have then
  nb::object out_, results_; ///< the name "out"; the named tuple's class, or none of one array
  // Calls of other threads, and of Python that a call runs, change these at any time.
  std::map<Shapes, std::shared_ptr<Prepared>> prepared_;
  Shapes last_;
  std::shared_ptr<Prepared> lastPrepared_;
};

} // namespace normforge::python
