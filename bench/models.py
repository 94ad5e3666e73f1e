"""A small CNN and a transformer block, as PyTorch computes them and with Normforge's norms.

    NORMFORGE_COMPILER=build/lib/libnormforge-compiler.so python bench/models.py

Needs the packages normforge and torch. Everything is f32, on as many threads as PyTorch takes. The
contenders run in turn, block after block; times are medians, ratios medians over the rounds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import normforge.torch as nft


class Block(nn.Module):
    """Of a residual network (He et al. 2016)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.short = None
        if stride > 1 or inner != outer:
            self.short = nn.Sequential(
                nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.short is None else self.short(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + short)


class Transformer(nn.Module):
    """A block with the norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads).transpose(1, 3)
        y = nn.functional.scaled_dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16, 16, 1),
        Block(16, 32, 2),
        Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], list[int]]] = {
    "CNN, 32x32 images": (cnn, lambda n: torch.randn(n, 3, 32, 32), [1, 64]),
    "transformer block, 768": (
        lambda: Transformer(768, 12),
        lambda n: torch.randn(n, 128, 768),
        [1, 8],
    ),
}


def contenders(model: nn.Module) -> dict[str, nn.Module]:
    return {
        "eager": copy.deepcopy(model),
        "eager, our norms": nft.replace_norms(copy.deepcopy(model)),
        "eager, fused": nft.fuse_norms(copy.deepcopy(model)),
        "compiled": torch.compile(copy.deepcopy(model)),
        "compiled, our norms": torch.compile(nft.replace_norms(copy.deepcopy(model))),
        "compiled, fused": torch.compile(nft.fuse_norms(copy.deepcopy(model))),
    }


def inference(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def step(model: nn.Module, x: Tensor) -> None:
    for parameter in model.parameters():
        parameter.grad = None
    model(x).square().mean().backward()


def measure(calls: dict[str, Callable[[], None]], seconds: float) -> dict[str, list[float]]:
    once = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        start = time.perf_counter()
        call()
        once[name] = time.perf_counter() - start
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["eager"]) < 5:
        for name, call in calls.items():
            repeats = max(1, int(0.02 / once[name]))
            call()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            times[name].append((time.perf_counter() - start) / repeats)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description="Models by PyTorch, and with Normforge's norms")
    parser.add_argument("--seconds", type=float, default=10, help="for each row (10)")
    arguments = parser.parse_args()
    names = list(contenders(nn.Sequential(nn.LayerNorm(8))))
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads; ms, then eager's time over it")
    print("| model | N | | " + " | ".join(names) + " |")
    print("|---|---:|---|" + "---:|" * len(names))
    for name, (make, data, batches) in MODELS.items():
        for batch in batches:
            for what, run in (("inference", inference), ("training step", step)):
                torch.manual_seed(0)
                torch._dynamo.reset()
                x, model = data(batch), make()
                model.train(run is step)
                models = contenders(model)
                calls = {n: (lambda m=m: run(m, x)) for n, m in models.items()}
                times = measure(calls, arguments.seconds)
                cells = []
                for n in names:
                    ratio = statistics.median(e / t for e, t in zip(times["eager"], times[n]))
                    cells.append(f"{statistics.median(times[n]) * 1e3:.2f} ({ratio:.2f})")
                print(f"| {name} | {batch} | {what} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
