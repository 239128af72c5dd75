"""Compiles loops over frames with numba, so that they run as fast as C and hold the GIL for none of it.

Importing this imports numba; only what computes may do so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


def kernel(function: Callable[P, T]) -> Callable[P, T]:
    """The function, compiled for the types of its first call, rounding every operation as it is written.

    The machine code is kept beside the module or in the user's cache folder, for the next process to load;
    where neither can be written, each process compiles anew.
    """
    compiled: Callable[P, T]
    try:
        compiled = numba.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")(function)
    except RuntimeError:  # numba found no folder for its cache
        compiled = numba.njit(nogil=True, fastmath=False, error_model="numpy")(function)
    return compiled
