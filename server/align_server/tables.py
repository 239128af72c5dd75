"""What `align-server status` and `align-server models` show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from align_client import ModelInfo, ServerInfo
    from align_server.engines.registry import ModelDescription


def status_table(info: ServerInfo, models: Sequence[ModelInfo]) -> Group:
    """The server's figures, and a row for each model."""
    figures = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("address", info.address),
        ("server", f"chatalign {info.version}, process {info.pid}, up {info.uptime_s:.0f} s"),
        ("state", "draining" if info.draining else "serving"),
        ("clients", f"{info.clients} streams open"),
        ("queue", f"{info.queued_s:.1f} s waiting, {info.computing_s:.1f} s computing, {info.granted_s:.1f} s granted"),
        ("done", f"{info.segments_done} segments, {info.audio_done_s:.1f} s of audio"),
        ("rate", f"{info.rate:.0f} s of audio per second" if info.rate else "nothing measured yet"),
        ("memory", f"{info.memory_bytes / 2**20:.0f} MB resident"),
    ):
        figures.add_row(f"[bold]{name}[/]", value)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("model", "languages", "state", "revision", "longest segment"):
        table.add_column(head)
    for model in models:
        longest = f"{model.max_segment_s:g} s" if model.max_segment_s else ""
        table.add_row(model.name, " ".join(model.languages), model.state, model.revision, longest)
    return Group(figures, table)


def models_table(models: Sequence[ModelDescription], states: Mapping[str, str]) -> Table:
    """A row for each model that can be served here."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("model", "languages", "size", "licence", "loaded", "what"):
        table.add_column(head)
    for model in models:
        loaded = (
            "yes" if states.get(model.name) == "serving" else states.get(model.name, "no").replace("available", "no")
        )
        size = f"{model.size_bytes / 1e6:.0f} MB"
        table.add_row(model.name, " ".join(model.languages), size, model.licence, loaded, model.note)
    return table
