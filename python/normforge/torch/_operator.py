"""torch.ops.normforge.apply, and autograd's function of training and backward."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from torch import Tensor, nn

from .. import _compiler_library
from .._core import Engine, Kernel
from .._norm import Norm
from .._routes import Routes, Signature, routes


def _openmp() -> str:
    """The OpenMP library that PyTorch computes with; its threads are ours, too."""
    own = os.path.dirname(os.path.abspath(torch.__file__))
    loaded = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if os.path.basename(path).startswith(("libgomp", "libiomp5", "libomp")):
                loaded.append("/" + path)
    return next((path for path in loaded if path.startswith(own)), loaded[0] if loaded else "")


@functools.lru_cache(maxsize=None)
def _engine() -> Engine:
    try:
        return Engine(compiler_library=_compiler_library(), openmp=_openmp())
    except RuntimeError:  # an OpenMP library of another kind
        return Engine(compiler_library=_compiler_library())


@functools.lru_cache(maxsize=None)
def _norm(spec: str) -> Norm:
    return Norm(_engine(), spec)


@functools.lru_cache(maxsize=None)
def _kernel(spec: str, phase: str) -> Kernel:
    return _norm(spec).phase_kernel(phase)


_library = torch.library.Library("normforge", "DEF")
_library.define("apply(str spec, str phase, Tensor[] arrays, float[] numbers) -> Tensor[]")


def _apply(spec: str, phase: str, arrays: list[Tensor], numbers: list[float]) -> list[Tensor]:
    return _kernel(spec, phase).apply(arrays, numbers)


@functools.lru_cache(maxsize=None)
def _signature(spec: str, phase: str) -> Signature:
    return Signature(_kernel(spec, phase))


def _apply_fake(spec: str, phase: str, arrays: list[Tensor], numbers: list[float]) -> list[Tensor]:
    results = _signature(spec, phase).results([array.shape for array in arrays])
    return [arrays[0].new_empty(shape, dtype=getattr(torch, dtype)) for shape, dtype in results]


def _no_gradient(ctx: Any, *gradients: Any) -> Any:
    raise NotImplementedError(
        "normforge: these kernels have first derivatives alone; the gradient of a gradient was "
        "asked for (create_graph=True)"
    )


_library.impl("apply", _apply, "CPU")
torch.library.register_fake("normforge::apply", _apply_fake, lib=_library)
torch.library.register_autograd("normforge::apply", _no_gradient, lib=_library)


def _is_watched(x: Tensor) -> bool:
    """Whether somebody sees operators go by: torch.compile, a mode, a class of tensors."""
    return (
        torch.compiler.is_compiling()
        or (type(x) is not Tensor and type(x) is not nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _is_transformed() -> bool:
    """Whether PyTorch computes, for more is asked than kernels know: torch.func, forward mode,
    torch.jit.trace, autocast."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled("cpu")
    )


def _run(
    spec: str,
    phase: str,
    arrays: list[Tensor],
    numbers: list[float],
    out: list[Tensor | None] | None = None,
) -> list[Tensor]:
    """The operator; where nobody looks on the kernel itself, for a dispatch takes ten times as long.
    The kernel alone writes into `out`."""
    if _is_watched(arrays[0]):
        return torch.ops.normforge.apply(spec, phase, arrays, numbers)
    return _kernel(spec, phase).apply(arrays, numbers, out)


@functools.lru_cache(maxsize=None)
def _cached_routes(spec: str, names: tuple[str, ...]) -> Routes:
    return routes(_kernel(spec, "training"), _kernel(spec, "backward"), names)


@torch.compiler.assume_constant_result
def _routes(spec: str, names: tuple[str, ...]) -> Routes:
    return _cached_routes(spec, names)


class _Normalize(torch.autograd.Function):
    """Training, with the gradients of what it is given, by the spec's names of that."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, spec: str, numbers: list[float], names: tuple[str, ...], *given: Tensor
    ) -> Any:
        training, saved, backward, gradients, moving, moved, written = _routes(spec, names)
        # Where the kernel is called itself the moving statistics are written in place.
        out: list[Tensor | None] | None = None
        if moving:
            out = [None] * written
            for i, j in zip(moving, moved):
                out[j] = given[i]
        made = _run(spec, "training", [given[i] for i in training], numbers, out)
        known = [*given, *made]
        ctx.spec, ctx.routes = spec, (backward, gradients)
        ctx.save_for_backward(*[known[i] for i in saved])
        news = [made[j] for i, j in zip(moving, moved) if made[j] is not given[i]]
        ctx.mark_non_differentiable(*news)
        return (made[0], *news)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, *unused: Any) -> Any:  # type: ignore[override]
        if not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(dy):
            raise NotImplementedError(
                "normforge: kernels take no batches of gradients at once; expected a call without "
                "vectorize=True or is_grads_batched=True"
            )
        reads, gradients = ctx.routes
        known = [*ctx.saved_tensors, dy if dy.is_contiguous() else dy.contiguous()]
        made = _run(ctx.spec, "backward", [known[i] for i in reads], [])
        return (None, None, None, *[None if i < 0 else made[i] for i in gradients])
