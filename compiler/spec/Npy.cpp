// The format: "\x93NUMPY", a version of two bytes, the header's length (2 bytes
// in version 1, 4 in 2 and 3), the header, which is a Python dictionary padded
// so that the data starts at a multiple of 64, and the data.
// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

#include "compiler/spec/Npy.h"

#include "compiler/spec/Diagnostics.h"

#include "llvm/Support/Endian.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MathExtras.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <optional>
#include <span>

namespace normforge {

namespace {

using llvm::StringRef;

constexpr StringRef magic("\x93NUMPY", 6);
constexpr size_t dataAlignment = 64;

llvm::Error failure(StringRef path, const std::string &text) {
  return llvm::createStringError(llvm::inconvertibleErrorCode(),
                                 llvm::Twine(fmt::format("{}: error: {}", path.str(), text)));
}

/// A header's fields.
struct Header {
  std::optional<std::string> descr;
  std::optional<bool> fortranOrder;
  std::optional<std::vector<int64_t>> shape;
};

/// Reads the dictionary of a header: {'descr': '<f4', 'fortran_order': False,
/// 'shape': (2, 3), }. Keys come in any order. `error` says what was expected
/// where it fails.
class HeaderParser {
public:
  explicit HeaderParser(StringRef text) : rest_(text) {}

  bool parse(Header &header) {
    if (!take('{'))
      return false;
    while (!peek('}')) {
      std::string key;
      if (!string(key) || !take(':'))
        return false;
      if (key == "descr") {
        header.descr.emplace();
        if (peek('['))
          return fail("one dtype, not the fields of a structure");
        if (!string(*header.descr))
          return false;
      } else if (key == "fortran_order") {
        if (!boolean(header.fortranOrder))
          return false;
      } else if (key == "shape") {
        if (!tuple(header.shape.emplace()))
          return false;
      } else {
        return fail(fmt::format("'descr', 'fortran_order' or 'shape', not {}", spec::quoted(key)));
      }
      if (!peek('}') && !take(','))
        return false;
    }
    take('}');
    if (!rest_.trim().empty())
      return fail("nothing behind '}'");
    if (!header.descr || !header.fortranOrder || !header.shape)
      return fail("'descr', 'fortran_order' and 'shape'");
    return true;
  }
  const std::string &expected() const { return expected_; }

private:
  bool fail(std::string expected) {
    expected_ = std::move(expected);
    return false;
  }
  bool peek(char c) {
    rest_ = rest_.ltrim();
    return rest_.starts_with(StringRef(&c, 1));
  }
  bool take(char c) {
    if (!peek(c))
      return fail(fmt::format("'{}'", c));
    rest_ = rest_.drop_front();
    return true;
  }
  bool string(std::string &value) {
    rest_ = rest_.ltrim();
    const char quote = rest_.empty() ? 0 : rest_.front();
    if (quote != '\'' && quote != '"')
      return fail("a quoted string");
    const size_t end = rest_.find(quote, 1);
    if (end == StringRef::npos)
      return fail("the end of a quoted string");
    value = rest_.slice(1, end).str();
    rest_ = rest_.drop_front(end + 1);
    return true;
  }
  bool boolean(std::optional<bool> &value) {
    rest_ = rest_.ltrim();
    if (rest_.consume_front("True"))
      value = true;
    else if (rest_.consume_front("False"))
      value = false;
    else
      return fail("True or False");
    return true;
  }
  bool tuple(std::vector<int64_t> &values) {
    if (!take('('))
      return false;
    while (!peek(')')) {
      int64_t value;
      if (rest_.consumeInteger(10, value) || value < 0)
        return fail("sizes of at least 0");
      rest_.consume_front("L"); // written by Python 2
      values.push_back(value);
      if (!peek(')') && !take(','))
        return false;
    }
    return take(')');
  }

  StringRef rest_;
  std::string expected_;
};

std::optional<DType> parseDescr(StringRef descr) {
  // '|' means that byte order does not matter, which some writers use for the
  // machine's own.
  if (descr == "<f4" || descr == "|f4")
    return DType::F32;
  if (descr == "<f8" || descr == "|f8")
    return DType::F64;
  if (descr == "<f2" || descr == "|f2")
    return DType::F16;
  if (descr == "<V2" || descr == "|V2") // as the package ml_dtypes writes bf16
    return DType::BF16;
  if (descr == "|u1" || descr == "<u1") // bytes of bits, as np.packbits(..., bitorder="little")
    return DType::Bit;
  return std::nullopt;
}

const char *descrOf(DType dtype) {
  constexpr const char *descrs[dtypeCount] = {"<f4", "<f8", "<V2", "<f2", "|u1"};
  return descrs[static_cast<unsigned>(dtype)];
}

/// "2, 3"; of a shape longer than any array's, its first sizes.
std::string shapeText(std::span<const int64_t> shape) {
  constexpr size_t most = 8;
  return fmt::format("{}{}", fmt::join(shape.first(std::min(shape.size(), most)), ", "),
                     shape.size() > most ? ", ..." : "");
}

} // namespace

llvm::Expected<HostArray> readNpy(StringRef path) {
  if (llvm::sys::fs::is_directory(path))
    return failure(path, "expected an .npy file, found a directory");
  // A device may have no end.
  if (llvm::sys::fs::exists(path) && !llvm::sys::fs::is_regular_file(path))
    return failure(path, "expected an .npy file, found a device or pipe");
  auto buffer = llvm::MemoryBuffer::getFile(path, /*IsText=*/false,
                                            /*RequiresNullTerminator=*/false);
  if (!buffer)
    return failure(path, "cannot be read: " + buffer.getError().message());
  return parseNpy((*buffer)->getBuffer(), path);
}

std::string beside(StringRef of, const std::string &path) {
  llvm::SmallString<128> file;
  if (!llvm::sys::path::is_absolute(path))
    file = llvm::sys::path::parent_path(of);
  llvm::sys::path::append(file, path);
  return file.str().str();
}

llvm::Expected<HostArray> parseNpy(StringRef bytes, StringRef path) {
  if (bytes.empty())
    return failure(path, "expected an .npy file, found an empty file");
  if (!bytes.starts_with(magic))
    return failure(path, "expected an .npy file, which starts with \\x93NUMPY; "
                         "found other bytes");
  if (bytes.size() < 10)
    return failure(path, fmt::format("expected at least 10 bytes, found {}", bytes.size()));
  const unsigned major = static_cast<unsigned char>(bytes[6]);
  const unsigned minor = static_cast<unsigned char>(bytes[7]);
  if (major < 1 || major > 3 || minor != 0)
    return failure(path,
                   fmt::format("expected .npy version 1.0, 2.0 or 3.0, found {}.{}", major, minor));
  const size_t lengthBytes = major == 1 ? 2 : 4;
  if (bytes.size() < 8 + lengthBytes)
    return failure(
        path, fmt::format("expected at least {} bytes, found {}", 8 + lengthBytes, bytes.size()));
  const uint64_t length = major == 1 ? llvm::support::endian::read16le(bytes.data() + 8)
                                     : llvm::support::endian::read32le(bytes.data() + 8);
  bytes = bytes.drop_front(8 + lengthBytes);
  if (bytes.size() < length)
    return failure(path,
                   fmt::format("expected a header of {} bytes, found {}", length, bytes.size()));

  Header header;
  HeaderParser parser(bytes.take_front(length));
  if (!parser.parse(header))
    return failure(path, fmt::format("damaged header: expected {}", parser.expected()));
  bytes = bytes.drop_front(length);

  const std::optional<DType> dtype = parseDescr(*header.descr);
  if (!dtype)
    return failure(path,
                   fmt::format("expected dtype '<f4', '<f8', '<f2', for bf16 '<V2' or for bits "
                               "'|u1', found {}",
                               spec::quoted(*header.descr)));
  if (*header.fortranOrder)
    return failure(path, "expected an array in C order (fortran_order False), "
                         "found Fortran order; save it with np.ascontiguousarray(...)");
  int64_t size = *dtype == DType::Bit ? 1 : static_cast<int64_t>(byteSize(*dtype));
  for (int64_t extent : *header.shape)
    if (llvm::MulOverflow(size, extent, size))
      return failure(path, fmt::format("expected a size in bytes below 2^63, found shape ({})",
                                       shapeText(*header.shape)));
  if (bytes.size() != static_cast<uint64_t>(size))
    return failure(path, fmt::format("expected {} bytes of data for shape ({}) of {}, found {}: {}",
                                     size, shapeText(*header.shape), toString(*dtype), bytes.size(),
                                     bytes.size() < static_cast<uint64_t>(size)
                                         ? "the file is truncated"
                                         : "there is something behind the array"));

  if (*dtype == DType::Bit) { // of bytes
    int64_t bits = 0;
    if (header.shape->empty() || header.shape->back() % 2 != 0 ||
        llvm::MulOverflow(header.shape->back(), int64_t(8), bits))
      return failure(path, fmt::format("expected words of 2 bytes of bits, found shape ({})",
                                       shapeText(*header.shape)));
    header.shape->back() = bits;
  }
  HostArray array(*dtype, *header.shape);
  if (size > 0)
    std::memcpy(array.bytes.data(), bytes.data(), bytes.size());
  return array;
}

llvm::Expected<std::string> npyHead(const HostArray &array) {
  std::vector<int64_t> shape = array.shape;
  if (array.dtype == DType::Bit) // of bytes
    shape.back() /= 8;
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}",
                                   descrOf(array.dtype), fmt::join(shape, ", "),
                                   shape.size() == 1 ? "," : ""); // a tuple of one: (3,)
  const size_t start = llvm::alignTo(10 + header.size() + 1, dataAlignment);
  header.append(start - 10 - header.size() - 1, ' ');
  header += '\n';
  if (header.size() > UINT16_MAX)
    return llvm::createStringError("the array's shape is too long for .npy version 1.0");
  char length[2];
  llvm::support::endian::write16le(length, static_cast<uint16_t>(header.size()));
  return (magic + StringRef("\x01\0", 2) + StringRef(length, 2) + header).str();
}

StringRef bytesOf(const HostArray &array) {
  return {reinterpret_cast<const char *>(array.bytes.data()), array.bytes.size()};
}

} // namespace normforge
