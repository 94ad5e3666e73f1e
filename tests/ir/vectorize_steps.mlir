// A step with two results, each stored; both loads come before both stores.
//
// RUN: normforge-opt --nf-form-tasks --nf-vectorize-steps %s | FileCheck %s

// CHECK-LABEL: func.func @two(
// CHECK: %[[X:.+]] = vector.load {{.*}} vector<4xf32>
// CHECK: %[[ADDEND:.+]] = vector.load {{.*}} vector<4xf32>
// CHECK-DAG: %[[SUM:.+]] = arith.addf %[[X]], %[[ADDEND]]
// CHECK-DAG: %[[PRODUCT:.+]] = arith.mulf %[[X]], %[[ADDEND]]
// CHECK: vector.store %[[SUM]]
// CHECK: vector.store %[[PRODUCT]]
// CHECK-NOT: linalg.generic
func.func @two(%x: tensor<64xf32> {nf.argument = 0 : i64,
      nf.shape = affine_map<() -> (64)>, nf.strides = affine_map<() -> (1)>},
    %addend: tensor<64xf32> {nf.argument = 1 : i64,
      nf.shape = affine_map<() -> (64)>, nf.strides = affine_map<() -> (1)>})
    -> (tensor<64xf32> {nf.argument = 2 : i64, nf.shape = affine_map<() -> (64)>,
        nf.strides = affine_map<() -> (1)>},
        tensor<64xf32> {nf.argument = 3 : i64, nf.shape = affine_map<() -> (64)>,
        nf.strides = affine_map<() -> (1)>})
    attributes {nf.loops = affine_map<() -> (64)>, nf.kept = array<i1: false>,
      nf.chunks = array<i64: 0>, nf.tile_loop = -1 : i64, nf.tile = 1 : i64, nf.unroll = 1 : i64, nf.prefetch = 0 : i64, nf.rows = 0 : i64,
      nf.vector = 4 : i64, nf.masked_tails = true, nf.masked_loads = true} {
  %empty = tensor.empty() : tensor<64xf32>
  %y:2 = linalg.generic {indexing_maps = [affine_map<(d0) -> (d0)>, affine_map<(d0) -> (d0)>,
      affine_map<(d0) -> (d0)>, affine_map<(d0) -> (d0)>], iterator_types = ["parallel"]}
      ins(%x, %addend : tensor<64xf32>, tensor<64xf32>)
      outs(%empty, %empty : tensor<64xf32>, tensor<64xf32>)
      attrs = {nf.domain = affine_map<(d0) -> (d0)>} {
  ^bb0(%in: f32, %more: f32, %out: f32, %other: f32):
    %s = arith.addf %in, %more : f32
    %p = arith.mulf %in, %more : f32
    linalg.yield %s, %p : f32, f32
  } -> (tensor<64xf32>, tensor<64xf32>)
  return %y#0, %y#1 : tensor<64xf32>, tensor<64xf32>
}
