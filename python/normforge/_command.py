"""The command `normforge`, for what is not in the library: how a kernel is computed, and checks."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ._errors import ArgumentError, CompilerNotFound, InternalError, SpecError


class Report(NamedTuple):
    """What a check says."""

    agrees: bool
    text: str

    def __bool__(self) -> bool:
        return self.agrees

    def __str__(self) -> str:
        return self.text


def _command() -> str:
    given = os.environ.get("NORMFORGE_COMMAND") or shutil.which("normforge")
    if not given:
        raise CompilerNotFound(
            "the command normforge is not on PATH, nor named by $NORMFORGE_COMMAND"
        )
    return given


def _run(words: list[str], folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [_command(), *words], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode == 2:
        # Where the spec is wrong it was not compiled; what is left are sizes and arrays.
        error = SpecError if done.stderr.startswith("spec.yaml") else ArgumentError
        raise error(done.stderr.strip())
    if done.returncode not in (0, 1):
        raise InternalError(done.stderr.strip())
    return done.returncode, done.stdout


def explain(spec: str, phase: str, cpu: str, sizes: Mapping[str, int]) -> str:
    with tempfile.TemporaryDirectory(prefix="normforge-") as name:
        folder = Path(name)
        (folder / "spec.yaml").write_text(spec, encoding="utf-8")
        words = ["explain", "spec.yaml", "--phase", phase]
        words += ["--cpu", cpu] if cpu else []
        for size, value in sizes.items():
            words += ["--size", f"{size}={value}"]
        return _run(words, folder)[1]


def _saved(folder: Path, name: str, array: Any) -> str:
    import numpy

    if hasattr(array, "detach"):  # PyTorch
        array = array.detach().numpy()
    numpy.save(folder / f"{name}.npy", numpy.asarray(array))
    return f"{name}.npy"


def check(
    spec: str,
    phase: str,
    numbers: list[str],
    results: Mapping[str, Any],
    reads: list[str],
    arrays: Mapping[str, Any],
) -> Report:
    with tempfile.TemporaryDirectory(prefix="normforge-") as name:
        folder = Path(name)
        (folder / "spec.yaml").write_text(spec, encoding="utf-8")
        words = ["check", "spec.yaml", "--phase", phase, "--verbose"]
        for key, value in arrays.items():
            words.append(
                f"{key}={value!r}" if key in numbers else f"{key}={_saved(folder, key, value)}"
            )
        for key, value in results.items():
            new = f"new.{key}" if key in reads else key
            words.append(f"{new}={_saved(folder, new, value)}")
        status, text = _run(words, folder)
        return Report(status == 0, text)
