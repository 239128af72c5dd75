"""Tables for a terminal stay short, whatever models say of themselves."""

from __future__ import annotations

import io

from rich.console import Console

from align_server.engines.registry import ModelDescription
from align_server.tables import MOST_LANGUAGES, models_table


def shown(*languages: str) -> str:
    page = io.StringIO()
    model = ModelDescription("ctc:/m", languages, "mit", 1000)
    Console(width=80, file=page).print(models_table([model], {}))
    return " ".join(page.getvalue().split())


def test_few_languages_are_all_named() -> None:
    codes = [f"x{i:02}" for i in range(MOST_LANGUAGES)]
    page = shown(*codes)
    assert all(code in page for code in codes)
    assert "more" not in page


def test_of_many_languages_the_first_are_named_and_the_others_counted() -> None:
    codes = [f"x{i:02}" for i in range(MOST_LANGUAGES + 3)]
    page = shown(*codes)
    assert all(code in page for code in codes[:MOST_LANGUAGES])
    assert codes[MOST_LANGUAGES] not in page
    assert "and 3 more" in page
