// Sessions at rest, so that each call takes one of its own.
#pragma once

#include "compiler/session/Session.h"

#include <mutex>

namespace normforge {

/// Those that a burst of threads leaves behind are freed: a session keeps some megabytes, and
/// making one takes 5 ms. All functions may be called from several threads.
class SessionPool {
public:
  static constexpr size_t mostResting = 4;

  struct Kind { ///< what sessions differ in
    std::string cpu;
    bool verify = false;
    bool operator==(const Kind &) const = default;
  };
  /// One at rest, or a new one; an error where no code can be made for this CPU.
  llvm::Expected<std::unique_ptr<Session>> take(const Kind &kind) {
    {
      std::lock_guard lock(mutex_);
      for (auto resting = resting_.rbegin(); resting != resting_.rend(); ++resting)
        if (resting->kind == kind) {
          auto session = std::move(resting->session);
          resting_.erase(std::next(resting).base());
          return session;
        }
    }
    auto target = describeTarget(kind.cpu);
    if (!target)
      return target.takeError();
    return std::make_unique<Session>(std::move(*target), kind.verify);
  }
  void give(const Kind &kind, std::unique_ptr<Session> session) {
    Resting oldest; // ends after the lock
    std::lock_guard lock(mutex_);
    resting_.push_back({kind, std::move(session)});
    if (resting_.size() > mostResting) {
      oldest = std::move(resting_.front());
      resting_.erase(resting_.begin());
    }
  }
  size_t resting() const {
    std::lock_guard lock(mutex_);
    return resting_.size();
  }

private:
  struct Resting {
    Kind kind;
    std::unique_ptr<Session> session;
  };
  mutable std::mutex mutex_;
  std::vector<Resting> resting_; ///< the one used last at the end
};

} // namespace normforge
