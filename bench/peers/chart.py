"""The chart: bars of the peers' times over ours, a panel a phase, a group of bars a shape."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from .contender import PEERS
from .problem import Operator
from .report import Results


class Chart:
    """Bars on a logarithmic axis; a panel is empty where an operator has no such phase."""

    WIDTH = 1100
    LABELS = 150  # width of the shapes' names
    GAP = 36  # between the panels, and right of them: room for the last number
    TOP = 104
    BAR, PITCH, GROUP_GAP = 8, 9, 12
    COLORS = {
        "pytorch": "#d55e00",
        "torch.compile": "#e6a700",
        "onnxruntime": "#0072b2",
        "xla": "#009e73",
    }
    OPACITY = (1.0, 0.45)  # by layout of the operator
    LARGEST = 64.0  # longer bars are cut; their numbers tell

    def __init__(
        self, results: Results, cases: list[tuple[Operator, str]], phases: list[str], head: str
    ) -> None:
        self.results, self.cases, self.phases, self.head = results, cases, phases, head
        self.panel = (self.WIDTH - self.LABELS) / len(phases) - self.GAP
        found = [record["ratio"] for record in results.records if record.get("ratio")]
        self.low = 2.0 ** min(-1, math.floor(math.log2(min(found, default=1))))
        self.high = min(self.LARGEST, 2.0 ** max(1, math.ceil(math.log2(max(found, default=1)))))
        self.tops: list[float] = []  # of the groups, and the end of the last
        y = float(self.TOP)
        for operator, _ in cases:
            self.tops.append(y)
            bars = max(len(self.bars(operator, phase)) for phase in phases)
            y += bars * self.PITCH + self.GROUP_GAP
        self.bottom = y
        self.tops.append(y)
        self.height = y + 52
        self.parts: list[str] = []

    def bars(self, operator: Operator, phase: str) -> list[tuple[str, str]]:
        """The peer and layout of the bars of a group, from the top: those that exist at all."""
        shapes = [shape for other, shape in self.cases if other is operator]
        return [
            (peer, layout)
            for peer in PEERS
            for layout in operator.layouts
            if any(self.results.ratio(operator, s, phase, layout, peer) for s in shapes)
        ]

    def x(self, left: float, ratio: float) -> float:
        share = math.log(ratio / self.low) / math.log(self.high / self.low)
        return left + self.panel * min(max(share, 0.0), 1.0)

    def text(self, x: float, y: float, text: str, size: int = 11, **attributes: str) -> None:
        more = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in attributes.items())
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}"{more}>{escape(text)}</text>'
        )

    def rectangle(self, x: float, y: float, width: float, fill: str, opacity: float) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{self.BAR}" '
            f'fill="{fill}" fill-opacity="{opacity}"/>'
        )

    def line(self, x: float, color: str, width: float) -> None:
        self.parts.append(
            f'<line x1="{x:.1f}" y1="{self.TOP - 4}" x2="{x:.1f}" y2="{self.bottom:.1f}" '
            f'stroke="{color}" stroke-width="{width}"/>'
        )

    def legend(self) -> None:
        x = 16.0
        for peer, title in PEERS.items():
            for opacity in self.OPACITY:
                self.rectangle(x, 47, 16, self.COLORS[peer], opacity)
                x += 16
            self.text(x + 6, 55, title)
            x += 6 + 7 * len(title) + 22
        self.text(x, 55, "dark: nchw, nc; light: nhwc, over Normforge in the same layout")

    def draw_panel(self, phase: str, left: float) -> None:
        middle = left + self.panel / 2
        self.text(middle, self.TOP - 26, phase, 13, text_anchor="middle", font_weight="bold")
        tick = self.low
        while tick <= self.high:
            x = self.x(left, tick)
            self.line(x, "#444444" if tick == 1 else "#dddddd", 1.2 if tick == 1 else 0.8)
            for y in (self.TOP - 9, self.bottom + 14):
                self.text(x, y, f"{tick:g}", 10, text_anchor="middle", fill="#555555")
            tick *= 2
        for row, (operator, shape) in enumerate(self.cases):
            bars = self.bars(operator, phase)
            room = self.tops[row + 1] - self.tops[row]
            y = self.tops[row] + (room - len(bars) * self.PITCH) / 2
            for peer, layout in bars:
                self.draw_bar(left, y, peer, layout, operator, shape, phase)
                y += self.PITCH

    def draw_bar(
        self,
        left: float,
        y: float,
        peer: str,
        layout: str,
        operator: Operator,
        shape: str,
        phase: str,
    ) -> None:
        ratio = self.results.ratio(operator, shape, phase, layout, peer)
        if ratio is None:
            self.text(self.x(left, 1) + 3, y + 7.5, "not measured", 9, fill="#555555")
            return
        one, end = self.x(left, 1), self.x(left, ratio)
        opacity = self.OPACITY[operator.layouts.index(layout)]
        self.rectangle(min(one, end), y, abs(end - one), self.COLORS[peer], opacity)
        digits = 1 if ratio >= 9.95 else 2
        self.text(max(one, end) + 3, y + 7.5, f"{ratio:.{digits}f}", 9, fill="#333333")

    def svg(self) -> str:
        title = "Normalization, f32: time over Normforge's, logarithmic (more than 1: slower)"
        self.text(16, 28, title, 15, font_weight="bold")
        self.legend()
        for row, (operator, shape) in enumerate(self.cases):
            y = (self.tops[row] + self.tops[row + 1]) / 2 + 4
            self.text(self.LABELS - 10, y, f"{operator.name} {shape}", 11, text_anchor="end")
        for index, phase in enumerate(self.phases):
            self.draw_panel(phase, self.LABELS + index * (self.panel + self.GAP))
        self.text(16, self.height - 14, self.head, 10, fill="#555555")
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.WIDTH}" '
            f'height="{self.height:.0f}" viewBox="0 0 {self.WIDTH} {self.height:.0f}" '
            'fill="#111111" font-family="Helvetica, Arial, \'DejaVu Sans\', sans-serif">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{self.WIDTH}" height="{self.height:.0f}" fill="#ffffff"/>',
            *self.parts,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"
