// An operator library for ONNX Runtime: normforge.Normalization and its likes of other types than
// f32, which `normforge import --rewrite` puts into models.
//
//   options.register_custom_ops_library("libnormforge-onnxruntime.so")
//
// A node has the text of a spec and the name of a phase as attributes; its inputs and outputs are
// the kernel's arrays, in their order. The kernel is compiled when the session is made, or comes
// from the cache directory; it computes on the session's own threads. Built against ONNX Runtime's
// C header alone, it runs with that version of the runtime and later ones.
#include "normforge/normforge.h"

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

/// ONNX Runtime's API, one for the process; set before any kernel is made.
const OrtApi *ort = nullptr;

/// Kernels of all sessions come from one engine, which lives as long as the process: the library
/// stays loaded (-z nodelete), also when ONNX Runtime closes it with its last session.
nf_engine *engine() {
  static nf_engine *const made = [] {
    nf_engine *engine = nullptr;
    if (nf_status *status = nf_engine_create(nullptr, &engine)) {
      nf_status_free(status);
      return static_cast<nf_engine *>(nullptr);
    }
    return engine;
  }();
  return made;
}

OrtStatus *failed(OrtErrorCode code, const std::string &text) {
  return ort->CreateStatus(code, ("normforge: " + text).c_str());
}

OrtStatus *failed(nf_status *status) {
  const OrtErrorCode code =
      nf_status_code(status) == NF_INVALID_ARGUMENT ? ORT_INVALID_ARGUMENT : ORT_FAIL;
  OrtStatus *made = failed(code, nf_status_message(status));
  nf_status_free(status);
  return made;
}

#define NF_RETURN_IF(call)                                                                         \
  if (OrtStatus *status_ = (call))                                                                 \
  return status_

ONNXTensorElementDataType typeOf(nf_dtype dtype) {
  switch (dtype) {
  case NF_F32:
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  case NF_F64:
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
  case NF_F16:
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  case NF_BF16:
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  default:
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  }
}

// ---- Threads ------------------------------------------------------------------------------------

/// The tasks that one nf_run hands out, in as many parts as threads like to take.
struct Tasks {
  nf_body_fn *body;
  void *data;
  uint64_t tasks, parts;

  void run(uint64_t part) const { body(data, part * tasks / parts, (part + 1) * tasks / parts); }
};

void parallelFor(void *user, uint64_t tasks, nf_body_fn *body, void *data) {
  constexpr uint64_t mostParts = 64;
  const Tasks all{body, data, tasks, std::min(tasks, mostParts)};
  OrtStatus *status = ort->KernelContext_ParallelFor(
      static_cast<const OrtKernelContext *>(user),
      [](void *of, size_t part) { static_cast<const Tasks *>(of)->run(part); },
      static_cast<size_t>(all.parts), /*num_batch=*/0, const_cast<Tasks *>(&all));
  if (!status)
    return;
  ort->ReleaseStatus(status); // it has no threads: nothing was begun
  for (uint64_t part = 0; part < all.parts; ++part)
    all.run(part);
}

// ---- A node -------------------------------------------------------------------------------------

struct Shapes {
  std::vector<int64_t> x;
  std::shared_ptr<nf_plan> plan;
};

class Node {
public:
  ~Node() { nf_kernel_release(kernel_); }

  OrtStatus *create(const OrtKernelInfo *info) {
    std::string spec, phase;
    NF_RETURN_IF(attribute(info, "spec", spec));
    NF_RETURN_IF(attribute(info, "phase", phase));
    if (!engine())
      return failed(ORT_FAIL, "no engine can be made");
    nf_compile_options options{};
    options.struct_size = sizeof options;
    options.phase = phase.c_str();
    options.source_name = "spec of a node";
    if (nf_status *status = nf_compile(engine(), spec.data(), spec.size(), &options, &kernel_))
      return failed(status);
    for (size_t i = 0; i < nf_kernel_argument_count(kernel_); ++i)
      ++(nf_kernel_argument_is_written(kernel_, i) ? writes_ : reads_);
    size_t inputs = 0, outputs = 0;
    NF_RETURN_IF(ort->KernelInfo_GetInputCount(info, &inputs));
    NF_RETURN_IF(ort->KernelInfo_GetOutputCount(info, &outputs));
    if (nf_kernel_scalar_count(kernel_) != 0)
      return failed(ORT_INVALID_ARGUMENT, std::string("its spec's kernel takes the number ") +
                                              nf_kernel_scalar_name(kernel_, 0));
    if (inputs != reads_ || outputs != writes_)
      return failed(ORT_INVALID_ARGUMENT,
                    "the node has " + std::to_string(inputs) + " inputs and " +
                        std::to_string(outputs) + " outputs; its spec's kernel takes " +
                        std::to_string(reads_) + " and " + std::to_string(writes_));
    return nullptr;
  }

  OrtStatus *compute(OrtKernelContext *context) {
    std::vector<void *> args;
    std::shared_ptr<nf_plan> plan;
    for (size_t i = 0; i < reads_; ++i) {
      const OrtValue *value = nullptr;
      NF_RETURN_IF(ort->KernelContext_GetInput(context, i, &value));
      if (!value)
        return failed(ORT_INVALID_ARGUMENT, "input " + name(i) + " is missing");
      OrtTensorTypeAndShapeInfo *raw = nullptr;
      NF_RETURN_IF(ort->GetTensorTypeAndShape(value, &raw));
      const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo *)> info(
          raw, ort->ReleaseTensorTypeAndShapeInfo);
      ONNXTensorElementDataType type;
      NF_RETURN_IF(ort->GetTensorElementType(info.get(), &type));
      if (type != typeOf(nf_kernel_argument_dtype(kernel_, i)))
        return failed(ORT_INVALID_ARGUMENT,
                      "input " + name(i) + " has another type than its spec says");
      if (i == 0)
        NF_RETURN_IF(makePlan(info.get(), plan));
      size_t count = 0;
      NF_RETURN_IF(ort->GetTensorShapeElementCount(info.get(), &count));
      if (count != elements(plan.get(), i))
        return failed(ORT_INVALID_ARGUMENT,
                      "input " + name(i) + " has " + std::to_string(count) +
                          " elements; expected " + std::to_string(elements(plan.get(), i)) +
                          ", of shape " + nf_kernel_argument_shape(kernel_, i));
      void *data = nullptr;
      NF_RETURN_IF(ort->GetTensorMutableData(const_cast<OrtValue *>(value), &data));
      args.push_back(data);
    }
    for (size_t i = 0; i < writes_; ++i) {
      OrtValue *value = nullptr;
      NF_RETURN_IF(
          ort->KernelContext_GetOutput(context, i, nf_plan_argument_shape(plan.get(), reads_ + i),
                                       nf_plan_argument_rank(plan.get(), reads_ + i), &value));
      if (!value) // left out
        return failed(ORT_INVALID_ARGUMENT, "output " + name(reads_ + i) + " is missing");
      void *data = nullptr;
      NF_RETURN_IF(ort->GetTensorMutableData(value, &data));
      args.push_back(data);
    }
    const nf_executor executor{sizeof executor, parallelFor, context};
    if (nf_status *status =
            nf_run(plan.get(), args.data(), args.size(), nullptr, 0, nullptr, &executor))
      return failed(status);
    return nullptr;
  }

private:
  static OrtStatus *attribute(const OrtKernelInfo *info, const char *name, std::string &text) {
    size_t size = 0; // with the zero at its end
    if (OrtStatus *status = ort->KernelInfoGetAttribute_string(info, name, nullptr, &size)) {
      ort->ReleaseStatus(status);
      return failed(ORT_INVALID_ARGUMENT, std::string("the node has no attribute '") + name + "'");
    }
    text.resize(size);
    NF_RETURN_IF(ort->KernelInfoGetAttribute_string(info, name, text.data(), &size));
    text.resize(size > 0 ? size - 1 : 0);
    return nullptr;
  }

  std::string name(size_t argument) const { return nf_kernel_argument_name(kernel_, argument); }

  static uint64_t elements(const nf_plan *plan, size_t argument) {
    uint64_t count = 1;
    const int64_t *shape = nf_plan_argument_shape(plan, argument);
    for (size_t i = 0; i < nf_plan_argument_rank(plan, argument); ++i)
      count *= static_cast<uint64_t>(shape[i]);
    return count;
  }

  /// The plan for x of this shape: a new one, or of the last few that were seen.
  OrtStatus *makePlan(const OrtTensorTypeAndShapeInfo *info, std::shared_ptr<nf_plan> &plan) {
    constexpr size_t mostPlans = 64;
    size_t rank = 0;
    NF_RETURN_IF(ort->GetDimensionsCount(info, &rank));
    std::vector<int64_t> shape(rank);
    NF_RETURN_IF(ort->GetDimensions(info, shape.data(), rank));
    const std::lock_guard lock(mutex_);
    const auto known =
        std::find_if(plans_.begin(), plans_.end(), [&](const Shapes &of) { return of.x == shape; });
    if (known != plans_.end()) {
      plans_.splice(plans_.begin(), plans_, known);
      plan = known->plan;
      return nullptr;
    }
    std::vector<const int64_t *> shapes(reads_ + writes_, nullptr);
    std::vector<size_t> ranks(reads_ + writes_, 0);
    shapes[0] = shape.data();
    ranks[0] = rank;
    std::vector<int64_t> sizes(nf_kernel_size_count(kernel_));
    if (nf_status *status = nf_kernel_match_sizes(kernel_, shapes.data(), ranks.data(),
                                                  shapes.size(), sizes.data()))
      return failed(status);
    nf_plan *made = nullptr;
    if (nf_status *status = nf_plan_create(kernel_, sizes.data(), sizes.size(), &made))
      return failed(status);
    plan = {made, nf_plan_release};
    plans_.push_front({std::move(shape), plan});
    if (plans_.size() > mostPlans)
      plans_.pop_back();
    return nullptr;
  }

  nf_kernel *kernel_ = nullptr;
  size_t reads_ = 0, writes_ = 0;
  std::mutex mutex_;        ///< of the plans: sessions run in several threads
  std::list<Shapes> plans_; ///< the last used first
};

/// No exception may leave.
template <typename Body> OrtStatus *guarded(Body body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc &) {
    return ort->CreateStatus(ORT_FAIL, "normforge: out of memory");
  } catch (const std::exception &error) {
    return ort->CreateStatus(ORT_FAIL, error.what());
  }
}

/// Results have x's shape. Nothing is said where a size of it has neither a number nor a name: ONNX
/// Runtime would take that for -1.
OrtStatus *inferShapes(OrtShapeInferContext *context) {
  OrtTensorTypeAndShapeInfo *info = nullptr; // the context's own
  NF_RETURN_IF(ort->ShapeInferContext_GetInputTypeShape(context, 0, &info));
  size_t rank = 0;
  NF_RETURN_IF(ort->GetDimensionsCount(info, &rank));
  std::vector<int64_t> sizes(rank);
  std::vector<const char *> names(rank);
  NF_RETURN_IF(ort->GetDimensions(info, sizes.data(), rank));
  NF_RETURN_IF(ort->GetSymbolicDimensions(info, names.data(), rank));
  for (size_t i = 0; i < rank; ++i)
    if (sizes[i] < 0 && (!names[i] || !*names[i]))
      return nullptr;
  if (rank == 0) // not known: no norm is of a scalar
    return nullptr;
  for (size_t i = 0; i < 2; ++i)
    if (OrtStatus *status = ort->ShapeInferContext_SetOutputTypeShape(context, i, info))
      ort->ReleaseStatus(status); // it has no second output
  return nullptr;
}

// ---- The operator -------------------------------------------------------------------------------

/// An operator for x of one type. It takes no other: ONNX Runtime would turn nodes of half
/// precision into f32 for an operator that takes both.
struct Operator : OrtCustomOp {
  const char *name;
  ONNXTensorElementDataType type;

  static const Operator &of(const OrtCustomOp *op) { return *static_cast<const Operator *>(op); }
};

Operator makeOperator(const char *name, ONNXTensorElementDataType type) {
  Operator op{};
  op.name = name;
  op.type = type;
  op.version = ORT_API_VERSION;
  op.GetName = [](const OrtCustomOp *of) { return Operator::of(of).name; };
  op.GetExecutionProviderType = [](const OrtCustomOp *) -> const char * { return nullptr; };
  // x, and as many arrays as the kernel takes, of any types.
  op.GetInputTypeCount = [](const OrtCustomOp *) -> size_t { return 2; };
  op.GetInputType = [](const OrtCustomOp *of, size_t i) {
    return i == 0 ? Operator::of(of).type : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  };
  op.GetInputCharacteristic = [](const OrtCustomOp *, size_t i) {
    return i == 0 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_VARIADIC;
  };
  op.GetVariadicInputMinArity = [](const OrtCustomOp *) { return 0; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp *) { return 0; };
  op.GetInputMemoryType = [](const OrtCustomOp *, size_t) { return OrtMemTypeDefault; };
  // y, and a sum that the prologue stores, of x's type.
  op.GetOutputTypeCount = [](const OrtCustomOp *) -> size_t { return 2; };
  op.GetOutputType = [](const OrtCustomOp *of, size_t) { return Operator::of(of).type; };
  op.GetOutputCharacteristic = [](const OrtCustomOp *, size_t i) {
    return i == 0 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  };
  op.CreateKernelV2 = [](const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *info,
                         void **kernel) {
    return guarded([&]() -> OrtStatus * {
      auto node = std::make_unique<Node>();
      NF_RETURN_IF(node->create(info));
      *kernel = node.release();
      return nullptr;
    });
  };
  op.KernelComputeV2 = [](void *kernel, OrtKernelContext *context) {
    return guarded([&] { return static_cast<Node *>(kernel)->compute(context); });
  };
  op.KernelDestroy = [](void *kernel) { delete static_cast<Node *>(kernel); };
  op.InferOutputShapeFn = [](const OrtCustomOp *, OrtShapeInferContext *context) {
    return guarded([&] { return inferShapes(context); });
  };
  op.GetStartVersion = [](const OrtCustomOp *) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp *) { return INT32_MAX; };
  return op;
}

} // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus *
RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  // They outlive every session.
  static const Operator operators[] = {
      makeOperator("Normalization", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
      makeOperator("Normalization_f64", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE),
      makeOperator("Normalization_f16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16),
      makeOperator("Normalization_bf16", ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16)};
  const OrtApi *api = base->GetApi(ORT_API_VERSION);
  if (!api) { // and with it no way to say so but this
    const OrtApi *oldest = base->GetApi(1);
    return oldest ? oldest->CreateStatus(ORT_FAIL, "normforge: ONNX Runtime is older than the "
                                                   "header that this library was built with")
                  : nullptr;
  }
  static OrtCustomOpDomain *domain = nullptr;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (!ort) // others may be computing
    ort = api;
  if (!domain) {
    OrtCustomOpDomain *made = nullptr;
    NF_RETURN_IF(ort->CreateCustomOpDomain("normforge", &made));
    for (const Operator &op : operators)
      if (OrtStatus *status = ort->CustomOpDomain_Add(made, &op)) {
        ort->ReleaseCustomOpDomain(made);
        return status;
      }
    domain = made;
  }
  return ort->AddCustomOpDomain(options, domain);
}
