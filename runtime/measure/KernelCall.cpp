#include "compiler/cli/KernelCall.h"

#include <algorithm>
#include <cstring>
#include <unistd.h>

namespace normforge::cli {

std::unique_ptr<KernelCall> KernelCall::make(std::shared_ptr<const Kernel> kernel,
                                             std::span<const int64_t> sizes, Failure &failure) {
  auto call = std::make_unique<KernelCall>();
  call->plan_ = Plan::make(std::move(kernel), sizes, failure);
  return call->plan_ ? std::move(call) : nullptr;
}

uint64_t KernelCall::bytes() const {
  uint64_t sum = plan_->workspaceBytes();
  for (const Plan::Array &array : plan_->arrays())
    if (__builtin_add_overflow(sum, array.bytes, &sum))
      return UINT64_MAX;
  return sum;
}

KernelCall::Buffer KernelCall::allocate(uint64_t bytes) {
  return Buffer(::operator new(std::max<uint64_t>(bytes, 1), alignment));
}

void KernelCall::allocate() {
  const auto &arguments = plan_->kernel().artifact().arguments;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const uint64_t bytes = plan_->arrays()[i].bytes;
    Buffer buffer = allocate(bytes);
    if (arguments[i].written)
      std::memset(buffer.get(), 0xff, bytes);
    args_.push_back(buffer.get());
    buffers_.push_back(std::move(buffer));
  }
  workspace_ = allocate(plan_->workspaceBytes());
}

void KernelCall::set(std::string_view name, const HostArray &array) {
  const auto &arguments = plan_->kernel().artifact().arguments;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (!arguments[i].written && arguments[i].name == name && !array.bytes.empty())
      std::memcpy(args_[i], array.bytes.data(),
                  std::min<size_t>(array.bytes.size(), plan_->arrays()[i].bytes));
}

bool KernelCall::run(const nf_executor &executor, Failure &failure) {
  return plan_->run({args_, scalars_, workspace_.get()}, &executor, failure);
}

HostArray KernelCall::output(size_t argument) const {
  HostArray array(plan_->kernel().artifact().arguments[argument].dtype,
                  plan_->arrays()[argument].shape);
  if (!array.bytes.empty())
    std::memcpy(array.bytes.data(), args_[argument], array.bytes.size());
  return array;
}

uint64_t physicalMemory() {
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

} // namespace normforge::cli
