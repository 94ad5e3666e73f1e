#!/usr/bin/env bash
# A sweep for a machine without a compiler: exported, run, brought back.
#
#   export.sh SOURCE COMMAND RUNNER FOLDER
#
# Here, with the runtime's own program; and for aarch64 under emulation, whose times are marked and never
# used (SKIP without the cross compiler and QEMU).
set -euo pipefail

source=$1 command=$2 runner=$3 folder=$4
fail() { echo "export.sh: $*" >&2; exit 1; }

rm -rf "$folder/work"
mkdir -p "$folder/work"
cd "$folder/work"
cat >bn.yaml <<'Y'
name: bn
input: {shape: [N, 20, 9, 9], layout: nchw}
axis: c
phases: [inference, training, backward]
fuse: [add, relu]
Y
cat >half.yaml <<'Y'
name: half
input: {shape: [33, 40], layout: nc, dtype: bf16}
mode: layer
phases: [training]
Y
export_for() { # the file, then arguments
  "$command" tune export bn.yaml half.yaml --size N=7 --threads 2 --candidates 6 --seed 5 -o "$@" >export.txt
  grep -q "^4 cases for " export.txt || fail "$(cat export.txt)"
}
count() { grep -c "$1" "$2" || true; }

export_for native.nfs
"$runner" native.nfs -o run.jsonl >run.txt || fail "$(cat run.txt)"
[ "$(count '"record":"measured"' run.jsonl)" = 4 ] || fail "$(cat run.txt run.jsonl)"
[ "$(count '"state":"wrong"' run.jsonl)" = 0 ] || fail "$(grep wrong run.jsonl)"
[ "$(count '"record":"candidate"' run.jsonl)" -ge 8 ] || fail "too few candidates: $(cat run.jsonl)"
# Cases that are there are not run again.
cp run.jsonl before.jsonl
"$runner" native.nfs -o run.jsonl >again.txt
cmp run.jsonl before.jsonl || fail "it ran again"
[ "$(count ', were there' again.txt)" = 4 ] || fail "$(cat again.txt)"
# A line that was being written, and a case that was at work.
head -3 before.jsonl >run.jsonl
printf '{"case":"12' >>run.jsonl
"$runner" native.nfs -o run.jsonl >again.txt
[ "$(count '"record":"measured"' run.jsonl)" = 4 ] || fail "it did not go on: $(cat run.jsonl)"
"$command" tune import run.jsonl -o all.jsonl >import.txt 2>warnings.txt
grep -q "run.jsonl:4: warning: left out: no JSON" warnings.txt || fail "$(cat warnings.txt)"
[ "$(count '"record":"result"' all.jsonl)" = 4 ] || fail "$(cat import.txt)"
"$command" tune import before.jsonl -o once.jsonl >/dev/null
"$command" tune import before.jsonl -o once.jsonl >import.txt
grep -q "^0 records added" import.txt || fail "$(cat import.txt)"
"$command" tune show all.jsonl >show.txt
grep -q "4 cases, 4 of them of this machine and version" show.txt || fail "$(cat show.txt)"
"$command" check bn.yaml half.yaml --size N=7 --tuned all.jsonl >check.txt || fail "$(cat check.txt)"

# Bytes that are no sweep.
head -c 1000 native.nfs >short.nfs
{ head -c 5000 native.nfs; printf 'x'; tail -c +5002 native.nfs; } >changed.nfs
for bad in short changed; do
  if "$runner" $bad.nfs -o bad.jsonl 2>bad.txt; then fail "$bad.nfs was run"; fi
  grep -q "$bad.nfs: sweep is damaged: its checksum differs" bad.txt || fail "$(cat bad.txt)"
done
if "$runner" bn.yaml -o bad.jsonl 2>bad.txt; then fail "a spec was run"; fi
grep -q "expected a sweep" bad.txt || fail "$(cat bad.txt)"
[ ! -e bad.jsonl ] || fail "a bad sweep left a file"
echo "native: 4 cases"

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
cmake -S "$source" -B "$folder/aarch64" -G Ninja "${options[@]}" >log 2>&1 || fail "$(cat log)"
ninja -C "$folder/aarch64" bin/normforge-tune-run >log 2>&1 || fail "$(cat log)"
export_for arm.nfs --cpu neoverse-n1
qemu-aarch64 -cpu neoverse-n1 -L /usr/aarch64-linux-gnu "$folder/aarch64/bin/normforge-tune-run" \
  arm.nfs -o arm.jsonl >run.txt 2>errors.txt || fail "$(cat run.txt errors.txt)"
grep -q "this machine is emulated: times are marked and never used" errors.txt || fail "$(cat errors.txt)"
[ "$(count '"state":"wrong"' arm.jsonl)" = 0 ] || fail "$(grep wrong arm.jsonl)"
"$command" tune import arm.jsonl -o arm-all.jsonl >/dev/null
[ "$(count '"emulated":true' arm-all.jsonl)" = 4 ] || fail "$(cat arm-all.jsonl)"
"$command" tune show arm-all.jsonl >show.txt
[ "$(count 'stale \[1\]' show.txt)" = 4 ] || fail "$(cat show.txt)"
"$command" explain bn.yaml --phase training --cpu neoverse-n1 --tuned arm-all.jsonl >explain.txt
! grep -q "tuned:" explain.txt || fail "an emulated time was used"
echo "aarch64, emulated: 4 cases"
