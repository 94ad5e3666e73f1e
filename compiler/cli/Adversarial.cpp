#include "compiler/cli/Adversarial.h"

#include "compiler/cli/Terminal.h"

#include "compiler/cli/Command.h"
#include "normforge/openmp.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>

namespace normforge::cli {

namespace {

struct Row {
  const char *name;
  oracle::Data data = oracle::Data::Normal;
  double spot = 0;         ///< not 0: x's first element
  int64_t elements = 0;    ///< not 0: of a statistics group, by the size N
  bool leastBatch = false; ///< the least N that the spec can cut, mostly 1
};
constexpr Row rows[] = {
    {"mean 0.5, deviation 2"},
    {"mean of 1e4 deviations", oracle::Data::Offset},
    {"every group constant", oracle::Data::Constant},
    {"one element of 1e6 a group", oracle::Data::Outlier},
    {"denormals, 1e-40", oracle::Data::Denormal},
    {"NaN in one group", oracle::Data::Normal, NAN},
    {"Inf in one group", oracle::Data::Normal, INFINITY},
    {"least N", oracle::Data::Normal, 0, 0, true},
    {"2^24 elements a group", oracle::Data::Normal, 0, int64_t(1) << 24},
};
/// Arguments, inputs, expected values in f64, and oneDNN's copies, in multiples of the arguments.
constexpr double copiesOfArguments = 6;

/// The largest difference over the largest expected magnitude, of elements that are to be finite;
/// the others only have to be what they are to be.
struct Error {
  std::string text;
  double size = 0;
  bool isPlaced = true; ///< NaN and Inf are where they are to be, and nowhere else
};
Error errorOf(const HostArray &actual, const HostArray &expected) {
  double difference = 0, magnitude = 0;
  for (int64_t i = 0, n = expected.count(); i < n; ++i) {
    const double a = actual.get(i), e = expected.get(i);
    if (std::isfinite(e) != std::isfinite(a) || std::isnan(e) != std::isnan(a) ||
        (std::isinf(e) && a != e))
      return {std::isnan(e)   ? "NaN lost"
              : std::isinf(e) ? "Inf lost"
              : std::isnan(a) ? "NaN"
                              : "Inf",
              INFINITY, false};
    if (!std::isfinite(e))
      continue;
    difference = std::max(difference, std::abs(a - e));
    magnitude = std::max(magnitude, std::abs(e));
  }
  const double size = magnitude > 0 ? difference / magnitude : difference;
  return {fmt::format("{:.1e}", size), size, true};
}

class Table {
public:
  Table(Session &session, const CheckCase &check, const CheckSettings &settings)
      : session_(session), check_(check), settings_(settings) {}

  llvm::Expected<bool> print() {
    const Operator op = makeOperator(check_.spec, check_.phase);
    auto artifact = compileOperator(session_, op, settings_.schedules(check_));
    if (!artifact)
      return artifact.takeError();
    Failure failure;
    kernel_ = Kernel::load(std::move(*artifact), {}, failure);
    if (!kernel_)
      return badInput(fmt::format("{}: {}", check_.path, failure.message));
    for (const Argument &argument : kernel_->artifact().arguments)
      if (argument.written)
        names_.push_back(argument.name);
    printFolded(
        "{}, {}, seed {}; ours and oneDNN {}: largest difference from the f64 reference over "
        "the largest magnitude\n",
        check_.path, toString(check_.phase), settings_.seed, oracle::oneDnnVersion());
    std::vector<Column> columns{{.title = "x", .width = 28}};
    int importance = static_cast<int>(names_.size());
    for (const std::string &name : names_)
      columns.push_back({.title = name, .width = 17, .importance = importance--});
    columns.push_back({.title = "", .width = std::size("DISAGREES") - 1});
    columns_.emplace(std::move(columns));
    fmt::print("{}", columns_->titles());
    bool agrees = true;
    for (const Row &row : rows) {
      auto good = printRow(row);
      if (!good)
        return good.takeError();
      agrees = agrees && *good;
    }
    printFolded("{}", columns_->leftOut());
    return agrees;
  }

private:
  static bool isSample(const Operand &operand) {
    return !operand.written && operand.values == Values::Sample;
  }
  /// The least N that the spec can cut as it does.
  static int64_t leastBatch(const Operator &op) {
    for (const Constraint &constraint : op.constraints)
      if (op.sizes[constraint.size] == "N")
        return constraint.multipleOf;
    return 1;
  }
  /// The sizes of a row; empty where the spec has no size N to set.
  std::optional<oracle::Sizes> sizesOf(const Row &row) const {
    oracle::Sizes sizes = check_.sizes;
    if (!row.leastBatch && !row.elements)
      return sizes;
    const auto n = sizes.find("N");
    if (n == sizes.end())
      return std::nullopt;
    const Operator op = makeOperator(check_.spec, check_.phase);
    const int64_t least = n->second = leastBatch(op);
    std::vector<int64_t> values;
    for (const std::string &name : op.sizes)
      values.push_back(sizes.at(name));
    const int64_t each = op.groupSize.evaluate(values).value_or(1);
    if (row.elements) {
      n->second *= 2;
      for (size_t i = 0; i < op.sizes.size(); ++i)
        values[i] = sizes.at(op.sizes[i]);
      if (op.groupSize.evaluate(values).value_or(1) == each)
        return std::nullopt; // groups do not grow with N
      n->second = (row.elements + each - 1) / each * least;
    }
    return sizes;
  }

  llvm::Expected<bool> printRow(const Row &row) {
    const auto sizes = sizesOf(row);
    if (!sizes)
      return true;
    const Spec &spec = check_.spec;
    std::vector<int64_t> values;
    for (const std::string &name : kernel_->artifact().sizes)
      values.push_back(sizes->at(name));
    Failure failure;
    auto call = KernelCall::make(kernel_, values, failure);
    if (!call)
      return badInput(fmt::format("{}: {}", check_.path, failure.message));
    if (const double bytes = copiesOfArguments * static_cast<double>(call->bytes());
        bytes > static_cast<double>(physicalMemory())) {
      fmt::print("{:<28}  left out: takes {} of memory\n", row.name, describeBytes(bytes));
      return true;
    }
    const Operator op = makeOperator(spec, check_.phase);
    if (row.spot != 0 && llvm::none_of(op.operands, isSample)) {
      fmt::print("{:<28}  left out: the phase takes no data\n", row.name);
      return true;
    }
    oracle::Arrays inputs =
        oracle::drawInputs(spec, check_.phase, *sizes, settings_.seed, row.data, check_.scalars);
    // Data that are not finite give no tolerance: what stays finite is of the other groups, whose
    // data are as they were.
    const auto tolerances = oracle::tolerances(spec, check_.phase, *sizes, inputs, check_.scalars);
    if (row.spot != 0) {
      // In the data, and in what training would have saved of it.
      for (const Operand &operand : op.operands)
        if (isSample(operand))
          inputs.at(operand.name).set(0, row.spot);
      for (const auto &[name, exact] :
           oracle::batchStatistics(spec, *sizes, inputs, check_.scalars))
        if (const auto saved = inputs.find(name); saved != inputs.end())
          for (int64_t i = 0; i < exact.count(); ++i)
            saved->second.set(i, exact.get(i));
    }
    call->allocate();
    for (const auto &[name, array] : inputs)
      call->set(name, array.bytes);
    std::vector<nf_scalar> scalars;
    for (const Scalar &scalar : kernel_->artifact().scalars)
      scalars.push_back(check_.scalars.at(scalar.name));
    call->setScalars(std::move(scalars));
    if (!call->run(nf_openmp_executor(settings_.threads), failure))
      return badInput(fmt::format("{}: {}", check_.path, failure.message));
    std::string whyNot;
    oracle::Arrays theirs;
    if (auto oneDnn = oracle::OneDnn::create(spec, check_.phase, *sizes, inputs, check_.scalars,
                                             settings_.threads, whyNot)) {
      oneDnn->run();
      theirs = oneDnn->outputs();
    }
    const oracle::Arrays expected =
        oracle::reference(spec, check_.phase, *sizes, inputs, check_.scalars);
    std::vector<std::string> cells{row.name};
    bool agrees = true;
    const auto &arguments = kernel_->artifact().arguments;
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (!arguments[i].written)
        continue;
      const std::string &name = arguments[i].name;
      const HostArray actual = oracle::outputOf(*call, i);
      const Error ours = errorOf(actual, expected.at(name));
      cells.push_back(
          fmt::format("{:<8} {}", ours.text,
                      theirs.count(name) ? errorOf(theirs.at(name), expected.at(name)).text : "-"));
      // Bits of arguments near a kink may be either.
      agrees =
          agrees && ((!std::isfinite(row.spot) && actual.dtype == DType::Bit) ||
                     (ours.isPlaced &&
                      oracle::compare(actual, expected.at(name), tolerances.at(name)).agrees()));
    }
    cells.push_back(agrees ? "" : "DISAGREES");
    fmt::print("{}", columns_->row(cells));
    std::fflush(stdout);
    return agrees;
  }

  Session &session_;
  const CheckCase &check_;
  const CheckSettings &settings_;
  std::shared_ptr<const Kernel> kernel_;
  std::vector<std::string> names_;
  std::optional<Columns> columns_;
};

} // namespace

llvm::Expected<bool> printAdversarial(Session &session, const CheckCase &check,
                                      const CheckSettings &settings) {
  return Table(session, check, settings).print();
}

} // namespace normforge::cli
