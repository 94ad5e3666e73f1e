// The arrays and numbers of a phase, named on the command line: run's, and check's own data.
#pragma once

#include "compiler/cli/Command.h"
#include "compiler/oracle/Oracle.h"

#include <map>
#include <string>
#include <vector>

namespace normforge::cli {

/// A phase's inputs by their names, and files.
class NamedArrays {
public:
  /// `op` is an operator of `spec`, which was read from `path`; all three outlive this.
  NamedArrays(const Spec &spec, const Operator &op, const std::string &path)
      : spec_(spec), op_(op), path_(path) {}

  /// Takes words NAME=FILE.npy and, of run-time numbers, NAME=NUMBER: each known, none twice, none
  /// missing. With `results`, words of what the phase writes go there: NAME=FILE.npy, or
  /// new.NAME=FILE.npy of what it reads and writes.
  llvm::Error take(const std::vector<std::string> &words,
                   std::map<std::string, std::string> *results = nullptr);
  /// Reads the files and numbers that were taken.
  llvm::Error read();

  /// The named sizes that the arrays tell, beside those `given`, in the operator's order.
  llvm::Expected<std::vector<int64_t>> sizes(const NamedSizes &given) const;
  const oracle::Arrays &arrays() const { return arrays_; }
  /// In the operator's order.
  const std::vector<nf_scalar> &scalars() const { return scalars_; }

  /// "phase inference of bn.yaml", and what that writes, for errors.
  std::string subject() const;
  std::string writes() const;

private:
  bool isScalar(const std::string &name) const;
  std::string reads() const;
  std::string ours(const std::string &theirs) const;

  const Spec &spec_;
  const Operator &op_;
  const std::string &path_;
  std::map<std::string, std::string> inputs_; ///< words by names
  oracle::Arrays arrays_;
  std::vector<nf_scalar> scalars_;
};

/// The array of a file, which is to be `argument`'s but for axes of size 1.
llvm::Expected<HostArray> readArray(const Operand &argument, const std::string &path);

} // namespace normforge::cli
