#!/usr/bin/env bash
# Models whose norms are ours give in ONNX Runtime what they give without: ours, ONNX's own, and
# exports of PyTorch where ./dev bench --peers has installed it.
#   onnx.sh SOURCE BUILD FOLDER
set -euo pipefail
source=$1 build=$2 folder=$3
. "$source/tests/package/tools.sh" tests/package/onnx.txt

# ONNX Runtime's C header is a package of Debian 13 on; nothing of it is installed here.
fetch_header() {
  local sources=/etc/apt/sources.list.d/debian.sources apt
  [ -r "$sources" ] && command -v apt-get dpkg-deb >/dev/null || return 1
  mkdir -p "$folder"/apt/{lists,cache/archives}/partial "$folder/apt/parts"
  awk 'BEGIN { RS = ""; ORS = "\n\n" } !/security/ { sub(/Suites:[^\n]*/, "Suites: trixie"); print; exit }' \
    "$sources" >"$folder/apt/parts/trixie.sources"
  apt=(timeout 120 apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$folder/apt/parts"
    -o Dir::State::lists="$folder/apt/lists" -o Dir::Cache="$folder/apt/cache"
    -o Acquire::Languages=none -o APT::Sandbox::User=root)
  "${apt[@]}" update && (cd "$folder/apt" && "${apt[@]}" download libonnxruntime-dev) &&
    dpkg-deb -x "$folder"/apt/libonnxruntime-dev_*.deb "$folder/apt/root"
}
library=$build/lib/libnormforge-onnxruntime.so
if [ ! -f "$library" ]; then
  header=$folder/apt/root/usr/include/onnxruntime
  [ -f "$header/onnxruntime_c_api.h" ] || fetch_header >"$folder/log" 2>&1 || true
  [ -f "$header/onnxruntime_c_api.h" ] ||
    skip "onnxruntime_c_api.h is not installed (Debian's libonnxruntime-dev): $(tail -n 1 "$folder/log")"
  export CCACHE_BASEDIR=$source CCACHE_NOHASHDIR=1
  cmake -S "$source" -B "$folder/build" -G Ninja -DNORMFORGE_COMPILER=OFF -DBUILD_TESTING=OFF \
    -DNORMFORGE_ONNXRUNTIME_INCLUDE_DIR="$header" >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
  cmake --build "$folder/build" --target normforge-onnxruntime >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
  library=$folder/build/lib/libnormforge-onnxruntime.so
fi
symbols=$(nm -D --defined-only "$library" | awk '{ print $3 }')
[ "$symbols" = RegisterCustomOps ] || { echo "it shows more symbols: $symbols" >&2; exit 1; }
export LD_LIBRARY_PATH=$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} PYTHONDONTWRITEBYTECODE=1

models=("$source"/tests/data/onnx/*.onnx)
tests=/usr/share/libonnx-testdata/data
if [ -d "$tests" ]; then
  mapfile -t -O ${#models[@]} models < <(find "$tests" -name model.onnx |
    grep -E '/test_(layer_normalization|instancenorm|batchnorm|BatchNorm|mvn|operator_symbolic)' | sort)
fi
light=$("$tools/bin/python" -c 'import onnx, pathlib; print(pathlib.Path(onnx.__file__).parent / "backend/test/data/light")')
models+=("$light"/light_{resnet50,densenet121,inception_v2,shufflenet}.onnx)
python=$build/peers/bin/python
if [ -x "$python" ] && "$python" -c 'import torch, onnxscript' 2>/dev/null; then
  rm -rf "$folder/exports"
  mkdir "$folder/exports"
  "$python" "$source/tests/package/onnx_exports.py" "$folder/exports" >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
  models+=("$folder"/exports/*.onnx)
else
  echo "SKIP: exports of PyTorch: ./dev bench --peers installs it"
fi
"$tools/bin/python" "$source/tests/package/onnx_models.py" "$build/bin/normforge" "$library" "$folder" "${models[@]}"
