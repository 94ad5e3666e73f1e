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
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check(command: str, library: str, folder: pathlib.Path, model: pathlib.Path) -> tuple[int, float]:
    """How many norms are ours in the rewritten model, and how far its results are off at most, over
    the largest magnitude of each."""
    rewritten = folder / "rewritten.onnx"
    told = json.loads(
        subprocess.run(
            [command, "import", str(model), "--rewrite", str(rewritten), "--json"],
            check=True,
            capture_output=True,
        ).stdout
    )
    ours = sum(
        node.op_type == "Normalization" and node.domain == "normforge"
        for node in onnx.load(str(rewritten)).graph.node
    )
    before = session_of(model)
    arrays = inputs_of(before, 5)
    expected = before.run(None, arrays)
    found = session_of(rewritten, library).run(None, arrays)
    worst = 0.0
    for one, other in zip(expected, found):
        assert one.shape == other.shape and one.dtype == other.dtype, (one.shape, other.shape)
        if one.size == 0 or not np.issubdtype(one.dtype, np.floating):
            assert np.array_equal(one, other)
            continue
        scale = max(float(np.max(np.abs(one.astype(np.float64)))), 1e-30)
        difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
        worst = max(worst, float(np.max(difference)) / scale)
    expected_count = sum(layer["count"] for layer in told["layers"])
    assert ours <= expected_count
    return ours, worst


def main() -> None:
    command, library, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    total = 0
    for model in map(pathlib.Path, sys.argv[4:]):
        try:
            ours, worst = check(command, library, folder, model)
        except Exception as error:  # noqa: BLE001
            print(f"{model}: FAILED: {type(error).__name__}: {str(error)[:300]}")
            continue
        total += ours
        print(f"{model.parent.name}/{model.name}: {ours} of ours, off by {worst:.1e}")
    print(total, "nodes of ours")


if __name__ == "__main__":
    main()
