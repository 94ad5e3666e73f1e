#!/usr/bin/env bash
# The runtime under ThreadSanitizer, with a compiler library that makes kernels of one instruction:
#   threads.sh SOURCE FOLDER PACK SECONDS [THREADS]
set -euo pipefail
source=$1 folder=$2 pack=$3 seconds=$4 threads=${5:-16}
compiler=$(command -v clang++-22 || command -v g++)
flags=(-std=c++20 -O1 -g -fPIC -fsanitize=thread -I"$source" -I"$source/include")
launcher=$(command -v ccache || true)
mkdir -p "$folder"
echo 'int main() {}' | "$compiler" -x c++ - -fsanitize=thread -o "$folder/probe" 2>/dev/null || {
  echo "SKIP: ThreadSanitizer (Debian's libclang-rt-22-dev, or g++'s) is not installed"
  exit 0
}
"$folder/probe" 2>/dev/null || {
  echo "SKIP: ThreadSanitizer does not run on this machine"
  exit 0
}
runtime=()
for file in "$source"/runtime/*/*.cpp; do
  case $file in */process/main.cpp | */measure/* | */onnxruntime/*) continue ;; esac # programs, and what they alone link
  object=$folder/$(basename "$(dirname "$file")")-$(basename "$file" .cpp).o
  $launcher "$compiler" "${flags[@]}" -c "$file" -o "$object"
  runtime+=("$object")
done
link=(-fsanitize=thread "${runtime[@]}" -ldl -lpthread)
for program in tests/sanitize/Threads tests/unit/FakeCompiler runtime/process/main; do
  $launcher "$compiler" "${flags[@]}" -c "$source/$program.cpp" -o "$folder/$(basename $program).o"
done
"$compiler" "$folder/Threads.o" "${link[@]}" -o "$folder/threads"
"$compiler" "$folder/main.o" "${link[@]}" -o "$folder/normforge-compile"
"$compiler" -shared "$folder/FakeCompiler.o" "${link[@]}" -o "$folder/compiler.so"
seed=$RANDOM$RANDOM
TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 \
  "$folder/threads" "$folder/compiler.so" "$pack" "$seconds" "$threads" "$seed"
