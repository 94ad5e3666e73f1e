"""Layers of PyTorch as its exporters write them: onnx_exports.py FOLDER."""

from __future__ import annotations

import itertools
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

functional = nn.functional


class LlamaNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        variance = wide.pow(2).mean(-1, keepdim=True)
        return self.weight * (wide * torch.rsqrt(variance + 1e-6)).to(x.dtype)


class BertNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return self.weight * ((x - mean) / torch.sqrt(variance + 1e-5)) + self.bias


class ChannelsFirst(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Unbiased(nn.Module):
    """No norm that kernels have: N - 1, and epsilon beside the root."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(size), nn.LayerNorm(size)
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.linear(functional.gelu(self.first(x))))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sin(functional.relu(self.first(x)))
        return functional.relu(self.second(y) + x)


ROWS, IMAGES = (2, 5, 32), (2, 16, 6, 7)
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "layer": (nn.LayerNorm(32), ROWS),
    "layer_of_two": (nn.LayerNorm((5, 32)), ROWS),
    "layer_plain": (nn.LayerNorm(32, elementwise_affine=False), ROWS),
    "layer_no_bias": (nn.LayerNorm(32, bias=False), ROWS),
    "rms": (nn.RMSNorm(32), ROWS),
    "llama": (LlamaNorm(32), ROWS),
    "bert": (BertNorm(32), ROWS),
    "unbiased": (Unbiased(), ROWS),
    "block": (Block(32), ROWS),
    "gelu_tanh": (nn.Sequential(nn.LayerNorm(32), nn.GELU(approximate="tanh")), ROWS),
    "channels_first": (ChannelsFirst(16), IMAGES),
    "group": (nn.GroupNorm(4, 16), IMAGES),
    "group_silu": (nn.Sequential(nn.GroupNorm(4, 16), nn.SiLU()), IMAGES),
    "group_one": (nn.GroupNorm(1, 16), (2, 16, 9)),
    "group_plain": (nn.GroupNorm(4, 16, affine=False), IMAGES),
    "instance": (nn.InstanceNorm2d(16, affine=True), IMAGES),
    "instance_leaky": (nn.Sequential(nn.InstanceNorm2d(16), nn.LeakyReLU(0.2)), IMAGES),
    "batch": (nn.BatchNorm2d(16), IMAGES),
    "batch_of_rows": (nn.BatchNorm1d(16), (4, 16)),
    "batch_hardswish": (nn.Sequential(nn.BatchNorm2d(16), nn.Hardswish()), IMAGES),
    "batch_relu6": (nn.Sequential(nn.BatchNorm2d(16), nn.ReLU6()), IMAGES),
    "residual": (Residual(16), IMAGES),
}


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.manual_seed(1)
    made = 0
    for name, (layer, shape) in LAYERS.items():
        layer.eval()
        for parameter in layer.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, 1, 0.3)
        for buffer in layer.buffers():
            if buffer.dtype.is_floating_point:
                buffer.copy_(torch.rand_like(buffer) + 0.5)
        forms: list[tuple[bool, int, torch.dtype]] = [
            *itertools.product([False], [11, 17], [torch.float32, torch.float16]),
            (True, 18, torch.float32),
            (True, 23, torch.float32),
        ]
        for dynamo, opset, dtype in forms:
            options: dict[str, Any] = {"opset_version": opset, "dynamo": dynamo}
            if not dynamo:
                options["training"] = torch.onnx.TrainingMode.EVAL
            else:
                options["external_data"] = False
            path = f"{sys.argv[1]}/{name}_{opset}_{str(dtype)[6:]}.onnx"
            try:
                torch.onnx.export(layer.to(dtype), (torch.randn(shape).to(dtype),), path, **options)
                made += 1
            except Exception as error:  # noqa: BLE001
                print(f"{name}: opset {opset}: not exported: {str(error)[:100]}")
        layer.float()
    assert made > 100, made


if __name__ == "__main__":
    main()
