// Runs a folder of cases on the GPU at hand, by the runtime alone:   gpu_run DIR [check|bench]
//
// Results are compared bit by bit with those of the emulated kernels, NaN apart: launched on a
// stream, replayed by a graph, and on two streams at once. Arrays that are not aligned sum in
// another order: close is enough. Then times, each beside a copy of as many bytes in the same run:
// with L2 flushed before each call, and of calls one after the other. What this GPU is too old or
// too small for is skipped, and told.
#include "normforge/normforge.hpp"
#include "tests/device/CudaHost.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <sstream>

using normforge::test::Cuda;
using normforge::test::CudaContext;
using normforge::test::DeviceBuffer;
using normforge::test::DevicePointer;
using normforge::test::OutOfMemory;

namespace {

Cuda &cuda() { return Cuda::driver(); }

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Case {
  std::string what, name, phase, words;
  std::vector<int64_t> sizes;
  std::vector<double> scalars;
  std::streamoff data = 0; ///< where its arrays begin
};

std::vector<Case> readCases(const std::string &path) {
  std::ifstream file(path);
  if (!file)
    throw std::runtime_error("cannot read " + path);
  std::vector<Case> cases;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    Case one;
    size_t count = 0;
    words >> one.what >> one.name >> one.phase >> count;
    for (one.sizes.resize(count); int64_t & size : one.sizes)
      words >> size;
    words >> count;
    for (one.scalars.resize(count); double &scalar : one.scalars)
      words >> scalar;
    words >> one.data;
    if (!std::getline(words >> std::ws, one.words))
      throw std::runtime_error(path + ": a line that is no case: " + line);
    cases.push_back(one);
  }
  return cases;
}

size_t bytesOf(nf_dtype type) {
  return type == NF_F64 ? 8 : type == NF_F32 ? 4 : 2; // bits in words of 16
}

/// An element as a number; of bits, the word.
double numberOf(const std::byte *at, nf_dtype type) {
  if (type == NF_F64) {
    double number = 0;
    std::memcpy(&number, at, sizeof number);
    return number;
  }
  uint32_t bits = 0;
  std::memcpy(&bits, at, bytesOf(type));
  if (type == NF_F16) {
    const int exponent = static_cast<int>(bits >> 10 & 31),
              mantissa = static_cast<int>(bits & 1023);
    const double magnitude = exponent == 31  ? (mantissa ? NAN : INFINITY)
                             : exponent == 0 ? std::ldexp(mantissa, -24)
                                             : std::ldexp(1024 + mantissa, exponent - 25);
    return bits >> 15 ? -magnitude : magnitude;
  }
  if (type != NF_F32 && type != NF_BF16)
    return bits;
  if (type == NF_BF16)
    bits <<= 16;
  float number = 0;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

struct Stream {
  Stream() { cuda().call("cuStreamCreate", &stream, 0u); }
  ~Stream() { cuda().tryCall("cuStreamDestroy_v2", stream); }
  void wait() const { cuda().call("cuStreamSynchronize", stream); }
  void *stream = nullptr;
};
struct Event {
  Event() { cuda().call("cuEventCreate", &event, 0u); }
  ~Event() { cuda().tryCall("cuEventDestroy_v2", event); }
  void record(const Stream &stream) const { cuda().call("cuEventRecord", event, stream.stream); }
  void *event = nullptr;
};

/// Some calls of the same, captured on a stream.
struct Graph {
  Graph(const Stream &stream, const std::function<void()> &call, int calls) {
    void *graph = nullptr;
    cuda().call("cuStreamBeginCapture_v2", stream.stream, 0);
    for (int i = 0; i < calls; ++i)
      call();
    cuda().call("cuStreamEndCapture", stream.stream, &graph);
    cuda().call("cuGraphInstantiateWithFlags", &made, graph, 0ull);
    cuda().call("cuGraphDestroy", graph);
  }
  ~Graph() { cuda().tryCall("cuGraphExecDestroy", made); }
  Graph(const Graph &) = delete;
  Graph &operator=(const Graph &) = delete;
  void launch(const Stream &stream) const { cuda().call("cuGraphLaunch", made, stream.stream); }
  void *made = nullptr;
};

/// A kernel with its arrays on the device, `shift` elements behind aligned addresses.
struct Call {
  Call(const nf::Pack &pack, const nf::Device &device, const Case &of, size_t shift = 0)
      : device(device), kernel(pack.load(of.name, nf_phase_named(of.phase.c_str()), device)),
        scalars(of.scalars) {
    const double begin = seconds();
    kernel.prepare(device);
    prepared = seconds() - begin;
    plan.emplace(kernel.plan(of.sizes));
    for (size_t i = 0; i < nf_kernel_argument_count(kernel.get()); ++i) {
      const nf_dtype type = nf_kernel_argument_dtype(kernel.get(), i);
      const uint64_t bytes = nf_plan_argument_bytes(plan->get(), i);
      types.push_back(type);
      sizes.push_back(bytes);
      isWritten.push_back(nf_kernel_argument_is_written(kernel.get(), i));
      buffers.push_back(std::make_unique<DeviceBuffer>(bytes, shift * bytesOf(type)));
      pointers.push_back(buffers.back()->data());
    }
    workspace = std::make_unique<DeviceBuffer>(nf_plan_workspace_bytes(plan->get()));
  }
  void poison() {
    for (size_t i = 0; i < sizes.size(); ++i)
      if (isWritten[i])
        poison(*buffers[i], sizes[i]);
    poison(*workspace, nf_plan_workspace_bytes(plan->get()));
  }
  static void poison(const DeviceBuffer &buffer, uint64_t bytes) {
    if (bytes > 0)
      cuda().call("cuMemsetD8_v2", address(buffer), static_cast<unsigned char>(0xff),
                  static_cast<size_t>(bytes));
  }
  static DevicePointer address(const DeviceBuffer &buffer) {
    return static_cast<DevicePointer>(reinterpret_cast<uintptr_t>(buffer.data()));
  }
  void enqueue(const Stream &stream) const {
    plan->enqueue(device, pointers, scalars, workspace->data(), stream.stream);
  }
  uint64_t bytes() const {
    uint64_t all = 0;
    for (uint64_t size : sizes)
      all += size;
    return all;
  }

  const nf::Device &device;
  nf::Kernel kernel;
  std::optional<nf::Plan> plan{};
  std::vector<double> scalars;
  double prepared = 0; ///< seconds that the driver's compiler took
  std::vector<nf_dtype> types{};
  std::vector<uint64_t> sizes{};
  std::vector<bool> isWritten{};
  std::vector<std::unique_ptr<DeviceBuffer>> buffers{};
  std::vector<void *> pointers{};
  std::unique_ptr<DeviceBuffer> workspace{};
};

/// What is read, and what is expected of what is written, by argument.
using Arrays = std::vector<std::vector<std::byte>>;

/// Where results are not those expected; empty: nowhere.
std::string difference(const Call &call, const Arrays &expected, bool isClose) {
  for (size_t i = 0; i < call.sizes.size(); ++i) {
    if (!call.isWritten[i])
      continue;
    std::vector<std::byte> result(call.sizes[i]);
    call.buffers[i]->read(result.data(), result.size());
    const nf_dtype type = call.types[i];
    const size_t bytes = bytesOf(type);
    double largest = 0;
    for (size_t at = 0; isClose && at + bytes <= result.size(); at += bytes)
      if (const double number = std::abs(numberOf(expected[i].data() + at, type));
          std::isfinite(number))
        largest = std::max(largest, number);
    const double tolerance = largest * (type == NF_F64 ? 1e-9 : type == NF_F32 ? 1e-3 : 3e-2);
    for (size_t at = 0; at + bytes <= result.size(); at += bytes) {
      if (std::memcmp(result.data() + at, expected[i].data() + at, bytes) == 0)
        continue;
      const double is = numberOf(result.data() + at, type);
      const double shall = numberOf(expected[i].data() + at, type);
      const bool isBit = type != NF_F64 && type != NF_F32 && type != NF_BF16 && type != NF_F16;
      if (!isBit && std::isnan(is) && std::isnan(shall))
        continue;
      if (isClose && (isBit || std::abs(is - shall) <= tolerance))
        continue;
      return std::string(nf_kernel_argument_name(call.kernel.get(), i)) + "[" +
             std::to_string(at / bytes) + "] is " + std::to_string(is) + ", not " +
             std::to_string(shall);
    }
  }
  return {};
}

class Runner {
public:
  Runner(const std::string &folder, const nf::Device &device, const nf::Pack &pack)
      : folder_(folder), device_(device), pack_(pack) {}

  /// All lines of cases that are compared; false where one is wrong.
  bool check(const std::vector<Case> &cases) {
    std::ifstream data(folder_ + "/data", std::ios::binary);
    int right = 0, wrong = 0, skipped = 0;
    double prepared = 0, most = 0;
    for (const Case &one : cases) {
      if (one.what != "check")
        continue;
      try {
        Call call(pack_, device_, one);
        prepared += call.prepared;
        most = std::max(most, call.prepared);
        Arrays arrays;
        data.seekg(one.data);
        for (uint64_t bytes : call.sizes) {
          arrays.emplace_back(bytes);
          data.read(reinterpret_cast<char *>(arrays.back().data()),
                    static_cast<std::streamsize>(bytes));
        }
        if (!data)
          throw std::runtime_error("the data ends");
        for (const auto &[name, found] :
             {std::pair<const char *, std::string>{"launched", launched(call, arrays)},
              {"by a graph", replayed(call, arrays)},
              {"on two streams", twice(one, call, arrays)},
              {"not aligned", shifted(one, arrays)}}) {
          (found.empty() ? right : wrong)++;
          if (!found.empty())
            std::printf("WRONG %s %s, %s: %s\n", one.words.c_str(), one.phase.c_str(), name,
                        found.c_str());
        }
      } catch (const nf::Error &error) {
        skip(one, error);
        ++skipped;
      }
    }
    std::printf(
        "%d right, %d wrong, %d skipped; the driver compiled each in %.0f ms at most, %.1f s "
        "in all\n",
        right, wrong, skipped, most * 1e3, prepared);
    return wrong == 0 && right > 0;
  }

  /// Says why a case is not run; throws where there is another reason.
  static void skip(const Case &one, const nf::Error &error) {
    if (error.code() != NF_WRONG_MACHINE)
      throw error;
    std::printf("SKIP %s: %s\n", one.words.c_str(), error.what());
  }

  bool large(const Case &one) try {
    Call call(pack_, device_, one);
    fill(call);
    call.poison();
    const Stream stream;
    call.enqueue(stream);
    stream.wait();
    // Inputs repeat after a row: so do the outputs that have a row for each.
    const size_t y = nf_kernel_find_argument(call.kernel.get(), "y", 1);
    const int64_t *shape = nf_plan_argument_shape(call.plan->get(), y);
    const auto rows = static_cast<uint64_t>(shape[0]), length = static_cast<uint64_t>(shape[1]);
    const size_t bytes = length * bytesOf(call.types[y]);
    auto read = [&](uint64_t row) {
      std::vector<std::byte> values(bytes);
      cuda().call("cuMemcpyDtoH_v2", static_cast<void *>(values.data()),
                  Call::address(*call.buffers[y]) + row * bytes, bytes);
      return values;
    };
    const std::vector<std::byte> first = read(0);
    bool isRight = std::ranges::count(first, std::byte(0xff)) < static_cast<int64_t>(bytes) / 2;
    // About where 32 bits of elements, or 31, or of bytes end, and some more.
    std::vector<uint64_t> looked{rows - 1};
    for (uint64_t end : {uint64_t(1) << 31, uint64_t(1) << 32})
      for (uint64_t row : {end / length, end / bytes})
        for (uint64_t near : {row - 1, row, row + 1})
          looked.push_back(near % rows);
    for (uint64_t i = 1; i < 200; ++i)
      looked.push_back(rows * i / 200);
    for (uint64_t row : looked)
      isRight = isRight && read(row) == first;
    std::printf("%s %s, %.3g elements: rows are %s\n", isRight ? "right" : "WRONG",
                one.words.c_str(), static_cast<double>(rows) * static_cast<double>(length),
                isRight ? "as the first" : "not as the first");
    return isRight;
  } catch (const nf::Error &error) {
    skip(one, error);
    return true;
  } catch (const OutOfMemory &) {
    std::printf("SKIP %s: the GPU has too little memory\n", one.words.c_str());
    return true;
  }

  /// A row of the table: GB/s and share of a copy, L2 flushed and not.
  void bench(const Case &one) try {
    Call call(pack_, device_, one);
    fill(call);
    const Stream stream;
    call.enqueue(stream);
    stream.wait();
    const uint64_t bytes = call.bytes();
    const DeviceBuffer from(bytes / 2 + 1), to(bytes / 2 + 1);
    auto copy = [&] {
      cuda().call("cuMemcpyDtoDAsync_v2", Call::address(to), Call::address(from),
                  static_cast<size_t>(bytes / 2), stream.stream);
    };
    auto kernel = [&] { call.enqueue(stream); };
    const Rate cold = race(stream, kernel, copy, /*flushes=*/true);
    const Rate warm = race(stream, kernel, copy, /*flushes=*/false);
    // The host's part of a call.
    constexpr int kCalls = 200;
    const double begin = seconds();
    for (int i = 0; i < kCalls; ++i)
      call.enqueue(stream);
    const double host = (seconds() - begin) / kCalls;
    stream.wait();
    std::printf(
        "%-44s %-10s %9.1f us %7.0f GB/s %6.3f of a copy | warm %9.1f us %6.3f | host %5.2f "
        "us | driver %4.0f ms\n",
        one.words.c_str(), one.phase.c_str(), cold.seconds * 1e6,
        static_cast<double>(bytes) / cold.seconds * 1e-9, cold.share, warm.seconds * 1e6,
        warm.share, host * 1e6, call.prepared * 1e3);
  } catch (const nf::Error &error) {
    skip(one, error);
  } catch (const OutOfMemory &) {
    std::printf("SKIP %s: the GPU has too little memory\n", one.words.c_str());
  }

private:
  void write(Call &call, const Arrays &arrays) {
    for (size_t i = 0; i < call.sizes.size(); ++i)
      if (!call.isWritten[i])
        call.buffers[i]->write(arrays[i].data(), arrays[i].size());
    call.poison();
  }
  std::string launched(Call &call, const Arrays &arrays) {
    write(call, arrays);
    const Stream stream;
    call.enqueue(stream);
    stream.wait();
    return difference(call, arrays, /*isClose=*/false);
  }
  std::string replayed(Call &call, const Arrays &arrays) {
    write(call, arrays);
    const Stream stream;
    const Graph graph(
        stream, [&] { call.enqueue(stream); }, 1);
    std::string found;
    for (int i = 0; i < 2 && found.empty(); ++i) {
      call.poison();
      graph.launch(stream);
      stream.wait();
      found = difference(call, arrays, /*isClose=*/false);
    }
    return found;
  }
  std::string twice(const Case &one, Call &call, const Arrays &arrays) {
    Call other(pack_, device_, one);
    write(call, arrays);
    write(other, arrays);
    const Stream first, second;
    for (int i = 0; i < 3; ++i) {
      call.enqueue(first);
      other.enqueue(second);
    }
    first.wait();
    second.wait();
    const std::string found = difference(call, arrays, /*isClose=*/false);
    return found.empty() ? difference(other, arrays, /*isClose=*/false) : found;
  }
  std::string shifted(const Case &one, const Arrays &arrays) {
    Call call(pack_, device_, one, /*shift=*/1);
    write(call, arrays);
    const Stream stream;
    call.enqueue(stream);
    stream.wait();
    return difference(call, arrays, /*isClose=*/true);
  }

  /// Numbers about 1, the same in every row, which is the innermost of the host's shape.
  void fill(Call &call) {
    std::mt19937 random(1);
    for (size_t i = 0; i < call.sizes.size(); ++i) {
      if (call.isWritten[i] || call.sizes[i] == 0)
        continue;
      const size_t rank = nf_plan_argument_rank(call.plan->get(), i),
                   bytes = bytesOf(call.types[i]);
      const int64_t *shape = nf_plan_argument_shape(call.plan->get(), i);
      const auto row = static_cast<size_t>(rank > 0 ? shape[rank - 1] : 1);
      std::vector<std::byte> block(row * bytes);
      for (size_t e = 0; e < row; ++e) {
        const float number = 1 + static_cast<float>(random() % 1000) / 1000;
        uint64_t bits = 0;
        if (call.types[i] == NF_F64) {
          const double wide = number;
          std::memcpy(&bits, &wide, sizeof wide);
        } else {
          uint32_t word = 0;
          std::memcpy(&word, &number, sizeof word);
          bits = call.types[i] == NF_F32    ? word
                 : call.types[i] == NF_BF16 ? word >> 16
                 : call.types[i] == NF_F16  ? 0x3C00 + (word >> 13 & 0x3FF)
                                            : word & 0xFFFF;
        }
        std::memcpy(block.data() + e * bytes, &bits, bytes);
      }
      // Twice as much each time.
      const DevicePointer at = Call::address(*call.buffers[i]);
      size_t filled = std::min<size_t>(block.size(), call.sizes[i]);
      call.buffers[i]->write(block.data(), filled);
      while (filled < call.sizes[i]) {
        const size_t more = std::min<size_t>(filled, call.sizes[i] - filled);
        cuda().call("cuMemcpyDtoD_v2", at + filled, at, more);
        filled += more;
      }
    }
  }

  struct Rate {
    double seconds = 0, share = 0;
  };
  /// Medians of turns that a kernel and a copy take: with L2 flushed before each call; or of some
  /// calls one after the other, which a graph launches, so that the host has no part in it.
  Rate race(const Stream &stream, const std::function<void()> &kernel,
            const std::function<void()> &copy, bool flushes) {
    constexpr int kRounds = 15, kCalls = 10, kTimes = 4;
    constexpr int kL2Bytes = 38; // CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
    if (!flushed_) {
      int ordinal = 0, bytes = 0;
      cuda().call("cuDeviceGet", &ordinal, 0);
      cuda().call("cuDeviceGetAttribute", &bytes, kL2Bytes, ordinal);
      flushedBytes_ = kTimes * static_cast<size_t>(bytes);
      flushed_ = std::make_unique<DeviceBuffer>(flushedBytes_);
    }
    const Event begin, end;
    auto once = [&](const std::function<void()> &call) {
      // It also keeps the GPU at work while the host gets here.
      cuda().call("cuMemsetD8Async", Call::address(*flushed_), static_cast<unsigned char>(1),
                  flushedBytes_, stream.stream);
      if (!flushes)
        call();
      begin.record(stream);
      call();
      end.record(stream);
      stream.wait();
      float milliseconds = 0;
      cuda().call("cuEventElapsedTime", &milliseconds, begin.event, end.event);
      return std::max(1e-9, static_cast<double>(milliseconds) * 1e-3) / (flushes ? 1 : kCalls);
    };
    const Graph kernels(stream, kernel, kCalls), copies(stream, copy, kCalls);
    auto replay = [&](const Graph &graph) { return [&] { graph.launch(stream); }; };
    std::vector<double> times, shares;
    for (int i = 0; i < kRounds; ++i) {
      const double own = flushes ? once(kernel) : once(replay(kernels));
      const double other = flushes ? once(copy) : once(replay(copies));
      times.push_back(own);
      shares.push_back(other / own);
    }
    auto median = [](std::vector<double> &values) {
      std::ranges::nth_element(values, values.begin() + kRounds / 2);
      return values[kRounds / 2];
    };
    return {median(times), median(shares)};
  }

  std::string folder_;
  const nf::Device &device_;
  const nf::Pack &pack_;
  std::unique_ptr<DeviceBuffer> flushed_;
  size_t flushedBytes_ = 0;
};

} // namespace

int main(int count, char **arguments) try {
  const std::string what = count > 2 ? arguments[2] : "";
  if (count < 2 || count > 3 || (!what.empty() && what != "check" && what != "bench")) {
    std::fprintf(stderr, "usage: gpu_run DIR [check|bench]\n");
    return 2;
  }
  const std::string folder = arguments[1];
  const CudaContext context;
  const nf::Engine engine;
  const nf::Device device = engine.cuda();
  const nf::Pack pack = engine.openPack(folder + "/kernels.nfk");
  const std::vector<Case> cases = readCases(folder + "/cases");
  std::printf("%s, kernels for %s\n", nf_device_name(device.get()), nf_device_cpu(device.get()));
  Runner runner(folder, device, pack);
  bool isRight = true;
  if (what != "bench") {
    isRight = runner.check(cases);
    for (const Case &one : cases)
      if (one.what == "large")
        isRight = runner.large(one) && isRight;
  }
  for (const Case &one : cases)
    if (what != "check" && one.what == "bench")
      runner.bench(one);
  return isRight ? 0 : 1;
} catch (const std::exception &error) {
  std::fprintf(stderr, "gpu_run: error: %s\n", error.what());
  return 2;
}
