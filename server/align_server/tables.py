"""What `align-server status` and `align-server models` show: plain words, within 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from align_client import ModelInfo, ServerInfo
    from align_client.sdk.types import ClientLoad
    from align_server.engines.registry import ModelDescription

MOST_CLIENTS = 12  # rows: a watched terminal has about 24
MOST_LANGUAGES = 6  # named; a model may have a thousand
NAME_WIDTH = 22  # of models and clients: what leaves room for their figures
MB = 2**20


def status_table(info: ServerInfo, models: Sequence[ModelInfo]) -> Group:
    """The server's figures, a row for each model, what is to be said of those that do not serve, and the clients."""
    parts: list[Table | Text] = [_figures(info), _models(models)]
    parts += [_text(f"{model.name} ({model.state}): {model.detail}") for model in models if _has_news(model)]
    if info.by_client:
        parts.append(_clients(info.by_client, several_models=len(models) > 1))
    if (more := len(info.by_client) - MOST_CLIENTS) > 0:
        parts.append(_text(f"and {more} more"))
    return Group(*parts)


def models_table(models: Sequence[ModelDescription], states: Mapping[str, str]) -> Table:
    """A row for each model that can be served here."""
    table = _table("model", "languages", "size", "licence", "loaded", "what")
    for model in models:
        state = states.get(model.name, "available")
        loaded = {"serving": "yes", "available": "no"}.get(state, state)
        size = f"{model.size_bytes / 1e6:.0f} MB"
        _row(table, model.name, _languages(model.languages), size, model.licence, loaded, model.note)
    return table


def _figures(info: ServerInfo) -> Table:
    limit = f" of at most {info.memory_limit_bytes / MB:.0f} MB" if info.memory_limit_bytes else ""
    cached = f", {info.cached} from the cache" if info.cached else ""
    vain = f", {info.in_vain} in vain" if info.in_vain else ""
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(info.refused.items()))
    waiting = f"{_s(info.queued_s)} waiting, {_s(info.computing_s)} computing, {_s(info.granted_s)} granted"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("address", info.address),
        ("server", f"chatalign {info.version}, process {info.pid}, up {_duration(info.uptime_s)}"),
        ("state", "draining" if info.draining else "serving"),
        ("clients", "1 stream open" if info.clients == 1 else f"{info.clients} streams open"),
        ("queue", waiting),
        ("done", f"{info.segments_done} segments, {_s(info.audio_done_s)} of audio{vain}{cached}"),
        ("refused", refused or "nothing"),
        ("rate", f"{info.rate:.0f} s of audio per second" if info.rate else "nothing measured yet"),
        ("cache", f"{info.cache_bytes / MB:.0f} MB" if info.cache_bytes else "none"),
        ("memory", f"{info.memory_bytes / MB:.0f} MB resident{limit}"),
    ):
        _row(table, name, value)
    return table


def _models(models: Sequence[ModelInfo]) -> Table:
    table = _table("model", "state", "waiting", "computing", "rate", "batch", numbers=2)
    for model in models:
        lines = [_short(model.name, NAME_WIDTH)]
        load = [""] * 4
        if model.state == "serving":
            what = [_languages(model.languages)] if model.languages else []
            lines += [f"  {', '.join([*what, f'up to {model.max_segment_s:g} s'])}", f"  {model.revision}"]
            load = [_s(model.queued_s), _s(model.computing_s), f"{model.rate:.0f} s/s", _batch(model)]
        _row(table, "\n".join(lines), model.state, *load)
    return table


def _clients(clients: Sequence[ClientLoad], *, several_models: bool) -> Table:
    """Those with most unanswered first."""
    busiest = sorted(clients, key=lambda c: (-c.unanswered_s, -c.audio_done_s, c.client))[:MOST_CLIENTS]
    which = ["model"] if several_models else []
    table = _table("client", *which, "unanswered", "credit", "done", numbers=1 + len(which))
    for client in busiest:
        model = [_short(client.model, NAME_WIDTH)] if several_models else []
        load = (_s(client.unanswered_s), _s(client.credit_s), _s(client.audio_done_s))
        _row(table, _short(client.client, NAME_WIDTH), *model, *load)
    return table


def _languages(codes: Sequence[str]) -> str:
    more = len(codes) - MOST_LANGUAGES
    return " ".join(codes) if more <= 0 else f"{' '.join(codes[:MOST_LANGUAGES])} and {more} more"


def _batch(model: ModelInfo) -> str:
    return f"{_s(model.batch_s)}, {-(-model.batch_bytes // MB)} MB"


def _has_news(model: ModelInfo) -> bool:
    return model.state in {"loading", "failed"} and bool(model.detail)


def _table(*heads: str, numbers: int | None = None) -> Table:
    """A table whose columns from `numbers` on are right-aligned; None means none."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(heads):
        is_number = numbers is not None and place >= numbers
        table.add_column(head, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*map(_text, cells))


def _text(cell: str) -> Text:
    """As it is: names come from clients and from folders, and are neither markup nor commands to a terminal."""
    return Text("".join(c if c.isprintable() or c == "\n" else "?" for c in cell))


def _short(name: str, most: int) -> str:
    """The end of a long name: folders and hosts differ there."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _s(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
