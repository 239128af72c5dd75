"""Makes the example conversations: for each a transcript, its recording, and the true time of every word.

The speech is Flite's, whose word times come with it. Needs Flite's shared libraries and voices
(Debian: apt-get install flite); the rest is in the server's requirements. Run as python examples/make_examples.py.
"""

from __future__ import annotations

import ctypes
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import click
import numpy as np
import soundfile
import soxr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Signal: TypeAlias = npt.NDArray[np.float64]

HERE = Path(__file__).parent
RATE = 16_000  # Hz, of the voices and of the recordings
SEED = 20
BULLET = "\u0015"
BEFORE, AFTER = 0.08, 0.12  # s that a bullet leaves around the speech, as a careful transcriber does
GAPS = (0.35, 0.9)  # s between two utterances
ROOM_NOISE = 10 ** (-58 / 20)
SPEECH_LEVEL = 0.07  # root mean square


@dataclass(frozen=True, slots=True)
class Voice:
    """A Flite voice; `raised` speeds its recording up by that factor, which makes it higher and its speaker smaller."""

    name: str
    stretch: float = 1.0
    raised: float = 1.0


@dataclass(frozen=True, slots=True)
class Utterance:
    """A line of the transcript, and what is heard.

    `said` is words, parted by spaces: `shown=spoken` where the spelling in %wor and the sound differ (`_` stands for
    a space), `(0.5)` a silence of so many seconds, `{laugh}` laughter, `{babble:bah_bah}` speech that is
    no word, `{murmur:see_you}` speech that cannot be made out.
    """

    speaker: str
    line: str
    said: str
    timed: bool = True


@dataclass(frozen=True, slots=True)
class Conversation:
    """A file's headers, voices and utterances; `audio` is the name of the recording."""

    name: str
    audio: str
    headers: tuple[str, ...]
    voices: dict[str, Voice]
    utterances: tuple[Utterance, ...]


PLAY = Conversation(
    name="play",
    audio="play.flac",
    headers=(
        "@Languages:\teng",
        "@Participants:\tCHI Target_Child, MOT Mother",
        "@ID:\teng|chatalign|CHI|3;02.||||Target_Child|||",
        "@ID:\teng|chatalign|MOT|||||Mother|||",
        "@Media:\tplay, audio",
        "@Situation:\ta child and her mother play with blocks and a toy",
    ),
    voices={"CHI": Voice("slt", stretch=1.35, raised=1.18), "MOT": Voice("slt", stretch=1.05)},
    utterances=(
        Utterance("MOT", "what do you want to play with ?", "what do you want to play with?"),
        Utterance("CHI", "<I want> [/] I want &-um the blimbo .", "I want (0.3) I want um, the blimbo."),
        Utterance("MOT", "where did the blimbo go ?", "where did the blimbo go?"),
        Utterance("CHI", "he goed [: went] [*] under the table .", "he goed under the table."),
        Utterance("CHI", "&~babaga look Mommy !", "{babble:bah_bah_gah} look Mommy."),
        Utterance("MOT", "&=laughs I see him .", "{laugh} I see him."),
        Utterance("MOT", "he is hiding (be)cause he is shy .", "he is hiding because=cuz he is shy."),
        Utterance("CHI", "xxx .", "{murmur:put_the_little_one_away}"),
        Utterance("MOT", "what did you say ?", "what did you say?"),
        Utterance("CHI", "I [/] I make xxx a tower .", "I (0.15) I make {murmur:over_there_again} a tower."),
        Utterance("MOT", "oh (1.5) a very big tower .", "oh. (1.5) a very big tower."),
        Utterance(
            "MOT",
            "<can I help> [//] can I put this one on top ?",
            "can I help (0.25) can I put this one on top?",
        ),
        Utterance("CHI", "no (.) &-uh my turn !", "no. (0.3) uh, my turn."),
        Utterance("MOT", "okay (.) and then we have ice+cream .", "okay. (0.35) and then we have icecream=ice_cream."),
        Utterance("CHI", "&=laughs ice+cream !", "{laugh} icecream=ice_cream!"),
        Utterance("MOT", "yes (.) you can have two .", "yes, (0.3) you can have two."),
    ),
)

INTERVIEW = Conversation(
    name="interview",
    audio="interview.mp3",
    headers=(
        "@Languages:\teng",
        "@Participants:\tINV Investigator, PAR Participant",
        "@ID:\teng|chatalign|INV|||||Investigator|||",
        "@ID:\teng|chatalign|PAR|61;||||Participant|||",
        "@Media:\tinterview, audio",
        "@Situation:\ta retired baker talks about her first job",
    ),
    voices={"INV": Voice("rms"), "PAR": Voice("slt", stretch=0.95)},
    utterances=(
        Utterance("INV", "can you tell me about your first job ?", "can you tell me about your first job?"),
        Utterance(
            "PAR",
            "sure (.) &-um I started at the bakery when I was nineteen .",
            "sure. (0.4) um, I started at the bakery when I was nineteen.",
        ),
        Utterance("INV", "okay .", "okay.", timed=False),
        Utterance(
            "PAR",
            "<we had> [//] there were &-uh seven of us (be)cause the shop was small .",
            "we had (0.2) there were uh, seven of us because=cuz the shop was small.",
        ),
        Utterance("INV", "and what did you like best ?", "and what did you like best?"),
        Utterance(
            "PAR", "the mornings (1.5) before the street woke up .", "the mornings, (1.5) before the street woke up."
        ),
        Utterance(
            "PAR",
            "my friend Brannoway and I &-you_know we would sing .",
            "my friend Brannoway and I (0.1) you_know we would sing.",
        ),
        Utterance("INV", "&=laughs really ?", "{laugh} really?"),
        Utterance("PAR", "oh yes xxx every day .", "oh yes. {murmur:nearly_all_the_time} every day."),
        Utterance(
            "PAR",
            "she runned [: ran] [*] the oven and I &+sh &-uh shaped the bread .",
            "she runned the oven and I {babble:sheh} uh, shaped the bread.",
        ),
        Utterance(
            "INV",
            "did you ever burn <the bread> [/] the bread ?",
            "did you ever burn the bread (0.2) the bread?",
        ),
        Utterance("PAR", "once (.) &=laughs maybe twice .", "once. {laugh} maybe twice."),
        Utterance("INV", "&-um what happened then ?", "um, what happened then?"),
        Utterance(
            "PAR",
            "we ate ice+cream for breakfast and told nobody .",
            "we ate icecream=ice_cream for breakfast and told nobody.",
        ),
        Utterance("INV", "that's a good story .", "that's a good story."),
        Utterance("PAR", "I still have the recipe (.) somewhere .", "I still have the recipe. (0.3) somewhere."),
    ),
)


@dataclass(frozen=True, slots=True)
class Heard:
    """A stretch of sound and the words in it: spelling, start and end in seconds from its first sample."""

    signal: Signal
    words: tuple[tuple[str, float, float], ...] = ()

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.signal) / RATE


class _Wave(ctypes.Structure):
    """The head of Flite's cst_wave."""

    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class _VoiceHead(ctypes.Structure):
    """The head of Flite's cst_voice."""

    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


class Flite:
    """Flite's C library. Raises click.ClickException where it or a voice is not installed."""

    def __init__(self) -> None:
        self._lib = self._open("flite")
        self._open("flite_usenglish")
        self._open("flite_cmulex")
        self._lib.flite_init()
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        self._synthesise = self._function("flite_synth_text", pointer, text, pointer)
        self._wave = self._function("utt_wave", ctypes.POINTER(_Wave), pointer)
        self._relation = self._function("utt_relation", pointer, pointer, text)
        self._head = self._function("relation_head", pointer, pointer)
        self._next = self._function("item_next", pointer, pointer)
        self._seconds = self._function("ffeature_float", ctypes.c_float, pointer, text)
        self._set = self._function("feat_set_float", None, pointer, text, ctypes.c_float)
        self._delete = self._function("delete_utterance", None, pointer)
        self._voices: dict[str, int] = {}

    @staticmethod
    def _open(name: str) -> ctypes.CDLL:
        try:
            return ctypes.CDLL(f"lib{name}.so.1", mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise click.ClickException(f"lib{name} was not found ({error}): apt-get install flite") from error

    def _function(self, name: str, result: type | None, *arguments: type) -> Callable[..., Any]:
        function = getattr(self._lib, name)
        function.restype, function.argtypes = result, list(arguments)
        return cast("Callable[..., Any]", function)

    def _voice(self, name: str) -> int:
        if name not in self._voices:
            register = getattr(self._open(f"flite_cmu_us_{name}"), f"register_cmu_us_{name}")
            register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            self._voices[name] = register(None)
        return self._voices[name]

    def say(self, text: str, voice: Voice) -> Heard:
        """The text as spoken, without the silence around it, and the times of what spaces part in it."""
        pointer = self._voice(voice.name)
        features = ctypes.cast(pointer, ctypes.POINTER(_VoiceHead)).contents.features
        self._set(features, b"duration_stretch", voice.stretch)
        utterance = self._synthesise(text.encode(), pointer)
        wave = self._wave(utterance).contents
        signal = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)) / 32768.0
        token, words = self._head(self._relation(utterance, b"Token")), []
        for word in text.split():
            start = self._seconds(token, b"daughter1.R:SylStructure.daughter1.daughter1.R:Segment.p.end")
            end = self._seconds(token, b"daughtern.R:SylStructure.daughtern.daughtern.R:Segment.end")
            words.append((word, start, end))
            token = self._next(token)
        self._delete(utterance)
        first, last = words[0][1], words[-1][2]
        signal = signal[round(first * RATE) : round(last * RATE)]
        if voice.raised != 1.0:
            signal = soxr.resample(signal, RATE, RATE / voice.raised)
        signal = signal * (SPEECH_LEVEL / np.sqrt(np.mean(signal**2)))
        return Heard(
            signal, tuple((word, (a - first) / voice.raised, (b - first) / voice.raised) for word, a, b in words)
        )


def filtered(signal: Signal, low: float, high: float) -> Signal:
    """The signal between two frequencies in Hz, which it fades out beyond."""
    spectrum = np.fft.rfft(signal)
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(signal), 1 / RATE), 1.0))
    beyond = np.maximum(np.log2(low) - octaves, 0) + np.maximum(octaves - np.log2(high), 0)
    return np.fft.irfft(spectrum * 10 ** (-24 * beyond / 20), len(signal))


def laughter(random: np.random.Generator) -> Heard:
    """Five bursts of breath, each weaker than the one before."""
    burst = np.hanning(int(0.13 * RATE))
    silence = np.zeros(int(0.06 * RATE))
    envelope = np.concatenate([np.concatenate([burst * 0.8**n, silence]) for n in range(5)])
    breath = filtered(random.standard_normal(len(envelope)), 500, 2500)
    return Heard(envelope * breath * (SPEECH_LEVEL / breath.std()))


def heard(utterance: Utterance, voice: Voice, flite: Flite, random: np.random.Generator) -> Iterator[Heard]:
    """What is heard of an utterance, stretch by stretch."""
    for piece in re.findall(r"\([\d.]+\)|\{[^}]*\}|[^({]+", utterance.said):
        if piece.startswith("("):
            yield Heard(np.zeros(round(float(piece.strip("()")) * RATE)))
        elif piece == "{laugh}":
            yield laughter(random)
        elif piece.startswith("{"):
            kind, _, text = piece.strip("{}").partition(":")
            speech = flite.say(text.replace("_", " "), voice).signal
            yield Heard(0.5 * filtered(speech, 80, 500) if kind == "murmur" else speech)
        elif piece.strip():
            yield spoken(piece.split(), voice, flite)


def spoken(words: list[str], voice: Voice, flite: Flite) -> Heard:
    """Words as Flite says them, under the spelling that %wor shows."""
    shown, sounds = [], []
    for word in words:
        spelling, _, sound = word.partition("=")
        shown.append(spelling.strip(",.?!"))
        sounds.append((sound or spelling).split("_"))
    said = flite.say(" ".join(token for tokens in sounds for token in tokens), voice)
    times = iter(said.words)
    spans = [[next(times) for _ in tokens] for tokens in sounds]
    return Heard(said.signal, tuple((s, span[0][1], span[-1][2]) for s, span in zip(shown, spans, strict=True)))


def make(conversation: Conversation, flite: Flite) -> float:
    """Write one conversation's transcript, recording and truth; its length in seconds."""
    random = np.random.default_rng(SEED)
    signal = [np.zeros(round(0.5 * RATE))]
    at = 0.5
    lines, truth = [], []
    for index, utterance in enumerate(conversation.utterances):
        start, words = at, []
        for stretch in heard(utterance, conversation.voices[utterance.speaker], flite, random):
            words += [
                {"word": word, "start": round(at + a, 3), "end": round(at + b, 3)} for word, a, b in stretch.words
            ]
            signal.append(stretch.signal)
            at += stretch.seconds
        bullet = f" {BULLET}{round((start - BEFORE) * 1000)}_{round((at + AFTER) * 1000)}{BULLET}"
        lines.append(f"*{utterance.speaker}:\t{utterance.line}{bullet if utterance.timed else ''}")
        truth.append({"utterance": index, "words": words})
        gap = np.zeros(round(random.uniform(*GAPS) * RATE))
        signal.append(gap)
        at += len(gap) / RATE
    recording = np.concatenate(signal)
    noise = filtered(random.standard_normal(len(recording)), 50, 1000)
    recording += noise * (ROOM_NOISE / noise.std())
    soundfile.write(HERE / conversation.audio, recording, RATE)
    transcript = ["@UTF8", "@Begin", *conversation.headers, *lines, "@End"]
    (HERE / f"{conversation.name}.cha").write_text("\n".join(transcript) + "\n", encoding="utf-8", newline="\n")
    rows = ",\n ".join(json.dumps(entry) for entry in truth)
    (HERE / f"{conversation.name}.truth.json").write_text(f"[{rows}]\n", encoding="utf-8")
    return at


@click.command()
def main() -> None:
    """Make every example again, beside this script."""
    flite = Flite()
    for conversation in (PLAY, INTERVIEW):
        click.echo(f"{conversation.name}: {make(conversation, flite):.1f} s")


if __name__ == "__main__":
    main()
