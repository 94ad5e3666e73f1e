#!/usr/bin/env bash
# The Python package: its wheel, checked, in an environment of its own, with NumPy; and in that of
# `./dev bench --peers`, where there is one, with PyTorch and JAX.
#   python.sh SOURCE BUILD FOLDER
set -euo pipefail
source=$1 build=$2 folder=$3
. "$source/tests/package/tools.sh" python/tests/requirements.txt
! command -v ccache >/dev/null ||
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
rm -rf "$folder/wheels" "$folder/site"
"$tools/bin/pip" wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps \
  -w "$folder/wheels" -C build-dir="$folder/build" "$source/python" >"$folder/log" 2>&1 ||
  { cat "$folder/log"; exit 1; }
wheel=$(echo "$folder"/wheels/normforge-*-cp310-abi3-*.whl)
[ "$(stat -c %s "$wheel")" -lt 1000000 ] || { echo "$wheel is large: $(stat -c %s "$wheel") bytes" >&2; exit 1; }
"$tools/bin/abi3audit" --strict "$wheel"
"$tools/bin/auditwheel" show "$wheel"
"$tools/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$folder/site" "$wheel"

export NORMFORGE_COMPILER=$build/lib/libnormforge-compiler.so PYTHONPATH=$folder/site
export PATH=$build/bin:$PATH PYTHONDONTWRITEBYTECODE=1
cd "$source/python/tests"
"$tools/bin/python" -m pytest -q -p no:cacheprovider
others=$build/peers/bin/python
if [ ! -x "$others" ] || ! "$others" -c 'import torch, jax' 2>"$folder/log"; then
  skip "PyTorch and JAX: ./dev bench --peers installs them"
fi
"$tools/bin/pip" install --quiet --disable-pip-version-check --upgrade --target "$folder/beside" \
  nanobind-backend pytest 2>"$folder/log" ||
  skip "PyTorch and JAX: nanobind-backend and pytest cannot be installed beside them"
PYTHONPATH=$PYTHONPATH:$folder/beside "$others" -m pytest -q -p no:cacheprovider test_torch.py test_jax.py
