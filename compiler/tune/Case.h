// One problem to be tuned: a phase of a spec at given sizes.
#pragma once

#include "compiler/oracle/Oracle.h"
#include "compiler/records/Record.h"

namespace normforge::tune {

struct Case {
  std::string path; ///< of the spec, or what else it comes from
  Spec spec;
  Phase phase = Phase::Inference;
  oracle::Sizes sizes;
  oracle::Numbers scalars; ///< of the call
  int threads = 1;
  CacheState cache = CacheState::Warm;
  BitsPolicy bits = BitsPolicy::Any;

  /// Made from the above for a target.
  Operator op;
  CaseKey key;
  std::vector<int64_t> sizeValues; ///< in op.sizes' order
  Schedule standard;               ///< what the heuristic takes at these sizes

  /// "resnet50_conv1_bn training N=32".
  std::string title() const;
};

/// Fills in what a record has of a case as documentation, and the sizes of its work.
void describe(ResultRecord &record, const Case &of);

/// Values in the order of op.sizes.
std::vector<int64_t> orderedSizes(const Operator &op, const oracle::Sizes &sizes);

/// Fills in what is made from the rest.
void complete(Case &of, const TargetDescription &target);

/// A fault that tests inject into candidates whose schedule's text has `word` in it: "crash",
/// "hang", "exhaust" (memory), "wrong".
struct Fault {
  std::string kind, word;
};
constexpr llvm::StringLiteral kFaults[] = {"crash", "hang", "exhaust", "wrong"};

} // namespace normforge::tune
