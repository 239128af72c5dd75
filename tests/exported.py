"""Reads what was exported with other programs than wrote it: Praat, webvtt-py, srt, and the XML and CSV of Python.

Times are milliseconds throughout, so that they can be compared with those of CHAT.
"""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import parselmouth
import srt
import webvtt
from parselmouth.praat import call

if TYPE_CHECKING:
    from pathlib import Path

WOR_WORD = re.compile("(\\S+) \x15(\\d+)_(\\d+)\x15")
EAF_ORDER = ["HEADER", "TIME_ORDER", "TIER", "LINGUISTIC_TYPE", "CONSTRAINT"]  # of the schema, less what is not used
STAMP = re.compile(r"<(\d\d:\d\d:\d\d\.\d\d\d)>")


class Said(NamedTuple):
    """A word or an utterance."""

    text: str
    start_ms: int
    end_ms: int


class Cue(NamedTuple):
    """A subtitle; `stamps` are the time stamps within it, in WebVTT."""

    speaker: str
    text: str
    start_ms: int
    end_ms: int
    stamps: tuple[int, ...] = ()


@dataclass
class Eaf:
    """What ELAN would read; `parents` names the tier above each that has one."""

    tiers: dict[str, list[Said]]
    parents: dict[str, str]
    media: dict[str, str]


def wor_words(transcript: Path) -> list[Said]:
    """The timed words of all %wor tiers, read apart from the code under test."""
    text = re.sub(r"\r?\n\t", " ", transcript.read_text(encoding="utf-8"))
    tiers = [line for line in text.splitlines() if line.startswith("%wor:")]
    return [Said(word, int(start), int(end)) for tier in tiers for word, start, end in WOR_WORD.findall(tier)]


def textgrid(path: Path) -> dict[str, list[Said]]:
    """Each tier's labelled intervals, as Praat reads them. Praat refuses tiers with overlaps or gaps."""
    grid = parselmouth.read(str(path))
    tiers: dict[str, list[Said]] = {}
    for tier in range(1, call(grid, "Get number of tiers") + 1):
        intervals = []
        end_before = 0.0
        for i in range(1, call(grid, "Get number of intervals", tier) + 1):
            start, end = (call(grid, f"Get {side} time of interval", tier, i) for side in ("start", "end"))
            assert start == end_before < end
            end_before = end
            if label := call(grid, "Get label of interval", tier, i):
                intervals.append(Said(label, round(start * 1000), round(end * 1000)))
        assert end_before == call(grid, "Get end time")
        tiers[call(grid, "Get tier name", tier)] = intervals
    return tiers


def eaf(path: Path) -> Eaf:
    """The tiers of an EAF, after checking what its schema and ELAN demand of it."""
    root = ET.fromstring(path.read_bytes())  # noqa: S314  we wrote it
    assert root.tag == "ANNOTATION_DOCUMENT"
    assert {"AUTHOR", "DATE", "VERSION"} <= root.attrib.keys()
    assert [root[i].tag for i in range(len(root)) if i == 0 or root[i - 1].tag != root[i].tag] == EAF_ORDER
    ids = [value for node in root.iter() for key, value in node.items() if key in {"TIME_SLOT_ID", "ANNOTATION_ID"}]
    assert len(ids) == len(set(ids))
    slots = {slot.attrib["TIME_SLOT_ID"]: int(slot.attrib["TIME_VALUE"]) for slot in root.iter("TIME_SLOT")}
    types = {kind.attrib["LINGUISTIC_TYPE_ID"]: kind for kind in root.iter("LINGUISTIC_TYPE")}
    stereotypes = {constraint.attrib["STEREOTYPE"] for constraint in root.iter("CONSTRAINT")}
    assert {kind.attrib["CONSTRAINTS"] for kind in types.values() if "CONSTRAINTS" in kind.attrib} <= stereotypes
    found = Eaf({}, {}, dict(next(root.iter("MEDIA_DESCRIPTOR")).attrib))
    for tier in root.iter("TIER"):
        name, kind = tier.attrib["TIER_ID"], types[tier.attrib["LINGUISTIC_TYPE_REF"]]
        assert kind.attrib["TIME_ALIGNABLE"] == "true"
        annotations = [
            Said(
                node.findtext("ANNOTATION_VALUE", ""),
                slots[node.attrib["TIME_SLOT_REF1"]],
                slots[node.attrib["TIME_SLOT_REF2"]],
            )
            for node in tier.iter("ALIGNABLE_ANNOTATION")
        ]
        ends = [time for a in annotations for time in (a.start_ms, a.end_ms)]
        assert ends == sorted(ends)
        assert all(a.text and a.start_ms < a.end_ms for a in annotations)
        if parent := tier.get("PARENT_REF"):
            assert kind.attrib["CONSTRAINTS"] == "Included_In"
            for a in annotations:
                assert any(p.start_ms <= a.start_ms < a.end_ms <= p.end_ms for p in found.tiers[parent]), a
            found.parents[name] = parent
        found.tiers[name] = annotations
    return found


def vtt(path: Path) -> list[Cue]:
    """The cues, after checking that their time stamps are where WebVTT allows them."""
    cues = []
    for caption in webvtt.from_buffer(io.StringIO(path.read_text(encoding="utf-8"))).captions:
        start, end = milliseconds(caption.start), milliseconds(caption.end)
        stamps = tuple(milliseconds(stamp) for stamp in STAMP.findall(caption.raw_text))
        assert [*sorted({start, *stamps, end})] == [start, *stamps, end]
        text = re.sub(r"<[^>]*>", "", caption.raw_text)
        for reference, letter in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
            text = text.replace(reference, letter)
        cues.append(Cue(caption.voice or "", text, start, end, stamps))
    assert [cue.start_ms for cue in cues] == sorted(cue.start_ms for cue in cues)
    return cues


def subrip(path: Path) -> list[Cue]:
    """The cues of an SRT file; every byte of it must be understood."""
    cues = []
    for i, subtitle in enumerate(srt.parse(path.read_text(encoding="utf-8")), 1):
        assert subtitle.index == i
        speaker, _, text = subtitle.content.partition(": ")
        start, end = (round(time.total_seconds() * 1000) for time in (subtitle.start, subtitle.end))
        assert start < end
        cues.append(Cue(speaker, text, start, end))
    return cues


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, by the names of its columns."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def document(path: Path) -> dict[str, Any]:
    """The JSON."""
    value: dict[str, Any] = json.loads(path.read_bytes())
    return value


def milliseconds(clock: str) -> int:
    """What `00:01:02.345` says."""
    hours, minutes, seconds = clock.split(":")
    return (int(hours) * 60 + int(minutes)) * 60_000 + round(float(seconds) * 1000)
