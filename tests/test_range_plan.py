"""The planner of ranges: sets of bytes, leases, answers, and whole downloads in virtual time."""

import itertools
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pytest
from download_store import connection_counts, range_plan, range_responses
from hypothesis import given
from hypothesis import strategies as st

from wme_async import Budget
from wme_async._rates import RateMeter, TokenBucket  # private: pure

MIB = range_plan.MIB
FetchState = range_plan.FetchState
RangePlan = range_plan.RangePlan
Spans = range_plan.Spans
Verdict = range_responses.Verdict
check_range_response = range_responses.check_range_response


def test_what_a_planner_holds_can_be_read() -> None:
    plan = RangePlan(100)
    lease = plan.lease(0.0, most=10)
    assert repr(lease) == "<RangeLease 0..0..10>"
    assert repr(Spans([(0, 3), (5, 6)])) == "Spans([(0, 3), (5, 6)])"


intervals = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=20)


def bytes_of(pairs: Iterable[tuple[int, int]]) -> set[int]:
    return {byte for start, stop in pairs for byte in range(start, stop)}


@given(intervals)
def test_spans_hold_exactly_the_bytes_that_were_put_in(pairs: list[tuple[int, int]]) -> None:
    spans = Spans(pairs)
    assert bytes_of(spans) == bytes_of(pairs)
    assert spans.total == len(bytes_of(pairs))
    listed = list(spans)
    assert all(start < stop for start, stop in listed)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(listed))
    assert spans == Spans(reversed(pairs))
    assert len(spans) == len(listed)


@given(intervals, st.integers(0, 200), st.integers(0, 200))
def test_the_first_gap_is_the_first_run_of_missing_bytes(pairs: list[tuple[int, int]], start: int, limit: int) -> None:
    have = bytes_of(pairs)
    missing = [byte for byte in range(start, limit) if byte not in have]
    gap = Spans(pairs).gap(start, limit)
    if not missing:
        assert gap is None
    else:
        assert gap is not None
        assert gap[0] == missing[0]
        assert all(byte not in have for byte in range(*gap))
        assert gap[1] == limit or gap[1] in have


@given(intervals, st.integers(0, 200))
def test_reach_is_the_end_of_a_run(pairs: list[tuple[int, int]], start: int) -> None:
    have = bytes_of(pairs)
    stop = start
    while stop in have:
        stop += 1
    assert Spans(pairs).reach(start) == stop


actions = st.lists(
    st.tuples(
        st.sampled_from(["lease", "steal", "next", "come", "release", "tick"]), st.integers(0, 40), st.floats(0.01, 3)
    ),
    max_size=60,
)


@given(st.integers(1, 400), intervals, actions)
def test_whatever_happens_each_byte_is_fetched_by_at_most_one_connection(
    size: int, done: list[tuple[int, int]], script: list[tuple[str, int, float]]
) -> None:
    plan = RangePlan(size, done)
    now = 0.0
    written = {byte for byte in bytes_of(done) if byte < size}
    for action, number, wait in script:
        now += wait
        made: range_plan.RangeLease | None = None
        if action == "lease":
            made = plan.lease(now, most=number + 1)
        elif action == "steal":
            made = (plan.steal(now, FetchState(connections=3, least=1), gain=0.0) or (None,))[0]
        elif action == "next":
            made = (plan.next(now, FetchState(connections=3, least=1, most=number + 1)) or (None,))[0]
        elif action == "tick":
            plan.tick(now)
        elif plan.leases:
            lease = plan.leases[number % len(plan.leases)]
            if action == "come":
                count = min(number, lease.remaining)
                written |= set(range(lease.at, lease.at + count))
                lease.at += count
            else:
                plan.release(lease, now)
        assert made is None or made in plan.leases
        spoken_for = [byte for lease in plan.leases for byte in range(lease.at, lease.stop)]
        assert len(spoken_for) == len(set(spoken_for))
        assert not written & set(spoken_for)
        assert plan.done == len(written)
        assert bytes_of(plan.written) == written
        assert plan.unassigned == size - len(written | set(spoken_for))
        frontier = plan.frontier
        assert frontier == next((byte for byte in range(size) if byte not in written), size)
    # Whatever state it is in, the rest can be fetched.
    for lease in list(plan.leases):
        plan.release(lease, now)
    while (last := plan.lease(now, most=7)) is not None:
        last.at = last.stop
        plan.release(last, now)
    assert plan.complete
    assert plan.frontier == size


def test_a_theft_between_equals_takes_half() -> None:
    plan = RangePlan(100 * MIB)
    lease = plan.lease(0.0, most=200 * MIB)
    assert lease is not None
    for step in range(1, 9):
        lease.at = step * MIB
        plan.tick(step * 0.25)
    stolen = plan.steal(2.0, FetchState(connections=2, setup=0.0))
    assert stolen is not None
    thief, victim = stolen
    assert victim is lease
    assert thief.stop == 100 * MIB
    assert thief.remaining / victim.remaining == pytest.approx(1.0, rel=0.01)
    assert thief.start == victim.stop


def test_a_theft_from_a_slow_connection_takes_nearly_all_and_from_a_dead_one_all() -> None:
    plan = RangePlan(100 * MIB)
    slow, fast = plan.lease(0.0, most=50 * MIB), plan.lease(0.0, most=50 * MIB)
    assert slow is not None
    assert fast is not None
    for step in range(1, 9):
        slow.at += MIB // 100
        fast.at += MIB
        plan.tick(step * 0.25)
    fast.at = fast.stop
    plan.release(fast, 2.1)
    stolen = plan.steal(2.1, FetchState(connections=2, setup=0.1))
    assert stolen is not None
    assert stolen[1] is slow
    assert stolen[0].remaining > 0.95 * 50 * MIB
    assert not slow.lost

    plan = RangePlan(100 * MIB)
    dead, fast = plan.lease(0.0, most=50 * MIB), plan.lease(0.0, most=50 * MIB)
    assert dead is not None
    assert fast is not None
    fast.at = fast.stop
    plan.tick(4.0)
    plan.release(fast, 4.0)
    stolen = plan.steal(4.0, FetchState(connections=2, setup=0.1))
    assert stolen is not None
    assert stolen[0].remaining == 50 * MIB
    assert dead.lost
    # The next one waits longer before it does the same.
    assert stolen[0].stalls == 1


def test_what_was_stolen_is_given_back_whole() -> None:
    for moved in (0.0, 50.0):
        plan = RangePlan(64 * MIB)
        lease = plan.lease(0.0, most=64 * MIB)
        assert lease is not None
        lease.at = 8 * MIB
        plan.tick(1.0)
        stolen = plan.steal(1.0 + moved, FetchState(connections=2, setup=0.1))
        assert stolen is not None
        assert stolen[1].lost is (moved > 0)
        plan.give_back(*stolen)
        assert plan.leases == [lease]
        assert (lease.start, lease.at, lease.stop, lease.lost) == (0, 8 * MIB, 64 * MIB, False)
        assert plan.unassigned == 0


def test_nothing_is_stolen_for_less_than_it_costs() -> None:
    plan = RangePlan(4 * MIB)
    lease = plan.lease(0.0, most=4 * MIB)
    assert lease is not None
    lease.at = 3 * MIB
    plan.tick(1.0)
    assert plan.steal(1.0, FetchState(connections=2, setup=0.1)) is None
    # An expired signature makes a request a metered one.
    plan = RangePlan(400 * MIB)
    lease = plan.lease(0.0, most=400 * MIB)
    assert lease is not None
    lease.at = 300 * MIB
    plan.tick(60.0)
    assert plan.next(60.0, FetchState(connections=2, lifetime=-1.0, elapsed=600.0)) is None
    assert plan.next(60.0, FetchState(connections=2, lifetime=30.0, elapsed=600.0)) is not None


def test_parts_follow_the_rate_unless_the_signature_would_run_out() -> None:
    gib = 1024 * MIB
    assert range_plan.part_size(100 * gib, rate=0.0, connections=8, lifetime=60.0) == 16 * MIB
    assert range_plan.part_size(MIB, rate=0.0, connections=8, lifetime=60.0) == 2 * MIB
    assert range_plan.part_size(100 * gib, rate=10e6, connections=8, lifetime=None) == 80_000_000
    assert range_plan.part_size(100 * gib, rate=1e9, connections=8, lifetime=None) == 256 * MIB
    # 100 GiB in 60 s would take far more than 80 MB/s: every connection takes its share while the URL works.
    assert range_plan.part_size(100 * gib, rate=10e6, connections=8, lifetime=55.0) == 100 * gib // 8
    assert range_plan.part_size(gib, rate=10e6, connections=8, lifetime=55.0) == 80_000_000


@given(st.integers(1, 1 << 40), st.floats(0, 1e10), st.integers(1, 64), st.none() | st.floats(-10, 60))
def test_a_part_is_never_absurd(unassigned: int, rate: float, connections: int, lifetime: float | None) -> None:
    size = range_plan.part_size(unassigned, rate=rate, connections=connections, lifetime=lifetime)
    assert size >= 2 * MIB
    assert size <= max(256 * MIB, -(-unassigned // connections))


def test_a_straggler_is_one_that_is_slow_alone() -> None:
    plan = RangePlan(400 * MIB)
    leases = [plan.lease(0.0, most=100 * MIB) for _ in range(4)]
    for step in range(1, 41):
        for index, lease in enumerate(leases):
            assert lease is not None
            lease.at += 100 if index == 2 else MIB // 4
        plan.tick(step * 0.25)
    assert plan.stragglers(10.0, floor=None, patience=5.0) == [leases[2]]
    assert plan.stragglers(10.0, floor=None, patience=50.0) == []
    assert plan.stragglers(10.0, floor=4000.0, patience=5.0, factor=1e9) == [leases[2]]
    # When all are slow it is the line.
    plan = RangePlan(400 * MIB)
    for _ in range(4):
        plan.lease(0.0, most=100 * MIB)
    for step in range(1, 41):
        for lease in plan.leases:
            lease.at += 100
        plan.tick(step * 0.25)
    assert plan.stragglers(10.0, floor=1e6, patience=5.0) == []


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "bytes",
        "bytes 0-9",
        "bytes 5-4/10",
        "bytes 0-10/10",
        "items 0-9/10",
        "bytes */10",
        "bytes 0-9/1" + "0" * 30,
    ],
)
def test_a_content_range_that_makes_no_sense_is_none(value: str | None) -> None:
    assert range_responses.parse_content_range(value) is None


def test_content_ranges_are_read() -> None:
    content_range = range_responses.parse_content_range(" bytes 0-9/10 ")
    assert content_range is not None
    assert (content_range.start, content_range.stop, content_range.size) == (0, 10, 10)
    content_range = range_responses.parse_content_range("BYTES 3-9/*")
    assert content_range is not None
    assert (content_range.start, content_range.stop, content_range.size) == (3, 10, None)


def test_only_strong_etags_stand_for_bytes() -> None:
    assert range_responses.strong_etag('"abc"') == '"abc"'
    assert range_responses.strong_etag(' "abc-3" ') == '"abc-3"'
    for value in (None, "", '""', 'W/"abc"', "abc", '"a"b"', '"'):
        assert range_responses.strong_etag(value) is None
    assert range_responses.etag_matches(None, '"a"')
    assert range_responses.etag_matches('"a"', None)
    assert not range_responses.etag_matches('W/"a"', '"a"')


GOOD = {"Content-Range": "bytes 10-19/100", "ETag": '"v1"', "Content-Length": "10"}


@pytest.mark.parametrize(
    ("status", "headers", "verdict"),
    [
        (206, GOOD, Verdict.TAKE),
        (206, {"Content-Range": "bytes 10-19/*"}, Verdict.TAKE),
        (206, GOOD | {"Content-Encoding": "identity"}, Verdict.TAKE),
        (206, GOOD | {"ETag": '"v2"'}, Verdict.REPLACED),
        (206, GOOD | {"Content-Range": "bytes 10-19/101"}, Verdict.REPLACED),
        (206, GOOD | {"Content-Range": "bytes 10-18/100"}, Verdict.TAKE),
        (206, GOOD | {"Content-Range": "bytes 10-20/100"}, Verdict.TAKE),
        (206, GOOD | {"Content-Range": "bytes 0-99/100"}, Verdict.TAKE),
        (206, GOOD | {"Content-Range": "bytes 0-9/100"}, Verdict.REFUSED),
        (206, GOOD | {"Content-Encoding": "utf-8"}, Verdict.TAKE),
        (206, GOOD | {"Content-Range": "bytes 11-19/100"}, Verdict.REFUSED),
        (206, GOOD | {"Content-Range": "whatever"}, Verdict.REFUSED),
        (206, {"ETag": '"v1"'}, Verdict.REFUSED),
        (206, GOOD | {"Content-Encoding": "gzip"}, Verdict.REFUSED),
        (206, GOOD | {"Content-Type": "multipart/byteranges; boundary=x"}, Verdict.REFUSED),
        (200, {"ETag": '"v1"', "Content-Length": "100"}, Verdict.REFUSED),
        (200, {"ETag": '"v2"', "Content-Length": "100"}, Verdict.REPLACED),
        (204, {}, Verdict.REFUSED),
        (302, {"Location": "/"}, Verdict.REFUSED),
    ],
)
def test_only_the_range_that_was_asked_for_is_taken(status: int, headers: Mapping[str, str], verdict: Verdict) -> None:
    answer = check_range_response(status, headers, start=10, stop=20, size=100, validator='"v1"')
    assert answer.verdict is verdict
    assert bool(answer.reason) == (verdict in {Verdict.REFUSED, Verdict.REPLACED})


def test_a_whole_file_may_come_as_200_if_the_whole_file_was_asked_for() -> None:
    for headers in ({}, {"Content-Length": "100"}):
        assert (
            check_range_response(200, headers, start=0, stop=100, size=100, validator='"v1"').verdict is Verdict.WHOLE
        )
    assert (
        check_range_response(200, {"Content-Length": "99"}, start=0, stop=100, size=100, validator='"v1"').verdict
        is Verdict.REFUSED
    )
    assert check_range_response(200, {}, start=0, stop=50, size=100, validator='"v1"').verdict is Verdict.REFUSED


@given(st.floats(1.0, 1e9), st.lists(st.floats(0.01, 1.0), min_size=1, max_size=50))
def test_a_meter_of_a_steady_flow_shows_it(rate: float, steps: list[float]) -> None:
    now = 0.0
    meter = RateMeter(now)
    for step in steps:
        now += step
        meter.add(int(rate * 1000 * step), now)
    assert meter.rate(now) == pytest.approx(rate * 1000, rel=0.05)
    assert meter.rate(now + 20) < 0.01 * rate * 1000 + 1


def test_a_meter_counts_what_comes_without_time_passing() -> None:
    meter = RateMeter(0.0)
    assert meter.rate(0.0) == 0.0
    meter.add(10, 0.0)
    meter.add(10, 1.0)
    assert meter.rate(1.0) > 10


@given(st.floats(1e3, 1e8), st.lists(st.integers(0, 1 << 18), min_size=1, max_size=200), st.randoms())
def test_a_token_bucket_passes_no_more_than_its_rate(rate: float, counts: list[int], rng: random.Random) -> None:
    now = 100.0
    bucket = TokenBucket(rate, 0.1 * rate)
    total = 0
    for count in counts:
        delay = bucket.delay(count, now)
        wait = bucket.take(count, now)
        assert wait == pytest.approx(delay)
        total += count
        now += wait + rng.random() * 0.01
    assert total <= rate * (now - 100.0) + 0.1 * rate + 1


def test_a_token_bucket_passes_a_burst_and_then_spreads_takers() -> None:
    bucket = TokenBucket(10.0, 3)
    assert [round(bucket.take(1, 5.0), 6) for _ in range(5)] == [0, 0, 0, 0.1, 0.2]
    assert bucket.delay(1, 5.2) == pytest.approx(0.1)
    assert bucket.delay(3, 60.0) == 0.0


def test_a_token_bucket_without_a_rate_never_waits() -> None:
    bucket = TokenBucket(None, 0.0)
    assert bucket.take(1 << 40, 0.0) == bucket.delay(1 << 40, 0.0) == 0.0


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_a_budget_raises_for_a_rate_out_of_range(rate: float) -> None:
    with pytest.raises(ValueError, match="max_rate"):
        Budget(max_rate=rate)


def test_a_budget_raises_for_no_connections() -> None:
    with pytest.raises(ValueError, match="connections"):
        Budget(0)


def test_a_refusal_halves_the_connections_once_for_each_moment() -> None:
    tuner = connection_counts.ConnectionTuner(start=8, most=16)
    tuner.refused(10.0)
    tuner.refused(10.1)
    tuner.refused(10.2)
    assert tuner.allowed == 4
    tuner.refused(12.0)
    assert tuner.allowed == 2
    for _ in range(5):
        tuner.refused(12.0 + _ * 2)
    assert tuner.allowed == 1


# --- whole downloads, without sockets and in virtual time


@dataclass
class Line:
    """A network: what it carries, what one connection carries, and what goes wrong."""

    capacity: float
    cap: float = float("inf")
    setup: float = 0.1
    loss: float = 0.0
    slow_slots: int = 0
    most: int = 16


@dataclass
class Slot:
    number: int
    file: int = -1
    lease: range_plan.RangeLease | None = None
    ready: float = 0.0
    carry: float = 0.0


@dataclass
class World:
    line: Line
    sizes: list[int]
    at_once: int = 50
    lifetime: float | None = None
    now: float = 0.0
    moved: int = 0
    requests: int = 0
    signatures: int = 0
    rate: float = 0.0
    plans: dict[int, RangePlan] = field(default_factory=dict)
    open_at: dict[int, float] = field(default_factory=dict)
    signed: dict[int, float] = field(default_factory=dict)

    def run(self, *, seed: int = 1, step: float = 0.02, longest: float = 1e5) -> float:
        rng = random.Random(seed)
        line = self.line
        # As a budget does: a single file begins with fewer.
        tuner = connection_counts.ConnectionTuner(start=4 if len(self.sizes) == 1 else 8, most=line.most)
        slots = [Slot(number) for number in range(line.most)]
        pending = list(range(len(self.sizes)))[::-1]
        next_tick = 0.0
        while pending or self.plans:
            while pending and len(self.plans) < self.at_once:
                index = pending.pop()
                self.plans[index] = RangePlan(self.sizes[index], rate=self.rate)
                # HEAD and signature: two round trips.
                self.open_at[index] = self.now + line.setup
                self.signatures += 1
                self.signed[index] = self.open_at[index]
            waiting = self.hand_out(slots, tuner.allowed)
            tuner.tick(self.now, moved=self.moved, requests=self.requests, waiting=waiting)
            if self.now >= next_tick:
                next_tick = self.now + 0.25
                for plan in self.plans.values():
                    plan.tick(self.now)
                    for lease in plan.stragglers(self.now, floor=None, patience=5.0):
                        self.free(next(slot for slot in slots if slot.lease is lease))
            self.now += step
            self.carry(slots, step, rng)
            assert self.now < longest, "it never ends"
        return self.now

    def hand_out(self, slots: list[Slot], allowed: int) -> bool:
        busy = sum(slot.lease is not None for slot in slots)
        for slot in slots:
            if busy >= allowed:
                return True
            if slot.lease is not None:
                continue
            candidate = self.find(False, allowed) or self.find(True, allowed)
            if candidate is None:
                return False
            slot.file, slot.lease, victim = candidate
            slot.carry, slot.ready = 0.0, self.now + self.line.setup
            busy += 1
            if victim is not None and victim.lost:
                self.free(next(other for other in slots if other.lease is victim))
                busy -= 1
        return True

    def find(self, alone: bool, allowed: int) -> tuple[int, range_plan.RangeLease, range_plan.RangeLease | None] | None:
        for index, plan in self.plans.items():
            if self.now < self.open_at[index] or not (alone or plan.unassigned):
                continue
            life = None if self.lifetime is None else self.signed[index] + self.lifetime - self.now
            state = FetchState(
                connections=max(1, allowed // len(self.plans)),
                lifetime=life,
                setup=self.line.setup,
                elapsed=self.now,
                contended=not alone,
            )
            lease = plan.next(self.now, state)
            if lease is not None:
                if life is not None and life <= 0:
                    self.signatures += 1
                    self.signed[index] = self.now
                return index, *lease
        return None

    def free(self, slot: Slot) -> None:
        assert slot.lease is not None
        plan = self.plans[slot.file]
        plan.release(slot.lease, self.now)
        slot.lease = None
        self.requests += 1
        self.rate = plan.rate(self.now)
        if plan.complete:
            del self.plans[slot.file]

    def carry(self, slots: list[Slot], step: float, rng: random.Random) -> None:
        working = [slot for slot in slots if slot.lease is not None and slot.ready <= self.now]
        caps = {
            slot.number: min(self.line.cap, self.line.capacity) * (0.01 if slot.number < self.line.slow_slots else 1.0)
            for slot in working
        }
        left, sharing = self.line.capacity, sorted(working, key=lambda slot: caps[slot.number])
        for position, slot in enumerate(sharing):
            rate = min(caps[slot.number], left / (len(sharing) - position))
            left -= rate
            lease = slot.lease
            assert lease is not None
            slot.carry += rate * step
            came = min(int(slot.carry), lease.remaining)
            slot.carry -= came
            lease.at += came
            self.moved += came
            if not lease.remaining or (self.line.loss and rng.random() < self.line.loss * step):
                self.free(slot)


def ideal(line: Line, sizes: list[int]) -> float:
    fast = line.most - 0.99 * line.slow_slots
    # Each file takes one request of one connection, and while that is being answered nothing flows.
    asking = len(sizes) * line.setup
    return 2 * line.setup + max(sum(sizes) / line.capacity, (asking + sum(sizes) / line.cap) / fast)


MBIT = 1e6 / 8


@pytest.mark.parametrize(
    ("line", "size"),
    [
        (Line(10 * MBIT), 25_000_000),
        (Line(100 * MBIT), 250_000_000),
        (Line(1000 * MBIT), 2_500_000_000),
        (Line(10_000 * MBIT), 25_000_000_000),
        (Line(10_000 * MBIT, cap=20e6), 5_000_000_000),
        (Line(1000 * MBIT, cap=20e6, setup=0.3), 2_500_000_000),
        (Line(1000 * MBIT, cap=20e6, slow_slots=1), 2_500_000_000),
        (Line(160e6, cap=20e6, slow_slots=1, most=8), 1_600_000_000),
        (Line(100 * MBIT, slow_slots=1), 250_000_000),
        (Line(100 * MBIT, loss=0.05), 250_000_000),
        (Line(1000 * MBIT, cap=20e6, loss=0.1), 2_500_000_000),
    ],
    ids=lambda value: repr(value) if isinstance(value, Line) else None,
)
def test_a_file_is_there_within_1_3_of_the_ideal_time(line: Line, size: int) -> None:
    step = ideal(line, [size]) / 500
    seconds = World(line, [size]).run(step=step)
    assert seconds <= 1.3 * ideal(line, [size])


def real_sizes(count: int, seed: int) -> list[int]:
    """Sizes like those of the 566 batches of an hour: by quantiles, log-linear in between."""
    knots = [(0.0, 300.0), (0.5, 29e3), (0.9, 2.3e6), (0.99, 161e6), (1.0, 2060e6)]
    rng = random.Random(seed)
    sizes = []
    for _ in range(count):
        at = rng.random()
        for (low, small), (high, large) in itertools.pairwise(knots):
            if at <= high:
                sizes.append(int(small * (large / small) ** ((at - low) / (high - low))))
                break
    return sizes


@pytest.mark.parametrize("capacity", [1000 * MBIT, 10_000 * MBIT])
def test_ten_thousand_files_of_real_sizes_are_there_within_1_3_of_the_ideal_time(capacity: float) -> None:
    line = Line(capacity, cap=capacity / 8)
    sizes = real_sizes(10_000, seed=3)
    perfect = ideal(line, sizes)
    assert World(line, sizes).run(step=min(0.05, perfect / 4000)) <= 1.3 * perfect


def test_a_large_file_costs_few_signatures_though_each_lives_only_a_minute() -> None:
    line = Line(800 * MBIT, cap=15e6, loss=0.0)
    world = World(line, [120_000_000_000], lifetime=60.0)
    seconds = world.run(step=1.0)
    assert seconds > 1000
    # One a minute would be 20.
    assert world.signatures <= 3


@given(
    st.integers(1, 32),
    st.lists(st.tuples(st.sampled_from(["refuse", "tick"]), st.integers(0, 32), st.booleans(), st.floats(0.05, 9.0))),
)
def test_a_cap_stays_in_its_bounds_and_grows_only_with_progress(
    most: int, steps: list[tuple[str, int, bool, float]]
) -> None:
    cap, now, done, done_then = connection_counts.ConnectionCap(most), 0.0, 0, 0
    for step, served, progress, seconds in steps:
        now, done, before = now + seconds, done + progress, cap.allowed
        if step == "refuse":
            cap.lower(served, now, done=done)
            done_then = done
            assert cap.allowed <= max(1, served)
        else:
            cap.tick(now, done=done)
            assert cap.allowed - before in {0, 1}
            assert cap.allowed == before or done > done_then
        assert 1 <= cap.allowed <= most
        assert cap.lowered == (cap.allowed < most)


def test_a_cap_tries_later_each_time_and_as_late_as_the_server_says() -> None:
    cap, now, holds = connection_counts.ConnectionCap(4), 0.0, []
    for done in range(6):
        cap.lower(1, now, done=done)
        began = now
        while cap.allowed == 1:
            now += 0.1
            cap.tick(now, done=done + 1)
        holds.append(round(now - began))
    assert holds == [5, 10, 20, 40, 60, 60]
    cap.lower(1, now, done=9, retry_after=100.0)
    cap.tick(now + 99, done=10)
    assert cap.allowed == 1
    cap.tick(now + 101, done=10)
    assert cap.allowed == 2


def test_a_cap_that_is_back_at_its_most_waits_as_briefly_as_at_first() -> None:
    cap, now, holds = connection_counts.ConnectionCap(2), 0.0, []
    for done in range(3):
        cap.lower(1, now, done=done)
        start = now
        while cap.lowered:
            now += 0.1
            cap.tick(now, done=done + 1)
        holds.append(round(now - start))
    assert holds == [5, 5, 5]
