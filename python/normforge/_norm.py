"""A spec's kernels, one a phase."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import _command, _core
from ._errors import NotInPack, PhaseError, SpecError


class _Phases(_core.Kernel):
    """The kernel of one phase, with the other phases as attributes, made when they are first asked
    for; PhaseError, which hasattr understands, where there is none."""

    _of_phase: Callable[[str], _core.Kernel]

    def phase_kernel(self, phase: str) -> _core.Kernel:
        """The kernel of a phase by its name in specs: 'training', 'backward+update'."""
        kernels = self.__dict__.setdefault("_kernels", {self.phase: self})
        if phase not in kernels:
            try:
                kernels[phase] = self._of_phase(phase)
            except SpecError as error:
                raise PhaseError(str(error)) from None
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


class Norm(_Phases):
    """The kernels of one spec.

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
        self._cpu = cpu
        self._of_phase = lambda phase: _core.Kernel(engine, spec, phase, cpu, source, copies)

    def explain(self, phase: str = "", **sizes: int) -> str:
        """How a phase is computed: its formulas, loop nest, schedule and arguments. Named sizes, such
        as N=8, say what they come to. By the command `normforge`, on PATH or $NORMFORGE_COMMAND."""
        return _command.explain(self.spec, phase or self.phase, self._cpu, sizes)

    def check(
        self, phase: str = "", *, results: Mapping[str, Any] | None = None, **arrays: Any
    ) -> _command.Report:
        """Whether the kernel agrees with the f64 reference, and with oneDNN where that computes the
        same, on these arrays and numbers: all that the phase reads. `results` are somebody's, to be
        compared too. By the command `normforge`, as `explain`; for the CPU it runs on.

        Gives a Report, which is true where all agree and prints as the command does.
        """
        kernel = self.phase_kernel(phase or self.phase)
        return _command.check(
            self.spec, kernel.phase, kernel.scalars, results or {}, kernel.reads, arrays
        )


class PackedNorm(_Phases):
    """The kernels of one name in a pack: that of inference, or of the first phase that there is."""

    def __init__(self, pack: _core.Pack, name: str, phase: str, copies: bool = False) -> None:
        super().__init__(pack, name, phase, copies)

        def of_phase(other: str) -> _core.Kernel:
            try:
                return _core.Kernel(pack, name, other, copies)
            except (NotInPack, ValueError) as error:
                raise PhaseError(str(error)) from None

        self._of_phase = of_phase


class Pack:
    """Kernels in a file that `normforge pack` made; no compiler is needed.

    >>> norms = nf.Pack("resnet50.nfk")
    >>> y = norms["resnet50_conv1_bn"](x=x, ...)
    >>> norms["resnet50_conv1_bn"].training(x=x, ...)
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

    def load(self, name: str, *, copies: bool = False) -> PackedNorm:
        """The kernels of a name; NotInPack where there are none, MachineError where they are for other
        CPUs."""
        phases = [phase for known, phase in self.kernels if known == name]
        if not phases:
            raise NotInPack(f"the pack has no '{name}'; it has {', '.join(self.names())}")
        first = "inference" if "inference" in phases else phases[0]
        return PackedNorm(self._pack, name, first, copies)

    def __getitem__(self, name: str) -> PackedNorm:
        return self.load(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __len__(self) -> int:
        return len(self.names())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
