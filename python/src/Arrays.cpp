#include "python/src/Arrays.h"

#include <unordered_map>

namespace normforge::python {

namespace {

// DLPack's table of C functions (its version 1.3, dlpack.h): a tensor's description in tens of
// nanoseconds, where __dlpack__ takes microseconds.
struct ExchangeHeader {
  struct {
    uint32_t major, minor;
  } version;
  ExchangeHeader *previous;
};
struct ManagedTensor;
struct ExchangeApi {
  using Fail = void(void *context, const char *kind, const char *message);
  ExchangeHeader header;
  int (*allocate)(nb::dlpack::dltensor *prototype, ManagedTensor **made, void *context, Fail *fail);
  int (*fromObject)(void *object, ManagedTensor **made);
  int (*toObject)(ManagedTensor *tensor, void **object);       ///< takes the tensor
  int (*describe)(void *object, nb::dlpack::dltensor *tensor); ///< may be null
  int (*currentStream)(int32_t deviceType, int32_t device, void **stream);
};

// What NumPy's headers say of its arrays, of every version: macros of its C API read these fields.
struct NumpyType {
  PyObject base;
  PyTypeObject *type;
  char kind, letter, byteOrder, flags;
  int number;
};
struct NumpyArray {
  PyObject base;
  char *data;
  int rank;
  int64_t *shape, *strides;
  PyObject *owner;
  const NumpyType *type;
  int flags;
};
constexpr int kNumpyDense = 0x0001, kNumpyWriteable = 0x0400;

/// How the arrays of a type are read; a type has its way for ever.
struct Access {
  bool isNumpy = false;
  const ExchangeApi *exchange = nullptr;
};

const ExchangeApi *exchangeOf(nb::handle type) {
  const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api"))
    return nullptr;
  auto *header =
      static_cast<ExchangeHeader *>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (header && header->version.major != 1)
    header = header->previous;
  const auto *api = reinterpret_cast<const ExchangeApi *>(header);
  return api && api->describe ? api : nullptr;
}

const Access &accessOf(nb::handle type) {
  static auto *known = new std::unordered_map<PyObject *, Access>;
  if (const auto found = known->find(type.ptr()); found != known->end())
    return found->second;
  Access access{.isNumpy = false, .exchange = exchangeOf(type)};
  // Not imported for this: without NumPy there are no arrays of its.
  const nb::object numpy = nb::module_::import_("sys").attr("modules").attr("get")("numpy");
  access.isNumpy = !numpy.is_none() && type.is(nb::getattr(numpy, "ndarray", nb::none()));
  return (*known)[type.inc_ref().ptr()] = access;
}

nb::dlpack::dtype typeOf(nf_dtype dtype) {
  using Code = nb::dlpack::dtype_code;
  auto of = [](Code code, uint8_t bits) {
    return nb::dlpack::dtype{static_cast<uint8_t>(code), bits, 1};
  };
  switch (dtype) {
  case NF_F64:
    return of(Code::Float, 64);
  case NF_BF16:
    return of(Code::Bfloat, 16);
  case NF_F16:
    return of(Code::Float, 16);
  case NF_BIT:
    return of(Code::UInt, 8);
  default:
    return of(Code::Float, 32);
  }
}

/// Of NumPy's numbers of types, those that kernels take; of no bits for others.
nb::dlpack::dtype typeOfNumpy(int number) {
  switch (number) {
  case 2:
    return typeOf(NF_BIT);
  case 11:
    return typeOf(NF_F32);
  case 12:
    return typeOf(NF_F64);
  case 23:
    return typeOf(NF_F16);
  default:
    return {};
  }
}

std::string nameOf(nb::dlpack::dtype dtype) {
  using Code = nb::dlpack::dtype_code;
  const char *kind = "";
  switch (static_cast<Code>(dtype.code)) {
  case Code::Int:
    kind = "int";
    break;
  case Code::UInt:
    kind = "uint";
    break;
  case Code::Float:
    kind = "float";
    break;
  case Code::Bfloat:
    kind = "bfloat";
    break;
  case Code::Complex:
    kind = "complex";
    break;
  case Code::Bool:
    return "bool";
  default:
    return "of another kind";
  }
  return kind + std::to_string(dtype.bits);
}

std::string text(nb::handle object) { return nb::cast<std::string>(nb::str(object)); }

std::string typeName(nb::handle object) {
  return nb::cast<std::string>(object.type().attr("__name__"));
}

/// NumPy's array of ml_dtypes' bfloat16, which no protocol takes, as whole numbers; or none.
nb::object asBits(nb::handle object) {
  const nb::object dtype = nb::getattr(object, "dtype", nb::none());
  if (dtype.is_none() || text(nb::getattr(dtype, "name", nb::str(""))) != "bfloat16" ||
      !nb::hasattr(object, "view"))
    return {};
  return object.attr("view")("uint16");
}

} // namespace

const char *nameOf(nf_dtype dtype) {
  switch (dtype) {
  case NF_F64:
    return "float64";
  case NF_BF16:
    return "bfloat16";
  case NF_F16:
    return "float16";
  case NF_BIT:
    return "uint8";
  default:
    return "float32";
  }
}

nb::object makeArray(nb::handle like, const nb::object &shape, nf_dtype dtype) {
  const Access &access = accessOf(like.type());
  if (const ExchangeApi *api = access.exchange) {
    int64_t sizes[16];
    nb::dlpack::dltensor wanted{};
    wanted.device = {nb::device::cpu::value, 0};
    wanted.ndim = static_cast<int32_t>(nb::len(shape));
    wanted.dtype = typeOf(dtype);
    wanted.shape = sizes;
    for (int32_t i = 0; i < wanted.ndim && i < 16; ++i)
      sizes[i] = nb::cast<int64_t>(shape[static_cast<size_t>(i)]);
    ManagedTensor *made = nullptr;
    void *object = nullptr;
    std::string error;
    auto fail = [](void *context, const char *, const char *message) {
      *static_cast<std::string *>(context) = message;
    };
    if (wanted.ndim <= 16 && api->allocate(&wanted, &made, &error, fail) == 0) {
      if (api->toObject(made, &object) != 0)
        throw nb::python_error();
      return nb::steal(static_cast<PyObject *>(object));
    }
    PyErr_Clear();
  }
  if (access.isNumpy && dtype != NF_BF16) {
    static auto *empty = new nb::object(nb::module_::import_("numpy").attr("empty"));
    static auto *types = new std::unordered_map<int, nb::object>;
    nb::object &type = (*types)[dtype];
    if (!type.is_valid())
      type = nb::module_::import_("numpy").attr("dtype")(nameOf(dtype));
    return (*empty)(shape, type);
  }
  static auto *allocate =
      new nb::object(nb::module_::import_("normforge._arrays").attr("allocate"));
  return (*allocate)(like, shape, nameOf(dtype));
}

Array::Array(nb::handle object, const char *name, nf_dtype dtype, bool written) {
  if (!takeAtOnce(object, written))
    take(object, name, python::nameOf(dtype), written);
  nb::dlpack::dtype found = tensor_.dtype;
  if (view_.is_valid()) // it was bfloat16
    found = typeOf(NF_BF16);
  if (found != typeOf(dtype))
    throw nb::type_error(
        (std::string("'") + name + "' is " + nameOf(found) + "; expected " + python::nameOf(dtype))
            .c_str());
  if (tensor_.device.device_type != nb::device::cpu::value)
    throw nb::value_error((std::string("'") + name +
                           "' is not in the CPU's memory, and this "
                           "kernel runs on the CPU")
                              .c_str());
  data_ = static_cast<char *>(tensor_.data) + tensor_.byte_offset;
}

uint64_t Array::bytes() const {
  uint64_t bytes = tensor_.dtype.bits / 8;
  for (const int64_t size : shape())
    bytes *= static_cast<uint64_t>(size);
  return bytes;
}

bool Array::takeAtOnce(nb::handle object, bool written) {
  const Access &access = accessOf(object.type());
  if (access.exchange) {
    if (access.exchange->describe(object.ptr(), &tensor_) == 0)
      return true;
    // Of what PyTorch says the first line; behind it are addresses.
    nb::python_error error;
    if (!error.matches(PyExc_RuntimeError) && !error.matches(PyExc_BufferError))
      throw error;
    const std::string text = nb::cast<std::string>(nb::str(error.value()));
    throw nb::value_error(("an array cannot be read: " + text.substr(0, text.find('\n'))).c_str());
  }
  if (!access.isNumpy)
    return false;
  const auto &array = *reinterpret_cast<const NumpyArray *>(object.ptr());
  const nb::dlpack::dtype dtype = typeOfNumpy(array.type->number);
  const int needed = kNumpyDense | (written ? kNumpyWriteable : 0);
  if (dtype.bits == 0 || array.type->byteOrder == '>' || (array.flags & needed) != needed)
    return false; // rare, or an error
  tensor_.data = array.data;
  tensor_.device = {nb::device::cpu::value, 0};
  tensor_.ndim = array.rank;
  tensor_.dtype = dtype;
  tensor_.shape = array.shape;
  return true;
}

/// What __dlpack__ says of an array that is not given, in a line after a colon; empty where it
/// gives one or there is none.
static std::string reasonOf(nb::handle object) {
  try {
    if (const nb::object method = nb::getattr(object, "__dlpack__", nb::none()); !method.is_none())
      method();
  } catch (const nb::python_error &error) {
    const std::string text = nb::cast<std::string>(nb::str(error.value()));
    return ": " + text.substr(0, text.find('\n'));
  }
  return {};
}

void Array::take(nb::handle object, const char *name, const char *expected, bool written) {
  auto describe = [&](const auto &array) {
    tensor_.data = const_cast<void *>(static_cast<const void *>(array.data()));
    tensor_.device = {array.device_type(), array.device_id()};
    tensor_.ndim = static_cast<int32_t>(array.ndim());
    tensor_.dtype = array.dtype();
    tensor_.shape = const_cast<int64_t *>(array.shape_ptr());
    tensor_.strides = const_cast<int64_t *>(array.stride_ptr());
  };
  auto takes = [&](nb::handle from) {
    if (written ? nb::try_cast(from, writable_, false) : nb::try_cast(from, readable_, false)) {
      if (written)
        describe(writable_);
      else
        describe(readable_);
      return true;
    }
    PyErr_Clear();
    return false;
  };
  if (written) {
    const nb::object module = nb::getattr(object.type(), "__module__", nb::none());
    if (nb::isinstance<nb::str>(module) && nb::cast<std::string>(module).starts_with("jax"))
      throw nb::value_error(
          (std::string("'") + name + "' is an array of JAX, which cannot be written").c_str());
  }
  if (takes(object))
    return;
  if (nb::object bits = asBits(object); bits.is_valid() && takes(bits)) {
    view_ = std::move(bits);
    return;
  }
  PyErr_Clear();
  if (written && nb::try_cast(object, readable_, false))
    throw nb::value_error(
        (std::string("'") + name + "' is read-only, and is to be written").c_str());
  PyErr_Clear();
  if (const nb::object dtype = nb::getattr(object, "dtype", nb::none()); !dtype.is_none())
    throw nb::type_error((std::string("'") + name + "' is " + typeName(object) + " of " +
                          text(dtype) + "; expected " + expected + reasonOf(object))
                             .c_str());
  throw nb::type_error((std::string("'") + name + "' is " + typeName(object) +
                        "; expected an array with __dlpack__ or the buffer protocol, such as "
                        "NumPy's, PyTorch's or JAX's")
                           .c_str());
}

bool Array::isDense() const {
  if (!tensor_.strides)
    return true;
  int64_t dense = 1;
  bool isDense = true, isEmpty = false;
  for (size_t axis = rank(); axis-- > 0;) {
    const int64_t size = tensor_.shape[axis];
    isDense &= size == 1 || tensor_.strides[axis] == dense;
    isEmpty |= size == 0;
    dense *= size;
  }
  return isDense || isEmpty;
}

void Array::failStrides(const char *name) const {
  std::string strides;
  for (size_t axis = 0; axis < rank(); ++axis)
    strides += (axis ? ", " : "") + std::to_string(tensor_.strides[axis]);
  throw nb::value_error((std::string("'") + name + "' has the strides (" + strides +
                         ") in elements; expected a dense array, the last axis innermost: pass a "
                         "contiguous copy, or write a spec with the layout that it has")
                            .c_str());
}

} // namespace normforge::python
