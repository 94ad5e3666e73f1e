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
read where they lie; results are PyTorch's for PyTorch's, NumPy's for all others, or arrays of yours. `norm.training`, `norm.backward` and the other phases are kernels
too, compiled when first asked for. `layer_norm`, `rms_norm`, `group_norm`, `instance_norm` and
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
    SpecError,
    SystemFailure,
)
from ._norm import Norm, Pack
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
    spec: str,
    *,
    cpu: str = "",
    source: str = "",
    copies: bool = False,
    engine: Engine | None = None,
) -> Norm:
    """The kernels of a spec, YAML text.

    cpu: LLVM's name of a CPU, or '' for this one.
    source: what errors call the text.
    copies: copy arrays that are not dense, instead of an error.
    engine: where kernels come from; by default `default_engine()`.

    Raises SpecError with the places of what is wrong, and CompilerNotFound where the package
    normforge-compiler is missing.
    """
    return Norm(engine or default_engine(), spec, cpu=cpu, source=source, copies=copies)


def layer_norm(size: int, **options: Any) -> Norm:
    """Layer norm over the last axis of x, of shape (N, size).

    dtype: 'f32', 'bf16', 'f16' or 'f64'. eps: 1e-5. scale, center: whether gamma and beta exist.
    fuse: steps after them, such as ['gelu'] or ['add', 'relu'], as a spec has them.
    """
    return compile(layer_norm_spec(size, **options))


def rms_norm(size: int, **options: Any) -> Norm:
    """RMS norm over the last axis of x, of shape (N, size); options as `layer_norm`'s."""
    return compile(rms_norm_spec(size, **options))


def group_norm(groups: int, channels: int, **options: Any) -> Norm:
    """Group norm of x of shape (N, channels, L); options as `layer_norm`'s, and layout."""
    return compile(group_norm_spec(groups, channels, **options))


def instance_norm(channels: int, **options: Any) -> Norm:
    """Instance norm of x of shape (N, channels, L); options as `layer_norm`'s, and layout."""
    return compile(instance_norm_spec(channels, **options))


def batch_norm(channels: int, **options: Any) -> Norm:
    """Batch norm of x of shape (N, channels, H, W); options as `layer_norm`'s, layout, momentum."""
    return compile(batch_norm_spec(channels, **options))
