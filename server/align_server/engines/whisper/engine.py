"""The engine behind `whisper:FOLDER` and `whisper:FILE.pt`: a Whisper model that is told what was said.

Knows how the parts of this package make word times out of segments; knows neither gRPC nor scheduling.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence

from align_server.engines.device import fetch, lane, send
from align_server.engines.engine import (
    SAMPLE_RATE,
    Engine,
    EngineLoadError,
    MissingReason,
    Progress,
    Result,
    Segment,
    Word,
    WordKind,
    WordTiming,
    silent,
)
from align_server.engines.precision import floating, without_int8
from align_server.engines.whisper import openai
from align_server.engines.whisper.align import first_frames
from align_server.engines.whisper.checkpoint import Checkpoint
from align_server.engines.whisper.mel import HOP, log_mel
from align_server.engines.whisper.model import Whisper
from align_server.engines.whisper.sound import SHORTEST, is_sound
from align_server.engines.whisper.text import SLOT, Tokenizer
from align_server.engines.whisper.transcribe import Rules, find

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

FRAME: Final = 2 * HOP  # samples
MAX_SEGMENT_S: Final = 30.0  # what the model was trained on
CHECKING: Final = 0.6  # of the time of loading
# Zeros after the audio, in frames, and what their sum with the audio is rounded up to. OpenAI pads to 30 s: ten times
# the work for an utterance of 3 s, and word starts of tiny.en that are no nearer to hand labels (104 ms, here 101).
MARGIN: Final = 50
STEP: Final = 50
# The same of audio whose words are to be found. Of 1143 words of ../shared/data/speech tiny.en in bf16 gets 386, 346,
# 335 and 341 wrong with 50, 200, 300 and 500; with 30 s of context, in fp32, 351, the same as openai-whisper. Of 388
# in utterances joined to 14 s it gets 95 with 300, for a loop, 64 with 500, 63 with 700, and 74 with 30 s of context.
HEARING_MARGIN: Final = 500


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """How a segment's words became tokens.

    `tokens` are all that the decoder is given; `first` is the one whose state foretells the first of the words, and
    `owners` has the word of each token after it but the last, which ends the text. `missing` are words without a time.
    """

    words: tuple[Word, ...]
    duration_ms: int
    frames: int
    tokens: tuple[int, ...]
    first: int
    owners: tuple[int, ...]
    missing: dict[int, WordTiming]


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A segment ready to be computed; `mel` is float32, shape [bands, 2 * context]."""

    plan: _Plan
    mel: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A segment whose words are to be found, with the spectrogram that they are found in."""

    segment: Segment
    mel: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """A segment ready to be decoded, in float32.

    `weights` is the attention of the alignment heads to the frames of the audio, shape [heads, tokens, frames], and
    `likely` how likely the model thought each token of the words, shape [owners], 0 to 1.
    """

    plan: _Plan
    weights: npt.NDArray[np.float32]
    likely: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Heard:
    """What was found in a segment, piece by piece, each with where it begins, in ms; `decode` gets its times."""

    parts: tuple[tuple[int, _Scored], ...]

    def joined(self, results: Sequence[Result]) -> Result:
        """One result of those of the pieces."""
        said = [word for _, part in self.parts for word in part.plan.words]
        times = [
            replace(word, start_ms=word.start_ms + begin, end_ms=word.end_ms + begin)
            for (begin, _), result in zip(self.parts, results, strict=True)
            for word in result.words
            if word.start_ms is not None and word.end_ms is not None
        ]
        return Result(tuple(times), tuple(said))


class WhisperEngine(Engine):
    """A Whisper checkpoint on disk, as transformers or as OpenAI writes it. Nothing is ever downloaded.

    `name` is what users call it, `path` a folder or a .pt, `device` cpu, cuda, cuda:N or mps, `precision` fp32, bf16
    or auto; for int8, which it has not, it takes what auto is.
    Raises EngineLoadError for what the small files show to be wrong; `load` does so for the weights. A .pt is
    converted here, the first time, which takes as long as writing its weights.

    The decoder is given the words, and the heads of its cross-attention that follow the audio say where it looked
    for each. A word's time is from where its first token begins to where the token after it does, in frames of 20 ms;
    so words abut, and a pause has a length only where the first word follows it. A word's score is the mean probability
    of its tokens. Unknown sounds are given as SLOT, and score 0.

    On the CPU every segment is computed alone. Elsewhere those of one context are computed together, with the tokens
    padded where nothing looks at them: a weight may then differ in its last digits with the size of the batch.

    Words that are asked for are found by greedy decoding, a segment at a time, and then aligned as given ones are.
    """

    def __init__(self, name: str, path: Path, device: str, precision: str = "auto") -> None:
        self._source = path
        self._checkpoint = Checkpoint.read(openai.converted(path) if path.suffix == openai.SUFFIX else path)
        checkpoint = self._checkpoint
        self._tokenizer = Tokenizer.read(
            checkpoint.folder, checkpoint.size.vocabulary, multilingual=checkpoint.multilingual
        )
        self._rules = Rules.of(checkpoint, self._tokenizer)
        self._model: Whisper | None = None
        self._revision = ""
        self._name = name
        self._device = device
        self._precision = without_int8(precision, device)  # in bf16 no word of speech/ae moves by over a frame

    @property
    def name(self) -> str:
        """What users call it."""
        return self._name

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that Whisper was trained on, English first; English alone for .en models."""
        return self._checkpoint.languages

    @property
    def frame_ms(self) -> float:
        """Two hops of the spectrogram: 20 ms."""
        return 1000 * FRAME / SAMPLE_RATE

    @property
    def max_segment_s(self) -> float:
        """What the model was trained on."""
        return min(MAX_SEGMENT_S, self._checkpoint.size.frames * FRAME / SAMPLE_RATE)

    @property
    def device(self) -> str:
        """Where it computes: cpu, cuda, cuda:N or mps."""
        return self._device

    @property
    def precision(self) -> str:
        """What it computes in: fp32 or bf16."""
        return self._precision

    @property
    def revision(self) -> str:
        """A hash of weights, settings, tokenizer and decoder, 12 hex digits; reads all of them unless loaded."""
        self._revision = self._revision or self._verified(silent)
        return self._revision

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk."""
        return self._checkpoint.size_bytes

    @property
    def pads(self) -> bool:
        """Not on the CPU. Elsewhere only segments of one context share a forward."""
        return self.device != "cpu"

    @property
    def transcribes(self) -> bool:
        """Whisper was made for it."""
        return True

    def load(self, progress: Progress = silent) -> None:
        """Check the files against SHA256SUMS, if there is one, and read the weights. Raises EngineLoadError."""
        self._revision = self._verified(lambda share, what: progress(CHECKING * share, what))
        progress(CHECKING, "reading the weights")
        self._model = _read_model(self._checkpoint, floating(self._precision)).to(self.device)
        progress(1.0, "loaded")

    def _verified(self, progress: Progress) -> str:
        try:
            return self._checkpoint.verify(self._precision, progress)
        except EngineLoadError as error:
            if self._source == self._checkpoint.folder:
                raise
            again = f"or delete {self._checkpoint.folder}, which is then made again of {self._source}"
            raise EngineLoadError(f"{error}; {again}") from error

    def cost(self, duration_ms: int) -> int:
        """Milliseconds of the context that the encoder sees, and a part that grows with their square: attention."""
        if duration_ms <= 0:
            return 0
        frames = self._context(round(duration_ms / self.frame_ms))
        # A layer's linear maps take 24w² operations for a frame of width w, and attention among n frames 4nw.
        return round(frames * self.frame_ms * (1 + frames / (6 * self._checkpoint.size.width)))

    def _context(self, frames: int, margin: int = MARGIN) -> int:
        """How many frames the encoder sees of audio with so many."""
        return min(self._checkpoint.size.frames, -(-(frames + margin) // STEP) * STEP)

    def prepare(self, segment: Segment) -> _Prepared | _Asked | Result:
        """The segment's spectrogram and tokens, or its result where nothing can be aligned."""
        if segment.transcribe is not None:
            return self._ask(segment, segment.transcribe)
        frames = len(segment.pcm) // FRAME
        plan = self._plan(segment, frames)
        if not plan.owners:
            nothing = WordTiming(reason=MissingReason.UNPRONOUNCEABLE, detail="no word of this segment has text")
            return Result(tuple(plan.missing.get(i, nothing) for i in range(len(segment.words))))
        if frames < len(plan.owners):
            needed = f"{segment.duration_ms} ms of audio for {len(plan.owners)} tokens, which last 20 ms each at least"
            return Result.missing(segment, MissingReason.AUDIO_TOO_SHORT, needed)
        most = self._checkpoint.size.tokens // 2
        if len(plan.owners) > most:
            # Real speech has some 5 tokens a second; what has more than the 7 that fit has too little audio.
            many = f"{len(plan.owners)} tokens in one segment, where the model takes {most}; align shorter utterances"
            return Result.missing(segment, MissingReason.AUDIO_TOO_SHORT, many)
        if (segment.pcm == segment.pcm[0]).all():
            return Result.missing(segment, MissingReason.NO_SPEECH, f"every sample is {segment.pcm[0]}")
        return _Prepared(plan, self._mel(segment, MARGIN))

    def _ask(self, segment: Segment, language: str) -> _Asked | Result:
        if not self._tokenizer.knows(language):
            detail = f"{language!r} is none of the languages that this model was trained on"
            return Result.missing(segment, MissingReason.UNSUPPORTED_LANGUAGE, detail)
        if len(segment.pcm) < FRAME or (segment.pcm == segment.pcm[0]).all():
            return Result(())
        return _Asked(segment, self._mel(segment, HEARING_MARGIN))

    def _mel(self, segment: Segment, margin: int) -> torch.Tensor:
        size = self._checkpoint.size
        pcm = segment.pcm[: size.frames * FRAME]
        return log_mel(pcm, self._context(-(-len(pcm) // FRAME), margin) * FRAME, size.bands)

    def _plan(self, segment: Segment, frames: int) -> _Plan:
        """Each word keeps its own tokens, and is said in the language that most words of the segment are in.

        A word in a language that the model does not know keeps its place, but gets no time.
        """
        tokenizer = self._tokenizer
        spoken = [word.language for word in segment.words if word.kind is WordKind.WORD]
        known = Counter(language for language in spoken if tokenizer.knows(language))
        prompt = tokenizer.prompt(known.most_common(1)[0][0] if known else "")
        tokens: list[int] = []
        owners: list[int] = []
        missing: dict[int, WordTiming] = {}
        before: str | None = None
        for i, word in enumerate(segment.words):
            if word.kind is WordKind.PAUSE:
                continue
            text = word.text if word.kind is WordKind.WORD else SLOT
            said = tokenizer.spell(text, word.language, before)
            if not said:
                missing[i] = WordTiming(reason=MissingReason.UNPRONOUNCEABLE, detail=f"{word.text!r} has no text")
            elif word.kind is WordKind.WORD and not tokenizer.knows(word.language):
                detail = f"{word.text!r} is in {word.language!r}, which this model was not trained on"
                missing[i] = WordTiming(reason=MissingReason.UNSUPPORTED_LANGUAGE, detail=detail)
            tokens += said
            owners += [i] * len(said)
            before = word.language if said else before
        if not any(segment.words[i].kind is WordKind.WORD and i not in missing for i in set(owners)):
            tokens, owners = [], []
        whole = (*prompt, *tokens, tokenizer.end)
        return _Plan(segment.words, segment.duration_ms, frames, whole, len(prompt) - 1, tuple(owners), missing)

    def compute(self, batch: Sequence[_Prepared | _Asked]) -> list[_Scored | _Heard]:
        """Attention and probabilities of each segment."""
        model = self._model
        if model is None:
            raise RuntimeError("WhisperEngine.compute was called before load")
        with torch.inference_mode(), lane(self.device):
            scored: dict[int, _Scored | _Heard] = {}
            groups: dict[int, dict[int, _Prepared]] = {}
            for i, item in enumerate(batch):
                if isinstance(item, _Asked):
                    scored[i] = self._listen(model, item)
                else:
                    groups.setdefault(i if self.device == "cpu" else item.mel.shape[1], {})[i] = item
            for group in groups.values():
                scored.update(zip(group, self._together(model, list(group.values())), strict=True))
            return [scored[i] for i in range(len(batch))]

    def _listen(self, model: Whisper, item: _Asked) -> _Heard:
        """The same of a segment whose words are to be found first; from where the model stops, it is asked again."""
        parts: list[tuple[int, _Scored]] = []
        pcm, start, language = item.segment.pcm, 0, item.segment.transcribe or ""
        part: _Asked | Result = item
        while isinstance(part, _Asked):
            scored, heard = self._heard(model, part)
            if scored is not None:
                parts.append((start * FRAME * 1000 // SAMPLE_RATE, scored))
                language = scored.plan.words[0].language
            if (
                heard is None
                or heard * FRAME < SHORTEST * SAMPLE_RATE
                or not is_sound(pcm[(start + heard) * FRAME :], pcm)
            ):
                break
            start += heard
            part = self._ask(Segment(item.segment.id, pcm[start * FRAME :], (), language), language)
        return _Heard(tuple(parts))

    def _heard(self, model: Whisper, item: _Asked) -> tuple[_Scored | None, int | None]:
        """What is said in a segment, None where nothing is; and up to which frame the model listened, if it says so."""
        tokenizer, decoder = self._tokenizer, model.decoder
        segment, asked = item.segment, item.segment.transcribe or ""
        audio = model.encoder(send(item.mel[None], self.device))
        memory = decoder.remember(audio)

        def step(token: int, at: int) -> torch.Tensor:
            return decoder.logits(decoder.step(token, at, memory))[0].cpu()

        frames = len(segment.pcm) // FRAME
        language = tokenizer.prompt(asked)[1] if asked and tokenizer.multilingual else None
        found = find(step, self._rules, language, self._checkpoint.size.tokens // 2, tokenizer.text)
        name = asked or tokenizer.spoken.get(found.language or 0, "eng")
        tokens = found.tokens[: min(frames, self._checkpoint.size.tokens // 2)]
        texts, owners = tokenizer.words(tokens, name)
        if not texts:
            return None, found.heard
        prompt = tokenizer.prompt(name)
        words = tuple(Word(text, name) for text in texts)
        whole = (*prompt, *tokens, tokenizer.end)
        plan = _Plan(words, segment.duration_ms, frames, whole, len(prompt) - 1, tuple(owners), {})
        short = self._context(-(-len(segment.pcm) // FRAME))
        if short < audio.shape[1]:  # as `prepare` has it for given words
            audio = model.encoder(send(self._mel(segment, MARGIN)[None], self.device))
        return self._scored(model, [plan], audio)[0], found.heard

    def _together(self, model: Whisper, batch: Sequence[_Prepared]) -> list[_Scored]:
        """The same of segments that share a forward; their contexts are of one length."""
        audio = model.encoder(send(torch.stack([item.mel for item in batch]), self.device))
        return self._scored(model, [item.plan for item in batch], audio)

    def _scored(self, model: Whisper, plans: Sequence[_Plan], audio: torch.Tensor) -> list[_Scored]:
        tokens = [torch.tensor(plan.tokens) for plan in plans]
        padded = send(pad_sequence(tokens, batch_first=True, padding_value=self._tokenizer.end), self.device)
        states, scores = model.decoder(padded, audio, self._checkpoint.heads)
        scored = []
        for i, plan in enumerate(plans):
            weights = scores[i, :, : len(plan.tokens), : plan.frames].softmax(-1)
            said = padded[i, plan.first + 1 : len(plan.tokens) - 1]
            logits = model.decoder.logits(states[i, plan.first : len(plan.tokens) - 2])[:, : self._tokenizer.end]
            likely = logits.gather(1, said[:, None])[:, 0].sub(logits.logsumexp(-1)).exp()
            scored.append(_Scored(plan, fetch(weights).numpy(), fetch(likely).numpy()))
        return scored

    def decode(self, scored: _Scored | _Heard) -> Result:
        """Word times; see the class. Raises ArithmeticError where the model gave what is not a number."""
        if isinstance(scored, _Heard):
            return scored.joined([self.decode(part) for _, part in scored.parts])
        plan = scored.plan
        # The token before has the silence before the first word, which openai-whisper gives to that word.
        starts = first_frames(scored.weights, plan.first - 1)[1:]
        owners = np.array(plan.owners)
        times: list[WordTiming] = []
        at = 0  # where the last word ended
        for i, word in enumerate(plan.words):
            mine = np.flatnonzero(owners == i)
            if word.kind is WordKind.PAUSE:
                later = np.flatnonzero(owners > i)
                end = self._ms(starts[later[0]], plan) if len(later) else plan.duration_ms
                times.append(WordTiming(at, end))
            elif not len(mine):
                times.append(plan.missing[i])
                continue
            else:
                start, end = self._ms(starts[mine[0]], plan), self._ms(starts[mine[-1] + 1], plan)
                score = 0.0 if word.kind is WordKind.UNKNOWN_SOUND else min(1.0, float(scored.likely[mine].mean()))
                times.append(plan.missing.get(i) or WordTiming(start, end, score))
            at = end
        return Result(tuple(times))

    def _ms(self, frame: int, plan: _Plan) -> int:
        return min(round(float(frame) * self.frame_ms), plan.duration_ms)

    def unload(self) -> None:
        """Let go of the weights."""
        self._model = None


def _read_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Whisper:
    """The model, on the CPU, for inference. Raises EngineLoadError."""
    with contextlib.ExitStack() as stack:
        where = {}
        for path in checkpoint.weights:
            try:
                opened = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise EngineLoadError(f"{path} is damaged or cut off ({error}); copy or download it again") from error
            where.update(dict.fromkeys(opened.keys(), opened))

        def tensor(name: str) -> torch.Tensor:
            found: torch.Tensor = where[f"model.{name}"].get_tensor(f"model.{name}")
            return found

        try:
            return Whisper.read(checkpoint.size, dtype, tensor)
        except KeyError as error:
            raise EngineLoadError(
                f"the weights in {checkpoint.folder} lack {error.args[0]}; save the model again with save_pretrained"
            ) from error
        except (ValueError, RuntimeError, SafetensorError) as error:
            raise EngineLoadError(f"the weights in {checkpoint.folder} do not fit its config.json ({error})") from error
