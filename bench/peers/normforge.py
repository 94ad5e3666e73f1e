"""Normforge by its C API."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from .contender import OURS, Contender
from .problem import aligned_copy, channels_first, in_layout

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from .problem import Problem


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


def load(path: Path) -> ctypes.CDLL:
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


def spec_of(problem: Problem, layout: str) -> bytes:
    _, channels, *pixels = problem.sizes
    sizes = [*pixels, channels] if layout == "nhwc" else [channels, *pixels]
    operator = problem.operator
    return (
        "name: peers\n"
        "semantics: pytorch\n"
        f"input: {{shape: [N, {', '.join(map(str, sizes))}], layout: {layout}, dtype: f32}}\n"
        f"{operator.spec}\n"
        f"phases: [{', '.join(operator.phases)}]\n"
    ).encode()


def make(problem: Problem, layout: str) -> Contender:
    import numpy as np

    path, openmp_path = library_paths(problem.build)
    library = load(path)

    def check(status: int | None) -> None:
        if status:
            raise RuntimeError(library.nf_status_message(status).decode())

    spec = spec_of(problem, layout)
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
    sizes = (ctypes.c_int64 * 1)(problem.sizes[0])
    check(library.nf_plan_create(kernel, sizes, ctypes.c_size_t(1), ctypes.byref(plan)))

    # The old and the new moving statistics are arguments of one name: updated in place.
    arrays: dict[str, np.ndarray] = {}
    count = library.nf_kernel_argument_count(kernel)
    pointers = (ctypes.c_void_p * count)()
    for i in range(count):
        name = library.nf_kernel_argument_name(kernel, ctypes.c_size_t(i)).decode()
        if name in problem.data and name not in arrays:
            data = problem.data[name]
            arrays[name] = aligned_copy(in_layout(data, layout) if name in ("x", "dy") else data)
        elif name not in arrays:
            size = library.nf_plan_argument_bytes(plan, ctypes.c_size_t(i))
            arrays[name] = aligned_copy(np.full(size // 4, np.nan, np.float32))
        pointers[i] = arrays[name].ctypes.data
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

    def read(_: object, name: str) -> np.ndarray:
        # The pointers do not keep their arrays alive; the reader does.
        assert workspace is not None and executor is not None
        if name in ("y", "dx"):
            return channels_first(arrays[name].reshape(arrays["x"].shape), layout)
        return arrays[name]

    return Contender(OURS, layout, call, read)
