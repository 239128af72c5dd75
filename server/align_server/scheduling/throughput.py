"""How fast a model computes, lately, as seen batch by batch; what waits and retry hints are computed from."""

from __future__ import annotations

SMOOTHING = 0.1  # weight of the newest batch in the measured rate
UNMEASURED_RATE = 10.0  # audio seconds per second assumed where nothing was measured yet


class Throughput:
    """Cost computed per second by `lanes` batches at a time. `rate` is 0 until something was measured."""

    def __init__(self, lanes: int, rate: float = 0.0) -> None:
        self.lanes = lanes
        self.rate = rate
        self.segments_done = 0
        self.audio_done_ms = 0

    def record(self, cost_ms: int, seconds: float) -> None:
        """Take one finished batch into account, which had one of the lanes for that long."""
        rate = self.lanes * cost_ms / 1000 / max(seconds, 1e-6)
        self.rate = rate if self.rate == 0 else (1 - SMOOTHING) * self.rate + SMOOTHING * rate

    def answered(self, audio_ms: int) -> None:
        """Count a segment whose result was handed over."""
        self.segments_done += 1
        self.audio_done_ms += audio_ms

    def seconds_for(self, cost_ms: float) -> float:
        """How long that much takes when all lanes share it."""
        return cost_ms / 1000 / (self.rate or UNMEASURED_RATE)

    def seconds_alone(self, cost_ms: float) -> float:
        """How long that much takes as one batch, on one lane."""
        return self.lanes * self.seconds_for(cost_ms)
