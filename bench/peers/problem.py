"""What is computed: operators, shapes, data, and results in f64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

EPSILON = 1e-5
MOMENTUM = 0.1  # the weight of the new value


@dataclass(frozen=True)
class Operator:
    """A norm; `shapes` are of x with channels first."""

    name: str
    spec: str  # lines that a spec has beside its input and phases
    layouts: tuple[str, ...]
    phases: tuple[str, ...]
    shapes: tuple[str, ...]
    quick: tuple[str, ...]
    groups: int = 0
    centered: bool = True

    @property
    def moving(self) -> bool:
        """Whether inference takes moving statistics, and training updates them."""
        return "training" in self.phases


BATCH = Operator(
    "batch",
    "axis: c",
    ("nchw", "nhwc"),
    ("inference", "training", "backward"),
    (
        "1x64x112x112", "1x64x56x56", "1x256x56x56", "1x1024x14x14", "1x2048x7x7", "32x64x56x56",
        "32x256x56x56", "32x512x28x28", "64x64x112x112", "32x2048x7x7", "32x128x28x28",
    ),
    ("1x64x56x56", "1x1024x14x14", "32x128x28x28", "32x64x56x56"),
)  # fmt: skip
LAYER = Operator(
    "layer",
    "mode: layer\naxis: c",
    ("nc",),
    ("inference", "backward"),
    ("1x768", "128x768", "4096x768", "2048x4096"),
    ("128x768", "4096x768"),
)
GROUP = Operator(
    "group",
    "mode: group\naxis: c\ngroups: 32",
    ("nchw", "nhwc"),
    ("inference", "backward"),
    ("2x320x64x64", "2x640x32x32", "2x1280x16x16", "2x1280x8x8"),
    ("2x320x64x64", "2x1280x8x8"),
    groups=32,
)
RMS = Operator(
    "rms",
    "mode: rms\naxis: c",
    ("nc",),
    ("inference", "backward"),
    ("1x4096", "64x4096", "512x4096", "2048x5120"),
    ("1x4096", "512x4096"),
    centered=False,
)
OPERATORS = {operator.name: operator for operator in (BATCH, LAYER, GROUP, RMS)}
PHASES = BATCH.phases


@dataclass
class Problem:
    """One operator, shape and phase, with data drawn with channels first."""

    operator: Operator
    sizes: tuple[int, ...]
    phase: str
    processors: list[int]  # one a thread
    build: Path
    data: dict[str, np.ndarray]  # by Normforge's names; statistics of the batch for backward

    @property
    def threads(self) -> int:
        return len(self.processors)

    @property
    def channels(self) -> int:
        return self.sizes[1]

    @property
    def gradients(self) -> tuple[str, ...]:
        return ("dx", "dgamma", "dbeta") if self.operator.centered else ("dx", "dgamma")

    def channel_arrays(self) -> list[np.ndarray]:
        """Gamma, beta if there is one, and moving statistics if there are."""
        names = ["gamma", "beta", "moving_mean", "moving_variance"]
        return [self.data[name] for name in names if name in self.data]


def along_channels(array: np.ndarray, rank: int) -> np.ndarray:
    return array.reshape((-1,) + (1,) * (rank - 2))


def draw(operator: Operator, sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Inputs of every phase."""
    import numpy as np

    random = np.random.default_rng(1)

    def uniform(low: float, high: float) -> np.ndarray:
        return random.uniform(low, high, sizes[1]).astype(np.float32)

    x = random.standard_normal(sizes, np.float32)
    x *= along_channels(uniform(0.5, 2), len(sizes))
    x += along_channels(uniform(-1, 1), len(sizes))
    data = {"x": x, "dy": random.standard_normal(sizes, np.float32), "gamma": uniform(0.5, 1.5)}
    if operator.centered:
        data["beta"] = uniform(-1, 1)
    if operator.moving:
        data["moving_mean"], data["moving_variance"] = uniform(-1, 1), uniform(0.5, 2)
    mean, variance = (array.astype(np.float32) for array in statistics(operator, x))
    if operator.centered:
        data["batch_mean"] = mean
    data["batch_variance"] = variance
    return data


def grouped(operator: Operator, array: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """A view in which statistics are taken over whole axes, and these."""
    if operator.groups:
        batch, channels, *pixels = array.shape
        array = array.reshape(batch, operator.groups, channels // operator.groups, *pixels)
        return array, tuple(range(2, array.ndim))
    if operator.moving:
        return array, (0, *range(2, array.ndim))
    return array, (1,)


def statistics(operator: Operator, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the variance of the batch, or its mean square, in f64, by group."""
    import numpy as np

    view, axes = grouped(operator, x.astype(np.float64))
    mean = view.mean(axes)
    return mean, view.var(axes) if operator.centered else np.square(view).mean(axes)


MOVING = ("moving_mean", "moving_variance")


def expected(problem: Problem) -> dict[str, np.ndarray]:
    """Of one call: y, in training moving statistics, too; or the gradients."""
    import numpy as np

    operator = problem.operator
    wide = {name: array.astype(np.float64) for name, array in problem.data.items()}
    rank = len(problem.sizes)
    view, axes = grouped(operator, wide["x"])
    if operator.moving and problem.phase == "inference":
        mean, variance = (along_channels(wide["moving_" + n], rank) for n in ("mean", "variance"))
    else:
        mean = view.mean(axes, keepdims=True) if operator.centered else 0.0
        variance = np.square(view - mean).mean(axes, keepdims=True)
    deviation = 1 / np.sqrt(variance + EPSILON)
    normalized = (view - mean) * deviation
    gamma = along_channels(wide["gamma"], rank)
    if problem.phase != "backward":
        y = normalized.reshape(problem.sizes) * gamma
        if operator.centered:
            y += along_channels(wide["beta"], rank)
        results = {"y": y}
        if problem.phase == "training":
            count = problem.data["x"].size // problem.channels
            new = (mean.ravel(), variance.ravel() * (count / (count - 1)))
            for name, value in zip(MOVING, new, strict=True):
                results[name] = wide[name] + MOMENTUM * (value - wide[name])
        return {name: array.astype(np.float32) for name, array in results.items()}
    dy = wide["dy"]
    over = (0, *range(2, rank))
    result = {
        "dgamma": (dy * normalized.reshape(problem.sizes)).sum(over),
        "dbeta": dy.sum(over),
    }
    inner, _ = grouped(operator, dy * gamma)
    centered = inner.mean(axes, keepdims=True) if operator.centered else 0.0
    product = (inner * normalized).mean(axes, keepdims=True)
    dx = (inner - centered - normalized * product) * deviation
    result["dx"] = dx.reshape(problem.sizes)
    return {name: result[name].astype(np.float32) for name in problem.gradients}


def in_layout(x: np.ndarray, layout: str) -> np.ndarray:
    return x.transpose(0, 2, 3, 1) if layout == "nhwc" else x


def channels_first(y: np.ndarray, layout: str) -> np.ndarray:
    return y.transpose(0, 3, 1, 2) if layout == "nhwc" else y


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """A dense copy at a multiple of 64 bytes, as the allocators of the other libraries give."""
    import numpy as np

    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
