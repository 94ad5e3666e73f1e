"""Normalization kernels, specialized for one operator on one machine.

>>> import normforge as nf
>>> norm = nf.compile('''
... input: {shape: [N, 768], layout: nc}
... mode: layer
... semantics: pytorch
... ''')
>>> y = norm(x=x, gamma=g, beta=b)

`compile` takes a spec, YAML text, and gives a kernel for this machine, which is called with arrays by
their names: NumPy's, PyTorch's, JAX's, or any other with __dlpack__ or the buffer protocol. They are
read where they lie; results are PyTorch's for PyTorch's, NumPy's for all others, or arrays of yours.
`norm.training`, `norm.backward` and the other phases are kernels too, compiled when first asked for. `layer_norm`, `rms_norm`, `group_norm`, `instance_norm` and
`batch_norm` write the spec; `Pack` opens kernels that were compiled ahead of time, for which no
compiler is needed. `normforge.torch` has PyTorch's layers.

What a spec can say: docs/spec-language.md of the project.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from . import _core
from ._core import Engine, Kernel
from ._errors import (
    ArgumentError,
    CompilerNotFound,
    Error,
    InternalError,
    MachineError,
    NotInPack,
    OutOfMemory,
    PhaseError,
    SpecError,
    SystemFailure,
)
from ._norm import Norm, Pack, PackedNorm
from ._specs import batch_norm_spec, group_norm_spec, instance_norm_spec, layer_norm_spec
from ._specs import rms_norm_spec

__version__ = _core.version

__all__ = [
    "ArgumentError",
    "CompilerNotFound",
    "Engine",
    "Error",
    "InternalError",
    "Kernel",
    "MachineError",
    "Norm",
    "NotInPack",
    "OutOfMemory",
    "Pack",
    "PackedNorm",
    "PhaseError",
    "SpecError",
    "SystemFailure",
    "batch_norm",
    "compile",
    "default_engine",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
]


def _compiler_library() -> str:
    """The compiler's file, of $NORMFORGE_COMPILER or the package normforge-compiler; or none."""
    given = os.environ.get("NORMFORGE_COMPILER", "")
    if given:
        return given
    try:
        import normforge_compiler
    except ImportError:
        return ""
    return normforge_compiler.library()


@functools.lru_cache(maxsize=None)
def default_engine() -> Engine:
    """The engine of those who bring none: all processors, the cache in its default place."""
    return Engine(compiler_library=_compiler_library())


def compile(
    spec: str | os.PathLike[str],
    *,
    cpu: str = "",
    source: str = "",
    copies: bool = False,
    engine: Engine | None = None,
) -> Norm:
    """The kernels of a spec: YAML text, or the path (pathlib.Path) of a file of it.

    cpu: LLVM's name of a CPU, or '' for this one.
    source: what errors call the text.
    copies: copy arrays that are not dense, instead of an error.
    engine: where kernels come from; by default `default_engine()`.

    Raises SpecError with the places of what is wrong, and CompilerNotFound where the package
    normforge-compiler is missing.
    """
    if not isinstance(spec, (str, os.PathLike)):
        raise TypeError(f"spec is {type(spec).__name__}; expected YAML text, or a pathlib.Path")
    if isinstance(spec, str) and spec.endswith((".yaml", ".yml")) and "\n" not in spec:
        raise SpecError(f"'{spec}' is the name of a file; pass pathlib.Path(...), or its text")
    if isinstance(spec, os.PathLike):
        source = source or os.fspath(spec)
        with open(spec, encoding="utf-8") as file:
            spec = file.read()
    return Norm(engine or default_engine(), spec, cpu=cpu, source=source, copies=copies)


def _built(text: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Norm:
    """What a spec's writer and `compile` make of their options."""
    of_compile = {key: options.pop(key) for key in ("cpu", "copies", "engine") if key in options}
    return compile(text(*arguments, **options), **of_compile)


def layer_norm(size: int, **options: Any) -> Norm:
    """Layer norm over the last axis of x, of shape (N, size).

    dtype: of x and y, 'f32' (the default), 'bf16', 'f16' or 'f64'.
    parameter_dtype: of gamma, beta and statistics; f32 by default, f64 with f64.
    eps: PyTorch's 1e-5 by default.
    scale, center: whether gamma and beta exist; True by default.
    fuse: steps after them, such as ['gelu'] or ['add', 'relu'], as a spec has them.
    name, phases, and every other key of a spec; cpu, copies and engine as `compile` takes them.
    """
    return _built(layer_norm_spec, (size,), options)


def rms_norm(size: int, **options: Any) -> Norm:
    """RMS norm over the last axis of x, of shape (N, size); options as `layer_norm`'s."""
    return _built(rms_norm_spec, (size,), options)


def group_norm(groups: int, channels: int, **options: Any) -> Norm:
    """Group norm of x of shape (N, channels, L).

    layout: the letters of x's axes, outermost first: 'ncl' (the default), 'nchw', 'nhwc', 'nc'. Sizes
    but the channels' are told by the arrays. Other options as `layer_norm`'s.
    """
    return _built(group_norm_spec, (groups, channels), options)


def instance_norm(channels: int, **options: Any) -> Norm:
    """Instance norm of x of shape (N, channels, L); options as `group_norm`'s."""
    return _built(instance_norm_spec, (channels,), options)


def batch_norm(channels: int, **options: Any) -> Norm:
    """Batch norm of x of shape (N, channels, H, W).

    layout: 'nchw' by default. momentum: weighs the new value, 0.1 by default; None: the average of all
    batches, whose number each call of training takes as `count`; 'argument': each call takes it.
    Other options as `layer_norm`'s.
    """
    return _built(batch_norm_spec, (channels,), options)
