// The compiler library's two functions (runtime/loader/CompilerInterface.h).
#include "compiler/session/Session.h"
#include "runtime/loader/CompilerInterface.h"

#include <cstdlib>
#include <cstring>
#include <fmt/format.h>
#include <map>
#include <mutex>
#include <new>

using namespace normforge;

namespace {

/// Sessions at rest, by target, so that each call takes one of its own.
class SessionPool {
public:
  llvm::Expected<std::unique_ptr<Session>> take(const std::string &cpu) {
    {
      std::lock_guard lock(mutex_);
      auto &resting = sessions_[cpu];
      if (!resting.empty()) {
        auto session = std::move(resting.back());
        resting.pop_back();
        return session;
      }
    }
    auto target = describeTarget(cpu);
    if (!target)
      return target.takeError();
    return std::make_unique<Session>(std::move(*target));
  }
  void give(const std::string &cpu, std::unique_ptr<Session> session) {
    std::lock_guard lock(mutex_);
    sessions_[cpu].push_back(std::move(session));
  }

private:
  std::mutex mutex_;
  std::map<std::string, std::vector<std::unique_ptr<Session>>> sessions_;
};

llvm::Expected<Artifact> compile(const nf_compiler_request &request) {
  static SessionPool *pool = new SessionPool; // outlives every host's last call
  auto spec = parseSpec({request.spec, request.spec_bytes},
                        request.source_name ? request.source_name : "<spec>");
  if (!spec)
    return spec.takeError();
  Phase phase = spec->phases.front();
  if (request.phase) {
    auto parsed = parsePhase(request.phase);
    if (!parsed || !spec->hasPhase(*parsed)) {
      std::string listed;
      for (Phase p : spec->phases)
        listed += (listed.empty() ? "" : ", ") + std::string(toString(p));
      return llvm::createStringError(
          fmt::format("phase '{}' is not one of the spec's phases: {}", request.phase, listed));
    }
    phase = *parsed;
  }
  const std::string cpu = request.cpu ? request.cpu : "native";
  auto session = pool->take(cpu);
  if (!session)
    return session.takeError();
  auto artifact = (*session)->compile(*spec, phase);
  pool->give(cpu, std::move(*session));
  return artifact;
}

} // namespace

extern "C" __attribute__((visibility("default"))) int
nf_compiler_compile_v1(const nf_compiler_request *request, nf_compiler_reply *reply) try {
  *reply = {};
  auto artifact = compile(*request);
  if (!artifact) {
    llvm::handleAllErrors(artifact.takeError(), [&](const llvm::ErrorInfoBase &error) {
      reply->code = error.isA<InternalError>() ? NF_INTERNAL : NF_COMPILE_FAILED;
      reply->error = strdup(error.message().c_str());
    });
    return 0;
  }
  const std::vector<std::byte> bytes = serialize(*artifact);
  reply->artifact = static_cast<uint8_t *>(std::malloc(bytes.size()));
  if (!reply->artifact)
    throw std::bad_alloc();
  std::memcpy(reply->artifact, bytes.data(), bytes.size());
  reply->artifact_bytes = bytes.size();
  return 1;
} catch (const std::bad_alloc &) {
  reply->code = NF_OUT_OF_MEMORY;
  return 0;
} catch (const std::exception &error) {
  reply->code = NF_INTERNAL;
  reply->error = strdup(error.what());
  return 0;
}

extern "C" __attribute__((visibility("default"))) void
nf_compiler_release_v1(nf_compiler_reply *reply) {
  std::free(reply->artifact);
  std::free(reply->error);
  reply->artifact = nullptr;
  reply->error = nullptr;
}
