// Tasks of 8 rows in tiles of 4: loops around the step, which works on slices.
//
// RUN: normforge-opt --split-input-file --nf-form-tasks %s | FileCheck %s
// RUN: normforge-opt --split-input-file --nf-form-tasks --nf-bind-call %s | FileCheck %s --check-prefix=CALL

// CHECK-LABEL: func.func @sums(%arg0: memref<f32> {nf.argument = 0 : i64}, %arg1: memref<f32> {nf.argument = 1 : i64}, %arg2: index {nf.first}, %arg3: index {nf.last})
// CHECK: scf.for %[[TASK:.+]] = %arg2 to %arg3
// CHECK: scf.for %[[ROW:.+]] = %{{.+}} to %{{.+}} step %c4
// CHECK: memref.subview %{{.+}}[%[[ROW]], 0] [4, 64] [1, 1]
// CHECK: linalg.generic {{.*}} ins(%{{.+}} : tensor<4x64xf32>) outs(%{{.+}} : tensor<4xf32>)
// CHECK: bufferization.materialize_in_destination
// CHECK-NOT: linalg.generic

// CALL-LABEL: func.func @sums(%arg0: !llvm.ptr, %arg1: i64, %arg2: i64)
// CALL-DAG: llvm.getelementptr %arg0[8]
// CALL-DAG: arith.index_cast %arg1
// CALL: scf.for
func.func @sums(%x: tensor<16x64xf32> {nf.argument = 0 : i64,
    nf.shape = affine_map<() -> (16, 64)>, nf.strides = affine_map<() -> (64, 1)>})
    -> (tensor<16xf32> {nf.argument = 1 : i64, nf.shape = affine_map<() -> (16)>,
        nf.strides = affine_map<() -> (1)>})
    attributes {nf.loops = affine_map<() -> (16, 64)>, nf.kept = array<i1: true, false>,
      nf.chunks = array<i64: 8, 0>, nf.tile_loop = 0 : i64, nf.tile = 4 : i64, nf.unroll = 1 : i64, nf.prefetch = 0 : i64, nf.rows = 0 : i64,
      nf.vector = 16 : i64, nf.masked_tails = true, nf.masked_loads = true} {
  %zero = arith.constant 0.0 : f32
  %empty = tensor.empty() : tensor<16xf32>
  %fill = linalg.fill ins(%zero : f32) outs(%empty : tensor<16xf32>) -> tensor<16xf32>
  %sum = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>,
      affine_map<(d0, d1) -> (d0)>], iterator_types = ["parallel", "reduction"]}
      ins(%x : tensor<16x64xf32>) outs(%fill : tensor<16xf32>)
      attrs = {nf.domain = affine_map<(d0, d1) -> (d0, d1)>} {
  ^bb0(%in: f32, %out: f32):
    %s = arith.addf %in, %out : f32
    linalg.yield %s : f32
  } -> tensor<16xf32>
  return %sum : tensor<16xf32>
}

// -----

// A size divided by a size: ceil(M / ceil(N / 4)) rows, strides of N; offsets in the workspace.
// CHECK-LABEL: func.func @quotients(
// CHECK-SAME: %[[M:.+]]: index {nf.size = 0 : i64}, %[[N:.+]]: index {nf.size = 1 : i64}
// CHECK: %[[PARTS:.+]] = arith.divui
// CHECK: %[[LESS:.+]] = arith.subi %[[PARTS]], %c1
// CHECK: %[[MOST:.+]] = arith.addi %[[M]], %[[LESS]]
// CHECK: arith.divui %[[MOST]], %[[PARTS]]
// CHECK: memref.reinterpret_cast %{{.+}} to offset: [0], sizes: [%{{.+}}], strides: [%[[N]]]

// CALL-LABEL: func.func @quotients(
// CALL: llvm.getelementptr %arg0[32]
// CALL: llvm.getelementptr %{{.+}}[%{{.+}}]
func.func @quotients(%m: index {nf.size = 0 : i64}, %n: index {nf.size = 1 : i64},
    %x: tensor<?xf32> {nf.workspace = affine_map<()[s0, s1] -> (s0 * 64)>,
      nf.shape = affine_map<()[s0, s1] -> (s0 ceildiv (s1 ceildiv 4))>,
      nf.strides = affine_map<()[s0, s1] -> (s1)>})
    -> (tensor<?xf32> {nf.argument = 0 : i64,
      nf.shape = affine_map<()[s0, s1] -> (s0 ceildiv (s1 ceildiv 4))>,
      nf.strides = affine_map<()[s0, s1] -> (1)>})
    attributes {nf.loops = affine_map<()[s0, s1] -> (s0 ceildiv (s1 ceildiv 4))>,
      nf.kept = array<i1: false>, nf.chunks = array<i64: 8>, nf.tile_loop = -1 : i64,
      nf.tile = 1 : i64, nf.unroll = 1 : i64, nf.prefetch = 0 : i64, nf.rows = 0 : i64, nf.vector = 4 : i64, nf.masked_tails = true,
      nf.masked_loads = true} {
  %empty = tensor.empty(%m) : tensor<?xf32>
  %y = linalg.generic {indexing_maps = [affine_map<(d0) -> (d0)>, affine_map<(d0) -> (d0)>],
      iterator_types = ["parallel"]} ins(%x : tensor<?xf32>) outs(%empty : tensor<?xf32>)
      attrs = {nf.domain = affine_map<(d0) -> (d0)>} {
  ^bb0(%in: f32, %out: f32):
    %s = arith.addf %in, %in : f32
    linalg.yield %s : f32
  } -> tensor<?xf32>
  return %y : tensor<?xf32>
}
