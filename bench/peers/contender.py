"""What is measured: a call, and how to read what it computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

OURS = "normforge"
PEERS = {
    "pytorch": "PyTorch",
    "torch.compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "xla": "XLA",
}


@dataclass
class Contender:
    name: str
    layout: str
    call: Callable[[], Any]
    read: Callable[[Any, str], np.ndarray]  # of what call returned: y or a gradient, by name
