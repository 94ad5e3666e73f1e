"""Normforge's batch normalization beside what else computes it on a CPU, through Python.

  build/peers/bin/python bench/peers.py [--quick] [--threads N] [--build DIR]
                                        [--json FILE] [--svg FILE] [--markdown]

The contenders are Normforge, PyTorch, torch.compile, ONNX Runtime (inference, nchw) and XLA
(jax.jit), in f32, in nchw and nhwc, in inference and in the forward pass of training: statistics of
the batch, moving statistics updated, y returned. It needs Normforge built in DIR, a C++ compiler
for torch.compile, and the packages numpy, torch, onnx, onnxruntime and jax.

Every shape has a process of its own. In it the contenders run in turn, in blocks of calls, each on
its own copy of the same data, with the same number of threads, one a processor. The first call of
a block is not counted: it pays for what the one before left in the caches. Times are medians over
the blocks; a ratio is the median over the rounds of another's time over Normforge's. Normforge and
ONNX Runtime write y into memory that they are given; the others return a new array, as they do for
their users, but from a malloc that keeps freed memory, so that they seldom pay for new pages. Each
y is compared with one computed in f64 before it is timed.

--json writes an object a contender and case, with its ratio to Normforge in the same layout and to
Normforge in nchw. Nothing else should run on the machine meanwhile: the spread of the times, at the
end of the table, tells.

Exit status: 0 all was measured, 1 something was left out (it says what and why), 2 bad input.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    import numpy as np

SHAPES = [
    "1x64x112x112", "1x64x56x56", "1x256x56x56", "1x1024x14x14", "1x2048x7x7", "32x64x56x56",
    "32x256x56x56", "32x512x28x28", "64x64x112x112", "32x2048x7x7", "32x128x28x28",
]  # fmt: skip
QUICK_SHAPES = ["1x64x56x56", "1x1024x14x14", "32x128x28x28", "32x64x56x56"]
PHASES = ["inference", "training"]
LAYOUTS = ["nchw", "nhwc"]
OURS = "normforge"
PEERS = {
    "pytorch": "PyTorch",
    "torch.compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "xla": "XLA",
}
PACKAGES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "jax": "JAX (XLA)", "numpy": "NumPy"}

EPSILON = 1e-5
MOMENTUM = 0.1  # the weight of the new value
TOLERANCE = 1e-4  # of the largest |y|
BEHIND = 1 / 1.03
UNSTEADY = 0.15  # the median spread of our times
BLOCK_SECONDS = 2e-3
PAUSE_SECONDS = 5e-3  # longer than idle threads of OpenMP and of the others spin
MIN_ROUNDS, MAX_ROUNDS = 7, 200


def fail(message: str) -> NoReturn:
    print(f"peers.py: error: {message}", file=sys.stderr)
    sys.exit(2)


# ---- The contenders: imported and run in the process of one shape ------------------------------


@dataclass
class Problem:
    """One shape and phase, with data drawn in nchw."""

    sizes: tuple[int, int, int, int]
    phase: str
    processors: list[int]  # one a thread
    build: Path
    x: np.ndarray
    channel: dict[str, np.ndarray]  # gamma, beta, moving_mean, moving_variance

    @property
    def threads(self) -> int:
        return len(self.processors)

    @property
    def training(self) -> bool:
        return self.phase == "training"


@dataclass
class Contender:
    name: str
    layout: str
    call: Callable[[], Any]
    read: Callable[[Any], np.ndarray]  # y in nchw, of what call returned


def draw(sizes: tuple[int, int, int, int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    import numpy as np

    random = np.random.default_rng(1)
    channels = sizes[1]

    def uniform(low: float, high: float) -> np.ndarray:
        return random.uniform(low, high, channels).astype(np.float32)

    x = random.standard_normal(sizes, np.float32)
    x *= uniform(0.5, 2)[:, None, None]
    x += uniform(-1, 1)[:, None, None]
    return x, {
        "gamma": uniform(0.5, 1.5),
        "beta": uniform(-1, 1),
        "moving_mean": uniform(-1, 1),
        "moving_variance": uniform(0.5, 2),
    }


def expected_y(problem: Problem) -> np.ndarray:
    import numpy as np

    x = problem.x.astype(np.float64)
    gamma, beta, mean, variance = (a.astype(np.float64) for a in problem.channel.values())
    if problem.training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    scale = gamma / np.sqrt(variance + EPSILON)
    x *= scale[:, None, None]
    x += (beta - mean * scale)[:, None, None]
    return x.astype(np.float32)


def in_layout(x: np.ndarray, layout: str) -> np.ndarray:
    return x if layout == "nchw" else x.transpose(0, 2, 3, 1)


def to_nchw(y: np.ndarray, layout: str) -> np.ndarray:
    return y if layout == "nchw" else y.transpose(0, 3, 1, 2)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """A dense copy at a multiple of 64 bytes, as the allocators of the other libraries give."""
    import numpy as np

    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class EngineOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("perf_map", ctypes.c_uint32),
        ("compiler_library", ctypes.c_char_p),
        ("cache_directory", ctypes.c_char_p),
        ("cache_bytes", ctypes.c_uint64),
        ("log", ctypes.c_void_p),
        ("log_user", ctypes.c_void_p),
        ("debugger", ctypes.c_uint32),
        ("executor", ctypes.c_void_p),
        ("allocator", ctypes.c_void_p),
        ("compile_in_child", ctypes.c_uint32),
        ("compile_seconds", ctypes.c_uint32),
        ("compile_bytes", ctypes.c_uint64),
        ("verify", ctypes.c_uint32),
    ]


class CompileOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("phase", ctypes.c_char_p),
        ("cpu", ctypes.c_char_p),
        ("source_name", ctypes.c_char_p),
    ]


class Executor(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("parallel_for", ctypes.c_void_p),
        ("user", ctypes.c_void_p),
    ]


def library_paths(build: Path) -> tuple[Path, Path]:
    return build / "lib/libnormforge.so", build / "lib/libnormforge-bench-openmp.so"


def load_normforge(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path.resolve()))
    for name in ("nf_engine_create", "nf_compile", "nf_plan_create", "nf_run"):
        getattr(library, name).restype = ctypes.c_void_p  # nf_status *
    library.nf_version.restype = ctypes.c_char_p
    library.nf_status_message.restype = ctypes.c_char_p
    library.nf_status_message.argtypes = [ctypes.c_void_p]
    library.nf_kernel_argument_count.restype = ctypes.c_size_t
    library.nf_kernel_argument_name.restype = ctypes.c_char_p
    library.nf_plan_argument_bytes.restype = ctypes.c_uint64
    library.nf_plan_workspace_bytes.restype = ctypes.c_uint64
    return library


def make_normforge(problem: Problem, layout: str) -> Contender:
    import numpy as np

    path, openmp_path = library_paths(problem.build)
    library = load_normforge(path)

    def check(status: int | None) -> None:
        if status:
            raise RuntimeError(library.nf_status_message(status).decode())

    batch, channels, height, width = problem.sizes
    shape = {
        "nchw": f"[N, {channels}, {height}, {width}]",
        "nhwc": f"[N, {height}, {width}, {channels}]",
    }[layout]
    spec = (
        "name: batch_norm\n"
        "semantics: pytorch\n"
        f"input: {{shape: {shape}, layout: {layout}, dtype: f32}}\n"
        "axis: c\n"
        "phases: [inference, training]\n"
    ).encode()
    engine, kernel, plan = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    engine_options = EngineOptions(ctypes.sizeof(EngineOptions), cache_directory=b"")
    compile_options = CompileOptions(ctypes.sizeof(CompileOptions), problem.phase.encode())
    check(library.nf_engine_create(ctypes.byref(engine_options), ctypes.byref(engine)))
    check(
        library.nf_compile(
            engine,
            spec,
            ctypes.c_size_t(len(spec)),
            ctypes.byref(compile_options),
            ctypes.byref(kernel),
        )
    )
    sizes = (ctypes.c_int64 * 1)(batch)
    check(library.nf_plan_create(kernel, sizes, ctypes.c_size_t(1), ctypes.byref(plan)))

    # The old and the new moving statistics are arguments of one name: updated in place.
    arrays = {name: aligned_copy(array) for name, array in problem.channel.items()}
    arrays["x"] = aligned_copy(in_layout(problem.x, layout))
    count = library.nf_kernel_argument_count(kernel)
    pointers = (ctypes.c_void_p * count)()
    for i in range(count):
        name = library.nf_kernel_argument_name(kernel, ctypes.c_size_t(i)).decode()
        if name not in arrays:  # only written
            size = library.nf_plan_argument_bytes(plan, ctypes.c_size_t(i))
            arrays[name] = aligned_copy(np.full(size // 4, np.nan, np.float32))
        pointers[i] = arrays[name].ctypes.data
    y = arrays["y"].reshape(arrays["x"].shape)
    workspace = aligned_copy(np.zeros(library.nf_plan_workspace_bytes(plan) + 1, np.uint8))
    parallel_for = ctypes.CDLL(str(openmp_path.resolve())).nf_bench_parallel_for
    executor = Executor(
        ctypes.sizeof(Executor),
        ctypes.cast(parallel_for, ctypes.c_void_p),
        ctypes.c_void_p(problem.threads),
    )

    run = library.nf_run
    arguments = (
        plan,
        pointers,
        ctypes.c_size_t(count),
        None,
        ctypes.c_size_t(0),
        ctypes.c_void_p(workspace.ctypes.data),
        ctypes.byref(executor),
    )

    def call() -> None:
        if status := run(*arguments):
            check(status)

    # The pointers do not keep their arrays alive; the reader does.
    kept = (arrays, workspace, executor)
    return Contender(OURS, layout, call, lambda _, kept=kept: to_nchw(y, layout))


def make_torch(problem: Problem, layout: str, compiled: bool) -> Contender:
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(problem.threads)
    torch.set_grad_enabled(False)
    memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
    x = torch.from_numpy(problem.x).clone(memory_format=memory_format)
    gamma, beta, mean, variance = (torch.from_numpy(a.copy()) for a in problem.channel.values())
    training = problem.training

    def batch_norm(x, mean, variance, gamma, beta):
        return F.batch_norm(x, mean, variance, gamma, beta, training, MOMENTUM, EPSILON)

    function = torch.compile(batch_norm, dynamic=False) if compiled else batch_norm
    return Contender(
        "torch.compile" if compiled else "pytorch",
        layout,
        lambda: function(x, mean, variance, gamma, beta),
        lambda y: y.numpy(),
    )


def make_onnxruntime(problem: Problem, layout: str) -> Contender:
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    shape = list(problem.sizes)
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in "xy"]
    names = list(problem.channel)
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", *names], ["y"], epsilon=EPSILON)],
        "batch_norm",
        value[:1],
        value[1:],
        [numpy_helper.from_array(array, name) for name, array in problem.channel.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problem.threads
    options.inter_op_num_threads = 1
    if others := problem.processors[1:]:
        affinities = ";".join(str(processor + 1) for processor in others)
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = onnxruntime.OrtValue.ortvalue_from_numpy(aligned_copy(problem.x))
    y = onnxruntime.OrtValue.ortvalue_from_numpy(aligned_copy(problem.x))
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    return Contender(
        "onnxruntime",
        layout,
        lambda: session.run_with_iobinding(binding),
        lambda _, x=x: y.numpy(),
    )


def make_xla(problem: Problem, layout: str) -> Contender:
    import jax
    import jax.numpy as jnp
    import numpy as np

    along = (slice(None), None, None) if layout == "nchw" else slice(None)
    axes = (0, 2, 3) if layout == "nchw" else (0, 1, 2)
    count = problem.x.size // problem.sizes[1]

    def normalize(x, gamma, beta, mean, variance):
        scale = jax.lax.rsqrt(variance + EPSILON) * gamma
        return (x - mean[along]) * scale[along] + beta[along]

    def train(x, gamma, beta, moving_mean, moving_variance):
        # In one pass over x, as Flax does; jnp.var takes a second one.
        mean = jnp.mean(x, axes)
        variance = jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0)
        moving_mean += MOMENTUM * (mean - moving_mean)
        moving_variance += MOMENTUM * (variance * (count / (count - 1)) - moving_variance)
        return normalize(x, gamma, beta, mean, variance), moving_mean, moving_variance

    x = jax.device_put(aligned_copy(in_layout(problem.x, layout)))
    gamma, beta, mean, variance = (jax.device_put(a.copy()) for a in problem.channel.values())

    inference, training = jax.jit(normalize), jax.jit(train)

    def call_inference() -> jax.Array:
        return jax.block_until_ready(inference(x, gamma, beta, mean, variance))

    def call_training() -> jax.Array:
        nonlocal mean, variance
        y, mean, variance = jax.block_until_ready(training(x, gamma, beta, mean, variance))
        return y

    call = call_training if problem.training else call_inference
    return Contender("xla", layout, call, lambda y: to_nchw(np.asarray(y), layout))


def makers(phase: str) -> Iterator[tuple[str, str, Callable[[Problem, str], Contender]]]:
    for layout in LAYOUTS:
        yield OURS, layout, make_normforge
        yield "pytorch", layout, lambda problem, at: make_torch(problem, at, compiled=False)
        yield "torch.compile", layout, lambda problem, at: make_torch(problem, at, compiled=True)
        if phase == "inference" and layout == "nchw":
            yield "onnxruntime", layout, make_onnxruntime
        yield "xla", layout, make_xla


# ---- Measuring ---------------------------------------------------------------------------------


def disagreement(contender: Contender, expected: np.ndarray) -> str | None:
    """Runs it once; what is wrong with its y."""
    import numpy as np

    y = contender.read(contender.call())
    if y.shape != expected.shape:
        return f"y has the shape {y.shape}"
    # Written so that a NaN disagrees.
    error = float(np.abs(y - expected).max() / np.abs(expected).max())
    return None if error <= TOLERANCE else f"disagrees with f64: error {error:.2g} of the largest y"


def seconds_a_call(contender: Contender, calls: int) -> float:
    call = contender.call
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls


def measure(contenders: list[Contender], seconds: float) -> list[list[float]]:
    """The microseconds of a call, of every contender and round."""
    calls = []
    seconds_a_round = 0.0
    for contender in contenders:
        seconds_a_call(contender, 2)
        once = seconds_a_call(contender, 2)
        calls.append(max(2, math.ceil(BLOCK_SECONDS / once)))
        seconds_a_round += (calls[-1] + 1) * once + PAUSE_SECONDS
    rounds = min(max(int(seconds / seconds_a_round), MIN_ROUNDS), MAX_ROUNDS)
    blocks: list[list[float]] = [[] for _ in contenders]
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for contender, count, times in zip(contenders, calls, blocks, strict=True):
            time.sleep(PAUSE_SECONDS)
            contender.call()
            times.append(seconds_a_call(contender, count) * 1e6)
    gc.enable()
    return blocks


def measure_phase(problem: Problem, seconds: float) -> Iterator[dict[str, Any]]:
    """A record of every contender: its times, or the reason why it has none."""
    case = {
        "spec": "batch_norm",
        "phase": problem.phase,
        "layout": "",
        "sizes": "x".join(map(str, problem.sizes)),
        "threads": problem.threads,
        "contender": "",
    }
    expected = expected_y(problem)
    contenders: list[Contender] = []
    for name, layout, make in makers(problem.phase):
        try:
            # Threads that a library starts inherit what the thread that makes it may run on.
            os.sched_setaffinity(0, problem.processors)
            contender = make(problem, layout)
            reason = disagreement(contender, expected)
        except Exception as error:  # whatever a library throws is a reason to leave it out
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0]}"
        if reason:
            yield case | {"layout": layout, "contender": name, "left_out": reason}
        else:
            contenders.append(contender)
    del expected
    os.sched_setaffinity(0, problem.processors[:1])
    blocks = measure(contenders, seconds)
    ours = {c.layout: b for c, b in zip(contenders, blocks, strict=True) if c.name == OURS}

    def ratio(times: list[float], layout: str) -> float | None:
        if layout not in ours:
            return None
        ratios = [theirs / our for theirs, our in zip(times, ours[layout], strict=True)]
        return round(statistics.median(ratios), 4)

    for contender, times in zip(contenders, blocks, strict=True):
        median = statistics.median(times)
        low, _, high = statistics.quantiles(times, n=4)
        yield case | {
            "layout": contender.layout,
            "contender": contender.name,
            "median_us": round(median, 3),
            "spread": round((high - low) / median, 4),
            "ratio": ratio(times, contender.layout),
            "ratio_to_nchw": ratio(times, "nchw"),
        }


def run_case(arguments: argparse.Namespace) -> None:
    """The process of one shape: prints one record a line."""
    # What libraries print must not come between the records.
    records = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    processors = usable_processors()[: arguments.threads]
    batch, channels, height, width = map(int, arguments.case.split("x"))
    sizes = (batch, channels, height, width)
    x, channel = draw(sizes)
    for phase in PHASES:
        problem = Problem(sizes, phase, processors, arguments.build, x, channel)
        for record in measure_phase(problem, 0.6 if arguments.quick else 2.5):
            print(json.dumps(record), file=records, flush=True)


def usable_processors() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def measure_shape(
    shape: str, arguments: argparse.Namespace, cache: str
) -> tuple[list[dict[str, Any]], str | None]:
    """The records of a shape from a process of its own, and how the process failed."""
    command = [sys.executable, __file__, "--case", shape, "--threads", str(arguments.threads)]
    command += ["--build", str(arguments.build)] + ["--quick"] * arguments.quick
    # Unbound, two threads that spin for each other can stay on one processor for many milliseconds.
    places = ",".join(f"{{{processor}}}" for processor in usable_processors()[: arguments.threads])
    environment = os.environ | {
        "OMP_NUM_THREADS": str(arguments.threads),
        "OMP_PLACES": places,
        "OMP_PROC_BIND": "true",
        # malloc keeps what is freed: of PyTorch's time to return 200 MB, new pages were two thirds.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no helpers that would run beside the contenders
    }
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    records = [json.loads(line) for line in child.stdout.splitlines()]
    if child.returncode == 0:
        return records, None
    lines = child.stderr.strip().splitlines() or ["it said nothing"]
    return records, f"the process ended with status {child.returncode}: {lines[-1]}"


# ---- The table ---------------------------------------------------------------------------------


class Results:
    """The records by what they are of."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._by_key: dict[tuple[str, str, str, str], dict[str, Any]] = {}

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        key = (record["sizes"], record["phase"], record["layout"], record["contender"])
        self._by_key[key] = record

    def get(self, shape: str, phase: str, layout: str, contender: str, field: str) -> float | None:
        return self._by_key.get((shape, phase, layout, contender), {}).get(field)

    def best_peer(self, shape: str, phase: str) -> float | None:
        """Of all peers and layouts, the least time over ours in nchw."""
        ratios = [
            self.get(shape, phase, layout, peer, "ratio_to_nchw")
            for layout in LAYOUTS
            for peer in PEERS
        ]
        return min((r for r in ratios if r is not None), default=None)


class Table:
    """Rows of text in columns or in Markdown, printed as they come."""

    HEADS = ["shape", "phase", "nchw us", "nhwc us", *PEERS.values(), "best peer"]
    WIDTHS = [14, 9, 9, 9, 13, 13, 13, 13, 11]

    def __init__(self, markdown: bool) -> None:
        self.markdown = markdown

    def row(self, cells: list[str]) -> None:
        if self.markdown:
            print("| " + " | ".join(cells) + " |", flush=True)
            return
        padded = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, self.WIDTHS, strict=True))
        ]
        print("  ".join(padded).rstrip(), flush=True)

    def head(self) -> None:
        self.row(self.HEADS)
        if self.markdown:
            print("|---|---|" + "---:|" * (len(self.HEADS) - 2))

    def case(self, results: Results, shape: str, phase: str) -> None:
        def us(layout: str) -> str:
            value = results.get(shape, phase, layout, OURS, "median_us")
            return f"{value:.1f}" if value else "-"

        peers = [
            pair([number(results.get(shape, phase, layout, peer, "ratio")) for layout in LAYOUTS])
            for peer in PEERS
        ]
        best = number(results.best_peer(shape, phase))
        self.row([shape, phase, *map(us, LAYOUTS), *peers, best])

    def summary(self, results: Results, shapes: list[str]) -> None:
        """The geometric mean of every column, and in how many of its cases we are behind."""
        for phase in PHASES:
            means, behind = [], []
            for peer in PEERS:
                columns = [
                    [results.get(shape, phase, layout, peer, "ratio") for shape in shapes]
                    for layout in LAYOUTS
                ]
                means.append(pair([geometric_mean(column) for column in columns]))
                behind.append(pair([count_behind(column) for column in columns]))
            best = [results.best_peer(shape, phase) for shape in shapes]
            self.row(["geometric mean", phase, "", "", *means, geometric_mean(best)])
            self.row(["cases behind", phase, "", "", *behind, count_behind(best)])


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


# ---- The chart ---------------------------------------------------------------------------------


class Chart:
    """Bars of the peers' times over ours on a logarithmic axis; the inference panel on the left."""

    WIDTH = 900
    LABELS = 112  # width of the shapes' names
    GAP = 36  # between the panels, and right of them: room for the last number
    TOP = 104
    BAR, PITCH, GROUP_GAP = 8, 9, 12
    COLORS = {
        "pytorch": "#d55e00",
        "torch.compile": "#e6a700",
        "onnxruntime": "#0072b2",
        "xla": "#009e73",
    }
    OPACITY = {"nchw": 1.0, "nhwc": 0.45}
    LARGEST = 64.0  # longer bars are cut; their numbers tell

    def __init__(self, results: Results, shapes: list[str], head: str) -> None:
        self.results, self.shapes, self.head = results, shapes, head
        self.panel = (self.WIDTH - self.LABELS - 2 * self.GAP) / 2
        found = [record["ratio"] for record in results.records if record.get("ratio")]
        self.low = 2.0 ** min(-1, math.floor(math.log2(min(found, default=1))))
        self.high = min(self.LARGEST, 2.0 ** max(1, math.ceil(math.log2(max(found, default=1)))))
        bars = max(len(self.bars(phase)) for phase in PHASES)
        self.group = bars * self.PITCH + self.GROUP_GAP
        self.bottom = self.TOP + self.group * len(shapes)
        self.height = self.bottom + 52
        self.parts: list[str] = []

    def bars(self, phase: str) -> list[tuple[str, str]]:
        """The peer and layout of the bars of a group, from the top: those that exist at all."""
        return [
            (peer, layout)
            for peer in PEERS
            for layout in LAYOUTS
            if any(self.results.get(s, phase, layout, peer, "ratio") for s in self.shapes)
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
            f'<line x1="{x:.1f}" y1="{self.TOP - 4}" x2="{x:.1f}" y2="{self.bottom}" '
            f'stroke="{color}" stroke-width="{width}"/>'
        )

    def legend(self) -> None:
        x = 16.0
        drawn = [bar for phase in PHASES for bar in self.bars(phase)]
        for peer, title in PEERS.items():
            for layout in LAYOUTS:
                if (peer, layout) in drawn:
                    self.rectangle(x, 47, 16, self.COLORS[peer], self.OPACITY[layout])
                    x += 16
            self.text(x + 6, 55, title)
            x += 6 + 7 * len(title) + 22
        self.text(x, 55, "dark: nchw; light: nhwc, over Normforge in nhwc")

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
        bars = self.bars(phase)
        for row, shape in enumerate(self.shapes):
            y = self.TOP + row * self.group + (self.group - len(bars) * self.PITCH) / 2
            for peer, layout in bars:
                self.draw_bar(left, y, peer, layout, shape, phase)
                y += self.PITCH

    def draw_bar(
        self, left: float, y: float, peer: str, layout: str, shape: str, phase: str
    ) -> None:
        ratio = self.results.get(shape, phase, layout, peer, "ratio")
        if ratio is None:
            self.text(self.x(left, 1) + 3, y + 7.5, "not measured", 9, fill="#555555")
            return
        one, end = self.x(left, 1), self.x(left, ratio)
        width = abs(end - one)
        self.rectangle(min(one, end), y, width, self.COLORS[peer], self.OPACITY[layout])
        digits = 1 if ratio >= 9.95 else 2
        self.text(max(one, end) + 3, y + 7.5, f"{ratio:.{digits}f}", 9, fill="#333333")

    def svg(self) -> str:
        title = "Batch normalization, f32: time over Normforge's (more than 1: slower)"
        self.text(16, 28, title, 15, font_weight="bold")
        self.legend()
        for row, shape in enumerate(self.shapes):
            y = self.TOP + (row + 0.5) * self.group + 4
            self.text(self.LABELS - 10, y, shape, 11, text_anchor="end")
        for index, phase in enumerate(PHASES):
            self.draw_panel(phase, self.LABELS + index * (self.panel + self.GAP))
        self.text(16, self.height - 14, self.head, 10, fill="#555555")
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.WIDTH}" height="{self.height}" '
            f'viewBox="0 0 {self.WIDTH} {self.height}" fill="#111111" '
            'font-family="Helvetica, Arial, \'DejaVu Sans\', sans-serif">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{self.WIDTH}" height="{self.height}" fill="#ffffff"/>',
            *self.parts,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


# ---- The command -------------------------------------------------------------------------------


def check_writable(path: Path) -> None:
    if path.exists() and not path.is_file():
        fail(f"cannot write {path}: not a regular file")
    try:
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")


def write_whole(path: Path, text: str) -> None:
    """Readers see the old file or the new, never a part."""
    target = path.resolve()
    new = target.with_name(f"{target.name}.{os.getpid()}.new")
    try:
        new.write_text(text)
        new.replace(target)
    except OSError as error:
        new.unlink(missing_ok=True)
        fail(f"cannot write {path}: {error.strerror}")


def thread_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to 1024")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="peers.py",
        description=description,
        epilog=rest.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="four shapes, and less time for each")
    parser.add_argument(
        "--threads", type=thread_count, default=2, metavar="N", help="of each contender (2)"
    )
    parser.add_argument(
        "--build", type=Path, default=Path("build"), metavar="DIR", help="Normforge's build (build)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write an object a line")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw a chart")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # the process of one shape
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> ctypes.CDLL:
    for path in library_paths(arguments.build):
        if not path.is_file():
            fail(f"{path} is missing; build Normforge first, or name its folder with --build")
    for path in (arguments.json, arguments.svg):
        if path:
            check_writable(path)
    if not importlib.util.find_spec("numpy"):
        fail("this Python has no package numpy")
    processors = len(usable_processors())
    if arguments.threads > processors:
        fail(f"{arguments.threads} threads, but there are {processors} processors")
    try:
        return load_normforge(library_paths(arguments.build)[0])
    except (OSError, AttributeError) as error:
        fail(f"cannot load Normforge: {error}")


def main() -> int:
    arguments = parse_arguments()
    if arguments.case:
        run_case(arguments)
        return 0
    head = head_line(arguments.threads, check_arguments(arguments))
    shapes = QUICK_SHAPES if arguments.quick else SHAPES
    results, table = Results(), Table(arguments.markdown)
    failures: list[str] = []

    print(head + "\n")
    table.head()
    with tempfile.TemporaryDirectory(prefix="peers-") as cache:
        for shape in shapes:
            records, failure = measure_shape(shape, arguments, cache)
            if failure:
                failures.append(f"{shape}: {failure}")
            for record in records:
                if reason := record.get("left_out"):
                    case = " ".join(record[key] for key in ("sizes", "phase", "layout"))
                    failures.append(f"{case}, {record['contender']}: {reason}")
                else:
                    results.add(record)
            for phase in PHASES:
                table.case(results, shape, phase)
    table.summary(results, shapes)

    print(
        "\nus: Normforge's median in each layout. Peers: their time over Normforge's in the same\n"
        "layout, nchw / nhwc. Best peer: the fastest in any layout over Normforge in nchw.\n"
        "Behind: below 1/1.03."
    )
    print_spread(results)
    for failure in failures:
        print(f"left out: {failure}")
    if arguments.json:
        write_whole(arguments.json, "".join(json.dumps(r) + "\n" for r in results.records))
    if arguments.svg:
        write_whole(arguments.svg, Chart(results, shapes, head).svg())
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
