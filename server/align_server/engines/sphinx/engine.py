"""The embedded engine `sphinx-en-us`: the CMU Sphinx acoustic model as an HMM.

Knows how the parts of this package make word times out of segments; knows neither gRPC nor scheduling.
Gaussians run in PyTorch, on any device; the front end and the search on the CPU, in compiled code. Both leave the GIL
to others, and neither mixes segments: memory is that of one segment, and what else is in a batch makes no difference.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import torch

from align_server.engines.engine import Engine, Result, Scanning, WordKind, silent
from align_server.engines.scripted import scripted
from align_server.engines.sphinx import graph as graphs
from align_server.engines.sphinx import timing
from align_server.engines.sphinx.acoustic import SenoneScorer
from align_server.engines.sphinx.features import FrontEnd
from align_server.engines.sphinx.g2p import MODEL
from align_server.engines.sphinx.lexicon import SUPPLEMENT, Lexicon
from align_server.engines.sphinx.model import (
    FILES,
    LANGUAGES,
    LICENCE,
    NAME,
    STATES,
    AcousticModel,
    model_folder,
    verified,
)
from align_server.engines.sphinx.plan import Plan, plan
from align_server.engines.sphinx.viterbi import Path, Utterance, best_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from align_server.engines.engine import Progress, Segment, Word
    from align_server.engines.sphinx.graph import Graph

DECODER_VERSION: Final = 2  # raised with every change that can change a time or a score

ACOUSTIC_SCALE: Final = 0.3  # neighbouring frames say much the same: counted in full they drown the transitions
CI_SHARE: Final = 0.5  # of a state's log score that its phone without context gives
SILENCE_PENALTY: Final = -5.0
SCAN_FRAMES: Final = 3  # that a scan takes together: no phone is shorter
SCAN_SCALE: Final = 0.2
SCAN_FLOOR: Final = -6.0
UNKNOWN_PHONES: Final = 24  # to a scan an unknown sound fits as the best 24 of 39 phones do on average
UNKNOWN_STATES: Final = 32  # an unknown sound fits a frame as the best 32 of 117 phone states do on average


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """What `load` reads. Nothing changes in it, so threads share it."""

    model: AcousticModel
    front_end: FrontEnd
    scorer: SenoneScorer
    lexicon: Lexicon
    phones: dict[str, int]
    context_free: npt.NDArray[np.int64]  # [senones]: the senone of the same state without context
    speech: npt.NDArray[np.int64]  # the context-free senones of phones that are not fillers


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A segment ready to be scored.

    `rows` has the row of each node's states among `senones`, [nodes, 3], and `plain` that of each senone's
    context-free one; unknown sound has a row of its own after them, where there is any.
    """

    plan: Plan
    graph: Graph
    features: torch.Tensor  # [frames, 39]
    senones: npt.NDArray[np.int64]  # ascending
    rows: npt.NDArray[np.int64]
    plain: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Scan:
    """Audio ready to be scanned."""

    features: torch.Tensor  # [frames, 39]


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """A segment whose best path is known; `scores` has those of its words, by item."""

    plan: Plan
    graph: Graph
    path: Path
    evidence: timing.Evidence
    scores: dict[int, float]


class SphinxEngine(Engine):
    """CMU Sphinx en-us.

    `device` is the torch device that computes Gaussians. Their scores come to the CPU, where the search runs.
    A word's score says how near its phones come to the best fitting ones, 1 being those themselves: see
    `timing.word_scores`. Words that were said have 0.6 on average, wrong ones 0.3. Slots and pauses have 0.
    """

    name: ClassVar[str] = NAME
    languages: ClassVar[tuple[str, ...]] = LANGUAGES
    licence: ClassVar[str] = LICENCE
    frame_ms: ClassVar[float] = timing.FRAME_MS
    max_segment_s: ClassVar[float] = 120.0
    pads: ClassVar[bool] = False
    phones: ClassVar[bool] = True

    def __init__(self, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._loaded: _Loaded | None = None

    @functools.cached_property
    def revision(self) -> str:
        """A hash of everything that times depend on: the model, the dictionaries and the decoder.

        Raises EngineLoadError where a file of the model is not the one that was shipped.
        """
        digest = hashlib.sha256(f"decoder {DECODER_VERSION}".encode())
        for data in verified(model_folder()):
            digest.update(data)
        for path in (SUPPLEMENT, MODEL):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:12]

    @property
    def device(self) -> str:
        """Where Gaussians are computed."""
        return str(self._device)

    @property
    def size_bytes(self) -> int:
        """Size on disk of what `load` reads."""
        return sum(size for _, size, _ in FILES) + sum(path.stat().st_size for path in (SUPPLEMENT, MODEL))

    def load(self, progress: Progress = silent) -> None:
        """Check and read the model and the dictionary, and compile: a second, the first time on a machine some more.

        Raises EngineLoadError.
        """
        progress(0.0, "checking the model's files")
        _ = self.revision
        progress(0.1, "reading the acoustic model")
        model = AcousticModel.load(model_folder() / "en-us")
        progress(0.3, "reading the dictionary")
        lexicon = Lexicon.load()
        senones = np.arange(STATES * len(model.phones.names))
        self._loaded = _Loaded(
            model,
            FrontEnd(),
            SenoneScorer(model, self._device),
            lexicon,
            {name: i for i, name in enumerate(model.phones.names)},
            (STATES * model.phones.base + model.phones.state).astype(np.int64),
            senones[~np.repeat(model.phones.filler, STATES)],
        )
        progress(0.5, "compiling the search")
        self.warm_up()
        progress(1.0, "ready")

    def cost(self, duration_ms: int) -> int:
        """That duration: nothing is padded, and the work is in proportion."""
        return duration_ms

    def unload(self) -> None:
        """Let go of the weights."""
        self._loaded = None

    @property
    def scanning(self) -> Scanning:
        """By phones without their context."""
        names = self._ready().model.phones.names
        base = 1 + int(self._ready().model.phones.base.max())
        return Scanning(round(SCAN_FRAMES * timing.FRAME_MS), base + 1, names.index("SIL"))

    def symbols(self, word: Word) -> tuple[int, ...]:
        """The phones of a word's first pronunciation."""
        loaded = self._ready()
        if word.kind is not WordKind.WORD or word.language not in {"", *LANGUAGES}:
            return ()
        return tuple(loaded.phones[phone] for heard in loaded.lexicon.pronunciations(word.text)[:1] for phone in heard)

    def prepare(self, segment: Segment) -> _Prepared | _Scan | Result:
        """Find the words' pronunciations, the graph that they make, and the features of the audio."""
        loaded = self._ready()
        if segment.scan:
            return _Scan(loaded.front_end(segment.pcm))
        planned = plan(segment, loaded.lexicon, loaded.phones)
        if isinstance(planned, Result):
            return planned
        features = loaded.front_end(segment.pcm)
        graph = graphs.build(
            planned.items, loaded.model.phones, silence_penalty=SILENCE_PENALTY, pause_after=planned.pause_after
        )
        unknown = graph.senones == graphs.UNKNOWN_SOUND
        wanted = np.zeros(len(loaded.context_free), np.bool_)
        said = graph.senones[~unknown]
        wanted[said] = wanted[loaded.context_free[said]] = True
        has_slots = bool(unknown.any())
        if has_slots:
            wanted[loaded.speech] = True
        senones = np.flatnonzero(wanted)
        place = np.cumsum(wanted) - 1
        rows, plain = place[graph.senones], place[loaded.context_free[senones]]
        if has_slots:
            rows[unknown] = len(senones)
            plain = np.append(plain, len(senones))
        return _Prepared(planned, graph, features, senones, rows, plain)

    def compute(self, batch: Sequence[_Prepared | _Scan]) -> list[_Scored | Result]:
        """Score the states of each segment and search for its best path, one segment after the other."""
        loaded = self._ready()
        return [_scan(item, loaded) if isinstance(item, _Scan) else _score(item, loaded) for item in batch]

    def decode(self, scored: _Scored | Result) -> Result:
        """Place the boundaries of the words, and of their phones where they are asked for, on the best path."""
        if isinstance(scored, Result):
            return scored
        planned = scored.plan
        edges = timing.edges(scored.path, scored.evidence, planned.duration_ms)
        result = planned.result(timing.item_times(scored.path, scored.graph, edges), scored.scores)
        if not planned.phones:
            return result
        names = self._ready().model.phones.names
        return planned.with_phones(result, timing.item_phones(scored.path, scored.graph, edges, names))

    def _ready(self) -> _Loaded:
        if self._loaded is None:
            raise RuntimeError("SphinxEngine was used before load")
        return self._loaded


def _scan(item: _Scan, loaded: _Loaded) -> Result:
    """How well each phone fits: the best of its states, over SCAN_FRAMES frames."""
    phones = loaded.model.phones
    base = 1 + int(phones.base.max())
    frames = len(item.features) // SCAN_FRAMES
    scores = loaded.scorer(item.features[: frames * SCAN_FRAMES], np.arange(STATES * base))
    fits = scores.view(base, STATES, frames, SCAN_FRAMES).amax(1).mean(2).mul_(SCAN_SCALE)
    fits = fits.sub_(fits.amax(0)).clamp_min_(SCAN_FLOOR).T
    speech = fits[:, torch.from_numpy(~phones.filler[:base])]
    unknown = speech.topk(UNKNOWN_PHONES, dim=1, sorted=False).values.mean(1)
    unknown = torch.maximum(unknown, fits[:, phones.names.index("SIL")])
    return Result((), evidence=torch.cat([fits, unknown[:, None]], dim=1).numpy())


def _score(item: _Prepared, loaded: _Loaded) -> _Scored | Result:
    """The best path and what is needed to time it; the result where the audio is too short for any."""
    graph = item.graph
    scores = loaded.scorer(item.features, item.senones, ACOUSTIC_SCALE)
    speech = None  # the rows that an unknown sound is scored by, where there is one
    if len(item.plain) > len(item.senones):
        speech = torch.from_numpy(np.searchsorted(item.senones, loaded.speech))
    scores, mixed = _mixed(scores, torch.from_numpy(item.plain), speech)

    transitions = loaded.model.transitions[graph.phones]
    path = best_path(
        Utterance(
            mixed.numpy(),
            np.ascontiguousarray(item.rows.T),
            np.stack([transitions[:, state, state] for state in range(STATES)]),
            np.stack([graph.entry, transitions[:, 0, 1], transitions[:, 1, 2] + transitions[:, 2, 3]]),
            graph.sources,
            graph.arrivals,
            graph.starts,
            graph.finals,
        )
    )
    if path is None:
        return item.plan.too_short()

    def score(frames: npt.NDArray[np.int64], senones: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return loaded.scorer(item.features[frames], senones, ACOUSTIC_SCALE).numpy()

    evidence = timing.Evidence(scores.numpy(), item.senones, item.plain[item.rows])
    judged = timing.word_scores(path, graph, evidence, loaded.model.phones.filler, score)
    return _Scored(item.plan, graph, path, evidence, judged)


@scripted
def _mixed(
    scores: torch.Tensor,
    plain: torch.Tensor,
    speech: torch.Tensor | None,
    states: int = UNKNOWN_STATES,
    share: float = CI_SHARE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with those of unknown sound, where there is any, and what the search goes by, shape [frames, rows]."""
    if speech is not None:
        best = scores.index_select(0, speech).topk(states, dim=0, sorted=False)[0]
        scores = torch.cat([scores, best.mean(0, keepdim=True)])
    mixed = torch.lerp(scores, scores.index_select(0, plain), share)
    mixed.sub_(mixed.amax(0))  # keeps totals small, and so precise
    return scores, mixed.t().contiguous()
