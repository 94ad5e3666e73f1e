"""What the extension module leaves to Python: new arrays, copies, names."""

from __future__ import annotations

import collections
import difflib
import functools
import keyword
import sys
from typing import Any

def _numpy_dtype(name: str) -> Any:
    if name != "bfloat16":
        return name
    import ml_dtypes  # NumPy has none of its own

    return ml_dtypes.bfloat16


@functools.lru_cache(maxsize=None)
def _maker(kind: type) -> Any:
    """What makes arrays for those of `kind`, of a shape and the name of a dtype: PyTorch's for its own,
    NumPy's for all others. JAX's arrays cannot be written; it takes NumPy's."""
    if any(base.__module__.partition(".")[0] == "torch" for base in kind.__mro__):
        torch = sys.modules["torch"]
        return lambda shape, dtype: torch.empty(shape, dtype=getattr(torch, dtype))
    import numpy

    return lambda shape, dtype: numpy.empty(shape, _numpy_dtype(dtype))


def allocate(like: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """An array that a kernel may write, of the library that `like` is of."""
    return _maker(type(like))(shape, dtype)


def dense(array: Any) -> Any:
    """`array`, or a copy of it whose last axis is innermost."""
    if hasattr(array, "contiguous"):  # PyTorch
        return array.contiguous()
    import numpy

    return numpy.ascontiguousarray(array) if isinstance(array, numpy.ndarray) else array


def results_class(names: list[str]) -> type:
    """A named tuple of these; a word of Python's has an underscore behind it."""
    return collections.namedtuple(
        "Results", [name + "_" if keyword.iskeyword(name) else name for name in names]
    )


def unknown_names(names: dict[str, str], known: list[str]) -> str:
    """What is said of arguments that a kernel does not have; `names` has its own words for those that
    a framework calls so, and "" for the others."""
    said = []
    for name, ours in names.items():
        close = difflib.get_close_matches(name, known, 1)
        if ours:
            said.append(f"there is no argument '{name}': it is called '{ours}' here")
        elif close:
            said.append(f"there is no argument '{name}': did you mean '{close[0]}'?")
        else:
            said.append(f"there is no argument '{name}'; expected {', '.join(known)}")
    return "\n".join(said)
