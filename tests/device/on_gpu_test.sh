#!/usr/bin/env bash
# on_gpu.sh with the emulated driver:   on_gpu_test.sh GPU_CASES GPU_RUN DIR
set -euo pipefail
make=$1 run=$2 folder=$3
rm -rf "$folder"
"$make" "$folder" --few
cp "$run" "$(dirname "$0")/on_gpu.sh" "$folder"
"$folder/on_gpu.sh" "$folder" | tee "$folder/table"
fail() { echo "on_gpu_test: $*" >&2; exit 1; }
grep -q " right, 0 wrong, 0 skipped" "$folder/table" || fail "not all cases are right"
grep -q "^right sample .*: rows are as the first" "$folder/table" || fail "no long array"
[ "$(grep -c "of a copy | warm" "$folder/table")" = 2 ] || fail "not all kernels are timed"
# A wrong byte among those expected is found.
size=$(stat -c %s "$folder/data")
printf '\x55' | dd of="$folder/data" bs=1 seek=$((size - 2)) conv=notrunc status=none
if "$folder/on_gpu.sh" "$folder" check >"$folder/table"; then fail "a wrong byte is not found"; fi
grep -q "^WRONG " "$folder/table" || fail "a wrong byte is not told of"
