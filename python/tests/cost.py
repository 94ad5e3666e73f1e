"""What calls cost, smallest sizes, in microseconds: python cost.py. Measures, and checks nothing."""

from __future__ import annotations

import timeit
from collections.abc import Callable

import numpy as np

import normforge as nf


def cost(what: str, call: Callable[[], object], times: int = 20000) -> None:
    best = min(timeit.repeat(call, number=times, repeat=7)) / times
    print(f"{what:50s} {best * 1e6:7.2f}")


def of_numpy(norm: nf.Norm) -> None:
    x = np.zeros((2, 8), np.float32)
    gamma, beta = np.ones(8, np.float32), np.zeros(8, np.float32)
    out = {"y": np.empty_like(x)}
    cost("NumPy, into out", lambda: norm(x=x, gamma=gamma, beta=beta, out=out))
    cost("NumPy, a new result", lambda: norm(x=x, gamma=gamma, beta=beta))


def of_torch(norm: nf.Norm) -> None:
    import torch

    import normforge.torch as nft

    torch.set_num_threads(1)
    x, gamma, beta = torch.zeros(2, 8), torch.ones(8), torch.zeros(8)
    out = {"y": torch.empty(2, 8)}
    cost("PyTorch's tensors, into out", lambda: norm(x=x, gamma=gamma, beta=beta, out=out))
    layers = {
        "LayerNorm": (torch.nn.LayerNorm(8), torch.randn(2, 8)),
        "BatchNorm2d": (torch.nn.BatchNorm2d(8), torch.randn(2, 8, 2, 2)),
    }
    for name, (layer, x) in layers.items():
        for who in ("PyTorch", "Normforge"):
            if who == "Normforge":
                nft.replace_norms(layer)
            layer.eval()
            with torch.no_grad():
                cost(f"{name}, eval, {who}", lambda: layer(x))
            layer.train()
            given = x.clone().requires_grad_()
            cost(f"{name}, training, forward, {who}", lambda: layer(given), 5000)
            y = layer(given)
            dy = torch.ones_like(y)
            cost(f"{name}, backward, {who}", lambda: y.backward(dy, retain_graph=True), 5000)


if __name__ == "__main__":
    norm = nf.layer_norm(8)
    of_numpy(norm)
    try:
        of_torch(norm)
    except ImportError as missing:
        print(f"SKIP: {missing}")
