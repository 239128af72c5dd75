"""What `make fuzz` runs: the checks of unit/test_chat_grammar.py on as many documents as are asked for.

    python tests/fuzz.py [--documents N] [--seed S] [--processes N] [--save FILE]

Document `i` depends on the seed and `i` alone. The first that fails is saved, and the exit status is 1.
"""
# ruff: noqa: T201  it prints how far it is

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chat_grammar import broken, long_turn, whole
from chat_invariants import check_any, check_whole

BATCH = 500
LONGEST_S = 10.0  # of processor time for one document; most take milliseconds
TELL_EVERY_S = 10.0


@dataclass(frozen=True)
class Failure:
    """A document and what went wrong with it."""

    number: int
    data: bytes
    message: str


def _too_long(_signal: int, _frame: object) -> None:
    raise TimeoutError(f"took more than {LONGEST_S:g} s of processor time")


def try_one(seed: int, number: int) -> Failure | None:
    """Make and check one document: two of five sound, a few very long, the others damaged."""
    chance = random.Random(f"{seed}:{number}")  # noqa: S311  no secret
    data = b""
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        if number % 500 == 0:
            data = long_turn(chance)
            check_any(data, chance)
        elif number % 5 < 2:
            made = whole(chance)
            data = made.data
            check_whole(made, chance)
        else:
            data = broken(chance)
            check_any(data, chance)
    except Exception:  # noqa: BLE001  whatever it is, it is a finding
        return Failure(number, data, traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def try_many(seed: int, numbers: range) -> Failure | None:
    """The first of these documents that fails."""
    signal.signal(signal.SIGPROF, _too_long)
    return next((failure for number in numbers if (failure := try_one(seed, number))), None)


def main() -> int:
    """Check the documents, and tell how far it is."""
    parser = argparse.ArgumentParser(description="Check generated CHAT documents.")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument(
        "--seed", type=int, default=None, help="of all documents; drawn and printed where it is not given"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--save", type=Path, default=Path("fuzz-failure.cha"), help="where a document that fails goes")
    options = parser.parse_args()
    seed = secrets.randbelow(10**9) if options.seed is None else options.seed
    total, done = options.documents, 0
    print(f"seed {seed}: {total} documents in {options.processes} processes", flush=True)
    began = told = time.monotonic()
    batches = [range(first, min(first + BATCH, total)) for first in range(0, total, BATCH)]
    with ProcessPoolExecutor(options.processes) as pool:
        for batch, failure in zip(batches, pool.map(partial(try_many, seed), batches), strict=True):
            if failure:
                pool.shutdown(wait=False, cancel_futures=True)
                options.save.write_bytes(failure.data)
                print(failure.message, file=sys.stderr)
                print(f"seed {seed}, document {failure.number} failed; it is in {options.save}", file=sys.stderr)
                return 1
            done += len(batch)
            if time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                print(f"{done} of {total} documents, {told - began:.0f} s", flush=True)
    print(f"{done} documents, {time.monotonic() - began:.0f} s: all hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
