/* Between the runtime and the compiler library that it opens when something must be compiled:
 * plain C, and nothing else. A change of these structures changes the names of the functions. */
#ifndef NORMFORGE_RUNTIME_COMPILER_INTERFACE_H
#define NORMFORGE_RUNTIME_COMPILER_INTERFACE_H

#include "normforge/normforge.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct nf_compiler_request {
  const char *spec; /* YAML text, not terminated */
  size_t spec_bytes;
  const char *source_name; /* for messages */
  const char *phase;       /* "inference", "backward+update", ...; NULL: the spec's first */
  const char *cpu;         /* NULL, "" or "native": the host */
  uint32_t verify;         /* 1: run MLIR's and LLVM's verifiers after every step */
  const char *tuned;       /* records of `normforge tune`, not terminated; NULL: none */
  size_t tuned_bytes;
  const char *tuned_source; /* their file's name, for people */
  const char *tuned_key;    /* what tells them from others, short */
} nf_compiler_request;

typedef struct nf_compiler_reply {
  /* The answer of identify: the spec's name; all that the code depends on, as text; and the files
   * that the compiler consists of, a path a line. */
  char *name, *key, *files;
  /* The answer of compile: a serialized Artifact. */
  uint8_t *artifact;
  size_t artifact_bytes;
  char *error;  /* terminated text where there is no answer; NULL where there is no memory for it */
  nf_code code; /* of the error: NF_COMPILE_FAILED, NF_OUT_OF_MEMORY or NF_INTERNAL */
} nf_compiler_reply;

/* Answers for one phase of a spec: which kernel that is, without compiling it, or the kernel.
 * Returns 1 with an answer, 0 with an error. May be called from several threads. */
typedef int nf_compiler_fn(const nf_compiler_request *, nf_compiler_reply *);
/* Frees what a reply holds. */
typedef void nf_compiler_release_fn(nf_compiler_reply *);

/* The names under which libnormforge-compiler.so exports them. */
#define NF_COMPILER_IDENTIFY "nf_compiler_identify_v4"
#define NF_COMPILER_COMPILE "nf_compiler_compile_v4"
#define NF_COMPILER_RELEASE "nf_compiler_release_v4"

#ifdef __cplusplus
}
#endif
#endif
