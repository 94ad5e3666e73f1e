"""The table of results."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import statistics
from pathlib import Path
from typing import Any

from .contender import OURS, PEERS
from .problem import Operator

PACKAGES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "jax": "JAX (XLA)", "numpy": "NumPy"}
BEHIND = 1 / 1.03
UNSTEADY = 0.15  # the median spread of our times


class Results:
    """The records by what they are of."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._by_key: dict[tuple[str, ...], dict[str, Any]] = {}

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        fields = ("operator", "sizes", "phase", "layout", "contender")
        self._by_key[tuple(record[field] for field in fields)] = record

    def get(
        self, operator: Operator, shape: str, phase: str, layout: str, contender: str, field: str
    ) -> float | None:
        key = (operator.name, shape, phase, layout, contender)
        return self._by_key.get(key, {}).get(field)

    def ratio(
        self, operator: Operator, shape: str, phase: str, layout: str, peer: str
    ) -> float | None:
        """A peer's time over ours in the same layout."""
        return self.get(operator, shape, phase, layout, peer, "ratio")

    def best_peer(self, operator: Operator, shape: str, phase: str) -> float | None:
        """Of all peers and layouts, the least time over ours in the first layout."""
        ratios = [
            self.get(operator, shape, phase, layout, peer, "ratio_to_first")
            for layout in operator.layouts
            for peer in PEERS
        ]
        return min((r for r in ratios if r is not None), default=None)


class Table:
    """Rows of text in columns or in Markdown, printed as they come."""

    HEADS = ["norm", "shape", "phase", "us", *PEERS.values(), "best peer"]
    WIDTHS = [6, 14, 9, 19, 13, 13, 13, 13, 9]
    LEFT = 3  # columns that are set to the left

    def __init__(self, markdown: bool) -> None:
        self.markdown = markdown

    def row(self, cells: list[str]) -> None:
        if self.markdown:
            print("| " + " | ".join(cells) + " |", flush=True)
            return
        padded = [
            cell.ljust(width) if column < self.LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, self.WIDTHS, strict=True))
        ]
        print("  ".join(padded).rstrip(), flush=True)

    def head(self) -> None:
        self.row(self.HEADS)
        if self.markdown:
            print("|" + "---|" * self.LEFT + "---:|" * (len(self.HEADS) - self.LEFT))

    def case(self, results: Results, operator: Operator, shape: str, phase: str) -> None:
        def us(layout: str) -> str:
            value = results.get(operator, shape, phase, layout, OURS, "median_us")
            return f"{value:.1f}" if value else "-"

        peers = [
            pair(
                [number(results.ratio(operator, shape, phase, at, peer)) for at in operator.layouts]
            )
            for peer in PEERS
        ]
        times = pair([us(layout) for layout in operator.layouts])
        best = number(results.best_peer(operator, shape, phase))
        self.row([operator.name, shape, phase, times, *peers, best])

    def summary(
        self, results: Results, operator: Operator, shapes: list[str], phases: list[str]
    ) -> None:
        """The geometric mean of every column, and in how many of its cases we are behind."""
        for phase in phases:
            means, behind = [], []
            for peer in PEERS:
                columns = [
                    [results.ratio(operator, shape, phase, layout, peer) for shape in shapes]
                    for layout in operator.layouts
                ]
                means.append(pair([geometric_mean(column) for column in columns]))
                behind.append(pair([count_behind(column) for column in columns]))
            best = [results.best_peer(operator, shape, phase) for shape in shapes]
            name = operator.name
            self.row([name, "geometric mean", phase, "", *means, geometric_mean(best)])
            self.row([name, "cases behind", phase, "", *behind, count_behind(best)])


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def pair(texts: list[str]) -> str:
    return "-" if all(text == "-" for text in texts) else " / ".join(texts)


def geometric_mean(column: list[float | None]) -> str:
    values = [value for value in column if value is not None]
    return f"{statistics.geometric_mean(values):.2f}" if values else "-"


def count_behind(column: list[float | None]) -> str:
    values = [value for value in column if value is not None]
    return str(sum(value < BEHIND for value in values)) if values else "-"


def print_spread(results: Results) -> None:
    for title, ours in (("Normforge's", True), ("the peers'", False)):
        spreads = [r["spread"] for r in results.records if (r["contender"] == OURS) == ours]
        if not spreads:
            continue
        typical = statistics.median(spreads)
        print(
            f"Spread of {title} times (interquartile over median): median {typical:.1%}, "
            f"largest {max(spreads):.1%}."
        )
        if ours and typical > UNSTEADY:
            print("The times are unsteady: something else ran on this machine. Measure again.")


def processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def head_line(threads: int, normforge: ctypes.CDLL) -> str:
    versions = [f"Normforge {normforge.nf_version().decode()}"]
    for package, title in PACKAGES.items():
        try:
            versions.append(f"{title} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {title}")
    plural = "s" if threads > 1 else ""
    return f"{processor_name()}, {threads} thread{plural}; {', '.join(versions)}"
