"""Compiles functions of torch operations, so that the GIL is taken once for all of them instead of after each one.

Two threads that compute small operations otherwise wait for one another again and again: with two lanes the embedded
model lost an eighth of its speed to it. Importing this imports torch.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


def scripted(function: Callable[P, T]) -> Callable[P, T]:
    """The function as TorchScript: the same operations in the same order, with the same results.

    torch calls TorchScript deprecated; what it names instead needs a C++ compiler where the server runs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return cast("Callable[P, T]", torch.jit.script(function))
