// The options that `normforge tune` reads from its command line and environment.
#pragma once

#include "compiler/cli/Command.h"

#include <functional>

namespace normforge::cli {

/// "90s", "10m", "1.5h", in seconds; a number alone is seconds. Above 0.
llvm::Expected<double> parseDuration(llvm::StringRef option, llvm::StringRef word);
/// "14 min", "2 h 05 min".
std::string durationInWords(double seconds);

/// One of several parts of a sweep.
struct Shard {
  size_t index = 1, count = 1;
  std::string source{}; ///< where it is from: "--shard", "SLURM_ARRAY_TASK_ID"
};
using Environment = std::function<const char *(const char *)>;
/// The shard that `word` names ("3/16"), else the one that a batch system has put into the
/// environment: a Slurm array's task, the rank of an MPI program of several, the index of a
/// Kubernetes job. 1/1 without any.
llvm::Expected<Shard> chooseShard(llvm::StringRef word, const Environment &environment);
/// The file of one shard: "all.3-of-16.jsonl" for "all.jsonl"; the name itself where there is one.
std::string shardFile(const std::string &path, const Shard &shard);

/// Values of named sizes: "N=1,32".
using SizeLists = std::map<std::string, std::vector<int64_t>>;
llvm::Expected<SizeLists> parseSizeLists(const std::vector<std::string> &words);

} // namespace normforge::cli
