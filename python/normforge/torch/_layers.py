"""PyTorch's layers whose calls are kernels': each derived from PyTorch's own."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from .. import _specs
from ._operator import _is_transformed, _Normalize, _run

_DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
}

# What a fused step is where PyTorch computes.
_STEPS: dict[Any, Any] = {
    "relu": nn.functional.relu,
    "relu6": nn.functional.relu6,
    "gelu": nn.functional.gelu,
    "gelu_tanh": functools.partial(nn.functional.gelu, approximate="tanh"),
    "silu": nn.functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mish": nn.functional.mish,
    "hard_swish": nn.functional.hardswish,
}


@functools.lru_cache(maxsize=None)
def _cached_text(shape: tuple[Any, ...], layout: str, keys: tuple[tuple[str, Any], ...]) -> str:
    return _specs.spec_text(
        shape, layout, phases=["inference", "training", "backward"], **dict(keys)
    )


@torch.compiler.assume_constant_result  # torch.compile calls it, and does not look inside
def _text(shape: tuple[Any, ...], layout: str, keys: tuple[tuple[str, Any], ...]) -> str:
    return _cached_text(shape, layout, keys)


_PIXELS = {2: "", 3: "l", 4: "hw", 5: "dhw"}


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _compute(
    specs: tuple[str, ...], numbers: list[float], names: tuple[str, ...], given: list[Tensor]
) -> Tensor:
    """Of modes whose statistics are those of the call; `given` by the spec's names."""
    if _needs_gradient(*given):
        return _Normalize.apply(specs, numbers, names, *given)[0]
    return _run(specs, "inference", given, [])[0]


def _named(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None
) -> tuple[tuple[str, ...], list[Tensor]]:
    if gamma is not None and beta is not None:
        return ("x", "gamma", "beta"), [x, gamma, beta]
    if gamma is not None:
        return ("x", "gamma"), [x, gamma]
    return (("x", "beta"), [x, beta]) if beta is not None else (("x",), [x])


class _Layer:
    """What our classes of layers share: the specs of a call, made once and then found by what they
    depend on: one with channels as the second axis and, where x has pixels, one with channels as the
    last. Specs are text, so that layers are copied and pickled as ever."""

    _fused: tuple[Any, ...] = ()  # steps after the norm (fuse_norms), as a spec has them

    def _mode(self) -> dict[str, Any]:
        """The keys of a spec that are the layer's own."""
        raise NotImplementedError

    def _axes(self, x: Tensor) -> list[tuple[tuple[Any, ...], str]]:
        """The shape and the layout of each spec for x; nothing where there is none."""
        raise NotImplementedError

    def _size(self) -> Any:
        """What of the layer its shape depends on."""
        raise NotImplementedError

    def _fits(self, x: Tensor) -> bool:
        """Whether x has the layer's shape; what has not is PyTorch's to refuse."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_known_specs", None)
        return state

    def _parameter(self, name: str) -> Tensor | None:
        """Also of a layer whose parameter is computed (torch.nn.utils.parametrize, prune)."""
        parameters = self._parameters  # type: ignore[attr-defined]
        return parameters[name] if name in parameters else getattr(self, name, None)

    def _specs(self, x: Tensor, *parameters: Tensor | None) -> tuple[str, ...]:
        """Nothing where PyTorch is to compute: of another device, shape or dtype than kernels have,
        and what _is_transformed says."""
        if not x.is_cpu or x.numel() == 0 or not self._fits(x):
            return ()
        dtypes = tuple(p.dtype for p in parameters if p is not None)
        if torch.compiler.is_compiling():
            if torch.is_autocast_enabled("cpu"):
                return ()
            return self._make_specs(x, dtypes, parameters)
        if x.is_neg() or _is_transformed():
            return ()
        known = self.__dict__.setdefault("_known_specs", {})
        key = (
            x.dtype,
            x.layout,
            x.dim(),
            dtypes,
            self.eps,  # type: ignore[attr-defined]
            self._size(),
            self._fused,
        )
        if key not in known:
            known[key] = self._make_specs(x, dtypes, parameters)
        return known[key]

    def _make_specs(
        self,
        x: Tensor,
        dtypes: tuple[torch.dtype, ...],
        parameters: tuple[Tensor | None, ...],
    ) -> tuple[str, ...]:
        of = dtypes[0] if dtypes else x.dtype
        if (
            x.layout != torch.strided
            or not (self.eps is None or self.eps > 0)  # type: ignore[attr-defined]
            or x.dtype not in _DTYPES
            or of not in _DTYPES
            or any(dtype != of for dtype in dtypes)
            # Other mixtures PyTorch refuses.
            or not (of == x.dtype or (of == torch.float32 and x.dtype.itemsize == 2))
        ):
            return ()
        keys = {
            "dtype": _DTYPES[x.dtype],
            "parameter_dtype": _DTYPES[of],
            "eps": None if self.eps is None else float(self.eps),  # type: ignore[attr-defined]
            "scale": parameters[0] is not None,
            "center": parameters[1] is not None,
            "fuse": self._fused,
            **self._mode(),
        }
        return tuple(_text(*axes, tuple(keys.items())) for axes in self._axes(x))

    def _add(
        self,
        names: tuple[str, ...],
        given: list[Tensor],
        x: Tensor,
        addend: Tensor | None,
    ) -> tuple[tuple[str, ...], list[Tensor]] | None:
        """The addend behind what is given; nothing where it is of another shape or dtype."""
        if addend is None:
            return names, given
        if not isinstance(addend, Tensor) or addend.shape != x.shape or addend.dtype != x.dtype:
            return None
        return (*names, "addend"), [*given, addend]

    def _finish(self, y: Tensor, addend: Tensor | None) -> Tensor:
        """The fused steps by PyTorch, of what PyTorch has normalized."""
        for step in self._fused:
            y = y + addend if step == "add" else _STEPS[step](y)
        return y


class _ChannelLayer(_Layer):
    """Of x with channels as its second axis."""

    def _channels(self) -> int:
        return self.num_features  # type: ignore[attr-defined]

    def _size(self) -> Any:
        return self._channels()

    def _fits(self, x: Tensor) -> bool:
        return x.dim() in _PIXELS and x.size(1) == self._channels()

    def _axes(self, x: Tensor) -> list[tuple[tuple[Any, ...], str]]:
        pixels = _PIXELS[x.dim()]
        layouts = ["nc" + pixels, "n" + pixels + "c"] if pixels else ["nc"]
        channels = self._channels()
        return [
            (tuple(channels if axis == "c" else axis.upper() for axis in layout), layout)
            for layout in layouts
        ]


class _BatchNorm(_ChannelLayer, nn.modules.batchnorm._BatchNorm):
    def _mode(self) -> dict[str, Any]:
        if self._buffers["running_mean"] is None:
            return {"mode": "batch"}
        return {"mode": "feature", "momentum": "argument"}

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        self._check_input_dim(x)
        gamma, beta = self._parameter("weight"), self._parameter("bias")
        mean, variance = self._buffers["running_mean"], self._buffers["running_var"]
        # What has statistics and keeps others, or none, is PyTorch's, and so are frozen ones' gradients.
        frozen = mean is not None and not self.training
        specs: tuple[str, ...] = ()
        if (mean is not None) == self.track_running_stats:
            specs = self._specs(x, gamma, beta, mean, variance)
        if not specs or (frozen and _needs_gradient(x, gamma, beta, addend)):
            return self._finish(super().forward(x), addend)
        names, given = _named(x, gamma, beta)
        if mean is not None:
            names, given = (*names, "moving_mean", "moving_variance"), [*given, mean, variance]
        if self._fused and not (added := self._add(names, given, x, addend)):
            return self._finish(super().forward(x), addend)
        if self._fused:
            names, given = added
        if frozen:
            return _run(specs, "inference", given, [])[0]
        if x.numel() == x.size(1):
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.size()}"
            )
        if mean is None:
            return _compute(specs, [], names, given)
        momentum = self.momentum
        batches = self._buffers["num_batches_tracked"]
        if batches is not None:
            batches.add_(1)
            if momentum is None:
                momentum = 1.0 / float(batches)
        y, *moved = _Normalize.apply(specs, [float(momentum or 0.0)], names, *given)
        if moved:
            mean.copy_(moved[0])
            variance.copy_(moved[1])
        else:  # they were written in place, which autograd is to know
            torch.autograd.graph.increment_version((mean, variance))
        return y


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    pass


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    pass


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    pass


class SyncBatchNorm(_BatchNorm, nn.SyncBatchNorm):
    """Of several ranks PyTorch trains as before; inference, and training of one, are ours."""

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        distributed = torch.distributed
        if self.training and distributed.is_available() and distributed.is_initialized():
            return self._finish(nn.SyncBatchNorm.forward(self, x), addend)
        return _BatchNorm.forward(self, x, addend)


class _StatelessLayer(_Layer):
    """Of statistics of the call alone."""

    def _takes(self, x: Tensor) -> bool:
        """Whether the layer computes what a spec says; it raises for what PyTorch refuses."""
        return True

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        if self._takes(x):
            gamma, beta = self._parameter("weight"), self._parameter("bias")
            if specs := self._specs(x, gamma, beta):
                names, given = _named(x, gamma, beta)
                added = self._add(names, given, x, addend) if self._fused else (names, given)
                if added:
                    return _compute(specs, [], *added)
        return self._finish(super().forward(x), addend)  # type: ignore[misc]


class _RowLayer(_StatelessLayer):
    """Of the last axes of x, which `normalized_shape` names."""

    def _size(self) -> Any:
        return self.normalized_shape  # type: ignore[attr-defined]

    def _fits(self, x: Tensor) -> bool:
        size = self.normalized_shape  # type: ignore[attr-defined]
        return x.shape[-len(size) :] == size

    def _axes(self, x: Tensor) -> list[tuple[tuple[Any, ...], str]]:
        normalized = tuple(self.normalized_shape)  # type: ignore[attr-defined]
        lead = x.dim() - len(normalized)
        if not (1 <= lead <= 4 and len(normalized) <= 4) or x.dim() > 6:
            return []
        letters = "nbtd"[:lead]
        return [((*letters.upper(), *normalized), letters + self._letters())]

    def _letters(self) -> str:
        return "uvwc"[4 - len(self.normalized_shape) :]  # type: ignore[attr-defined]

    def _mode(self) -> dict[str, Any]:
        return {"mode": "layer", "axis": tuple(self._letters())}


class LayerNorm(_RowLayer, nn.LayerNorm):
    pass


class RMSNorm(_RowLayer, nn.RMSNorm):
    def _mode(self) -> dict[str, Any]:
        return {"mode": "rms", "axis": tuple(self._letters())}  # whose epsilon is PyTorch's


class GroupNorm(_StatelessLayer, _ChannelLayer, nn.GroupNorm):
    def _channels(self) -> int:
        return self.num_channels

    def _size(self) -> Any:
        return self.num_channels, self.num_groups

    def _takes(self, x: Tensor) -> bool:
        # Groups of one element are an error, which is PyTorch's to raise.
        return x.dim() > 1 and x.numel() > x.size(0) * self.num_groups

    def _mode(self) -> dict[str, Any]:
        return {"mode": "group", "groups": self.num_groups}


class _InstanceNorm(_StatelessLayer, _ChannelLayer, nn.modules.instancenorm._InstanceNorm):
    def _mode(self) -> dict[str, Any]:
        return {"mode": "instance"}

    def _takes(self, x: Tensor) -> bool:
        self._check_input_dim(x)
        batched = x.dim() == self._get_no_batch_dim() + 1
        if not batched or self.track_running_stats or x.numel() == 0:
            return False
        return x.numel() > x.size(0) * x.size(1)


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
