"""The table: what was measured, what came out, what was asked for; and how much of everything is measured."""

from __future__ import annotations

import enum
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


class Scale(enum.Enum):
    """How much audio and how many turns a run takes."""

    QUICK = "quick"
    USUAL = "usual"
    FULL = "full"

    def of(self, quick: T, usual: T, full: T | None = None) -> T:
        """The one of these that goes with the scale; full is as usual where it is not said."""
        if self is Scale.QUICK:
            return quick
        return usual if self is Scale.USUAL or full is None else full


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `met` is None where nothing was asked for."""

    what: str
    measured: str
    target: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "met", False: "**missed**", None: ""}[self.met]
        return f"| {self.what} | {self.measured} | {self.target} | {verdict} |"


def faster(what: str, ratios: Sequence[float], least: float) -> Row:
    """A row of speed over another's, which is to be so many times that in the median."""
    return Row(what, f"{spread(ratios)} times", f"at least {least:g} times", statistics.median(ratios) >= least)


HEAD = "| what | measured | target | |\n|---|---|---|---|"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median of some values, and their range where there are several."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least so many percent of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
