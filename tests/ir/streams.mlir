// Two arrays of elements past the caches: where both are as far from an aligned address, whole vectors
// from the first aligned one on; otherwise as stores are elsewhere.
// RUN: normforge-opt --nf-form-tasks --nf-vectorize-steps %s | FileCheck %s

// CHECK-LABEL: func.func @two_past_the_caches
// CHECK: %[[ALIKE:.*]] = arith.cmpi eq
// CHECK: scf.if %[[ALIKE]] {
// CHECK-COUNT-2: vector.maskedstore
// CHECK-COUNT-2: vector.store {{.*}}nontemporal = true
// CHECK: } else {
// CHECK-NOT: nontemporal
// CHECK: }
// CHECK: llvm.x86.sse.sfence
func.func @two_past_the_caches(%x: tensor<16xf32> {nf.argument = 0 : i64,
      nf.shape = affine_map<() -> (16)>, nf.strides = affine_map<() -> (1)>})
    -> (tensor<16xf32> {nf.argument = 1 : i64, nf.shape = affine_map<() -> (16)>,
        nf.strides = affine_map<() -> (1)>},
        tensor<16xf32> {nf.argument = 2 : i64, nf.shape = affine_map<() -> (16)>,
        nf.strides = affine_map<() -> (1)>})
    attributes {nf.loops = affine_map<() -> (16)>, nf.kept = array<i1: false>,
      nf.chunks = array<i64: 0>, nf.tile_loop = -1 : i64, nf.tile = 1 : i64, nf.unroll = 1 : i64, nf.prefetch = 0 : i64, nf.rows = 0 : i64,
      nf.vector = 4 : i64, nf.masked_tails = true, nf.masked_loads = true, nf.streaming_stores} {
  %empty = tensor.empty() : tensor<16xf32>
  %y:2 = linalg.generic {indexing_maps = [affine_map<(d0) -> (d0)>, affine_map<(d0) -> (d0)>,
      affine_map<(d0) -> (d0)>], iterator_types = ["parallel"]}
      ins(%x : tensor<16xf32>) outs(%empty, %empty : tensor<16xf32>, tensor<16xf32>)
      attrs = {nf.domain = affine_map<(d0) -> (d0)>} {
  ^bb0(%in: f32, %out: f32, %other: f32):
    linalg.yield %in, %in : f32, f32
  } -> (tensor<16xf32>, tensor<16xf32>)
  return %y#0, %y#1 : tensor<16xf32>, tensor<16xf32>
}
