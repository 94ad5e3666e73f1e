"""PyTorch's normalization layers by Normforge's kernels.

>>> import normforge.torch
>>> normforge.torch.replace_norms(model)

replaces BatchNorm1d, 2d and 3d, SyncBatchNorm, LayerNorm, GroupNorm, InstanceNorm1d, 2d and 3d and
RMSNorm of a model, in place: parameters, buffers, hooks and `state_dict` stay what they are. What a
kernel does not take (another device, autocast, an odd dtype) PyTorch computes as before.

    model = normforge.torch.fuse_norms(model)

gives a module whose norms also do the add and the activation that only they feed.

What torch.compile and modes see is one operator, torch.ops.normforge.apply, which changes nothing that
it is given: it stays in one graph. Under torch.func, forward mode and torch.jit.trace PyTorch computes.
Second derivatives are an error.
"""

from __future__ import annotations

from torch import nn

from ._fuse import fuse_norms
from ._layers import _OURS, _THEIRS
from ._layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, InstanceNorm1d
from ._layers import InstanceNorm2d, InstanceNorm3d, LayerNorm, RMSNorm, SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
    "SyncBatchNorm",
    "fuse_norms",
    "replace_norms",
    "restore_norms",
]

for _layer in _OURS.values():
    _layer.__module__ = __name__  # by which they are pickled


def replace_norms(model: nn.Module) -> nn.Module:
    """Has the model's normalization layers computed by kernels of Normforge, and gives it back.

    A layer becomes an object of a class of this module, derived from PyTorch's, in place: what else
    it is stays. Layers of classes derived from PyTorch's are left alone.
    """
    for module in model.modules():
        if ours := _OURS.get(type(module)):
            module.__class__ = ours
    return model


def restore_norms(model: nn.Module) -> nn.Module:
    """Undoes `replace_norms`."""
    ours = [module for module in model.modules() if type(module) in _THEIRS]
    if any(module._fused for module in ours):
        raise ValueError("normforge: what follows a norm is within it; fuse_norms is not undone")
    for module in ours:
        module.__class__ = _THEIRS[type(module)]
        module.__dict__.pop("_known_specs", None)
        module.__dict__.pop("_fused", None)
    return model
