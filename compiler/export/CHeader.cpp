#include "compiler/export/CHeader.h"

#include "compiler/export/AbiHeader.inc" // kAbiHeader, the text of normforge/abi.h
#include "normforge/normforge.h"

#include <algorithm>
#include <cctype>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace normforge {

namespace {

const char *cType(DType dtype) {
  constexpr const char *types[dtypeCount] = {"float", "double", "uint16_t", "uint16_t", "uint16_t"};
  return types[static_cast<unsigned>(dtype)];
}

std::string upper(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return text;
}

/// An expression of the sizes' parameters, as uint64_t.
std::string cExpression(const SizeExpr &expr, const std::vector<std::string> &sizes) {
  std::vector<std::string> stack;
  for (const SizeExpr::Node &node : expr.nodes()) {
    auto binary = [&](auto make) {
      std::string right = std::move(stack.back());
      stack.pop_back();
      stack.back() = make(stack.back(), right);
    };
    switch (node.op) {
    case SizeExpr::Op::Constant:
      stack.push_back(fmt::format("UINT64_C({})", node.value));
      break;
    case SizeExpr::Op::Size:
      stack.push_back(fmt::format("(uint64_t){}", sizes[static_cast<size_t>(node.value)]));
      break;
    case SizeExpr::Op::Add:
      binary([](const std::string &a, const std::string &b) {
        return fmt::format("({} + {})", a, b);
      });
      break;
    case SizeExpr::Op::Multiply:
      binary(
          [](const std::string &a, const std::string &b) { return fmt::format("{} * {}", a, b); });
      break;
    case SizeExpr::Op::CeilDivide:
      binary([](const std::string &a, const std::string &b) {
        const bool isNumber = b.starts_with("UINT64_C(") && b.find(' ') == std::string::npos;
        return isNumber ? fmt::format("(({0} + {1} - 1) / {1})", a, b)
                        : fmt::format("({1} == 0 ? 0 : ({0} + {1} - 1) / ({1}))", a, b);
      });
      break;
    }
  }
  return stack.back();
}

/// Writes the text of one kernel.
class KernelWriter {
public:
  KernelWriter(const ExportedKernel &kernel, const std::string &cpuFunction, std::string &out)
      : kernel_(kernel), manifest_(kernel.variants.front()), name_(kernel.symbol),
        cpuFunction_(cpuFunction), out_(out) {
    for (const Argument &argument : manifest_.arguments) {
      arguments_.push_back((argument.old < 0 ? "" : "new_") + argument.name);
    }
    // Arguments and numbers have no name that C or this header has (spec/Steps.cpp), sizes any:
    // with an ending they are no keyword, macro or name of ours. One letter, as most are, is none
    // either, but for the macro of <complex.h>.
    for (const std::string &size : manifest_.sizes)
      sizes_.push_back(size.size() == 1 && std::isupper(static_cast<unsigned char>(size[0])) &&
                               size != "I"
                           ? size
                           : size + "_size");
    for (const Scalar &scalar : manifest_.scalars)
      scalars_.push_back(scalar.name);
  }

  void write() {
    line("/* ---- {} ----", name_);
    line(" *\n * {}", kernel_.summary);
    for (size_t i = 0; i < manifest_.arguments.size(); ++i)
      describeArgument(i);
    line(" */");
    writeEnum();
    line("");
    for (const Artifact &cpu : kernel_.variants)
      for (const Variant &variant : cpu.variants)
        for (const Stage &stage : variant.stages)
          line("void {}(const nf_call *call, uint64_t first,\n    uint64_t last);", stage.symbol);
    writeQueries();
    writeCall();
  }

private:
  template <typename... Args> void line(fmt::format_string<Args...> format, Args &&...args) {
    out_ += fmt::format(format, std::forward<Args>(args)...) + "\n";
  }

  void describeArgument(size_t i) {
    const Argument &argument = manifest_.arguments[i];
    std::vector<std::string> shape, aliases;
    for (const SizeExpr &size : argument.shape)
      shape.push_back(size.text(sizes_));
    for (uint32_t alias : argument.mayAlias)
      aliases.push_back(arguments_[alias]);
    line(" *   {:<3} {:<20} {:<5} {} ({}){}", i, arguments_[i], toString(argument.dtype),
         argument.written ? "written" : "read", fmt::join(shape, ", "),
         aliases.empty() ? ""
                         : fmt::format("; may be the buffer of {}", fmt::join(aliases, " or ")));
  }

  void writeEnum() {
    std::vector<std::string> names;
    for (size_t i = 0; i < arguments_.size(); ++i)
      names.push_back(fmt::format("  {}_{} = {}", name_, upper(arguments_[i]), i));
    names.push_back(fmt::format("  {}_ARGUMENTS = {}", name_, arguments_.size()));
    line("enum {{\n{}\n}};", fmt::join(names, ",\n"));
  }

  /// "int64_t N, int64_t M", after `first` where there is one.
  std::string sizeParameters(const std::string &first = "") const {
    std::vector<std::string> parameters;
    if (!first.empty())
      parameters.push_back(first);
    for (const std::string &size : sizes_)
      parameters.push_back("int64_t " + size);
    return parameters.empty() ? "void" : fmt::format("{}", fmt::join(parameters, ", "));
  }
  std::string sizeArguments(const std::string &first = "") const {
    std::vector<std::string> arguments;
    if (!first.empty())
      arguments.push_back(first);
    arguments.insert(arguments.end(), sizes_.begin(), sizes_.end());
    return fmt::format("{}", fmt::join(arguments, ", "));
  }
  /// Against warnings of parameters that a formula does without.
  void useSizes() {
    for (const std::string &size : sizes_)
      line("  (void){};", size);
  }
  std::string expression(const SizeExpr &expr) const { return cExpression(expr, sizes_); }

  /// Every variant of every CPU, numbered through.
  template <typename Body> void forEachVariant(Body body) {
    size_t number = 0;
    for (const Artifact &cpu : kernel_.variants)
      for (const Variant &variant : cpu.variants)
        body(number++, variant);
  }

  /// A function of the stage and the sizes.
  template <typename Value>
  void writeStageQuery(const char *type, const char *what, const char *otherwise, Value value) {
    size_t most = 1; // stages of a variant
    forEachVariant(
        [&](size_t, const Variant &variant) { most = std::max(most, variant.stages.size()); });
    line("static inline {}{}_{}({}) {{", type, name_, what, sizeParameters("uint32_t stage"));
    line("  if (stage >= {})\n    return {};", most, otherwise);
    line("  switch ({}_variant({}) * {} + stage) {{", name_, sizeArguments(), most);
    forEachVariant([&](size_t number, const Variant &variant) {
      for (size_t s = 0; s < variant.stages.size(); ++s)
        line("  case {}:\n    return {};", number * most + s, value(variant.stages[s]));
    });
    line("  default:\n    return {};\n  }}\n}}", otherwise);
  }

  void writeQueries() {
    line("\n/* The bytes of an array, by its number above. */");
    line("static inline uint64_t {}_bytes({}) {{", name_, sizeParameters("uint32_t argument"));
    useSizes();
    line("  switch (argument) {{");
    for (size_t i = 0; i < manifest_.arguments.size(); ++i) {
      const Argument &argument = manifest_.arguments[i];
      line("  case {}:\n    return {};", i, expression(arrayBytes(argument.shape, argument.dtype)));
    }
    line("  default:\n    return 0;\n  }}\n}}");

    line("/* The code that these sizes choose{}. */",
         cpuFunction_.empty() ? "" : " on this machine, or UINT32_MAX where it runs none");
    line("static inline uint32_t {}_variant({}) {{", name_, sizeParameters());
    useSizes();
    uint32_t number = 0;
    auto chooseOf = [&](const Artifact &cpu, const char *indent) {
      for (const Variant &variant : cpu.variants) {
        if (variant.guard.limit == INT64_MAX)
          line("{}return {};", indent, number);
        else
          line("{}if ({} <= UINT64_C({}))\n{}  return {};", indent, expression(variant.guard.value),
               variant.guard.limit, indent, number);
        ++number;
      }
    };
    if (cpuFunction_.empty()) {
      chooseOf(manifest_, "  ");
    } else {
      line("  switch ({}()) {{", cpuFunction_);
      for (size_t c = 0; c < kernel_.variants.size(); ++c) {
        line("  case {}: /* {} */", c, kernel_.variants[c].cpu);
        chooseOf(kernel_.variants[c], "    ");
      }
      line("  default:\n    return UINT32_MAX;\n  }}");
    }
    line("}}");

    line("/* Bytes that a call needs as workspace, aligned to NF_WORKSPACE_ALIGNMENT; often 0. */");
    line("static inline uint64_t {}_workspace_bytes({}) {{", name_, sizeParameters());
    line("  switch ({}_variant({})) {{", name_, sizeArguments());
    forEachVariant([&](size_t n, const Variant &variant) {
      line("  case {}:\n    return {};", n, expression(variant.workspaceBytes));
    });
    line("  default:\n    return 0;\n  }}\n}}");

    line("/* The number of stages, which run one after the other. */");
    line("static inline uint32_t {}_stages({}) {{", name_, sizeParameters());
    line("  switch ({}_variant({})) {{", name_, sizeArguments());
    forEachVariant([&](size_t n, const Variant &variant) {
      line("  case {}:\n    return {};", n, variant.stages.size());
    });
    line("  default:\n    return 0;\n  }}\n}}");

    line("/* A stage's function, the number of its tasks, and the bytes that one of them moves\n"
         " * (an estimate). The stage is less than {}_stages. */",
         name_);
    writeStageQuery("nf_stage_fn *", "stage", "0", [](const Stage &stage) { return stage.symbol; });
    writeStageQuery("uint64_t ", "tasks", "0",
                    [&](const Stage &stage) { return expression(stage.tasks); });
    writeStageQuery("uint64_t ", "task_bytes", "0",
                    [&](const Stage &stage) { return expression(stage.bytesPerTask); });
  }

  /// Sizes that have to be multiples of a number.
  std::vector<const Constraint *> multiplesOf() const {
    std::vector<const Constraint *> found;
    for (const Constraint &constraint : manifest_.constraints)
      if (constraint.multipleOf > 1)
        found.push_back(&constraint);
    return found;
  }
  std::string multiplesInWords() const {
    std::vector<std::string> words;
    for (const Constraint *one : multiplesOf())
      words.push_back(fmt::format("{} is no multiple of {}", sizes_[one->size], one->multipleOf));
    return fmt::format("{}", fmt::join(words, " or "));
  }

  void writeCall() {
    const std::vector<const Constraint *> multiples = multiplesOf();
    std::vector<std::string> parameters;
    for (size_t i = 0; i < arguments_.size(); ++i)
      parameters.push_back(fmt::format("{}{} *{}", manifest_.arguments[i].written ? "" : "const ",
                                       cType(manifest_.arguments[i].dtype), arguments_[i]));
    for (const std::string &size : sizes_)
      parameters.push_back("int64_t " + size);
    for (const std::string &scalar : scalars_)
      parameters.push_back("double " + scalar);
    parameters.push_back("void *workspace");
    line("/* Runs every task on the calling thread. The workspace has\n"
         " * {}_workspace_bytes bytes, aligned to NF_WORKSPACE_ALIGNMENT; it may be a\n"
         " * null pointer where that is 0. Returns 0{}{}. */",
         name_, cpuFunction_.empty() ? "" : ", or 1 where this machine runs none of the code",
         multiples.empty() ? "" : ", or 2, and does nothing,\n * where " + multiplesInWords());
    line("static inline int {}({}) {{", name_, fmt::join(parameters, ",\n    "));
    line("  void *args[{}];", arguments_.size());
    for (size_t i = 0; i < arguments_.size(); ++i)
      line("  args[{}] = (void *)(uintptr_t){};", i, arguments_[i]);
    if (!sizes_.empty()) {
      line("  int64_t sizes[{}];", sizes_.size());
      for (size_t i = 0; i < sizes_.size(); ++i)
        line("  sizes[{}] = {};", i, sizes_[i]);
    }
    if (!scalars_.empty()) {
      line("  nf_scalar scalars[{}];", scalars_.size());
      for (size_t i = 0; i < scalars_.size(); ++i)
        line("  scalars[{}] = {};", i, scalars_[i]);
    }
    for (const Constraint *one : multiples)
      line("  if ({} % {} != 0)\n    return 2;", sizes_[one->size], one->multipleOf);
    line("  nf_call call;\n  uint32_t stage;\n  call.struct_size = (uint32_t)sizeof(nf_call);\n"
         "  call.flags = 0;\n  call.args = args;\n  call.sizes = {};\n  call.scalars = {};\n"
         "  call.workspace = workspace;",
         sizes_.empty() ? "0" : "sizes", scalars_.empty() ? "0" : "scalars");
    if (!cpuFunction_.empty())
      line("  if ({}_variant({}) == UINT32_MAX)\n    return 1;", name_, sizeArguments());
    line("  for (stage = 0; stage < {0}_stages({1}); ++stage)\n"
         "    {0}_stage({2})(&call, 0, {0}_tasks({2}));\n  return 0;\n}}\n",
         name_, sizeArguments(), sizeArguments("stage"));
  }

  const ExportedKernel &kernel_;
  const Artifact &manifest_;
  const std::string &name_, &cpuFunction_;
  std::string &out_;
  std::vector<std::string> arguments_, sizes_, scalars_; ///< as C has them
};

} // namespace

std::string exportedSymbol(const std::string &name, std::string_view phase) {
  return identifierOf(fmt::format("{}_{}", name, phase));
}

std::string identifierOf(std::string_view text) {
  std::string name;
  for (const char c : text)
    name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  if (name.empty() || std::isdigit(static_cast<unsigned char>(name[0])))
    name = "_" + name;
  return name;
}

std::string cHeader(const ExportedHeader &header) {
  std::vector<std::string> cpus;
  for (const Artifact &artifact : header.kernels.front().variants)
    cpus.push_back(artifact.cpu);
  const std::string guard = "NF_KERNELS_" + identifierOf(header.name) + "_H";
  const std::string forCpus =
      guard + "_FOR_" + identifierOf(fmt::format("{}", fmt::join(cpus, "_")));
  const std::string needs =
      header.cpuFunction.empty()
          ? fmt::format("The code does not ask the machine, which must have: {}.",
                        fmt::join(header.kernels.front().variants.front().requiredFeatures, " "))
          : fmt::format("{}() tells which CPU's code the library runs on this machine.",
                        header.cpuFunction);
  std::string out = fmt::format(
      "/* Kernels compiled by normforge {}.{}.{} for {} ({}).", NF_VERSION_MAJOR, NF_VERSION_MINOR,
      NF_VERSION_PATCH, fmt::join(cpus, ", "), header.kernels.front().variants.front().triple);
  out += R"(
 *
 * For each kernel: NAME() computes everything on the calling thread. To spread the work over
 * threads, fill an nf_call and run all tasks of stage 0, then of stage 1, and so on:
 * NAME_stage(s, sizes...)(&call, first, last) for ranges that cover 0 to NAME_tasks(s, sizes...),
 * on any threads, each task once. Results are the same bits for any split.
 *
 * Sizes are at least 1 (0 does nothing in inference) and multiples of what a kernel says, and no
 * array has 2^63 bytes or more. Pointers are aligned to their element. Arrays do not overlap, except
 * for those that may be one buffer. bf16 and f16 are uint16_t; so are bits, 16 an element, the first
 * one lowest, and shapes count the bits. Everything here may be called from several threads; a
 * workspace is for one call at a time. Nothing here allocates or needs a library.
 *
)";
  out +=
      fmt::format(" * {} */\n#ifndef {}\n#define {}\n#define {}\n\n", needs, guard, guard, forCpus);
  out += kAbiHeader;
  out += "\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n";
  if (!header.cpuFunction.empty()) {
    out += "/* Which of these the library runs here, chosen by the dynamic loader:";
    for (size_t i = 0; i < cpus.size(); ++i)
      out += fmt::format("{} {} {}", i ? "," : "", i, cpus[i]);
    out +=
        fmt::format(". UINT32_MAX: none of them. */\nuint32_t {}(void);\n\n", header.cpuFunction);
  }
  for (const ExportedKernel &kernel : header.kernels)
    KernelWriter(kernel, header.cpuFunction, out).write();
  out +=
      fmt::format("#ifdef __cplusplus\n}}\n#endif\n\n#elif !defined({})\n"
                  "#error \"two headers of kernels named {} for different CPUs: make a library of "
                  "them, or name the specs differently\"\n#endif\n",
                  forCpus, header.name);
  return out;
}

} // namespace normforge
