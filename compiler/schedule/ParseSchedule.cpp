// The text of a schedule, and back:
//   tails=masked moments(partial moments; take=[3,1,all] tiled=c vector=16 tile=1 unroll=4
//   passes=alternating) merge(merge moments + finalize; take=[all,8] tiled=c vector=8 tile=8
//   unroll=1) normalize(normalize; take=[1,1,all] vector=16 tile=1 unroll=1 stores=streaming)
#include "compiler/schedule/Schedule.h"

#include "llvm/ADT/StringExtras.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace normforge {

namespace {

constexpr std::pair<Part, std::string_view> kParts[] = {{Part::Partial, "partial "},
                                                        {Part::Merge, "merge "}};

/// The words of `rows=`; rows one by one have none.
constexpr std::pair<Rows, llvm::StringLiteral> kRows[] = {{Rows::Together, "together"},
                                                          {Rows::Packed, "packed"}};

std::string rowsText(Rows rows) {
  for (auto [kind, word] : kRows)
    if (kind == rows)
      return " rows=" + word.str();
  return "";
}

std::string textOf(const StagePlan &stage, const Operator &op, std::span<const StageLoop> loops) {
  std::vector<std::string> steps, take;
  for (const StepPlan &step : stage.steps) {
    std::string text = op.steps[step.step].name;
    for (auto [part, word] : kParts)
      if (part == step.part)
        text = std::string(word) + text;
    steps.push_back(text);
  }
  for (int64_t chunk : stage.chunks)
    take.push_back(chunk == 0 ? "all" : fmt::format("{}", chunk));
  return fmt::format(
      "{}({}; take=[{}]{} vector={} tile={} unroll={}{}{}{}{}{}{})", stage.name,
      fmt::join(steps, " + "), fmt::join(take, ","),
      stage.tiled < 0 ? "" : " tiled=" + loops[stage.tiled].name, stage.vector, stage.tile,
      stage.unroll, rowsText(stage.rows), stage.alternates ? " passes=alternating" : "",
      stage.prefetch > 0 ? fmt::format(" prefetch={}", stage.prefetch) : "",
      stage.reversed ? " tasks=reversed" : "", stage.streams ? " stores=streaming" : "",
      stage.threads == 0
          ? ""
          : fmt::format(" threads={}{} groups={} resident={}{}", stage.threads,
                        stage.down > 1 ? fmt::format(" down={}", stage.down) : "", stage.groups,
                        stage.resident,
                        stage.held > 0 ? fmt::format(" hold=registers:{}", stage.held) : ""));
}

class Parser {
public:
  Parser(llvm::StringRef text, const Operator &op) : text_(text), rest_(text), op_(op) {}

  llvm::Expected<Schedule> parse();

private:
  bool fail(const std::string &expected);
  bool parseHead(Schedule &schedule);
  bool parseStage(Schedule &schedule);
  bool parseStep(StagePlan &stage);
  bool parseTake(StagePlan &stage);
  bool parseKnob(StagePlan &stage, std::span<const StageLoop> loops);
  /// Takes the text off where it comes next.
  bool take(llvm::StringRef text) { return rest_.consume_front(text); }
  bool expect(llvm::StringRef text) { return take(text) || fail("'" + text.str() + "'"); }
  bool number(int64_t &value) {
    return (!rest_.empty() && llvm::isDigit(rest_.front()) && !rest_.consumeInteger(10, value)) ||
           fail("a number");
  }
  llvm::StringRef word() {
    const llvm::StringRef taken =
        rest_.take_while([](char c) { return llvm::isAlnum(c) || c == '_'; });
    rest_ = rest_.drop_front(taken.size());
    return taken;
  }

  llvm::StringRef text_, rest_;
  const Operator &op_;
  std::string error_;
};

bool Parser::fail(const std::string &expected) {
  const std::string found =
      rest_.empty() ? "the end"
                    : "'" + rest_.take_front(24).str() + (rest_.size() > 24 ? "..." : "") + "'";
  if (error_.empty())
    error_ = fmt::format("schedule, column {}: expected {}, found {}",
                         text_.size() - rest_.size() + 1, expected, found);
  return false;
}

llvm::Expected<Schedule> Parser::parse() {
  Schedule schedule;
  bool good = parseHead(schedule);
  while (good && !rest_.empty())
    good = parseStage(schedule);
  if (good && schedule.stages.empty())
    good = fail("a stage");
  if (!good)
    return llvm::createStringError(error_);
  return schedule;
}

bool Parser::parseHead(Schedule &schedule) {
  if (!expect("tails="))
    return false;
  schedule.maskedTails = take("masked");
  if (!schedule.maskedTails && !take("narrower"))
    return fail("masked or narrower");
  if (take(" scalable=") && !number(schedule.scalable))
    return false;
  schedule.maskedLoads = !take(" loads=whole");
  schedule.pairsHalves = take(" halves=paired");
  return true;
}

bool Parser::parseStep(StagePlan &stage) {
  StepPlan plan;
  for (auto [part, text] : kParts)
    if (plan.part == Part::Whole && take(text))
      plan.part = part;
  const llvm::StringRef before = rest_, name = word();
  std::vector<std::string> names;
  for (const Step &step : op_.steps) {
    if (name == step.name) {
      plan.step = static_cast<uint32_t>(names.size());
      stage.steps.push_back(plan);
      return true;
    }
    names.push_back(step.name);
  }
  rest_ = before;
  return fail(fmt::format("a step ({})", fmt::join(names, ", ")));
}

bool Parser::parseTake(StagePlan &stage) {
  if (!expect("take=["))
    return false;
  while (!take("]")) {
    if (!stage.chunks.empty() && !expect(","))
      return false;
    int64_t chunk = 0;
    if (!take("all") && (!number(chunk) || (chunk == 0 && !fail("a number above 0, or all"))))
      return false;
    stage.chunks.push_back(chunk);
  }
  return true;
}

bool Parser::parseKnob(StagePlan &stage, std::span<const StageLoop> loops) {
  if (take("tiled=")) {
    const llvm::StringRef before = rest_, name = word();
    std::vector<std::string> names;
    int found = -1;
    for (const StageLoop &loop : loops) {
      if (loop.name == name && found < 0)
        found = static_cast<int>(names.size());
      names.push_back(loop.name);
    }
    if (found >= 0) {
      stage.tiled = found;
      return true;
    }
    rest_ = before;
    return fail(fmt::format("a loop ({})", fmt::join(names, ", ")));
  }
  const std::pair<const char *, int64_t *> numbers[] = {
      {"vector=", &stage.vector},     {"tile=", &stage.tile},          {"unroll=", &stage.unroll},
      {"threads=", &stage.threads},   {"down=", &stage.down},          {"groups=", &stage.groups},
      {"resident=", &stage.resident}, {"hold=registers:", &stage.held}};
  for (auto [name, value] : numbers)
    if (take(name)) {
      const llvm::StringRef before = rest_;
      if (!number(*value))
        return false;
      if (value != &stage.held || *value > 0)
        return true;
      rest_ = before;
      return fail("a number of vectors above 0");
    }
  if (take("prefetch=")) {
    const llvm::StringRef before = rest_;
    if (!rest_.consumeInteger(10, stage.prefetch) && stage.prefetch > 0)
      return true;
    rest_ = before;
    return fail("a number of tiles above 0");
  }
  if (take("rows=")) {
    for (auto [kind, word] : kRows)
      if (take(word)) {
        stage.rows = kind;
        return true;
      }
    return fail("together or packed");
  }
  const std::pair<const char *, bool *> flags[] = {{"passes=alternating", &stage.alternates},
                                                   {"tasks=reversed", &stage.reversed},
                                                   {"stores=streaming", &stage.streams}};
  for (auto [name, value] : flags)
    if (take(name))
      return *value = true;
  return fail("tiled=, vector=, tile=, unroll=, rows=, passes=alternating, prefetch=, "
              "tasks=reversed, stores=streaming, threads=, down=, groups=, resident=, "
              "hold=registers: or ')'");
}

bool Parser::parseStage(Schedule &schedule) {
  if (!expect(" "))
    return false;
  StagePlan stage;
  stage.name = word().str();
  if (stage.name.empty())
    return fail("a stage's name");
  if (!expect("("))
    return false;
  do
    if (!parseStep(stage))
      return false;
  while (take(" + "));
  if (!expect("; ") || !parseTake(stage))
    return false;
  schedule.stages.push_back(std::move(stage));
  StagePlan &last = schedule.stages.back();
  if (last.merges() && partialStage(schedule, schedule.stages.size() - 1) < 0)
    return fail("a stage of partials before one that merges");
  const std::vector<StageLoop> loops = stageLoops(op_, schedule, schedule.stages.size() - 1);
  if (last.chunks.size() != loops.size())
    return fail(fmt::format("{} numbers in take=[...], one a loop", loops.size()));
  llvm::SmallVector<llvm::StringRef> given;
  while (!take(")")) {
    if (!expect(" "))
      return false;
    const llvm::StringRef before = rest_;
    if (!parseKnob(last, loops))
      return false;
    const llvm::StringRef knob = before.take_until([](char c) { return c == '='; });
    if (llvm::is_contained(given, knob)) {
      rest_ = before;
      return fail(fmt::format("each knob once; {} is given already", knob.str()));
    }
    given.push_back(knob);
  }
  for (const char *knob : {"down", "groups", "resident", "hold"})
    if (last.threads == 0 && llvm::is_contained(given, knob))
      return fail(fmt::format("threads= beside {}=", knob));
  return true;
}

} // namespace

std::string Schedule::text(const Operator &op) const {
  std::string text = fmt::format("tails={}", maskedTails ? "masked" : "narrower");
  if (scalable > 0)
    text += fmt::format(" scalable={}", scalable);
  if (!maskedLoads)
    text += " loads=whole";
  if (pairsHalves)
    text += " halves=paired";
  for (size_t i = 0; i < stages.size(); ++i)
    text += " " + textOf(stages[i], op, stageLoops(op, *this, i));
  return text;
}

llvm::Expected<Schedule> parseSchedule(llvm::StringRef text, const Operator &op) {
  return Parser(text, op).parse();
}

} // namespace normforge
