#include "runtime/kernel/Kernel.h"

#include "runtime/cpu_info/CpuInfo.h"

namespace normforge {

std::string_view architectureOf(std::string_view triple) {
  std::string_view name = triple.substr(0, triple.find('-'));
  return name == "amd64" ? "x86_64" : name == "arm64" ? "aarch64" : name;
}

namespace {

bool fitsHost(const Artifact &artifact, Failure &failure) {
  if (artifact.abiVersion != NF_ABI_VERSION)
    return failure.set(NF_BAD_ARTIFACT,
                       "kernel has ABI version " + std::to_string(artifact.abiVersion) +
                           "; this library runs " + std::to_string(NF_ABI_VERSION));
  if (artifact.entry == EntryKind::Launch)
    return architectureOf(artifact.triple) == "nvptx64" ||
           failure.set(NF_WRONG_MACHINE, "kernel is code for " +
                                             std::string(architectureOf(artifact.triple)) +
                                             ", whose GPUs this library does not launch on");
  if (architectureOf(artifact.triple) != hostArchitecture())
    return failure.set(NF_WRONG_MACHINE,
                       "kernel is code for " + std::string(architectureOf(artifact.triple)) +
                           "; this machine is " + std::string(hostArchitecture()));
  const std::string missing = hostLacks(artifact.requiredFeatures);
  return missing.empty() ||
         failure.set(NF_WRONG_MACHINE, "kernel needs " + missing + ", which this machine lacks");
}

} // namespace

std::vector<Stage> namedStages(const Artifact &artifact, size_t variant) {
  std::vector<Stage> stages = artifact.variants[variant].stages;
  if (artifact.name.empty())
    return stages;
  for (Stage &stage : stages) {
    const std::string number =
        artifact.variants.size() > 1 ? "_v" + std::to_string(variant + 1) : std::string();
    const size_t last = stage.symbol.rfind('_'); // "nf_bn_training_f32_nchw_moments"
    stage.symbol = artifact.name + "_" + artifact.phase + number + "_" +
                   stage.symbol.substr(last == std::string::npos ? 0 : last + 1);
  }
  return stages;
}

std::shared_ptr<const Kernel> Kernel::load(Artifact artifact, const LoadOptions &options,
                                           Failure &failure) {
  std::string error;
  if (!validate(artifact, error)) {
    failure.set(NF_BAD_ARTIFACT, std::move(error));
    return nullptr;
  }
  if (!fitsHost(artifact, failure))
    return nullptr;
  auto kernel = std::make_shared<Kernel>();
  kernel->artifact_ = std::move(artifact);
  if (kernel->isOfDevice()) {
    kernel->deviceCode_ = std::make_shared<DeviceCode>();
    return kernel;
  }
  auto code = std::make_shared<std::vector<Code>>();
  for (const Variant &variant : kernel->artifact_.variants) {
    Code &one = code->emplace_back();
    if (!LoadedImage::load(variant.image, variant.stages, one.image, failure))
      return nullptr;
    if (!options.perfMap && !options.debugger)
      continue;
    const std::vector<Stage> stages = namedStages(kernel->artifact_, code->size() - 1);
    if (options.perfMap)
      appendPerfMap(one.image, variant.image, stages);
    if (options.debugger)
      one.debugger = std::make_unique<DebuggerEntry>(one.image, variant.image, stages);
  }
  kernel->code_ = std::move(code);
  return kernel;
}

std::shared_ptr<const Kernel> Kernel::named(const std::shared_ptr<const Kernel> &kernel,
                                            const std::string &name) {
  if (kernel->artifact_.name == name)
    return kernel;
  auto other = std::make_shared<Kernel>(*kernel);
  other->artifact_.name = name;
  return other;
}

nf_stage_fn *Kernel::function(size_t variant, size_t stage) const {
  return isOfDevice()
             ? nullptr
             : (*code_)[variant].image.function(artifact_.variants[variant].stages[stage].entry);
}

} // namespace normforge
