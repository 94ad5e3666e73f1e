// The artifact's bytes: whole, damaged and hostile.
#include "tests/unit/SampleArtifact.h"

#include "runtime/artifact/Checksum.h"

#include <doctest/doctest.h>

#include <cstring>
#include <random>

using namespace normforge;

TEST_CASE("an artifact survives its bytes") {
  Artifact artifact = sample();
  artifact.phase = "of another time";
  artifact.constraints = {{0, 2, 4}};
  std::vector<std::byte> bytes = serialize(artifact);
  std::string error;
  std::optional<Artifact> read = deserialize(bytes, error);
  REQUIRE_MESSAGE(read, error);
  CHECK(serialize(*read) == bytes);
  bytes[8] = std::byte(1);
  CHECK_FALSE(deserialize(bytes, error));
  CHECK(error == "artifact has format version 1; this library reads 4");
  CHECK(read->name == "sample");
  CHECK(read->phase == "of another time");
  REQUIRE(read->constraints.size() == 1);
  CHECK(read->constraints[0].atLeast == 2);
  CHECK(read->constraints[0].multipleOf == 4);
  CHECK(read->requiredFeatures == artifact.requiredFeatures);
  REQUIRE(read->scalars.size() == 1);
  CHECK(read->scalars[0].name == "epsilon");
  CHECK(read->scalars[0].least == 0);
  CHECK(read->scalars[0].most == INFINITY);
  CHECK(read->scalars[0].open);
  REQUIRE(read->arguments.size() == 3);
  CHECK(read->arguments[2].mayAlias == std::vector<uint32_t>{0});
  CHECK((read->arguments[2].role == Role::State));
  CHECK(read->arguments[2].old == 0);
  CHECK(read->arguments[1].old == -1);
  REQUIRE(read->variants.size() == 2);
  CHECK(read->variants[0].guard.value == N);
  CHECK(read->variants[0].guard.limit == 100);
  CHECK(read->variants[1].workspaceBytes == N * 8);
  CHECK(read->variants[1].stages[1].symbol == "mirror");
  CHECK(read->variants[1].stages[1].entry == 0x30);
  CHECK(read->variants[1].image.bytes == artifact.variants[1].image.bytes);
}

TEST_CASE("kernels of GPUs say how they are launched") {
  Artifact artifact = sample();
  artifact.entry = EntryKind::Launch;
  const Launch launch{128,
                      4,
                      1024,
                      {{Parameter::Kind::Argument, 2, {}},
                       {Parameter::Kind::Workspace, 0, N * 8},
                       {Parameter::Kind::Scalar, 0, {}},
                       {Parameter::Kind::Tasks, 0, {}}}};
  for (Variant &variant : artifact.variants) {
    variant.image.bytes.back() = std::byte(0);
    for (Stage &stage : variant.stages)
      stage.launch = launch;
  }
  artifact.variants.front().alignment = 16;
  std::string error;
  const std::optional<Artifact> read = deserialize(serialize(artifact), error);
  REQUIRE_MESSAGE(read, error);
  CHECK(read->variants[0].alignment == 16);
  const Launch &found = read->variants[1].stages[1].launch;
  CHECK(found.threads == 128);
  CHECK(found.groups == 4);
  CHECK(found.sharedBytes == 1024);
  REQUIRE(found.parameters.size() == 4);
  CHECK(found.parameters[0].index == 2);
  CHECK(found.parameters[1].offset == N * 8);

  auto refused = [&](auto change, const std::string &expected) {
    Artifact changed = artifact;
    change(changed);
    CHECK_FALSE(validate(changed, error));
    CHECK_MESSAGE(error.find(expected) != std::string::npos, error);
  };
  const std::string how = "launched as no kernel is";
  refused([](Artifact &a) { a.variants[0].stages[0].launch.threads = 0; }, how);
  refused([](Artifact &a) { a.variants[0].stages[0].launch.parameters[0].index = 3; }, how);
  refused([](Artifact &a) { a.variants[0].stages[0].launch.groups = 129; }, how);
  refused([](Artifact &a) { a.variants[0].image.bytes.back() = std::byte(1); },
          "a text without an end");
  refused([](Artifact &a) { a.variants[1].alignment = 16; }, "an alignment on its last variant");
  refused([](Artifact &a) { a.variants[0].alignment = 12; }, "no power of two");
}

TEST_CASE("damaged bytes give an error") {
  const std::vector<std::byte> bytes = serialize(sample());
  std::string error;
  for (size_t length = 0; length < bytes.size(); ++length) {
    error.clear();
    REQUIRE(!deserialize(std::span(bytes).first(length), error));
    REQUIRE(!error.empty());
  }
  for (size_t i = 0; i < bytes.size(); ++i)
    for (int change : {0x01, 0x80, 0xff}) {
      std::vector<std::byte> damaged = bytes;
      damaged[i] ^= static_cast<std::byte>(change);
      error.clear();
      REQUIRE(!deserialize(damaged, error));
      REQUIRE(!error.empty());
    }
  std::vector<std::byte> longer = bytes;
  longer.push_back(std::byte(0));
  CHECK(!deserialize(longer, error));
}

TEST_CASE("hostile bytes with a right checksum give an error or a valid artifact") {
  const size_t lengthAt = 12, sumAt = 20, header = 28;
  auto seal = [&](std::vector<std::byte> &bytes) {
    uint64_t length = bytes.size(), sum = checksum(std::span(bytes).subspan(header));
    for (int i = 0; i < 8; ++i) {
      bytes[lengthAt + i] = static_cast<std::byte>(length >> 8 * i);
      bytes[sumAt + i] = static_cast<std::byte>(sum >> 8 * i);
    }
  };
  auto isHandled = [](const std::vector<std::byte> &bytes) {
    std::string error;
    std::optional<Artifact> read = deserialize(bytes, error);
    return read ? validate(*read, error) && serialize(*read) == bytes : !error.empty();
  };
  std::vector<std::byte> bytes = serialize(sample());
  std::vector<std::byte> sealed = bytes;
  seal(sealed);
  REQUIRE(sealed == bytes); // the offsets above are right

  for (size_t length = header; length < bytes.size(); ++length) {
    std::vector<std::byte> cut(bytes.begin(), bytes.begin() + length);
    seal(cut);
    std::string error;
    REQUIRE(!deserialize(cut, error));
  }
  for (size_t i = header; i < bytes.size(); ++i)
    for (int value : {0x00, 0x01, 0x02, 0x05, 0x7f, 0x80, 0xff}) {
      std::vector<std::byte> changed = bytes;
      changed[i] = static_cast<std::byte>(value);
      seal(changed);
      REQUIRE(isHandled(changed));
    }
  std::mt19937 random(2);
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> changed = bytes;
    for (int n = random() % 6 + 1; n > 0; --n)
      changed[header + random() % (bytes.size() - header)] = static_cast<std::byte>(random());
    if (random() % 4 == 0)
      changed.resize(header + random() % (bytes.size() - header));
    seal(changed);
    REQUIRE(isHandled(changed));
  }
}

TEST_CASE("what a runtime cannot trust is refused") {
  auto refused = [](auto change) {
    Artifact artifact = sample();
    change(artifact);
    std::string direct, read;
    CHECK(!validate(artifact, direct));
    CHECK(!deserialize(serialize(artifact), read));
    CHECK(!direct.empty());
    CHECK(!read.empty());
    return direct;
  };
  CHECK(refused([](Artifact &a) { a.variants.clear(); }) == "artifact has no variant");
  CHECK(refused([](Artifact &a) { a.variants.back().guard.limit = 5; }) ==
        "artifact has a guard on its last variant");
  CHECK(refused([](Artifact &a) { a.variants[0].guard.limit = -1; }) ==
        "artifact has a guard with a negative limit");
  CHECK(refused([](Artifact &a) { a.variants[0].stages[1].entry = sizeof code; }) ==
        "artifact has stage 'mirror' outside its image");
  CHECK(refused([](Artifact &a) { a.variants[1].stages.clear(); }) ==
        "artifact has a variant without stages");
  CHECK(refused([](Artifact &a) { a.variants[1].stages[0].tasks = SizeExpr::size(1); }) ==
        "artifact has a malformed size expression");
  CHECK(refused([](Artifact &a) { a.arguments[0].shape = {ceilDivide(N, 0)}; }) ==
        "artifact has a malformed size expression");
  CHECK(refused([](Artifact &a) { a.arguments[2].mayAlias = {1}; }) ==
        "artifact lets argument 'z' alias what it may not");   // y is written
  refused([](Artifact &a) { a.arguments[2].mayAlias = {2}; }); // itself
  refused([](Artifact &a) { a.arguments[2].mayAlias = {7}; });
  CHECK(refused([](Artifact &a) { a.arguments.clear(); }) == "artifact has no arguments");
  refused([](Artifact &a) { a.arguments[0].dtype = DType::F64; });
  refused([](Artifact &a) { a.arguments[2].name = std::string("y"); });
  refused([](Artifact &a) { a.arguments[0].name.clear(); });
  refused([](Artifact &a) { a.sizes = {"N", "N"}; });
  refused([](Artifact &a) { a.scalars[0].name.clear(); });
  CHECK(refused([](Artifact &a) { a.scalars[0].most = -1; }) ==
        "artifact has an empty range for the number 'epsilon'");
  refused([](Artifact &a) { a.scalars[0].least = NAN; });
  CHECK(refused([](Artifact &a) { a.phase.clear(); }) == "artifact has no phase");
  CHECK(refused([](Artifact &a) {
          a.constraints = {{1, 1, 1}};
        }) == "artifact has a constraint that is none");
  refused([](Artifact &a) { a.constraints = {{0, 1, 0}}; });
  CHECK(refused([](Artifact &a) { a.arguments[2].old = 1; }) ==
        "artifact has argument 'z' replace what it may not"); // y is written
  refused([](Artifact &a) { a.arguments[2].old = 2; });
  refused([](Artifact &a) { a.arguments[2].old = -2; });
  refused([](Artifact &a) { a.arguments[0].old = 0; }); // only what is written replaces
  refused([](Artifact &a) { a.arguments[0].shape = {N, N}; });
  refused([](Artifact &a) { a.name = std::string("a\0b", 3); });
}
