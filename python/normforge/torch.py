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


def _is_watched(x: Tensor) -> bool:
    """Whether somebody sees operators go by: torch.compile, torch.func, a mode, a class of tensors."""
    return (
        torch.compiler.is_compiling()
        or (type(x) is not Tensor and type(x) is not nn.Parameter)
        or torch._C._functorch.maybe_get_level(x) != -1
        or torch._C._len_torch_dispatch_stack() > 0
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
        # Where the kernel is called itself the moving statistics are written in place.
        out = [None, *moving, None, None] if moving else None
        written = _run(spec, "training", [x, *parameters, *moving], numbers, out)
        # y, the moving statistics, the batch's: a mean, where the mode has one, and a variance.
        y, statistics = written[0], written[1 + len(moving) :]
        ctx.spec = spec
        ctx.has = gamma is not None, beta is not None
        ctx.save_for_backward(x, *([gamma] if gamma is not None else []), *statistics)
        moved = [new for new, old in zip(written[1:], moving) if new is not old]
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


# ---- Specs of layers ---------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def _cached_text(shape: tuple[Any, ...], layout: str, keys: tuple[tuple[str, Any], ...]) -> str:
    return _specs.spec_text(
        shape, layout, phases=["inference", "training", "backward"], **dict(keys)
    )


@torch.compiler.assume_constant_result  # torch.compile calls it, and does not look inside
def _text(shape: tuple[Any, ...], layout: str, keys: tuple[tuple[str, Any], ...]) -> str:
    return _cached_text(shape, layout, keys)


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


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _normalize(spec: str, x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """Of modes whose statistics are those of the call."""
    if _needs_gradient(x, gamma, beta):
        return _Normalize.apply(spec, [], False, x, gamma, beta, None, None)[0]
    arrays = [x]
    if gamma is not None:
        arrays.append(gamma)
    if beta is not None:
        arrays.append(beta)
    return _run(spec, "inference", arrays, [])[0]


class _Layer:
    """What our classes of layers share: the spec of a call, made once and then found by what it
    depends on. Specs are text, so that layers are copied and pickled as ever."""

    def _mode(self) -> dict[str, Any]:
        """The keys of a spec that are the layer's own."""
        raise NotImplementedError

    def _axes(self, x: Tensor, layout: str) -> tuple[tuple[Any, ...], str] | None:
        """The shape and the layout of a spec for x; nothing where there is none."""
        raise NotImplementedError

    def _spec(self, x: Tensor, layout: str, *parameters: Tensor | None) -> str | None:
        """Nothing where PyTorch is to compute: of another device, under autocast, or of dtypes that
        no kernel has."""
        if not x.is_cpu or torch.is_autocast_enabled("cpu"):
            return None
        dtypes = tuple(p.dtype for p in parameters if p is not None)
        if torch.compiler.is_compiling():
            return self._make_spec(x, layout, dtypes, parameters)
        known = self.__dict__.setdefault("_known_specs", {})
        key = (x.dtype, x.dim(), layout, dtypes, self.eps)  # type: ignore[attr-defined]
        if key not in known:
            known[key] = self._make_spec(x, layout, dtypes, parameters)
        return known[key]

    def _make_spec(
        self,
        x: Tensor,
        layout: str,
        dtypes: tuple[torch.dtype, ...],
        parameters: tuple[Tensor | None, ...],
    ) -> str | None:
        axes = self._axes(x, layout)
        of = dtypes[0] if dtypes else x.dtype
        if (
            axes is None
            or x.layout != torch.strided
            or x.dtype not in _DTYPES
            or of not in _DTYPES
            or any(dtype != of for dtype in dtypes)
        ):
            return None
        keys = {
            "dtype": _DTYPES[x.dtype],
            "parameter_dtype": _DTYPES[of],
            "eps": self.eps,  # type: ignore[attr-defined]
            "scale": parameters[0] is not None,
            "center": parameters[1] is not None,
            **self._mode(),
        }
        return _text(*axes, tuple(keys.items()))


class _ChannelLayer(_Layer):
    """Of x with channels as its second axis."""

    def _channels(self) -> int:
        return self.num_features  # type: ignore[attr-defined]

    def _axes(self, x: Tensor, layout: str) -> tuple[tuple[Any, ...], str] | None:
        if x.size(1) != self._channels():
            return None
        channels = self._channels()
        return tuple(channels if axis == "c" else axis.upper() for axis in layout), layout


# ---- Layers ------------------------------------------------------------------------------------


class _BatchNorm(_ChannelLayer, nn.modules.batchnorm._BatchNorm):
    def _mode(self) -> dict[str, Any]:
        if self._buffers["running_mean"] is None:
            return {"mode": "batch"}
        return {"mode": "feature", "momentum": "argument"}

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        gamma, beta = self._parameters["weight"], self._parameters["bias"]
        mean, variance = self._buffers["running_mean"], self._buffers["running_var"]
        data, layout = _laid_out(x)
        spec = self._spec(x, layout, gamma, beta, mean, variance)
        if spec is None:
            return super().forward(x)
        if mean is None:
            if self.training:
                self._check_values(x)
            return _channels_second(_normalize(spec, data, gamma, beta), layout)
        if not self.training:
            if _needs_gradient(x, gamma, beta):  # of frozen statistics, which are PyTorch's
                return super().forward(x)
            arrays = [data, *(p for p in (gamma, beta) if p is not None), mean, variance]
            return _channels_second(_run(spec, "inference", arrays, [])[0], layout)
        self._check_values(x)
        momentum = self.momentum
        batches = self._buffers["num_batches_tracked"]
        if batches is not None:
            batches.add_(1)
            if momentum is None:
                momentum = 1.0 / float(batches)
        y, *moved = _Normalize.apply(
            spec, [float(momentum or 0.0)], True, data, gamma, beta, mean, variance
        )
        for old, new in zip((mean, variance), moved):  # where they were not written in place
            old.copy_(new)
        return _channels_second(y, layout)

    @staticmethod
    def _check_values(x: Tensor) -> None:
        if x.numel() == x.size(1):
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.size()}"
            )


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    pass


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    pass


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    pass


class SyncBatchNorm(_BatchNorm, nn.SyncBatchNorm):
    """Of several ranks PyTorch trains as before; inference, and training of one, are ours."""

    def forward(self, x: Tensor) -> Tensor:
        distributed = torch.distributed
        if self.training and distributed.is_available() and distributed.is_initialized():
            return nn.SyncBatchNorm.forward(self, x)
        return _BatchNorm.forward(self, x)


class _RowLayer(_Layer):
    """Of the last axes of x, which `normalized_shape` names."""

    def _axes(self, x: Tensor, layout: str) -> tuple[tuple[Any, ...], str] | None:
        normalized = tuple(self.normalized_shape)  # type: ignore[attr-defined]
        lead = x.dim() - len(normalized)
        if not (1 <= lead <= 4 and len(normalized) <= 4) or x.dim() > 6:
            return None
        if tuple(x.shape[lead:]) != normalized:
            return None
        letters = "nbtd"[:lead]
        return (*letters.upper(), *normalized), letters + self._letters()

    def _letters(self) -> str:
        return "uvwc"[4 - len(self.normalized_shape) :]  # type: ignore[attr-defined]

    def _mode(self) -> dict[str, Any]:
        return {"mode": "layer", "axis": tuple(self._letters())}


class LayerNorm(_RowLayer, nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        gamma, beta = self._parameters["weight"], self._parameters["bias"]
        spec = self._spec(x, "", gamma, beta)
        if spec is None:
            return super().forward(x)
        return _normalize(spec, x if x.is_contiguous() else x.contiguous(), gamma, beta)


class RMSNorm(_RowLayer, nn.RMSNorm):
    def _mode(self) -> dict[str, Any]:
        return {"mode": "rms", "axis": tuple(self._letters())}  # whose epsilon is PyTorch's

    def forward(self, x: Tensor) -> Tensor:
        gamma = self._parameters["weight"]
        spec = self._spec(x, "", gamma, None)
        if spec is None:
            return super().forward(x)
        return _normalize(spec, x if x.is_contiguous() else x.contiguous(), gamma, None)


class GroupNorm(_ChannelLayer, nn.GroupNorm):
    def _channels(self) -> int:
        return self.num_channels

    def _mode(self) -> dict[str, Any]:
        return {"mode": "group", "groups": self.num_groups}

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in _PIXELS:
            return super().forward(x)
        gamma, beta = self._parameters["weight"], self._parameters["bias"]
        data, layout = _laid_out(x)
        spec = self._spec(x, layout, gamma, beta)
        if spec is None:
            return super().forward(x)
        return _channels_second(_normalize(spec, data, gamma, beta), layout)


class _InstanceNorm(_ChannelLayer, nn.modules.instancenorm._InstanceNorm):
    def _mode(self) -> dict[str, Any]:
        return {"mode": "instance"}

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        batched = x.dim() == self._get_no_batch_dim() + 1
        if not batched or self.track_running_stats or x[0, 0].numel() == 1:
            return super().forward(x)
        gamma, beta = self._parameters["weight"], self._parameters["bias"]
        data, layout = _laid_out(x)
        spec = self._spec(x, layout, gamma, beta)
        if spec is None:
            return super().forward(x)
        return _channels_second(_normalize(spec, data, gamma, beta), layout)


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
