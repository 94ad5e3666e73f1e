#!/usr/bin/env bash
# Builds the fuzzer of the runtime's files and runs it:
#   run.sh SOURCE FOLDER SECONDS [COMMAND]
# Starts from the corpus that is kept beside this script, and from kernels that COMMAND (normforge)
# makes. What it finds to crash is left in FOLDER.
set -euo pipefail
source=$1 folder=$2 seconds=$3 command=${4:-}
compiler=$(command -v clang++-22 || command -v clang++) || {
  echo "SKIP: clang (Debian's clang-22) is not installed"
  exit 0
}
mkdir -p "$folder/objects" "$folder/corpus"
echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char *, unsigned long) { return 0; }' |
  "$compiler" -x c++ - -fsanitize=fuzzer,address,undefined -o "$folder/probe" 2>/dev/null || {
  echo "SKIP: clang's libFuzzer (Debian's libclang-rt-22-dev) is not installed"
  exit 0
}
flags=(-std=c++20 -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
  -I"$source" -I"$source/include")
launcher=$(command -v ccache || true)
sources=(runtime/artifact/Artifact.cpp runtime/artifact/SizeExpr.cpp runtime/cache/DiskCache.cpp
  runtime/cpu_info/CpuInfo.cpp runtime/kernel/Kernel.cpp runtime/kernel/Plan.cpp
  runtime/loader/DebuggerInterface.cpp runtime/loader/LoadedImage.cpp runtime/pack/Pack.cpp
  tests/fuzz/FilesFuzz.cpp)
objects=()
for file in "${sources[@]}"; do
  object=$folder/objects/$(basename "$file" .cpp).o
  $launcher "$compiler" "${flags[@]}" -c "$source/$file" -o "$object"
  objects+=("$object")
done
"$compiler" -fsanitize=fuzzer,address,undefined "${objects[@]}" -o "$folder/fuzzer"
if [ -n "$command" ]; then
  "$command" pack "$source/examples/ahead.yaml" --cpu x86-64-v2,neoverse-n1 -o "$folder/seed.nfk"
  { printf '\003'; cat "$folder/seed.nfk"; } >"$folder/corpus/pack"
fi
seed=$RANDOM
echo "seed $seed; repeat a crash with $folder/fuzzer FILE"
cd "$folder"
./fuzzer -max_total_time="$seconds" -seed="$seed" -max_len=65536 -timeout=10 -rss_limit_mb=2048 \
  -print_final_stats=1 corpus "$source/tests/fuzz/corpus" 2>log || {
  tail -40 log
  exit 1
}
grep -E '^Done|stat::number_of_executed_units' log
