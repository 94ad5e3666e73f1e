#!/usr/bin/env bash
# Sweeps in shards by engines that exist:
#
#   scale.sh ENGINE COMMAND FOLDER
#
# ENGINE is parallel (GNU parallel) or slurm (Debian's slurm-wlm: one node, its real daemons, started
# and stopped here). The shards' files merge to what one process finds in cases. Without the engine, or
# without what it needs, says SKIP.
set -euo pipefail

engine=$1 command=$2 folder=$3
fail() { echo "scale.sh: $*" >&2; exit 1; }
skip() { echo "SKIP: $*"; exit 0; }

rm -rf "$folder"
mkdir -p "$folder"
cd "$folder"
cat >bn.yaml <<'Y'
name: bn
input: {shape: [N, 3, 2, 2], layout: nchw}
axis: c
phases: [inference, training]
Y
sweep=("$command" tune bn.yaml --size N=2,3 --threads 1 --budget 60s -o all.jsonl)
shards=3

run_parallel() {
  command -v parallel >/dev/null || skip "GNU parallel is not installed"
  # moreutils has another program of this name.
  parallel --version 2>/dev/null | grep -q "GNU parallel" || skip "parallel is not GNU's"
  parallel --will-cite -j1 "${sweep[@]}" --shard "{}/$shards" ::: $(seq "$shards") >out.txt
}

# Daemons write into their folders until they are gone.
stop_slurm() {
  local daemon pid
  for daemon in slurmd slurmctld munged; do
    pid=$(cat "$daemon.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 100); do # a zombie has no exe
      [ -e "/proc/$pid/exe" ] || break
      sleep 0.1
    done
    [ ! -e "/proc/$pid/exe" ] || kill -KILL "$pid" 2>/dev/null || true
  done
}

run_slurm() {
  for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] ||
      skip "$program is not installed (slurm-wlm)"
  done
  [ "$(id -u)" = 0 ] || skip "Slurm's daemons are started as root"
  export PATH=$PATH:/usr/sbin SLURM_CONF=$folder/slurm.conf
  trap stop_slurm EXIT
  local host cpus
  host=$(hostname -s)
  cpus=$(nproc)
  # munge wants folders that it trusts: of root, written by nobody else.
  munge=/run/normforge-munge-$$
  mkdir -m 755 "$munge"
  trap 'stop_slurm; rm -rf "$munge"' EXIT
  dd if=/dev/urandom of="$munge/key" bs=128 count=1 status=none
  chmod 400 "$munge/key"
  munged --force --key-file="$munge/key" --socket="$munge/socket" --pid-file="$folder/munged.pid" \
    --log-file="$munge/log" --seed-file="$munge/seed" || skip "munged does not start here"
  mkdir -p state spool
  cat >slurm.conf <<C
ClusterName=normforge
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$munge/socket
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPort=26817
SlurmdPort=26818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
C
  slurmctld -f "$SLURM_CONF" 2>slurmctld.err || skip "slurmctld does not start here: $(tail -1 slurmctld.err)"
  slurmd -f "$SLURM_CONF" -N "$host" 2>slurmd.err || skip "slurmd does not start here: $(tail -1 slurmd.err)"
  for _ in $(seq 60); do
    sinfo -h -o %T 2>/dev/null | grep -q idle && break
    sleep 0.5
  done
  sinfo -h -o %T 2>/dev/null | grep -q idle ||
    skip "the node does not come up here: $(tail -1 slurmd.log 2>/dev/null)"
  # One task after the other: they share the machine.
  local status=0
  timeout 120 sbatch --wait "--array=1-$shards%1" -o "out-%a.txt" --wrap "${sweep[*]}" >sbatch.txt ||
    status=$?
  [ "$status" != 124 ] || [ -e out-1.txt ] || skip "the daemons start no job here"
  [ "$status" = 0 ] || fail "the array failed: $(cat out-*.txt)"
  grep -q "shard 2 of $shards (SLURM_ARRAY_TASK_ID)" out-2.txt || fail "$(cat out-2.txt)"
}

"run_$engine"
for shard in $(seq "$shards"); do
  [ -s "all.$shard-of-$shards.jsonl" ] || fail "shard $shard wrote nothing"
done
"$command" tune merge all.*-of-*.jsonl -o all.jsonl
results=$(grep -c '"record":"result"' all.jsonl)
[ "$results" = 4 ] || fail "expected 4 results, found $results"
# Cases that are there are not measured again, by whatever engine.
"${sweep[@]}" >again.txt
grep -q "0 tuned, 4 were there, 0 failed, 0 left" again.txt || fail "$(cat again.txt)"
echo "$engine: 4 cases in $shards shards"
