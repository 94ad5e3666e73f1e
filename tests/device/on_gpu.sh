#!/usr/bin/env bash
# All that is to be seen on a GPU, of a folder made elsewhere:   on_gpu.sh DIR [check|bench]
#
# DIR is made by the build:   build/bin/gpu_cases DIR && cp build/bin/gpu_run tests/device/on_gpu.sh DIR
# The folder is under 64 MiB; the machine needs a driver, and neither a compiler, LLVM nor a toolkit.
# With compute-sanitizer on it, its four tools go through the cases, too.
set -uo pipefail
folder=${1:?usage: on_gpu.sh DIR [check|bench]}
what=${2:-}
status=0
run() { "$folder/gpu_run" "$folder" "$@" || status=1; }
if [ "$what" != bench ]; then
  run check
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck initcheck; do
      log=$(mktemp)
      if compute-sanitizer --tool "$tool" --error-exitcode 9 "$folder/gpu_run" "$folder" check >"$log" 2>&1; then
        echo "compute-sanitizer $tool: nothing found"
      else
        echo "compute-sanitizer $tool:"
        tail -n 20 "$log"
        status=1
      fi
      rm -f "$log"
    done
  else
    echo "SKIP: compute-sanitizer is not there"
  fi
fi
# Times of the driver's compiler, not of its cache.
[ "$what" = check ] || CUDA_CACHE_DISABLE=1 run bench
exit "$status"
