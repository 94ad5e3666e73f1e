#include "compiler/export/Manifest.h"

#include "normforge/normforge.h"

#include "llvm/Support/JSON.h"
#include "llvm/Support/raw_ostream.h"

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
  return llvm::json::Object{{"name", argument.name},
                            {"dtype", std::string(toString(argument.dtype))},
                            {"written", argument.written},
                            {"shape", std::move(shape)},
                            {"may_alias", std::move(aliases)}};
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
    llvm::json::Array arguments, cpus;
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
                                         {"phase", std::string(toString(kernel.phase))},
                                         {"symbol", exported.symbol},
                                         {"arguments", std::move(arguments)},
                                         {"sizes", texts(kernel.sizes)},
                                         {"scalars", texts(kernel.scalars)},
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
