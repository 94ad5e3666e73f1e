"""PyTorch's normalization layers by Normforge's kernels.

>>> import normforge.torch
>>> normforge.torch.replace_norms(model)

replaces BatchNorm1d, 2d and 3d, SyncBatchNorm, LayerNorm, GroupNorm, InstanceNorm1d, 2d and 3d and
RMSNorm of a model, in place: parameters, buffers, hooks and `state_dict` stay what they are. What a
kernel does not take (another device, autocast, an odd dtype) PyTorch computes as before.

    model = normforge.torch.fuse_norms(model)

gives a module whose norms also do the add and the activation that only they feed.

What torch.compile and modes see is one operator, torch.ops.normforge.apply, which changes nothing that
it is given: it stays in one graph. Under torch.func, forward mode and torch.jit.trace PyTorch computes.
Second derivatives are an error.
"""

from __future__ import annotations

import copy
import functools
import operator
import os
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import _compiler_library, _specs
from ._core import Engine, Kernel
from ._norm import Norm

__all__ = ["fuse_norms", "replace_norms", "restore_norms"]

_DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
}


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


# ---- The operator ------------------------------------------------------------------------------

_library = torch.library.Library("normforge", "DEF")
_library.define("apply(str spec, str phase, Tensor[] arrays, float[] numbers) -> Tensor[]")


def _apply(spec: str, phase: str, arrays: list[Tensor], numbers: list[float]) -> list[Tensor]:
    return _kernel(spec, phase).apply(arrays, numbers)


def _expression(text: str, sizes: dict[str, Any]) -> Any:
    """A size of a shape's text: numbers, names, their sums and products, and quotients rounded up."""
    text = re.sub(r"ceil\((.*) / (\d+)\)", r"(-(-(\1) // \2))", text)
    return eval(text, {"__builtins__": {}}, sizes)


@functools.lru_cache(maxsize=None)
def _signature(spec: str, phase: str) -> tuple[list[list[str]], list[tuple[list[str], str]]]:
    """Axes of the arrays that are read, and axes and dtypes of those that are written."""

    def axes(argument: dict[str, Any]) -> list[str]:
        return [axis for axis in argument["shape"][1:-1].rstrip(",").split(", ") if axis]

    arguments = _kernel(spec, phase).arguments
    reads = [axes(a) for a in arguments if not a["written"]]
    writes = [(axes(a), a["dtype"]) for a in arguments if a["written"]]
    return reads, writes


def _apply_fake(spec: str, phase: str, arrays: list[Tensor], numbers: list[float]) -> list[Tensor]:
    reads, writes = _signature(spec, phase)
    sizes: dict[str, Any] = {}
    for axes, array in zip(reads, arrays):
        for axis, size in zip(axes, array.shape):
            if axis.isidentifier():
                sizes.setdefault(axis, size)
    made = []
    for axes, dtype in writes:
        shape = [_expression(axis, sizes) for axis in axes]
        if dtype == "bits":  # which are bytes here
            made.append(arrays[0].new_empty([_product(shape) // 8], dtype=torch.uint8))
        else:
            made.append(arrays[0].new_empty(shape, dtype=getattr(torch, dtype)))
    return made


def _product(sizes: Any) -> Any:
    product = 1
    for size in sizes:
        product = product * size
    return product


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


class _Routes(NamedTuple):
    """Where the arrays of training and backward come from and go to: numbers of what autograd's
    function is given (x, gamma, beta, moving statistics, operands: those of the spec), then of what
    training writes."""

    training: tuple[int, ...]  # what it reads
    saved: tuple[int, ...]
    backward: tuple[int, ...]  # what it reads, of what is saved and, the last, dy
    gradients: tuple[int, ...]  # of what is given: the number of what backward writes, or -1
    moving: tuple[int, ...]  # of what is given
    moved: tuple[int, ...]  # their next values, of what training writes
    written: int


@functools.lru_cache(maxsize=None)
def _cached_routes(spec: str, names: tuple[str, ...]) -> _Routes:
    training, backward = _kernel(spec, "training"), _kernel(spec, "backward")
    writes = training.writes
    moving = tuple(i for i, name in enumerate(names) if name in writes)
    known = {name: len(names) + i for i, name in enumerate(writes)}
    known.update({name: i for i, name in enumerate(names)})
    saved = tuple(known[name] for name in backward.reads if name != "dy")
    position = {number: i for i, number in enumerate(saved)}
    gradients = {name: i for i, name in enumerate(backward.writes)}
    return _Routes(
        training=tuple(known[name] for name in training.reads),
        saved=saved,
        backward=tuple(
            len(saved) if name == "dy" else position[known[name]] for name in backward.reads
        ),
        gradients=tuple(gradients.get("d" + name, -1) for name in names),
        moving=moving,
        moved=tuple(writes.index(names[i]) for i in moving),
        written=len(writes),
    )


@torch.compiler.assume_constant_result
def _routes(spec: str, names: tuple[str, ...]) -> _Routes:
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


def _compute(
    spec: str, numbers: list[float], names: tuple[str, ...], given: list[Tensor]
) -> Tensor:
    """Of modes whose statistics are those of the call; `given` by the spec's names."""
    if _needs_gradient(*given):
        return _Normalize.apply(spec, numbers, names, *given)[0]
    return _run(spec, "inference", given, [])[0]


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _named(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None
) -> tuple[tuple[str, ...], list[Tensor]]:
    if gamma is not None and beta is not None:
        return ("x", "gamma", "beta"), [x, _dense(gamma), _dense(beta)]
    if gamma is not None:
        return ("x", "gamma"), [x, _dense(gamma)]
    return (("x", "beta"), [x, _dense(beta)]) if beta is not None else (("x",), [x])


class _Layer:
    """What our classes of layers share: the spec of a call, made once and then found by what it
    depends on. Specs are text, so that layers are copied and pickled as ever."""

    _fused: tuple[Any, ...] = ()  # steps after the norm (fuse_norms), as a spec has them

    def _mode(self) -> dict[str, Any]:
        """The keys of a spec that are the layer's own."""
        raise NotImplementedError

    def _axes(self, x: Tensor, layout: str) -> tuple[tuple[Any, ...], str] | None:
        """The shape and the layout of a spec for x; nothing where there is none."""
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

    def _spec(self, x: Tensor, layout: str, *parameters: Tensor | None) -> str | None:
        """Nothing where PyTorch is to compute: of another device, shape or dtype than kernels have,
        and what _is_transformed says."""
        if not x.is_cpu or x.numel() == 0 or not self._fits(x):
            return None
        dtypes = tuple(p.dtype for p in parameters if p is not None)
        if torch.compiler.is_compiling():
            if torch.is_autocast_enabled("cpu"):
                return None
            return self._make_spec(x, layout, dtypes, parameters)
        if x.is_neg() or _is_transformed():
            return None
        known = self.__dict__.setdefault("_known_specs", {})
        key = (
            x.dtype,
            x.layout,
            x.dim(),
            layout,
            dtypes,
            self.eps,  # type: ignore[attr-defined]
            self._size(),
            self._fused,
        )
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
            or not (self.eps is None or self.eps > 0)  # type: ignore[attr-defined]
            or x.dtype not in _DTYPES
            or of not in _DTYPES
            or any(dtype != of for dtype in dtypes)
            # Other mixtures PyTorch refuses.
            or not (of == x.dtype or (of == torch.float32 and x.dtype.itemsize == 2))
        ):
            return None
        keys = {
            "dtype": _DTYPES[x.dtype],
            "parameter_dtype": _DTYPES[of],
            "eps": None if self.eps is None else float(self.eps),  # type: ignore[attr-defined]
            "scale": parameters[0] is not None,
            "center": parameters[1] is not None,
            "fuse": self._fused,
            **self._mode(),
        }
        return _text(*axes, tuple(keys.items()))


    def _add(
        self,
        names: tuple[str, ...],
        given: list[Tensor],
        x: Tensor,
        addend: Tensor | None,
        layout: str,
    ) -> tuple[tuple[str, ...], list[Tensor]] | None:
        """The addend behind what is given; nothing where it is of another shape or dtype."""
        if addend is None:
            return names, given
        if not isinstance(addend, Tensor) or addend.shape != x.shape or addend.dtype != x.dtype:
            return None
        laid = addend if layout[1:2] in ("", "c") else addend.movedim(1, -1)
        return (*names, "addend"), [*given, laid if laid.is_contiguous() else laid.contiguous()]

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

    def _axes(self, x: Tensor, layout: str) -> tuple[tuple[Any, ...], str] | None:
        channels = self._channels()
        return tuple(channels if axis == "c" else axis.upper() for axis in layout), layout


# ---- Layers ------------------------------------------------------------------------------------


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
        spec = None
        if x.dim() in _PIXELS and (mean is not None) == self.track_running_stats:
            data, layout = _laid_out(x)
            spec = self._spec(x, layout, gamma, beta, mean, variance)
        if spec is None or (frozen and _needs_gradient(x, gamma, beta, addend)):
            return self._finish(super().forward(x), addend)
        names, given = _named(data, gamma, beta)
        if mean is not None:
            names, given = (*names, "moving_mean", "moving_variance"), [*given, mean, variance]
        if self._fused and not (added := self._add(names, given, x, addend, layout)):
            return self._finish(super().forward(x), addend)
        if self._fused:
            names, given = added
        if frozen:
            return _channels_second(_run(spec, "inference", given, [])[0], layout)
        if x.numel() == x.size(1):
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.size()}"
            )
        if mean is None:
            return _channels_second(_compute(spec, [], names, given), layout)
        momentum = self.momentum
        batches = self._buffers["num_batches_tracked"]
        if batches is not None:
            batches.add_(1)
            if momentum is None:
                momentum = 1.0 / float(batches)
        y, *moved = _Normalize.apply(spec, [float(momentum or 0.0)], names, *given)
        if moved:
            mean.copy_(moved[0])
            variance.copy_(moved[1])
        else:  # they were written in place, which autograd is to know
            torch.autograd.graph.increment_version((mean, variance))
        return _channels_second(y, layout)


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

    def _normalized(
        self, x: Tensor, data: Tensor, layout: str, addend: Tensor | None
    ) -> Tensor | None:
        """As `data` lies; nothing where PyTorch is to compute."""
        gamma, beta = self._parameter("weight"), self._parameter("bias")
        spec = self._spec(x, layout, gamma, beta)
        if spec is None:
            return None
        names, given = _named(data, gamma, beta)
        if self._fused:
            added = self._add(names, given, x, addend, layout)
            if not added:
                return None
            names, given = added
        return _compute(spec, [], names, given)


class _RowLayer(_StatelessLayer):
    """Of the last axes of x, which `normalized_shape` names."""

    def _size(self) -> Any:
        return self.normalized_shape  # type: ignore[attr-defined]

    def _fits(self, x: Tensor) -> bool:
        size = self.normalized_shape  # type: ignore[attr-defined]
        return x.shape[-len(size) :] == size

    def _axes(self, x: Tensor, layout: str) -> tuple[tuple[Any, ...], str] | None:
        normalized = tuple(self.normalized_shape)  # type: ignore[attr-defined]
        lead = x.dim() - len(normalized)
        if not (1 <= lead <= 4 and len(normalized) <= 4) or x.dim() > 6:
            return None
        letters = "nbtd"[:lead]
        return (*letters.upper(), *normalized), letters + self._letters()

    def _letters(self) -> str:
        return "uvwc"[4 - len(self.normalized_shape) :]  # type: ignore[attr-defined]

    def _mode(self) -> dict[str, Any]:
        return {"mode": "layer", "axis": tuple(self._letters())}

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        y = self._normalized(x, x if x.is_contiguous() else x.contiguous(), "", addend)
        if y is None:
            y = self._finish(super().forward(x), addend)  # type: ignore[misc]
        return y


class LayerNorm(_RowLayer, nn.LayerNorm):
    pass


class RMSNorm(_RowLayer, nn.RMSNorm):
    def _mode(self) -> dict[str, Any]:
        return {"mode": "rms", "axis": tuple(self._letters())}  # whose epsilon is PyTorch's


class _PixelLayer(_StatelessLayer, _ChannelLayer):
    def _takes(self, x: Tensor) -> bool:
        return True

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        if x.dim() in _PIXELS and self._takes(x):
            data, layout = _laid_out(x)
            y = self._normalized(x, data, layout, addend)
            if y is not None:
                return _channels_second(y, layout)
        return self._finish(super().forward(x), addend)  # type: ignore[misc]


class GroupNorm(_PixelLayer, nn.GroupNorm):
    def _channels(self) -> int:
        return self.num_channels

    def _size(self) -> Any:
        return self.num_channels, self.num_groups

    def _mode(self) -> dict[str, Any]:
        return {"mode": "group", "groups": self.num_groups}


class _InstanceNorm(_PixelLayer, nn.modules.instancenorm._InstanceNorm):
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


# ---- What follows a norm -----------------------------------------------------------------------

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


def _step_of_module(module: nn.Module) -> str | None:
    plain: dict[type[nn.Module], str] = {
        nn.ReLU: "relu",
        nn.ReLU6: "relu6",
        nn.SiLU: "silu",
        nn.Sigmoid: "sigmoid",
        nn.Tanh: "tanh",
        nn.Mish: "mish",
        nn.Hardswish: "hard_swish",
    }
    if type(module) is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}[module.approximate]
    return plain.get(type(module))


def _step_of_function(function: Any, keywords: dict[str, Any]) -> str | None:
    f = nn.functional
    if function is f.gelu and set(keywords) <= {"approximate"}:
        return {"none": "gelu", "tanh": "gelu_tanh"}[keywords.get("approximate", "none")]
    if not set(keywords) <= {"inplace"}:
        return None
    plain = {
        f.relu: "relu",
        torch.relu: "relu",
        "relu": "relu",
        "relu_": "relu",
        f.relu6: "relu6",
        f.silu: "silu",
        torch.sigmoid: "sigmoid",
        "sigmoid": "sigmoid",
        torch.tanh: "tanh",
        "tanh": "tanh",
        f.mish: "mish",
        f.hardswish: "hard_swish",
    }
    return plain.get(function)


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in _THEIRS or super().is_leaf_module(module, name)


def _only_user(node: torch.fx.Node) -> torch.fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _has_hooks(module: nn.Module) -> bool:
    return any(
        getattr(module, name, None)
        for name in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        )
    )


def _writes(node: torch.fx.Node, model: nn.Module) -> bool:
    """Whether a node may write into a tensor that it is given."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        return (
            bool(node.kwargs.get("inplace", False))
            or "out" in node.kwargs
            or name.endswith("_")
            or name == "setitem"
            or getattr(operator, name, None) is node.target
            and name.startswith("i")
            and name not in ("inv", "invert", "index", "is_", "is_not", "indexOf", "itemgetter")
        )
    return False


def _added(node: torch.fx.Node, last: torch.fx.Node) -> torch.fx.Node | None:
    """What a node adds to `last`, if it does that and no more; into it, where it adds in place."""
    inplace = node.target is operator.iadd or (node.op == "call_method" and node.target == "add_")
    plain = node.target in (operator.add, torch.add) or (
        node.op == "call_method" and node.target == "add"
    )
    if not (plain or inplace) or len(node.args) != 2 or node.kwargs:
        return None
    others = [arg for arg in node.args if arg is not last]
    if len(others) != 1 or not isinstance(others[0], torch.fx.Node):  # twice itself; a number
        return None
    return None if inplace and node.args[0] is not last else others[0]


def _step_of(node: torch.fx.Node, model: nn.Module) -> str | None:
    if len(node.args) != 1:
        return None
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return None if _has_hooks(module) or node.kwargs else _step_of_module(module)
    if node.op in ("call_function", "call_method"):
        return _step_of_function(node.target, node.kwargs)
    return None


def _fuse_one(graph: torch.fx.Graph, model: nn.Module, node: torch.fx.Node) -> tuple[str, ...]:
    """Takes what follows a norm into its call, and says what that was."""
    steps: list[str] = []
    last, addend, gone = node, None, [node]
    user = _only_user(last)
    if user is not None and (addend := _added(user, last)) is not None:
        steps.append("add")
        last = user
        gone.append(user)
    user = _only_user(last)
    if user is not None and (step := _step_of(user, model)):
        steps.append(step)
        last = user
        gone.append(user)
    if not steps:
        return ()
    # The norm moves to where its last step is: nothing between may write into what it reads.
    between = node.next
    while between is not last:
        if between not in gone and _writes(between, model):
            return ()
        between = between.next
    arguments = (node.args[0],) if addend is None else (node.args[0], addend)
    with graph.inserting_after(last):
        fused = graph.call_module(str(node.target), arguments)
    last.replace_all_uses_with(fused)
    for old in reversed(gone):
        graph.erase_node(old)
    return tuple(steps)


def fuse_norms(model: nn.Module) -> torch.fx.GraphModule:
    """A module that computes what the model does, its norms by our kernels, an add and an activation
    that only they feed within them.

    It is torch.fx's: it has the parameters and buffers of the model that its graph uses, the same ones,
    by the same names; what a model decides by its data or by `training` outside of layers is decided now.
    The model itself stays as it is. Layers that are called twice or have hooks, and activations that have
    some, are not fused; an addend of another shape than x is added by PyTorch when it comes.

    Raises what torch.fx raises where a model cannot be traced, and ValueError for a norm by itself.
    """
    if type(model) in _OURS or type(model) in _THEIRS:
        raise ValueError("fuse_norms takes a model that has norms within it, not a norm")
    graph = _Tracer().trace(model)
    calls: dict[Any, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    layers: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        name = str(node.target)
        layer = model.get_submodule(name)
        if type(layer) not in _OURS and type(layer) not in _THEIRS:
            continue
        # A layer of its own over the same parameters.
        ours = layers.setdefault(name, copy.copy(layer))
        ours.__class__ = _OURS.get(type(layer), type(layer))
        ours.__dict__.pop("_known_specs", None)
        plain = len(node.args) == 1 and not node.kwargs and not ours._fused
        if plain and calls[name] == 1 and not _has_hooks(layer):
            ours._fused = _fuse_one(graph, model, node)  # type: ignore[assignment]
    graph.lint()
    fused = torch.fx.GraphModule(model, graph)
    for name, layer in layers.items():
        fused.set_submodule(name, layer)
    return fused


# ---- Models ------------------------------------------------------------------------------------


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
    ours = [module for module in model.modules() if type(module) in _THEIRS]
    if any(module._fused for module in ours):
        raise ValueError("normforge: what follows a norm is within it; fuse_norms is not undone")
    for module in ours:
        module.__class__ = _THEIRS[type(module)]
        module.__dict__.pop("_known_specs", None)
        module.__dict__.pop("_fused", None)
    return model
