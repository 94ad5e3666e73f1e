#include "runtime/kernel/Plan.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>

namespace normforge {
namespace {

/// Below this, a stage runs on the caller: 64 KiB take one core a few microseconds, as long as
/// waking another takes.
constexpr uint64_t smallBytes = 64 << 10;

std::string join(std::span<const std::string> names) {
  std::string text;
  for (const std::string &name : names)
    text += (text.empty() ? "" : ", ") + name;
  return text;
}

/// "takes 2 sizes (N, H); 1 given".
std::string countText(std::string_view noun, std::span<const std::string> names, size_t given) {
  std::string text = "takes " + std::to_string(names.size()) + " " + std::string(noun) +
                     (names.size() == 1 ? "" : "s");
  if (!names.empty())
    text += " (" + join(names) + ")";
  return text + "; " + std::to_string(given) + " given";
}

bool overlap(uintptr_t a, uint64_t aBytes, uintptr_t b, uint64_t bBytes) {
  return aBytes > 0 && bBytes > 0 && (a < b ? b - a < aBytes : a - b < bBytes);
}

struct StageWork {
  const nf_call *call;
  nf_stage_fn *function;
};

void runStage(void *data, uint64_t first, uint64_t last) {
  const auto *work = static_cast<const StageWork *>(data);
  work->function(work->call, first, last);
}

} // namespace

std::string describe(const Artifact &artifact, size_t argument) {
  const Argument &a = artifact.arguments[argument];
  return "argument " + std::to_string(argument) + " ('" + a.name + "', " +
         (a.written ? "written" : "read") + ")";
}

bool Plan::Step::isSmall() const {
  uint64_t bytes;
  return tasks <= 1 || (!__builtin_mul_overflow(tasks, bytesPerTask, &bytes) && bytes < smallBytes);
}

std::shared_ptr<const Plan> Plan::make(std::shared_ptr<const Kernel> kernel,
                                       std::span<const int64_t> sizes, Failure &failure) {
  auto plan = std::make_shared<Plan>();
  plan->kernel_ = std::move(kernel);
  plan->sizes_.assign(sizes.begin(), sizes.end());
  if (!plan->checkSizes(failure) || !plan->measureArrays(failure))
    return nullptr;
  bool isEmpty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
  if (!isEmpty && !plan->chooseVariants(failure))
    return nullptr;
  return plan;
}

bool Plan::checkSizes(Failure &failure) const {
  const Artifact &artifact = kernel_->artifact();
  if (sizes_.size() != artifact.sizes.size())
    return failure.set(NF_INVALID_ARGUMENT, "kernel '" + artifact.name + "' " +
                                                countText("size", artifact.sizes, sizes_.size()));
  std::string problem = problemOf(artifact, sizes_);
  return problem.empty() || failure.set(NF_INVALID_ARGUMENT, std::move(problem));
}

bool Plan::measureArrays(Failure &failure) {
  const Artifact &artifact = kernel_->artifact();
  for (const Argument &argument : artifact.arguments) {
    auto tooLarge = [&] {
      return failure.set(NF_INVALID_ARGUMENT, "sizes are too large: the bytes of '" +
                                                  argument.name + "' do not fit in 63 bits");
    };
    Array &array = arrays_.emplace_back();
    // An array with an axis of 0 has no bytes, however large its other axes are.
    bool isEmpty = false;
    for (const SizeExpr &size : argument.shape) {
      std::optional<int64_t> value = size.evaluate(sizes_);
      if (!value)
        return tooLarge();
      array.shape.push_back(*value);
      isEmpty |= *value == 0;
    }
    if (const int64_t word = elementsPerWord(argument.dtype);
        word > 1 && (array.shape.empty() || array.shape.back() % word != 0))
      return failure.set(NF_BAD_ARTIFACT, "the bits of '" + argument.name + "' are no whole words");
    int64_t total = static_cast<int64_t>(byteSize(argument.dtype));
    for (int64_t size : array.shape)
      if (!isEmpty && __builtin_mul_overflow(total, size, &total))
        return tooLarge();
    array.bytes = isEmpty ? 0 : static_cast<uint64_t>(total / elementsPerWord(argument.dtype));
  }
  return true;
}

bool Plan::chooseVariants(Failure &failure) {
  const std::vector<Variant> &variants = kernel_->artifact().variants;
  chosen_.clear();
  for (size_t i = 0; i < variants.size(); ++i) {
    if (!variants[i].guard.holds(sizes_) ||
        (!chosen_.empty() && variants[i].alignment >= chosen_.back().alignment))
      continue;
    if (!choose(i, failure))
      return false;
    if (variants[i].alignment == 0)
      break;
  }
  return true;
}

bool Plan::choose(size_t index, Failure &failure) {
  const Variant &variant = kernel_->artifact().variants[index];
  auto tooLarge = [&](const std::string &what) {
    return failure.set(NF_INVALID_ARGUMENT,
                       "sizes are too large: " + what + " do not fit in 63 bits");
  };
  const std::optional<int64_t> workspace = variant.workspaceBytes.evaluate(sizes_);
  if (!workspace)
    return tooLarge("the bytes of the workspace");
  workspaceBytes_ = std::max(workspaceBytes_, static_cast<uint64_t>(*workspace));
  Choice &choice = chosen_.emplace_back(Choice{index, variant.alignment});
  for (size_t i = 0; i < variant.stages.size(); ++i) {
    const Stage &stage = variant.stages[i];
    const std::optional<int64_t> tasks = stage.tasks.evaluate(sizes_);
    if (!tasks)
      return tooLarge("the tasks of stage '" + stage.symbol + "'");
    // An estimate may be beyond numbers; then it is large.
    const int64_t bytes = stage.bytesPerTask.evaluate(sizes_).value_or(INT64_MAX);
    Step &step = choice.steps.emplace_back();
    step = {kernel_->function(index, i), static_cast<uint64_t>(*tasks),
            static_cast<uint64_t>(bytes), stage.symbol.c_str(), &stage};
    if (!kernel_->isOfDevice())
      continue;
    constexpr uint64_t mostBlocks = INT32_MAX;
    const uint64_t blocks = (step.tasks + stage.launch.groups - 1) / stage.launch.groups;
    if (blocks > mostBlocks)
      return failure.set(NF_INVALID_ARGUMENT, "sizes are too large: stage '" + stage.symbol +
                                                  "' would have " + std::to_string(blocks) +
                                                  " blocks; a launch has " +
                                                  std::to_string(mostBlocks) + " at most");
    step.blocks = static_cast<uint32_t>(blocks);
    for (const Parameter &parameter : stage.launch.parameters) {
      const std::optional<int64_t> offset = parameter.offset.evaluate(sizes_);
      if (!offset)
        return tooLarge("the bytes of the workspace");
      step.offsets.push_back(static_cast<uint64_t>(*offset));
    }
  }
  return true;
}

bool Plan::check(const CallArguments &call, Failure &failure) const {
  const Artifact &artifact = kernel_->artifact();
  if (call.args.size() != artifact.arguments.size()) {
    std::vector<std::string> names;
    for (const Argument &argument : artifact.arguments)
      names.push_back(argument.name);
    return failure.set(NF_INVALID_ARGUMENT, "kernel '" + artifact.name + "' " +
                                                countText("argument", names, call.args.size()));
  }
  if (call.scalars.size() != artifact.scalars.size()) {
    std::vector<std::string> scalars;
    for (const Scalar &scalar : artifact.scalars)
      scalars.push_back(scalar.name);
    return failure.set(NF_INVALID_ARGUMENT, "kernel '" + artifact.name + "' " +
                                                countText("scalar", scalars, call.scalars.size()));
  }
  if ((!call.args.empty() && !call.args.data()) || (!call.scalars.empty() && !call.scalars.data()))
    return failure.set(NF_INVALID_ARGUMENT, "the list of arguments or of scalars is null");
  for (size_t i = 0; i < call.scalars.size(); ++i)
    if (std::string problem = problemOf(artifact.scalars[i], call.scalars[i]); !problem.empty())
      return failure.set(NF_INVALID_ARGUMENT, std::move(problem));
  for (size_t i = 0; i < call.args.size(); ++i) {
    if (arrays_[i].bytes == 0)
      continue;
    if (!call.args[i])
      return failure.set(NF_INVALID_ARGUMENT, describe(artifact, i) + " is null");
    const auto address = reinterpret_cast<uintptr_t>(call.args[i]);
    if (arrays_[i].bytes - 1 > UINTPTR_MAX - address)
      return failure.set(NF_INVALID_ARGUMENT,
                         describe(artifact, i) + " reaches beyond the end of memory");
    size_t alignment = byteSize(artifact.arguments[i].dtype);
    if (reinterpret_cast<uintptr_t>(call.args[i]) % alignment != 0)
      return failure.set(NF_INVALID_ARGUMENT, describe(artifact, i) + " is not aligned to " +
                                                  std::to_string(alignment) + " bytes");
  }
  if (reinterpret_cast<uintptr_t>(call.workspace) % NF_WORKSPACE_ALIGNMENT != 0)
    return failure.set(NF_INVALID_ARGUMENT, "the workspace is not aligned to " +
                                                std::to_string(NF_WORKSPACE_ALIGNMENT) + " bytes");
  return checkOverlaps(call, failure);
}

bool Plan::checkOverlaps(const CallArguments &call, Failure &failure) const {
  const std::vector<Argument> &arguments = kernel_->artifact().arguments;
  auto address = [&](size_t i) { return reinterpret_cast<uintptr_t>(call.args[i]); };
  for (size_t w = 0; w < arguments.size(); ++w) {
    if (call.workspace && overlap(address(w), arrays_[w].bytes,
                                  reinterpret_cast<uintptr_t>(call.workspace), workspaceBytes_))
      return failure.set(NF_INVALID_ARGUMENT,
                         describe(kernel_->artifact(), w) + " overlaps the workspace");
    if (!arguments[w].written)
      continue;
    for (size_t other = 0; other < arguments.size(); ++other) {
      if (other == w || (arguments[other].written && other > w) ||
          !overlap(address(w), arrays_[w].bytes, address(other), arrays_[other].bytes))
        continue;
      const std::vector<uint32_t> &allowed = arguments[w].mayAlias;
      bool mayBeSame = std::find(allowed.begin(), allowed.end(), other) != allowed.end();
      if (mayBeSame && address(w) == address(other) && arrays_[w].bytes == arrays_[other].bytes)
        continue;
      return failure.set(NF_INVALID_ARGUMENT,
                         describe(kernel_->artifact(), w) + " overlaps " +
                             describe(kernel_->artifact(), other) +
                             (mayBeSame ? "; they may only be the same buffer as a whole" : ""));
    }
  }
  return true;
}

bool Plan::checkCall(const nf_call &call, Failure &failure) const {
  auto fail = [&](std::string text) { return failure.set(NF_INVALID_ARGUMENT, std::move(text)); };
  constexpr size_t least = offsetof(nf_call, workspace) + sizeof call.workspace;
  if (call.struct_size < least)
    return fail("struct_size of the call is " + std::to_string(call.struct_size) +
                "; expected at least " + std::to_string(least));
  if (call.flags != 0)
    return fail("flags of the call are " + std::to_string(call.flags) + "; expected 0");
  if (!sizes_.empty() && (!call.sizes || !std::equal(sizes_.begin(), sizes_.end(), call.sizes)))
    return fail("sizes of the call are not those that the plan was made for");
  if (workspaceBytes_ > 0 && !call.workspace)
    return fail("the call has no workspace; the plan needs one of " +
                std::to_string(workspaceBytes_) + " bytes");
  const Artifact &artifact = kernel_->artifact();
  return check({{call.args, artifact.arguments.size()},
                {call.scalars, artifact.scalars.size()},
                call.workspace},
               failure);
}

bool Plan::run(const CallArguments &call, const nf_executor *executor, Failure &failure,
               const nf_allocator *allocator) const {
  if (kernel_->isOfDevice())
    return failure.set(NF_WRONG_MACHINE, "kernel '" + kernel_->artifact().name +
                                             "' is for the GPU " + kernel_->artifact().cpu +
                                             "; nf_enqueue launches it");
  if (!check(call, failure))
    return false;
  struct Owned {
    const nf_allocator *allocator;
    void *memory;
    uint64_t bytes;
    ~Owned() {
      if (allocator && memory)
        allocator->release(allocator->user, memory, bytes, NF_WORKSPACE_ALIGNMENT);
      else
        std::free(memory);
    }
  } owned{allocator && allocator->allocate ? allocator : nullptr, nullptr, workspaceBytes_};
  void *workspace = call.workspace;
  if (!workspace && workspaceBytes_ > 0) {
    if (owned.allocator)
      owned.memory = allocator->allocate(allocator->user, workspaceBytes_, NF_WORKSPACE_ALIGNMENT);
    else if (posix_memalign(&owned.memory, NF_WORKSPACE_ALIGNMENT, workspaceBytes_) != 0)
      owned.memory = nullptr;
    if (!owned.memory)
      return failure.set(NF_OUT_OF_MEMORY, "no memory for a workspace of " +
                                               std::to_string(workspaceBytes_) + " bytes");
    if (reinterpret_cast<uintptr_t>(owned.memory) % NF_WORKSPACE_ALIGNMENT != 0)
      return failure.set(NF_INVALID_ARGUMENT, "the engine's allocator gave memory that is not "
                                              "aligned to " +
                                                  std::to_string(NF_WORKSPACE_ALIGNMENT) +
                                                  " bytes");
    workspace = owned.memory;
  }
  nf_call kernelCall = {};
  kernelCall.struct_size = sizeof kernelCall;
  kernelCall.args = call.args.data();
  kernelCall.sizes = sizes_.data();
  kernelCall.scalars = call.scalars.data();
  kernelCall.workspace = workspace;
  for (const Step &step : steps()) {
    StageWork work{&kernelCall, step.function};
    if (!executor || !executor->parallel_for || step.isSmall()) {
      if (step.tasks > 0)
        step.function(&kernelCall, 0, step.tasks);
    } else {
      executor->parallel_for(executor->user, step.tasks, runStage, &work);
    }
  }
  return true;
}

} // namespace normforge
