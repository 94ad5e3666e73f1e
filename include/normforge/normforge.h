/* Normforge: compile, load, plan and run normalization kernels.
 *
 *   nf_engine *engine;  nf_kernel *kernel;  nf_plan *plan;
 *   nf_engine_create(NULL, &engine);                          where kernels come from
 *   nf_compile(engine, text, strlen(text), NULL, &kernel);    a spec's code on this machine
 *   nf_plan_create(kernel, sizes, 1, &plan);                  for these sizes; all checks
 *   nf_run(plan, args, 6, NULL, 0, NULL, NULL);               any number of times
 *
 * Errors. A function that can fail returns an nf_status *: NULL is success, anything else is an
 * error that the caller frees with nf_status_free. On failure, what the function would have made is
 * set to NULL and nothing else has happened. No function prints, raises a signal or throws, with
 * one exception: nf_compile and nf_compile_file, where the compiler runs in this process and memory
 * runs out, or the compiler has a defect. LLVM and MLIR do not check every allocation, and end the
 * process then (SIGABRT, SIGSEGV). Everything else never does: engines, packs, kernels that are
 * found in memory or on disk, plans, runs. A host that must not be ended ships packs, or sets
 * compile_in_child, with which nf_compile never does either.
 *
 * Threads. Engines, kernels and plans do not change once made: every function may be called from
 * several threads at once on the same object, releasing included, as long as each thread that uses
 * an object holds a reference. A thread is not cancelled (pthread_cancel) while it is in a
 * function. nf_compile without compile_in_child wants a stack of 256 KiB; all else 32 KiB. An
 * object is made with one reference; *_retain adds one, *_release takes one away and the last frees
 * the object. *_retain(NULL) and *_release(NULL) do nothing; other functions take no NULL but where
 * they say so. A kernel outlives its engine or pack, and a plan its kernel: each holds what it
 * needs.
 *
 * fork. A child may use all that its parent had made, engines included: fork waits until no other
 * thread is at what a child could not go on with, which is compiling (milliseconds; with
 * compile_in_child up to compile_seconds for each compilation that waits for a processor before
 * it), loading from packs, and making engines; calls of these functions that come meanwhile wait
 * for the fork. nf_run never makes it wait. Handlers of pthread_atfork that a host registered
 * before it loaded this library must not use it, nor wait for a thread that is in it. A child may
 * close all descriptors. A child has compiler's processes of its own. Not covered: clone, called
 * directly.
 *
 * Strings are UTF-8, zero-terminated, and live as long as the object they were asked of. A name or
 * list asked for with an index out of range is NULL or 0.
 *
 * Structs with struct_size: set every field to 0, then struct_size to sizeof of the struct. Later
 * versions add fields at the end only; those that this version does not know are ignored. Later
 * versions add codes of errors too: take one that you do not know for a failure.
 */
#ifndef NORMFORGE_NORMFORGE_H
#define NORMFORGE_NORMFORGE_H

#include "normforge/abi.h"

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define NF_API __attribute__((visibility("default")))
#else
#define NF_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define NF_VERSION_MAJOR 0
#define NF_VERSION_MINOR 1
#define NF_VERSION_PATCH 0

/* The library's version, "0.1.0", and the version of the kernel ABI that it runs. */
NF_API const char *nf_version(void);
NF_API uint32_t nf_abi_version(void);

/* ---- Errors ---------------------------------------------------------------------------------- */

typedef enum nf_code {
  NF_OK = 0,
  NF_INVALID_ARGUMENT = 1, /* a call that cannot be meant: NULL, a wrong count, size or alignment */
  NF_COMPILE_FAILED = 2,   /* the spec or an option has errors; the message has their places */
  NF_NO_COMPILER = 3,      /* the compiler library or its program cannot be opened */
  NF_BAD_ARTIFACT = 4,     /* bytes that are not a whole kernel of a version that is understood */
  NF_WRONG_MACHINE = 5,    /* the kernel needs a CPU or a feature that this machine lacks */
  NF_OUT_OF_MEMORY = 6,
  NF_SYSTEM_ERROR = 7, /* the operating system refused */
  NF_INTERNAL = 8,     /* a defect of Normforge */
  NF_NO_KERNEL = 9,    /* a pack holds no kernel of this name and phase */
  /* the compiler's process died, for lack of memory or a defect, or was ended for its time */
  NF_COMPILER_ENDED = 10,
  NF_NO_DEVICE = 11,   /* there is no GPU, no driver of one, or no context that is current */
  NF_DEVICE_ERROR = 12 /* the GPU's driver refused; the message has its words */
} nf_code;

typedef struct nf_status nf_status;

/* The kind of an error; NF_OK for NULL. */
NF_API nf_code nf_status_code(const nf_status *status);
/* The error's text: one line or, for a spec, one paragraph an error; "" for NULL. Lives until the
 * status is freed. */
NF_API const char *nf_status_message(const nf_status *status);
/* Frees an error. NULL is allowed. */
NF_API void nf_status_free(nf_status *status);

/* ---- What a host lends ----------------------------------------------------------------------- */

/* Runs tasks first to last - 1 of what nf_run handed out; `data` is nf_run's. */
typedef void nf_body_fn(void *data, uint64_t first, uint64_t last);

/* Calls `body` so that each of `tasks` tasks is in exactly one range, on any threads, in any order,
 * and returns when all calls have ended, with what they wrote visible to the caller. Must not
 * throw. Results do not depend on how the tasks are split, to the bit.
 * It is called from every thread that is in nf_run: from several at once where there are several.
 */
typedef void nf_parallel_for_fn(void *user, uint64_t tasks, nf_body_fn *body, void *data);

/* The threads of the host. normforge/openmp.h makes one of OpenMP. */
typedef struct nf_executor {
  uint32_t struct_size; /* sizeof(nf_executor); less than its first version is an error */
  nf_parallel_for_fn *parallel_for; /* NULL: the calling thread runs everything */
  void *user;
} nf_executor;

/* Threads for hosts that have none of their own. */
typedef struct nf_threads nf_threads;

/* `count` threads, the one that calls nf_run among them; 0: as many as this process may use, by its
 * affinity and its control group's quota. They begin at the first call that has work for them; what
 * the system refuses to begin, the others do. Between calls they look for work for some ten
 * microseconds, then sleep. Signals are left to the host's threads.
 * Calls from several threads at once: one has these threads, the others do their own work, which
 * gives the same bits. A child after fork begins threads of its own.
 * Errors: NF_INVALID_ARGUMENT (more than 4096), NF_OUT_OF_MEMORY. */
NF_API nf_status *nf_threads_create(uint32_t count, nf_threads **threads);
NF_API void nf_threads_retain(nf_threads *threads);
/* The last one ends them: no call may be at work with them. */
NF_API void nf_threads_release(nf_threads *threads);
NF_API uint32_t nf_threads_count(const nf_threads *threads);
/* For nf_engine_options or nf_run; lives as long as the threads. */
NF_API const nf_executor *nf_threads_executor(const nf_threads *threads);

/* The host's memory. `allocate` gives `bytes` bytes aligned to `alignment`, a power of 2, or NULL;
 * `release` takes back what it gave. Both may be called from several threads at once, and must not
 * throw. */
typedef struct nf_allocator {
  uint32_t struct_size; /* sizeof(nf_allocator); less than its first version is an error */
  void *(*allocate)(void *user, size_t bytes, size_t alignment); /* NULL: malloc and free */
  void (*release)(void *user, void *memory, size_t bytes, size_t alignment);
  void *user;
} nf_allocator;

/* ---- Engine ---------------------------------------------------------------------------------- */

typedef struct nf_engine nf_engine;

/* Takes a line of text about what an engine does without: a cache directory that cannot be used, or
 * that there is none.
 * May be called from several threads at once, from within nf_engine_create and nf_compile; must not
 * throw, nor use the engine. `user` outlives the engine. */
typedef void nf_log_fn(void *user, const char *text);

typedef struct nf_engine_options {
  uint32_t struct_size; /* sizeof(nf_engine_options); less than its first version is an error */
  /* Write the addresses and names of kernels to /tmp/perf-PID.map for perf; 0: no. Nothing is
   * written where something else lies there than a file of this user's with one name. */
  uint32_t perf_map;
  /* Path of libnormforge-compiler.so, copied; a relative one with a slash is taken from the working
   * directory of now, one without a slash the loader looks for. NULL: looked for beside the file
   * that this library was loaded from, then in ../lib of its folder, then where the loader finds
   * libraries; the working directory plays no part. */
  const char *compiler_library;
  /* Where compiled kernels are kept between processes, copied. NULL: $NORMFORGE_CACHE_DIR, else
   * $XDG_CACHE_HOME/normforge, else $HOME/.cache/normforge, of which relative paths are ignored.
   * "": nowhere (in the environment an empty value counts as none). It is made when the first
   * kernel is kept. What lies there is run, so nobody else may have put it there: the path is
   * absolute; the directory belongs to this user, and neither its group nor others can write to it;
   * each directory above it belongs to root or this user, and neither group nor others can write to
   * it unless it is sticky, as /tmp is; it is no symbolic link itself, and links above it are
   * root's or this user's. Where it cannot be used, `log` hears of it once and kernels are compiled
   * each time. */
  const char *cache_directory;
  /* Bytes of the kernels kept there, at most; those not used for longest go first. 0: 256 MiB. */
  uint64_t cache_bytes;
  nf_log_fn *log; /* NULL: nobody listens */
  void *log_user;
  /* Tell GDB and LLDB the names of kernels, so that breakpoints and backtraces know them; 0: no. */
  uint32_t debugger;
  /* The threads that nf_run uses where it is given none, copied; NULL: the calling thread. Its
   * `user` outlives the engine and all that came of it. */
  const nf_executor *executor;
  /* Where nf_run takes a workspace from where it is given none, copied: the one memory that grows
   * with the sizes. `user` as above. NULL: malloc. Objects, which are small, are malloc's. */
  const nf_allocator *allocator;
  /* Compile in a process of its own, the program normforge-compile beside the compiler library, so
   * that nothing that happens to the compiler happens to the host; 0: in this process. The first
   * compilation also starts it, some milliseconds; later ones take as long as here.
   * compiler_library must be a path then, not a bare name. Processes are as many as threads compile
   * at once, up to the processors; up to four rest for the next compilation, some 110 MB each, for
   * ten seconds or until the engine is released. They have the host's environment, none of its
   * descriptors, the directory / and a group of their own. A host may reap all children (SIGCHLD
   * ignored, waitpid with WNOHANG); one that waits until it has none waits for them too. Needs
   * Linux 5.3. */
  uint32_t compile_in_child;
  /* Seconds after which such a process that has not answered is ended; 0: 60. */
  uint32_t compile_seconds;
  /* Bytes of address space that such a process may have: opening the compiler takes 300 to 400 MiB,
   * a compilation some tens more; 1 GiB is a sensible limit. Errors of what is too little say so:
   * NF_OUT_OF_MEMORY, NF_COMPILER_ENDED, or NF_NO_COMPILER where it cannot be opened. 0: no limit.
   */
  uint64_t compile_bytes;
  /* Run MLIR's and LLVM's verifiers after every step of what this engine compiles; 0: no. */
  uint32_t verify;
  /* A file of records of `normforge tune`, read here, once: kernels for machines that they are of
   * take their schedules. NULL: none but those that come with the compiler. Lines that are no
   * records, or of another machine or version, do nothing: `normforge tune show` tells of them. */
  const char *tuned_records;
} nf_engine_options;

/* Makes an engine: where kernels come from. `options` may be NULL. Opens no library yet.
 * Errors: NF_INVALID_ARGUMENT (an allocator with one function of two, a struct without its
 * struct_size), NF_OUT_OF_MEMORY, NF_SYSTEM_ERROR (a relative path, and no working directory;
 * tuned_records cannot be read). */
NF_API nf_status *nf_engine_create(const nf_engine_options *options, nf_engine **engine);
NF_API void nf_engine_retain(nf_engine *engine);
NF_API void nf_engine_release(nf_engine *engine);

/* ---- Kernels --------------------------------------------------------------------------------- */

typedef struct nf_kernel nf_kernel;

/* NF_BF16 is the upper half of an IEEE binary32 number, NF_F16 is IEEE binary16. NF_BIT is one bit
 * an element: element i is bit i % 8, counted from the lowest, of byte i / 8. The last axis of such
 * an array is a multiple of 16, whose last bits may stand for nothing: they are written as 0, and
 * do not matter where read; it is aligned to 2. */
typedef enum nf_dtype {
  NF_NO_DTYPE = 0,
  NF_F32 = 1,
  NF_F64 = 2,
  NF_BF16 = 3,
  NF_F16 = 4,
  NF_BIT = 5
} nf_dtype;
/* More may follow: NF_OTHER_PHASE is one that this library has no number for. */
typedef enum nf_phase {
  NF_OTHER_PHASE = -1,
  NF_INFERENCE = 0,
  NF_TRAINING = 1,
  NF_BACKWARD = 2,
  NF_POPULATION = 3,
  NF_UPDATE = 4,
  NF_BACKWARD_UPDATE = 5,
  NF_MOMENTS = 6,      /* what ranks exchange before the phases that take a batch's statistics */
  NF_GRADIENT_SUMS = 7 /* and before backward */
} nf_phase;
/* The role of an argument for its host: data of x's shape, a learned parameter, statistics of a
 * batch, a state that is kept from call to call, the gradient of a loss by one of these, bits that
 * training keeps for backward, or what ranks exchange (nf_plan_exchange). */
typedef enum nf_role {
  NF_NO_ROLE = 0,
  NF_DATA = 1,
  NF_PARAMETER = 2,
  NF_STATISTIC = 3,
  NF_STATE = 4,
  NF_GRADIENT = 5,
  NF_MASK = 6,
  NF_PARTIAL_MOMENTS = 7,
  NF_PARTIAL_SUM = 8
} nf_role;

/* A phase as specs have it, "backward+update"; "" for NF_OTHER_PHASE. The phase of such a name, or
 * NF_OTHER_PHASE. A role in words, "parameter"; "" for NF_NO_ROLE. They live for ever. */
NF_API const char *nf_phase_name(nf_phase phase);
NF_API nf_phase nf_phase_named(const char *name);
NF_API const char *nf_role_name(nf_role role);

typedef struct nf_compile_options {
  uint32_t struct_size; /* sizeof(nf_compile_options); less than its first version is an error */
  /* "inference", "backward+update", ...; NULL: the spec's first. A spec that lists no phases has
   * inference alone where nothing else is asked for, and training and backward where one is. */
  const char *phase;
  /* LLVM's name of a CPU: "haswell"; NULL, "" or "native": this one. Or of a GPU, "sm_90", which
   * nf_device_cpu tells: such kernels are prepared and enqueued. */
  const char *cpu;
  const char *source_name; /* the text's name in errors; NULL: "<spec>" */
} nf_compile_options;

/* The kernel of one phase of a spec for this machine. `spec` is YAML, `bytes` long, needs no
 * terminator and is not kept. `options` may be NULL.
 * An engine compiles each kernel once, also where specs differ in their names alone; the handle is
 * a new one. Several threads that ask at once share one compilation. Else the kernel is read from
 * the cache directory, in some 200 us and without the compiler, if this text was compiled there by
 * the same compiler for the same machine (whose library must lie where it lay, though it is not
 * opened); of another text for the same kernel the compiler is asked which it is. Else it is
 * compiled: some 3 to 20 ms for each of a few variants, and some 40 ms more the first time in a
 * process, when the compiler library is opened. Errors: NF_NO_COMPILER with all paths that were
 * tried, NF_COMPILE_FAILED with file, line and column, NF_WRONG_MACHINE where options->cpu has what
 * this machine lacks, NF_INVALID_ARGUMENT, NF_OUT_OF_MEMORY, NF_SYSTEM_ERROR where the system
 * refuses memory that is written first and made executable then (mmap, mprotect; where it has no
 * memory, NF_OUT_OF_MEMORY), NF_COMPILER_ENDED with compile_in_child, and NF_INTERNAL for a defect
 * of the compiler. What memory that runs out does: Errors, above. */
NF_API nf_status *nf_compile(nf_engine *engine, const char *spec, size_t bytes,
                             const nf_compile_options *options, nf_kernel **kernel);

/* The same of a file: reads it whole. Its name is what errors begin with, and a spec without a name
 * is named after it, where options->source_name is NULL.
 * Errors: as nf_compile, and NF_SYSTEM_ERROR where the file cannot be read (NF_OUT_OF_MEMORY where
 * that is for lack of memory). */
NF_API nf_status *nf_compile_file(nf_engine *engine, const char *path,
                                  const nf_compile_options *options, nf_kernel **kernel);

/* Makes a kernel from what nf_kernel_save gave, on any machine. The bytes are checked as a whole
 * (lengths, offsets, checksum), copied, and not kept; they hold machine code that will run here, so
 * they must come from a source that is trusted. Takes some 20 us; needs no compiler.
 * Errors: NF_BAD_ARTIFACT, NF_WRONG_MACHINE ("kernel needs avx512f, which this machine lacks"; SVE
 * kernels also need vectors of a power of two of bits), NF_OUT_OF_MEMORY and NF_SYSTEM_ERROR as
 * nf_compile. */
NF_API nf_status *nf_kernel_load(nf_engine *engine, const void *artifact, size_t bytes,
                                 nf_kernel **kernel);

/* The kernel as bytes that nf_kernel_load reads. Freed by the caller with nf_bytes_free. */
NF_API nf_status *nf_kernel_save(const nf_kernel *kernel, uint8_t **artifact, size_t *bytes);
NF_API void nf_bytes_free(uint8_t *bytes);

NF_API void nf_kernel_retain(nf_kernel *kernel);
NF_API void nf_kernel_release(nf_kernel *kernel);

/* The spec's name, its phase, and the CPU it was compiled for. */
NF_API const char *nf_kernel_name(const nf_kernel *kernel);
NF_API nf_phase nf_kernel_phase(const nf_kernel *kernel);
NF_API const char *nf_kernel_cpu(const nf_kernel *kernel);

#define NF_NOT_FOUND ((size_t)-1)

/* The arrays in the order of nf_call.args: those read, then those written. In training,
 * moving_mean and moving_variance are two arguments each: the old is read, the new is written. */
NF_API size_t nf_kernel_argument_count(const nf_kernel *kernel);
NF_API const char *nf_kernel_argument_name(const nf_kernel *kernel, size_t argument);
NF_API nf_dtype nf_kernel_argument_dtype(const nf_kernel *kernel, size_t argument);
/* Its axes in memory order, outermost first, over the named sizes: "(N, 64, 56, 56)". */
NF_API const char *nf_kernel_argument_shape(const nf_kernel *kernel, size_t argument);
/* 1 when the kernel writes the array (every element of it), 0 when it only reads it. */
NF_API int nf_kernel_argument_is_written(const nf_kernel *kernel, size_t argument);
/* The role of the array for its host. */
NF_API nf_role nf_kernel_argument_role(const nf_kernel *kernel, size_t argument);
/* The array that is read and whose next value a written state or parameter is; the two have one
 * name, dtype and shape. NF_NOT_FOUND for every other array. */
NF_API size_t nf_kernel_argument_old(const nf_kernel *kernel, size_t argument);
/* 1 when the written array may be the same buffer as the read one. All other arrays that a kernel
 * writes must not overlap any array. */
NF_API int nf_kernel_may_alias(const nf_kernel *kernel, size_t written, size_t read);
/* The index of the array of this name that is read (written = 0) or written (1); NF_NOT_FOUND. */
NF_API size_t nf_kernel_find_argument(const nf_kernel *kernel, const char *name, int written);
/* The kernel's name for an array or number that a framework calls `theirs`: "gamma" for "weight" or
 * "Scale". NULL where it has none that is called so, and for its own names: nf_kernel_find_argument
 * finds those, and is to be asked first. Lives for ever. */
NF_API const char *nf_kernel_own_name(const nf_kernel *kernel, const char *theirs);

/* The named sizes that nf_plan_create takes, in order. */
NF_API size_t nf_kernel_size_count(const nf_kernel *kernel);
NF_API const char *nf_kernel_size_name(const nf_kernel *kernel, size_t size);

/* The named sizes that arrays of these shapes tell. Argument i has `ranks[i]` axes, of sizes
 * `shapes[i][0]` and on; a shape that is NULL is not known. `sizes` gets nf_kernel_size_count
 * numbers, as nf_plan_create takes them.
 * Errors: NF_INVALID_ARGUMENT (a shape that is not its argument's, two that tell a size otherwise,
 * a size that none tells, another count of arguments). */
NF_API nf_status *nf_kernel_match_sizes(const nf_kernel *kernel, const int64_t *const *shapes,
                                        const size_t *ranks, size_t count, int64_t *sizes);

/* The run-time numbers ("epsilon", "momentum", "step", ...) that nf_run takes, in order. */
NF_API size_t nf_kernel_scalar_count(const nf_kernel *kernel);
NF_API const char *nf_kernel_scalar_name(const nf_kernel *kernel, size_t scalar);

/* The variants, of which the sizes choose one, and the schedule that each was compiled with. */
NF_API size_t nf_kernel_variant_count(const nf_kernel *kernel);
NF_API const char *nf_kernel_variant_schedule(const nf_kernel *kernel, size_t variant);
/* Who chose it and why, in words: the heuristic's reason, "given", or "tuned: ..." with the
 * record's gain and file. */
NF_API const char *nf_kernel_variant_reason(const nf_kernel *kernel, size_t variant);

/* ---- Specs ----------------------------------------------------------------------------------- */

/* A spec that is put together key by key, for hosts that would write its text otherwise. It writes
 * text; what keys there are and what they mean, the compiler says. Used by one thread at a time.
 * Errors of all: NF_INVALID_ARGUMENT (NULL, a key without a name, a number that is not finite, a
 * list where a value is or the other way around), NF_OUT_OF_MEMORY; the spec is as it was then. */
typedef struct nf_spec nf_spec;

NF_API nf_status *nf_spec_create(nf_spec **spec);
NF_API void nf_spec_free(nf_spec *spec); /* NULL is allowed */
/* input: its shape, layout and dtype. Where `names` has a name, that is the size, known at the call
 * alone; else `sizes` has its number. `names` may be NULL. `layout` is "nchw", ...; NULL: of rank 1
 * and 2 the default. */
NF_API nf_status *nf_spec_input(nf_spec *spec, const int64_t *sizes, const char *const *names,
                                size_t rank, const char *layout, nf_dtype dtype);
/* A key's value: text ("mode", "layer"), a number ("epsilon", 1e-5), or a truth ("scale", 0). A
 * part of a key follows a dot: "parameters.gamma.constraint". A second value takes the place of the
 * first. */
NF_API nf_status *nf_spec_set_text(nf_spec *spec, const char *key, const char *text);
NF_API nf_status *nf_spec_set_number(nf_spec *spec, const char *key, double number);
NF_API nf_status *nf_spec_set_flag(nf_spec *spec, const char *key, int flag);
/* One more of a list of words: "phases", "training"; "axis", "c". */
NF_API nf_status *nf_spec_add_word(nf_spec *spec, const char *key, const char *word);
/* One more step of "fuse" or "prologue": a function ("relu", "leaky_relu" with 1 number, "clamp"
 * with 2), an operand ("add", "mul", "bias") of this name (NULL: the default), or a formula of x.
 */
NF_API nf_status *nf_spec_add_function(nf_spec *spec, const char *steps, const char *function,
                                       const double *numbers, size_t count);
NF_API nf_status *nf_spec_add_operand(nf_spec *spec, const char *steps, const char *operation,
                                      const char *name);
NF_API nf_status *nf_spec_add_formula(nf_spec *spec, const char *steps, const char *formula);
/* The text so far, for nf_compile, and its bytes where `bytes` is not NULL. Lives until the spec is
 * changed or freed. NULL where there is no memory for it. */
NF_API const char *nf_spec_text(nf_spec *spec, size_t *bytes);

/* ---- Packs ----------------------------------------------------------------------------------- */

/* Kernels in one file, compiled ahead of time for several CPUs by `normforge pack`. Needs no
 * compiler. A pack is an object as an engine is: see Threads above. */
typedef struct nf_pack nf_pack;

/* Maps a pack's file. All that is in its table of contents is checked now, some microseconds, each
 * kernel when it is loaded. Machine code is in it that will run here: it must come from a source
 * that is trusted. The file must not be changed while the pack is open; replace it by renaming
 * another over it.
 * Errors: NF_SYSTEM_ERROR where the file cannot be opened, NF_BAD_ARTIFACT where it is no whole
 * pack of a version that is understood, NF_OUT_OF_MEMORY. */
NF_API nf_status *nf_pack_open(nf_engine *engine, const char *path, nf_pack **pack);
/* The same over bytes of the host, such as an array in its program; not copied: they outlive the
 * pack and do not change. Kernels that were loaded do not need them any more. */
NF_API nf_status *nf_pack_open_bytes(nf_engine *engine, const void *bytes, size_t size,
                                     nf_pack **pack);
NF_API void nf_pack_retain(nf_pack *pack);
NF_API void nf_pack_release(nf_pack *pack);

/* The kernels in it, by name and then phase. */
NF_API size_t nf_pack_kernel_count(const nf_pack *pack);
NF_API const char *nf_pack_kernel_name(const nf_pack *pack, size_t kernel);
NF_API nf_phase nf_pack_kernel_phase(const nf_pack *pack, size_t kernel);

/* Loads a kernel: of the CPUs that it was packed for, the one that asks for most of the features
 * that this machine has. Some 20 us; loading it again gives the same code at once.
 * Errors: NF_NO_KERNEL where the pack has none of this name and phase, NF_WRONG_MACHINE where it
 * has it for other CPUs alone, NF_BAD_ARTIFACT where it is damaged, NF_INVALID_ARGUMENT for a phase
 * that is none, NF_OUT_OF_MEMORY and NF_SYSTEM_ERROR as nf_compile. */
NF_API nf_status *nf_pack_load(nf_pack *pack, const char *name, nf_phase phase, nf_kernel **kernel);
/* The same of one CPU that the pack was made for, by its name there ("haswell"), such as a lesser
 * one than this machine is. NULL or "": as nf_pack_load. NF_NO_KERNEL where the pack has it for
 * other CPUs alone. */
NF_API nf_status *nf_pack_load_for(nf_pack *pack, const char *name, nf_phase phase, const char *cpu,
                                   nf_kernel **kernel);

/* ---- Plans ----------------------------------------------------------------------------------- */

typedef struct nf_plan nf_plan;

/* Fixes the sizes. Every check that depends on them is made here. `sizes` has one value a named
 * size, in the kernel's order, and is copied; it may be NULL when `count` is 0. Takes about
 * a microsecond; keep the plan where sizes repeat.
 * A size of 0 gives, in inference, a plan that does nothing.
 * Errors: NF_INVALID_ARGUMENT for a wrong count, a negative size, a size of 0 in other phases, one
 * that is no multiple of what the spec cuts it into (`groups`), and arrays whose bytes do not fit
 * in 63 bits. */
NF_API nf_status *nf_plan_create(const nf_kernel *kernel, const int64_t *sizes, size_t count,
                                 nf_plan **plan);
NF_API void nf_plan_retain(nf_plan *plan);
NF_API void nf_plan_release(nf_plan *plan);

/* An array's number of axes and its sizes in memory order, outermost first, dense. */
NF_API size_t nf_plan_argument_rank(const nf_plan *plan, size_t argument);
NF_API const int64_t *nf_plan_argument_shape(const nf_plan *plan, size_t argument);
/* The bytes of an array. */
NF_API uint64_t nf_plan_argument_bytes(const nf_plan *plan, size_t argument);
/* The bytes that a call needs as workspace, often 0. */
NF_API uint64_t nf_plan_workspace_bytes(const nf_plan *plan);
/* The index of the variant that the sizes chose. */
NF_API size_t nf_plan_variant(const nf_plan *plan);

/* A batch of several ranks (`synchronized: true`), which are processes or devices with samples of
 * their own, as many as each likes, one at least:
 *   1. each runs the phase NF_MOMENTS, which writes the arrays that nf_plan_exchange names;
 *   2. the host gives every rank those of all ranks (MPI_Allgather, say), in the ranks' order;
 *   3. each calls nf_plan_merge, which makes the whole batch's of them;
 *   4. each runs NF_TRAINING (or NF_INFERENCE of mode 2), which reads these arrays and has the
 *      whole batch's statistics.
 * Before NF_BACKWARD the same with NF_GRADIENT_SUMS, whose dgamma and dbeta are of the rank's own
 * samples: hosts add them up as they do all gradients of parameters. */
typedef struct nf_exchange {
  uint32_t struct_size; /* sizeof(nf_exchange); less than its first version is an error */
  nf_dtype dtype;       /* of all arrays: NF_F32 or NF_F64 */
  size_t argument;      /* the first of them among the kernel's arguments */
  size_t arrays;        /* how many there are, one after the other, of one shape */
  uint64_t array_bytes; /* of each: a rank gives away arrays * array_bytes bytes */
} nf_exchange;

/* Which arrays ranks exchange: those that phases NF_MOMENTS and NF_GRADIENT_SUMS write, and the
 * same of the phases that read them. A host may have them in one buffer, array after array.
 * Errors: NF_INVALID_ARGUMENT (a kernel that exchanges nothing, a struct without its struct_size).
 */
NF_API nf_status *nf_plan_exchange(const nf_plan *plan, nf_exchange *exchange);

/* Makes the whole batch's arrays of the ranks'. `partials` are the ranks' arrays, rank after rank
 * in the same order everywhere, each one's array after array, without gaps: ranks * arrays *
 * array_bytes bytes. `merged` is as long as one rank's; it is exactly one of theirs, or overlaps
 * none. Moments are merged and sums added in the order of the ranks, in f64 and rounded once: the
 * same bits on every rank, and whenever the samples are split in the same way; what kernels make of
 * them has the same bits where the kernels are the same. Counts are rounded as all numbers of the
 * arrays' dtype. Neither needs an alignment. Takes some nanoseconds an element and rank, in the
 * calling thread. Errors: NF_INVALID_ARGUMENT (NULL, no rank, a plan that exchanges nothing, a
 * `merged` that overlaps a part of `partials`). */
NF_API nf_status *nf_plan_merge(const nf_plan *plan, const void *partials, size_t ranks,
                                void *merged);

/* Checks pointers: none NULL (but where the array has no bytes), each aligned to its element, no
 * overlap that the kernel does not allow, counts as the kernel has them. nf_run makes these checks
 * too. `workspace` may be NULL, and is not looked at then: a host that runs the stages itself needs
 * one of nf_plan_workspace_bytes bytes where these are not 0. Allocates nothing unless it fails.
 * Errors: NF_INVALID_ARGUMENT. */
NF_API nf_status *nf_plan_check(const nf_plan *plan, void *const *args, size_t arg_count,
                                const nf_scalar *scalars, size_t scalar_count,
                                const void *workspace);

/* The same for a host that runs the stages itself, of the struct that they will be given: what
 * nf_plan_check says, as many args and scalars as the kernel has, and that struct_size and flags
 * are of a version that this kernel can be called by, sizes those of the plan, and a workspace
 * there where one is needed. Errors: NF_INVALID_ARGUMENT. */
NF_API nf_status *nf_plan_check_call(const nf_plan *plan, const nf_call *call);

/* ---- GPUs ------------------------------------------------------------------------------------ */

/* A GPU of the host's: a context of its driver. An object as an engine is: see Threads above. A
 * context outlives its device, and the kernels that were prepared for it. A child after fork has no
 * devices, as it has no contexts. */
typedef struct nf_device nf_device;

typedef enum nf_device_kind { NF_CUDA = 1 } nf_device_kind;

/* Makes a device of a context: a CUcontext (cudaSetDevice makes one current, and the runtime API's
 * are such, too); NULL: the one that is current in this thread. Opens libcuda.so.1 the first time;
 * no toolkit is needed.
 * Errors: NF_NO_DEVICE (no driver, with what was tried; no GPU; no current context),
 * NF_WRONG_MACHINE (a GPU that kernels cannot be made for), NF_DEVICE_ERROR, NF_INVALID_ARGUMENT (a
 * kind that is none). */
NF_API nf_status *nf_device_open(nf_engine *engine, nf_device_kind kind, void *context,
                                 nf_device **device);
NF_API void nf_device_retain(nf_device *device);
NF_API void nf_device_release(nf_device *device);
/* The name that its kernels are compiled for, as nf_compile_options.cpu: "sm_90". And as its vendor
 * calls it. */
NF_API const char *nf_device_cpu(const nf_device *device);
NF_API const char *nf_device_name(const nf_device *device);

/* Loads a kernel of a pack for a device: of the GPUs that it was packed for the latest that is not
 * later than this one. Errors: as nf_pack_load. */
NF_API nf_status *nf_pack_load_on(nf_pack *pack, const char *name, nf_phase phase,
                                  const nf_device *device, nf_kernel **kernel);

/* Loads the kernel's code into the device's context, where the driver compiles it: some tens of
 * milliseconds a variant; at once where it was done before. Not within a graph's capture.
 * Errors: NF_WRONG_MACHINE (a CPU's kernel, one for a later GPU than this one, a driver that is
 * older than the code), NF_BAD_ARTIFACT (code that the driver cannot read), NF_DEVICE_ERROR,
 * NF_OUT_OF_MEMORY. */
NF_API nf_status *nf_kernel_prepare(const nf_kernel *kernel, const nf_device *device);

/* Launches the stages of a plan, one after the other, on `stream`, a CUstream of the device's
 * context (a cudaStream_t is one), NULL: its default one, and returns. What kernels do is known to
 * be done as all work on a stream is. It allocates nothing, waits for nothing and looks nothing up
 * by name; within a graph's capture the launches become part of the graph. args, scalars and
 * workspace are as nf_run takes them, but pointers to the device's memory: none of them is read
 * here. Pointers need their elements' alignment; where all are aligned to 16 bytes, another variant
 * moves 16 bytes at a time. The kernel, by a handle or a plan, outlives what was launched and the
 * graphs that have its launches: its code goes with it.
 * Errors: NF_INVALID_ARGUMENT (as nf_plan_check; a kernel that is not prepared; no workspace where
 * one is needed; memory of the host's; memory that the driver knows to be too short),
 * NF_WRONG_MACHINE (a CPU's kernel), with nothing launched; NF_DEVICE_ERROR: a launch was refused,
 * as on a stream of another context, and with it those after it. */
NF_API nf_status *nf_enqueue(const nf_plan *plan, const nf_device *device, void *const *args,
                             size_t arg_count, const nf_scalar *scalars, size_t scalar_count,
                             void *workspace, void *stream);

/* ---- Running --------------------------------------------------------------------------------- */

/* Computes. Blocks until the result is written. NF_WRONG_MACHINE for a GPU's kernel: nf_enqueue.
 *
 * args: base pointers in the kernel's order, each aligned to its element. Arrays that are read are
 * not written, though the type is void *.
 *
 * scalars: run-time numbers in the kernel's order; NULL when there are none. An epsilon is above 0,
 * in f32 too where that is what is computed in; a momentum is from 0 to 1; a count, which is that
 * of the batches so far with this one, is a whole number of at least 1.
 *
 * workspace: nf_plan_workspace_bytes bytes, aligned to NF_WORKSPACE_ALIGNMENT, for this call alone
 * while it runs; contents do not matter. NULL: this call takes it from the engine's allocator,
 * where the plan needs any, and gives it back. With a workspace nothing is allocated.
 *
 * executor: NULL: the engine's, or where it has none the calling thread. A stage of one task, or
 * that moves less than 64 KiB, runs on the calling thread in any case.
 *
 * One plan may run in several threads at once, each with its own workspace and outputs.
 * Errors: NF_INVALID_ARGUMENT as nf_plan_check, NF_OUT_OF_MEMORY; nothing was written then. */
NF_API nf_status *nf_run(const nf_plan *plan, void *const *args, size_t arg_count,
                         const nf_scalar *scalars, size_t scalar_count, void *workspace,
                         const nf_executor *executor);

/* For a host that schedules the tasks itself; of a GPU's kernel, functions are NULL. It fills an
 * nf_call: struct_size its size, flags 0, args and scalars as nf_run takes them, sizes
 * nf_plan_sizes, workspace nf_plan_workspace_bytes bytes for this call alone, aligned to
 * NF_WORKSPACE_ALIGNMENT. nf_plan_check_call checks all that can be, once or each time; a stage
 * checks nothing. Then it runs the stages in order, all tasks of one before the next begins, each
 * task once: for (s = 0; s < nf_plan_stage_count(plan); ++s) nf_plan_stage_function(plan, s)(&call,
 * 0, nf_plan_stage_tasks(plan, s)); The functions live as long as the plan. */
NF_API size_t nf_plan_stage_count(const nf_plan *plan);
NF_API nf_stage_fn *nf_plan_stage_function(const nf_plan *plan, size_t stage);
NF_API const char *nf_plan_stage_name(const nf_plan *plan, size_t stage);
NF_API uint64_t nf_plan_stage_tasks(const nf_plan *plan, size_t stage);
/* Bytes of memory that one task reads and writes: an estimate, to tell small work from large. */
NF_API uint64_t nf_plan_stage_bytes_per_task(const nf_plan *plan, size_t stage);
/* The sizes that the plan was made for, as nf_call.sizes takes them. */
NF_API const int64_t *nf_plan_sizes(const nf_plan *plan);

#ifdef __cplusplus
}
#endif
#endif
