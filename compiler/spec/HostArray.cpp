#include "compiler/spec/HostArray.h"

#include <cassert>

namespace normforge {

HostArray::HostArray(DType dtype, std::vector<int64_t> shape)
    : dtype(dtype), shape(std::move(shape)) {
  bytes.resize(static_cast<size_t>(count()) * byteSize(dtype));
}

int64_t HostArray::count() const {
  int64_t product = 1;
  for (int64_t size : shape)
    product *= size;
  return product;
}

double HostArray::get(int64_t i) const {
  assert(i >= 0 && i < count());
  switch (dtype) {
  case DType::F32:
    return data<float>()[i];
  case DType::F64:
    return data<double>()[i];
  }
  return 0;
}

void HostArray::set(int64_t i, double value) {
  assert(i >= 0 && i < count());
  switch (dtype) {
  case DType::F32:
    data<float>()[i] = static_cast<float>(value);
    return;
  case DType::F64:
    data<double>()[i] = value;
    return;
  }
}

} // namespace normforge
