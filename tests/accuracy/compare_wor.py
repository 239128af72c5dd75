"""Compares our %wor words with those of PyPI batchalign over a folder of CHAT files, or over generated ones.

    python compare_wor.py FOLDER BATCHALIGN_PYTHON
    python compare_wor.py FOLDER BATCHALIGN_PYTHON --turns
    python compare_wor.py --generated 500 BATCHALIGN_PYTHON

Both are given the same copies of the files: a bullet on every turn, no old %wor, audio that is there. With --turns,
and for generated documents, each turn is a file of its own, on one line beneath headers that batchalign takes, without
dependent tiers and other bullets: batchalign refuses a whole file for one age or one word. Prints each difference, then
the totals that docs/wor.md quotes.
"""
# ruff: noqa: T201  it prints its comparison

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from align_client.chat import Bullet, Document, Utterance, UtteranceTimes, WordTime

sys.path.append(str(Path(__file__).parents[1]))
from chat_grammar import whole

if TYPE_CHECKING:
    from collections.abc import Iterator

TURN_MS = 3000
BEFORE_MEDIA = ("@ID:", "@Birth", "@L1")
ALONE = """@UTF8
@Begin
@Languages:\t{languages}
@Participants:\tPAR Participant
{options}@ID:\t{language}|corpus|PAR|||||Participant|||
@Media:\tsilence, audio
*PAR:\t{said}
@End
"""
NO_LANGUAGE = "xyz"  # of the grammar; batchalign takes no file that has it
TURN_LANGUAGE = re.compile(r"\[- ([a-z]{3})\]")
ORACLE = Path(__file__).with_name("batchalign_oracle.py")


@dataclass(frozen=True)
class Difference:
    """One turn whose %wor tokens differ."""

    file: str
    line: int
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


@dataclass
class Comparison:
    """What came of a folder.

    `refused` has batchalign's reason for each file it did not align. Where a file is CA, we write no %wor: what our
    items would show there is compared all the same, and `ca_turns` counts those turns among `turns`.
    """

    refused: dict[str, str]
    files: int = 0
    turns: int = 0
    ca_turns: int = 0
    tokens: int = 0
    differences: list[Difference] = field(default_factory=list)


def compare(folder: Path, batchalign_python: Path, *, by_turn: bool = False) -> Comparison:
    """Align every .cha under `folder` with both; raises CalledProcessError where the oracle itself fails."""
    with tempfile.TemporaryDirectory() as temporary:
        copies = Path(temporary)
        turns = max((_copy_turns if by_turn else _copy)(folder, copies))
        audio = copies / "silence.wav"
        with wave.open(str(audio), "wb") as sink:
            sink.setnchannels(1)
            sink.setsampwidth(2)
            sink.setframerate(16000)
            sink.writeframes(bytes(2 * 16 * TURN_MS * (turns + 1)))
        command = [str(batchalign_python), str(ORACLE), str(copies), str(audio)]
        answers = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return _compare(copies, answers)


def compare_generated(documents: int, batchalign_python: Path) -> Comparison:
    """The same over the turns of this many documents of tests/chat_grammar.py, which are the same each time."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(documents):
            made = whole(random.Random(number))  # noqa: S311  no secret
            (Path(folder) / f"{number}.cha").write_bytes(made.data)
        return compare(Path(folder), batchalign_python, by_turn=True)


def _copy(folder: Path, copies: Path) -> Iterator[int]:
    """Write each file with a bullet on every turn, media, and no %wor tiers; yields the number of its turns.

    A file without turns is left out.
    """
    for path in sorted(folder.rglob("*.cha")):
        document = Document.parse(path.read_bytes())
        if not document.utterances:
            continue
        bullets = {
            turn.index: UtteranceTimes(
                Bullet(turn.index * TURN_MS, (turn.index + 1) * TURN_MS), (None,) * len(turn.items)
            )
            for turn in document.utterances
            if not turn.problem
        }
        text = document.with_times(bullets, wor=False).decode()
        lines = [line for line in text.splitlines(keepends=True) if not line.startswith(("%wor:", "@Media:"))]
        before = max((i for i, line in enumerate(lines) if line.startswith(BEFORE_MEDIA)), default=1)
        lines.insert(before + 1, f"@Media:\t{path.stem}, audio\n")
        _write(copies / path.relative_to(folder), "".join(lines))
        yield len(document.utterances)


def _copy_turns(folder: Path, copies: Path) -> Iterator[int]:
    """Write each turn as a file of its own, named by its line; yields the number of turns of a file: one."""
    yield 1
    for path in sorted(folder.rglob("*.cha")):
        document = Document.parse(path.read_bytes())
        for turn in document.utterances:
            target = copies / path.relative_to(folder).with_suffix("") / f"{turn.line}.cha"
            _write(target, _alone(document, document.written(turn.index)))


def _alone(document: Document, said: str) -> str:
    languages = list(dict.fromkeys((*document.languages, *TURN_LANGUAGE.findall(said))))
    languages = [language for language in languages if language != NO_LANGUAGE] or ["eng"]
    return ALONE.format(
        languages=", ".join(languages),
        language=languages[0],
        options="@Options:\tCA\n" if document.is_ca else "",
        said=f"{said} {Bullet(0, TURN_MS)}",
    )


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(text.encode())


def _compare(copies: Path, answers: dict[str, dict[str, str]]) -> Comparison:
    comparison = Comparison({name: answer["error"] for name, answer in answers.items() if "error" in answer})
    for name in sorted(answers.keys() - comparison.refused.keys()):
        ours = Document.parse((copies / name).read_bytes())
        theirs = Document.parse(answers[name]["chat"].encode())
        comparison.files += 1
        for our, their in zip(_with_wor(ours), theirs.utterances, strict=True):
            shown = _items_shown(our) if ours.is_ca else _tokens(our)
            comparison.turns += 1
            comparison.ca_turns += ours.is_ca
            comparison.tokens += len(shown)
            if shown != _tokens(their):
                comparison.differences.append(Difference(name, our.line, shown, _tokens(their)))
    return comparison


def _with_wor(document: Document) -> tuple[Utterance, ...]:
    times = {
        turn.index: UtteranceTimes(None, (WordTime(0, 1),) * len(turn.items))
        for turn in document.utterances
        if not turn.problem
    }
    return Document.parse(document.with_times(times)).utterances


def _tokens(turn: Utterance) -> tuple[str, ...]:
    return tuple(word.text for word in turn.wor or ())


def _items_shown(turn: Utterance) -> tuple[str, ...]:
    words = tuple(turn.items[i].written for i in turn.shown)
    return (*words, turn.terminator) if words and turn.terminator else words


def main() -> None:
    """Print the comparison of the folder and the python that the command line names."""
    parser = argparse.ArgumentParser(description="Compare the words of %%wor tiers with those of batchalign.")
    parser.add_argument("folder", type=Path, nargs="?", help="of .cha files")
    parser.add_argument("python", type=Path, help="of an environment with batchalign")
    parser.add_argument("--turns", action="store_true", help="each turn as a file of its own")
    parser.add_argument("--generated", type=int, metavar="N", help="N documents of tests/chat_grammar.py")
    options = parser.parse_args()
    if (options.folder is None) == (options.generated is None):
        parser.error("give a folder or --generated")
    if options.generated is not None:
        comparison = compare_generated(options.generated, options.python)
    else:
        comparison = compare(options.folder, options.python, by_turn=options.turns)
    for difference in comparison.differences:
        print(f"{difference.file}:{difference.line}")
        print("    ours   " + " ".join(difference.ours))
        print("    theirs " + " ".join(difference.theirs))
    for name, error in comparison.refused.items():
        print(f"refused {name}: {' '.join(error.split())[:300]}")
    print(
        f"{comparison.files} files compared, {len(comparison.refused)} refused by batchalign;"
        f" {comparison.turns} turns ({comparison.ca_turns} CA), {comparison.tokens} tokens,"
        f" {len(comparison.differences)} turns differ"
    )


if __name__ == "__main__":
    main()
