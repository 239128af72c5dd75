"""When to try again, and after how long. gRPC's own retries stop at 256 KiB, so the SDK does its own."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from align_client.sdk.errors import AlignError, DeadlineExceeded, ServerBusy, ServerUnavailable

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 2.0


@dataclass(slots=True)
class Backoff:
    """Growing delays with full jitter, until `patience_s` has gone by since the last success."""

    patience_s: float
    attempt: int = 0  # how often it was tried again since the last success
    _since: float = 0.0

    def succeeded(self) -> None:
        """Begin anew."""
        self.attempt = 0

    def delay(self, error: AlignError) -> float:
        """How long to wait before the next try. Raises the error when there should be none."""
        if isinstance(error, ServerBusy) and error.retry_after_s is not None:
            wait = error.retry_after_s * random.uniform(1.0, 1.3)  # noqa: S311  no secret
        elif isinstance(error, ServerUnavailable):
            wait = random.uniform(0.5, 1.0) * min(FIRST_DELAY_S * 2**self.attempt, LONGEST_DELAY_S)  # noqa: S311
        else:
            raise error
        now = time.monotonic()
        if self.attempt == 0:
            self._since = now
        if now + wait - self._since > self.patience_s:
            if isinstance(error, ServerBusy):
                raise DeadlineExceeded(f"gave up after {self.patience_s:g} s: {error}") from error
            raise error
        self.attempt += 1
        return wait
