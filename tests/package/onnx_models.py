"""Models with their norms by our kernels give what they give without, in ONNX Runtime.

  onnx_models.py COMMAND LIBRARY FOLDER [MODEL ...]
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NotImplemented_


def inputs_of(session: ort.InferenceSession, seed: int) -> dict[str, np.ndarray]:
    """Random arrays; sizes that are not known are 2. Variances are above 0."""
    random = np.random.default_rng(seed)
    types = {
        "tensor(float)": np.float32,
        "tensor(double)": np.float64,
        "tensor(float16)": np.float16,
        "tensor(int64)": np.int64,
        "tensor(int32)": np.int32,
        "tensor(bool)": np.bool_,
    }
    made = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) and size > 0 else 2 for size in value.shape]
        dtype = types[value.type]
        if np.issubdtype(dtype, np.floating):
            array = random.standard_normal(shape)
            made[value.name] = (np.abs(array) + 0.5 if "var" in value.name else array).astype(dtype)
        else:
            made[value.name] = random.integers(0, 2, shape).astype(dtype)
    return made


def session_of(path: pathlib.Path, library: str | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    if library:
        options.register_custom_ops_library(library)
    else:  # as it is: ONNX Runtime 1.31's fusions break some exports of RMS norm
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


# Differences allowed, over the largest magnitude of an output: kernels round less often than
# decomposed norms.
ALLOWED = {"float32": 2e-5, "float64": 1e-12, "float16": 1e-2}


def check(command: str, library: str, folder: pathlib.Path, model: pathlib.Path) -> tuple[int, str]:
    """How many norms are ours in the rewritten model, and what is wrong, or ""."""
    rewritten = folder / "rewritten.onnx"
    told = json.loads(
        subprocess.run(
            [command, "import", str(model), "--rewrite", str(rewritten), "--json"],
            check=True,
            capture_output=True,
        ).stdout
    )
    ours = sum(
        node.domain == "normforge"
        for node in onnx.load(str(rewritten)).graph.node
    )
    if ours > sum(layer["count"] for layer in told["layers"]):
        return ours, "more nodes than norms"
    before = session_of(model)
    arrays = inputs_of(before, 5)
    expected = before.run(None, arrays)
    found = session_of(rewritten, library).run(None, arrays)
    for one, other in zip(expected, found):
        if one.shape != other.shape or one.dtype != other.dtype:
            return ours, f"{other.dtype} of {other.shape}, expected {one.dtype} of {one.shape}"
        if str(one.dtype) not in ALLOWED or one.size == 0:
            continue
        wide = one.astype(np.float64)
        difference = float(np.max(np.abs(wide - other.astype(np.float64))))
        if not difference <= ALLOWED[str(one.dtype)] * float(np.max(np.abs(wide))):
            return ours, f"off by {difference:.2e} of {float(np.max(np.abs(wide))):.2e}"
    return ours, ""


def main() -> None:
    command, library, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    models = [pathlib.Path(name) for name in sys.argv[4:]]
    total = bad = 0
    for model in models:
        try:
            ours, wrong = check(command, library, folder, model)
        except NotImplemented_ as error:
            ours, wrong = 0, ""
            print(f"SKIP: {model}: ONNX Runtime does not run it: {str(error)[:150]}")
        except Exception as error:  # noqa: BLE001
            ours, wrong = 0, f"{type(error).__name__}: {str(error)[:300]}"
        total += ours
        bad += bool(wrong)
        if wrong:
            print(f"{model}: {wrong}", file=sys.stderr)
    print(f"{len(models)} models, {total} norms of ours in them, {bad} wrong")
    sys.exit(bool(bad) or total < len(models) // 2)


if __name__ == "__main__":
    main()
