// A compiler library that counts. The first line of a "spec" is its name, the rest the key; what it
// compiles does nothing. A spec with the word "bad" fails, with "crash" it ends the process as LLVM
// does, with "exhaust" it asks for memory without end, with "hang" it does not answer, with "slow"
// it takes half a second, with "quick" no time.
#include "runtime/artifact/Artifact.h"
#include "runtime/loader/CompilerInterface.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <new>
#include <string>
#include <string_view>
#include <thread>

using namespace normforge;

namespace {

std::atomic<int> identified{0}, compiled{0};

/// Copies for the reply; throws where there is no memory, as the compiler's own does.
char *copied(const std::string &text) {
  char *copy = strdup(text.c_str());
  if (!copy)
    throw std::bad_alloc();
  return copy;
}

/// Replies with what `answer` gives; without memory, with the error that says so.
template <typename Answer>
int reply(const nf_compiler_request &request, nf_compiler_reply *reply, Answer answer) try {
  *reply = {};
  if (std::string_view(request.spec, request.spec_bytes).find("bad") == std::string_view::npos)
    return answer(), 1;
  reply->code = NF_COMPILE_FAILED;
  reply->error = copied("bad spec");
  return 0;
} catch (const std::bad_alloc &) {
  reply->code = NF_OUT_OF_MEMORY;
  return 0;
}

} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int fake_identified() { return identified; }
EXPORT int fake_compiled() { return compiled; }

EXPORT int nf_compiler_identify_v4(const nf_compiler_request *request, nf_compiler_reply *answer) {
  ++identified;
  return reply(*request, answer, [&] {
    const std::string spec(request->spec, request->spec_bytes);
    const size_t line = spec.find('\n');
    answer->name = copied(spec.substr(0, line));
    answer->key = copied(spec.substr(line + 1) + (request->phase ? request->phase : ""));
    Dl_info self;
    dladdr(reinterpret_cast<const void *>(&fake_compiled), &self);
    answer->files = copied(std::string(self.dli_fname) + "\n");
  });
}

EXPORT int nf_compiler_compile_v4(const nf_compiler_request *request, nf_compiler_reply *answer) {
  return reply(*request, answer, [&] {
    ++compiled;
    const std::string spec(request->spec, request->spec_bytes);
    auto has = [&](const char *word) { return spec.find(word) != std::string::npos; };
    if (has("chatter"))
      std::fputs("chatter\n", stderr);
    if (has("crash")) {
      std::fputs("\x1b[31mFAKE ERROR: a defect\n", stderr);
      std::abort();
    }
    while (has("hang"))
      std::this_thread::sleep_for(std::chrono::seconds(1));
    while (has("exhaust"))
      std::memset(new char[64 << 20], 1, 64 << 20);
    if (!has("quick")) // others come meanwhile
      std::this_thread::sleep_for(std::chrono::milliseconds(has("slow") ? 500 : 20));
    Artifact artifact;
    artifact.name = spec.substr(0, spec.find('\n'));
    artifact.triple = "x86_64-unknown-linux-gnu";
    artifact.cpu = "x86-64";
    artifact.phase = "inference";
    artifact.arguments = {
        {.name = "y", .written = true, .dtype = DType::F32, .shape = {SizeExpr(1)}}};
    Variant variant;
    variant.schedule = "none";
    variant.image.bytes.assign(64, std::byte{0xC3}); // ret
    variant.stages = {{"nothing", 0, SizeExpr(1), SizeExpr(1)}};
    artifact.variants = {variant};
    const std::vector<std::byte> bytes = serialize(artifact);
    answer->artifact = static_cast<uint8_t *>(std::malloc(bytes.size()));
    if (!answer->artifact)
      throw std::bad_alloc();
    std::memcpy(answer->artifact, bytes.data(), bytes.size());
    answer->artifact_bytes = bytes.size();
  });
}

EXPORT void nf_compiler_release_v4(nf_compiler_reply *reply) {
  for (char *text : {reply->name, reply->key, reply->files, reply->error})
    std::free(text);
  std::free(reply->artifact);
  *reply = {};
}
