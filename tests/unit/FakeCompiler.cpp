// A compiler library that counts. The first line of a "spec" is its name, the rest the key; what it
// compiles does nothing. A spec with the word "bad" fails.
#include "runtime/artifact/Artifact.h"
#include "runtime/loader/CompilerInterface.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <string_view>
#include <thread>

using namespace normforge;

namespace {

std::atomic<int> identified{0}, compiled{0};

bool isBad(const nf_compiler_request &request, nf_compiler_reply *reply) {
  *reply = {};
  if (std::string_view(request.spec, request.spec_bytes).find("bad") == std::string_view::npos)
    return false;
  reply->code = NF_COMPILE_FAILED;
  reply->error = strdup("bad spec");
  return true;
}

} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int fake_identified() { return identified; }
EXPORT int fake_compiled() { return compiled; }

EXPORT int nf_compiler_identify_v2(const nf_compiler_request *request, nf_compiler_reply *reply) {
  ++identified;
  if (isBad(*request, reply))
    return 0;
  const std::string spec(request->spec, request->spec_bytes);
  const size_t line = spec.find('\n');
  reply->name = strdup(spec.substr(0, line).c_str());
  reply->key = strdup((spec.substr(line + 1) + (request->phase ? request->phase : "")).c_str());
  Dl_info self;
  dladdr(reinterpret_cast<const void *>(&fake_compiled), &self);
  reply->files = strdup((std::string(self.dli_fname) + "\n").c_str());
  return 1;
}

EXPORT int nf_compiler_compile_v2(const nf_compiler_request *request, nf_compiler_reply *reply) {
  if (isBad(*request, reply))
    return 0;
  ++compiled;
  std::this_thread::sleep_for(std::chrono::milliseconds(20)); // others come meanwhile
  Artifact artifact;
  const std::string spec(request->spec, request->spec_bytes);
  artifact.name = spec.substr(0, spec.find('\n'));
  artifact.triple = "x86_64-unknown-linux-gnu";
  artifact.cpu = "x86-64";
  artifact.arguments = {{"y", true, DType::F32, {SizeExpr(1)}, {}}};
  Variant variant;
  variant.schedule = "none";
  variant.image.bytes.assign(64, std::byte{0xC3}); // ret
  variant.stages = {{"nothing", 0, SizeExpr(1), SizeExpr(1)}};
  artifact.variants = {variant};
  const std::vector<std::byte> bytes = serialize(artifact);
  reply->artifact = static_cast<uint8_t *>(std::malloc(bytes.size()));
  std::memcpy(reply->artifact, bytes.data(), bytes.size());
  reply->artifact_bytes = bytes.size();
  return 1;
}

EXPORT void nf_compiler_release_v2(nf_compiler_reply *reply) {
  for (char *text : {reply->name, reply->key, reply->files, reply->error})
    std::free(text);
  std::free(reply->artifact);
  *reply = {};
}
