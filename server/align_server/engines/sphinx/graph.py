"""What an utterance may sound like, as a network of phones: pronunciations, triphones, optional silence.

Knows the phone set and nothing of dictionaries or audio. A node is one phone in one context, with three
states; the first phone of a word is copied for each phone it may follow, the last for each it may precede.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from align_server.engines.sphinx.model import BEGIN, END, INTERNAL, SINGLE, STATES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from align_server.engines.sphinx.model import PhoneSet

SILENCE: Final = -1  # the owner of a node that belongs to no item
UNKNOWN_SOUND: Final = -1  # the senone of a slot's states: scored as whatever fits best

Pronunciation = tuple[int, ...]  # of phones of the model


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is heard: a word in any of its pronunciations, or an unknown sound where there are none.

    `pause_before` says that a pause was heard before it.
    """

    pronunciations: tuple[Pronunciation, ...] = ()
    pause_before: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A network of phones; every node comes after those before it in time."""

    phones: npt.NDArray[np.int64]  # [nodes]
    senones: npt.NDArray[np.int64]  # [nodes, 3]
    owners: npt.NDArray[np.int64]  # [nodes]: the item, or SILENCE
    entry: npt.NDArray[np.float32]  # [nodes]: log score of taking the node at all
    sources: npt.NDArray[np.int64]  # [arcs]: the nodes before node 0, then those before node 1, ...
    arrivals: npt.NDArray[np.int64]  # [nodes]: how many arcs come into each
    starts: npt.NDArray[np.int64]  # nodes that may come first
    finals: npt.NDArray[np.int64]  # nodes that may come last


@dataclass(slots=True)
class _Builder:
    """Nodes as they are made."""

    silence: int
    rows: list[tuple[int, int, int, int]] = field(default_factory=list)  # position, phone, left, right
    owners: list[int] = field(default_factory=list)
    predecessors: list[tuple[int, ...]] = field(default_factory=list)
    pauses: list[int] = field(default_factory=list)  # silences that were announced
    slots: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def add(self, row: tuple[int, int, int, int], owner: int, predecessors: Iterable[int]) -> int:
        self.rows.append(row)
        self.owners.append(owner)
        self.predecessors.append(tuple(predecessors))
        return len(self.rows) - 1

    def gap(self, exits: _Exits, *, pause: bool) -> int:
        node = self.add(
            (SINGLE, self.silence, self.silence, self.silence), SILENCE, (n for _, n in exits[self.silence])
        )
        if pause:
            self.pauses.append(node)
        return node


_Exits = dict[int, list[tuple[int, int]]]  # by the phone that follows: the last phone and its node, for each way out


def build(items: Sequence[Item], phones: PhoneSet, *, silence_penalty: float, pause_after: bool = False) -> Graph:
    """The network of `items` in order, with an optional silence before, between and after them.

    A silence costs `silence_penalty`, a log score, unless a pause was announced there.
    """
    builder = _Builder(phones.silence)
    exits: _Exits | None = None  # None before the first item: anything may begin the utterance
    for owner, item in enumerate(items):
        heard = items[owner + 1].pronunciations if owner + 1 < len(items) else ()
        rights = list(dict.fromkeys([phones.silence, *(p[0] for p in heard)]))
        exits = _add_item(builder, owner, item, exits, rights)
    if exits is None:
        raise ValueError("a graph needs an item")
    finals = [builder.gap(exits, pause=pause_after), *(n for _, n in exits[phones.silence])]

    position, base, left, right = np.array(builder.rows).T
    senones = phones.senones[phones.triphones[position, base, left, right]].astype(np.int64)
    senones[builder.slots] = UNKNOWN_SOUND
    owners = np.array(builder.owners)
    entry = np.where(owners == SILENCE, np.float32(silence_penalty), np.float32(0))
    entry[builder.pauses] = 0
    arrivals = np.array([len(p) for p in builder.predecessors])
    sources = np.fromiter(itertools.chain.from_iterable(builder.predecessors), np.int64, int(arrivals.sum()))
    return Graph(base, senones, owners, entry, sources, arrivals, np.array(builder.starts), np.array(finals))


def _add_item(builder: _Builder, owner: int, item: Item, exits: _Exits | None, rights: list[int]) -> _Exits:
    """Add an item's nodes behind `exits`; `rights` are the phones that may follow."""
    silence = builder.silence
    gap = builder.gap(exits or {silence: []}, pause=item.pause_before)
    if exits is None:
        builder.starts.append(gap)
    out: _Exits = {right: [] for right in rights}
    for phones in item.pronunciations or ((silence,),):
        arrivals: dict[int, list[int]] = {silence: [gap]}
        for last, node in (exits or {}).get(phones[0], ()):
            arrivals.setdefault(last, []).append(node)
        first = len(builder.rows)
        if not item.pronunciations:
            node = builder.add((SINGLE, silence, silence, silence), owner, [n for a in arrivals.values() for n in a])
            builder.slots.append(node)
            for way in out.values():
                way.append((silence, node))
        elif len(phones) == 1:
            for right, way in out.items():
                for left, nodes in arrivals.items():
                    way.append((phones[0], builder.add((SINGLE, phones[0], left, right), owner, nodes)))
        else:
            _add_phones(builder, owner, phones, arrivals, out)
        if exits is None:
            builder.starts.extend(n for n in range(first, len(builder.rows)) if gap in builder.predecessors[n])
    return out


def _add_phones(
    builder: _Builder, owner: int, phones: Pronunciation, arrivals: Mapping[int, list[int]], out: _Exits
) -> None:
    """Add a pronunciation of two phones or more."""
    before: list[int] = [
        builder.add((BEGIN, phones[0], left, phones[1]), owner, nodes) for left, nodes in arrivals.items()
    ]
    for left, phone, right in zip(phones, phones[1:-1], phones[2:], strict=False):
        before = [builder.add((INTERNAL, phone, left, right), owner, before)]
    for right, way in out.items():
        way.append((phones[-1], builder.add((END, phones[-1], phones[-2], right), owner, before)))


__all__ = ["SILENCE", "STATES", "UNKNOWN_SOUND", "Graph", "Item", "build"]
