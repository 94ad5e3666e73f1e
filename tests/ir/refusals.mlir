// The refusals of the passes, in words.
//
// RUN: normforge-opt --split-input-file --verify-diagnostics --nf-form-tasks --nf-vectorize-steps --nf-bind-call %s -o /dev/null

// expected-error @below {{a stage has no nf.tile_loop}}
func.func @no_tile() attributes {nf.loops = affine_map<() -> (16)>} {
  return
}

// -----

// expected-error @below {{an array has no nf.shape or nf.strides}}
func.func @no_shape(%x: tensor<16xf32> {nf.argument = 0 : i64})
    attributes {nf.loops = affine_map<() -> (16)>, nf.kept = array<i1: false>,
      nf.chunks = array<i64: 0>, nf.tile_loop = -1 : i64, nf.tile = 1 : i64, nf.unroll = 1 : i64, nf.prefetch = 0 : i64, nf.rows = 0 : i64,
      nf.vector = 4 : i64, nf.masked_tails = true, nf.masked_loads = true} {
  return
}

// -----

func.func @of_nothing()
    attributes {nf.loops = affine_map<() -> (16)>, nf.kept = array<i1: false>,
      nf.chunks = array<i64: 0>, nf.tile_loop = -1 : i64, nf.tile = 1 : i64, nf.unroll = 1 : i64, nf.prefetch = 0 : i64, nf.rows = 0 : i64,
      nf.vector = 4 : i64, nf.masked_tails = true, nf.masked_loads = true} {
  %empty = tensor.empty() : tensor<16xf32>
  // expected-error @below {{an operand is neither in memory nor made by a step}}
  %y = linalg.generic {indexing_maps = [affine_map<(d0) -> (d0)>, affine_map<(d0) -> (d0)>],
      iterator_types = ["parallel"]} ins(%empty : tensor<16xf32>) outs(%empty : tensor<16xf32>)
      attrs = {nf.domain = affine_map<(d0) -> (d0)>} {
  ^bb0(%in: f32, %out: f32):
    linalg.yield %in : f32
  } -> tensor<16xf32>
  return
}

// -----

func.func @not_stored(%x: tensor<16xf32> {nf.argument = 0 : i64,
      nf.shape = affine_map<() -> (16)>, nf.strides = affine_map<() -> (1)>})
    attributes {nf.loops = affine_map<() -> (16)>, nf.kept = array<i1: false>,
      nf.chunks = array<i64: 0>, nf.tile_loop = -1 : i64, nf.tile = 1 : i64, nf.unroll = 1 : i64, nf.prefetch = 0 : i64, nf.rows = 0 : i64,
      nf.vector = 4 : i64, nf.masked_tails = true, nf.masked_loads = true} {
  %empty = tensor.empty() : tensor<16xf32>
  // expected-error @below {{each result of an elementwise step is stored, once}}
  %y = linalg.generic {indexing_maps = [affine_map<(d0) -> (d0)>, affine_map<(d0) -> (d0)>],
      iterator_types = ["parallel"]} ins(%x : tensor<16xf32>) outs(%empty : tensor<16xf32>)
      attrs = {nf.domain = affine_map<(d0) -> (d0)>} {
  ^bb0(%in: f32, %out: f32):
    linalg.yield %in : f32
  } -> tensor<16xf32>
  return
}

// -----

// A step that reads another's elements, which are not kept.
func.func @elements_read(%x: tensor<16xf32> {nf.argument = 0 : i64,
      nf.shape = affine_map<() -> (16)>, nf.strides = affine_map<() -> (1)>})
    -> (tensor<16xf32> {nf.argument = 1 : i64, nf.shape = affine_map<() -> (16)>,
        nf.strides = affine_map<() -> (1)>})
    attributes {nf.loops = affine_map<() -> (16)>, nf.kept = array<i1: false>,
      nf.chunks = array<i64: 0>, nf.tile_loop = -1 : i64, nf.tile = 1 : i64, nf.unroll = 1 : i64, nf.prefetch = 0 : i64, nf.rows = 0 : i64,
      nf.vector = 4 : i64, nf.masked_tails = true, nf.masked_loads = true} {
  %empty = tensor.empty() : tensor<16xf32>
  // expected-error @below {{the result of an elementwise step is not stored}}
  %y = linalg.generic {indexing_maps = [affine_map<(d0) -> (d0)>, affine_map<(d0) -> (d0)>],
      iterator_types = ["parallel"]} ins(%x : tensor<16xf32>) outs(%empty : tensor<16xf32>)
      attrs = {nf.domain = affine_map<(d0) -> (d0)>} {
  ^bb0(%in: f32, %out: f32):
    linalg.yield %in : f32
  } -> tensor<16xf32>
  %z = linalg.generic {indexing_maps = [affine_map<(d0) -> (d0)>, affine_map<(d0) -> (d0)>],
      iterator_types = ["parallel"]} ins(%y : tensor<16xf32>) outs(%empty : tensor<16xf32>)
      attrs = {nf.domain = affine_map<(d0) -> (d0)>} {
  ^bb0(%in: f32, %out: f32):
    linalg.yield %in : f32
  } -> tensor<16xf32>
  return %z : tensor<16xf32>
}

// -----

func.func @no_sum(%x: tensor<16x64xf32> {nf.argument = 0 : i64,
    nf.shape = affine_map<() -> (16, 64)>, nf.strides = affine_map<() -> (64, 1)>})
    -> (tensor<16xf32> {nf.argument = 1 : i64, nf.shape = affine_map<() -> (16)>,
        nf.strides = affine_map<() -> (1)>})
    attributes {nf.loops = affine_map<() -> (16, 64)>, nf.kept = array<i1: true, false>,
      nf.chunks = array<i64: 8, 0>, nf.tile_loop = 0 : i64, nf.tile = 4 : i64, nf.unroll = 1 : i64, nf.prefetch = 0 : i64, nf.rows = 0 : i64,
      nf.vector = 16 : i64, nf.masked_tails = true, nf.masked_loads = true} {
  %zero = arith.constant 0.0 : f32
  %empty = tensor.empty() : tensor<16xf32>
  %fill = linalg.fill ins(%zero : f32) outs(%empty : tensor<16xf32>) -> tensor<16xf32>
  // expected-error @below {{a reduction's result is no sum or maximum of its accumulator}}
  %product = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>,
      affine_map<(d0, d1) -> (d0)>], iterator_types = ["parallel", "reduction"]}
      ins(%x : tensor<16x64xf32>) outs(%fill : tensor<16xf32>)
      attrs = {nf.domain = affine_map<(d0, d1) -> (d0, d1)>} {
  ^bb0(%in: f32, %out: f32):
    %s = arith.mulf %in, %out : f32
    linalg.yield %s : f32
  } -> tensor<16xf32>
  return %product : tensor<16xf32>
}

// -----

func.func @from_one(%x: tensor<16x64xf32> {nf.argument = 0 : i64,
    nf.shape = affine_map<() -> (16, 64)>, nf.strides = affine_map<() -> (64, 1)>})
    -> (tensor<16xf32> {nf.argument = 1 : i64, nf.shape = affine_map<() -> (16)>,
        nf.strides = affine_map<() -> (1)>})
    attributes {nf.loops = affine_map<() -> (16, 64)>, nf.kept = array<i1: true, false>,
      nf.chunks = array<i64: 8, 0>, nf.tile_loop = 0 : i64, nf.tile = 4 : i64, nf.unroll = 1 : i64, nf.prefetch = 0 : i64, nf.rows = 0 : i64,
      nf.vector = 16 : i64, nf.masked_tails = true, nf.masked_loads = true} {
  %one = arith.constant 1.0 : f32
  %empty = tensor.empty() : tensor<16xf32>
  %fill = linalg.fill ins(%one : f32) outs(%empty : tensor<16xf32>) -> tensor<16xf32>
  // expected-error @below {{a sum starts at zero}}
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

func.func @maximum_from_zero(%x: tensor<16x64xf32> {nf.argument = 0 : i64,
    nf.shape = affine_map<() -> (16, 64)>, nf.strides = affine_map<() -> (64, 1)>})
    -> (tensor<16xf32> {nf.argument = 1 : i64, nf.shape = affine_map<() -> (16)>,
        nf.strides = affine_map<() -> (1)>})
    attributes {nf.loops = affine_map<() -> (16, 64)>, nf.kept = array<i1: true, false>,
      nf.chunks = array<i64: 8, 0>, nf.tile_loop = 0 : i64, nf.tile = 4 : i64, nf.unroll = 1 : i64, nf.prefetch = 0 : i64, nf.rows = 0 : i64,
      nf.vector = 16 : i64, nf.masked_tails = true, nf.masked_loads = true} {
  %zero = arith.constant 0.0 : f32
  %empty = tensor.empty() : tensor<16xf32>
  %fill = linalg.fill ins(%zero : f32) outs(%empty : tensor<16xf32>) -> tensor<16xf32>
  // expected-error @below {{a maximum starts at -inf}}
  %most = linalg.generic {indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>,
      affine_map<(d0, d1) -> (d0)>], iterator_types = ["parallel", "reduction"]}
      ins(%x : tensor<16x64xf32>) outs(%fill : tensor<16xf32>)
      attrs = {nf.domain = affine_map<(d0, d1) -> (d0, d1)>} {
  ^bb0(%in: f32, %out: f32):
    %s = arith.maximumf %in, %out : f32
    linalg.yield %s : f32
  } -> tensor<16xf32>
  return %most : tensor<16xf32>
}

// -----

// expected-error @below {{argument 0 has no place in nf_call}}
func.func @no_place(%x: memref<f32>) {
  %y = memref.load %x[] : memref<f32>
  memref.store %y, %x[] : memref<f32>
  return
}
