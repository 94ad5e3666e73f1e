// A file of records: read, added to a line at a time, joined.
#pragma once

#include "compiler/records/Record.h"
#include "runtime/FileDescriptor.h"

#include <set>

namespace normforge::tune {

/// The records of a file.
struct Records {
  std::vector<ResultRecord> results;
  std::vector<CandidateRecord> candidates;
  /// Lines that are none, as `path:line: warning: ...`.
  std::vector<std::string> warnings;
};
/// Errors as `path: error: ...`.
llvm::Expected<Records> readRecords(const std::string &path);
/// The records of a text that `path` names.
Records parseRecords(llvm::StringRef text, const std::string &path);

/// Appends lines, each whole and at once, so that an end of this process at any moment loses at
/// most the line being written. One writer a file.
class RecordWriter {
public:
  /// Makes the file where there is none, and gives what it holds. Errors: it cannot be written, or
  /// another process writes it.
  static llvm::Expected<RecordWriter> open(const std::string &path, Records &held);
  llvm::Error write(const std::string &line);

private:
  RecordWriter(std::string path, FileDescriptor file)
      : path_(std::move(path)), file_(std::move(file)) {}
  std::string path_;
  FileDescriptor file_;
};

/// All lines of several files, each once and in one order: the same text whatever the order of the
/// files and however often each is given. `resultsAlone`: without candidates.
std::string mergeRecords(std::span<const Records> files, bool resultsAlone);

} // namespace normforge::tune
