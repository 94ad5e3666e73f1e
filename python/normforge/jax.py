"""JAX's arrays through Normforge's kernels, under jit, grad and vmap, on the CPU.

>>> import normforge.jax as nfj
>>> y = nfj.layer_norm(x, gamma, beta, eps=1e-5, fuse=["gelu"])
>>> nfj.norm(spec, x=x, gamma=gamma, beta=beta)        # of any spec, YAML text, by names

Programs call kernels by XLA's foreign function interface (jax.ffi). Gradients are kernels, too, by
jax.custom_vjp; second derivatives and forward mode are JAX's errors. Under vmap a kernel is called
once for each element of the batch: give it the batch as an axis of x where you can. Shapes and dtypes
are checked when a program is traced.
"""

from __future__ import annotations

import functools
import operator
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
    shapes = [list(array.shape) for array in arrays]
    _kernel(spec, phase).check_arrays(shapes, [str(array.dtype) for array in arrays])
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
    arrays = [jax.numpy.asarray(given[name]) for name in kernel.reads]
    return _differentiable(spec, tuple(kernel.reads), *arrays)


# Keys of a spec that the functions below write themselves.
_WRITTEN = (
    "axis", "center", "dtype", "epsilon", "layout", "mode", "name", "parameter_dtype", "phases",
    "scale", "semantics",
)  # fmt: skip


def _check_options(options: dict[str, Any]) -> None:
    for key in _WRITTEN:
        if key in options:
            instead = "it is called eps here" if key == "epsilon" else "norm(spec, ...) takes any spec"
            raise TypeError(f"'{key}' is no option: {instead}")


def _layer(
    x: Any, gamma: Any, beta: Any, addend: Any, shape: Any, layout: str, options: dict[str, Any]
) -> Any:
    given = {"x": x, "gamma": gamma, "beta": beta, "addend": addend}
    names = {name: array for name, array in given.items() if array is not None}
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


def _arrays(x: Any, gamma: Any, beta: Any, addend: Any) -> list[Any]:
    """As JAX's functions take them: lists, numbers, and NumPy's f64 as f32 but in its f64 mode."""
    given = (x, gamma, beta, addend)
    x, *others = (None if array is None else jax.numpy.asarray(array) for array in given)
    if others[2] is not None and others[2].shape != x.shape:
        raise ValueError(f"addend has shape {others[2].shape}; expected that of x, {x.shape}")
    return [x, *others]


def _rows(x: Any, gamma: Any, beta: Any, addend: Any, mode: str, options: dict[str, Any]) -> Any:
    """Over the last axis, whatever is before it."""
    _check_options(options)
    x, gamma, beta, addend = _arrays(x, gamma, beta, addend)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {x.shape}; expected a last axis, with elements")
    size = x.shape[-1]
    flat = x.reshape(x.size // size, size)
    added = None if addend is None else addend.reshape(flat.shape)
    y = _layer(flat, gamma, beta, added, ("N", size), "nc", {"mode": mode, **options})
    return y.reshape(x.shape)


def layer_norm(
    x: Any, gamma: Any = None, beta: Any = None, *, eps: float = 1e-5, addend: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """Layer norm over the last axis of x. `addend`, of x's shape, is added behind gamma and beta;
    fuse: further steps, such as "gelu". Other options are further keys of a spec."""
    return _rows(x, gamma, beta, addend, "layer", {"eps": eps, **options})


def rms_norm(
    x: Any, gamma: Any = None, beta: Any = None, *, eps: float = 1e-6, addend: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """RMS norm over the last axis of x; options as `layer_norm`'s."""
    return _rows(x, gamma, beta, addend, "rms", {"eps": eps, **options})


def _pixels(
    x: Any, gamma: Any, beta: Any, addend: Any, layout: str, options: dict[str, Any]
) -> Any:
    _check_options({key: value for key, value in options.items() if key != "mode"})
    x, gamma, beta, addend = _arrays(x, gamma, beta, addend)
    letters = layout.lower()
    if len(letters) != x.ndim or letters.count("c") != 1:
        raise ValueError(f"layout '{layout}' of x of {x.ndim} axes: expected a letter an axis, c one")
    if alone := not {"n", "b"} & set(letters):
        letters, x = "n" + letters, x[None]
        addend = None if addend is None else addend[None]
    shape = tuple(s if axis == "c" else axis.upper() for axis, s in zip(letters, x.shape))
    y = _layer(x, gamma, beta, addend, shape, letters, options)
    return y[0] if alone else y


def group_norm(
    x: Any, groups: int, gamma: Any = None, beta: Any = None, *, layout: str = "nhwc",
    eps: float = 1e-5, addend: Any = None, **options: Any,
) -> Any:  # fmt: skip
    """Group norm. `layout` has the letters of x's axes, outermost first: c the channels, n or b the
    samples; without these x is one sample ("hwc"). Further options as `layer_norm`'s."""
    try:
        groups = operator.index(groups)
    except TypeError:
        kind = type(groups).__name__
        raise TypeError(f"groups is {kind}; expected a number: group_norm(x, groups, gamma, beta)") from None
    keys = {"mode": "group", "groups": groups, "eps": eps, **options}
    return _pixels(x, gamma, beta, addend, layout, keys)


def instance_norm(
    x: Any, gamma: Any = None, beta: Any = None, *, layout: str = "nhwc", eps: float = 1e-5,
    addend: Any = None, **options: Any,
) -> Any:  # fmt: skip
    """Instance norm; options as `group_norm`'s."""
    keys = {"mode": "instance", "eps": eps, **options}
    return _pixels(x, gamma, beta, addend, layout, keys)
