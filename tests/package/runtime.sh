#!/usr/bin/env bash
# The runtime alone, as a project without LLVM builds it, with each compiler that is here, all warnings
# being errors; it loads a pack and runs its kernels.
#   runtime.sh SOURCE FOLDER PACK
set -euo pipefail
source=$1 folder=$2 pack=$3
for compilers in "gcc g++" "clang-22 clang++-22"; do
  read -r c cxx <<<"$compilers"
  command -v "$cxx" >/dev/null || {
    echo "SKIP: $cxx is not installed"
    continue
  }
  build=$folder/$cxx
  options=(-DNORMFORGE_COMPILER=OFF -DNORMFORGE_WERROR=ON -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_C_COMPILER="$c" -DCMAKE_CXX_COMPILER="$cxx")
  ! command -v ccache >/dev/null ||
    options+=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  mkdir -p "$build"
  cmake -S "$source" -B "$build" -G Ninja "${options[@]}" >"$build/log" 2>&1 ||
    { cat "$build/log"; exit 1; }
  ninja -C "$build" >"$build/log" 2>&1 || { cat "$build/log"; exit 1; }
  needed=$(readelf -d "$build/lib/libnormforge.so")
  ! grep -E 'NEEDED.*(LLVM|MLIR)' <<<"$needed" || {
    echo "the runtime needs LLVM" >&2
    exit 1
  }
  [ ! -e "$build/lib/libnormforge-compiler.so" ]
  echo "-- $cxx"
  # No compiler anywhere: not the one of the build around this.
  NORMFORGE_CACHE_DIR='' "$build/bin/example_network" "$pack"
done
