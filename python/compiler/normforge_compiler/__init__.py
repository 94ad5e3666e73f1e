"""Normforge's compiler, which the package `normforge` opens; LLVM is inside, where nobody sees it."""

from __future__ import annotations

import os

__all__ = ["library"]


def library() -> str:
    """The path of libnormforge-compiler.so."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "libnormforge-compiler.so")
