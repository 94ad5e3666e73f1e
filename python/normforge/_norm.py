"""A spec's kernels, one a phase."""

from __future__ import annotations

import functools
import os
from typing import Any

from . import _core


class Norm(_core.Kernel):
    """The kernels of one spec, or of one name of a pack.

    It is the kernel of inference, or of the first phase where the spec has no inference: call it with
    arrays by their names. The other phases are its attributes, compiled when they are first asked
    for; a spec that lists no phases has inference, training and backward.
    """

    def __init__(
        self,
        engine: _core.Engine,
        spec: str,
        *,
        cpu: str = "",
        source: str = "",
        copies: bool = False,
    ) -> None:
        super().__init__(engine, spec, "", cpu, source, copies)
        self.spec = spec
        self._of_phase = lambda phase: _core.Kernel(engine, spec, phase, cpu, source, copies)

    def phase_kernel(self, phase: str) -> _core.Kernel:
        """The kernel of a phase by its name in specs: 'training', 'backward+update'."""
        kernels = self.__dict__.setdefault("_kernels", {self.phase: self})
        if phase not in kernels:
            kernels[phase] = self._of_phase(phase)
        return kernels[phase]

    @functools.cached_property
    def inference(self) -> _core.Kernel:
        """Of statistics that are kept: y."""
        return self.phase_kernel("inference")

    @functools.cached_property
    def training(self) -> _core.Kernel:
        """Of the batch's statistics: y, the statistics, and the next moving ones."""
        return self.phase_kernel("training")

    @functools.cached_property
    def backward(self) -> _core.Kernel:
        """Gradients: dx, dgamma, dbeta, and those of operands."""
        return self.phase_kernel("backward")

    @functools.cached_property
    def update(self) -> _core.Kernel:
        """A step of the spec's optimizer."""
        return self.phase_kernel("update")

    @functools.cached_property
    def backward_update(self) -> _core.Kernel:
        """Backward and the optimizer's step at once."""
        return self.phase_kernel("backward+update")

    @functools.cached_property
    def population(self) -> _core.Kernel:
        """Statistics of all batches so far."""
        return self.phase_kernel("population")

    def __repr__(self) -> str:
        takes = ", ".join([*self.reads, *self.scalars])
        return f"<normforge.Norm {self.name}: {self.phase} of {takes} gives {', '.join(self.writes)}>"


class Pack:
    """Kernels in a file that `normforge pack` made; no compiler is needed.

    >>> norms = nf.Pack("resnet50.nfk")
    >>> y = norms["conv1_bn"](x=x, ...)
    """

    def __init__(
        self, path: str | os.PathLike[str], *, engine: _core.Engine | None = None
    ) -> None:
        from . import default_engine

        self._pack = _core.Pack(engine or default_engine(), os.fspath(path))

    @property
    def kernels(self) -> list[tuple[str, str]]:
        """Names and phases."""
        return self._pack.kernels

    def names(self) -> list[str]:
        return sorted({name for name, _ in self.kernels})

    def load(self, name: str, phase: str = "inference", *, copies: bool = False) -> _core.Kernel:
        """One kernel; NotInPack where there is none, MachineError where it is for other CPUs."""
        return self._pack.load(name, phase, copies)

    def __getitem__(self, name: str) -> _core.Kernel:
        return self.load(name)

    def __contains__(self, name: object) -> bool:
        return any(name == known for known, _ in self.kernels)

    def __len__(self) -> int:
        return len(self.kernels)

    def __iter__(self) -> Any:
        return iter(self.names())
