// Whether a kernel's outputs are what the reference's are, within what is allowed.
#include "compiler/oracle/Oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace normforge::oracle {

double Tolerance::allowed(int64_t element, double expected) const {
  double sum = absolute + (std::isfinite(expected) ? relative * std::abs(expected) : 0);
  if (elements)
    sum += (*elements)[static_cast<size_t>(element)];
  return sum;
}

Comparison compare(const HostArray &actual, const HostArray &expected, const Tolerance &tolerance) {
  constexpr double infinite = std::numeric_limits<double>::infinity();
  Comparison result;
  if (actual.count() != expected.count() ||
      (tolerance.elements && tolerance.elements->size() != static_cast<size_t>(actual.count()))) {
    result.largestError = result.worstError = result.largestExcess = infinite;
    return result;
  }
  for (int64_t i = 0, n = actual.count(); i < n; ++i) {
    const double a = actual.get(i), b = expected.get(i);
    double error = 0, excess = 0;
    if (a == b || (std::isnan(a) && std::isnan(b)) ||
        (tolerance.zeroForNaN && std::isnan(a) && b == 0)) {
      // Agrees; two equal infinities have no difference to speak of.
    } else if (std::isinf(tolerance.allowed(i, b)) && (!std::isfinite(a) || std::isinf(b))) {
      // It is more than the numbers of one side hold, or was made of such.
    } else if (!std::isfinite(a) || !std::isfinite(b)) {
      error = excess = infinite;
    } else {
      const double allowed = tolerance.allowed(i, b);
      error = std::abs(a - b);
      excess = allowed > 0 ? error / allowed : infinite;
    }
    result.largestError = std::max(result.largestError, error);
    if (result.worst < 0 || excess > result.largestExcess) {
      result.largestExcess = excess;
      result.worstError = error;
      result.worst = i;
      result.allowed = tolerance.allowed(i, b);
      result.actual = a;
      result.expected = b;
    }
  }
  return result;
}

HostArray outputOf(const KernelCall &call, size_t argument) {
  HostArray array(call.plan().kernel().artifact().arguments[argument].dtype,
                  call.plan().arrays()[argument].shape);
  std::ranges::copy(call.array(argument), array.bytes.begin());
  return array;
}

} // namespace normforge::oracle
