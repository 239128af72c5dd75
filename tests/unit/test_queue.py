"""The queue is fair by cost, forms batches of like lengths, and gives bulk work its share."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align_server.scheduling.queue import BULK_SHARE, MAX_WASTE, FairQueue, Turns, padded_ms
from counting import work

if TYPE_CHECKING:
    from align_server.scheduling.work import Work


def names(batch: list[Work]) -> list[str]:
    return [item.segment.id for item in batch]


class TestFairness:
    async def test_clients_take_turns_whatever_they_have_queued(self) -> None:
        queue = FairQueue()
        for i in range(60):
            queue.put(work("flood", f"flood {i}", 5000))
        queue.put(work("small", "small", 5000))
        assert "small" in names(queue.take(20_000) + queue.take(20_000))

    async def test_clients_get_equal_audio_not_equal_numbers(self) -> None:
        queue = FairQueue()
        for i in range(400):
            queue.put(work("short", f"short {i}", 1000))
            queue.put(work("long", f"long {i}", 10_000))
        given: Counter[str] = Counter()
        for _ in range(30):
            for item in queue.take(20_000):
                given[item.client] += item.cost_ms
        assert given["short"] == pytest.approx(given["long"], abs=40_000)

    async def test_what_was_given_out_of_turn_is_waited_for(self) -> None:
        queue = FairQueue(pads=True)
        for i in range(200):
            queue.put(work("like", f"like {i}", 4000))
            queue.put(work("unlike", f"unlike {i}", 9000))
        given: Counter[str] = Counter()
        for _ in range(20):
            for item in queue.take(40_000):
                given[item.client] += item.cost_ms
        assert given["like"] == pytest.approx(given["unlike"], abs=80_000)

    async def test_an_item_dearer_than_a_whole_round_is_served(self) -> None:
        queue = FairQueue()
        queue.put(work("long", "long", 119_000))
        for i in range(30):
            queue.put(work("short", f"short {i}", 1000))
        taken = [name for _ in range(31) for name in names(queue.take(1000))]
        assert "long" in taken

    async def test_debts_of_clients_that_left_are_forgotten_in_the_end(self) -> None:
        queue = FairQueue(pads=True)
        queue.put(work("stays", "anchor", 500_000))
        for i in range(3000):
            queue.put(work(f"client {i}", "x", 1000))
            queue.take(1000, longest_ms=2000)
        assert len(queue._deficit) < 1500


class TestBatches:
    async def test_a_batch_keeps_within_its_cost(self) -> None:
        queue = FairQueue()
        for i in range(10):
            queue.put(work("a", str(i), 4000))
        assert len(queue.take(10_000)) == 2
        assert queue.queued_ms == 8 * 4000
        assert len(queue) == 8

    async def test_one_item_may_cost_more_than_a_batch_but_not_more_than_there_is_room(self) -> None:
        queue = FairQueue()
        queue.put(work("a", "long", 40_000))
        assert queue.take(10_000, room_ms=30_000) == []
        assert names(queue.take(10_000, room_ms=50_000)) == ["long"]

    async def test_items_above_a_length_are_passed_over_and_kept(self) -> None:
        queue = FairQueue()
        queue.put(work("a", "long", 40_000))
        queue.put(work("a", "short", 1000))
        assert names(queue.take(60_000, longest_ms=30_000)) == ["short"]
        assert queue.take(60_000, longest_ms=30_000) == []
        assert names(queue.take(60_000)) == ["long"]

    async def test_a_padded_batch_counts_its_padding_as_cost(self) -> None:
        queue = FairQueue(pads=True)
        for i in range(10):
            queue.put(work("a", str(i), 4000))
        assert len(queue.take(12_000)) == 3

    @given(st.lists(st.integers(300, 15_000), min_size=1, max_size=80), st.integers(1, 8))
    async def test_no_padded_batch_wastes_more_than_allowed_and_nothing_is_lost(
        self, lengths: list[int], clients: int
    ) -> None:
        queue = FairQueue(pads=True)
        for i, length in enumerate(lengths):
            queue.put(work(f"client {i % clients}", str(i), length))
        taken: list[str] = []
        while batch := queue.take(60_000):
            full = sum(item.cost_ms for item in batch)
            assert full >= (1 - MAX_WASTE) * padded_ms(batch, pads=True)
            taken += names(batch)
        assert sorted(taken) == sorted(map(str, range(len(lengths))))
        assert len(queue) == queue.queued_ms == 0

    async def test_every_item_is_taken_within_a_few_rounds_whatever_else_comes(self) -> None:
        queue = FairQueue(pads=True)
        rng = random.Random(1)  # noqa: S311  no secret
        odd = work("odd", "odd", 14_321)
        queue.put(odd)
        for turn in range(200):
            for i in range(4):
                queue.put(work(f"client {i}", f"{turn} {i}", rng.choice([900, 4000, 8000])))
            if odd in queue.take(32_000):
                return
        raise AssertionError("an item of unusual length was never taken")


class TestUnwanted:
    async def test_cancelled_work_is_never_taken(self) -> None:
        dropped: list[Work] = []
        queue = FairQueue(unwanted=dropped.append)
        gone, kept = work("a", "gone"), work("a", "kept")
        queue.put(gone)
        queue.put(kept)
        gone.future.cancel()
        assert names(queue.take(60_000)) == ["kept"]
        assert queue.queued_ms == 0
        assert dropped == [gone]

    async def test_work_past_its_deadline_is_never_taken(self) -> None:
        queue = FairQueue()
        queue.put(work("a", "late", deadline=time.monotonic() - 1))
        queue.put(work("a", "kept"))
        assert names(queue.take(60_000)) == ["kept"]

    async def test_what_is_left_can_be_taken_out_at_once(self) -> None:
        queue = FairQueue()
        items = [work("a", str(i)) for i in range(3)]
        for item in items:
            queue.put(item)
        assert queue.remove_all() == items
        assert len(queue) == queue.queued_ms == 0


class TestTurns:
    def test_bulk_keeps_its_share_beside_any_amount_of_interactive_work(self) -> None:
        turns = Turns()
        given = Counter({True: 0, False: 0})
        for _ in range(1000):
            interactive = turns.interactive_next(10_000)
            given[interactive] += 10_000
            turns.took(10_000, interactive=interactive, bulk_waits=True)
        assert given[False] / given.total() == pytest.approx(BULK_SHARE, abs=0.01)

    def test_nothing_is_owed_for_a_time_without_bulk_work(self) -> None:
        turns = Turns()
        for _ in range(100):
            turns.took(10_000, interactive=True, bulk_waits=False)
        assert turns.interactive_next(1000)
