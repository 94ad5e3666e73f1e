#include "compiler/tune/Benchdnn.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>

namespace normforge::tune {

namespace {

/// Lists that include themselves end here.
constexpr int kMostDepth = 8;

enum class Driver : uint8_t { Batch, Layer, Group };

/// The values that knobs have set; each problem is one for every combination.
struct Knobs {
  std::vector<std::string> directions{"FWD_D"}, dtypes{"f32"}, tags{""}, flags{""};
  int64_t batch = 0; ///< 0: as the problem says
  bool relu = false; ///< --attr-post-ops=relu
};

/// A problem's numbers by their letters; of layer norm its axes.
struct Problem {
  std::map<std::string, int64_t> numbers;
  std::vector<int64_t> axes;
  double epsilon = 1. / 16;
  std::string name;
};

class ListReader {
public:
  ListReader(llvm::StringRef text, std::string path, int depth)
      : text_(text), path_(std::move(path)), depth_(depth) {}

  llvm::Expected<std::vector<ListedProblem>> read();

private:
  llvm::Error fail(llvm::StringRef at, const std::string &words) const {
    const auto column = static_cast<size_t>(at.data() - line_.data()) + 1;
    return llvm::createStringError(
        fmt::format("{}:{}:{}: error: {}", path_, lineNumber_, column, words));
  }
  llvm::Error readKnob(llvm::StringRef word);
  llvm::Error include(llvm::StringRef word, llvm::StringRef file);
  llvm::Expected<Problem> readProblem(llvm::StringRef word) const;
  llvm::Error add(llvm::StringRef word, const Problem &problem);
  llvm::Expected<std::string> yamlOf(llvm::StringRef word, const Problem &problem,
                                     const std::string &direction, const std::string &dtype,
                                     const std::string &tag, const std::string &flags,
                                     Phase &phase) const;

  const llvm::StringRef text_;
  const std::string path_;
  const int depth_;
  llvm::StringRef line_;
  size_t lineNumber_ = 0;
  Driver driver_ = Driver::Batch;
  Knobs knobs_;
  std::vector<ListedProblem> problems_;
};

llvm::Expected<std::vector<ListedProblem>> ListReader::read() {
  for (llvm::StringRef rest = text_; !rest.empty();) {
    std::tie(line_, rest) = rest.split('\n');
    ++lineNumber_;
    llvm::StringRef left = line_.take_until([](char c) { return c == '#'; });
    for (left = left.ltrim(" \t\r"); !left.empty(); left = left.ltrim(" \t\r")) {
      const llvm::StringRef word = left.take_until([](char c) { return llvm::isSpace(c); });
      left = left.drop_front(word.size());
      if (word.starts_with("-")) {
        if (llvm::Error error = readKnob(word))
          return error;
        continue;
      }
      auto problem = readProblem(word);
      if (!problem)
        return problem.takeError();
      if (llvm::Error error = add(word, *problem))
        return error;
    }
  }
  return std::move(problems_);
}

llvm::Error ListReader::readKnob(llvm::StringRef word) {
  auto [name, value] = word.split('=');
  auto list = [&, value = value](std::vector<std::string> &into,
                                 llvm::ArrayRef<llvm::StringLiteral> allowed) -> llvm::Error {
    into.clear();
    llvm::SmallVector<llvm::StringRef> parts;
    value.split(parts, ',');
    for (llvm::StringRef part : parts) {
      if (!allowed.empty() && !llvm::is_contained(allowed, part))
        return fail(part.empty() ? word : part,
                    fmt::format("{}: expected {}, found '{}'", name.str(), fmt::join(allowed, ", "),
                                part.str()));
      into.push_back(part.str());
    }
    return llvm::Error::success();
  };
  if (name == "--bnorm" || name == "--lnorm" || name == "--gnorm") {
    driver_ = name == "--bnorm" ? Driver::Batch : name == "--lnorm" ? Driver::Layer : Driver::Group;
    return llvm::Error::success();
  }
  if (name == "--reset") {
    knobs_ = Knobs();
    return llvm::Error::success();
  }
  if (name == "--dir")
    return list(knobs_.directions, {"FWD_D", "FWD_I", "BWD_D", "BWD_DW"});
  if (name == "--dt")
    return list(knobs_.dtypes, {"f32", "bf16", "f16", "f64"});
  if (name == "--tag")
    return list(knobs_.tags, {});
  if (name == "--flags") {
    if (llvm::Error error = list(knobs_.flags, {}))
      return error;
    for (const std::string &flags : knobs_.flags)
      for (char flag : flags)
        if (!llvm::StringRef("GSCHRA").contains(flag))
          return fail(value, fmt::format("--flags: expected letters of G, S, C, H, R and A, found "
                                         "'{}'",
                                         flag));
    return llvm::Error::success();
  }
  if (name == "--mb") {
    if (value.getAsInteger(10, knobs_.batch) || knobs_.batch < 0)
      return fail(word, fmt::format("--mb: expected a whole number, found '{}'", value.str()));
    return llvm::Error::success();
  }
  if (name == "--attr-post-ops") {
    const llvm::StringRef steps = value.trim("\"'");
    if (!steps.empty() && steps != "relu")
      return fail(value,
                  fmt::format("--attr-post-ops: expected relu or nothing, found {}", value.str()));
    knobs_.relu = steps == "relu";
    return llvm::Error::success();
  }
  if (name == "--batch")
    return include(word, value);
  constexpr llvm::StringLiteral ofRunning[] = {
      "--inplace",        "--skip-impl",       "--impl",           "--mode",
      "--mode-modifier",  "--perf-template",   "--max-ms-per-prb", "--fix-times-per-prb",
      "--debug-check-ws", "--attr-scratchpad", "--engine",         "--allow-enum-tags-only",
      "--canonical",      "--mem-check",       "--stat_tag"};
  if (llvm::is_contained(ofRunning, name) || name.starts_with("-v"))
    return llvm::Error::success();
  return fail(word, fmt::format("unknown knob '{}'; expected --bnorm, --lnorm, --gnorm, --dir, "
                                "--dt, --tag, --flags, --mb, --attr-post-ops, --batch or --reset, "
                                "or one of those of how benchdnn runs",
                                name.str()));
}

llvm::Error ListReader::include(llvm::StringRef word, llvm::StringRef file) {
  if (depth_ >= kMostDepth)
    return fail(word, "--batch: lists include one another without end");
  llvm::SmallString<128> path(llvm::sys::path::parent_path(path_));
  llvm::sys::path::append(path, file);
  auto buffer = llvm::MemoryBuffer::getFile(path, /*IsText=*/true);
  if (!buffer)
    return fail(word, fmt::format("--batch: {} cannot be read: {}", path.str().str(),
                                  buffer.getError().message()));
  ListReader inner((*buffer)->getBuffer(), path.str().str(), depth_ + 1);
  inner.driver_ = driver_;
  inner.knobs_ = knobs_;
  auto problems = inner.read();
  if (!problems)
    return problems.takeError();
  knobs_ = inner.knobs_; // as if its lines stood here
  llvm::append_range(problems_, std::move(*problems));
  return llvm::Error::success();
}

llvm::Expected<Problem> ListReader::readProblem(llvm::StringRef word) const {
  Problem problem;
  llvm::StringRef rest = word;
  auto number = [&](int64_t &value) {
    return !rest.empty() && llvm::isDigit(rest.front()) && !rest.consumeInteger(10, value) &&
           value >= 1 && value < int64_t(1) << 31;
  };
  if (driver_ == Driver::Layer) {
    while (true) {
      int64_t value = 0;
      if (!number(value))
        return fail(rest, fmt::format("expected sizes such as 32x128x768, found '{}'", rest.str()));
      problem.axes.push_back(value);
      if (!rest.consume_front("x"))
        break;
    }
    rest.consume_front("_");
  }
  constexpr llvm::StringLiteral letters[] = {"mb", "ic", "id", "ih", "iw", "g"};
  while (!rest.empty()) {
    if (rest.consume_front("_"))
      continue;
    if (rest.consume_front("eps")) {
      const llvm::StringRef digits = rest.take_while(
          [](char c) { return llvm::isDigit(c) || llvm::StringRef("+-.e").contains(c); });
      if (digits.getAsDouble(problem.epsilon) || !(problem.epsilon > 0))
        return fail(rest, fmt::format("eps: expected a number above 0, found '{}'", rest.str()));
      rest = rest.drop_front(digits.size());
      continue;
    }
    if (rest.consume_front("n")) {
      problem.name = rest.trim("\"").str();
      break;
    }
    const auto *letter = driver_ == Driver::Layer ? std::end(letters)
                                                  : llvm::find_if(letters, [&](llvm::StringRef l) {
                                                      return rest.starts_with(l) &&
                                                             (l != "g" || driver_ == Driver::Group);
                                                    });
    if (letter == std::end(letters))
      return fail(rest, fmt::format("expected a problem of {}, found '{}'",
                                    driver_ == Driver::Batch   ? "mb, ic, id, ih, iw, eps and n"
                                    : driver_ == Driver::Group ? "g, mb, ic, id, ih, iw, eps and n"
                                                               : "sizes, eps and n",
                                    rest.str()));
    rest = rest.drop_front(letter->size());
    if (!number(problem.numbers[letter->str()]))
      return fail(rest, fmt::format("{}: expected a whole number of at least 1, found '{}'",
                                    letter->str(), rest.str()));
  }
  if (driver_ != Driver::Layer && !problem.numbers.contains("ic"))
    return fail(word, "ic is missing");
  return problem;
}

llvm::Expected<std::string> ListReader::yamlOf(llvm::StringRef word, const Problem &problem,
                                               const std::string &direction,
                                               const std::string &dtype, const std::string &tag,
                                               const std::string &flags, Phase &phase) const {
  auto has = [&](char flag) { return flags.find(flag) != std::string::npos; };
  const bool isBackward = direction.starts_with("BWD"), isGiven = has('G');
  std::vector<int64_t> shape = problem.axes;
  std::string layout, body;
  const bool isLast = [&] {
    return tag == "axb" ||
           (tag.size() > 2 && tag.back() == 'c' && !llvm::isDigit(tag[tag.size() - 2]) &&
            tag.find('C') == std::string::npos);
  }();
  if (driver_ == Driver::Layer) {
    if (isGiven)
      return fail(word, "layer normalization with given statistics (flag G) is not built");
    constexpr const char *layouts[] = {"c", "nc", "ntc", "nhwc", "ndhwc"};
    if (shape.size() < 2 || shape.size() > std::size(layouts))
      return fail(
          word, fmt::format("expected 2 to {} sizes, found {}", std::size(layouts), shape.size()));
    layout = layouts[shape.size() - 1];
    body = "mode: layer\naxis: -1\n";
  } else {
    auto size = [&](const char *letter, int64_t otherwise) {
      const auto found = problem.numbers.find(letter);
      return found == problem.numbers.end() ? otherwise : found->second;
    };
    const int64_t batch = knobs_.batch > 0 ? knobs_.batch : size("mb", 2);
    // A size that is missing is copied, iw from ih and ih from id: ih7 is ih7iw7.
    const int64_t depth = size("id", 0), height = size("ih", depth), width = size("iw", height);
    shape = {batch, size("ic", 1)};
    std::string axes = "nc";
    for (auto [letter, value] : {std::pair{'d', depth}, {'h', height}, {'w', width}})
      if (value > 0) {
        shape.push_back(value);
        axes += letter;
      }
    const size_t digit = tag.find_first_of("0123456789");
    if (isLast && axes.size() > 2) {
      std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
      layout = "n" + axes.substr(2) + "c";
    } else if (digit != std::string::npos) {
      layout = "nC" + axes.substr(2) +
               llvm::StringRef(tag).drop_front(digit).take_while(llvm::isDigit).str() + "c";
    } else if (tag.empty() || tag == "abx" || tag == axes || axes.size() == 2) {
      layout = axes;
    } else {
      return fail(word, fmt::format("--tag={}: expected {}, abx, n{}c, axb, nC{}16c or aBx16b for "
                                    "this problem",
                                    tag, axes, axes.substr(2), axes.substr(2)));
    }
    if (driver_ == Driver::Group) {
      if (isGiven)
        return fail(word, "group normalization with given statistics (flag G) is not built");
      body = fmt::format("mode: group\naxis: c\ngroups: {}\n", size("g", 1));
    } else {
      body = "axis: c\n";
      if (isBackward && isGiven)
        body += "backward_statistics: moving\n";
      else if (!isBackward && !isGiven && direction == "FWD_I")
        body += "mode: 2\n";
    }
  }
  phase = isBackward                            ? Phase::Backward
          : driver_ == Driver::Batch && isGiven ? Phase::Inference
          : direction == "FWD_I"                ? Phase::Inference
                                                : Phase::Training;
  if (has('A'))
    body += "fuse: [add, relu]\n";
  else if (has('R') || knobs_.relu)
    body += "fuse: [relu]\n";
  std::string name;
  for (char c : problem.name.empty() ? word.str() : problem.name)
    name += llvm::isAlnum(c) ? c : '_';
  if (llvm::isDigit(name.front()))
    name = "n" + name;
  return fmt::format("name: {}\nsemantics: onnx-15\ninput: {{shape: [{}], layout: {}, dtype: {}}}\n"
                     "epsilon: {}\nscale: {}\ncenter: {}\nphases: [{}]\n{}",
                     name, fmt::join(shape, ", "), layout, dtype, problem.epsilon,
                     has('S') || has('C'), has('S') || has('H'), toString(phase), body);
}

llvm::Error ListReader::add(llvm::StringRef word, const Problem &problem) {
  for (const std::string &direction : knobs_.directions)
    for (const std::string &dtype : knobs_.dtypes)
      for (const std::string &tag : knobs_.tags)
        for (const std::string &flags : knobs_.flags) {
          Phase phase = Phase::Inference;
          auto yaml = yamlOf(word, problem, direction, dtype, tag, flags, phase);
          if (!yaml)
            return yaml.takeError();
          auto spec = parseSpec(*yaml, "problem");
          if (!spec)
            return fail(word, "no spec can be made of it: " + llvm::toString(spec.takeError()));
          problems_.push_back({fmt::format("{}:{}", path_, lineNumber_), std::move(*spec), phase});
        }
  return llvm::Error::success();
}

} // namespace

llvm::Expected<std::vector<ListedProblem>> parseBenchdnnList(llvm::StringRef text,
                                                             const std::string &path) {
  return ListReader(text, path, 0).read();
}

llvm::Expected<std::vector<ListedProblem>> readBenchdnnList(const std::string &path) {
  auto buffer = llvm::MemoryBuffer::getFile(path, /*IsText=*/true);
  if (!buffer)
    return llvm::createStringError(
        fmt::format("{}: error: cannot be read: {}", path, buffer.getError().message()));
  return parseBenchdnnList((*buffer)->getBuffer(), path);
}

} // namespace normforge::tune
