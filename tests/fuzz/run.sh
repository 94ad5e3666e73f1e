#!/usr/bin/env bash
# Builds fuzzers and runs them one after the other, each for SECONDS:
#   run.sh SOURCE FOLDER SECONDS [COMMAND [TARGET...]]
#   run.sh --list             the names of all targets
# TARGET is a name of the table below, by default all of them. A target writes FOLDER/TARGET and
# nothing else: its fuzzer, what it found to be worth keeping (corpus), its output (log), and the
# inputs that crash (crash-*, timeout-*, oom-*). It starts from the corpus that is kept beside this
# script, from seeds that are taken from the tree, and from what COMMAND (normforge, or '') makes.
set -euo pipefail

targets=(files spec npy) # one of tuning records joins them when there are tuning records

# Sets the sources and options that a target is made of.
describe() {
  sources=() uses_llvm=false max_len=0
  case $1 in
  files) # kernels, packs and cache entries: the runtime, without LLVM
    sources=(runtime/artifact/Artifact.cpp runtime/artifact/SizeExpr.cpp runtime/cache/DiskCache.cpp
      runtime/cache/FileIdentity.cpp runtime/cache/TrustedDirectory.cpp runtime/cpu_info/CpuInfo.cpp
      runtime/device/Cuda.cpp runtime/device/DeviceCode.cpp runtime/fork/ForkGate.cpp
      runtime/kernel/Enqueue.cpp runtime/kernel/Kernel.cpp runtime/kernel/Plan.cpp
      runtime/loader/DebuggerInterface.cpp runtime/loader/LoadedImage.cpp runtime/pack/Pack.cpp
      tests/fuzz/FilesFuzz.cpp)
    max_len=65536
    ;;
  spec) # a spec file, its operator and its schedules
    sources=(compiler/expr/*.cpp compiler/spec/*.cpp compiler/operator/*.cpp compiler/schedule/*.cpp
      compiler/machine/Machine.cpp runtime/artifact/Artifact.cpp
      runtime/artifact/SizeExpr.cpp runtime/cpu_info/CpuInfo.cpp tests/fuzz/SpecFuzz.cpp)
    uses_llvm=true max_len=4096
    ;;
  npy) # a .npy file
    sources=(compiler/spec/Npy.cpp compiler/spec/Diagnostics.cpp
      compiler/spec/HostArray.cpp runtime/artifact/Artifact.cpp runtime/artifact/SizeExpr.cpp tests/fuzz/NpyFuzz.cpp)
    uses_llvm=true max_len=4096
    ;;
  *)
    echo "run.sh: unknown target '$1'; expected ${targets[*]}" >&2
    exit 2
    ;;
  esac
}

# Writes seeds of a target into ./seeds.
seed_corpus() {
  rm -rf seeds
  mkdir -p corpus seeds
  case $1 in
  files)
    if [ -n "$command" ]; then
      "$command" pack "$source/examples/ahead.yaml" --cpu x86-64-v2,neoverse-n1 -o seed.nfk
      { printf '\003'; cat seed.nfk; } >seeds/pack
    fi
    ;;
  spec)
    local file
    for file in examples/ahead specs/awkward/features_1000 specs/awkward/volume_32x16x28x28 \
      specs/bert_base/layer_norm specs/mobilenet_v2/bn_Conv1 specs/resnet50/conv1_bn; do
      grep -v '^#' "$source/$file.yaml" >"seeds/${file//\//_}"
    done
    # Each of the bad specs, without its message.
    awk '/^===/ { name = "seeds/bad_" ++count; wanted = 1; next } /^--->/ { wanted = 0; close(name) }
      wanted && !/^#/ { print >name }' "$source/tests/errors/bad_specs.txt"
    ;;
  npy)
    # A file, a header whose data are given, and headers whose data are made.
    printf '\0\223NUMPY\1\0\72\0%-57s\n12345678' \
      "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }" >seeds/file
    printf "\1{'descr': '<V2', 'fortran_order': False, 'shape': (1, 3)}\n123456" >seeds/header
    printf "\2{'descr': '<f8', 'fortran_order': False, 'shape': ()}" >seeds/scalar
    printf "\5{'shape': (2L, 3L), 'fortran_order': False, 'descr': '|f2', }" >seeds/python2
    printf "\10{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9), }" >seeds/empty
    ;;
  esac
}

if [ "${1:-}" = --list ]; then
  printf '%s\n' "${targets[@]}"
  exit 0
fi
[ $# -ge 3 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
source=$(realpath "$1")
mkdir -p "$2"
folder=$(realpath "$2") seconds=$3 command=${4:-}
[ -z "$command" ] || command=$(realpath "$command")
shift $(($# < 4 ? $# : 4))
[ $# -eq 0 ] || targets=("$@")
for target in "${targets[@]}"; do describe "$target"; done # unknown ones before anything is built

compiler=$(command -v clang++-22 || command -v clang++) || {
  echo "SKIP: clang (Debian's clang-22) is not installed"
  exit 0
}
llvm=/usr/lib/llvm-22
# Not to be shared: a process of another target may be here at the same time.
probe=$(mktemp)
trap 'rm -f "$probe"' EXIT
echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char *, unsigned long) { return 0; }' |
  "$compiler" -x c++ - -fsanitize=fuzzer,address,undefined -o "$probe" 2>/dev/null || {
  echo "SKIP: clang's libFuzzer (Debian's libclang-rt-22-dev) is not installed"
  exit 0
}
launcher=$(command -v ccache || true)

# Builds ./fuzzer.
build() {
  local flags=(-std=c++20 -O1 -gline-tables-only -fsanitize=fuzzer-no-link,address,undefined
    -fno-sanitize-recover=all -Wno-deprecated-declarations -I"$source" -I"$source/include")
  local libraries=() objects=() file object
  if $uses_llvm; then
    flags+=(-isystem "$llvm/include")
    libraries=(-L"$llvm/lib" -Wl,-rpath,"$llvm/lib" -lLLVM-22 -lfmt)
  fi
  mkdir -p objects
  for file in "${sources[@]}"; do
    for file in "$source"/$file; do # what has a * in it is several
      object=objects/$(basename "$file" .cpp).o
      $launcher "$compiler" "${flags[@]}" -c "$file" -o "$object"
      objects+=("$object")
    done
  done
  "$compiler" -fsanitize=fuzzer,address,undefined "${objects[@]}" "${libraries[@]}" -o fuzzer
}

# Runs ./fuzzer. LLVM's library is built without sanitizers: it does not tell ASan how much of a
# vector or string that it shares with our code is in use.
run() {
  local target=$1 seed=$RANDOM found options=() environment=()
  [ ! -f "$source/tests/fuzz/$target.dict" ] || options+=(-dict="$source/tests/fuzz/$target.dict")
  ! $uses_llvm || environment=(ASAN_OPTIONS=detect_container_overflow=0)
  echo "$target: seed $seed, $seconds s"
  env "${environment[@]}" ./fuzzer -max_total_time="$seconds" -seed="$seed" -max_len="$max_len" \
    -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 "${options[@]}" \
    corpus seeds "$source/tests/fuzz/corpus-$target" 2>log || {
    tail -40 log | cat -v # it may hold what must not reach a terminal
    found=$(sed -n 's/.*Test unit written to \(\.\/\)\{0,1\}//p' log | tail -1)
    echo "$target: FAILED; repeat with:" \
      "${environment[*]:+${environment[*]} }$PWD/fuzzer $PWD/${found:-FILE}"
    return 1
  }
  grep -aE '^Done|stat::number_of_executed_units' log
}

failed=0
for target in "${targets[@]}"; do
  describe "$target"
  if $uses_llvm && [ ! -d "$llvm/include/llvm" ]; then
    echo "SKIP: $target: LLVM's headers (Debian's llvm-22-dev) are not in $llvm"
    continue
  fi
  mkdir -p "$folder/$target"
  cd "$folder/$target"
  build
  seed_corpus "$target"
  run "$target" || failed=1
done
exit "$failed"
