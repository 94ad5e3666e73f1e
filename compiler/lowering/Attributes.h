// Attributes by which a stage's function carries its schedule and its arguments from the lowering
// to the passes. Affine maps `() [named sizes] -> (...)` hold what depends on sizes.
#pragma once

namespace normforge::attr {

// On a stage's function.
inline constexpr const char *kLoops = "nf.loops";        ///< map to the sizes of the stage's loops
inline constexpr const char *kKept = "nf.kept";          ///< array<i1>: which loops are kept
inline constexpr const char *kChunks = "nf.chunks";      ///< array<i64>: StagePlan::chunks
inline constexpr const char *kTileLoop = "nf.tile_loop"; ///< index of the tiled loop, or -1
inline constexpr const char *kTile = "nf.tile";
inline constexpr const char *kUnroll = "nf.unroll";
inline constexpr const char *kVector = "nf.vector";
inline constexpr const char *kPrefetch = "nf.prefetch";
inline constexpr const char *kRows = "nf.rows"; ///< StagePlan::rows
inline constexpr const char *kMaskedTails = "nf.masked_tails";
inline constexpr const char *kMaskedLoads = "nf.masked_loads";
inline constexpr const char *kScalable = "nf.scalable"; ///< Schedule::scalable where it is not 0
inline constexpr const char *kAlternates = "nf.alternates";      ///< unit; StagePlan::alternates
inline constexpr const char *kReversed = "nf.reversed";          ///< unit; StagePlan::reversed
inline constexpr const char *kStreaming = "nf.streaming_stores"; ///< unit; StagePlan::streams
inline constexpr const char *kPairsHalves = "nf.pairs_halves";   ///< unit; Schedule::pairsHalves
inline constexpr const char *kThreads = "nf.threads";            ///< StagePlan::threads, on a GPU
inline constexpr const char *kDown = "nf.down";                  ///< StagePlan::down, on a GPU
inline constexpr const char *kGroups = "nf.groups";              ///< StagePlan::groups, on a GPU
inline constexpr const char *kHeld = "nf.held";                  ///< StagePlan::held, on a GPU
inline constexpr const char *kResident = "nf.resident";          ///< StagePlan::resident, on a GPU
/// From VectorizeSteps, on a GPU: Device::subgroup, and a group's bytes of shared memory.
inline constexpr const char *kSubgroup = "nf.subgroup";
inline constexpr const char *kShared = "nf.shared";

/// Those that every stage has.
inline constexpr const char *kOfStages[] = {kTileLoop, kTile, kUnroll,      kVector,     kPrefetch,
                                            kRows,     kKept, kMaskedTails, kMaskedLoads};
/// Those that FormTasks hands on to VectorizeSteps, which removes them.
inline constexpr const char *kOfTiles[] = {
    kTileLoop, kTile,      kUnroll,     kVector,   kScalable, kMaskedTails, kMaskedLoads,
    kKept,     kStreaming, kAlternates, kPrefetch, kRows,     kPairsHalves, kHeld};
/// Those of a GPU's stages, which say how a kernel is launched.
inline constexpr const char *kOfGroups[] = {kThreads,  kDown,     kGroups, kResident,
                                            kReversed, kSubgroup, kShared};

// On its arguments and results.
inline constexpr const char *kArgument = "nf.argument"; ///< index in nf_call.args
inline constexpr const char *kKnown = "nf.known"; ///< elements: the array itself, in the kernel
inline constexpr const char *kWorkspace = "nf.workspace"; ///< map to the offset in bytes
inline constexpr const char *kShape = "nf.shape";         ///< map to the extents of its axes
inline constexpr const char *kStrides = "nf.strides";     ///< map to the axes' strides, in elements
/// array<i64: outer, inner, block>: the index outer*block + inner of two axes exists where it is
/// below kLimit, a map to that number. There is no memory for the rest.
inline constexpr const char *kPadding = "nf.padding";
inline constexpr const char *kLimit = "nf.limit";
inline constexpr const char *kSize = "nf.size";     ///< index in nf_call.sizes
inline constexpr const char *kScalar = "nf.scalar"; ///< index in nf_call.scalars
inline constexpr const char *kFirst = "nf.first";   ///< unit; the first task of a range
inline constexpr const char *kLast = "nf.last";     ///< unit; the one after its last
/// Unit; on a GPU, the number of a thread in its group.
inline constexpr const char *kThread = "nf.thread";

// On a linalg.generic: map from the stage's loops to the step's own. `d0 floordiv 4` is the chunk
// that loop 0 is in.
inline constexpr const char *kDomain = "nf.domain";
/// Unit: a sum whose results the tiles of a task add to in memory; they keep what the tile does
/// not. After FormTasks also on the cast of the slice in memory, which carries whether the tile is
/// the first of its task that adds to it: what is there then does not count.
inline constexpr const char *kCarried = "nf.carried";
/// Unit: the first step of a tile, from FormTasks.
inline constexpr const char *kTileBegins = "nf.tile_begins";

} // namespace normforge::attr
