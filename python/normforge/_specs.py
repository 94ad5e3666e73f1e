"""Specs of the common layers, as PyTorch means them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def _flow(value: Any) -> str:
    """A step or a number as YAML's flow style, which JSON is part of; infinity by YAML's word."""
    if isinstance(value, float) and value in (float("inf"), -float("inf")):
        return ".inf" if value > 0 else "-.inf"
    return json.dumps(value)


def spec_text(
    shape: Sequence[int | str],
    layout: str,
    *,
    mode: str,
    dtype: str = "f32",
    parameter_dtype: str | None = None,
    eps: float | None = None,
    scale: bool = True,
    center: bool = True,
    fuse: Sequence[Any] = (),
    name: str | None = None,
    axis: str | Sequence[str] = "c",
    phases: Sequence[str] = (),
    **keys: Any,
) -> str:
    """The text of a spec. `keys` are further ones, such as groups or momentum."""
    axes = axis if isinstance(axis, str) else f"[{', '.join(axis)}]"
    lines = [
        f"name: {name or mode + '_norm'}",
        "semantics: pytorch",
        f"input: {{shape: [{', '.join(map(str, shape))}], layout: {layout}, dtype: {dtype}}}",
        f"mode: {mode}",
        f"axis: {axes}",
    ]
    if parameter_dtype:
        lines.append(f"parameter_dtype: {parameter_dtype}")
    if eps is not None:
        lines.append(f"epsilon: {float(eps)!r}")
    if not scale:
        lines.append("scale: false")
    if center != (mode != "rms"):
        lines.append(f"center: {_flow(center)}")
    for key, value in keys.items():
        if value is not None:
            lines.append(f"{key}: {value if isinstance(value, str) else _flow(value)}")
    fuse = [fuse] if isinstance(fuse, str) else fuse
    if fuse:
        lines.append(f"fuse: {_flow(list(fuse))}")
    if phases:
        lines.append(f"phases: [{', '.join(phases)}]")
    return "\n".join(lines) + "\n"


def layer_norm_spec(size: int, **options: Any) -> str:
    return spec_text(["N", size], "nc", mode="layer", **options)


def rms_norm_spec(size: int, **options: Any) -> str:
    return spec_text(["N", size], "nc", mode="rms", center=options.pop("center", False), **options)


def _pixels(channels: int, layout: str) -> list[int | str]:
    return [channels if axis == "c" else axis.upper() for axis in layout]


def group_norm_spec(groups: int, channels: int, layout: str = "ncl", **options: Any) -> str:
    return spec_text(_pixels(channels, layout), layout, mode="group", groups=groups, **options)


def instance_norm_spec(channels: int, layout: str = "ncl", **options: Any) -> str:
    return spec_text(_pixels(channels, layout), layout, mode="instance", **options)


def batch_norm_spec(channels: int, layout: str = "nchw", **options: Any) -> str:
    if "momentum" in options and options["momentum"] is None:
        options["momentum"] = "cumulative"  # as PyTorch's None
    return spec_text(_pixels(channels, layout), layout, mode="feature", **options)
