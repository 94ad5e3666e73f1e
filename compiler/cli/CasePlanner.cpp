#include "compiler/cli/CasePlanner.h"

#include "llvm/ADT/STLExtras.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace normforge::cli {

std::string sizesText(const CheckCase &check) {
  std::vector<std::string> parts;
  for (const std::string &name : check.spec.sizeNames())
    parts.push_back(fmt::format("{}={}", name, check.sizes.at(name)));
  for (const std::string &name : check.spec.scalarNames(check.phase))
    parts.push_back(fmt::format("{}={}", name, check.scalars.at(name)));
  return parts.empty() ? "-" : fmt::format("{}", fmt::join(parts, " "));
}

llvm::Error CasePlanner::add(const std::string &path, const Spec &spec) {
  std::vector<Phase> phases = spec.phases;
  if (!phase_.empty()) {
    const std::optional<Phase> phase = parsePhase(phase_);
    if (!phase)
      return badInput(fmt::format("--phase: expected {}, found '{}'", phaseChoices(), phase_));
    if (!spec.hasPhase(*phase))
      return llvm::Error::success();
    phases = {*phase};
  }
  CheckCase check{path, spec, Phase::Inference, {}, {}};
  std::vector<std::string> missing;
  for (const std::string &name : spec.sizeNames()) {
    used_.push_back(name);
    if (const auto found = given_.find(name); found != given_.end()) {
      check.sizes[name] = found->second;
      continue;
    }
    const std::optional<int64_t> fallback = defaultSize(name);
    if (!fallback) {
      missing.push_back(name);
      continue;
    }
    check.sizes[name] = *fallback;
    if (std::string text = fmt::format("{}={}", name, *fallback);
        !llvm::is_contained(defaults, text))
      defaults.push_back(std::move(text));
  }
  if (!missing.empty())
    return badInput(fmt::format("{}: no value for size {}; give it with --size {}=VALUE (named "
                                "sizes of this spec: {})",
                                path, fmt::join(missing, ", "), missing.front(),
                                fmt::join(spec.sizeNames(), ", ")));
  for (Phase phase : phases) {
    check.phase = phase;
    check.scalars = oracle::usualNumbers(spec, phase);
    cases.push_back(check);
  }
  return llvm::Error::success();
}

llvm::Error CasePlanner::finish() const {
  if (cases.empty())
    return badInput(fmt::format("--phase: no spec given has phase {}", phase_));
  for (const auto &[name, value] : given_)
    if (!llvm::is_contained(used_, name)) {
      std::vector<std::string> names = used_;
      llvm::sort(names);
      names.erase(std::unique(names.begin(), names.end()), names.end());
      return badInput(fmt::format(
          "--size: no spec given has a size '{}'; {}", name,
          names.empty() ? "all sizes are numbers"
                        : fmt::format("the named sizes are {}", fmt::join(names, ", "))));
    }
  return llvm::Error::success();
}

} // namespace normforge::cli
