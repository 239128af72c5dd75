"""Admission keeps to its budget, lends what idle streams have, and says truly when to come back."""

from __future__ import annotations

import asyncio

import pytest

from align_server.scheduling import admission as module
from align_server.scheduling.admission import DEMAND_SHARE, WINDOW_SHARE, Admission, Grant
from align_server.scheduling.throughput import Throughput
from align_server.scheduling.work import Full
from counting import CountingEngine, batcher

BUDGET = 600_000


def admission(budget_ms: int = BUDGET) -> Admission:
    return Admission(lambda: budget_ms)


def opened(account: Admission, window_ms: int = 180_000) -> Grant:
    return account.open(lambda _: None, lambda: window_ms)


def finish(account: Admission, grant: Grant, cost_ms: int) -> None:
    account.computed(grant, cost_ms)
    account.answer(grant, cost_ms)


class TestStreams:
    def test_all_grants_together_stay_within_the_streams_share(self) -> None:
        account = admission()
        grants = [opened(account) for _ in range(50)]
        for grant in grants:
            if grant.unused_ms:
                account.receive(grant, 5000)
        assert sum(grant.outstanding_ms for grant in grants) <= WINDOW_SHARE * BUDGET

    def test_a_stream_that_sent_nothing_has_little_out(self) -> None:
        assert opened(admission()).outstanding_ms == module.USUAL_MS

    def test_a_stream_alone_gets_what_its_model_can_make_use_of(self) -> None:
        for window in (60_000, 120_000):
            account = admission()
            grant = opened(account, window)
            account.receive(grant, 1000)
            assert grant.outstanding_ms == window

    def test_a_grown_rate_widens_the_window(self) -> None:
        account, window = admission(), 30_000
        grant = account.open(lambda _: None, lambda: window)
        account.receive(grant, 1000)
        window = 100_000
        finish(account, grant, 1000)
        assert grant.outstanding_ms == 100_000

    def test_a_new_stream_gets_credit_as_earlier_ones_are_answered(self) -> None:
        account = admission(300_000)
        first = opened(account, 1_000_000)
        account.receive(first, 15_000)
        assert first.outstanding_ms == WINDOW_SHARE * 300_000
        second = opened(account)
        assert second.outstanding_ms == 0
        while first.unused_ms >= 15_000:
            assert account.receive(first, 15_000)
        while first.answered_ms < first.received_ms and not second.outstanding_ms:
            finish(account, first, 15_000)
        assert second.outstanding_ms >= module.USUAL_MS

    async def test_the_first_stream_leaves_room_for_those_that_come_next(self) -> None:
        running = batcher(CountingEngine(), 2, batch_ms=16_000, rate=700.0)
        account = Admission(lambda: 2_400_000)
        streams = []
        for _ in range(7):
            streams.append(account.open(lambda _: None, running.window_ms))
            assert account.receive(streams[-1], 5000)
        assert all(stream.unused_ms > 60_000 for stream in streams), "messages of a minute"
        await running.stop()

    def test_credit_comes_in_useful_pieces_where_many_share_it(self) -> None:
        account = admission()
        grants = [opened(account) for _ in range(100)]
        assert {grant.unused_ms for grant in grants} == {0, module.USUAL_MS}
        served = set()
        for _ in range(300):
            for grant in grants:
                if grant.unused_ms >= 5000:
                    account.receive(grant, 5000)
                elif not grant.held_ms:
                    account.demand(grant, 5000)
            for grant in grants:
                if grant.held_ms:
                    served.add(grant)
                    finish(account, grant, grant.held_ms)
            if len(served) == len(grants):
                return
        raise AssertionError(f"only {len(served)} of {len(grants)} streams were ever granted anything")

    def test_a_stream_cannot_send_more_than_it_was_granted(self) -> None:
        account = admission()
        grant = opened(account)
        assert account.receive(grant, grant.unused_ms)
        assert not account.receive(grant, grant.unused_ms + 1)

    def test_streams_that_all_need_more_than_their_window_do_not_wait_for_each_other(self) -> None:
        account = admission()
        grants = [opened(account) for _ in range(12)]
        for grant in grants:
            account.demand(grant, 119_000)
        done = 0
        while sending := [grant for grant in grants if grant.unused_ms >= 119_000 and not grant.received_ms]:
            for grant in sending:
                assert account.receive(grant, 119_000)
            assert sum(grant.outstanding_ms for grant in grants) <= (WINDOW_SHARE + DEMAND_SHARE) * BUDGET
            for grant in sending:
                finish(account, grant, 119_000)
                done += 1
        assert done == 12

    def test_a_closed_stream_gives_everything_back(self) -> None:
        account = admission()
        grant = opened(account)
        account.receive(grant, 5000)
        account.close(grant)
        assert account.held_ms == account.granted_ms == account.unanswered_ms == 0
        assert opened(account).outstanding_ms > 0

    def test_a_stream_that_does_not_read_its_results_costs_the_others_nothing(self) -> None:
        account = admission(300_000)
        deaf = opened(account, 1_000_000)
        account.receive(deaf, 15_000)
        while deaf.unused_ms >= 15_000:
            account.receive(deaf, 15_000)
        other = opened(account)
        account.computed(deaf, deaf.received_ms)
        assert deaf.outstanding_ms == deaf.received_ms  # it is granted nothing more
        assert other.outstanding_ms > 0
        account.receive(other, 1000)
        assert other.outstanding_ms == WINDOW_SHARE * 300_000 / 2


class TestIdleStreams:
    def test_what_idle_streams_have_out_is_lent_to_those_that_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "IDLE_S", -1.0)
        account = admission()
        idle = [opened(account) for _ in range(60)]
        assert account.granted_ms == WINDOW_SHARE * BUDGET
        busy = opened(account)
        assert busy.outstanding_ms == 0
        for _ in range(4):  # what is lent goes to others that do not use it, and is lent again
            account.refresh()
        account.demand(busy, 15_000)
        account.receive(busy, 15_000)
        assert busy.outstanding_ms == 180_000
        assert all(account.receive(grant, grant.unused_ms) for grant in idle[:20])

    def test_a_stream_that_was_never_granted_anything_is_not_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "IDLE_S", -1.0)
        account = admission(100_000)
        grants = [opened(account) for _ in range(10)]
        account.refresh()
        account.refresh()
        for grant in grants[:4]:
            account.close(grant)
        assert all(grant.unused_ms for grant in grants[4:])

    async def test_those_that_come_back_wait_until_there_is_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "IDLE_S", -1.0)
        account = admission(100_000)
        first, second = opened(account), opened(account)
        account.receive(first, 10_000)
        finish(account, first, 10_000)
        account.refresh()
        while first.unused_ms >= 10_000 and account.held_ms < 95_000:
            account.receive(first, 10_000)
            if first.unused_ms < 10_000:
                account.demand(first, 10_000)
        waiting = asyncio.create_task(account.room_for(account.budget_ms - account.held_ms + 1))
        await asyncio.sleep(0)
        assert not waiting.done()
        finish(account, first, 10_000)
        await asyncio.wait_for(waiting, 1)
        assert account.receive(second, 1000)


class TestSingleCalls:
    def throughput(self) -> Throughput:
        return Throughput(lanes=1, rate=100.0)

    def test_a_full_server_refuses_and_says_when_to_come_back(self) -> None:
        account, seconds_for = admission(100_000), self.throughput().seconds_for
        for _ in range(10):
            account.admit_unary(10_000, seconds_for)
        with pytest.raises(Full) as refusal:
            account.admit_unary(10_000, seconds_for)
        assert 0 < refusal.value.retry_after_s < 10
        account.release_unary(10_000)
        account.admit_unary(10_000, seconds_for, returning=True)

    def test_the_more_were_refused_the_later_the_next_is_told_to_come(self) -> None:
        account, seconds_for = admission(100_000), self.throughput().seconds_for
        for _ in range(10):
            account.admit_unary(10_000, seconds_for)
        waits = []
        for _ in range(20):
            with pytest.raises(Full) as refusal:
                account.admit_unary(10_000, seconds_for)
            waits.append(refusal.value.retry_after_s)
        assert waits == sorted(waits)
        assert waits[-1] == pytest.approx(20 * 0.1)

    def test_newcomers_do_not_take_the_place_of_those_who_were_told_to_come_back(self) -> None:
        account, seconds_for = admission(100_000), self.throughput().seconds_for
        for _ in range(10):
            account.admit_unary(10_000, seconds_for)
        with pytest.raises(Full):
            account.admit_unary(10_000, seconds_for)
        account.release_unary(10_000)
        with pytest.raises(Full):
            account.admit_unary(10_000, seconds_for)
        account.admit_unary(10_000, seconds_for, returning=True)

    def test_streams_leave_room_for_single_calls(self) -> None:
        account = admission()
        for _ in range(100):
            grant = opened(account)
            if grant.unused_ms:
                account.receive(grant, 15_000)
        account.admit_unary(100_000, self.throughput().seconds_for)
