"""The embedded engine `sphinx-en-us`: the CMU Sphinx acoustic model as a batched HMM in PyTorch.

Knows how the parts of this package make word times out of segments; knows neither gRPC nor scheduling.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import torch

from align_server.engines.engine import SAMPLE_RATE, MissingReason, Result, Segment, Word, WordKind, WordTiming
from align_server.engines.sphinx import graph as graphs
from align_server.engines.sphinx import timing
from align_server.engines.sphinx.acoustic import SenoneScorer
from align_server.engines.sphinx.features import FrontEnd, count_frames
from align_server.engines.sphinx.g2p import MODEL
from align_server.engines.sphinx.lexicon import SUPPLEMENT, Lexicon, dictionary_path
from align_server.engines.sphinx.model import LANGUAGES, LICENCE, NAME, STATES, AcousticModel, model_folder
from align_server.engines.sphinx.viterbi import Utterance, best_paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from align_server.engines.sphinx.graph import Graph
    from align_server.engines.sphinx.viterbi import Span

DECODER_VERSION: Final = 1  # raised with every change that can change a time or a score

ACOUSTIC_SCALE: Final = 0.3  # neighbouring frames say much the same: counted in full they drown the transitions
CI_SHARE: Final = 0.5  # of a state's log score that its phone without context gives
SILENCE_PENALTY: Final = -5.0
UNKNOWN_STATES: Final = 32  # an unknown sound fits a frame as the best 32 of 117 phone states do on average
MAX_WORK: Final = 8_000_000  # nodes times frames searched at once, at 7 bytes each


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
class _Plan:
    """How a segment's words became items of a graph."""

    items: tuple[graphs.Item, ...]
    places: tuple[int | None, ...]  # for each word: its item; None for a pause
    missing: dict[int, WordTiming]  # the words that no model of sound stands behind
    pause_after: bool

    @property
    def shortest(self) -> int:
        """The fewest frames that the items can take."""
        return STATES * sum(min(map(len, item.pronunciations), default=1) for item in self.items)


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A segment ready to be searched."""

    plan: _Plan
    graph: Graph
    features: torch.Tensor
    utterance: Utterance
    evidence: timing.Evidence


class SphinxEngine:
    """CMU Sphinx en-us behind the Engine protocol.

    `device` is a torch device. A result is the same alone and in any batch, and with any number of threads.
    """

    name: ClassVar[str] = NAME
    languages: ClassVar[tuple[str, ...]] = LANGUAGES
    licence: ClassVar[str] = LICENCE
    sample_rate: ClassVar[int] = SAMPLE_RATE
    frame_ms: ClassVar[float] = timing.FRAME_MS
    max_segment_s: ClassVar[float] = 120.0

    def __init__(self, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._loaded: _Loaded | None = None

    @functools.cached_property
    def revision(self) -> str:
        """A hash of everything that times depend on: the model, the dictionaries and the decoder."""
        digest = hashlib.sha256(f"decoder {DECODER_VERSION}".encode())
        for path in _files():
            digest.update(path.read_bytes())
        return digest.hexdigest()[:12]

    @property
    def size_bytes(self) -> int:
        """Size on disk of what `load` reads."""
        return sum(path.stat().st_size for path in _files())

    def load(self) -> None:
        """Read the model and the dictionary: half a second, about 120 MB. Raises EngineLoadError."""
        model = AcousticModel.load(model_folder() / "en-us")
        senones = np.arange(STATES * len(model.phones.names))
        self._loaded = _Loaded(
            model,
            FrontEnd(),
            SenoneScorer(model, self._device),
            Lexicon.load(),
            {name: i for i, name in enumerate(model.phones.names)},
            (STATES * model.phones.base + model.phones.state).astype(np.int64),
            senones[~np.repeat(model.phones.filler, STATES)],
        )

    def warm_up(self) -> None:
        """Align a second of noise."""
        noise = np.random.default_rng(0).normal(0, 1000, SAMPLE_RATE).astype(np.int16)
        self.align([Segment("warm-up", noise, (Word("hello"), Word("world")))])

    def cost(self, segment: Segment) -> int:
        """Milliseconds of its audio: nothing is padded."""
        return segment.duration_ms

    def unload(self) -> None:
        """Let go of the weights."""
        self._loaded = None

    def align(self, batch: Sequence[Segment]) -> list[Result]:
        """Align every segment, in order; see Engine.

        A word's score says how near its phones come to the best fitting ones, 1 being those themselves: see
        `timing.word_scores`. Words that were said have 0.6 on average, wrong ones 0.3. Slots and pauses have 0.
        """
        loaded = self._loaded
        if loaded is None:
            raise RuntimeError("SphinxEngine.align was called before load")
        results: dict[int, Result] = {}
        plans: dict[int, _Plan] = {}
        for i, segment in enumerate(batch):
            plan = _plan(segment, loaded)
            if isinstance(plan, Result):
                results[i] = plan
            else:
                plans[i] = plan
        if plans:
            features = loaded.front_end([batch[i].pcm for i in plans])
            pairs = zip(plans.items(), features, strict=True)
            prepared = {i: _prepare(plan, x, loaded) for (i, plan), x in pairs}
            for group in _groups(prepared):
                paths = best_paths([item.utterance for item in group.values()])
                for (i, item), path in zip(group.items(), paths, strict=True):
                    results[i] = _result(batch[i], item, path, loaded)
        return [results[i] for i in range(len(batch))]


def _files() -> list[Path]:
    """The files that times depend on, the code aside."""
    folder = model_folder() / "en-us"
    names = ("mdef", "means", "variances", "sendump", "transition_matrices")
    return [*(folder / name for name in names), dictionary_path(), SUPPLEMENT, MODEL]


def _plan(segment: Segment, loaded: _Loaded) -> _Plan | Result:
    """What is to be searched for, or the result where nothing is."""
    items: list[graphs.Item] = []
    places: list[int | None] = []
    missing: dict[int, WordTiming] = {}
    pause = False
    for i, word in enumerate(segment.words):
        if word.kind is WordKind.PAUSE:
            places.append(None)
            pause = True
            continue
        pronunciations: tuple[tuple[str, ...], ...] = ()
        if word.kind is WordKind.WORD:
            spoken = word.language in {"", *SphinxEngine.languages}
            pronunciations = loaded.lexicon.pronunciations(word.text) if spoken else ()
            if not spoken:
                detail = f"{word.text!r} is in {word.language!r}; this model knows {', '.join(SphinxEngine.languages)}"
                missing[i] = WordTiming(reason=MissingReason.UNSUPPORTED_LANGUAGE, detail=detail)
            elif not pronunciations:
                detail = f"no pronunciation is known or can be derived for {word.text!r}"
                missing[i] = WordTiming(reason=MissingReason.UNPRONOUNCEABLE, detail=detail)
        said = tuple(tuple(loaded.phones[phone] for phone in phones) for phones in pronunciations)
        places.append(len(items))
        items.append(graphs.Item(said, pause_before=pause))
        pause = False
    plan = _Plan(tuple(items), tuple(places), missing, pause)
    return _unsearchable(segment, plan) or plan


def _unsearchable(segment: Segment, plan: _Plan) -> Result | None:
    """The result of a segment in which no path can exist or mean anything."""
    if not any(item.pronunciations for item in plan.items):
        nothing = WordTiming(reason=MissingReason.UNPRONOUNCEABLE, detail="no word of this segment can be said")
        return Result(tuple(plan.missing.get(i, nothing) for i in range(len(segment.words))))
    if len(segment.pcm) == 0 or count_frames(len(segment.pcm)) < plan.shortest:
        return _too_short(segment, plan)
    if segment.pcm.min() == segment.pcm.max():
        return Result.missing(segment, MissingReason.NO_SPEECH, f"every sample is {segment.pcm[0]}")
    return None


def _too_short(segment: Segment, plan: _Plan) -> Result:
    needed = round(plan.shortest * timing.FRAME_MS)
    detail = f"{segment.duration_ms} ms of audio for words that last {needed} ms at the very least"
    return Result.missing(segment, MissingReason.AUDIO_TOO_SHORT, detail)


def _prepare(plan: _Plan, features: torch.Tensor, loaded: _Loaded) -> _Prepared:
    """The graph of a segment, with the scores of its states."""
    graph = graphs.build(plan.items, loaded.model.phones, silence_penalty=SILENCE_PENALTY, pause_after=plan.pause_after)
    unknown = graph.senones == graphs.UNKNOWN_SOUND
    used = graphs.used_senones(graph)
    slots = [loaded.speech] if unknown.any() else []
    senones = np.unique(np.concatenate([used, loaded.context_free[used], *slots]))
    scores = loaded.scorer(features, senones).mul_(ACOUSTIC_SCALE)
    rows = np.searchsorted(senones, graph.senones)
    plain = np.searchsorted(senones, loaded.context_free[senones])  # the row of each one's context-free senone
    if slots:
        speech = torch.from_numpy(np.searchsorted(senones, loaded.speech)).to(scores.device)
        best = scores.index_select(0, speech).topk(UNKNOWN_STATES, dim=0, sorted=False).values
        scores = torch.cat([scores, best.mean(0, keepdim=True)])
        rows[unknown] = len(senones)
        plain = np.append(plain, len(senones))
    context_free = scores.index_select(0, torch.from_numpy(plain).to(scores.device))
    mixed = torch.lerp(scores, context_free, CI_SHARE)
    mixed.sub_(mixed.amax(0))  # keeps totals small, and so precise

    transitions = loaded.model.transitions[graph.phones]
    loop = transitions[:, range(STATES), range(STATES)].T
    step = np.stack([graph.entry, transitions[:, 0, 1], transitions[:, 1, 2] + transitions[:, 2, 3]])
    utterance = Utterance(mixed, rows.T, loop, step, graph.sources, graph.arrivals, graph.starts, graph.finals)
    return _Prepared(plan, graph, features, utterance, timing.Evidence(scores.cpu().numpy(), senones, plain[rows]))


def _groups(prepared: dict[int, _Prepared]) -> Iterator[dict[int, _Prepared]]:
    """Split a batch so that one search stays within MAX_WORK, or has one segment."""
    group: dict[int, _Prepared] = {}
    work = 0
    for i, item in prepared.items():
        if group and work + item.utterance.work > MAX_WORK:
            yield group
            group, work = {}, 0
        group[i] = item
        work += item.utterance.work
    yield group


def _result(segment: Segment, prepared: _Prepared, path: list[Span] | None, loaded: _Loaded) -> Result:
    plan, graph = prepared.plan, prepared.graph
    if path is None:
        return _too_short(segment, plan)

    def score(frames: npt.NDArray[np.int64], senones: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        scaled: npt.NDArray[np.float32] = (
            loaded.scorer(prepared.features[frames], senones).mul_(ACOUSTIC_SCALE).cpu().numpy()
        )
        return scaled

    scores = timing.word_scores(path, graph, prepared.evidence, loaded.model.phones.filler, score)
    times = timing.item_times(path, graph.owners, prepared.evidence, segment.duration_ms)
    words: list[WordTiming] = []
    items = 0  # seen so far
    for i, place in enumerate(plan.places):
        if place is None:  # the first of several pauses has all of the silence
            end = times[items][0] if items < len(times) else segment.duration_ms
            start = times[items - 1][1] if items else 0
            words.append(WordTiming(end if i and plan.places[i - 1] is None else start, end))
        else:
            items = place + 1
            words.append(plan.missing.get(i) or WordTiming(*times[place], scores.get(place, 0.0)))
    return Result(tuple(words))
