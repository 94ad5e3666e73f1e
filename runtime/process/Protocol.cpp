#include "runtime/process/Protocol.h"

#include "runtime/artifact/Fields.h"

namespace normforge {
namespace {

void putOptional(std::vector<std::byte> &bytes, const char *text) {
  putField(bytes, uint64_t(text != nullptr));
  putField(bytes, std::string_view(text ? text : ""));
}

/// Null where the text is absent.
const char *takeOptional(Fields &fields, std::string &text) {
  const bool isPresent = fields.number() != 0;
  text = fields.text();
  return isPresent ? text.c_str() : nullptr;
}

/// An answer's code; false with `failure` set where it is an error, or with NF_OK where it is none.
bool takeSuccess(Fields &fields, Failure &failure) {
  failure.code = NF_OK;
  const uint64_t code = fields.number();
  if (!fields.ok || code > NF_DEVICE_ERROR)
    return false;
  if (code == NF_OK)
    return true;
  std::string message = fields.text();
  if (fields.ok && fields.rest.empty())
    failure.set(static_cast<nf_code>(code), std::move(message));
  return false;
}

} // namespace

std::vector<std::byte> writeQuestion(Question question, const nf_compiler_request &request) {
  std::vector<std::byte> bytes;
  putField(bytes, static_cast<uint64_t>(question));
  putField(bytes, uint64_t(request.verify));
  putField(bytes, std::string_view(request.spec, request.spec_bytes));
  for (const char *text : {request.source_name, request.phase, request.cpu, request.tuned_source})
    putOptional(bytes, text);
  putField(bytes, uint64_t(request.tuned != nullptr));
  putField(bytes, std::string_view(request.tuned ? request.tuned : "", request.tuned_bytes));
  return bytes;
}

bool readQuestion(std::span<const std::byte> message, ReadQuestion &read) {
  Fields fields{message, true};
  const uint64_t question = fields.number();
  read.question = question == 0 ? Question::Identify : Question::Compile;
  read.request.verify = static_cast<uint32_t>(fields.number());
  read.spec = fields.text();
  read.request.spec = read.spec.data();
  read.request.spec_bytes = read.spec.size();
  read.request.source_name = takeOptional(fields, read.sourceName);
  read.request.phase = takeOptional(fields, read.phase);
  read.request.cpu = takeOptional(fields, read.cpu);
  read.request.tuned_source = takeOptional(fields, read.tunedSource);
  read.request.tuned = takeOptional(fields, read.tuned);
  read.request.tuned_bytes = read.tuned.size();
  return fields.ok && fields.rest.empty() && question <= 1;
}

std::vector<std::byte> writeFailure(const Failure &failure) {
  std::vector<std::byte> bytes;
  putField(bytes, static_cast<uint64_t>(failure.code));
  putField(bytes, failure.message);
  return bytes;
}

std::vector<std::byte> writeIdentity(const Compiler::Identity &identity) {
  std::vector<std::byte> bytes;
  putField(bytes, uint64_t(NF_OK));
  putField(bytes, identity.name);
  putField(bytes, identity.key);
  putField(bytes, uint64_t(identity.isCurrent));
  putField(bytes, uint64_t(identity.madeFrom.size()));
  for (const FileIdentity &file : identity.madeFrom) {
    putField(bytes, file.path);
    putField(bytes, file.bytes);
    putField(bytes, file.version);
  }
  return bytes;
}

bool readIdentity(std::span<const std::byte> message, Compiler::Identity &identity,
                  Failure &failure) {
  Fields fields{message, true};
  if (!takeSuccess(fields, failure))
    return false;
  identity.name = fields.text();
  identity.key = fields.text();
  identity.isCurrent = fields.number() != 0;
  const uint64_t files = fields.number();
  for (uint64_t i = 0; i < files && fields.ok; ++i) {
    FileIdentity &file = identity.madeFrom.emplace_back();
    file.path = fields.text();
    file.bytes = fields.number();
    file.version = fields.text();
  }
  return fields.ok && fields.rest.empty();
}

std::vector<std::byte> writeArtifact(std::span<const std::byte> artifact) {
  std::vector<std::byte> bytes;
  putField(bytes, uint64_t(NF_OK));
  putField(bytes, artifact);
  return bytes;
}

bool readArtifact(std::span<const std::byte> message, std::vector<std::byte> &artifact,
                  Failure &failure) {
  Fields fields{message, true};
  if (!takeSuccess(fields, failure))
    return false;
  const auto data = fields.data();
  artifact.assign(data.begin(), data.end());
  return fields.ok && fields.rest.empty();
}

} // namespace normforge
