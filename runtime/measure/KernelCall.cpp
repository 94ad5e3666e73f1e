#include "runtime/measure/KernelCall.h"

#include <algorithm>
#include <cstring>
#include <unistd.h>

#ifdef __x86_64__
#include <emmintrin.h>
#endif

namespace normforge {

namespace {

/// Lines of every machine seen are as long or longer: what is asked for twice costs little.
constexpr size_t lineBytes = 64;

void evictLine(const std::byte *address) {
#if defined(__x86_64__)
  _mm_clflush(address);
#elif defined(__aarch64__)
  asm volatile("dc civac, %0" : : "r"(address) : "memory");
#else
  (void)address;
#endif
}
void awaitEvictions() {
#if defined(__x86_64__)
  _mm_mfence();
#elif defined(__aarch64__)
  asm volatile("dsb sy" : : : "memory");
#endif
}

} // namespace

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
  std::vector<Buffer> buffers;
  for (const Plan::Array &array : plan_->arrays()) {
    buffers.push_back(allocate(array.bytes));
    args_.push_back(buffers.back().get());
  }
  buffers_ = std::make_shared<const std::vector<Buffer>>(std::move(buffers));
  workspace_ = allocate(plan_->workspaceBytes());
  poison();
}

void KernelCall::share(const KernelCall &other) {
  buffers_ = other.buffers_;
  args_ = other.args_;
  scalars_ = other.scalars_;
  workspace_ = allocate(plan_->workspaceBytes());
}

void KernelCall::copy(const KernelCall &other) {
  allocate();
  scalars_ = other.scalars_;
  const auto &arguments = plan_->kernel().artifact().arguments;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (!arguments[i].written)
      set(arguments[i].name, other.array(i));
}

void KernelCall::set(std::string_view name, std::span<const std::byte> bytes) {
  isOnGpu_ = false;
  const auto &arguments = plan_->kernel().artifact().arguments;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (!arguments[i].written && arguments[i].name == name && !bytes.empty())
      std::memcpy(args_[i], bytes.data(), std::min<size_t>(bytes.size(), plan_->arrays()[i].bytes));
}

void KernelCall::poison() {
  isOnGpu_ = false;
  const auto &arguments = plan_->kernel().artifact().arguments;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].written)
      std::memset(args_[i], 0xff, plan_->arrays()[i].bytes);
}

void KernelCall::evict() const {
  for (size_t i = 0; i < args_.size(); ++i) {
    const std::span<const std::byte> bytes = array(i);
    for (size_t at = 0; at < bytes.size(); at += lineBytes)
      evictLine(bytes.data() + at);
  }
  awaitEvictions();
}

bool KernelCall::copyToGpu(Failure &failure) {
  const std::span<const Plan::Array> arrays = plan_->arrays();
  if (!onGpu_) {
    const Kernel &kernel = plan_->kernel();
    if (!kernel.deviceCode()->prepare(gpu_->device(), kernel.artifact(), failure))
      return false;
    onGpu_ = std::make_unique<OnGpu>(gpu_);
    for (size_t i = 0; i <= arrays.size(); ++i) {
      void *memory =
          gpu_->allocate(i < arrays.size() ? arrays[i].bytes : plan_->workspaceBytes(), failure);
      if (!memory)
        return false;
      onGpu_->all.push_back(memory);
    }
  }
  for (size_t i = 0; i < arrays.size(); ++i)
    if (!gpu_->upload(onGpu_->all[i], args_[i], arrays[i].bytes, failure))
      return false;
  return true;
}

bool KernelCall::runOnGpu(Failure &failure) {
  const std::span<const Plan::Array> arrays = plan_->arrays();
  if (!isOnGpu_ && !copyToGpu(failure))
    return false;
  const std::span<void *const> all(onGpu_->all);
  if (!plan_->enqueue({all.first(arrays.size()), scalars_, all.back()}, *gpu_->device(), nullptr,
                      failure) ||
      !gpu_->wait(failure))
    return false;
  const auto &arguments = plan_->kernel().artifact().arguments;
  for (size_t i = 0; !isOnGpu_ && i < arrays.size(); ++i)
    if (arguments[i].written && !gpu_->download(args_[i], all[i], arrays[i].bytes, failure))
      return false;
  isOnGpu_ = true;
  return true;
}

bool KernelCall::run(const nf_executor &executor, Failure &failure) {
  if (gpu_)
    return runOnGpu(failure);
  return plan_->run({args_, scalars_, workspace_.get()}, &executor, failure);
}

std::span<const std::byte> KernelCall::array(size_t argument) const {
  return {static_cast<const std::byte *>(args_[argument]), plan_->arrays()[argument].bytes};
}

uint64_t physicalMemory() {
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

} // namespace normforge
