"""What is said: greedy decoding under the rules that a Whisper model was trained to need.

Knows tokens and logits; knows neither audio nor words. The rules are those of https://github.com/openai/whisper
(`decoding.py`), where nothing is drawn at random: a loop is cut, and not tried again at a higher temperature.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from align_server.engines.whisper.text import BEGIN, NO_TIMES, TRANSCRIBE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from align_server.engines.whisper.checkpoint import Checkpoint
    from align_server.engines.whisper.text import Tokenizer

    Step = Callable[[int, int], torch.Tensor]  # a token and its place; float32 logits, shape [vocabulary]

FIRST_TIME: Final = 50  # the latest that the first words may begin: 1 s
COMPRESSED: Final = 2.4  # times shorter than it is: text goes round in a loop
CHECKED: Final = 8  # tokens between two looks for that
NOTHING: Final = 0.6  # the probability of the token that says that nothing is said, from which on that is believed
UNLIKELY: Final = -1.0  # mean log probability below which it is


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """The tokens that mean something, and those that are not to be found: `never`, and at the start `never_first`.

    Tokens below `end` are text. `first_time` and those after it are times, and without them (`times`) text alone is
    found. `languages` are the tokens to choose from where no language is told; `not_speech` may be None.
    """

    begin: int
    end: int
    no_times: int
    times: bool
    commands: tuple[int, ...]
    languages: tuple[int, ...]
    not_speech: int | None
    never: torch.Tensor
    never_first: torch.Tensor

    @classmethod
    def of(cls, checkpoint: Checkpoint, tokenizer: Tokenizer) -> Rules:
        """The rules of a model, by its own settings; by those of OpenAI's code where it has none."""
        special, never, first = tokenizer.special, checkpoint.never, checkpoint.never_first
        return cls(
            begin=special[BEGIN],
            end=tokenizer.end,
            no_times=special[NO_TIMES],
            times=checkpoint.size.vocabulary > tokenizer.first_time,
            commands=(special[TRANSCRIBE],) if tokenizer.multilingual else (),
            languages=tuple(sorted(tokenizer.spoken)),
            not_speech=tokenizer.not_speech,
            never=torch.tensor(tokenizer.marks() if never is None else never),
            never_first=torch.tensor(tokenizer.blank() if first is None else first),
        )

    @property
    def first_time(self) -> int:
        """The token of 0.00 s."""
        return self.no_times + 1

    def language(self, logits: torch.Tensor) -> int | None:
        """The language that is heard, of what may come after `begin`; None where the model knows but one."""
        return self.languages[int(logits[list(self.languages)].argmax())] if self.languages else None

    def heard(self, found: Sequence[int]) -> int | None:
        """The frame that tokens end with, None where they do not end with a time."""
        return found[-1] - self.first_time if found and found[-1] >= self.first_time else None

    def allow(self, logits: torch.Tensor, found: Sequence[int]) -> torch.Tensor:
        """Log probabilities of what may come after `found`, of float32 logits, shape [vocabulary], which it changes."""
        logits[self.never] = -torch.inf
        if not found:
            logits[self.never_first] = -torch.inf
        logits[self.end + 1 : self.first_time] = -torch.inf
        if not self.times:
            logits[self.first_time :] = -torch.inf
            return logits.log_softmax(-1)
        first = self.first_time
        after_time = bool(found) and found[-1] >= first
        closed = len(found) < 2 or found[-2] >= first  # the time before is the second of a pair, or the very first
        if after_time:
            if closed:
                logits[first:] = -torch.inf
            else:
                logits[: self.end] = -torch.inf
        last = next((token for token in reversed(found) if token >= first), None)
        if last is not None:
            # A time may be said again only to open the stretch after the one that it closed.
            logits[first : last if after_time and not closed else last + 1] = -torch.inf
        if not found:
            logits[:first] = -torch.inf
            logits[first + FIRST_TIME + 1 :] = -torch.inf
        likely = logits.log_softmax(-1)
        if likely[first:].logsumexp(0) > likely[:first].max():
            logits[:first] = -torch.inf
            likely = logits.log_softmax(-1)
        return likely


@dataclass(frozen=True, slots=True)
class Found:
    """The tokens of text that were found, none where nothing is said, and the token of the language, if one was.

    `heard` is where the last stretch that was found ends, in frames: what follows was not listened to any more. It is
    None where the model did not say.
    """

    tokens: tuple[int, ...]
    language: int | None
    heard: int | None = None


def find(step: Step, rules: Rules, language: int | None, most: int, spell: Callable[[Sequence[int]], str]) -> Found:
    """What the audio behind `step` says, in at most so many tokens, times included.

    `step` gives what comes after a token, each of which it is given in turn. `language` is a token, None for what is
    heard; `spell` the text of tokens. Raises ArithmeticError where a logit is not a number.
    """
    logits = step(rules.begin, 0)
    if not torch.isfinite(logits).all():
        raise ArithmeticError("the model gives values that are not finite numbers")
    silence = 0.0 if rules.not_speech is None else float(logits.softmax(-1)[rules.not_speech])
    language = rules.language(logits) if language is None else language
    prompt = [*([] if language is None else [language]), *rules.commands, *(() if rules.times else (rules.no_times,))]
    for at, token in enumerate(prompt, 1):
        logits = step(token, at)
    found: list[int] = []
    text: list[int] = []
    total = 0.0
    while True:
        likely = rules.allow(logits, found)
        value, best = likely.max(-1)
        total += float(value)
        token = int(best)
        if token == rules.end:
            break
        found.append(token)
        if token < rules.end:
            text.append(token)
            if len(text) % CHECKED == 0 and loops(spell(text)):
                break
        if len(found) == most:
            break
        logits = step(token, len(prompt) + len(found))
    if silence > NOTHING and total / (len(found) + 1) < UNLIKELY:
        text = []
    elif loops(spell(text)):
        return Found(tuple(cut(text)), language)
    return Found(tuple(text), language, rules.heard(found))


def loops(text: str) -> bool:
    """Whether text says the same over and over, by how much shorter it can be written."""
    raw = text.strip().encode()
    return len(raw) > COMPRESSED * len(zlib.compress(raw))


def cut(tokens: Sequence[int]) -> list[int]:
    """The tokens up to where what they end with begins again; half of them where they do not end in a loop."""
    count = len(tokens)
    best, kept = 0, count // 2
    for period in range(1, count // 2 + 1):
        same = 0
        while same < count - period and tokens[count - 1 - same] == tokens[count - 1 - same - period]:
            same += 1
        if same >= period and same > best:
            best, kept = same, count - same
    return list(tokens[:kept])
