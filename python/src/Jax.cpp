#include "python/src/Jax.h"

#ifdef NORMFORGE_JAX

#include <xla/ffi/api/ffi.h>

#include <map>
#include <mutex>
#include <optional>
#include <string>

namespace normforge::python {

namespace {

namespace ffi = xla::ffi;

/// A kernel and its plans, by sizes.
struct Entry {
  nf::Kernel kernel;
  std::shared_ptr<const void> threads;
  std::map<std::vector<int64_t>, nf::Plan> plans{};
};

/// Kernels by the texts of their specs and phases; they stay, for compiled programs name them.
struct Registry {
  struct Less { // of texts and views of them: a call copies none
    using is_transparent = void;
    bool operator()(const auto &a, const auto &b) const {
      const int order = std::string_view(a.first).compare(b.first);
      return order != 0 ? order < 0 : std::string_view(a.second) < std::string_view(b.second);
    }
  };
  std::mutex mutex;
  std::map<std::pair<std::string, std::string>, Entry, Less> entries;
};
Registry &registry() {
  static auto *const all = new Registry; // programs may run while the interpreter ends
  return *all;
}

ffi::DataType typeOf(nf_dtype dtype) {
  switch (dtype) {
  case NF_F32:
    return ffi::DataType::F32;
  case NF_F64:
    return ffi::DataType::F64;
  case NF_F16:
    return ffi::DataType::F16;
  case NF_BF16:
    return ffi::DataType::BF16;
  case NF_BIT: // which are bytes here
    return ffi::DataType::U8;
  default:
    return ffi::DataType::INVALID;
  }
}

ffi::Error wrong(const std::string &text) {
  return ffi::Error::InvalidArgument("normforge: " + text);
}

ffi::Error compute(ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view spec,
                   std::string_view phase, ffi::Span<const double> numbers) {
  try {
    std::optional<nf::Kernel> of;
    std::optional<nf::Plan> plan;
    std::vector<void *> arrays;
    {
      Registry &all = registry();
      const std::lock_guard lock(all.mutex);
      const auto found = all.entries.find(std::pair(spec, phase));
      if (found == all.entries.end())
        return wrong("this program was compiled in another process: import normforge.jax and "
                     "trace it anew");
      of = found->second.kernel;
      const nf::Kernel &kernel = *of;
      std::vector<std::optional<std::span<const int64_t>>> shapes(kernel.argumentCount());
      std::vector<ffi::AnyBuffer> buffers;
      if (args.size() + rets.size() != kernel.argumentCount())
        return wrong("a kernel of " + std::to_string(kernel.argumentCount()) + " arrays is given " +
                     std::to_string(args.size() + rets.size()));
      for (size_t i = 0; i < args.size(); ++i) {
        auto buffer = args.get<ffi::AnyBuffer>(i);
        if (!buffer)
          return wrong("an argument is no array");
        if (buffer->element_type() != typeOf(kernel.argumentDType(i)))
          return wrong("'" + std::string(kernel.argumentName(i)) +
                       "' has another dtype than its "
                       "spec says");
        buffers.push_back(*buffer);
        arrays.push_back(buffer->untyped_data());
      }
      for (size_t i = 0; i < buffers.size(); ++i)
        if (kernel.argumentDType(i) != NF_BIT)
          shapes[i] = std::span(buffers[i].dimensions().begin(), buffers[i].dimensions().size());
      std::vector<int64_t> sizes = kernel.matchSizes(shapes);
      auto known = found->second.plans.find(sizes);
      if (known == found->second.plans.end())
        known = found->second.plans.emplace(sizes, kernel.plan(sizes)).first;
      plan = known->second;
      for (size_t i = 0; i < buffers.size(); ++i)
        if (buffers[i].size_bytes() != plan->bytes(i))
          return wrong("'" + std::string(kernel.argumentName(i)) +
                       "' has another size than its spec says");
    }
    for (size_t i = 0; i < rets.size(); ++i) {
      auto buffer = rets.get<ffi::AnyBuffer>(i);
      if (!buffer)
        return wrong("a result is no array");
      if ((*buffer)->size_bytes() != plan->bytes(args.size() + i))
        return wrong("'" + std::string(of->argumentName(args.size() + i)) +
                     "' has another size than its spec says");
      arrays.push_back((*buffer)->untyped_data());
    }
    plan->run(arrays, std::span(numbers.begin(), numbers.size()));
    return ffi::Error::Success();
  } catch (const nf::Error &error) {
    return wrong(error.what());
  } catch (const std::exception &error) {
    return ffi::Error(ffi::ErrorCode::kInternal, error.what());
  }
}

XLA_FFI_DEFINE_HANDLER(handler, compute,
                       ffi::Ffi::Bind()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attr<std::string_view>("spec")
                           .Attr<std::string_view>("phase")
                           .Attr<ffi::Span<const double>>("numbers"));

} // namespace

void declareJax(nanobind::module_ &m) {
  m.def("jax_handler", [] { return nanobind::capsule(reinterpret_cast<void *>(handler)); });
  m.def("jax_register",
        [](const std::string &spec, const std::string &phase, const Kernel &kernel) {
          Registry &all = registry();
          const std::lock_guard lock(all.mutex);
          all.entries.try_emplace(std::pair(spec, phase), Entry{kernel.kernel(), kernel.threads()});
        });
}

} // namespace normforge::python

#else

namespace normforge::python {
void declareJax(nanobind::module_ &) {}
} // namespace normforge::python

#endif
