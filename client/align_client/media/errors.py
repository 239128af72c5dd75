"""The one error of finding and reading recordings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os


class MediaError(Exception):
    """A recording cannot be found, opened or read on: `message` says what was found and what to do.

    `path` is the file, or the name that the transcript gives it.
    """

    def __init__(self, path: str | os.PathLike[str], message: str) -> None:
        super().__init__(path, message)
        self.path = path
        self.message = message

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"
