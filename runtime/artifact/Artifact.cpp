#include "runtime/artifact/Artifact.h"

#include "runtime/artifact/Bytes.h"
#include "runtime/artifact/Checksum.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <utility>

namespace normforge {
namespace {

// The file: magic, format version, length of the whole, checksum of what follows, fields.
constexpr std::array<char, 8> magic = {'N', 'F', 'K', 'E', 'R', 'N', 'E', 'L'};
constexpr uint32_t formatVersion = 4;
constexpr size_t headerBytes = magic.size() + 4 + 8 + 8;

constexpr size_t maxRank = 16;
constexpr size_t maxNodes = 1024;
constexpr size_t maxImage = size_t(1) << 28;

void write(Writer &out, const SizeExpr &expr) {
  out.count(expr.nodes().size());
  for (const SizeExpr::Node &node : expr.nodes()) {
    out.integer(static_cast<uint8_t>(node.op));
    out.integer(node.value);
  }
}

SizeExpr readExpr(Reader &in, size_t sizeCount) {
  std::vector<SizeExpr::Node> nodes;
  for (size_t n = in.count(maxNodes, "nodes in an expression"); n > 0 && !in.failed(); --n) {
    auto op = static_cast<SizeExpr::Op>(in.integer<uint8_t>());
    nodes.push_back({op, in.integer<int64_t>()});
  }
  std::optional<SizeExpr> expr = SizeExpr::fromNodes(std::move(nodes), sizeCount);
  if (!expr)
    in.fail("artifact has a malformed size expression");
  return expr.value_or(SizeExpr());
}

void write(Writer &out, const Argument &argument) {
  out.text(argument.name);
  out.integer(static_cast<uint8_t>(argument.role));
  out.integer(static_cast<uint8_t>(argument.written));
  out.integer(static_cast<uint8_t>(argument.dtype));
  out.count(argument.shape.size());
  for (const SizeExpr &size : argument.shape)
    write(out, size);
  out.integer(argument.old);
  out.count(argument.mayAlias.size());
  for (uint32_t index : argument.mayAlias)
    out.integer(index);
}

Argument readArgument(Reader &in, size_t sizeCount) {
  Argument argument;
  argument.name = in.text();
  argument.role = in.enumerator<Role>(roleCount, "role");
  argument.written = in.boolean();
  argument.dtype = in.enumerator<DType>(dtypeCount, "dtype");
  for (size_t n = in.count(maxRank, "axes in an argument"); n > 0 && !in.failed(); --n)
    argument.shape.push_back(readExpr(in, sizeCount));
  argument.old = in.integer<int32_t>();
  for (size_t n = in.count(maxList, "aliases of an argument"); n > 0 && !in.failed(); --n)
    argument.mayAlias.push_back(in.integer<uint32_t>());
  return argument;
}

void write(Writer &out, const Scalar &scalar) {
  out.text(scalar.name);
  out.integer(static_cast<uint8_t>(scalar.type));
  out.integer(std::bit_cast<uint64_t>(scalar.least));
  out.integer(std::bit_cast<uint64_t>(scalar.most));
  out.integer(static_cast<uint8_t>(scalar.open | scalar.whole << 1));
}

Scalar readScalar(Reader &in) {
  Scalar scalar;
  scalar.name = in.text();
  scalar.type = in.enumerator<DType>(dtypeCount - 1, "dtype"); // no bit, the last
  scalar.least = std::bit_cast<double>(in.integer<uint64_t>());
  scalar.most = std::bit_cast<double>(in.integer<uint64_t>());
  const auto flags = in.enumerator<uint8_t>(4, "range of a number");
  scalar.open = (flags & 1) != 0;
  scalar.whole = (flags & 2) != 0;
  return scalar;
}

constexpr uint32_t maxBlock = 1 << 10, maxShared = 1 << 24;

void write(Writer &out, const Launch &launch) {
  out.integer(launch.threads);
  out.integer(launch.groups);
  out.integer(launch.sharedBytes);
  out.count(launch.parameters.size());
  for (const Parameter &parameter : launch.parameters) {
    out.integer(static_cast<uint8_t>(parameter.kind));
    out.integer(parameter.index);
    write(out, parameter.offset);
  }
}

Launch readLaunch(Reader &in, size_t sizeCount) {
  Launch launch;
  launch.threads = in.integer<uint32_t>();
  launch.groups = in.integer<uint32_t>();
  launch.sharedBytes = in.integer<uint32_t>();
  for (size_t n = in.count(maxParameters, "parameters"); n > 0 && !in.failed(); --n) {
    Parameter &parameter = launch.parameters.emplace_back();
    parameter.kind = in.enumerator<Parameter::Kind>(parameterKindCount, "parameter");
    parameter.index = in.integer<uint32_t>();
    parameter.offset = readExpr(in, sizeCount);
  }
  return launch;
}

void write(Writer &out, const Variant &variant) {
  out.text(variant.schedule);
  out.text(variant.reason);
  write(out, variant.guard.value);
  out.integer(variant.guard.limit);
  out.integer(variant.alignment);
  write(out, variant.workspaceBytes);
  out.count(variant.stages.size());
  for (const Stage &stage : variant.stages) {
    out.text(stage.symbol);
    out.integer(stage.entry);
    write(out, stage.tasks);
    write(out, stage.bytesPerTask);
    write(out, stage.launch);
  }
  out.count(variant.image.bytes.size());
  out.bytes.insert(out.bytes.end(), variant.image.bytes.begin(), variant.image.bytes.end());
}

Variant readVariant(Reader &in, size_t sizeCount) {
  Variant variant;
  variant.schedule = in.text();
  variant.reason = in.text();
  variant.guard.value = readExpr(in, sizeCount);
  variant.guard.limit = in.integer<int64_t>();
  variant.alignment = in.integer<uint32_t>();
  variant.workspaceBytes = readExpr(in, sizeCount);
  for (size_t n = in.count(maxList, "stages"); n > 0 && !in.failed(); --n) {
    Stage stage;
    stage.symbol = in.text();
    stage.entry = in.integer<uint64_t>();
    stage.tasks = readExpr(in, sizeCount);
    stage.bytesPerTask = readExpr(in, sizeCount);
    stage.launch = readLaunch(in, sizeCount);
    variant.stages.push_back(std::move(stage));
  }
  std::span<const std::byte> image = in.take(in.count(maxImage, "bytes in an image"));
  variant.image.bytes.assign(image.begin(), image.end());
  return variant;
}

bool isName(std::string_view text) {
  return !text.empty() && text.find('\0') == std::string_view::npos;
}

bool hasRepeats(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  return std::adjacent_find(names.begin(), names.end()) != names.end();
}

bool isLaunch(const Artifact &artifact, const Launch &launch) {
  if (launch.threads < 1 || launch.threads > maxBlock || launch.groups < 1 ||
      launch.groups > launch.threads || launch.sharedBytes > maxShared ||
      launch.parameters.size() > maxParameters)
    return false;
  return std::all_of(
      launch.parameters.begin(), launch.parameters.end(), [&](const Parameter &parameter) {
        const std::span<const SizeExpr::Node> nodes = parameter.offset.nodes();
        const size_t count = parameter.kind == Parameter::Kind::Argument ? artifact.arguments.size()
                             : parameter.kind == Parameter::Kind::Size   ? artifact.sizes.size()
                             : parameter.kind == Parameter::Kind::Scalar ? artifact.scalars.size()
                                                                         : 1;
        return parameter.index < count &&
               SizeExpr::fromNodes({nodes.begin(), nodes.end()}, artifact.sizes.size()).has_value();
      });
}

} // namespace

std::string_view toString(DType dtype) {
  constexpr std::string_view names[dtypeCount] = {"f32", "f64", "bf16", "f16", "bit"};
  return names[static_cast<unsigned>(dtype)];
}

std::optional<DType> parseDType(std::string_view text) {
  for (DType dtype : {DType::F32, DType::F64, DType::BF16, DType::F16})
    if (toString(dtype) == text)
      return dtype;
  return std::nullopt;
}

size_t byteSize(DType dtype) { return dtype == DType::F64 ? 8 : dtype == DType::F32 ? 4 : 2; }

SizeExpr arrayBytes(std::span<const SizeExpr> shape, DType dtype) {
  SizeExpr elements(1);
  for (const SizeExpr &size : shape)
    elements = elements * size;
  return ceilDivide(elements, elementsPerWord(dtype)) *
         SizeExpr(static_cast<int64_t>(byteSize(dtype)));
}

DType computeDType(DType dtype) { return dtype == DType::F64 ? DType::F64 : DType::F32; }

std::string_view toString(Role role) {
  constexpr std::string_view names[roleCount] = {
      "data",     "parameter", "statistic",       "state",
      "gradient", "mask",      "partial_moments", "partial_sum"};
  return names[static_cast<unsigned>(role)];
}

std::string problemOf(const Scalar &scalar, double value) {
  auto text = [](double number) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%.9g", number);
    return std::string(digits);
  };
  auto expected = [&](const std::string &range) {
    return scalar.name + (scalar.whole ? ": expected a whole number " : ": expected a number ") +
           range + ", found " + text(value);
  };
  auto inRange = [&](double number) {
    return number <= scalar.most && (scalar.open ? number > scalar.least : number >= scalar.least);
  };
  if (!std::isfinite(value))
    return expected("that is finite");
  if (!inRange(value))
    return expected(scalar.open               ? "above " + text(scalar.least)
                    : std::isinf(scalar.most) ? "of at least " + text(scalar.least)
                    : std::isinf(scalar.least)
                        ? "of at most " + text(scalar.most)
                        : "from " + text(scalar.least) + " to " + text(scalar.most));
  if (scalar.whole && value != std::floor(value))
    return expected("of at least " + text(scalar.least));
  const auto narrow = static_cast<float>(value);
  if (computeDType(scalar.type) == DType::F32 && (std::isinf(narrow) || !inRange(narrow)))
    return expected("in the range of f32");
  return {};
}

std::string problemOf(const Artifact &artifact, std::span<const int64_t> sizes) {
  auto found = [&](size_t i, const std::string &expected) {
    return "size " + artifact.sizes[i] + " is " + std::to_string(sizes[i]) + "; expected " +
           expected;
  };
  for (const Constraint &constraint : artifact.constraints) {
    const int64_t size = sizes[constraint.size];
    if (size < constraint.atLeast)
      return found(constraint.size, "at least " + std::to_string(constraint.atLeast));
    if (size % constraint.multipleOf != 0)
      return found(constraint.size, "a multiple of " + std::to_string(constraint.multipleOf));
  }
  for (size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] < 0)
      return found(i, "at least 0");
  return {};
}

bool validate(const Artifact &artifact, std::string &error) {
  auto fail = [&](std::string message) {
    error = "artifact " + std::move(message);
    return false;
  };
  size_t sizeCount = artifact.sizes.size();
  auto wellFormed = [&](const SizeExpr &expr) {
    std::span<const SizeExpr::Node> nodes = expr.nodes();
    return SizeExpr::fromNodes({nodes.begin(), nodes.end()}, sizeCount).has_value();
  };

  std::vector<std::string> scalars;
  for (const Scalar &scalar : artifact.scalars)
    scalars.push_back(scalar.name);
  for (const std::vector<std::string> *list :
       {&artifact.sizes, &std::as_const(scalars), &artifact.requiredFeatures})
    if (!std::all_of(list->begin(), list->end(), isName) || hasRepeats(*list))
      return fail("has an empty or repeated name of a size, scalar or CPU feature");
  if (!isName(artifact.phase))
    return fail("has no phase");
  for (const std::string *text : {&artifact.name, &artifact.phase, &artifact.triple, &artifact.cpu})
    if (text->find('\0') != std::string::npos)
      return fail("has a zero byte in a text");
  for (const Scalar &scalar : artifact.scalars)
    if (!(scalar.least <= scalar.most)) // a NaN, too
      return fail("has an empty range for the number '" + scalar.name + "'");
  for (const Constraint &constraint : artifact.constraints)
    if (constraint.size >= sizeCount || constraint.multipleOf < 1)
      return fail("has a constraint that is none");

  if (artifact.arguments.empty())
    return fail("has no arguments");
  std::vector<std::string> names;
  for (size_t i = 0; i < artifact.arguments.size(); ++i) {
    const Argument &argument = artifact.arguments[i];
    if (!isName(argument.name))
      return fail("has an argument without a name");
    names.push_back(argument.name + (argument.written ? "/w" : "/r"));
    for (const SizeExpr &size : argument.shape)
      if (!wellFormed(size))
        return fail("has a malformed size expression");
    const int64_t word = elementsPerWord(argument.dtype);
    if (word > 1 &&
        (argument.shape.empty() || argument.shape.back().constant().value_or(word) % word != 0))
      return fail("has bits that are no whole words");
    for (uint32_t other : argument.mayAlias)
      if (!argument.written || other >= i || artifact.arguments[other].written ||
          artifact.arguments[other].dtype != argument.dtype)
        return fail("lets argument '" + argument.name + "' alias what it may not");
    if (argument.old != -1) {
      const auto old = static_cast<size_t>(argument.old);
      if (!argument.written || argument.old < 0 || old >= i || artifact.arguments[old].written ||
          artifact.arguments[old].dtype != argument.dtype ||
          artifact.arguments[old].shape != argument.shape)
        return fail("has argument '" + argument.name + "' replace what it may not");
    }
  }
  if (hasRepeats(std::move(names)))
    return fail("has two arguments of one name and direction");

  if (artifact.variants.empty())
    return fail("has no variant");
  for (const Variant &variant : artifact.variants) {
    if ((variant.schedule + variant.reason).find('\0') != std::string::npos)
      return fail("has a zero byte in a text");
    if (!wellFormed(variant.guard.value) || !wellFormed(variant.workspaceBytes))
      return fail("has a malformed size expression");
    if (variant.guard.limit < 0)
      return fail("has a guard with a negative limit");
    if (variant.stages.empty())
      return fail("has a variant without stages");
    for (const Stage &stage : variant.stages) {
      if (!isName(stage.symbol))
        return fail("has a stage without a name");
      if (stage.entry >= variant.image.bytes.size())
        return fail("has stage '" + stage.symbol + "' outside its image");
      if (!wellFormed(stage.tasks) || !wellFormed(stage.bytesPerTask))
        return fail("has a malformed size expression");
      if (artifact.entry == EntryKind::Launch && !isLaunch(artifact, stage.launch))
        return fail("has stage '" + stage.symbol + "' launched as no kernel is");
    }
    if (artifact.entry == EntryKind::Launch && variant.image.bytes.back() != std::byte(0))
      return fail("has a text without an end");
    if ((variant.alignment & (variant.alignment - 1)) != 0 || variant.alignment > 4096)
      return fail("has an alignment that is no power of two");
  }
  if (artifact.variants.back().alignment != 0)
    return fail("has an alignment on its last variant");
  if (artifact.variants.back().guard.limit != INT64_MAX)
    return fail("has a guard on its last variant");
  return true;
}

std::vector<std::byte> serialize(const Artifact &artifact) {
  Writer out;
  size_t images = 0;
  for (const Variant &variant : artifact.variants)
    images += variant.image.bytes.size();
  out.bytes.reserve(images + 4096);

  for (char c : magic)
    out.integer(static_cast<uint8_t>(c));
  out.integer(formatVersion);
  size_t lengthAt = out.bytes.size();
  out.integer(uint64_t(0)); // length
  out.integer(uint64_t(0)); // checksum

  out.integer(artifact.abiVersion);
  out.text(artifact.name);
  out.text(artifact.phase);
  out.integer(static_cast<uint8_t>(artifact.entry));
  out.text(artifact.triple);
  out.text(artifact.cpu);
  out.texts(artifact.requiredFeatures);
  out.texts(artifact.sizes);
  out.count(artifact.constraints.size());
  for (const Constraint &constraint : artifact.constraints) {
    out.integer(constraint.size);
    out.integer(constraint.atLeast);
    out.integer(constraint.multipleOf);
  }
  out.count(artifact.scalars.size());
  for (const Scalar &scalar : artifact.scalars)
    write(out, scalar);
  out.count(artifact.arguments.size());
  for (const Argument &argument : artifact.arguments)
    write(out, argument);
  out.count(artifact.variants.size());
  for (const Variant &variant : artifact.variants)
    write(out, variant);

  Writer sealed;
  sealed.integer(static_cast<uint64_t>(out.bytes.size()));
  sealed.integer(checksum(std::span(out.bytes).subspan(headerBytes)));
  std::copy(sealed.bytes.begin(), sealed.bytes.end(), out.bytes.begin() + lengthAt);
  return std::move(out.bytes);
}

std::optional<Artifact> deserialize(std::span<const std::byte> bytes, std::string &error) {
  if (bytes.size() < headerBytes || std::memcmp(bytes.data(), magic.data(), magic.size()) != 0) {
    error = "these bytes are not a Normforge kernel";
    return std::nullopt;
  }
  Reader in(bytes.subspan(magic.size()), "artifact", error);
  uint32_t version = in.integer<uint32_t>();
  uint64_t length = in.integer<uint64_t>();
  uint64_t sum = in.integer<uint64_t>();
  if (version != formatVersion)
    in.fail("artifact has format version " + std::to_string(version) + "; this library reads " +
            std::to_string(formatVersion));
  else if (length != bytes.size())
    in.fail("artifact is " + std::to_string(bytes.size()) + " bytes; its header says " +
            std::to_string(length));
  else if (sum != checksum(bytes.subspan(headerBytes)))
    in.fail("artifact is damaged: its checksum differs");
  if (in.failed())
    return std::nullopt;

  Artifact artifact;
  artifact.abiVersion = in.integer<uint32_t>();
  artifact.name = in.text();
  artifact.phase = in.text();
  artifact.entry = in.enumerator<EntryKind>(entryKindCount, "kind of entry");
  artifact.triple = in.text();
  artifact.cpu = in.text();
  artifact.requiredFeatures = in.texts("CPU features");
  artifact.sizes = in.texts("named sizes");
  for (size_t n = in.count(maxList, "constraints"); n > 0 && !in.failed(); --n) {
    Constraint &constraint = artifact.constraints.emplace_back();
    constraint.size = in.integer<uint32_t>();
    constraint.atLeast = in.integer<int64_t>();
    constraint.multipleOf = in.integer<int64_t>();
  }
  for (size_t n = in.count(maxList, "scalars"); n > 0 && !in.failed(); --n)
    artifact.scalars.push_back(readScalar(in));
  size_t sizeCount = artifact.sizes.size();
  for (size_t n = in.count(maxList, "arguments"); n > 0 && !in.failed(); --n)
    artifact.arguments.push_back(readArgument(in, sizeCount));
  for (size_t n = in.count(maxList, "variants"); n > 0 && !in.failed(); --n)
    artifact.variants.push_back(readVariant(in, sizeCount));
  if (!in.atEnd())
    in.fail("artifact has bytes after its end");
  if (in.failed() || !validate(artifact, error))
    return std::nullopt;
  return artifact;
}

} // namespace normforge
