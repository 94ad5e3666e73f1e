#!/usr/bin/env bash
# Everything that takes too long for each change, one step after the other:
#   nightly.sh [HOURS]        4 hours by default; a fraction such as 0.5 is right, too
# The output of a step is in build/nightly/STEP.log. Prints a line a step, then how many passed;
# exit status 1 where one failed.
#
# Fuzzing takes half of the hours, the same for each target, and differential testing a quarter. The
# test suite with all cases of which ./dev test draws a third, every spec on three CPUs (half an
# hour), more random specs (some five minutes) and the sanitizers take what they take.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

hours=${1:-4}
[[ $# -le 1 && $hours =~ ^[0-9]*\.?[0-9]+$ ]] || {
  echo "usage: tests/nightly.sh [HOURS]" >&2
  exit 2
}
part() { awk -v hours="$hours" -v of="$1" 'BEGIN { printf "%d", hours * 3600 / of + 1 }'; }

build=$PWD/build logs=$PWD/build/nightly
mkdir -p "$logs"
rm -f "$logs"/*.log
passed=0 failed=0 skipped=0
skip=77 # a step's exit status where it cannot run here

# Runs a step: its name, then a command.
step() {
  local name=$1 log=$logs/${1//\//-}.log begin=$SECONDS status=0 result
  shift
  "$@" >"$log" 2>&1 </dev/null || status=$?
  case $status in
  0) result=ok passed=$((passed + 1)) ;;
  "$skip") result="SKIP $(sed -n 's/^SKIP: *//p' "$log" | head -1)" skipped=$((skipped + 1)) ;;
  *) result="FAILED, see $log" failed=$((failed + 1)) ;;
  esac
  printf '%-24s %6d s  %s\n' "$name" $((SECONDS - begin)) "$result"
  return $((status != 0 && status != skip))
}

# The suite without what has a step of its own below. Installs what is missing, and builds.
suite() { NORMFORGE_TEST_ALL=1 ./dev test -LE fuzz -E '^numerics/RandomSpecsTest$'; }

# Every spec, at two batch sizes and on one thread and two.
specs() {
  local cpu
  for cpu in native haswell x86-64-v2; do
    "$build/bin/normforge" check specs --cpu "$cpu" --size N=2 --size T=5 --threads 2 || return 1
    "$build/bin/normforge" check specs --cpu "$cpu" --size N=7 --size T=3 --threads 1 || return 1
  done
}

# Twenty times as many specs as ctest draws, which its limit of 300 s would end.
random_specs() {
  OMP_WAIT_POLICY=passive NORMFORGE_VERIFY=1 NORMFORGE_TEST_COUNT=3000 \
    NORMFORGE_CACHE_DIR=$build/test-cache "$build/bin/test_numerics" \
    '--source-file=*/numerics/RandomSpecsTest.cpp'
}

# One target of fuzz/run.sh, whose table has them all: what joins it is run here, too. The corpus
# stays from night to night.
fuzz() {
  tests/fuzz/run.sh . "$build/nightly/fuzz" "$2" "$build/bin/normforge" "$1" || return 1
  ! grep -q '^SKIP' "$logs/fuzz-$1.log" || return "$skip"
}

differential() {
  [ -x "$build/bin/normforge_differential" ] || {
    echo "SKIP: $build/bin/normforge_differential is not built"
    return "$skip"
  }
  local seed=$((RANDOM * 32768 + RANDOM))
  echo "seed $seed"
  NORMFORGE_CACHE_DIR=$build/test-cache "$build/bin/normforge_differential" --seconds "$1" \
    --seed "$seed"
}

sanitize() {
  ./dev help | grep -q '^ *sanitize' || {
    echo "SKIP: ./dev has no command sanitize"
    return "$skip"
  }
  ./dev sanitize all
}

step suite suite
step specs specs
step random-specs random_specs
mapfile -t targets < <(tests/fuzz/run.sh --list)
for target in "${targets[@]}"; do
  step "fuzz/$target" fuzz "$target" "$(part $((2 * ${#targets[@]})))"
done
step differential differential "$(part 4)"
step sanitize sanitize

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
