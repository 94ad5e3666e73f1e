// Sums across the threads of a GPU's group: lanes first, then threads of a subgroup, then
// subgroups.
//
//   rows: thread i has a part of each row           columns: thread i has a part of column i modulo
//   T
//
//   subgroup 0   a b c d                            T = 2     a b   <- row 0
//   subgroup 1   e f g h                                      c d   <- row 1
//   a+b+c+d in each thread of subgroup 0            a+c b+d a+c b+d in subgroup 0
//   shared memory: a+b+c+d, e+f+g+h                 shared memory: a+c, b+d, e+g, f+h
//
// Within a subgroup by exchanges, a tree in which each pair adds the same two values; then one
// thread of each subgroup writes what it has to shared memory, and all read what they have a part
// in. A fixed order, and the same bits in every thread.
//
// Rules that a change must keep: every thread of a group comes to every exchange and barrier; a
// sum's memory is its own, and is written again only after a barrier.
#include "compiler/passes/StepEmitter.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"

namespace normforge::tile {

Value StepEmitter::exchanged(Value value, int64_t distance, int64_t width) {
  return gpu::ShuffleOp::create(b_, loc_, value, i32(static_cast<int32_t>(distance)),
                                i32(static_cast<int32_t>(width)), gpu::ShuffleMode::XOR)
      .getShuffleResult();
}

void StepEmitter::awaitThreads() {
  if (knobs_.threads * knobs_.down > 1) // none on a CPU
    gpu::BarrierOp::create(b_, loc_);
}

Value StepEmitter::sharedMemory(int64_t count, Type type) {
  Operation *parent = b_.getInsertionBlock()->getParentOp();
  if (isa<scf::ForOp>(parent) || parent->getParentOfType<scf::ForOp>())
    awaitThreads();
  const auto space = gpu::AddressSpaceAttr::get(b_.getContext(), gpu::AddressSpace::Workgroup);
  const int64_t bytes = type.getIntOrFloatBitWidth() / 8;
  const int64_t first = llvm::alignTo(shared_.bytes, bytes);
  shared_.bytes = first + count * bytes;
  Value all = gpu::DynamicSharedMemoryOp::create(
      b_, loc_,
      MemRefType::get({ShapedType::kDynamic}, b_.getI8Type(), MemRefLayoutAttrInterface(), space));
  return memref::ViewOp::create(b_, loc_,
                                MemRefType::get({count}, type, MemRefLayoutAttrInterface(), space),
                                all, constant(first), ValueRange());
}

void StepEmitter::combineAcross(MutableArrayRef<Value> sums, int64_t apart) {
  const int64_t group = knobs_.threads * knobs_.down, subgroup = knobs_.subgroup;
  for (int64_t distance = apart; distance < std::min(group, subgroup); distance *= 2)
    for (Value &sum : sums)
      sum = combine(sum, exchanged(sum, distance, std::min(group, subgroup)));
  if (group <= subgroup)
    return;
  // Each run of so many threads has `apart` numbers of its own now.
  const int64_t run = std::max(subgroup, apart), runs = group / run, numbers = runs * apart;
  auto of = [&](Value thread, int64_t modulus) -> Value {
    return modulus == group ? thread
                            : Value(arith::RemUIOp::create(b_, loc_, thread, constant(modulus)));
  };
  const auto count = static_cast<int64_t>(sums.size());
  const Type type = sums.front().getType();
  Value memory = sharedMemory(numbers * count, type);
  Value own = of(knobs_.thread, run);
  Value at = arith::DivUIOp::create(b_, loc_, knobs_.thread, constant(run));
  at = arith::MulIOp::create(b_, loc_, at, constant(apart));
  at = arith::AddIOp::create(b_, loc_, at, own);
  {
    OpBuilder::InsertionGuard guard(b_);
    if (apart < run) {
      Value writes =
          arith::CmpIOp::create(b_, loc_, arith::CmpIPredicate::ult, own, constant(apart));
      b_.setInsertionPointToStart(scf::IfOp::create(b_, loc_, writes, false).thenBlock());
    }
    for (int64_t i = 0; i < count; ++i)
      memref::StoreOp::create(b_, loc_, sums[static_cast<size_t>(i)], memory,
                              indexValue(add(OpFoldResult(at), i * numbers)));
  }
  awaitThreads();
  // A subgroup has so many readers of each number: each takes every so many of the runs.
  const int64_t readers = std::min(run / apart, runs);
  Value first = of(knobs_.thread, apart * readers);
  for (int64_t i = 0; i < count; ++i) {
    Value &sum = sums[static_cast<size_t>(i)];
    for (int64_t r = 0; r < runs; r += readers) {
      Value part = memref::LoadOp::create(
          b_, loc_, memory, indexValue(add(OpFoldResult(first), i * numbers + r * apart)));
      sum = r == 0 ? part : combine(sum, part);
    }
    for (int64_t distance = apart; distance < apart * readers; distance *= 2)
      sum = combine(sum, exchanged(sum, distance, subgroup));
  }
}

void StepEmitter::combineThreads(MutableArrayRef<Value> sums) {
  if (!isShared() || (context_.columns && !isDown()))
    return;
  SmallVector<Value> numbers;
  for (Value sum : sums) {
    auto type = dyn_cast<VectorType>(sum.getType());
    if (!type)
      numbers.push_back(sum);
    for (int64_t i = 0; type && i < type.getNumElements(); ++i)
      numbers.push_back(vector::ExtractOp::create(b_, loc_, sum, ArrayRef<int64_t>{i}));
  }
  // Numbers of one type are together: those that shared memory has at once.
  for (size_t begin = 0, end = 0; begin < numbers.size(); begin = end) {
    while (end < numbers.size() && numbers[end].getType() == numbers[begin].getType())
      ++end;
    combineAcross(MutableArrayRef(numbers).slice(begin, end - begin),
                  context_.columns ? knobs_.threads : 1);
  }
  size_t next = 0;
  for (Value &sum : sums) {
    auto type = dyn_cast<VectorType>(sum.getType());
    if (!type) {
      sum = numbers[next++];
      continue;
    }
    const auto count = static_cast<size_t>(type.getNumElements());
    sum = vector::FromElementsOp::create(b_, loc_, type, ArrayRef(numbers).slice(next, count));
    next += count;
  }
}

} // namespace normforge::tile
