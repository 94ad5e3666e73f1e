#include "compiler/tune/RecordFile.h"

#include "llvm/Support/MemoryBuffer.h"

#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>

namespace normforge::tune {

Records parseRecords(llvm::StringRef text, const std::string &path) {
  Records records;
  forEachLine(text, [&](size_t number, llvm::StringRef line) {
    auto parsed = parseLine(line);
    if (!parsed)
      records.warnings.push_back(fmt::format("{}:{}: warning: left out: {}", path, number,
                                             llvm::toString(parsed.takeError())));
    else if (parsed->result)
      records.results.push_back(std::move(*parsed->result));
    else
      records.candidates.push_back(std::move(*parsed->candidate));
  });
  return records;
}

llvm::Expected<Records> readRecords(const std::string &path) {
  auto buffer = llvm::MemoryBuffer::getFile(path, /*IsText=*/true);
  if (!buffer)
    return llvm::createStringError(
        fmt::format("{}: error: cannot be read: {}", path, buffer.getError().message()));
  return parseRecords((*buffer)->getBuffer(), path);
}

llvm::Expected<RecordWriter> RecordWriter::open(const std::string &path, Records &held) {
  auto failed = [&](const std::string &why) {
    return llvm::createStringError(fmt::format("{}: error: {}", path, why));
  };
  FileDescriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (!file)
    return failed(fmt::format("cannot be written: {}", std::strerror(errno)));
  if (flock(file.get(), LOCK_EX | LOCK_NB) != 0)
    return failed(errno == EWOULDBLOCK ? "another normforge tune writes it; give each a file of "
                                         "its own and merge them"
                                       : fmt::format("cannot be locked: {}", std::strerror(errno)));
  struct stat status; // the size counts from here: until now another may have added to it
  if (fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode))
    return failed("expected a file, found a device or pipe");
  auto buffer =
      llvm::MemoryBuffer::getOpenFile(file.get(), path, static_cast<uint64_t>(status.st_size));
  if (!buffer)
    return failed(fmt::format("cannot be read: {}", buffer.getError().message()));
  const llvm::StringRef text = (*buffer)->getBuffer();
  held = parseRecords(text, path);
  RecordWriter writer(path, std::move(file));
  // The last line of a process that was ended is no part of the next.
  if (!text.empty() && !text.ends_with("\n"))
    if (llvm::Error error = writer.write(""))
      return error;
  return writer;
}

llvm::Error RecordWriter::write(const std::string &line) {
  const std::string text = line + "\n";
  const off_t before = lseek(file_.get(), 0, SEEK_END);
  for (size_t done = 0; done < text.size();) {
    const ssize_t put = ::write(file_.get(), text.data() + done, text.size() - done);
    if (put < 0 && errno == EINTR)
      continue;
    if (put <= 0) { // a full disk: nothing half written stays
      const int error = put < 0 ? errno : ENOSPC;
      (void)!ftruncate(file_.get(), before);
      return llvm::createStringError(
          fmt::format("{}: error: cannot be written: {}", path_, std::strerror(error)));
    }
    done += static_cast<size_t>(put);
  }
  return llvm::Error::success();
}

std::string mergeRecords(std::span<const Records> files, bool resultsAlone) {
  // Results by what they are of; then candidates.
  std::set<std::string> results, candidates;
  for (const Records &file : files) {
    for (const ResultRecord &record : file.results)
      results.insert(toLine(record));
    if (!resultsAlone)
      for (const CandidateRecord &record : file.candidates)
        candidates.insert(toLine(record));
  }
  std::string text;
  for (const auto *lines : {&results, &candidates})
    for (const std::string &line : *lines)
      text += line + "\n";
  return text;
}

} // namespace normforge::tune
