// The one place where what a kernel is made by is chosen: a schedule that was given, else a tuned
// record for this machine, else the heuristic.
#pragma once

#include "compiler/records/Record.h"

#include "llvm/ADT/StringMap.h"
#include "llvm/Support/MemoryBuffer.h"

#include <memory>

namespace normforge {

/// Lines of records, found by their digests and read when an operator asks for its own. All
/// functions may be called from several threads.
class TunedRecords {
public:
  /// `source` names them in reasons: a path.
  TunedRecords(std::unique_ptr<llvm::MemoryBuffer> text, std::string source);

  /// The records of this project, for machines that it was tuned on: specs/tuned.
  static const TunedRecords &ofProject();

  const std::string &source() const { return source_; }
  llvm::StringRef text() const { return text_->getBuffer(); }
  /// The results whose digest of the operator, or of its family, is this one and that are not stale
  /// here.
  /// Lines that cannot be read are passed over: those who read a file whole tell of them.
  std::vector<ResultRecord> find(llvm::StringRef field, llvm::StringRef digest,
                                 const TargetDescription &target) const;

private:
  std::unique_ptr<llvm::MemoryBuffer> text_;
  std::string source_;
  llvm::StringMap<std::vector<llvm::StringRef>> lines_; ///< of the text, by each digest they have
};

/// A file's records; errors as `path: error: ...`. Lines that are none are told of in `warnings`,
/// as `path:line: warning: ...`.
llvm::Expected<TunedRecords> readTunedRecords(const std::string &path,
                                              std::vector<std::string> &warnings);

/// Where schedules come from.
struct ScheduleSource {
  llvm::StringRef forced = "";         ///< the text of a schedule for all sizes; empty: none
  const TunedRecords *tuned = nullptr; ///< the user's
  bool heuristicAlone = false;         ///< no records at all: what records are measured against
};

/// Chooses the schedules that a kernel is made by. Errors of the text, and of a schedule that is
/// not legal.
///
/// A record replaces the heuristic's schedule that it was measured against, and no other. It holds
/// for its own sizes and for those with up to kRelatives times as many or as few elements for which
/// the heuristic would take that same schedule; between two records the nearer one's holds. Of
/// sizes that are all numbers, that may be those of a relative: an operator that differs in its
/// sizes alone.
llvm::Expected<std::vector<ScheduleVariant>> chooseSchedules(const Operator &op,
                                                             const TargetDescription &target,
                                                             const ScheduleSource &source = {});

constexpr int64_t kRelatives = 4;
/// A kernel has no more variants than this.
constexpr size_t kMostVariants = 8;

/// The source of the records that a variant with this reason was chosen from; empty: of none.
std::string_view recordsOf(std::string_view reason);

} // namespace normforge
