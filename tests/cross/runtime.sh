#!/usr/bin/env bash
# The runtime, built for aarch64 without LLVM, loads a pack and runs its kernels under emulation:
#   runtime.sh SOURCE FOLDER PACK NORMFORGE
set -euo pipefail
source=$1 folder=$2 pack=$3 normforge=$4
for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
  command -v $tool >/dev/null || {
    echo "SKIP: $tool is not installed (Debian has it in g++-aarch64-linux-gnu, qemu-user)"
    exit 0
  }
done
options=(-DNORMFORGE_COMPILER=OFF -DCMAKE_BUILD_TYPE=Release
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
  -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++)
! command -v ccache >/dev/null ||
  options+=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
mkdir -p "$folder"
cmake -S "$source" -B "$folder" -G Ninja "${options[@]}" >"$folder/log" 2>&1 ||
  { cat "$folder/log"; exit 1; }
ninja -C "$folder" >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
for cpu in neoverse-n1 max; do
  echo "-- $cpu"
  NORMFORGE_CACHE_DIR='' qemu-aarch64 -cpu $cpu -L /usr/aarch64-linux-gnu \
    "$folder/bin/example_network" "$pack"
done
# Kernels of f32 for a CPU with arithmetic in half precision run on one without.
NORMFORGE_CACHE_DIR='' qemu-aarch64 -cpu cortex-a53 -L /usr/aarch64-linux-gnu \
  "$folder/bin/example_network" "$pack"

# SVE of 384 bits: kernels are right for powers of two alone. Nothing loads there, in words; a library
# takes its NEON kernels.
emulate() { qemu-aarch64 -cpu "$1" -L /usr/aarch64-linux-gnu "${@:2}"; }
cat >"$folder/sve.yaml" <<'YAML'
name: sve
input: {shape: [N, 12, 7, 9], layout: nchw, dtype: f32}
axis: c
phases: [training]
YAML
"$normforge" pack "$folder/sve.yaml" --cpu neoverse-v1 -o "$folder/sve.nfk"
"$normforge" pack "$folder/sve.yaml" --cpu neoverse-n1,neoverse-v1 -o "$folder/both.nfk"
aarch64-linux-gnu-g++ -std=c++20 -I"$source/include" "$source/tests/faults/Prober.cpp" \
  -L"$folder/lib" -lnormforge -Wl,-rpath,"$folder/lib" -o "$folder/prober"
odd=max,sve384=on even=max,sve256=on,sve384=off
[ "$(emulate $even "$folder/prober" pack "$folder/sve.nfk")" = "0 ok" ]
[ "$(emulate $odd "$folder/prober" pack "$folder/both.nfk")" = "0 ok" ]
said=$(emulate $odd "$folder/prober" pack "$folder/sve.nfk") && exit 1
case $said in
*"sve with vectors of a power of two of bits (they have 384 here)"*) ;;
*) echo "SVE of 384 bits is answered with: $said" >&2; exit 1 ;;
esac
if command -v ld.lld-22 >/dev/null; then
  mkdir -p "$folder/so"
  "$normforge" compile "$folder/sve.yaml" --emit=so,header --cpu neoverse-n1,neoverse-v1 \
    -o "$folder/so/"
  echo '#include "sve.h"
#include <stdio.h>
int main(void) { printf("%d\n", (int)sve_cpu()); return 0; }' >"$folder/so/which.c"
  aarch64-linux-gnu-gcc -std=gnu99 "$folder/so/which.c" "$folder/so/sve.so" -Wl,-rpath,"$folder/so" \
    -o "$folder/so/which"
  [ "$(emulate $even "$folder/so/which") $(emulate $odd "$folder/so/which") $(emulate neoverse-n1 "$folder/so/which")" = "1 0 0" ] || {
    echo "the library chooses wrongly: $(emulate $even "$folder/so/which"), $(emulate $odd "$folder/so/which")" >&2
    exit 1
  }
fi
