// normforge-bench: kernels beside oneDNN, beside kernels written by hand, and beside what memory
// allows.
//
// For every spec, layout, batch and phase the contenders run in turn, in blocks of calls, on their
// own copies of the same data. The result is checked against oneDNN once.
#include "bench/Measure.h"
#include "runtime/cpu_info/CpuInfo.h"
#include "runtime/kernel/Plan.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fstream>
#include <map>
#include <unistd.h>

using namespace normforge;
using namespace normforge::bench;

namespace {

struct Options {
  std::vector<std::string> specs{"specs"};
  std::vector<int64_t> batches; ///< empty: 1 and the list's own
  std::vector<std::string> layouts{"nchw", "nhwc", "nChw16c"};
  std::vector<std::string> phases{"inference", "training"};
  int threads = std::min(2, usableProcessors());
  double seconds = 0.3; ///< a case
  std::string json, schedule, tuned, against;
  bool besideHeuristic = false;
  bool quick = false;
};

/// A list of networks, and the batch that they are run with beside one image at a time.
struct List {
  std::string_view folder;
  int64_t batch;
  int64_t tokens; ///< the size T
};
constexpr List kLists[] = {
    {"resnet50", 50, 0},      {"googlenet_v2", 96, 0},      {"mobilenet_v2", 32, 0},
    {"bert_base", 32, 128},   {"transformer_4096", 4, 512}, {"awkward", 64, 0},
    {"style_transfer", 4, 0}, {"convnext_tiny", 32, 0},     {"transformer_rms", 1, 64},
};
/// Enough of each list to see what a change does.
constexpr std::string_view kQuick[] = {
    "resnet50/conv1_bn",          "resnet50/conv2_block1_1_bn", "resnet50/conv3_block1_3_bn",
    "resnet50/conv4_block1_3_bn", "resnet50/conv5_block1_3_bn", "awkward/channels_3_224x224",
    "awkward/channels_257_13x13", "awkward/channels_1024_1x1",  "bert_base/layer_norm",
};

/// Above this much of a time, its median spread, times say little.
constexpr double mostSteady = 0.15;
/// x, y and what the contenders and the check have of them, in arrays as large as x.
constexpr double copiesOfX = 16;

struct SpecFile {
  std::string path, list, name; ///< name: list/file, without its extension
  Spec spec;
};

struct Group {
  std::vector<double> same, best, hand, share;
  int behindSame = 0, behindBest = 0, behindHand = 0;
};

std::string shapeText(const Spec &spec, const oracle::Sizes &sizes) {
  return fmt::format("{}", fmt::join(oracle::argumentShape(spec, "x", sizes), "x"));
}

std::vector<std::string> filesOf(const std::vector<std::string> &paths) {
  std::vector<std::string> files;
  for (const std::string &path : paths) {
    if (!std::filesystem::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    for (const auto &entry : std::filesystem::recursive_directory_iterator(path))
      if (entry.path().extension() == ".yaml")
        files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<SpecFile> readSpecs(const Options &options) {
  std::vector<SpecFile> files;
  for (const std::string &path : filesOf(options.specs)) {
    const std::filesystem::path file(path);
    SpecFile entry{path, file.parent_path().filename().string(), "", {}};
    entry.name = entry.list + "/" + file.stem().string();
    const bool isDefault = options.specs == Options().specs;
    if (isDefault && entry.list == "frameworks") // a layer of each kind, no network
      continue;
    if (options.quick && isDefault &&
        std::find(std::begin(kQuick), std::end(kQuick), entry.name) == std::end(kQuick))
      continue;
    auto spec = readSpec(path);
    if (!spec)
      throw std::runtime_error(llvm::toString(spec.takeError()));
    entry.spec = std::move(*spec);
    files.push_back(std::move(entry));
  }
  if (files.empty())
    throw std::runtime_error("no .yaml files among the given specs");
  return files;
}

class Benchmark {
public:
  Benchmark(const Options &options, const TargetDescription &target)
      : options_(options), target_(target), session_(target) {
    if (!options.tuned.empty()) {
      std::vector<std::string> warnings;
      auto records = readTunedRecords(options.tuned, warnings);
      for (const std::string &warning : warnings)
        fmt::print(stderr, "{}\n", warning);
      if (!records)
        throw std::runtime_error(llvm::toString(records.takeError()));
      tuned_ = std::move(*records);
    }
    if (!options.against.empty()) {
      auto spec = readSpec(options.against);
      if (!spec)
        throw std::runtime_error(llvm::toString(spec.takeError()));
      against_ = std::move(*spec);
    }
    if (options.json.empty())
      return;
    json_.open(unfinished());
    if (!json_)
      throw std::runtime_error("cannot write " + options.json);
  }
  ~Benchmark() {
    if (json_.is_open()) {
      json_.close();
      std::error_code ignored;
      std::filesystem::remove(unfinished(), ignored);
    }
  }

  int run() {
    const std::vector<SpecFile> files = readSpecs(options_);
    fmt::print("{}, {}\n{} threads; oneDNN {}; f32; median us of interleaved blocks of calls\n",
               hostCpuName(), target_.summary(), options_.threads, oracle::oneDnnVersion());
    fmt::print("share: of the faster of a plain and a streaming y = a*x + b or a*x + z over the "
               "same bytes, or of "
               "their sum where nothing of theirs is written; "
               "others: their time over ours\n\n");
    fmt::print("{:36} {:15} {:8} {:15} {:>9} {:>5} {:>5} {:>7} {:>13} {:>7} {:>7}  {}\n", "spec",
               "phase", "layout", "shape", "us", "+-%", "share", "oneDNN", "95 %", "16c", "by hand",
               "");
    compileTimes(files);
    for (const SpecFile &file : files)
      for (const std::string &layout : options_.layouts)
        if (const auto spec = inLayout(file.spec, layout))
          for (int64_t batch : batchesOf(file.list))
            for (const std::string &phase : options_.phases)
              if (const Phase p = *parsePhase(phase); spec->hasPhase(p))
                measureCase(file, *spec, layout, batch, p);
    if (spreads_.empty())
      throw std::runtime_error("none of the specs has such a layout and phase");
    printGroups();
    printHeuristic();
    printAgainst();
    printCompileTimes();
    printCallOverhead();
    if (const double spread = median(spreads_); spread > mostSteady)
      fmt::print(
          "The times are unsteady (median spread {:.0f} %): something else ran on this machine. "
          "Measure again.\n",
          spread * 100);
    if (wrong_)
      fmt::print("{} DISAGREE with oneDNN or with the kernel by hand\n", wrong_);
    if (json_.is_open()) { // whole, or as it was before
      json_.close();
      std::error_code error;
      std::filesystem::rename(unfinished(), options_.json, error);
      if (!json_ || error)
        throw std::runtime_error("cannot write " + options_.json);
    }
    return wrong_ ? 1 : 0;
  }

private:
  std::string unfinished() const { return options_.json + ".unfinished"; }

  std::vector<int64_t> batchesOf(const std::string &list) const {
    if (!options_.batches.empty())
      return options_.batches;
    for (const List &l : kLists)
      if (l.folder == list)
        return {1, l.batch};
    return {1, 32};
  }

  void measureCase(const SpecFile &file, const Spec &spec, const std::string &layout, int64_t batch,
                   Phase phase) {
    int64_t tokens = 128;
    for (const List &l : kLists)
      if (l.folder == file.list && l.tokens)
        tokens = l.tokens;
    oracle::Sizes sizes;
    for (const std::string &name : spec.sizeNames())
      sizes[name] = name == "N" ? batch : tokens;
    double needed = copiesOfX * sizeof(float);
    for (int64_t size : oracle::argumentShape(spec, "x", sizes))
      needed *= static_cast<double>(size);
    if (const auto memory = static_cast<double>(sysconf(_SC_PHYS_PAGES)) *
                            static_cast<double>(sysconf(_SC_PAGE_SIZE));
        needed > memory)
      throw std::runtime_error(fmt::format("{}: batch {} takes some {:.0f} GiB of memory; this "
                                           "machine has {:.0f}",
                                           file.path, batch, needed / 0x1p30, memory / 0x1p30));
    Case problem = caseOf(spec, phase, sizes);
    problem.schedule = options_.schedule;
    problem.tuned = tuned_ ? &*tuned_ : nullptr;

    Normforge ours(session_, problem);
    std::unique_ptr<Normforge> untuned; // where records chose
    if (options_.besideHeuristic) {
      Case other = problem;
      other.heuristicAlone = true;
      untuned = std::make_unique<Normforge>(session_, other);
      if (untuned->schedule() == ours.schedule())
        untuned.reset();
    }
    std::unique_ptr<Normforge> other = makeAgainst(problem, layout);
    std::unique_ptr<Contender> apart; // what a fused phase is of
    if (phase == Phase::BackwardUpdate) {
      std::vector<std::unique_ptr<Contender>> parts;
      for (const Phase part : {Phase::Backward, Phase::Update})
        parts.push_back(std::make_unique<Normforge>(session_, caseOf(spec, part, problem.sizes)));
      apart = std::make_unique<Sequence>(std::move(parts));
    }
    std::string whyNot, ignored;
    auto same = OneDnnContender::create(problem, whyNot);
    std::unique_ptr<OneDnnContender> best;
    if (const auto blocked = inLayout(spec, "nChw16c"); blocked && !spec.layout.isBlocked()) {
      const Case other = caseOf(*blocked, phase, problem.sizes);
      best = OneDnnContender::create(other, ignored);
    }
    auto hand = makeHandWritten(problem, target_.streamingBytes.value_or(INT64_MAX));
    auto plain = makeRoofline(problem, false), streaming = makeRoofline(problem, true);

    ours.run();
    bool agrees = true;
    std::map<std::string, oracle::Tolerance> allowed;
    if (same || hand)
      allowed = oracle::oneDnnTolerances(spec, phase, problem.sizes, problem.inputs);
    if (same) {
      same->run();
      const auto expected = same->primitive().outputs();
      for (const auto &[name, array] : expected)
        agrees = agrees && oracle::compare(ours.output(name), array, allowed.at(name)).agrees();
    }
    if (hand) { // measured beside what computes the same alone
      hand->run();
      HostArray y = ours.output("y");
      const oracle::Arrays expected{{"y", y}};
      std::memcpy(y.bytes.data(), hand->y(), y.bytes.size());
      // The kernels by hand fold the mean into the shift, which costs them digits.
      oracle::Tolerance tolerance = allowed.at("y");
      for (int64_t i = 0, n = y.count(); i < n; ++i)
        tolerance.absolute = std::max(tolerance.absolute, 1e-5 * std::abs(expected.at("y").get(i)));
      agrees = agrees && oracle::compare(y, expected.at("y"), tolerance).agrees();
    }
    wrong_ += !agrees;
    const int64_t bytes = bytesMoved(problem).all();
    problem.inputs.clear();

    const std::pair<const char *, Contender *> all[] = {{"normforge", &ours},
                                                        {"heuristic", untuned.get()},
                                                        {"against", other.get()},
                                                        {"apart", apart.get()},
                                                        {"onednn", same.get()},
                                                        {"onednn-16c", best.get()},
                                                        {"by-hand", hand.get()},
                                                        {"roofline-plain", plain.get()},
                                                        {"roofline-streaming", streaming.get()}};
    std::vector<Contender *> contenders;
    for (auto [name, contender] : all)
      if (contender)
        contenders.push_back(contender);
    const std::vector<Timing> timings = measure(contenders, options_.seconds);
    std::map<std::string_view, Timing> timing;
    size_t next = 0;
    for (auto [name, contender] : all)
      if (contender)
        timing[name] = timings[next++];
    const Timing &us = timing["normforge"];
    spreads_.push_back(us.spread);
    const double roofline = std::min(timing["roofline-plain"].us, timing["roofline-streaming"].us);
    const double share = roofline / us.us;

    const bool inCache = bytes <= target_.l2Bytes * options_.threads;
    Group &group =
        groups_[fmt::format("{:17} {:8} {:15} {:9} {}", file.list, layout, toString(phase),
                            fmt::format("N = {}", batch), inCache ? "in L2" : "beyond")];
    group.share.push_back(share);
    std::string notes = !agrees ? "DISAGREES" : same ? "" : "oneDNN: " + whyNot;
    /// Beside what oneDNN has to do with it.
    auto noteRatio = [&](const char *name, const std::string &text) {
      const Ratio r = pairedRatio(us.blocks, timing[name].blocks);
      notes += fmt::format("{}{} {:.2f} ({:.2f}-{:.2f})", notes.empty() ? "" : "; ", text, r.value,
                           r.low, r.high);
      return r;
    };
    if (untuned) {
      const Ratio r = noteRatio("heuristic", "heuristic");
      overHeuristic_.push_back(r.value);
      behindHeuristic_ += r.high < 1 / 1.03;
    }
    if (other)
      overAgainst_.push_back(noteRatio("against", "against").value);
    if (apart)
      noteRatio("apart", "one after the other");
    auto ratio = [&](const char *name, std::vector<double> &ratios, int &behind) {
      if (!timing.count(name))
        return std::pair<std::string, std::string>("-", "");
      const Ratio r = pairedRatio(us.blocks, timing[name].blocks);
      ratios.push_back(r.value);
      behind += r.high < 1 / 1.03;
      return std::pair(fmt::format("{:.2f}{}", r.value, r.high < 1 / 1.03 ? "!" : ""),
                       fmt::format("{:.2f}-{:.2f}", r.low, r.high));
    };
    const auto [sameText, interval] = ratio("onednn", group.same, group.behindSame);
    const auto [bestText, b] = ratio("onednn-16c", group.best, group.behindBest);
    const auto [handText, h] = ratio("by-hand", group.hand, group.behindHand);
    const std::string shape = shapeText(spec, problem.sizes);
    fmt::print("{:36} {:15} {:8} {:15} {:9.1f} {:5.1f} {:5.2f} {:>7} {:>13} {:>7} {:>7}  {}\n",
               file.name, toString(phase), spec.layout.text, shape, us.us, us.spread * 100, share,
               sameText, interval, bestText, handText, notes);
    std::fflush(stdout);
    if (!json_.is_open())
      return;
    for (const auto &[name, t] : timing)
      json_ << fmt::format(
          "{{\"spec\":\"{}\",\"phase\":\"{}\",\"layout\":\"{}\",\"sizes\":\"{}\","
          "\"threads\":{},\"contender\":\"{}\",\"median_us\":{:.3f},"
          "\"spread\":{:.4f},\"share\":{:.4f}{}}}\n",
          file.name, toString(phase), spec.layout.text, shape, options_.threads, name, t.us,
          t.spread, roofline / t.us,
          name == "normforge" ? fmt::format(",\"schedule\":\"{}\"", ours.schedule()) : "");
    json_.flush();
  }

  /// The kernel of the other spec for the same phase, layout and sizes.
  std::unique_ptr<Normforge> makeAgainst(const Case &problem, const std::string &layout) {
    if (!against_)
      return nullptr;
    const auto spec = inLayout(*against_, layout);
    if (!spec || !spec->hasPhase(problem.phase) || spec->sizeNames() != problem.spec.sizeNames() ||
        oracle::argumentShape(*spec, "x", problem.sizes) !=
            oracle::argumentShape(problem.spec, "x", problem.sizes))
      throw std::runtime_error(fmt::format("--against {}: no {} of x as large in layout {}",
                                           options_.against, toString(problem.phase), layout));
    return std::make_unique<Normforge>(session_, caseOf(*spec, problem.phase, problem.sizes));
  }

  /// A problem of the same sizes, with data of its own.
  Case caseOf(const Spec &spec, Phase phase, const oracle::Sizes &sizes) const {
    Case of{spec, phase, sizes, oracle::usualNumbers(spec, phase), {}, options_.threads};
    of.inputs = oracle::drawInputs(spec, phase, sizes, 1);
    return of;
  }

  void printGroups() const {
    fmt::print("\ngeometric mean, least; ! cases behind (the interval is wholly below 1/1.03)\n");
    fmt::print("{:61} {:>5}  {:>11}  {:>15}  {:>15}  {:>15}\n",
               "list, layout, phase, batch, x and y", "cases", "share", "oneDNN", "oneDNN 16c",
               "by hand");
    auto summary = [](const std::vector<double> &values, int behind) {
      if (values.empty())
        return std::string("-");
      return fmt::format("{:.2f} {:.2f}{}", geometricMean(values),
                         *std::min_element(values.begin(), values.end()),
                         behind ? fmt::format(" !{}", behind) : "");
    };
    for (const auto &[name, g] : groups_)
      fmt::print("{:61} {:5}  {:>11}  {:>15}  {:>15}  {:>15}\n", name, g.share.size(),
                 summary(g.share, 0), summary(g.same, g.behindSame), summary(g.best, g.behindBest),
                 summary(g.hand, g.behindHand));
  }

  void printHeuristic() const {
    if (!options_.besideHeuristic)
      return;
    fmt::print("\nrecords chose another schedule than the heuristic in {} of {} cases",
               overHeuristic_.size(), spreads_.size());
    if (!overHeuristic_.empty())
      fmt::print(": its time over ours {:.2f} in the geometric mean, {:.2f} at least, {:.2f} at "
                 "most; behind it {}",
                 geometricMean(overHeuristic_), std::ranges::min(overHeuristic_),
                 std::ranges::max(overHeuristic_), behindHeuristic_);
    fmt::print("\n");
  }

  void printAgainst() const {
    if (!overAgainst_.empty())
      fmt::print(
          "\n{}: its time over ours {:.2f} in the geometric mean, {:.2f} at least, {:.2f} at "
          "most\n",
          options_.against, geometricMean(overAgainst_), std::ranges::min(overAgainst_),
          std::ranges::max(overAgainst_));
  }

  /// Milliseconds for every variant of each spec: the median of a few compilations one after the
  /// other.
  void compileTimes(const std::vector<SpecFile> &files) {
    for (const SpecFile &file : files)
      for (const std::string &layout : options_.layouts) {
        const auto spec = inLayout(file.spec, layout);
        if (!spec)
          continue;
        for (const std::string &phaseName : options_.phases) {
          const Phase phase = *parsePhase(phaseName);
          if (!spec->hasPhase(phase))
            continue;
          const Operator op = makeOperator(*spec, phase);
          for (const ScheduleVariant &variant : llvm::cantFail(chooseSchedules(op, target_))) {
            const ScheduleVariant only{variant.schedule, Guard{}, ""};
            std::vector<double> times;
            for (int i = 0; i < (options_.quick ? 3 : 5); ++i) {
              const double begin = now();
              auto artifact = session_.compile(op, only);
              if (!artifact)
                throw std::runtime_error(llvm::toString(artifact.takeError()));
              Failure failure;
              if (!Kernel::load(std::move(*artifact), {}, failure))
                throw std::runtime_error(failure.message);
              times.push_back((now() - begin) * 1e3);
            }
            compileMs_[layout + " " + phaseName].push_back(median(times));
          }
        }
      }
  }
  void printCompileTimes() const {
    fmt::print("\ncompile, warm, one variant, until it can be called, ms: least, median, worst\n");
    std::vector<double> all;
    auto line = [](const std::string &name, std::vector<double> ms) {
      std::sort(ms.begin(), ms.end());
      fmt::print("  {:20} {:5} {:5.1f} {:5.1f} {:5.1f}\n", name, ms.size(), ms.front(),
                 ms[ms.size() / 2], ms.back());
    };
    for (const auto &[name, ms] : compileMs_) {
      line(name, ms);
      all.insert(all.end(), ms.begin(), ms.end());
    }
    line("all", all);
  }

  /// A kernel with next to nothing to do, on one thread.
  void printCallOverhead() {
    auto spec =
        parseSpec("semantics: pytorch\ninput: {shape: [1, 16], layout: nc}\naxis: c\n", "smallest");
    if (!spec)
      throw std::runtime_error(llvm::toString(spec.takeError()));
    Case problem{*spec, Phase::Inference, {}, {}, {}, 1};
    problem.inputs = oracle::drawInputs(*spec, Phase::Inference, {}, 1);
    Normforge smallest(session_, problem);
    Contender *contenders[] = {&smallest};
    fmt::print("\na call of the smallest kernel (16 elements, one thread): {:.0f} ns\n",
               measure(contenders, 0.1)[0].us * 1e3);
  }

  const Options &options_;
  std::optional<TunedRecords> tuned_;
  std::optional<Spec> against_;
  const TargetDescription &target_;
  Session session_;
  std::ofstream json_;
  std::map<std::string, Group> groups_;
  std::map<std::string, std::vector<double>> compileMs_;
  std::vector<double> spreads_, overHeuristic_, overAgainst_;
  int behindHeuristic_ = 0; ///< as Group's
  int wrong_ = 0;
};

int run(const Options &options) {
  auto target = describeTarget("native");
  if (!target)
    throw std::runtime_error(llvm::toString(target.takeError()));
  return Benchmark(options, *target).run();
}

} // namespace

int main(int argc, char **argv) {
  Options options;
  CLI::App app("Kernels beside oneDNN, kernels by hand and the memory's speed, interleaved",
               "normforge-bench");
  app.add_option("specs", options.specs, "Specs or folders of specs (default: specs)");
  app.add_option("--batch", options.batches,
                 "Sizes of N, such as 1,50 (default: 1 and what each list is run with)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(int64_t(1), int64_t(1) << 30));
  app.add_option("--layouts", options.layouts,
                 "Layouts to bring specs with channels first into (default: nchw,nhwc,nChw16c)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember({"nchw", "nhwc", "nChw16c", "nChw8c"}));
  app.add_option("--phases", options.phases,
                 "Such as training,backward (default: inference,training)")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--threads", options.threads,
                 "Threads of all contenders (default: 2, or the one processor that may be used)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--seconds", options.seconds, "Seconds to spend on a case (default: 0.3)")
      ->check(CLI::Range(0.001, 3600.0));
  app.add_option(
         "--schedule", options.schedule,
         "Compute by this schedule, as `normforge explain` shows them, instead of those that "
         "are chosen: of one spec, layout and phase")
      ->type_name("TEXT");
  app.add_option("--tuned", options.tuned, "Take schedules from these records of `normforge tune`")
      ->type_name("FILE");
  app.add_flag("--beside-heuristic", options.besideHeuristic,
               "Where records chose, also measure the schedule that the heuristic alone chooses");
  app.add_option("--against", options.against,
                 "Also measure this spec, of the same shape, in the same phases")
      ->type_name("FILE");
  app.add_option("--json", options.json,
                 "Also write one JSON object a line and contender to this file");
  app.add_flag("--quick", options.quick, "A few specs of each list, and a third of the time");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success &asked) { // --help
    return app.exit(asked);
  } catch (const CLI::ParseError &error) {
    fmt::print(stderr, "normforge-bench: error: {}; --help lists what it takes\n", error.what());
    return 2;
  }
  for (const std::string &phase : options.phases)
    if (!parsePhase(phase)) {
      std::vector<std::string_view> known;
      for (Phase each : kPhases)
        known.push_back(toString(each));
      fmt::print(stderr, "normforge-bench: error: phase '{}' is unknown; expected one of {}\n",
                 phase, fmt::join(known, ", "));
      return 2;
    }
  if (options.quick)
    options.seconds /= 3;
  try {
    return run(options);
  } catch (const std::bad_alloc &) {
    fmt::print(stderr, "normforge-bench: error: out of memory\n");
    return 3;
  } catch (const std::exception &error) {
    fmt::print(stderr, "normforge-bench: error: {}\n", error.what());
    return 2;
  }
}
