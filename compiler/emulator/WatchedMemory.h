// Memory that the threads of a group share, every access of which is watched.
//
// A race is found in whatever order threads run: each word has who wrote and read it last, and
// after how many barriers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace normforge::emulator {

class WatchedMemory {
public:
  /// Of so many bytes, NaN everywhere and written by nobody.
  void reset(uint64_t bytes) {
    numbers_.assign((bytes + sizeof(double) - 1) / sizeof(double),
                    std::numeric_limits<double>::quiet_NaN());
    words_.assign((bytes + kWordBytes - 1) / kWordBytes, Word());
  }
  /// Aligned to 16 bytes.
  char *data() { return reinterpret_cast<char *>(numbers_.data()); }

  /// Before `thread` loads or stores `bytes` bytes, a multiple of 4, at `offset`, in the barrier
  /// epoch `epoch`, which is above 0: the error, or null.
  const char *access(uint64_t offset, uint64_t bytes, bool isStore, uint64_t thread,
                     uint64_t epoch) {
    if (offset % bytes != 0 || offset > words_.size() * kWordBytes ||
        bytes > words_.size() * kWordBytes - offset)
      return "an access outside of shared memory, or one that is not aligned";
    for (uint64_t i = 0; i < bytes / kWordBytes; ++i) {
      Word &word = words_[offset / kWordBytes + i];
      if (word.written == 0 && !isStore)
        return "shared memory is read that was not written";
      if (word.written == epoch && word.writer != thread)
        return "a race: another thread has written shared memory since the last barrier";
      if (isStore) {
        if (word.read == epoch && word.reader != thread)
          return "a race: another thread has read shared memory since the last barrier";
        word.writer = thread;
        word.written = epoch;
        continue;
      }
      word.reader = word.read == epoch && word.reader != thread ? kSeveral : thread;
      word.read = epoch;
    }
    return nullptr;
  }

private:
  struct Word {
    uint64_t writer = 0, written = 0;
    uint64_t reader = 0, read = 0;
  };
  static constexpr uint64_t kWordBytes = sizeof(uint32_t), kSeveral = UINT64_MAX;
  std::vector<double> numbers_; ///< aligned
  std::vector<Word> words_;
};

} // namespace normforge::emulator
