"""JAX's arrays through Normforge's kernels, under jit, grad and vmap, on the CPU.

>>> import normforge.jax as nfj
>>> y = nfj.layer_norm(x, gamma, beta, eps=1e-5, fuse=["gelu"])
>>> nfj.norm(spec, x=x, gamma=gamma, beta=beta)        # of any spec, YAML text, by names

Programs call kernels by XLA's foreign function interface (jax.ffi). Gradients are kernels, too, by
jax.custom_vjp; second derivatives and forward mode are JAX's errors. Under vmap a kernel is called
once for each element of the batch: give it the batch as an axis of x where you can.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from . import _core, _specs, default_engine
from ._norm import Norm
from ._routes import Routes, Signature, routes

__all__ = ["apply", "group_norm", "instance_norm", "layer_norm", "norm", "rms_norm"]

if not hasattr(_core, "jax_handler"):
    raise ImportError(
        "normforge was built without jaxlib's headers: build it where jaxlib is installed "
        "(pip install --no-build-isolation)"
    )

_TARGET = "normforge"
jax.ffi.register_ffi_target(_TARGET, _core.jax_handler(), platform="cpu")

_DTYPES = {"float32": "f32", "float64": "f64", "bfloat16": "bf16", "float16": "f16"}


@functools.lru_cache(maxsize=None)
def _norm(spec: str) -> Norm:
    return Norm(default_engine(), spec)


@functools.lru_cache(maxsize=None)
def _kernel(spec: str, phase: str) -> _core.Kernel:
    kernel = _norm(spec).phase_kernel(phase)
    _core.jax_register(spec, phase, kernel)
    return kernel


@functools.lru_cache(maxsize=None)
def _signature(spec: str, phase: str) -> Signature:
    return Signature(_kernel(spec, phase))


@functools.lru_cache(maxsize=None)
def _routes(spec: str, names: tuple[str, ...]) -> Routes:
    return routes(_kernel(spec, "training"), _kernel(spec, "backward"), names)


def _dtype(name: str) -> Any:
    return jax.numpy.bfloat16 if name == "bfloat16" else np.dtype(name)


def _call(spec: str, phase: str, arrays: Sequence[Any], numbers: Sequence[float]) -> list[Any]:
    results = [
        jax.ShapeDtypeStruct(tuple(shape), _dtype(dtype))
        for shape, dtype in _signature(spec, phase).results([a.shape for a in arrays])
    ]
    call = jax.ffi.ffi_call(_TARGET, results, vmap_method="sequential")
    return list(call(*arrays, spec=spec, phase=phase, numbers=np.asarray(numbers, np.float64)))


def apply(spec: str, phase: str = "", **given: Any) -> dict[str, Any]:
    """What a phase of a spec writes, by names; arrays and numbers by names. No gradients: `norm` has
    them."""
    phase = phase or _norm(spec).phase
    kernel = _kernel(spec, phase)
    needed = [*kernel.reads, *kernel.scalars]
    if wrong := sorted(set(given) ^ set(needed)):
        raise TypeError(f"phase {phase} takes {', '.join(needed)}; {', '.join(wrong)} is not among "
                        "them or is missing")  # fmt: skip
    arrays = [jax.numpy.asarray(given[name]) for name in kernel.reads]
    made = _call(spec, phase, arrays, [float(given[name]) for name in kernel.scalars])
    return dict(zip(kernel.writes, made))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _differentiable(spec: str, names: tuple[str, ...], *given: Any) -> Any:
    return _call(spec, "inference", given, [])[0]


def _forward(spec: str, names: tuple[str, ...], *given: Any) -> tuple[Any, Any]:
    of = _routes(spec, names)
    made = _call(spec, "training", [given[i] for i in of.training], [])
    known = [*given, *made]
    return made[0], [known[i] for i in of.saved]


def _backward(spec: str, names: tuple[str, ...], saved: Any, dy: Any) -> tuple[Any, ...]:
    of = _routes(spec, names)
    known = [*saved, dy]
    made = _call(spec, "backward", [known[i] for i in of.backward], [])
    return tuple(None if i < 0 else made[i] for i in of.gradients)


_differentiable.defvjp(_forward, _backward)


def norm(spec: str, **given: Any) -> Any:
    """y of a spec whose statistics are those of the call (modes layer, rms, group, instance, batch),
    with gradients by all that it is given: x, gamma, beta, operands, by their names."""
    kernel = _kernel(spec, "inference")
    if others := [*kernel.scalars, *(n for n in kernel.reads if n.startswith("moving_"))]:
        raise TypeError(f"this spec takes {', '.join(others)}: its statistics are not those of the "
                        "call, or it takes numbers; `apply` computes any phase")  # fmt: skip
    if wrong := sorted(set(given) ^ set(kernel.reads)):
        raise TypeError(f"this spec takes {', '.join(kernel.reads)}; {', '.join(wrong)} is not among "
                        "them or is missing")  # fmt: skip
    return _differentiable(spec, tuple(kernel.reads), *[given[name] for name in kernel.reads])


def _layer(
    x: Any, gamma: Any, beta: Any, addend: Any, shape: Any, layout: str, options: dict[str, Any]
) -> Any:
    names: dict[str, Any] = {"x": x}
    if gamma is not None:
        names["gamma"] = gamma
    if beta is not None:
        names["beta"] = beta
    if addend is not None:
        names["addend"] = addend
    of = str((gamma if gamma is not None else beta if beta is not None else x).dtype)
    for name in (str(x.dtype), of):
        if name not in _DTYPES:
            raise TypeError(f"arrays are {name}; expected one of {', '.join(_DTYPES)}")
    fuse = options.pop("fuse", ())
    fuse = [fuse] if isinstance(fuse, str) else list(fuse)
    keys = {
        "dtype": _DTYPES[str(x.dtype)],
        "parameter_dtype": _DTYPES[of],
        "scale": gamma is not None,
        "center": beta is not None,
        "fuse": ["add", *fuse] if addend is not None else fuse,
        **options,
    }
    text = _specs.spec_text(shape, layout, phases=["inference", "training", "backward"], **keys)
    return norm(text, **names)


def _rows(x: Any, gamma: Any, beta: Any, addend: Any, mode: str, options: dict[str, Any]) -> Any:
    """Over the last axis, whatever is before it."""
    flat = x.reshape(-1, x.shape[-1])
    added = None if addend is None else addend.reshape(flat.shape)
    y = _layer(
        flat, gamma, beta, added, ("N", x.shape[-1]), "nc", {"mode": mode, **options}
    )
    return y.reshape(x.shape)


def layer_norm(
    x: Any, gamma: Any = None, beta: Any = None, *, eps: float = 1e-5, addend: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """Layer norm over the last axis of x. `addend`, of x's shape, is added behind gamma and beta;
    fuse: further steps, such as "gelu". Other options are keys of a spec."""
    return _rows(x, gamma, beta, addend, "layer", {"eps": eps, **options})


def rms_norm(
    x: Any, gamma: Any = None, beta: Any = None, *, eps: float = 1e-6, addend: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """RMS norm over the last axis of x; options as `layer_norm`'s."""
    return _rows(x, gamma, beta, addend, "rms", {"eps": eps, **options})


def _pixels(x: Any, layout: str) -> tuple[Any, ...]:
    if len(layout) != x.ndim or "c" not in layout:
        raise ValueError(f"layout '{layout}' of x of {x.ndim} axes: expected a letter an axis, c one")
    return tuple(
        size if axis == "c" else axis.upper() for axis, size in zip(layout, x.shape)
    )


def group_norm(
    x: Any, groups: int, gamma: Any = None, beta: Any = None, *, layout: str = "nhwc",
    eps: float = 1e-5, addend: Any = None, **options: Any,
) -> Any:  # fmt: skip
    """Group norm; `layout` has the letters of x's axes, outermost first."""
    keys = {"mode": "group", "groups": groups, "eps": eps, **options}
    return _layer(x, gamma, beta, addend, _pixels(x, layout), layout, keys)


def instance_norm(
    x: Any, gamma: Any = None, beta: Any = None, *, layout: str = "nhwc", eps: float = 1e-5,
    addend: Any = None, **options: Any,
) -> Any:  # fmt: skip
    """Instance norm; options as `group_norm`'s."""
    keys = {"mode": "instance", "eps": eps, **options}
    return _layer(x, gamma, beta, addend, _pixels(x, layout), layout, keys)
