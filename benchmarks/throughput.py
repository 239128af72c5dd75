"""The server under many clients against pocketsphinx's own two-pass aligner in as many processes as cores.

Same recordings, same words, turn by turn. Both sides are loaded and warm before anything is measured.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import processes
from clients import CLIENTS, make_stream, seconds_of
from inputs import Utterance, utterances
from rows import Row, Scale, spread

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = 4  # of the recordings: each client sends one, so that a turn is about as long on both sides
ENOUGH = 80  # utterances to fill batches with; fewer are sent more than once
PER_CPU, PER_WALL = 5, 4  # times pocketsphinx


@dataclass(frozen=True, slots=True)
class Side:
    """One side's turn, in seconds."""

    audio_s: float
    cpu_s: float
    wall_s: float

    @property
    def per_cpu(self) -> float:
        """Audio seconds per CPU second."""
        return self.audio_s / self.cpu_s

    @property
    def per_wall(self) -> float:
        """Audio seconds per wall second."""
        return self.audio_s / self.wall_s


def measure(scale: Scale) -> list[Row]:
    """Rows of the table."""
    said = sayable(utterances())
    said *= -(-ENOUGH // len(said))
    parts = [said[number % PARTS :: PARTS] for number in range(CLIENTS)]
    audio_s = seconds_of(said)
    sent_s = sum(map(seconds_of, parts))
    cores = processes.cores()
    taken = multiprocessing.get_context("spawn").Value("i", 0)
    ours: list[Side] = []
    theirs: list[Side] = []
    client_shares: list[float] = []
    answers: dict[str, set[str]] = {}
    failed = 0
    with (
        processes.server() as server,
        processes.Crew(make_client, [(server.address, part) for part in parts]) as clients,
        processes.Crew(make_oracle, [(said, taken)] * cores) as oracles,
    ):
        clients.turn()
        for _ in range(scale.of(2, 4)):
            before = server.cpu_s()
            turn = clients.turn()
            server_s = server.cpu_s() - before
            for answer in turn.answers:
                for name, times in answer.items():
                    answers.setdefault(name, set()).add(times)
            ours.append(Side(sent_s, server_s + turn.cpu_s, turn.wall_s))
            client_shares.append(100 * turn.cpu_s / (server_s + turn.cpu_s))
            taken.value = 0
            turn = oracles.turn()
            failed = sum(turn.answers)
            theirs.append(Side(audio_s, turn.cpu_s, turn.wall_s))
    differing = sum(len(times) > 1 for times in answers.values())
    per_cpu = [one.per_cpu / other.per_cpu for one, other in zip(ours, theirs, strict=True)]
    per_wall = [one.per_wall / other.per_wall for one, other in zip(ours, theirs, strict=True)]
    about = f"{len(said)} utterances, {audio_s:.0f} s"
    return [
        Row(
            f"audio per CPU second, server and {CLIENTS} clients against pocketsphinx two-pass ({about})",
            f"{spread(per_cpu)} times",
            f"at least {PER_CPU} times",
            statistics.median(per_cpu) >= PER_CPU,
        ),
        Row(
            f"audio per wall second, the same; pocketsphinx in {cores} processes",
            f"{spread(per_wall)} times",
            f"at least {PER_WALL} times",
            statistics.median(per_wall) >= PER_WALL,
        ),
        Row(
            "audio seconds per CPU second: ours, pocketsphinx",
            f"{spread([side.per_cpu for side in ours], 0)}, {spread([side.per_cpu for side in theirs], 0)}",
        ),
        Row(
            "audio seconds per wall second: ours, pocketsphinx",
            f"{spread([side.per_wall for side in ours], 0)}, {spread([side.per_wall for side in theirs], 0)}",
        ),
        Row(f"share of the {CLIENTS} clients in our CPU time", f"{spread(client_shares, 0)} %"),
        Row("utterances that pocketsphinx gives no times for", f"{failed} of {len(said)}"),
        Row(
            f"times of an utterance, whichever of {CLIENTS} clients at once sends it, and when",
            f"differ for {differing} of {len(said)}" if differing else "identical",
            "identical",
            not differing,
        ),
    ]


def sayable(said: list[Utterance]) -> list[Utterance]:
    """Those whose words pocketsphinx has all got in its dictionary."""
    sphinx = decoder()
    return [one for one in said if all(sphinx.lookup_word(word) is not None for word in one.words)]


def make_client(address: str, said: list[Utterance]) -> Callable[[], dict[str, str]]:
    """A client that sends everything over one stream; its turn answers with a digest of each utterance's times."""
    send = make_stream(address, said)

    def work() -> dict[str, str]:
        return {
            one.id: hashlib.sha256(repr(result).encode()).hexdigest() for one, result in zip(said, send(), strict=True)
        }

    return work


def make_oracle(said: list[Utterance], taken: Any) -> Callable[[], int]:
    """A pocketsphinx decoder that takes the next utterance until none is left; answers how many failed."""
    sphinx = decoder()

    def work() -> int:
        failed = 0
        while True:
            with taken.get_lock():
                number = taken.value
                taken.value += 1
            if number >= len(said):
                return failed
            try:
                two_pass(sphinx, said[number])
            except RuntimeError:
                failed += 1

    two_pass(sphinx, said[0])
    return work


def decoder() -> Any:
    """A pocketsphinx decoder with its own acoustic model and dictionary, and no language model."""
    from pocketsphinx import Decoder  # noqa: PLC0415  a client process must not carry it

    return Decoder(lm=None, loglevel="FATAL")


def two_pass(sphinx: Any, utterance: Utterance) -> list[tuple[str, float, float]]:
    """Words with start and end in seconds: a first pass finds the words, a second their phones and states.

    Raises RuntimeError where either pass finds no path.
    """
    pcm = utterance.pcm.tobytes()
    sphinx.set_align_text(" ".join(utterance.words).lower())
    _decode(sphinx, pcm)
    sphinx.set_alignment()
    _decode(sphinx, pcm)
    frame_s = 0.01
    return [
        (word.name, word.start * frame_s, (word.start + word.duration) * frame_s)
        for word in sphinx.get_alignment()
        if not word.name.startswith(("<", "["))
    ]


def _decode(sphinx: Any, pcm: bytes) -> None:
    sphinx.start_utt()
    sphinx.process_raw(pcm, no_search=False, full_utt=True)
    sphinx.end_utt()
