// .npy files: what is read, what is written, and each kind of bad file with its
// message.

#include "compiler/spec/Npy.h"
#include "compiler/cli/Files.h"

#include "llvm/Support/Error.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <unistd.h>

using namespace normforge;
namespace fs = std::filesystem;

namespace {

/// A folder that is removed with everything in it.
class TemporaryFolder {
public:
  TemporaryFolder() {
    std::string pattern = (fs::temp_directory_path() / "npy-test-XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()));
    path_ = pattern;
  }
  ~TemporaryFolder() { fs::remove_all(path_); }
  std::string operator/(const std::string &name) const { return (path_ / name).string(); }
  size_t entries() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(path_), {}));
  }

private:
  fs::path path_;
};

std::string readBytes(const std::string &path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

/// A file of version `major`.0 with this dictionary, unpadded, and data.
std::string npy(const std::string &dictionary, const std::string &data, char major = 1) {
  std::string bytes = "\x93NUMPY";
  bytes += major;
  bytes += '\0';
  for (size_t i = 0, length = dictionary.size(); i < (major == 1 ? 2u : 4u); ++i, length >>= 8)
    bytes += static_cast<char>(length & 0xff);
  return bytes + dictionary + data;
}

std::string floats(const std::vector<float> &values) {
  return std::string(reinterpret_cast<const char *>(values.data()), values.size() * sizeof(float));
}

class Files {
public:
  /// The error for a file of these bytes, without its path; empty where it is
  /// read.
  std::string error(const std::string &bytes) {
    const std::string path = folder / "x.npy";
    std::ofstream(path, std::ios::binary) << bytes;
    return error();
  }
  std::string error() {
    const std::string path = folder / "x.npy";
    auto array = readNpy(path);
    if (array)
      return "";
    const std::string text = llvm::toString(array.takeError());
    REQUIRE(text.starts_with(path + ": error: "));
    CHECK(text.find('\n') == std::string::npos);
    return text.substr((path + ": error: ").size());
  }
  HostArray array(const std::string &bytes) {
    const std::string path = folder / "x.npy";
    std::ofstream(path, std::ios::binary) << bytes;
    auto array = readNpy(path);
    if (!array)
      FAIL(llvm::toString(array.takeError()));
    return *array;
  }
  TemporaryFolder folder;
};

const std::string good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n";

} // namespace

TEST_CASE("npy: what is written is read again") {
  TemporaryFolder folder;
  for (DType dtype : {DType::F32, DType::F64, DType::BF16, DType::F16})
    for (const std::vector<int64_t> &shape : std::vector<std::vector<int64_t>>{
             {}, {3}, {2, 3}, {0}, {4, 0, 2}, {1, 1, 1}, {2, 1, 2, 1, 2, 1, 2}}) {
      HostArray array(dtype, shape);
      for (int64_t i = 0; i < array.count(); ++i)
        array.set(i, 0.25 * static_cast<double>(i) - 1);
      const std::string path = folder / "a.npy";
      REQUIRE(!writeNpy(path, array));
      auto again = readNpy(path);
      REQUIRE(static_cast<bool>(again));
      CHECK((again->dtype == dtype));
      CHECK(again->shape == shape);
      CHECK(again->bytes == array.bytes);
      CHECK((fs::file_size(path) - array.bytes.size()) % 64 == 0);
      CHECK(folder.entries() == 1); // no temporary file is left
    }
}

TEST_CASE("npy: bits are bytes of eight, the first one lowest") {
  TemporaryFolder folder;
  const std::string path = folder / "a.npy";
  HostArray bits(DType::Bit, {2, 16});
  for (int64_t i : {0, 9, 31})
    bits.set(i, 1);
  REQUIRE(bits.bytes.size() == 4);
  CHECK(bits.data<uint8_t>()[0] == 1);
  CHECK(bits.data<uint8_t>()[1] == 2);
  CHECK(bits.data<uint8_t>()[3] == 128);
  REQUIRE(!writeNpy(path, bits));
  CHECK(readBytes(path).find("'descr': '|u1', 'fortran_order': False, 'shape': (2, 2)") !=
        std::string::npos);
  auto again = readNpy(path);
  REQUIRE(static_cast<bool>(again));
  CHECK((again->dtype == DType::Bit));
  CHECK(again->shape == bits.shape);
  CHECK(again->bytes == bits.bytes);
}

TEST_CASE("npy: the bytes that NumPy writes") {
  TemporaryFolder folder;
  const std::string path = folder / "a.npy";
  HostArray array(DType::F32, {2});
  array.set(0, 1);
  array.set(1, 2);
  REQUIRE(!writeNpy(path, array));
  std::string dictionary = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
  dictionary.resize(128 - 10 - 1, ' ');
  CHECK(readBytes(path) == npy(dictionary + "\n", floats({1, 2})));
}

TEST_CASE("npy: versions, order of keys, quotes and the old integers of Python 2") {
  Files files;
  for (char major : {1, 2, 3}) {
    const HostArray array = files.array(npy(good, floats({5, 6}), major));
    CHECK(array.shape == std::vector<int64_t>{2});
    CHECK(array.get(1) == 6);
  }
  CHECK(files
            .array(npy("{\"shape\": (2L, 1), \"fortran_order\":False,\"descr\":\"|f4\"}",
                       floats({5, 6})))
            .shape == std::vector<int64_t>{2, 1});
  const HostArray scalar = files.array(
      npy("{'descr': '<f8', 'fortran_order': False, 'shape': ()}", std::string(8, '\0')));
  CHECK((scalar.dtype == DType::F64));
  CHECK(scalar.count() == 1);
}

TEST_CASE("npy: bad files") {
  Files files;
  CHECK(files.error() == "cannot be read: No such file or directory");
  CHECK(files.error("") == "expected an .npy file, found an empty file");
  CHECK(files.error("name: a\n") ==
        "expected an .npy file, which starts with \\x93NUMPY; found other bytes");
  CHECK(files.error("\x93NUM") ==
        "expected an .npy file, which starts with \\x93NUMPY; found other bytes");
  CHECK(files.error("\x93NUMPY\x01") == "expected at least 10 bytes, found 7");
  CHECK(files.error(npy(good, "", 4)) == "expected .npy version 1.0, 2.0 or 3.0, found 4.0");
  CHECK(files.error(npy(good, "").substr(0, 20)) == "expected a header of 58 bytes, found 10");
  CHECK(files.error(npy(good, "", 2).substr(0, 11)) == "expected at least 12 bytes, found 11");
  CHECK(files.error(npy(good, floats({1}))) ==
        "expected 8 bytes of data for shape (2) of f32, found 4: the file is "
        "truncated");
  CHECK(files.error(npy(good, floats({1, 2, 3}))) ==
        "expected 8 bytes of data for shape (2) of f32, "
        "found 12: there is something behind the array");
}

TEST_CASE("npy: bad headers") {
  Files files;
  const auto error = [&](const std::string &dictionary) {
    return files.error(npy(dictionary, floats({1, 2})));
  };
  CHECK(error("{'descr': '<i8', 'fortran_order': False, 'shape': (1,)}") ==
        "expected dtype '<f4', '<f8', '<f2', for bf16 '<V2' or for bits '|u1', found '<i8'");
  CHECK(error("{'descr': '>f4', 'fortran_order': False, 'shape': (2,)}") ==
        "expected dtype '<f4', '<f8', '<f2', for bf16 '<V2' or for bits '|u1', found '>f4'");
  CHECK(error("{'descr': '<c8', 'fortran_order': False, 'shape': (4,)}") ==
        "expected dtype '<f4', '<f8', '<f2', for bf16 '<V2' or for bits '|u1', found '<c8'");
  CHECK(error("{'descr': '|u1', 'fortran_order': False, 'shape': (7,)}") ==
        "expected 7 bytes of data for shape (7) of bit, found 8: there is something behind the "
        "array");
  CHECK(files.error(npy("{'descr': '|u1', 'fortran_order': False, 'shape': (3,)}", "abc")) ==
        "expected words of 2 bytes of bits, found shape (3)");
  for (const char *shape : {"", "2, 1", "0, 9223372036854775806"}) {
    INFO(std::string(shape));
    const std::string bits = std::string(shape) == ""       ? "a"
                             : std::string(shape) == "2, 1" ? "ab"
                                                            : "";
    CHECK(files.error(npy(
              fmt::format("{{'descr': '|u1', 'fortran_order': False, 'shape': ({})}}", shape),
              bits)) == fmt::format("expected words of 2 bytes of bits, found shape ({})", shape));
  }
  CHECK(error("{'descr': '<f4', 'fortran_order': True, 'shape': (2,)}") ==
        "expected an array in C order (fortran_order False), found Fortran "
        "order; save it with np.ascontiguousarray(...)");
  CHECK(error("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}") ==
        "damaged header: expected one dtype, not the fields of a structure");
  CHECK(error("{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}") ==
        "damaged header: expected True or False");
  CHECK(error("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}") ==
        "damaged header: expected sizes of at least 0");
  CHECK(error("{'descr': '<f4', 'fortran_order': False, 'shape': "
              "(99999999999999999999,)}") == "damaged header: expected sizes of at least 0");
  CHECK(error("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, "
              "4294967296)}") == "expected a size in bytes below 2^63, found "
                                 "shape (4294967296, 4294967296)");
  CHECK(error("{'descr': '<f4', 'fortran_order': False}") ==
        "damaged header: expected 'descr', 'fortran_order' and 'shape'");
  CHECK(error("{'descr': '<f4', 'order': False}") ==
        "damaged header: expected 'descr', 'fortran_order' or 'shape', not "
        "'order'");
  CHECK(error("{'descr': '<f4") == "damaged header: expected the end of a quoted string");
  CHECK(error("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), } x") ==
        "damaged header: expected nothing behind '}'");
  CHECK(error("") == "damaged header: expected '{'");
  CHECK(error("{descr: 1}") == "damaged header: expected a quoted string");
  // A shape of size 0 needs no data, however large the rest.
  CHECK(files.error(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 5)}", "")) == "");
}

TEST_CASE("npy: a directory for a file") {
  TemporaryFolder folder;
  const std::string path = folder / "d";
  fs::create_directory(path);
  auto array = readNpy(path);
  REQUIRE(!array);
  CHECK(llvm::toString(array.takeError()) ==
        path + ": error: expected an .npy file, found a directory");
  CHECK(llvm::toString(writeNpy(path, HostArray(DType::F32, {1}))) ==
        path + ": error: expected a file to write, found a directory");
}

TEST_CASE("npy: nothing half written") {
  TemporaryFolder folder;
  const std::string missing = folder / "no/such/a.npy";
  CHECK(llvm::toString(writeNpy(missing, HostArray(DType::F32, {1}))) ==
        missing + ": error: cannot be written: No such file or directory");
  CHECK(folder.entries() == 0);

  // A file that is replaced is the old one or the new one; others may read what
  // they were given.
  const std::string path = folder / "a.npy";
  REQUIRE(!writeNpy(path, HostArray(DType::F32, {1})));
  REQUIRE(!writeNpy(path, HostArray(DType::F32, {3})));
  auto array = readNpy(path);
  REQUIRE(static_cast<bool>(array));
  CHECK(array->count() == 3);
  CHECK((fs::status(path).permissions() & fs::perms::owner_read) != fs::perms::none);
}

TEST_CASE("npy: paths with a percent sign") {
  TemporaryFolder folder;
  fs::create_directory(folder / "100%");
  const std::string path = folder / "100%/50%d.npy";
  REQUIRE(!writeNpy(path, HostArray(DType::F32, {1})));
  CHECK(fs::exists(path));
  auto missing = readNpy(folder / "%s.npy");
  REQUIRE(!missing);
  CHECK(llvm::toString(missing.takeError()).starts_with(folder / "%s.npy"));
}
