"""The search finds the best path that there is, and the graph holds every way to say the words."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from align_server.engines.sphinx.graph import SILENCE, UNKNOWN_SOUND, Graph, Item, build
from align_server.engines.sphinx.model import PhoneSet, model_folder, read_phones
from align_server.engines.sphinx.viterbi import Path, Utterance, best_path

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def phones() -> PhoneSet:
    return read_phones(model_folder() / "en-us" / "mdef")


def said(phones: PhoneSet, *pronunciations: str) -> Item:
    return Item(tuple(tuple(phones.names.index(p) for p in text.split()) for text in pronunciations))


def utterance(graph: Graph, frames: int, seed: int) -> Utterance:
    """A graph with random scores of its own for every state and transition."""
    rng = np.random.default_rng(seed)
    nodes = len(graph.phones)
    scores = rng.normal(-5, 3, (frames, 3 * nodes)).astype(np.float32)
    loop, step = rng.uniform(-2, 0, (2, 3, nodes)).astype(np.float32)
    rows = np.arange(3 * nodes).reshape(3, nodes)
    return Utterance(scores, rows, loop, step + graph.entry, graph.sources, graph.arrivals, graph.starts, graph.finals)


def ways_through(graph: Graph) -> Iterator[tuple[int, ...]]:
    """Every sequence of nodes from a start to an end."""
    before = np.split(graph.sources, np.cumsum(graph.arrivals)[:-1])

    def back(path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if path[0] in graph.starts:
            yield path
        for node in before[path[0]].tolist():
            yield from back((node, *path))

    for final in graph.finals:
        yield from back((final,))


def score(u: Utterance, nodes: tuple[int, ...], cuts: tuple[int, ...]) -> float:
    """Log score of the nodes' states in turn, each from its cut to the next."""
    states = [(s, n) for n in nodes for s in range(3)]
    total = 0.0
    for (state, node), start, end in zip(states, cuts, cuts[1:], strict=False):
        total += u.step[state, node] + (end - start - 1) * u.loop[state, node]
        total += float(u.scores[start:end, u.rows[state, node]].sum())
    return total


def score_of(u: Utterance, path: Path) -> float:
    return score(u, tuple(path.nodes.tolist()), (*path.entered.ravel().tolist(), int(path.ends[-1])))


def best_by_enumeration(u: Utterance, graph: Graph) -> float:
    best = -np.inf
    for nodes in ways_through(graph):
        for inner in itertools.combinations(range(1, len(u.scores)), 3 * len(nodes) - 1):
            best = max(best, score(u, nodes, (0, *inner, len(u.scores))))
    return float(best)


@pytest.mark.parametrize("seed", range(4))
def test_no_path_is_better_than_the_one_found(phones: PhoneSet, seed: int) -> None:
    graph = build([said(phones, "AH", "EY"), said(phones, "T UW", "T")], phones, silence_penalty=-1)
    u = utterance(graph, 11, seed)
    path = best_path(u)
    assert path is not None
    assert score_of(u, path) == pytest.approx(best_by_enumeration(u, graph), abs=1e-3)


def test_a_path_is_whole_and_in_order(phones: PhoneSet) -> None:
    graph = build([said(phones, "HH AH L OW"), said(phones, "W ER L D")], phones, silence_penalty=-5)
    u = utterance(graph, 80, 0)
    path = best_path(u)
    assert path is not None
    edges = np.column_stack([path.entered, path.ends]).ravel().tolist()
    assert edges[0] == 0
    assert edges[-1] == 80
    assert edges == sorted(edges)
    assert tuple(path.nodes.tolist()) in set(ways_through(graph))


def test_of_equal_paths_the_one_that_stays_and_comes_from_the_first_node_is_taken(phones: PhoneSet) -> None:
    graph = build([said(phones, "AH", "AH")], phones, silence_penalty=-9)
    drawn = utterance(graph, 9, 0)
    nothing = np.zeros_like(drawn.loop)
    u = drawn._replace(scores=np.zeros_like(drawn.scores), loop=nothing, step=nothing)
    path = best_path(u)
    assert path is not None
    assert path.nodes.tolist() == [1, 3]  # the first of the two ways to say the word, and a silence
    assert path.entered.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("frames", "found"), [(11, False), (12, True)])
def test_a_phone_lasts_three_frames_at_least(phones: PhoneSet, frames: int, found: bool) -> None:
    graph = build([said(phones, "HH AH L OW")], phones, silence_penalty=-5)
    path = best_path(utterance(graph, frames, 0))
    assert (path is not None) is found


def words_of(graph: Graph, phones: PhoneSet) -> set[tuple[str, ...]]:
    """Every phone sequence of the graph."""
    return {tuple(phones.names[graph.phones[n]] for n in nodes) for nodes in ways_through(graph)}


def test_silence_is_optional_everywhere_and_every_pronunciation_is_there(phones: PhoneSet) -> None:
    graph = build([said(phones, "AH", "EY"), said(phones, "K AE T")], phones, silence_penalty=-5)
    expected = {
        (*a, first, *b, "K", "AE", "T", *c)
        for a in ((), ("SIL",))
        for first in ("AH", "EY")
        for b in ((), ("SIL",))
        for c in ((), ("SIL",))
    }
    assert words_of(graph, phones) == expected


def test_a_phone_at_the_edge_of_a_word_sounds_as_its_neighbour_has_it(phones: PhoneSet) -> None:
    graph = build([said(phones, "K AE T", "K AE D"), said(phones, "S IH T")], phones, silence_penalty=-5)
    index = phones.names.index
    begin, end = 1, 2
    for nodes in ways_through(graph):
        names = [phones.names[graph.phones[n]] for n in nodes]
        s = names.index("S")
        left, last = names[s - 1], nodes[s - 1]
        wanted = phones.senones[phones.triphones[begin, index("S"), index(left), index("IH")]]
        np.testing.assert_array_equal(graph.senones[nodes[s]], wanted)
        if left != "SIL":
            wanted = phones.senones[phones.triphones[end, index(left), index("AE"), index("S")]]
            np.testing.assert_array_equal(graph.senones[last], wanted)


def test_a_silence_is_free_where_a_pause_was_heard(phones: PhoneSet) -> None:
    words = said(phones, "AH").pronunciations
    graph = build([Item(words), Item(words, pause_before=True)], phones, silence_penalty=-5, pause_after=True)
    silences = graph.owners == SILENCE
    assert graph.entry[silences].tolist() == [-5, 0, 0]
    assert (graph.entry[~silences] == 0).all()


def test_an_unknown_sound_stands_alone_between_words(phones: PhoneSet) -> None:
    graph = build([said(phones, "AH"), Item(), said(phones, "AH")], phones, silence_penalty=-5)
    slot = np.flatnonzero(graph.owners == 1)
    assert (graph.senones[slot] == UNKNOWN_SOUND).all()
    assert all(len({graph.owners[n] for n in nodes} - {SILENCE}) == 3 for nodes in ways_through(graph))
