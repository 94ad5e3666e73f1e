"""The peers: imported and run in the process of one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from . import normforge
from .contender import OURS, Contender
from .problem import EPSILON, MOMENTUM, MOVING, aligned_copy, channels_first, in_layout

if TYPE_CHECKING:
    import jax
    import numpy as np

    from .problem import Operator, Problem


def torch_function(problem: Problem) -> Callable[..., Any]:
    """Of x, gamma, beta if there is one, and moving statistics if there are."""
    import torch.nn.functional as F

    channels, groups = problem.channels, problem.operator.groups
    training = problem.phase != "inference"

    def batch(x, gamma, beta, mean, variance):
        return F.batch_norm(x, mean, variance, gamma, beta, training, MOMENTUM, EPSILON)

    def layer(x, gamma, beta):
        return F.layer_norm(x, (channels,), gamma, beta, EPSILON)

    def group(x, gamma, beta):
        return F.group_norm(x, groups, gamma, beta, EPSILON)

    def rms(x, gamma):
        return F.rms_norm(x, (channels,), gamma, EPSILON)

    return {"batch": batch, "layer": layer, "group": group, "rms": rms}[problem.operator.name]


def make_torch(problem: Problem, layout: str, compiled: bool) -> Contender:
    import torch
    import torch._functorch.config

    torch.set_num_threads(problem.threads)
    name = "torch.compile" if compiled else "pytorch"
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    x, dy = (
        torch.from_numpy(problem.data[name]).clone(memory_format=memory_format)
        for name in ("x", "dy")
    )
    channel = [torch.from_numpy(array.copy()) for array in problem.channel_arrays()]
    function = torch_function(problem)
    if compiled:
        function = torch.compile(function, dynamic=False)
    if problem.phase != "backward":
        torch.set_grad_enabled(False)

        def read_forward(y: Any, result: str) -> np.ndarray:
            return (channel[MOVING.index(result) - 2] if result in MOVING else y).numpy()

        return Contender(name, layout, lambda: function(x, *channel), read_forward)
    torch.set_grad_enabled(True)
    torch._functorch.config.donated_buffer = False  # the graph is gone through again and again
    parameters = [x, *channel[: len(problem.gradients) - 1]]
    for parameter in parameters:
        parameter.requires_grad_()
    y = function(x, *channel)

    def read(gradients: Any, name: str) -> np.ndarray:
        return gradients[problem.gradients.index(name)].numpy()

    return Contender(
        name,
        layout,
        lambda: torch.autograd.grad(y, parameters, dy, retain_graph=True),
        read,
    )


# By operator: ONNX's name, the first version of the operator set that has it, attributes.
ONNX_NODES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "batch": ("BatchNormalization", 15, {}),
    "layer": ("LayerNormalization", 17, {"axis": -1}),
    "group": ("GroupNormalization", 21, {"num_groups": 32}),
    "rms": ("RMSNormalization", 23, {"axis": -1}),
}


def make_onnxruntime(problem: Problem, layout: str) -> Contender:
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    node, version, attributes = ONNX_NODES[problem.operator.name]
    value = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, list(problem.sizes)) for n in "xy"
    ]
    arrays = {f"p{i}": array for i, array in enumerate(problem.channel_arrays())}
    graph = helper.make_graph(
        [helper.make_node(node, ["x", *arrays], ["y"], epsilon=EPSILON, **attributes)],
        "norm",
        value[:1],
        value[1:],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opset = helper.make_opsetid("", version)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8 if version < 21 else 10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problem.threads
    options.inter_op_num_threads = 1
    if others := problem.processors[1:]:
        affinities = ";".join(str(processor + 1) for processor in others)
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = onnxruntime.OrtValue.ortvalue_from_numpy(aligned_copy(problem.data["x"]))
    y = onnxruntime.OrtValue.ortvalue_from_numpy(aligned_copy(problem.data["x"]))
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    return Contender(
        "onnxruntime",
        layout,
        lambda: session.run_with_iobinding(binding),
        lambda _, __, x=x: y.numpy(),
    )


class Xla:
    """The formulas in jax.numpy, for one operator, shape and layout."""

    def __init__(self, operator: Operator, sizes: tuple[int, ...], layout: str) -> None:
        self.operator = operator
        self.last = layout != "nchw"
        batch, self.channels, *pixels = sizes
        rank = len(sizes)
        self.pixels = tuple(range(1, rank - 1) if self.last else range(2, rank))
        self.over_channels = (0, *self.pixels)
        groups = operator.groups
        if groups:
            within = self.channels // groups
            parts = (groups, within)
            self.view = (batch, *pixels, *parts) if self.last else (batch, *parts, *pixels)
            kept = (0, rank - 1 if self.last else 1)
            self.axes = tuple(axis for axis in range(rank + 1) if axis not in kept)
        else:
            self.view = (batch, *pixels, self.channels) if self.last else sizes
            self.axes = self.over_channels if operator.moving else (rank - 1,)
        self.count = 1
        for axis in self.axes:
            self.count *= self.view[axis]

    def along(self, channel: jax.Array) -> jax.Array:
        """So that it stands along the channels of x."""
        return channel if self.last else channel.reshape((-1,) + (1,) * len(self.pixels))

    def beside(self, statistic: jax.Array) -> jax.Array:
        """So that it stands along its groups in the view."""
        import jax.numpy as jnp

        return jnp.expand_dims(statistic, self.axes)

    def moments(self, x: jax.Array) -> tuple[Any, jax.Array]:
        # In one pass over x, as Flax does; jnp.var takes a second one.
        import jax.numpy as jnp

        view = x.reshape(self.view)
        square = jnp.mean(jnp.square(view), self.axes)
        if not self.operator.centered:
            return 0.0, square
        mean = jnp.mean(view, self.axes)
        return mean, jnp.maximum(square - jnp.square(mean), 0)

    def normalized(self, x: jax.Array, mean: Any, variance: jax.Array) -> jax.Array:
        import jax

        view = x.reshape(self.view)
        if self.operator.centered:
            view = view - self.beside(mean)
        return (view * self.beside(jax.lax.rsqrt(variance + EPSILON))).reshape(x.shape)

    def apply(self, x: jax.Array, mean: Any, variance: jax.Array, parameters: Any) -> jax.Array:
        gamma, *beta = parameters
        y = self.normalized(x, mean, variance) * self.along(gamma)
        return y + self.along(beta[0]) if beta else y

    def inference(self, x: jax.Array, *channel: jax.Array) -> jax.Array:
        if self.operator.moving:
            *parameters, mean, variance = channel
        else:
            parameters, (mean, variance) = list(channel), self.moments(x)
        return self.apply(x, mean, variance, parameters)

    def training(self, x: jax.Array, *channel: jax.Array) -> tuple[jax.Array, ...]:
        *parameters, moving_mean, moving_variance = channel
        mean, variance = self.moments(x)
        moving_mean += MOMENTUM * (mean - moving_mean)
        unbiased = variance * (self.count / (self.count - 1))
        moving_variance += MOMENTUM * (unbiased - moving_variance)
        return self.apply(x, mean, variance, parameters), moving_mean, moving_variance

    def backward(
        self, x: jax.Array, dy: jax.Array, gamma: jax.Array, mean: Any, variance: jax.Array
    ) -> tuple[jax.Array, ...]:
        import jax
        import jax.numpy as jnp

        normalized = self.normalized(x, mean, variance)
        dgamma = jnp.sum(dy * normalized, self.over_channels)
        inner = (dy * self.along(gamma)).reshape(self.view)
        view = normalized.reshape(self.view)
        dx = inner - view * self.beside(jnp.mean(inner * view, self.axes))
        if self.operator.centered:
            dx -= self.beside(jnp.mean(inner, self.axes))
        dx = (dx * self.beside(jax.lax.rsqrt(variance + EPSILON))).reshape(x.shape)
        return dx, dgamma, jnp.sum(dy, self.over_channels)


def make_xla(problem: Problem, layout: str) -> Contender:
    import jax
    import numpy as np

    formulas = Xla(problem.operator, problem.sizes, layout)
    x, dy = (jax.device_put(aligned_copy(in_layout(problem.data[n], layout))) for n in ("x", "dy"))
    channel = [jax.device_put(array.copy()) for array in problem.channel_arrays()]

    def read(results: Any, name: str) -> np.ndarray:
        if name == "y":
            return channels_first(np.asarray(results), layout)
        if name in MOVING:
            return np.asarray(channel[MOVING.index(name) - 2])
        gradient = np.asarray(results[problem.gradients.index(name)])
        return channels_first(gradient, layout) if name == "dx" else gradient

    if problem.phase == "inference":
        inference = jax.jit(formulas.inference)
        return Contender("xla", layout, lambda: jax.block_until_ready(inference(x, *channel)), read)
    if problem.phase == "training":
        training = jax.jit(formulas.training)

        def call_training() -> jax.Array:
            y, *channel[-2:] = jax.block_until_ready(training(x, *channel))
            return y

        return Contender("xla", layout, call_training, read)
    mean = jax.device_put(problem.data.get("batch_mean", np.zeros((), np.float32)))
    variance = jax.device_put(problem.data["batch_variance"])
    backward = jax.jit(lambda *inputs: formulas.backward(*inputs)[: len(problem.gradients)])
    return Contender(
        "xla",
        layout,
        lambda: jax.block_until_ready(backward(x, dy, channel[0], mean, variance)),
        read,
    )


def makers(
    operator: Operator, phase: str
) -> Iterator[tuple[str, str, Callable[[Problem, str], Contender]]]:
    for layout in operator.layouts:
        yield OURS, layout, normforge.make
        yield "pytorch", layout, lambda problem, at: make_torch(problem, at, compiled=False)
        yield "torch.compile", layout, lambda problem, at: make_torch(problem, at, compiled=True)
        if phase == "inference" and layout != "nhwc":
            yield "onnxruntime", layout, make_onnxruntime
        yield "xla", layout, make_xla
