#!/usr/bin/env bash
# An object for aarch64 without a system links with nothing, and runs under emulation:
#   bare.sh SOURCE FOLDER NORMFORGE
set -euo pipefail
source=$1 folder=$2 normforge=$3
for tool in aarch64-linux-gnu-gcc qemu-aarch64; do
  command -v $tool >/dev/null || {
    echo "SKIP: $tool is not installed (Debian has it in g++-aarch64-linux-gnu, qemu-user)"
    exit 0
  }
done
mkdir -p "$folder"
cd "$folder"
cat >bare.yaml <<'YAML'
name: bare
input: {shape: [N, 4, 3], layout: ncl}
axis: c
epsilon: 1.0e-4
fuse: [relu]
YAML
"$normforge" compile bare.yaml --emit=obj,header --target aarch64-none-elf --cpu cortex-a53 \
  --cache l1=32K,l2=512K,l3=512K -o bare.o
needs=$(aarch64-linux-gnu-nm -u bare.o)
[ -z "$needs" ] || { echo "bare.o needs $needs" >&2; exit 1; }
# Nothing that is written at run time, and no section that a linker script would not know.
aarch64-linux-gnu-objdump -h bare.o | grep -E ' \.(data|bss|got|init|tdata)' &&
  { echo "bare.o has data that a program would have to set up" >&2; exit 1; }
aarch64-linux-gnu-gcc -ffreestanding -nostdlib -static -mcpu=cortex-a53 -O2 -Wall -Werror -I. \
  "$source/tests/cross/bare.c" bare.o -o bare
qemu-aarch64 -cpu cortex-a53 ./bare
echo "all is well"
