"""From a path through phones to the times and scores of words.

Knows frames, spans and scores, and nothing of how the path was found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from align_server.engines.engine import SAMPLE_RATE
from align_server.engines.sphinx.features import BOUNDARY_MS, HOP
from align_server.engines.sphinx.graph import SILENCE, UNKNOWN_SOUND
from align_server.engines.sphinx.model import STATES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from align_server.engines.sphinx.acoustic import SenoneScorer
    from align_server.engines.sphinx.graph import Graph
    from align_server.engines.sphinx.viterbi import Span

FRAME_MS: Final = 1000 * HOP / SAMPLE_RATE
POSTERIOR_SCALE: Final = 0.3  # a single frame's likelihoods are too sure of themselves


def item_times(path: Sequence[Span], owners: npt.NDArray[np.int64], frames: int, duration_ms: int) -> list[tuple[int, int]]:
    """Start and end of every item of the graph in ms, in order and within the audio."""
    edges: dict[int, tuple[int, int]] = {}
    for span in path:
        owner = int(owners[span.node])
        if owner != SILENCE:
            start, _ = edges.get(owner, (span.entered[0], 0))
            edges[owner] = (start, span.end)

    def ms(frame: int) -> int:
        if frame == 0:
            return 0
        return duration_ms if frame == frames else min(round(FRAME_MS * frame + BOUNDARY_MS), duration_ms)

    return [(ms(start), ms(end)) for _, (start, end) in sorted(edges.items())]


def word_scores(
    path: Sequence[Span], graph: Graph, features: torch.Tensor, scorer: SenoneScorer, filler: npt.NDArray[np.bool_]
) -> dict[int, float]:
    """How well each word fits, 0 to 1: the geometric mean of its phones' posteriors in their middle frames.

    A posterior is against all phones of speech, each without context and in the state that fits best.
    """
    heard = [s for s in path if graph.owners[s.node] != SILENCE and graph.senones[s.node, 0] != UNKNOWN_SOUND]
    nodes = [span.node for span in heard]
    middles = torch.tensor([(span.entered[0] + span.end) // 2 for span in heard])
    senones = np.arange(STATES * len(filler))
    likelihood = scorer(features[middles], senones).view(len(heard), len(filler), STATES).amax(-1)
    likelihood[:, torch.from_numpy(filler)] = -torch.inf
    posterior = torch.log_softmax(POSTERIOR_SCALE * likelihood, 1).cpu().numpy()
    own = posterior[np.arange(len(heard)), graph.phones[nodes]]
    owners = graph.owners[nodes]
    total, count = np.bincount(owners, own), np.bincount(owners)
    return {int(owner): float(np.exp(total[owner] / count[owner])) for owner in np.flatnonzero(count)}
