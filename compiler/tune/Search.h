// Which candidates are tried, and in which order.
//
// Best first: a candidate is worth what the model says of it, corrected by how far the model was
// off for the candidate that it is a neighbor of. Around what proves better than the default, its
// own neighbors join. So few measurements go where the model and what was seen agree that nothing
// is to be found. An exhaustive search has the same order, and leaves nothing out.
#pragma once

#include "compiler/tune/Case.h"

#include <queue>
#include <set>
#include <tuple>

namespace normforge::tune {

class Search {
public:
  /// `of` outlives it. Above `Effort::Quick`: more values of each knob. `Effort::Exhaustive`:
  /// neighbors of every candidate that was tried.
  Search(const Case &of, const TargetDescription &target, Effort effort);

  /// The next to try; nothing where all have been.
  std::optional<std::string> next();
  /// Takes the gain of a schedule over the default, 0 where it is none.
  void tell(const std::string &schedule, double gain);

private:
  struct Candidate {
    bool isForm;
    double predicted; ///< the default's time over its own
    double estimate;
    std::string text;
    Schedule schedule;
    bool operator<(const Candidate &other) const {
      return std::tie(isForm, predicted, other.text) <
             std::tie(other.isForm, other.predicted, text);
    }
  };
  /// Adds what is new; `correction`: times what the model says. Forms come before all else: what
  /// caches make of them the model knows least.
  void add(std::vector<Schedule> schedules, double correction, bool areForms = false);
  std::string canonical(const Schedule &schedule) const;

  const Case &case_;
  const TargetDescription &target_;
  const bool isWide_;
  const bool isExhaustive_;
  double standard_ = 1; ///< the model's time of the default
  std::priority_queue<Candidate> queue_;
  std::set<std::string> known_;           ///< canonical texts
  std::map<std::string, Candidate> open_; ///< that were given out, by text
  double best_ = 1;
};

} // namespace normforge::tune
