// normforge-bench: kernels beside oneDNN, interleaved in one process.
//
// For every spec, layout, batch and phase the two contenders run in turn, in blocks of calls, on
// their own copies of the same data. Printed are medians over the blocks, their spread, and the
// ratio of the medians with the 95 % interval of the paired ratios.
#include "compiler/oracle/Oracle.h"
#include "compiler/session/Session.h"
#include "normforge/openmp.h"
#include "runtime/cpu_info/CpuInfo.h"
#include "runtime/kernel/Plan.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fstream>
#include <map>

using namespace normforge;

namespace {

struct Options {
  std::vector<std::string> specs{"specs/resnet50"};
  std::vector<int64_t> batches{1, 50};
  std::vector<std::string> layouts{"nchw", "nhwc", "nChw16c"};
  std::vector<std::string> phases{"inference", "training"};
  int threads = 2;
  double seconds = 0.4; ///< a case
  std::string json;
  bool quick = false;
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  const size_t middle = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(middle),
                   values.end());
  return values[middle];
}

/// The spec in another layout of the same axes; empty when the layout does not fit its rank.
std::optional<Spec> inLayout(const Spec &spec, const std::string &layout) {
  if (spec.layout.text == layout)
    return spec;
  if (spec.layout.text != "nchw" || spec.mode == Mode::Sample)
    return std::nullopt;
  Spec other = spec;
  other.layout = Layout();
  other.layout.text = layout;
  if (layout == "nhwc") {
    other.layout.axes = "nhwc";
    other.shape = {spec.shape[0], spec.shape[2], spec.shape[3], spec.shape[1]};
    constexpr int place[] = {0, 3, 1, 2}; // of n, c, h, w
    for (int &axis : other.axes)
      axis = place[axis];
    std::sort(other.axes.begin(), other.axes.end());
    return other;
  }
  other.layout.axes = "nchw";
  other.layout.blockedAxis = 1;
  if (layout == "nChw16c")
    other.layout.block = 16;
  else if (layout == "nChw8c")
    other.layout.block = 8;
  else
    return std::nullopt;
  return other;
}

std::string shapeText(const Spec &spec, const oracle::Sizes &sizes) {
  std::vector<std::string> parts;
  for (const Size &size : spec.shape)
    parts.push_back(std::to_string(size.isNamed() ? sizes.at(size.name) : size.value));
  return fmt::format("{}", fmt::join(parts, "x"));
}

/// A kernel with buffers of its own.
class Contender {
public:
  Contender(Session &session, const Spec &spec, Phase phase, const oracle::Sizes &sizes,
            const oracle::Arrays &inputs, int threads)
      : executor_(nf_openmp_executor(threads)) {
    const Operator op = makeOperator(spec, phase);
    // A warm compilation: the second.
    auto first = session.compile(spec, phase);
    CompileTimes times;
    const double begin = now();
    auto artifact = session.compile(op, selectSchedules(op, session.target()), &times);
    Failure failure;
    if (!first || !artifact)
      throw std::runtime_error(llvm::toString(first ? artifact.takeError() : first.takeError()));
    kernel_ = Kernel::load(std::move(*artifact), {}, failure);
    compileMs = (now() - begin) * 1e3;
    if (!kernel_)
      throw std::runtime_error(failure.message);
    variants = kernel_->artifact().variants.size();
    std::vector<int64_t> values;
    for (const std::string &name : kernel_->artifact().sizes)
      values.push_back(sizes.at(name));
    plan_ = Plan::make(kernel_, values, failure);
    if (!plan_)
      throw std::runtime_error(failure.message);
    for (size_t i = 0; i < kernel_->artifact().arguments.size(); ++i) {
      const Argument &argument = kernel_->artifact().arguments[i];
      const size_t bytes = (plan_->arrays()[i].bytes + 63) / 64 * 64;
      buffers_.push_back({std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096), std::free});
      std::memset(buffers_.back().get(), 0xFF, bytes);
      if (!argument.written)
        std::memcpy(buffers_.back().get(), inputs.at(argument.name).bytes.data(),
                    plan_->arrays()[i].bytes);
      pointers_.push_back(buffers_.back().get());
    }
    workspace_ = {std::aligned_alloc(64, (plan_->workspaceBytes() + 64) / 64 * 64), std::free};
  }
  void run() {
    Failure failure;
    if (!plan_->run({pointers_, {}, workspace_.get()}, &executor_, failure))
      throw std::runtime_error(failure.message);
  }
  HostArray output(const std::string &name) const {
    const auto &arguments = kernel_->artifact().arguments;
    for (size_t i = 0; i < arguments.size(); ++i)
      if (arguments[i].written && arguments[i].name == name) {
        HostArray array(arguments[i].dtype, plan_->arrays()[i].shape);
        std::memcpy(array.bytes.data(), pointers_[i], array.bytes.size());
        return array;
      }
    throw std::runtime_error("no output " + name);
  }
  std::string schedule() const { return kernel_->artifact().variants[plan_->variant()].schedule; }
  double compileMs = 0;
  size_t variants = 0;

private:
  nf_executor executor_;
  std::shared_ptr<const Kernel> kernel_;
  std::shared_ptr<const Plan> plan_;
  std::vector<std::unique_ptr<void, void (*)(void *)>> buffers_;
  std::vector<void *> pointers_;
  std::unique_ptr<void, void (*)(void *)> workspace_{nullptr, std::free};
};

struct Result {
  std::string spec, phase, layout, shape, implementation, schedule;
  double us = 0, spread = 0, onednnUs = 0, onednnSpread = 0;
  double ratio = 0, low = 0, high = 0; ///< oneDNN's time over ours, and its 95 % interval
  double compileMs = 0, gigabytesPerSecond = 0;
  bool agrees = false;
};

/// Distance of the quartiles over the median.
double spreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return (values[values.size() * 3 / 4] - values[values.size() / 4]) / values[values.size() / 2];
}

Result measure(Contender &ours, oracle::OneDnn &theirs, double seconds) {
  auto timed = [](auto &contender, int calls) {
    const double begin = now();
    for (int i = 0; i < calls; ++i)
      contender.run();
    return (now() - begin) / calls;
  };
  const double first = std::max(timed(ours, 2), 1e-7), second = std::max(timed(theirs, 2), 1e-7);
  // Blocks of about a millisecond, at least 11 of them.
  const int ourCalls = std::max(1, static_cast<int>(1e-3 / first));
  const int theirCalls = std::max(1, static_cast<int>(1e-3 / second));
  const double round = ourCalls * first + theirCalls * second;
  const int rounds = std::clamp(static_cast<int>(seconds / round), 11, 400);
  std::vector<double> a, b, ratios;
  for (int i = 0; i < rounds; ++i) {
    a.push_back(timed(ours, ourCalls));
    b.push_back(timed(theirs, theirCalls));
    ratios.push_back(b.back() / a.back());
  }
  Result result;
  result.us = median(a) * 1e6;
  result.onednnUs = median(b) * 1e6;
  result.spread = spreadOf(a);
  result.onednnSpread = spreadOf(b);
  result.ratio = median(ratios);
  // The median's interval by order statistics: 1.96 standard deviations of a binomial's rank.
  std::sort(ratios.begin(), ratios.end());
  const double n = static_cast<double>(ratios.size()), half = 0.98 * std::sqrt(n);
  auto rank = [&](double r) { return ratios[static_cast<size_t>(std::clamp(r, 0.0, n - 1))]; };
  result.low = rank(n / 2 - half);
  result.high = rank(n / 2 + half);
  return result;
}

std::vector<std::string> specFiles(const std::vector<std::string> &paths) {
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

int run(const Options &options) {
  auto target = describeTarget("native");
  if (!target) {
    fmt::print(stderr, "normforge-bench: error: {}\n", llvm::toString(target.takeError()));
    return 2;
  }
  Session session(*target);
  std::ofstream json;
  if (!options.json.empty()) {
    json.open(options.json);
    if (!json) {
      fmt::print(stderr, "normforge-bench: error: cannot write {}\n", options.json);
      return 2;
    }
  }
  fmt::print("{}; {} threads; oneDNN {}; f32; median us of interleaved blocks of calls\n",
             target->summary(), options.threads, oracle::oneDnnVersion());
  fmt::print("{:28} {:9} {:8} {:16} {:>9} {:>5} {:>9} {:>5} {:>6} {:>13} {:>6} {:>7} {}\n", "spec",
             "phase", "layout", "shape", "us", "+-%", "oneDNN", "+-%", "ratio", "95 %", "GB/s",
             "compile", "agrees");
  std::map<std::string, std::vector<double>> groups;
  std::vector<double> compileMs;
  int behind = 0, wrong = 0;
  for (const std::string &file : specFiles(options.specs)) {
    auto parsed = readSpec(file);
    if (!parsed) {
      fmt::print(stderr, "{}\n", llvm::toString(parsed.takeError()));
      return 2;
    }
    for (const std::string &layout : options.layouts) {
      const auto spec = inLayout(*parsed, layout);
      if (!spec)
        continue;
      for (int64_t batch : options.batches)
        for (const std::string &phaseName : options.phases) {
          const Phase phase = *parsePhase(phaseName);
          oracle::Sizes sizes;
          for (const std::string &name : spec->sizeNames())
            sizes[name] = name == "N" ? batch : 128;
          const oracle::Arrays inputs = oracle::drawInputs(*spec, phase, sizes, 1);
          std::string whyNot;
          auto theirs =
              oracle::OneDnn::create(*spec, phase, sizes, inputs, {}, options.threads, whyNot);
          if (!theirs) {
            fmt::print("{:28} {:9} {:8} oneDNN: {}\n", spec->name, phaseName, layout, whyNot);
            continue;
          }
          Contender ours(session, *spec, phase, sizes, inputs, options.threads);
          ours.run();
          theirs->run();
          const auto expected = theirs->outputs();
          bool agrees = true;
          for (const auto &[name, array] : expected)
            agrees = agrees && oracle::compare(ours.output(name), array,
                                               oracle::oneDnnTolerance(*spec, phase, name, sizes,
                                                                       inputs, expected))
                                   .agrees();
          Result r = measure(ours, *theirs, options.seconds);
          r.spec = spec->name;
          r.phase = phaseName;
          r.layout = layout;
          r.shape = shapeText(*spec, sizes);
          r.agrees = agrees;
          r.compileMs = ours.compileMs / static_cast<double>(ours.variants);
          const Operator op = makeOperator(*spec, phase);
          std::vector<int64_t> values;
          for (const std::string &name : op.sizes)
            values.push_back(sizes.at(name));
          r.gigabytesPerSecond =
              static_cast<double>(op.minimumBytes().evaluate(values).value_or(0)) / r.us * 1e-3;
          compileMs.push_back(r.compileMs);
          behind += r.high < 1 / 1.03;
          wrong += !agrees;
          groups[fmt::format("{} {} batch {}", layout, phaseName, batch)].push_back(r.ratio);
          fmt::print(
              "{:28} {:9} {:8} {:16} {:9.1f} {:5.1f} {:9.1f} {:5.1f} {:6.2f} {:>6.2f}-{:<6.2f}"
              " {:6.1f} {:7.1f} {}\n",
              r.spec, r.phase, r.layout, r.shape, r.us, r.spread * 100, r.onednnUs,
              r.onednnSpread * 100, r.ratio, r.low, r.high, r.gigabytesPerSecond, r.compileMs,
              agrees ? "yes" : "NO");
          std::fflush(stdout);
          if (json)
            json << fmt::format(
                "{{\"spec\":\"{}\",\"phase\":\"{}\",\"layout\":\"{}\",\"shape\":\"{}\","
                "\"threads\":{},\"median_us\":{:.3f},\"spread\":{:.4f},\"onednn_median_us\":{:.3f},"
                "\"onednn_spread\":{:.4f},\"ratio\":{:.4f},\"ratio_low\":{:.4f},"
                "\"ratio_high\":{:.4f},\"compile_ms\":{:.3f},\"agrees\":{},\"implementation\":"
                "\"{}\",\"schedule\":\"{}\"}}\n",
                r.spec, r.phase, r.layout, r.shape, options.threads, r.us, r.spread, r.onednnUs,
                r.onednnSpread, r.ratio, r.low, r.high, r.compileMs, agrees ? "true" : "false",
                theirs->implementation(), ours.schedule());
        }
    }
  }
  fmt::print("\ntimes faster than oneDNN in the same layout: geometric mean, least\n");
  for (const auto &[name, ratios] : groups) {
    double sum = 0;
    for (double ratio : ratios)
      sum += std::log(ratio);
    fmt::print("  {:32} {:6.2f} {:6.2f}\n", name,
               std::exp(sum / static_cast<double>(ratios.size())),
               *std::min_element(ratios.begin(), ratios.end()));
  }
  if (!compileMs.empty())
    fmt::print("compile, warm, one variant: median {:.1f} ms, worst {:.1f} ms\n", median(compileMs),
               *std::max_element(compileMs.begin(), compileMs.end()));
  fmt::print("{} behind oneDNN (interval below 1/1.03), {} disagree\n", behind, wrong);
  return wrong ? 1 : 0;
}

} // namespace

int main(int argc, char **argv) {
  Options options;
  CLI::App app("Normforge's kernels beside oneDNN, interleaved", "normforge-bench");
  app.add_option("specs", options.specs, "Specs or folders of specs");
  app.add_option("--batch", options.batches, "Sizes of N, such as 1,50 (default: 1,50)")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--layouts", options.layouts,
                 "Layouts to bring each nchw spec into, such as nchw,nhwc")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--phases", options.phases, "inference,training")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--threads", options.threads, "Threads of both contenders")
      ->check(CLI::Range(1, 1024));
  app.add_option("--seconds", options.seconds, "Time to spend on a case")
      ->check(CLI::PositiveNumber);
  app.add_option("--json", options.json, "Also write one JSON object a line to this file");
  app.add_flag("--quick", options.quick, "A tenth of the time");
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
      fmt::print(stderr, "normforge-bench: error: unknown phase '{}'\n", phase);
      return 2;
    }
  if (options.quick)
    options.seconds /= 10;
  try {
    return run(options);
  } catch (const std::exception &error) {
    fmt::print(stderr, "normforge-bench: error: {}\n", error.what());
    return 3;
  }
}
