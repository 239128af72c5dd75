"""What engines of CTC models compute of segments of noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from align_server.engines.ctc.aligner import Prepared
from segments import segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from align_server.engines.ctc.aligner import CtcAligner
    from align_server.engines.engine import Segment


def several() -> list[Segment]:
    """Segments of several lengths, some of which are the same."""
    seconds = (1.0, 2.3, 1.0, 0.7, 3.01, 2.3)
    return [segment("hello", "my", "world", seconds=s, seed=i) for i, s in enumerate(seconds)]


def prepared(engine: CtcAligner, item: Segment) -> Prepared:
    """A segment that can be computed."""
    step = engine.prepare(item)
    assert isinstance(step, Prepared)
    return step


def computed(engine: CtcAligner, batch: Sequence[Segment]) -> list[npt.NDArray[np.float32]]:
    """Emissions, each of shape [frames, vocabulary]."""
    return [scored.emissions for scored in engine.compute([prepared(engine, item) for item in batch])]


def together(engine: CtcAligner, model: torch.nn.Module, batch: Sequence[Segment]) -> list[torch.Tensor]:
    """Emissions as a GPU computes them, here on the CPU."""
    steps = [prepared(engine, item) for item in batch]
    given = [torch.from_numpy(step.given) for step in steps]
    with torch.inference_mode():
        return engine._together(model, given, [step.frames for step in steps])
