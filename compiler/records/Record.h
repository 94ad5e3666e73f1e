// Records of what a sweep has measured, a JSON object a line.
//
// Two kinds of lines. A `candidate` is one schedule of a case, measured against the default or
// known for what it is not: wrong, crashed. A `result` ends a case: the schedule to take, how sure
// its gain is, and all that it holds for. Lines stand alone: files may be cut, joined and sorted.
#pragma once

#include "compiler/schedule/Schedule.h"
#include "runtime/measure/Ratio.h"

#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <map>
#include <string>
#include <vector>

namespace normforge {

/// The version of a line; a greater one is from the future.
constexpr int kRecordVersion = 1;

/// 64 bits of BLAKE3, in hexadecimal.
std::string digestOf(llvm::StringRef text);

/// All of an operator that a schedule's speed may depend on, as text: loops and their sizes,
/// operands, formulas without their numbers. Specs that differ in their names, their preset, an
/// epsilon or a momentum have one.
std::string signatureOf(const Operator &op);
/// The same without the loops' sizes: of relatives.
std::string familyOf(const Operator &op);

/// Whether the data of a call are in the caches of the call before it.
enum class CacheState : uint8_t { Warm, Cold };
llvm::StringRef toString(CacheState state);
std::optional<CacheState> parseCacheState(llvm::StringRef word);

/// Whether a sweep may choose schedules that sum in another order.
enum class BitsPolicy : uint8_t { Any, Fixed };
llvm::StringRef toString(BitsPolicy bits);
std::optional<BitsPolicy> parseBitsPolicy(llvm::StringRef word);

/// How long is searched.
enum class Effort : uint8_t { Quick, Full, Exhaustive };
llvm::StringRef toString(Effort effort);
std::optional<Effort> parseEffort(llvm::StringRef word);

/// The machine of a measurement.
struct MachineKey {
  std::string triple, cpu;
  std::vector<std::string> features; ///< TargetDescription::instructionSets
  int vectorBits = 0;
  int64_t l1 = 0, l2 = 0, l3 = 0; ///< bytes
  std::string model;              ///< the brand's string; documentation alone

  static MachineKey of(const TargetDescription &target);
  /// How `other` differs, in words; empty: not at all.
  std::string difference(const MachineKey &other) const;
};

/// Who makes the code, as far as measurements hold: "normforge 0.1, LLVM 22".
std::string compilerKey();
/// The same in full, for people.
std::string compilerVersions();

/// The subject of a measurement. Equal ones have equal ids.
struct CaseKey {
  std::string op, family; ///< digests of signatureOf and familyOf
  std::string phase;
  std::map<std::string, int64_t> sizes;
  int threads = 1;
  CacheState cache = CacheState::Warm;
  BitsPolicy bits = BitsPolicy::Any;
  std::string standard; ///< the text of the schedule that candidates are measured against
  MachineKey machine;
  std::string compiler = compilerKey();
  int language = kScheduleLanguage;

  std::string id() const;
};

enum class CandidateState : uint8_t {
  Measured, ///< to the end
  Behind,   ///< dropped: its interval was wholly behind
  Same,     ///< its code is that of another candidate
  Wrong,    ///< it computes something else
  Crashed,  ///< it ended its process
  TimedOut, ///< it gave no answer in time
  Refused,  ///< the compiler or the runtime would not have it, or its memory was too little
};
constexpr CandidateState kCandidateStates[] = {CandidateState::Measured, CandidateState::Behind,
                                               CandidateState::Same,     CandidateState::Wrong,
                                               CandidateState::Crashed,  CandidateState::TimedOut,
                                               CandidateState::Refused};
llvm::StringRef toString(CandidateState state);

struct CandidateRecord {
  std::string caseId;
  std::string schedule;
  CandidateState state = CandidateState::Measured;
  Ratio gain{};  ///< the default's time over this one's; 0 where it has none
  int pairs = 0; ///< of blocks that gain is of
  double microseconds = 0;
  std::string note{}; ///< of which candidate the code is; what is wrong
};

struct ResultRecord {
  CaseKey key;
  // Documentation alone: the spec's name, layout, x's sizes in memory order ("32x64x7x7"), and how
  // often the spec stands in its network.
  std::string name, layout, shape;
  int64_t count = 1;
  int64_t elements = 0; ///< of the data
  int64_t bytes = 0;    ///< that must move at least
  std::string schedule; ///< the one to take; may be the default
  Ratio gain{1, 1, 1};  ///< of fresh measurements: the default's time over its own
  Ratio noise{1, 1, 1}; ///< of the default over another copy of itself, in the same run
  int pairs = 0;
  double microseconds = 0, standardMicroseconds = 0;
  double copyMicroseconds = 0; ///< of a copy of as many bytes, in the same run; 0: not measured
  std::map<CandidateState, int> counts{}; ///< of candidates
  double seconds = 0;                     ///< that the case has taken
  Effort effort = Effort::Quick;
  std::string date;        ///< "2026-11-26T13:35:31Z"
  bool isEmulated = false; ///< times say nothing: it is never used
  std::string versions = compilerVersions();

  bool isTuned() const { return schedule != key.standard; }
  /// Two copies of the default differed by more than this: the machine did something else, and no
  /// schedule is chosen by the record.
  static constexpr double kMostNoise = 0.25;
  bool isNoisy() const { return noise.fromOne() > kMostNoise; }
};

/// A line, without its end.
std::string toLine(const CandidateRecord &record);
std::string toLine(const ResultRecord &record);

/// The lines of a text that are not blank, with their numbers from 1.
void forEachLine(llvm::StringRef text,
                 llvm::function_ref<void(size_t number, llvm::StringRef line)> take);

/// A parsed line: one of the two.
struct Line {
  std::optional<CandidateRecord> candidate{};
  std::optional<ResultRecord> result{};
};
/// The error says what was expected and found.
llvm::Expected<Line> parseLine(llvm::StringRef line);

/// Why a result is not to be used on this machine by this compiler; empty: it may be.
std::string stalenessOf(const ResultRecord &record, const TargetDescription &target);

/// Whether `a` is to be taken rather than `b`, both of one operator and sizes: more threads, warm
/// caches, more effort, the later date.
bool isBetterSource(const ResultRecord &a, const ResultRecord &b);

} // namespace normforge
