"""CTC forced alignment: from emissions and tokens to when each token was said.

Knows frames, tokens and posteriors; knows neither words nor audio.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from align_server.engines.jit import kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Integers = npt.NDArray[np.int64]

STAR_PENALTY: Final = np.float32(0.25)  # nats a frame


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Where each token lies: its first frame, the frame after its last, its mean posterior there; shape [tokens]."""

    starts: Integers
    ends: Integers
    posteriors: npt.NDArray[np.float64]


def fewest_frames(targets: Sequence[int]) -> int:
    """How many frames tokens need at least: one each, and a blank between two that are the same."""
    return len(targets) + sum(a == b for a, b in itertools.pairwise(targets))


def token_spans(emissions: Floats, targets: Sequence[int], blank: int) -> Spans:
    """The best path of the tokens through log posteriors, shape [frames, vocabulary].

    Targets are tokens other than the blank, at least one; one past the vocabulary is a star, which any sound fits:
    it scores as the best token of each frame does, less STAR_PENALTY. A star that is certain of everything
    (log probability 0, as in https://doi.org/10.48550/arXiv.2305.13516) is better than the right token wherever the
    model has doubts, and so takes frames from its neighbours, and all the silence around. This one never beats what
    the model hears; the penalty leaves it the silence inside an unknown word, which spans few frames between letters
    that cost a blank much more, and not the silence before and after.

    There must be `fewest_frames` of them. Raises ArithmeticError where a posterior is not a number.
    """
    if bad := int((~np.isfinite(emissions)).any(axis=1).sum()):
        raise ArithmeticError(f"{bad} of {len(emissions)} frames have posteriors that are not finite numbers")
    if emissions.shape[1] in targets:
        emissions = np.concatenate([emissions, emissions.max(1, keepdims=True) - STAR_PENALTY], axis=1)
    tokens = np.full(2 * len(targets) + 1, blank)
    tokens[1::2] = targets
    skips = np.zeros(len(tokens), np.bool_)
    skips[3::2] = tokens[3::2] != tokens[1:-2:2]
    path = _best_path(np.ascontiguousarray(emissions), tokens, skips)
    edges = np.flatnonzero(np.diff(path)) + 1
    starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(path)]])
    heard = np.exp(emissions[np.arange(len(path)), tokens[path]].astype(np.float64))
    said = path[starts] % 2 == 1
    return Spans(starts[said], ends[said], (np.add.reduceat(heard, starts) / (ends - starts))[said])


@kernel
def _best_path(emissions: Floats, tokens: Integers, skips: npt.NDArray[np.bool_]) -> Integers:
    """The state of every frame on the best path, shape [frames], by Viterbi's algorithm.

    State s says `tokens[s]`, every other one the blank; `skips[s]` says that s - 2 may come before it. A path begins
    in one of the first two states and ends in one of the last two.

    `torchaudio.functional.forced_align` is not used: where the two ways into a state score the same, it may take a
    third and worse one (https://github.com/pytorch/audio/issues/4221). A star in silence scores the same anywhere.
    """
    frames, states = len(emissions), len(tokens)
    best = np.full(states, -np.inf)
    best[0], best[1] = emissions[0, tokens[0]], emissions[0, tokens[1]]
    steps = np.zeros((frames, states), np.uint8)
    for frame in range(1, frames):
        for state in range(states - 1, -1, -1):  # downwards: those below are still of the frame before
            score, step = best[state], 0
            if state > 0 and best[state - 1] > score:
                score, step = best[state - 1], 1
            if skips[state] and best[state - 2] > score:
                score, step = best[state - 2], 2
            best[state] = score + emissions[frame, tokens[state]]
            steps[frame, state] = step
    path = np.empty(frames, np.int64)
    state = states - 1 if best[states - 1] > best[states - 2] else states - 2
    for frame in range(frames - 1, -1, -1):
        path[frame] = state
        state -= steps[frame, state]
    return path
