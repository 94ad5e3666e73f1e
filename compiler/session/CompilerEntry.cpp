// The compiler library's functions (runtime/loader/CompilerInterface.h).
#include "compiler/records/Choose.h"
#include "compiler/session/SessionPool.h"
#include "compiler/spec/Initialize.h"
#include "runtime/loader/CompilerInterface.h"

#include "mlir/IR/Verifier.h"
#include "llvm/Config/llvm-config.h"
#include "llvm/TargetParser/Host.h"

#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fmt/format.h>
#include <new>

using namespace normforge;

namespace {

SessionPool &pool() {
  static SessionPool *sessions = new SessionPool; // outlives every host's last call
  return *sessions;
}

struct Request {
  Spec spec;
  Phase phase = Phase::Inference;
  SessionPool::Kind session;
  std::optional<TunedRecords> tuned{};
};

/// The schedules that the kernel is made by.
std::vector<ScheduleVariant> schedulesOf(const Request &request, const Operator &op,
                                         const Session &session) {
  return llvm::cantFail(
      chooseSchedules(op, session.target(), {.tuned = request.tuned ? &*request.tuned : nullptr}));
}

llvm::Expected<Request> read(const nf_compiler_request &request) {
  auto spec = parseSpec({request.spec, request.spec_bytes},
                        request.source_name ? request.source_name : "<spec>", {},
                        request.phase ? parsePhase(request.phase) : std::nullopt);
  if (!spec)
    return spec.takeError();
  const char *cpu = request.cpu && *request.cpu ? request.cpu : "native";
  Request result{std::move(*spec), Phase::Inference, {cpu, request.verify != 0}};
  if (request.tuned)
    result.tuned.emplace(llvm::MemoryBuffer::getMemBufferCopy({request.tuned, request.tuned_bytes}),
                         request.tuned_source ? request.tuned_source : "<records>");
  result.phase = result.spec.phases.front();
  if (request.phase) {
    if (result.spec.initializes && request.phase == kInitialize)
      return llvm::createStringError(
          fmt::format("phase '{}' has no kernel; `normforge run` does it", kInitialize));
    auto parsed = parsePhase(request.phase);
    if (!parsed || !result.spec.hasPhase(*parsed)) {
      std::string listed;
      for (Phase p : result.spec.phases)
        listed += (listed.empty() ? "" : ", ") + std::string(toString(p));
      return llvm::createStringError(
          fmt::format("phase '{}' is not one of the spec's phases: {}", request.phase, listed));
    }
    result.phase = *parsed;
  }
  return result;
}

/// Reads the request and calls `use(request, session)` with a session for its CPU.
template <typename Use> llvm::Error withSession(const nf_compiler_request &given, Use use) {
  auto request = read(given);
  if (!request)
    return request.takeError();
  auto session = pool().take(request->session);
  if (!session)
    return session.takeError();
  try {
    llvm::Error error = use(*request, **session);
    pool().give(request->session, std::move(*session));
    return error;
  } catch (...) {
    // Memory ran out within LLVM, which is written for no exception: what it was at is in no state
    // to be destroyed.
    (void)session->release();
    throw;
  }
}

/// The file that an address was loaded from.
std::string fileOf(const void *address) {
  Dl_info info;
  return dladdr(address, &info) && info.dli_fname ? info.dli_fname : "";
}

char *copied(const std::string &text) {
  char *copy = strdup(text.c_str());
  if (!copy)
    throw std::bad_alloc();
  return copy;
}

/// All that the code depends on: the spec but for its name, the schedules, the machine, and who
/// compiles.
llvm::Error identify(const nf_compiler_request &given, nf_compiler_reply &reply) {
  return withSession(given, [&](const Request &request, const Session &session) -> llvm::Error {
    const Operator op = makeOperator(request.spec, request.phase);
    std::string key =
        fmt::format("normforge {}, ABI {}, LLVM {}\nspec {}\nphase {}\ntarget {}\n", nf_version(),
                    NF_ABI_VERSION, LLVM_VERSION_STRING, canonicalText(request.spec),
                    toString(request.phase), session.target().text());
    for (const ScheduleVariant &variant : schedulesOf(request, op, session))
      key += fmt::format("variant {} <= {}: {}, {}\n", variant.guard.value.text(op.sizes),
                         variant.guard.limit, variant.schedule.text(op), variant.reason);
    reply.name = copied(request.spec.name);
    reply.key = copied(key);
    reply.files = copied(fileOf(reinterpret_cast<const void *>(&pool)) + "\n" +
                         fileOf(reinterpret_cast<const void *>(&llvm::sys::getHostCPUName)) + "\n" +
                         fileOf(reinterpret_cast<const void *>(&mlir::verify)) + "\n");
    return llvm::Error::success();
  });
}

llvm::Error compile(const nf_compiler_request &given, nf_compiler_reply &reply) {
  return withSession(given, [&](const Request &request, Session &session) -> llvm::Error {
    const Operator op = makeOperator(request.spec, request.phase);
    auto artifact = session.compile(op, schedulesOf(request, op, session));
    if (!artifact)
      return artifact.takeError();
    const std::vector<std::byte> bytes = serialize(*artifact);
    reply.artifact = static_cast<uint8_t *>(std::malloc(bytes.size()));
    if (!reply.artifact)
      throw std::bad_alloc();
    std::memcpy(reply.artifact, bytes.data(), bytes.size());
    reply.artifact_bytes = bytes.size();
    return llvm::Error::success();
  });
}

/// Returns 1 where `answer` succeeds; otherwise 0, with its error or exception as C knows it.
template <typename Answer> int reply(nf_compiler_reply *reply, Answer answer) try {
  *reply = {};
  llvm::Error failed = answer();
  if (!failed)
    return 1;
  llvm::handleAllErrors(std::move(failed), [&](const llvm::ErrorInfoBase &error) {
    reply->code = error.isA<InternalError>() ? NF_INTERNAL : NF_COMPILE_FAILED;
    reply->error = strdup(error.message().c_str());
  });
  return 0;
} catch (const std::bad_alloc &) {
  reply->code = NF_OUT_OF_MEMORY;
  return 0;
} catch (const std::exception &error) {
  reply->code = NF_INTERNAL;
  reply->error = strdup(error.what());
  return 0;
}

} // namespace

extern "C" __attribute__((visibility("default"))) int
nf_compiler_identify_v4(const nf_compiler_request *request, nf_compiler_reply *answer) {
  return reply(answer, [&] { return identify(*request, *answer); });
}

extern "C" __attribute__((visibility("default"))) int
nf_compiler_compile_v4(const nf_compiler_request *request, nf_compiler_reply *answer) {
  return reply(answer, [&] { return compile(*request, *answer); });
}

extern "C" __attribute__((visibility("default"))) void
nf_compiler_release_v4(nf_compiler_reply *reply) {
  for (char *text : {reply->name, reply->key, reply->files, reply->error})
    std::free(text);
  std::free(reply->artifact);
  *reply = {};
}
