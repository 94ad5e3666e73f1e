#include "runtime/kernel/Kernel.h"

#include "runtime/cpu_info/CpuInfo.h"

namespace normforge {
namespace {

/// The architecture that a triple such as "x86_64-pc-linux-gnu" begins with.
std::string_view architecture(std::string_view triple) {
  std::string_view name = triple.substr(0, triple.find('-'));
  return name == "amd64" ? "x86_64" : name == "arm64" ? "aarch64" : name;
}

bool fitsHost(const Artifact &artifact, Failure &failure) {
  if (artifact.abiVersion != NF_ABI_VERSION)
    return failure.set(NF_BAD_ARTIFACT,
                       "kernel has ABI version " + std::to_string(artifact.abiVersion) +
                           "; this library runs " + std::to_string(NF_ABI_VERSION));
  if (architecture(artifact.triple) != hostArchitecture())
    return failure.set(NF_WRONG_MACHINE,
                       "kernel is code for " + std::string(architecture(artifact.triple)) +
                           "; this machine is " + std::string(hostArchitecture()));
  std::string missing;
  for (const std::string &feature : artifact.requiredFeatures)
    if (!hostHasFeature(feature))
      missing += (missing.empty() ? "" : ", ") + feature;
  if (!missing.empty())
    return failure.set(NF_WRONG_MACHINE, "kernel needs " + missing + ", which this machine lacks");
  return true;
}

} // namespace

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
  auto images = std::make_shared<std::vector<LoadedImage>>();
  for (const Variant &variant : kernel->artifact_.variants) {
    if (!LoadedImage::load(variant.image, images->emplace_back(), failure))
      return nullptr;
    if (options.perfMap)
      appendPerfMap(images->back(), variant.image, variant.stages);
  }
  kernel->images_ = std::move(images);
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
  return (*images_)[variant].function(artifact_.variants[variant].stages[stage].entry);
}

} // namespace normforge
