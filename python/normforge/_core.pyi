from collections.abc import Sequence
from typing import Any, overload

version: str

class Engine:
    def __init__(
        self,
        compiler_library: str = "",
        cache_directory: str | None = None,
        threads: int = 0,
        compile_in_child: bool = False,
        tuned_records: str = "",
        openmp: str = "",
    ) -> None: ...
    def load(self, artifact: bytes, copies: bool = False) -> Kernel: ...
    @property
    def threads(self) -> int: ...

class Kernel:
    @overload
    def __init__(
        self, pack: Pack, name: str, phase: str = "inference", copies: bool = False
    ) -> None: ...
    @overload
    def __init__(
        self,
        engine: Engine,
        spec: str,
        phase: str = "",
        cpu: str = "",
        source: str = "",
        copies: bool = False,
    ) -> None: ...
    def __call__(self, *, out: dict[str, Any] = ..., **arrays: Any) -> Any: ...
    def apply(
        self,
        arrays: list[Any],
        numbers: Sequence[float] = (),
        out: list[Any] | None = None,
    ) -> list[Any]: ...
    def save(self) -> bytes: ...
    @property
    def name(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def cpu(self) -> str: ...
    @property
    def reads(self) -> list[str]: ...
    @property
    def writes(self) -> list[str]: ...
    @property
    def arguments(self) -> list[dict[str, Any]]: ...
    @property
    def scalars(self) -> list[str]: ...
    @property
    def schedules(self) -> list[tuple[str, str]]: ...

class Pack:
    def __init__(self, engine: Engine, path: str) -> None: ...
    def load(self, name: str, phase: str = "inference", copies: bool = False) -> Kernel: ...
    @property
    def kernels(self) -> list[tuple[str, str]]: ...
