#include "runtime/measure/SweepFile.h"

#include "runtime/artifact/Checksum.h"
#include "runtime/artifact/Fields.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace normforge {

namespace {

constexpr std::string_view kMagic = "NFSWEEP\n";
constexpr size_t kHeadBytes = kMagic.size() + 16;

class Writer {
public:
  std::vector<std::byte> bytes;
  void put(uint64_t value) { putField(bytes, value); }
  void put(double value) { putField(bytes, std::bit_cast<uint64_t>(value)); }
  void put(const std::string &text) { putField(bytes, std::string_view(text)); }
  void put(const std::vector<std::byte> &data) { putField(bytes, std::span(data)); }
  void put(const std::vector<int64_t> &values) {
    put(uint64_t(values.size()));
    for (int64_t value : values)
      put(static_cast<uint64_t>(value));
  }
  void put(const std::vector<double> &values) {
    put(uint64_t(values.size()));
    for (double value : values)
      put(value);
  }
  template <typename T, typename Put> void list(const std::vector<T> &items, Put put1) {
    put(uint64_t(items.size()));
    for (const T &item : items)
      put1(item);
  }
};

class Reader {
public:
  Fields fields;
  uint64_t number() { return fields.number(); }
  double real() { return std::bit_cast<double>(fields.number()); }
  std::string text() { return fields.text(); }
  std::vector<std::byte> data() {
    const auto bytes = fields.data();
    return {bytes.begin(), bytes.end()};
  }
  /// Each item has a length or a number at least: a count beyond what is left is none.
  template <typename Read> auto list(Read read) {
    std::vector<decltype(read())> items;
    const uint64_t count = number();
    if (count > fields.rest.size() / 8)
      fields.ok = false;
    for (uint64_t i = 0; i < count && fields.ok; ++i)
      items.push_back(read());
    return items;
  }
};

} // namespace

std::vector<std::byte> toBytes(const SweepFile &sweep) {
  Writer out;
  out.put(sweep.seed);
  out.put(sweep.machine);
  out.list(sweep.cases, [&](const SweepFile::Case &one) {
    out.put(one.title);
    out.put(one.id);
    out.put(one.record);
    out.put(one.sizes);
    out.put(one.checkedSizes);
    out.put(one.scalars);
    out.put(one.threads);
    out.put(uint64_t(one.isCold));
    out.put(one.read);
    out.put(one.written);
    out.list(one.inputs, [&](const SweepFile::Input &input) {
      out.put(input.name);
      out.put(uint64_t(input.isDrawn));
      out.put(input.mean);
      out.put(input.deviation);
      out.put(input.bytes);
    });
    out.list(one.outputs, [&](const SweepFile::Output &output) {
      out.put(output.name);
      out.list(output.expected, [&](const SweepFile::Expected &expected) {
        out.put(expected.element);
        out.put(expected.value);
        out.put(expected.allowed);
      });
      out.put(output.allowed);
    });
    out.list(one.candidates, [&](const SweepFile::Candidate &candidate) {
      out.put(candidate.schedule);
      out.put(candidate.artifact);
    });
  });
  std::vector<std::byte> head;
  for (char c : kMagic)
    head.push_back(static_cast<std::byte>(c));
  putField(head, SweepFile::version);
  putField(head, checksum(out.bytes));
  head.insert(head.end(), out.bytes.begin(), out.bytes.end());
  return head;
}

bool isSweep(std::string_view bytes) { return bytes.starts_with(kMagic); }

std::optional<SweepFile> sweepFromBytes(std::span<const std::byte> bytes, std::string &error) {
  if (bytes.size() < kHeadBytes || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    error = "expected a sweep that normforge tune export has written";
    return std::nullopt;
  }
  Reader head{{bytes.subspan(kMagic.size())}};
  if (const uint64_t version = head.number(); version != SweepFile::version) {
    error = "sweep has format version " + std::to_string(version) + "; this program reads " +
            std::to_string(SweepFile::version);
    return std::nullopt;
  }
  if (head.number() != checksum(bytes.subspan(kHeadBytes))) {
    error = "sweep is damaged: its checksum differs";
    return std::nullopt;
  }
  Reader in{{bytes.subspan(kHeadBytes)}};
  SweepFile sweep;
  sweep.seed = in.number();
  sweep.machine = in.text();
  sweep.cases = in.list([&] {
    SweepFile::Case one;
    one.title = in.text();
    one.id = in.text();
    one.record = in.text();
    one.sizes = in.list([&] { return static_cast<int64_t>(in.number()); });
    one.checkedSizes = in.list([&] { return static_cast<int64_t>(in.number()); });
    one.scalars = in.list([&] { return in.real(); });
    one.threads = in.number();
    one.isCold = in.number() != 0;
    one.read = in.number();
    one.written = in.number();
    one.inputs = in.list([&] {
      SweepFile::Input input;
      input.name = in.text();
      input.isDrawn = in.number() != 0;
      input.mean = in.real();
      input.deviation = in.real();
      input.bytes = in.data();
      return input;
    });
    one.outputs = in.list([&] {
      SweepFile::Output output;
      output.name = in.text();
      output.expected = in.list([&] {
        SweepFile::Expected expected;
        expected.element = in.number();
        expected.value = in.real();
        expected.allowed = in.real();
        return expected;
      });
      output.allowed = in.real();
      return output;
    });
    one.candidates = in.list([&] {
      SweepFile::Candidate candidate;
      candidate.schedule = in.text();
      candidate.artifact = in.data();
      return candidate;
    });
    return one;
  });
  const bool isSound = std::ranges::all_of(sweep.cases, [](const SweepFile::Case &one) {
    return !one.candidates.empty() && one.threads >= 1 && one.threads <= 1024;
  });
  if (!in.fields.ok || !in.fields.rest.empty() || !isSound) {
    error = "sweep is malformed";
    return std::nullopt;
  }
  return sweep;
}

void fill(const SweepFile::Input &input, uint64_t seed, DType dtype, std::span<std::byte> bytes) {
  if (!input.isDrawn) {
    std::memcpy(bytes.data(), input.bytes.data(), std::min(bytes.size(), input.bytes.size()));
    return;
  }
  const Draw draw(seed);
  const Stream stream = streamOf(input.name);
  auto set = [&](auto *values) {
    for (size_t i = 0; i < bytes.size() / sizeof *values; ++i)
      values[i] = static_cast<std::remove_reference_t<decltype(*values)>>(
          input.mean + input.deviation * draw.normal(stream, i));
  };
  if (dtype == DType::F64)
    set(reinterpret_cast<double *>(bytes.data()));
  else
    set(reinterpret_cast<float *>(bytes.data()));
}

} // namespace normforge
