"""Compiles loops over frames with numba, so that they run as fast as C and hold the GIL for none of it.

Importing this imports numba; only what computes may do so.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import numba
from numba import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


def kernel(function: Callable[P, T]) -> Callable[P, T]:
    """The function, compiled for the types of its first call, rounding every operation as it is written.

    The machine code is kept beside the module or in the user's cache folder, for the next process to load;
    where neither can be written, each process compiles anew.
    """
    return _compiled(function)


def summing(function: Callable[P, T]) -> Callable[P, T]:
    """The same, but a sum may be taken in any order, and with a product in one rounding."""
    return _compiled(function, "reassoc", "contract")


def _compiled(function: Callable[P, T], *liberties: str) -> Callable[P, T]:
    njit: Any = functools.partial(numba.njit, nogil=True, fastmath=set(liberties), error_model="numpy")
    compiled: Callable[P, T]
    try:
        compiled = njit(cache=True)(function)
    except RuntimeError:  # numba found no folder for its cache
        compiled = njit()(function)
    return compiled


def _bitcast(context: Any, builder: Any, signature: Any, given: Any) -> Any:
    return builder.bitcast(given[0], context.get_value_type(signature.return_type))


@intrinsic
def _float32(_context: object, _bits: object) -> Any:
    return types.float32(types.int32), _bitcast


@intrinsic
def _int32(_context: object, _value: object) -> Any:
    return types.int32(types.float32), _bitcast


as_float: Final[Any] = _float32  # in what is compiled: the float32 that 32 bits are
as_bits: Final[Any] = _int32  # and the other way round
