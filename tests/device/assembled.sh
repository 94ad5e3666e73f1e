#!/usr/bin/env bash
# What NVIDIA's assembler makes of kernels' text:   assembled.sh NORMFORGE
#
# Every variant of every phase of some networks' norms, for its own GPU and, of sm_80's, a later one:
# it assembles, and a thread's registers do for what it holds. NORMFORGE_PTXAS, or ptxas on the path
# (PyPI has it in nvidia-cuda-nvcc); SKIP without one.
set -uo pipefail
normforge=$1
source=$(cd "$(dirname "$0")/../.." && pwd)
ptxas=${NORMFORGE_PTXAS:-ptxas}
# A few bytes are an address beside many vectors that are held. Other assemblers than the one that the
# estimates are from (SelectDeviceSchedule.cpp) may differ: what they spill is told, and fails nothing.
most_spilled=16
if ! command -v "$ptxas" >/dev/null; then
  echo "SKIP: there is no ptxas"
  exit 0
fi
"$ptxas" --version | grep -q "release 13\." || most_spilled=1000000
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
status=0
assemble() { # a GPU, a file, what it is
  if ! "$ptxas" -arch="$1" -v "$2" -o "$folder/code" 2>"$folder/log"; then
    echo "$3: not assembled for $1:"
    cat "$folder/log"
    status=1
    return
  fi
  awk -v what="$3, $1" -v most="$most_spilled" '
    /Compiling entry function/ { split($0, quoted, "\x27"); name = quoted[2] }
    /bytes spill stores/ { for (i = 1; i <= NF; ++i) if ($i == "spill" && $(i + 1) ~ /^stores/) spilled = $(i - 2) }
    /Used [0-9]+ registers/ {
      for (i = 1; i <= NF; ++i) if ($i == "Used") registers = $(i + 1)
      print what ": " name ": " registers " registers, " spilled " bytes spilled"
      if (spilled > most) wrong = 1
    }
    END { exit wrong }' "$folder/log" >>"$folder/table" || { tail -n 3 "$folder/table"; status=1; }
}
for spec in resnet50/conv1_bn resnet50/conv4_block1_1_bn resnet50/conv5_block1_0_bn bert_base/layer_norm \
  transformer_4096/layer_norm transformer_rms/rms_norm_4096_residual mobilenet_v2/Conv_1_bn \
  style_transfer/instance_norm_64 awkward/features_1000; do
  file=$source/specs/$spec.yaml
  [ -f "$file" ] || { echo "there is no $file"; exit 1; }
  for phase in $(sed -nE 's/^phases: *\[(.*)\].*/\1/p' "$file" | tr -d ,); do
    for cpu in sm_80 sm_90; do
      rm -f "$folder"/variant.*
      "$normforge" compile "$file" --phase "$phase" --cpu "$cpu" --emit=ptx -o "$folder/text" || exit 1
      awk -v to="$folder/variant." '/^\/\/ variant/ { ++n } { print > (to n + 0) }' "$folder/text"
      for variant in "$folder"/variant.*; do
        assemble "$cpu" "$variant" "$spec $phase $cpu"
        [ "$cpu" = sm_90 ] || assemble sm_90 "$variant" "$spec $phase $cpu"
      done
    done
  done
done
awk -F ': ' '{ split($3, of, " "); registers = of[1]; spilled = of[3]
               if (registers > most) most = registers
               if (spilled > 0) ++spills
               if (spilled > worst) worst = spilled }
             END { print NR " kernels, at most " most " registers, " spills + 0 " that spill, " worst + 0 " bytes at most" }' "$folder/table"
exit "$status"
