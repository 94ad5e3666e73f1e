"""Which arrays training and backward share, and shapes of what kernels write: for libraries that
compute gradients."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ._core import Kernel


class Routes(NamedTuple):
    """Where the arrays of training and backward come from and go to: numbers of what a function is
    given (x, gamma, beta, moving statistics, operands: those of the spec), then of what training
    writes."""

    training: tuple[int, ...]  # what it reads
    saved: tuple[int, ...]
    backward: tuple[int, ...]  # what it reads, of what is saved and, the last, dy
    gradients: tuple[int, ...]  # of what is given: the number of what backward writes, or -1
    moving: tuple[int, ...]  # of what is given
    moved: tuple[int, ...]  # their next values, of what training writes
    written: int


def routes(training: Kernel, backward: Kernel, names: tuple[str, ...]) -> Routes:
    writes = training.writes
    moving = tuple(i for i, name in enumerate(names) if name in writes)
    known = {name: len(names) + i for i, name in enumerate(writes)}
    known.update({name: i for i, name in enumerate(names)})
    saved = tuple(known[name] for name in backward.reads if name != "dy")
    position = {number: i for i, number in enumerate(saved)}
    gradients = {name: i for i, name in enumerate(backward.writes)}
    return Routes(
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


def _expression(text: str, sizes: dict[str, Any]) -> Any:
    """A size of a shape's text: numbers, names, their sums and products, and quotients rounded up."""
    text = re.sub(r"ceil\((.*) / (\d+)\)", r"(-(-(\1) // \2))", text)
    return eval(text, {"__builtins__": {}}, sizes)


def _product(sizes: Any) -> Any:
    product = 1
    for size in sizes:
        product = product * size
    return product


def _axes(argument: dict[str, Any]) -> list[str]:
    return [axis for axis in argument["shape"][1:-1].rstrip(",").split(", ") if axis]


class Signature:
    """Axes of the arrays that a kernel reads, and axes and dtypes of those that it writes."""

    def __init__(self, kernel: Kernel) -> None:
        self._reads = [_axes(a) for a in kernel.arguments if not a["written"]]
        self._writes = [(_axes(a), a["dtype"]) for a in kernel.arguments if a["written"]]

    def results(self, shapes: list[Any]) -> list[tuple[list[Any], str]]:
        """Shapes and dtypes of what is written, by shapes of what is read; sizes may be symbols. Bits
        are bytes, of dtype "uint8"."""
        sizes: dict[str, Any] = {}
        for axes, shape in zip(self._reads, shapes):
            for axis, size in zip(axes, shape):
                if axis.isidentifier():
                    sizes.setdefault(axis, size)
        made = []
        for axes, dtype in self._writes:
            shape = [_expression(axis, sizes) for axis in axes]
            made.append(([_product(shape) // 8], "uint8") if dtype == "bits" else (shape, dtype))
        return made
