// What the C API's handles point to.
#pragma once

#include "runtime/api/Guard.h"
#include "runtime/cache/KernelCache.h"
#include "runtime/device/DeviceContext.h"
#include "runtime/kernel/Plan.h"
#include "runtime/pack/Pack.h"

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace normforge::api {

/// The settings and callbacks that a host lends, to an engine and to all that comes of it.
struct Host {
  LoadOptions loading;
  bool verify = false;
  nf_log_fn *log = nullptr;
  void *logUser = nullptr;
  nf_executor executor = {};
  nf_allocator allocator = {};
  std::optional<std::string> tuned{}; ///< records
  std::string tunedSource{}, tunedKey{};
};

} // namespace normforge::api

struct nf_engine : normforge::api::Counted {
  nf_engine(std::unique_ptr<normforge::Compiler> compiler, const normforge::api::Host &lent,
            std::unique_ptr<normforge::DiskCache> disk)
      : host(std::make_shared<const normforge::api::Host>(lent)), compiler(std::move(compiler)),
        kernels(*this->compiler, std::move(disk), lent.loading) {}
  const std::shared_ptr<const normforge::api::Host> host;
  const std::unique_ptr<normforge::Compiler> compiler;
  normforge::KernelCache kernels;
};
struct nf_pack : normforge::api::Counted {
  std::shared_ptr<const normforge::api::Host> host;
  std::shared_ptr<const normforge::Pack> pack;
  std::mutex mutex; ///< of the following
  std::map<const normforge::Pack::Entry *, std::shared_ptr<const normforge::Kernel>> loaded;
};
struct nf_kernel : normforge::api::Counted {
  std::shared_ptr<const normforge::api::Host> host;
  std::shared_ptr<const normforge::Kernel> kernel;
  std::vector<std::string> shapes; ///< of its arguments, as text
};
struct nf_plan : normforge::api::Counted {
  std::shared_ptr<const normforge::api::Host> host;
  std::shared_ptr<const normforge::Plan> plan;
};

struct nf_device : normforge::api::Counted {
  std::shared_ptr<const normforge::DeviceContext> device;
};
