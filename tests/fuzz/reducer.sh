#!/usr/bin/env bash
# Faults that are made on purpose are found, reduced to what they need, and repeated:
#   reducer.sh NORMFORGE_DIFFERENTIAL FOLDER
set -uo pipefail
differential=$1 folder=$2
rm -rf "$folder"
mkdir -p "$folder"
cd "$folder" || exit 1

fail() {
  echo "reducer.sh: $*" >&2
  tail -60 log >&2
  exit 1
}

# find KIND FAULT: a fault is found and its command repeats it. Sets `spec`, the smallest one.
find_fault() {
  local kind=$1 fault=$2 status command
  echo "-- $kind"
  # Two CPUs: enough to see that one is left, and quick while nothing is found.
  "$differential" --inject "$kind" --failures 1 --specs 500 --cpus native,x86-64-v2 >log 2>&1
  status=$?
  if grep -q '^SKIP: this machine can run kernels for none' log; then cat log; exit 0; fi
  [ $status = 1 ] || fail "$kind: status $status, expected 1"
  tail -1 log | grep -qE '^[0-9]+ specs, [0-9]+ kernel runs, 1 failures in [0-9.]+ s, seed [0-9]+$' ||
    fail "$kind: no summary in the last line"
  command=$(sed -n 's/^repeat: //p' log)
  [ -n "$command" ] || fail "$kind: no command that repeats it"
  spec=$(sed -n 's/.* --yaml \([^ ]*\) .*/\1/p' <<<"$command")
  cat "$spec"
  eval "$command" >repeated 2>&1
  status=$?
  [ $status = 1 ] && grep -q "^$spec: $fault" repeated ||
    fail "$kind: status $status, expected '$fault' and 1: $command: $(cat repeated)"
  # Without the injection it is a spec like any other.
  eval "${command/--inject $kind/}" >repeated 2>&1 || fail "$kind: $(cat repeated)"
}

# has PATTERN, has_not PATTERN: of a line of the smallest spec.
has() { grep -qE "$1" "$spec" || fail "the smallest spec has no '$1'"; }
has_not() { ! grep -qE "$1" "$spec" || fail "the smallest spec has '$1'"; }
has_only_input() { # sizes of 1, and defaults for all that can be left out
  has "shape: \[1(, 1)*\]"
  has 'phases: \[(inference|training)\]'
  has_not '^(center|scale|epsilon|momentum|running_variance|fuse):'
}

find_fault blocked-f64 'wrong result'
has 'layout: [a-z]*[A-Z][a-z]*2[a-z], dtype: f64'
has 'shape: \[1(, 1)?\]'
has_only_input

find_fault crash 'crash'
has 'shape: \[1, 1, 1, 1, 1\], layout: [a-z]{5}, dtype: f32'
has_only_input
grep -q 'signal 11' log || fail "the signal is not named"

find_fault split-relu 'bits differ'
has 'shape: \[(1, )?5\], layout: [a-z]{1,2}, dtype: f32'
has '^fuse: \[relu\]$'
sed -i -e '/^fuse/d' -e 's/5\]/1]/' "$spec"
has_only_input
