#include "compiler/export/Manifest.h"

#include "normforge/normforge.h"

#include "llvm/Support/JSON.h"
#include "llvm/Support/raw_ostream.h"

#include <cmath>
#include <numeric>

namespace normforge {

namespace {

llvm::json::Array texts(const std::vector<std::string> &words) {
  return llvm::json::Array(llvm::ArrayRef(words));
}

llvm::json::Object argumentOf(const Artifact &kernel, const Argument &argument) {
  llvm::json::Array shape, aliases;
  for (const SizeExpr &size : argument.shape)
    shape.push_back(size.text(kernel.sizes));
  for (uint32_t alias : argument.mayAlias)
    aliases.push_back(static_cast<int64_t>(alias));
  llvm::json::Object object{{"name", argument.name},
                            {"role", std::string(toString(argument.role))},
                            {"dtype", std::string(toString(argument.dtype))},
                            {"written", argument.written},
                            {"shape", std::move(shape)},
                            {"may_alias", std::move(aliases)}};
  if (argument.old >= 0)
    object["old"] = static_cast<int64_t>(argument.old);
  return object;
}

llvm::json::Object scalarOf(const Scalar &scalar) {
  llvm::json::Object object{{"name", scalar.name}};
  if (std::isfinite(scalar.least))
    object[scalar.open ? "above" : "at_least"] = scalar.least;
  if (std::isfinite(scalar.most))
    object["at_most"] = scalar.most;
  if (scalar.whole)
    object["whole"] = true;
  return object;
}

llvm::json::Object sizeOf(const Artifact &kernel, size_t size) {
  llvm::json::Object object{{"name", kernel.sizes[size]}};
  int64_t least = 0, multiple = 1;
  for (const Constraint &constraint : kernel.constraints)
    if (constraint.size == size) {
      least = std::max(least, constraint.atLeast);
      multiple = std::lcm(multiple, constraint.multipleOf);
    }
  object["at_least"] = least;
  if (multiple > 1)
    object["multiple_of"] = multiple;
  return object;
}

llvm::json::Object variantOf(const Artifact &kernel, const Variant &variant) {
  llvm::json::Array stages;
  for (const Stage &stage : variant.stages)
    stages.push_back(llvm::json::Object{{"symbol", stage.symbol},
                                        {"tasks", stage.tasks.text(kernel.sizes)},
                                        {"bytes_per_task", stage.bytesPerTask.text(kernel.sizes)}});
  llvm::json::Object object{{"schedule", variant.schedule},
                            {"workspace_bytes", variant.workspaceBytes.text(kernel.sizes)},
                            {"stages", std::move(stages)}};
  if (variant.guard.limit != INT64_MAX)
    object["when"] = llvm::json::Object{{"value", variant.guard.value.text(kernel.sizes)},
                                        {"at_most", variant.guard.limit}};
  return object;
}

} // namespace

std::string jsonManifest(const ExportedHeader &header) {
  llvm::json::Array kernels;
  for (const ExportedKernel &exported : header.kernels) {
    const Artifact &kernel = exported.variants.front();
    llvm::json::Array arguments, sizes, scalars, cpus;
    for (size_t i = 0; i < kernel.sizes.size(); ++i)
      sizes.push_back(sizeOf(kernel, i));
    for (const Scalar &scalar : kernel.scalars)
      scalars.push_back(scalarOf(scalar));
    for (const Argument &argument : kernel.arguments)
      arguments.push_back(argumentOf(kernel, argument));
    for (const Artifact &cpu : exported.variants) {
      llvm::json::Array variants;
      for (const Variant &variant : cpu.variants)
        variants.push_back(variantOf(cpu, variant));
      cpus.push_back(llvm::json::Object{{"cpu", cpu.cpu},
                                        {"features", texts(cpu.requiredFeatures)},
                                        {"variants", std::move(variants)}});
    }
    kernels.push_back(llvm::json::Object{{"name", kernel.name},
                                         {"phase", kernel.phase},
                                         {"symbol", exported.symbol},
                                         {"arguments", std::move(arguments)},
                                         {"sizes", std::move(sizes)},
                                         {"scalars", std::move(scalars)},
                                         {"cpus", std::move(cpus)}});
  }
  llvm::json::Object whole{{"normforge", nf_version()},
                           {"abi", static_cast<int64_t>(NF_ABI_VERSION)},
                           {"triple", header.kernels.front().variants.front().triple},
                           {"kernels", std::move(kernels)}};
  if (!header.cpuFunction.empty())
    whole["cpu_function"] = header.cpuFunction;
  std::string text;
  llvm::raw_string_ostream(text) << llvm::formatv("{0:2}", llvm::json::Value(std::move(whole)));
  return text + "\n";
}

} // namespace normforge
