"""torch.ops.normforge.apply, and autograd's function of training and backward."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

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
    return Norm(_engine(), spec, copies=True)


@functools.lru_cache(maxsize=None)
def _kernel(spec: str, phase: str) -> Kernel:
    return _norm(spec).phase_kernel(phase)


_library = torch.library.Library("normforge", "DEF")
_SCHEMA = "(str[] specs, str phase, Tensor[] arrays, float[] numbers) -> Tensor[]"
# torch.compile need not copy what it has in another layout: the operator computes with that. A mask's
# bits lie as x does, so that backward is to have x as training had it.
_library.define("apply" + _SCHEMA, tags=(torch.Tag.flexible_layout,))
_library.define("apply_with_mask" + _SCHEMA, tags=(torch.Tag.needs_exact_strides,))


class _Places(NamedTuple):
    """Which arguments of a kernel have the shape of x: their numbers of what it reads and writes."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    written: int  # how many arrays
    has_mask: bool


@functools.lru_cache(maxsize=None)
def _cached_places(spec: str, phase: str) -> _Places:
    arguments = _kernel(spec, phase).arguments
    has_mask = any(a["role"] == "mask" for a in arguments)
    reads, writes = ([a for a in arguments if a["written"] == w] for w in (False, True))
    shape = reads[0]["shape"]
    places = [tuple(i for i, a in enumerate(of) if a["shape"] == shape) for of in (reads, writes)]
    return _Places(places[0], places[1], len(writes), has_mask)


@torch.compiler.assume_constant_result
def _places(spec: str, phase: str) -> _Places:
    return _cached_places(spec, phase)


_Out = list[Tensor | None] | None


def _arrange(
    specs: Sequence[str], phase: str, arrays: list[Tensor], out: _Out
) -> tuple[str, list[Tensor], _Out, dict[int, Tensor]]:
    """The spec of the layout in which x lies, and arrays in it: what is read, what is written, and of
    that which results they stand for. Outside of kernels all have channels as their second axis; the
    kernel of the second spec has them as the last."""
    x = arrays[0]
    if len(specs) == 1 or x.is_contiguous() or not x.movedim(1, -1).is_contiguous():
        return specs[0], arrays, out, {}
    places = _cached_places(specs[0], phase)
    order = (0, *range(2, x.dim()), 1)
    given = [a.permute(order) if i in places.reads else a for i, a in enumerate(arrays)]
    into: list[Tensor | None] = list(out) if out else [None] * places.written
    results = {}
    for i in places.writes:
        results[i] = torch.empty_permuted(x.shape, order, dtype=x.dtype, device=x.device)
        into[i] = results[i].permute(order)
    return specs[1], given, into, results


def _apply(
    specs: Sequence[str],
    phase: str,
    arrays: list[Tensor],
    numbers: list[float],
    out: _Out = None,
) -> list[Tensor]:
    spec, given, into, results = _arrange(specs, phase, arrays, out)
    made: list[Tensor] = _kernel(spec, phase).apply(given, numbers, into)
    for i, result in results.items():
        made[i] = result
    return made


@functools.lru_cache(maxsize=None)
def _signature(spec: str, phase: str) -> Signature:
    return Signature(_kernel(spec, phase))


def _apply_fake(
    specs: Sequence[str], phase: str, arrays: list[Tensor], numbers: list[float]
) -> list[Tensor]:
    spec, given, _, results = _arrange(specs, phase, arrays, None)
    shapes = _signature(spec, phase).results([array.shape for array in given])
    made = [arrays[0].new_empty(shape, dtype=getattr(torch, dtype)) for shape, dtype in shapes]
    return [results.get(i, array) for i, array in enumerate(made)]


def _no_gradient(ctx: Any, *gradients: Any) -> Any:
    raise NotImplementedError(
        "normforge: these kernels have first derivatives alone; the gradient of a gradient was "
        "asked for (create_graph=True)"
    )


for _operator in ("apply", "apply_with_mask"):
    _library.impl(_operator, _apply, "CPU")
    torch.library.register_fake("normforge::" + _operator, _apply_fake, lib=_library)
    torch.library.register_autograd("normforge::" + _operator, _no_gradient, lib=_library)


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
    specs: tuple[str, ...],
    phase: str,
    arrays: list[Tensor],
    numbers: list[float],
    out: _Out = None,
) -> list[Tensor]:
    """The operator; where nobody looks on the kernel itself, for a dispatch takes ten times as long.
    The kernel alone writes into `out`."""
    if _is_watched(arrays[0]):
        of = torch.ops.normforge
        operator = of.apply_with_mask if _places(specs[0], phase).has_mask else of.apply
        return operator(specs, phase, arrays, numbers)
    return _apply(specs, phase, arrays, numbers, out)


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
        ctx: Any, specs: tuple[str, ...], numbers: list[float], names: tuple[str, ...], *given: Tensor
    ) -> Any:
        training, saved, backward, gradients, moving, moved, written = _routes(specs[0], names)
        # Where the kernel is called itself the moving statistics are written in place.
        out: _Out = None
        if moving:
            out = [None] * written
            for i, j in zip(moving, moved):
                out[j] = given[i]
        made = _run(specs, "training", [given[i] for i in training], numbers, out)
        known = [*given, *made]
        ctx.specs, ctx.routes = specs, (backward, gradients)
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
        known = [*ctx.saved_tensors, dy]
        made = _run(ctx.specs, "backward", [known[i] for i in reads], [])
        return (None, None, None, *[None if i < 0 else made[i] for i in gradients])
