"""Errors of the library as Python's."""

from __future__ import annotations


class Error(Exception):
    """What the library raises, by one of the classes below. Calls with other names or dtypes than a
    kernel takes are TypeError, with other strides ValueError."""


class SpecError(Error, ValueError):
    """The spec has errors; the message has their places."""


class PhaseError(SpecError, AttributeError):
    """The spec, or the pack, has no such phase."""


class ArgumentError(Error, ValueError):
    """Arrays or numbers that the kernel does not take."""


class CompilerNotFound(Error, ImportError):
    """Nothing here compiles: the package normforge-compiler is missing."""


class MachineError(Error, RuntimeError):
    """The kernel needs a CPU or a feature that this machine lacks."""


class NotInPack(Error, KeyError):
    """The pack has no kernel of this name and phase."""

    def __str__(self) -> str:  # KeyError would show it in quotation marks
        return self.args[0]


class OutOfMemory(Error, MemoryError):
    """Memory ran out."""


class SystemFailure(Error, OSError):
    """The operating system refused."""


class InternalError(Error, RuntimeError):
    """A defect of Normforge, or bytes that are no kernel."""


_CLASSES = {  # nf_code of normforge.h
    1: ArgumentError,
    2: SpecError,
    3: CompilerNotFound,
    5: MachineError,
    6: OutOfMemory,
    7: SystemFailure,
    9: NotInPack,
}


def class_of(code: int) -> type[Error]:
    return _CLASSES.get(code, InternalError)
