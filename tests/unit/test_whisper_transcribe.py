"""A Whisper checkpoint finds words: by the rules it was trained under, each with a time, the same in any company."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
import torch

from align_server.engines.engine import MissingReason, Result, Segment
from align_server.engines.whisper import transcribe
from align_server.engines.whisper.checkpoint import Checkpoint
from align_server.engines.whisper.engine import WhisperEngine, _read_model
from align_server.engines.whisper.sound import is_sound
from align_server.engines.whisper.text import _grouped
from align_server.engines.whisper.transcribe import Rules, cut, find, loops
from segments import noise, segment
from whispers import write_whisper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

BEGIN, END, NO_TIMES, EN, DE, NOT_SPEECH, ZERO = 21, 20, 25, 22, 23, 24, 26  # of a model with 20 tokens of text
VOCABULARY: Final = ZERO + 101  # and times to 2 s
TIMES: Final = 1501


def rules(*, times: bool = True, languages: tuple[int, ...] = ()) -> Rules:
    never, first = torch.tensor([NO_TIMES, 7]), torch.tensor([5, END])
    return Rules(BEGIN, END, NO_TIMES, times, (), languages, NOT_SPEECH, never, first)


def wishing(*tokens: int) -> torch.Tensor:
    """Logits of a model that wants these tokens most, in this order."""
    logits = torch.zeros(VOCABULARY)
    for place, token in enumerate(tokens):
        logits[token] = 50.0 - place
    return logits


def allowed(found: Sequence[int], *tokens: int, times: bool = True) -> int:
    return int(rules(times=times).allow(wishing(*tokens), found).argmax())


def speaking(script: dict[int, Sequence[int]], silence: float = 0.0) -> Callable[[int, int], torch.Tensor]:
    """A model that after the token at each place wants what the script has, and else the end."""

    def step(_token: int, at: int) -> torch.Tensor:
        logits = wishing(*script.get(at, (END,)))
        if at == 0:
            logits[NOT_SPEECH] = silence
        return logits

    return step


def spell(tokens: Sequence[int]) -> str:
    return "".join(chr(97 + token) for token in tokens)


def heard(step: Callable[[int, int], torch.Tensor], most: int = 40) -> tuple[int, ...]:
    return find(step, rules(), None, most, spell).tokens


def test_the_first_token_is_a_time_of_at_most_one_second() -> None:
    assert allowed([], 3, ZERO + 51, ZERO + 50) == ZERO + 50
    assert allowed([], 3, times=False) == 3


def test_after_the_first_time_comes_text() -> None:
    assert allowed([ZERO], ZERO + 3, 3) == 3


def test_a_time_after_text_is_followed_by_its_like_or_by_the_end() -> None:
    assert allowed([ZERO, 3, ZERO + 9], 4, ZERO + 9) == ZERO + 9
    assert allowed([ZERO, 3, ZERO + 9], 4, END) == END
    assert allowed([ZERO, 3, ZERO + 9, ZERO + 9], ZERO + 12, 4) == 4


def test_times_never_fall() -> None:
    assert allowed([ZERO + 5, 3], ZERO + 4, ZERO + 5, ZERO + 6) == ZERO + 6
    assert allowed([ZERO + 5, 3, ZERO + 9], ZERO + 8, ZERO + 9) == ZERO + 9


def test_a_time_is_taken_where_all_times_together_are_likelier_than_any_text() -> None:
    logits = torch.zeros(VOCABULARY)
    logits[3] = 2.0
    assert int(rules().allow(logits.clone(), [ZERO, 4]).argmax()) > ZERO
    logits[3] = 8.0
    assert int(rules().allow(logits.clone(), [ZERO, 4]).argmax()) == 3


def test_suppressed_tokens_are_never_found() -> None:
    assert allowed([ZERO], 7, 5) == 5
    assert allowed([], 5, 4, times=False) == 4
    assert allowed([ZERO], EN, NOT_SPEECH, 4) == 4


def test_text_is_what_is_found_between_times() -> None:
    assert heard(speaking({0: (ZERO,), 1: (3,), 2: (4,), 3: (ZERO + 9,)})) == (3, 4)


def test_nothing_is_said_where_the_model_says_so_and_is_not_sure_of_anything_else() -> None:
    assert heard(speaking({0: (ZERO,), 1: (3,)}, silence=60.0)) == (3,)

    def unsure(_token: int, at: int) -> torch.Tensor:
        logits = torch.zeros(VOCABULARY)
        logits[NOT_SPEECH] = 60.0 if at == 0 else 0.0
        return logits

    assert heard(unsure) == ()


def test_no_more_tokens_are_found_than_there_is_room_for() -> None:
    asked: list[int] = []

    def step(_token: int, at: int) -> torch.Tensor:
        asked.append(at)
        return wishing(*((ZERO,) if at == 0 else ((at * at * 7 + at) % 5, 3)))

    assert len(heard(step, most=12)) == 11
    assert asked == list(range(12))


def test_a_loop_is_left_and_cut_to_its_first_round() -> None:
    asked: list[int] = []

    def step(_token: int, at: int) -> torch.Tensor:
        asked.append(at)
        return wishing(ZERO if at == 0 else 10 if at < 3 else 3 + at % 2)

    assert heard(step, most=400) == (10, 10, 4, 3)
    assert len(asked) < 100


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [([1, 2, 3, 3, 3, 3], [1, 2, 3]), ([9, 1, 2, 1, 2, 1], [9, 1, 2]), ([1, 2, 3, 4], [1, 2])],
)
def test_what_is_cut_is_all_rounds_but_the_first(tokens: list[int], kept: list[int]) -> None:
    assert cut(tokens) == kept


def test_only_text_that_goes_round_and_round_is_a_loop() -> None:
    assert loops("and so on " * 20)
    assert not loops("no no no no no no")
    assert not loops("it is futile to offer any further resistance")


def test_a_language_that_nobody_tells_is_the_likeliest_of_those_there_are() -> None:
    seen: list[int] = []

    def step(token: int, at: int) -> torch.Tensor:
        seen.append(token)
        return wishing(3, DE, EN) if at == 0 else wishing(END)

    found = find(step, rules(languages=(EN, DE)), None, 9, spell)
    assert found.language == DE
    assert seen[:2] == [BEGIN, DE]
    assert find(step, rules(languages=(EN, DE)), EN, 9, spell).language == EN


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(ArithmeticError, match="not finite"):
        heard(lambda _token, _at: torch.full((VOCABULARY,), torch.nan))


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([" Hello", ",", " world", "."], ["Hello,", "world."]),
        ([" It", "'s", " well", "-", "known"], ["It's", "well-known"]),
        ([" $", "1", ",", "000", "."], ["$1,000."]),
        ([" he", " said", ' "', "no", '."'], ["he", "said", '"no."']),
        ([" a", " ¿", "b", "?"], ["a", "¿b?"]),
        ([" Well", " ...", " R", " &", " B"], ["Well...", "R", "&", "B"]),
        ([" ...", " yes"], ["yes"]),
        ([" (", "hm"], ["(hm"]),
        ([" ...", " -"], []),
        ([], []),
    ],
)
def test_words_begin_at_spaces_and_have_their_punctuation(pieces: list[str], words: list[str]) -> None:
    found, owners = _grouped([(piece, 1) for piece in pieces], spaced=True)
    assert found == words
    assert len(owners) == (len(pieces) if words else 0)
    assert owners == sorted(owners)
    assert set(owners) == set(range(len(words)))


def test_without_spaces_each_whole_character_is_a_word() -> None:
    found, owners = _grouped([("你", 2), ("好", 1), ("。", 1), ("「", 1), ("我", 1), ("」", 1)], spaced=False)
    assert found == ["你", "好。", "「我」"]
    assert owners == [0, 0, 1, 1, 2, 2, 2]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the registry has it
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with times."""
    return write_whisper(tmp_path_factory.mktemp("whisper"), vocab_size=266 + TIMES, init_std=0.6, seed=1)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def engine(request: pytest.FixtureRequest, folder: Path) -> WhisperEngine:
    return loaded(folder, str(request.param))


def loaded(folder: Path, precision: str = "fp32") -> WhisperEngine:
    engine = WhisperEngine(f"whisper:{folder}", folder, "cpu", precision)
    engine.load()
    assert engine._model is not None
    engine._model.decoder.embed_tokens.weight[266:] = 0  # else so many random times are always likelier than text
    return engine


def asking(seconds: float = 2.0, seed: int = 0, language: str = "eng") -> Segment:
    return Segment(f"{seconds} s, {seed}", noise(seconds, seed), (), transcribe=language)


@torch.inference_mode()
def test_a_token_at_a_time_gives_what_all_at_once_do(folder: Path) -> None:
    checkpoint = Checkpoint.read(folder)
    decoder, encoder = (model := _read_model(checkpoint, torch.float32)).decoder, model.encoder
    audio = encoder(torch.randn(1, 80, 300, generator=torch.Generator().manual_seed(0)))
    tokens = [260, 261, 264, 265, 7, 70, 99, 150, 3, 400]
    states, _ = decoder(torch.tensor([tokens]), audio, checkpoint.heads)
    memory = decoder.remember(audio)
    stepped = torch.cat([decoder.step(token, at, memory) for at, token in enumerate(tokens)])
    torch.testing.assert_close(decoder.logits(stepped), decoder.logits(states[0]), rtol=1e-4, atol=1e-4)


def several() -> list[Segment]:
    return [
        asking(s, i, language) for i, (s, language) in enumerate(((1.0, ""), (2.3, "eng"), (1.0, "deu"), (3.9, "")))
    ]


def test_every_word_found_has_a_time_in_order_and_within_the_audio(engine: WhisperEngine) -> None:
    assert engine.transcribes
    results = engine.align(several())
    assert any(result.said for result in results)
    for item, result in zip(several(), results, strict=True):
        assert len(result.said) == len(result.words)
        edges = [edge for word in result.words for edge in (word.start_ms, word.end_ms)]
        known = [edge for edge in edges if edge is not None]
        assert len(known) == len(edges)
        assert known == sorted(known)
        assert all(0 <= edge <= item.duration_ms for edge in known)
        assert all(0 <= word.score <= 1 for word in result.words)
        assert all(word.text == word.text.strip() != "" for word in result.said)


def test_a_segment_has_the_same_words_in_any_batch(engine: WhisperEngine) -> None:
    items = [*several(), segment("the", "hat")]
    together = engine.align(items)
    assert together == [engine.align([item])[0] for item in items]
    assert together == engine.align(items[::-1])[::-1]


def test_a_segment_has_the_same_words_in_any_thread(engine: WhisperEngine) -> None:
    expected = engine.align(several())
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda _: engine.align(several()), range(6))) == [expected] * 6


def test_words_that_were_found_are_in_the_language_asked_for_or_heard(engine: WhisperEngine) -> None:
    results = engine.align(several())
    assert {word.language for result in (results[1], results[2]) for word in result.said} <= {"eng", "deu"}
    assert {word.language for word in results[0].said + results[3].said} <= {"eng", "zho", "deu"}


@pytest.mark.parametrize("pcm", [np.full(16000, 7, np.int16), np.zeros(0, np.int16), noise(1)[:319]])
def test_nothing_is_said_in_silence_or_in_no_audio(engine: WhisperEngine, pcm: np.ndarray) -> None:
    assert engine.align([Segment("silence", pcm, (), transcribe="")]) == [Result(())]


def test_a_language_that_the_model_does_not_know_is_named(engine: WhisperEngine) -> None:
    (result,) = engine.align([asking(language="xyz")])
    assert [word.reason for word in result.words] == [MissingReason.UNSUPPORTED_LANGUAGE]
    assert "'xyz' is none of the languages" in result.words[0].detail
    assert len(result.said) == 1


def test_a_model_without_times_finds_words_as_well(tmp_path: Path) -> None:
    engine = loaded(write_whisper(tmp_path, multilingual=False, init_std=0.6))
    results = engine.align([asking(seed=seed, language="") for seed in range(4)])
    assert {word.language for result in results for word in result.said} == {"eng"}


def test_tokens_that_the_folder_suppresses_are_not_found(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path)
    path = folder / "generation_config.json"
    path.write_text(path.read_text().replace("{", '{"suppress_tokens": [-1, 3, 4], ', 1))
    engine = loaded(folder)
    assert engine._rules.never.tolist() == [3, 4]
    assert loaded(write_whisper(tmp_path / "other"))._rules.never.tolist() != [3, 4]


def test_the_limits_are_those_of_openai() -> None:
    assert (transcribe.FIRST_TIME, transcribe.COMPRESSED, transcribe.NOTHING, transcribe.UNLIKELY) == (50, 2.4, 0.6, -1)


def test_sound_after_the_model_stopped_is_told_from_silence() -> None:
    rng = np.random.default_rng(0)
    speech = rng.normal(0, 3000, 16_000 * 5).astype(np.int16)
    hiss = rng.normal(0, 30, 16_000 * 5).astype(np.int16)
    whole = np.concatenate([speech, hiss])
    assert not is_sound(hiss, whole)
    assert is_sound(speech, np.concatenate([hiss, speech]))
    assert not is_sound(speech[:8000], speech)
