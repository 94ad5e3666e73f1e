"""Measuring: contenders in turn, in blocks of calls; a process a shape."""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .contender import OURS, Contender
from .contenders import makers
from .problem import OPERATORS, Operator, Problem, draw, expected

if TYPE_CHECKING:
    import argparse

    import numpy as np

TOLERANCE = 1e-4  # of the largest value of a result
BLOCK_SECONDS = 2e-3
PAUSE_SECONDS = 5e-3  # longer than idle threads of OpenMP and of the others spin
MIN_ROUNDS, MAX_ROUNDS = 7, 200


def disagreement(contender: Contender, wanted: dict[str, np.ndarray]) -> str | None:
    """Runs it once; what is wrong with its results."""
    import numpy as np

    results = contender.call()
    for name, right in wanted.items():
        found = contender.read(results, name)
        if found.shape != right.shape:
            return f"{name} has the shape {found.shape}"
        # Written so that a NaN disagrees.
        error = float(np.abs(found - right).max() / np.abs(right).max())
        if not error <= TOLERANCE:
            return f"disagrees with f64: error {error:.2g} of the largest {name}"
    return None


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
    if not contenders:
        return []
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
        "operator": problem.operator.name,
        "phase": problem.phase,
        "layout": "",
        "sizes": "x".join(map(str, problem.sizes)),
        "threads": problem.threads,
        "contender": "",
    }
    wanted = expected(problem)
    contenders: list[Contender] = []
    for name, layout, make in makers(problem.operator, problem.phase):
        try:
            # Threads that a library starts inherit what the thread that makes it may run on.
            os.sched_setaffinity(0, problem.processors)
            contender = make(problem, layout)
            reason = disagreement(contender, wanted)
        except Exception as error:  # whatever a library throws is a reason to leave it out
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0]}"
        if reason:
            yield case | {"layout": layout, "contender": name, "left_out": reason}
        else:
            contenders.append(contender)
    del wanted
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
            "ratio_to_first": ratio(times, problem.operator.layouts[0]),
        }


def run_case(arguments: argparse.Namespace) -> None:
    """The process of one operator and shape: prints one record a line."""
    # The output of libraries must not come between the records.
    records = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    processors = usable_processors()[: arguments.threads]
    name, _, shape = arguments.case.partition(":")
    operator = OPERATORS[name]
    sizes = tuple(map(int, shape.split("x")))
    data = draw(operator, sizes)
    for phase in phases_of(operator, arguments):
        problem = Problem(operator, sizes, phase, processors, arguments.build, data)
        for record in measure_phase(problem, 0.6 if arguments.quick else 2.5):
            print(json.dumps(record), file=records, flush=True)


def phases_of(operator: Operator, arguments: argparse.Namespace) -> list[str]:
    return [phase for phase in operator.phases if phase in arguments.phases]


def usable_processors() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def measure_shape(
    operator: Operator, shape: str, arguments: argparse.Namespace, cache: str
) -> tuple[list[dict[str, Any]], str | None]:
    """The records of a shape from a process of its own, and how the process failed."""
    command = [sys.executable, "-m", __package__, "--case", f"{operator.name}:{shape}"]
    command += ["--threads", str(arguments.threads), "--phases", ",".join(arguments.phases)]
    command += ["--build", str(arguments.build)] + ["--quick"] * arguments.quick
    # Unbound, two threads that spin for each other can stay on one processor for many milliseconds.
    places = ",".join(f"{{{processor}}}" for processor in usable_processors()[: arguments.threads])
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
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
