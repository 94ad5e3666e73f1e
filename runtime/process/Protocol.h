// The protocol between a host and its compiler's process over a socket: the host asks a question,
// the process answers, in turn.
//
// A message is its length (8 bytes, little-endian) and fields (runtime/artifact/Fields.h):
//   question  kind, verify, spec, and source name, phase, cpu, the tuned records' source and they
//             themselves each as present (0, 1) and text
//   answer    an nf_code; the error's text, or of identify: name, key, isCurrent, number of files
//             and each one's path, bytes and version; of compile: the artifact
// Both sides are of one build: the process is told the version of this form when it is started, and
// refuses another.
#pragma once

#include "runtime/loader/Compiler.h"

#include <cstdint>
#include <span>

namespace normforge {

inline constexpr uint64_t protocolVersion = 2;
/// Far above any spec or kernel: a longer message is none.
inline constexpr uint64_t mostMessageBytes = uint64_t(1) << 30;

enum class Question : uint8_t { Identify, Compile };

/// The messages without their lengths.
std::vector<std::byte> writeQuestion(Question question, const nf_compiler_request &request);
std::vector<std::byte> writeFailure(const Failure &failure);
std::vector<std::byte> writeIdentity(const Compiler::Identity &identity);
std::vector<std::byte> writeArtifact(std::span<const std::byte> artifact);

/// A question and the texts that its request points to.
struct ReadQuestion {
  Question question = Question::Identify;
  std::string spec, sourceName, phase, cpu, tuned, tunedSource;
  nf_compiler_request request = {};
};
/// Each gives false where the bytes are no such message; reading an answer that is an error sets
/// `failure` and gives false, and where the bytes are no answer `failure` stays NF_OK.
bool readQuestion(std::span<const std::byte> message, ReadQuestion &read);
bool readIdentity(std::span<const std::byte> message, Compiler::Identity &identity,
                  Failure &failure);
bool readArtifact(std::span<const std::byte> message, std::vector<std::byte> &artifact,
                  Failure &failure);

} // namespace normforge
