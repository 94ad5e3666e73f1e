// Launches of a plan's steps on a GPU.
//
// Rules that a change must keep: nothing is allocated, looked up by name or waited for; all that
// can be checked is checked before the first launch.
#include "runtime/kernel/Plan.h"

#include <algorithm>

namespace normforge {

namespace {

/// A parameter's value, as wide as any.
union Value {
  uint64_t bits;
  float narrow;
  double wide;
};

} // namespace

const Plan::Choice &Plan::choiceFor(const CallArguments &call) const {
  uintptr_t all = reinterpret_cast<uintptr_t>(call.workspace);
  for (size_t i = 0; i < call.args.size(); ++i)
    if (arrays_[i].bytes > 0)
      all |= reinterpret_cast<uintptr_t>(call.args[i]);
  return *std::find_if(chosen_.begin(), chosen_.end() - 1, [&](const Choice &choice) {
    return choice.alignment == 0 || all % choice.alignment == 0;
  });
}

bool Plan::enqueue(const CallArguments &call, const DeviceContext &device, void *queue,
                   Failure &failure) const {
  const Artifact &artifact = kernel_->artifact();
  if (!kernel_->isOfDevice())
    return failure.set(NF_WRONG_MACHINE, "kernel '" + artifact.name + "' is for the CPU " +
                                             artifact.cpu + "; nf_run runs it");
  if (!check(call, failure))
    return false;
  const Choice &choice = choiceFor(call);
  if (choice.steps.empty())
    return true;
  const std::span<void *const> functions =
      kernel_->deviceCode()->functions(&device, choice.variant);
  if (functions.empty())
    return failure.set(NF_INVALID_ARGUMENT, "kernel '" + artifact.name +
                                                "' is not prepared for this device; "
                                                "nf_kernel_prepare loads it");
  if (workspaceBytes_ > 0 && !call.workspace)
    return failure.set(NF_INVALID_ARGUMENT, "there is no workspace; the plan needs one of " +
                                                std::to_string(workspaceBytes_) +
                                                " bytes of the device's memory");
  bool isOther = false;
  if (!device.enter(isOther, failure))
    return false;
  struct Leave {
    const DeviceContext &device;
    bool isOther;
    ~Leave() { device.leave(isOther); }
  } leave{device, isOther};
  auto isUsable = [&](const void *pointer, uint64_t bytes, auto describe) {
    std::string problem = bytes > 0 ? device.problemOf(pointer, bytes) : std::string();
    return problem.empty() || failure.set(NF_INVALID_ARGUMENT, describe() + " " + problem);
  };
  for (size_t i = 0; i < call.args.size(); ++i)
    if (!isUsable(call.args[i], arrays_[i].bytes, [&] { return describe(artifact, i); }))
      return false;
  if (!isUsable(call.workspace, workspaceBytes_, [] { return std::string("the workspace"); }))
    return false;

  for (size_t s = 0; s < choice.steps.size(); ++s) {
    const Step &step = choice.steps[s];
    const std::vector<Parameter> &parameters = step.stage->launch.parameters;
    Value values[maxParameters];
    void *pointers[maxParameters];
    for (size_t i = 0; i < parameters.size(); ++i) {
      const Parameter &parameter = parameters[i];
      Value &value = values[i];
      pointers[i] = &value;
      switch (parameter.kind) {
      case Parameter::Kind::Argument:
        value.bits = reinterpret_cast<uintptr_t>(call.args[parameter.index]);
        break;
      case Parameter::Kind::Workspace:
        value.bits = reinterpret_cast<uintptr_t>(call.workspace) + step.offsets[i];
        break;
      case Parameter::Kind::Size:
        value.bits = static_cast<uint64_t>(sizes_[parameter.index]);
        break;
      case Parameter::Kind::Scalar:
        if (computeDType(artifact.scalars[parameter.index].type) == DType::F64)
          value.wide = call.scalars[parameter.index];
        else
          value.narrow = static_cast<float>(call.scalars[parameter.index]);
        break;
      case Parameter::Kind::Tasks:
        value.bits = step.tasks;
        break;
      }
    }
    if (step.blocks > 0 && !device.launch({functions[s], step.blocks, step.stage->launch.threads,
                                           step.stage->launch.sharedBytes, pointers, queue},
                                          failure)) {
      failure.message = "stage '" + step.stage->symbol + "': " + failure.message;
      return false;
    }
  }
  return true;
}

} // namespace normforge
