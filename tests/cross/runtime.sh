#!/usr/bin/env bash
# The runtime, built for aarch64 without LLVM, loads a pack and runs its kernels under emulation:
#   runtime.sh SOURCE FOLDER PACK
set -euo pipefail
source=$1 folder=$2 pack=$3
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
# A CPU without what the pack's kernels need is told so.
if qemu-aarch64 -cpu cortex-a53 -L /usr/aarch64-linux-gnu "$folder/bin/example_network" "$pack" \
  >"$folder/log" 2>&1; then
  echo "a kernel for neoverse-n1 was run on a cortex-a53" >&2
  exit 1
fi
grep -q "compiler library cannot be opened" "$folder/log" || { cat "$folder/log"; exit 1; }
