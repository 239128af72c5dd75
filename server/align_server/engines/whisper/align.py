"""Dynamic time warping of tokens to frames along cross-attention.

Knows attention weights, tokens and frames; knows neither words nor models. The method is that of
https://github.com/openai/whisper (`find_alignment`): weights are standardised over tokens, smoothed over frames by a
median filter, and averaged over the heads that follow the audio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from align_server.engines.jit import kernel

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Integers = npt.NDArray[np.int64]

MEDIAN_WIDTH: Final = 7  # frames


def first_frames(weights: Floats, first: int) -> Integers:
    """The frame at which each token from `first` on begins, shape [tokens - first], never falling, from frame 0.

    `weights` are the attention of heads to frames, shape [heads, tokens, frames]; the tokens before `first` count
    for what is usual at a frame, and get no time. Raises ArithmeticError where a weight is not a number.
    """
    if not np.isfinite(weights).all():
        raise ArithmeticError("the attention has values that are not finite numbers")
    spread = weights.std(axis=1, keepdims=True)
    usual = weights.mean(axis=1, keepdims=True)
    standard = (weights - usual) / np.maximum(spread, np.finfo(np.float32).tiny)
    smooth = _smoothed(np.ascontiguousarray(standard[:, first:]), MEDIAN_WIDTH)
    return _warped(-smooth.mean(axis=0).astype(np.float64))


@kernel
def _smoothed(values: Floats, width: int) -> Floats:
    """The median of `width` frames around each, the edges mirrored; shape [heads, tokens, frames] as `values`.

    Values that have no more than half a window of frames are left as they are.
    """
    heads, tokens, frames = values.shape
    half = width // 2
    if frames <= half:
        return values.copy()
    smooth = np.empty_like(values)
    window = np.empty(width, np.float32)
    for head in range(heads):
        for token in range(tokens):
            for frame in range(frames):
                for i in range(width):  # sorted as it is filled
                    at = abs(frame + i - half)
                    at = 2 * (frames - 1) - at if at >= frames else at
                    value = values[head, token, at]
                    place = i
                    while place > 0 and window[place - 1] > value:
                        window[place] = window[place - 1]
                        place -= 1
                    window[place] = value
                smooth[head, token, frame] = window[half]
    return smooth


@kernel
def _warped(costs: npt.NDArray[np.float64]) -> Integers:
    """The first column of each row on the cheapest path through `costs`, shape [rows, columns], corner to corner.

    A step goes to the next row, the next column, or both (https://doi.org/10.1109/TASSP.1978.1163055). Where several
    cost the same, both is preferred, then the next column.
    """
    rows, columns = costs.shape
    total = np.empty((rows, columns))
    steps = np.zeros((rows, columns), np.uint8)  # 0: from both, 1: from the row before, 2: from the column before
    for row in range(rows):
        for column in range(columns):
            if row == 0:
                best, step = (total[0, column - 1], 2) if column > 0 else (0.0, 0)
            elif column == 0:
                best, step = total[row - 1, 0], 1
            else:
                best, step = total[row - 1, column - 1], 0
                if total[row, column - 1] < best:
                    best, step = total[row, column - 1], 2
                if total[row - 1, column] < best:
                    best, step = total[row - 1, column], 1
            total[row, column] = best + costs[row, column]
            steps[row, column] = step
    firsts = np.zeros(rows, np.int64)
    column = columns - 1
    for row in range(rows - 1, -1, -1):
        while steps[row, column] == 2:
            column -= 1
        firsts[row] = column
        if steps[row, column] == 0:
            column -= 1
    return firsts
