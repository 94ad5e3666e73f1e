"""fuse_norms: what follows a norm is computed within it."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import nn

from ._layers import _OURS, _THEIRS


def _step_of_module(module: nn.Module) -> str | None:
    plain: dict[type[nn.Module], str] = {
        nn.ReLU: "relu",
        nn.ReLU6: "relu6",
        nn.SiLU: "silu",
        nn.Sigmoid: "sigmoid",
        nn.Tanh: "tanh",
        nn.Mish: "mish",
        nn.Hardswish: "hard_swish",
    }
    if type(module) is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}[module.approximate]
    return plain.get(type(module))


def _step_of_function(function: Any, keywords: dict[str, Any]) -> str | None:
    f = nn.functional
    if function is f.gelu and set(keywords) <= {"approximate"}:
        return {"none": "gelu", "tanh": "gelu_tanh"}[keywords.get("approximate", "none")]
    if not set(keywords) <= {"inplace"}:
        return None
    plain = {
        f.relu: "relu",
        torch.relu: "relu",
        "relu": "relu",
        "relu_": "relu",
        f.relu6: "relu6",
        f.silu: "silu",
        torch.sigmoid: "sigmoid",
        "sigmoid": "sigmoid",
        torch.tanh: "tanh",
        "tanh": "tanh",
        f.mish: "mish",
        f.hardswish: "hard_swish",
    }
    return plain.get(function)


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in _THEIRS or super().is_leaf_module(module, name)


def _only_user(node: torch.fx.Node) -> torch.fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _has_hooks(module: nn.Module) -> bool:
    return any(
        getattr(module, name, None)
        for name in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        )
    )


def _writes(node: torch.fx.Node, model: nn.Module) -> bool:
    """Whether a node may write into a tensor that it is given."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        return (
            bool(node.kwargs.get("inplace", False))
            or "out" in node.kwargs
            or name.endswith("_")
            or name == "setitem"
            or getattr(operator, name, None) is node.target
            and name.startswith("i")
            and name not in ("inv", "invert", "index", "is_", "is_not", "indexOf", "itemgetter")
        )
    return False


def _added(node: torch.fx.Node, last: torch.fx.Node) -> torch.fx.Node | None:
    """What a node adds to `last`, if it does that and no more; into it, where it adds in place."""
    inplace = node.target is operator.iadd or (node.op == "call_method" and node.target == "add_")
    plain = node.target in (operator.add, torch.add) or (
        node.op == "call_method" and node.target == "add"
    )
    if not (plain or inplace) or len(node.args) != 2 or node.kwargs:
        return None
    others = [arg for arg in node.args if arg is not last]
    if len(others) != 1 or not isinstance(others[0], torch.fx.Node):  # twice itself; a number
        return None
    return None if inplace and node.args[0] is not last else others[0]


def _step_of(node: torch.fx.Node, model: nn.Module) -> str | None:
    if len(node.args) != 1:
        return None
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return None if _has_hooks(module) or node.kwargs else _step_of_module(module)
    if node.op in ("call_function", "call_method"):
        return _step_of_function(node.target, node.kwargs)
    return None


def _fuse_one(graph: torch.fx.Graph, model: nn.Module, node: torch.fx.Node) -> tuple[str, ...]:
    """Takes what follows a norm into its call, and says what that was."""
    steps: list[str] = []
    last, addend, gone = node, None, [node]
    user = _only_user(last)
    if user is not None and (addend := _added(user, last)) is not None:
        steps.append("add")
        last = user
        gone.append(user)
    user = _only_user(last)
    if user is not None and (step := _step_of(user, model)):
        steps.append(step)
        last = user
        gone.append(user)
    if not steps:
        return ()
    # The norm moves to where its last step is: nothing between may write into what it reads.
    between = node.next
    while between is not last:
        if between not in gone and _writes(between, model):
            return ()
        between = between.next
    arguments = (node.args[0],) if addend is None else (node.args[0], addend)
    with graph.inserting_after(last):
        fused = graph.call_module(str(node.target), arguments)
    last.replace_all_uses_with(fused)
    for old in reversed(gone):
        graph.erase_node(old)
    return tuple(steps)


def fuse_norms(model: nn.Module) -> torch.fx.GraphModule:
    """A module that computes what the model does, its norms by our kernels, an add and an activation
    that only they feed within them.

    It is torch.fx's: it has the parameters and buffers of the model that its graph uses, the same ones,
    by the same names; what a model decides by its data or by `training` outside of layers is decided now.
    The model itself stays as it is. Layers that are called twice or have hooks, and activations that have
    some, are not fused; an addend of another shape than x is added by PyTorch when it comes.

    Raises what torch.fx raises where a model cannot be traced, and ValueError for a norm by itself.
    """
    if type(model) in _OURS or type(model) in _THEIRS:
        raise ValueError("fuse_norms takes a model that has norms within it, not a norm")
    graph = _Tracer().trace(model)
    calls: dict[Any, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    layers: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        name = str(node.target)
        layer = model.get_submodule(name)
        if type(layer) not in _OURS and type(layer) not in _THEIRS:
            continue
        # A layer of its own over the same parameters.
        ours = layers.setdefault(name, copy.copy(layer))
        ours.__class__ = _OURS.get(type(layer), type(layer))
        ours.__dict__.pop("_known_specs", None)
        plain = len(node.args) == 1 and not node.kwargs and not ours._fused
        if plain and calls[name] == 1 and not _has_hooks(layer):
            ours._fused = _fuse_one(graph, model, node)  # type: ignore[assignment]
    graph.lint()
    fused = torch.fx.GraphModule(model, graph)
    for name, layer in layers.items():
        fused.set_submodule(name, layer)
    return fused
