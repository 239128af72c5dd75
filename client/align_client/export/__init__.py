"""CHAT transcripts that have times, written for other programs: Praat, ELAN, video players, R and Python.

Stands above chat and media, and asks no server: phones are given to it. `transcript` is what every format is written
from, `run` takes one file from CHAT to its place.
"""

from __future__ import annotations

from typing import Final

PHONES: Final = ("textgrid", "eaf", "json")  # the formats that have a place for phones

# What `--format` takes, and how files of each are named.
SUFFIXES: Final = {
    "textgrid": ".TextGrid",
    "eaf": ".eaf",
    "vtt": ".vtt",
    "srt": ".srt",
    "csv": ".csv",
    "json": ".json",
}
