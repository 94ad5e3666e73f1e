"""PyTorch's normalization layers by Normforge's kernels.

>>> import normforge.torch
>>> normforge.torch.replace_norms(model)

replaces BatchNorm1d, 2d and 3d, SyncBatchNorm, LayerNorm, GroupNorm, InstanceNorm1d, 2d and 3d and
RMSNorm of a model, in place: parameters, buffers, hooks and `state_dict` stay what they are. What a
kernel does not take (another device, autocast, an odd dtype) PyTorch computes as before.

Everything goes through one operator, torch.ops.normforge.apply, which changes nothing that it is
given: torch.compile keeps it in one graph. Second derivatives are an error.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import _specs
from ._core import Kernel
from ._norm import Norm

__all__ = ["replace_norms", "restore_norms"]

_DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
}


@functools.lru_cache(maxsize=None)
def _norm(spec: str) -> Norm:
    from . import compile as compile_spec

    return compile_spec(spec)


@functools.lru_cache(maxsize=None)
def _kernel(spec: str, phase: str) -> Kernel:
    return _norm(spec).phase_kernel(phase)


# ---- The operator ------------------------------------------------------------------------------

_library = torch.library.Library("normforge", "DEF")
_library.define("apply(str spec, str phase, Tensor[] arrays, float[] numbers) -> Tensor[]")


def _apply(spec: str, phase: str, arrays: list[Tensor], numbers: list[float]) -> list[Tensor]:
    return _kernel(spec, phase).apply(arrays, numbers)


def _expression(text: str, sizes: dict[str, Any]) -> Any:
    """A size of a shape's text: a number, a name, or products and sums of them."""
    return eval(text.replace("/", "//"), {"__builtins__": {}}, sizes)


@functools.lru_cache(maxsize=None)
def _signature(spec: str, phase: str) -> tuple[list[list[str]], list[tuple[list[str], Any]]]:
    """Axes of the arrays that are read, and axes and dtypes of those that are written."""

    def axes(argument: dict[str, Any]) -> list[str]:
        return [axis for axis in argument["shape"].strip("()").split(", ") if axis.strip(",")]

    arguments = _kernel(spec, phase).arguments
    reads = [[axis.strip(",") for axis in axes(a)] for a in arguments if not a["written"]]
    writes = [
        ([axis.strip(",") for axis in axes(a)], getattr(torch, a["dtype"]))
        for a in arguments
        if a["written"]
    ]
    return reads, writes


def _apply_fake(spec: str, phase: str, arrays: list[Tensor], numbers: list[float]) -> list[Tensor]:
    reads, writes = _signature(spec, phase)
    sizes: dict[str, Any] = {}
    for axes, array in zip(reads, arrays):
        for axis, size in zip(axes, array.shape):
            if axis.isidentifier():
                sizes.setdefault(axis, size)
    return [
        arrays[0].new_empty([_expression(axis, sizes) for axis in axes], dtype=dtype)
        for axes, dtype in writes
    ]


def _no_gradient(ctx: Any, *gradients: Any) -> Any:
    raise NotImplementedError(
        "normforge: these kernels have first derivatives alone; the gradient of a gradient was "
        "asked for (create_graph=True)"
    )


_library.impl("apply", _apply, "CPU")
torch.library.register_fake("normforge::apply", _apply_fake, lib=_library)
torch.library.register_autograd("normforge::apply", _no_gradient, lib=_library)


def _run(spec: str, phase: str, arrays: list[Tensor], numbers: list[float]) -> list[Tensor]:
    """The operator; called directly where nobody looks on, for a dispatch costs more than a kernel."""
    if torch.compiler.is_compiling() or type(arrays[0]) not in (Tensor, nn.Parameter):
        return torch.ops.normforge.apply(spec, phase, arrays, numbers)
    return _kernel(spec, phase).apply(arrays, numbers)


class _Normalize(torch.autograd.Function):
    """Training, with the gradients of x, gamma and beta."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        spec: str,
        numbers: list[float],
        keeps_moving: bool,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        moving_mean: Tensor | None,
        moving_variance: Tensor | None,
    ) -> Any:
        parameters = [t for t in (gamma, beta) if t is not None]
        moving = [moving_mean, moving_variance] if keeps_moving else []
        written = _run(spec, "training", [x, *parameters, *moving], numbers)
        # y, the moving statistics, the batch's: a mean, where the mode has one, and a variance.
        y, statistics = written[0], written[1 + len(moving) :]
        ctx.spec = spec
        ctx.has = gamma is not None, beta is not None
        ctx.save_for_backward(x, *([gamma] if gamma is not None else []), *statistics)
        moved = written[1 : 1 + len(moving)]
        ctx.mark_non_differentiable(*moved)
        return (y, *moved)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, *unused: Any) -> Any:  # type: ignore[override]
        x, *rest = ctx.saved_tensors
        has_gamma, has_beta = ctx.has
        dx, *gradients = _run(ctx.spec, "backward", [x, dy.contiguous(), *rest], [])
        dgamma = gradients.pop(0) if has_gamma else None
        dbeta = gradients.pop(0) if has_beta else None
        return None, None, None, dx, dgamma, dbeta, None, None


# ---- Layouts -----------------------------------------------------------------------------------

_PIXELS = {2: "", 3: "l", 4: "hw", 5: "dhw"}


def _laid_out(x: Tensor) -> tuple[Tensor, str]:
    """x as its elements lie in memory, and the layout of that; a copy where it is not dense."""
    pixels = _PIXELS[x.dim()]
    if x.is_contiguous():
        return x, "nc" + pixels
    last = x.movedim(1, -1)
    if pixels and last.is_contiguous():
        return last, "n" + pixels + "c"
    return x.contiguous(), "nc" + pixels


def _channels_second(y: Tensor, layout: str) -> Tensor:
    return y if layout[1] == "c" else y.movedim(-1, 1)


def _takes(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether kernels compute this: of the CPU, of their dtypes, parameters all of one."""
    return (
        x.device.type == "cpu"
        and x.dtype in _DTYPES
        and x.layout == torch.strided
        and not torch.is_autocast_enabled("cpu")
        and len({p.dtype for p in parameters if p is not None}) <= 1
        and all(p.device.type == "cpu" and p.dtype in _DTYPES for p in parameters if p is not None)
    )


def _parameter_dtype(x: Tensor, *parameters: Tensor | None) -> str | None:
    for parameter in parameters:
        if parameter is not None:
            return _DTYPES[parameter.dtype]
    return _DTYPES[x.dtype]


@functools.lru_cache(maxsize=None)
def _cached_text(shape: tuple[Any, ...], layout: str, keys: tuple[tuple[str, Any], ...]) -> str:
    return _specs.spec_text(
        shape, layout, phases=["inference", "training", "backward"], **dict(keys)
    )


@torch.compiler.assume_constant_result  # torch.compile calls it, and does not look inside
def _text(shape: tuple[Any, ...], layout: str, keys: tuple[tuple[str, Any], ...]) -> str:
    return _cached_text(shape, layout, keys)


def _spec(x: Tensor, shape: Sequence[Any], layout: str, **keys: Any) -> str:
    return _text(tuple(shape), layout, (("dtype", _DTYPES[x.dtype]), *keys.items()))


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _normalize(
    spec: str, x: Tensor, gamma: Tensor | None, beta: Tensor | None
) -> Tensor:
    """Of modes whose statistics are those of the call."""
    if _needs_gradient(x, gamma, beta):
        return _Normalize.apply(spec, [], False, x, gamma, beta, None, None)[0]
    parameters = [t for t in (gamma, beta) if t is not None]
    return _run(spec, "inference", [x, *parameters], [])[0]


# ---- Layers ------------------------------------------------------------------------------------


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not _takes(x, self.weight, self.bias, self.running_mean, self.running_var):
            return super().forward(x)
        self._check_input_dim(x)
        data, layout = _laid_out(x)
        shape = tuple(self.num_features if axis == "c" else axis.upper() for axis in layout)
        keeps = self.running_mean is not None
        keys = {
            "mode": "feature" if keeps else "batch",
            "eps": self.eps,
            "scale": self.weight is not None,
            "center": self.bias is not None,
            "parameter_dtype": _parameter_dtype(x, self.weight, self.running_mean),
        }
        if keeps:
            keys["momentum"] = "argument"
        spec = _spec(x, shape, layout, **keys)
        if not self.training or not keeps:
            return self._of_moving(spec, data, layout, keeps)
        if x.numel() == x.size(1):
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.size()}"
            )
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        y, mean, variance = _Normalize.apply(
            spec,
            [float(momentum or 0.0)],
            True,
            data,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
        )
        self.running_mean.copy_(mean)
        self.running_var.copy_(variance)
        return _channels_second(y, layout)

    def _of_moving(self, spec: str, data: Tensor, layout: str, keeps: bool) -> Tensor:
        if not keeps:
            return _channels_second(_normalize(spec, data, self.weight, self.bias), layout)
        if _needs_gradient(data, self.weight, self.bias):
            # Frozen statistics: PyTorch's own gradients.
            return super().forward(_channels_second(data, layout))
        parameters = [t for t in (self.weight, self.bias) if t is not None]
        moving = [self.running_mean, self.running_var]
        y = _run(spec, "inference", [data, *parameters, *moving], [])[0]
        return _channels_second(y, layout)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    pass


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    pass


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    pass


class SyncBatchNorm(_BatchNorm, nn.SyncBatchNorm):
    """Of several ranks PyTorch trains as before; inference, and training of one, are ours."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.distributed.is_available() and torch.distributed.is_initialized():
            return nn.SyncBatchNorm.forward(self, x)
        return _BatchNorm.forward(self, x)


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        shape = tuple(self.normalized_shape)
        if not _takes(x, self.weight, self.bias) or tuple(x.shape[-len(shape) :]) != shape:
            return super().forward(x)
        rows = x.contiguous().reshape(-1, _product(shape))
        keys = {
            "mode": "layer",
            "eps": self.eps,
            "scale": self.weight is not None,
            "center": self.bias is not None,
            "parameter_dtype": _parameter_dtype(x, self.weight),
        }
        spec = _spec(x, ("N", _product(shape)), "nc", **keys)
        return _normalize(spec, rows, _flat(self.weight), _flat(self.bias)).reshape(x.shape)


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        shape = tuple(self.normalized_shape)
        if not _takes(x, self.weight) or tuple(x.shape[-len(shape) :]) != shape:
            return super().forward(x)
        rows = x.contiguous().reshape(-1, _product(shape))
        keys = {
            "mode": "rms",
            "center": False,
            "eps": torch.finfo(x.dtype).eps if self.eps is None else self.eps,
            "scale": self.weight is not None,
            "parameter_dtype": _parameter_dtype(x, self.weight),
        }
        spec = _spec(x, ("N", _product(shape)), "nc", **keys)
        return _normalize(spec, rows, _flat(self.weight), None).reshape(x.shape)


def _flat(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.reshape(-1)


class GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not _takes(x, self.weight, self.bias) or x.dim() not in _PIXELS:
            return super().forward(x)
        data, layout = _laid_out(x)
        keys = {
            "mode": "group",
            "groups": self.num_groups,
            "eps": self.eps,
            "scale": self.weight is not None,
            "center": self.bias is not None,
            "parameter_dtype": _parameter_dtype(x, self.weight),
        }
        shape = tuple(self.num_channels if axis == "c" else axis.upper() for axis in layout)
        spec = _spec(x, shape, layout, **keys)
        return _channels_second(_normalize(spec, data, self.weight, self.bias), layout)


class _InstanceNorm(nn.modules.instancenorm._InstanceNorm):
    def forward(self, x: Tensor) -> Tensor:
        batched = x.dim() == self._get_no_batch_dim() + 1
        if not batched or self.track_running_stats or not _takes(x, self.weight, self.bias):
            return super().forward(x)
        self._check_input_dim(x)
        if x.size(1) != self.num_features or x[0, 0].numel() == 1:
            return super().forward(x)
        data, layout = _laid_out(x)
        keys = {
            "mode": "instance",
            "eps": self.eps,
            "scale": self.weight is not None,
            "center": self.bias is not None,
            "parameter_dtype": _parameter_dtype(x, self.weight),
        }
        shape = tuple(self.num_features if axis == "c" else axis.upper() for axis in layout)
        spec = _spec(x, shape, layout, **keys)
        return _channels_second(_normalize(spec, data, self.weight, self.bias), layout)


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    pass


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    pass


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    pass


_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
    nn.LayerNorm: LayerNorm,
    nn.RMSNorm: RMSNorm,
    nn.GroupNorm: GroupNorm,
    nn.InstanceNorm1d: InstanceNorm1d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}


def replace_norms(model: nn.Module) -> nn.Module:
    """Has the model's normalization layers computed by kernels of Normforge, and gives it back.

    A layer becomes an object of a class of this module, derived from PyTorch's, in place: what else
    it is stays. Layers of classes derived from PyTorch's are left alone.
    """
    for module in model.modules():
        if ours := _OURS.get(type(module)):
            module.__class__ = ours
    return model


def restore_norms(model: nn.Module) -> nn.Module:
    """Undoes `replace_norms`."""
    for module in model.modules():
        if theirs := _THEIRS.get(type(module)):
            module.__class__ = theirs
    return model
