"""The plan of a ranged download: which bytes to request next, and from which connection to take some over.

Offsets are bytes; an interval is half-open: [start, stop).
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

import msgspec

from wme_async._rates import RateMeter

MIB = 1 << 20
_PAGE = 4096

# A part that takes this long keeps a connection busy enough that opening the next one does not show.
_PART_SECONDS = 8.0
_PART_LEAST = 2 * MIB
_PART_MOST = 256 * MIB


class Spans:
    """A set of bytes, kept as sorted intervals that neither touch nor overlap.

    Args:
        intervals: Pairs of start and stop in any order; empty and reversed ones are ignored.
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in intervals:
            self.add(start, stop)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._stops, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def __repr__(self) -> str:
        return f"Spans({list(self)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spans) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    @property
    def total(self) -> int:
        """How many bytes are in the set."""
        return sum(self._stops) - sum(self._starts)

    def add(self, start: int, stop: int) -> None:
        """Add an interval; it may overlap others."""
        if start >= stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def reach(self, start: int) -> int:
        """Return the end of the run of bytes that begins at `start`; `start` itself if that byte is missing."""
        index = bisect_right(self._starts, start) - 1
        return max(start, self._stops[index]) if index >= 0 else start

    def gap(self, start: int, limit: int) -> tuple[int, int] | None:
        """Return the first interval in [start, limit) that is not in the set, or None."""
        start = self.reach(start)
        if start >= limit:
            return None
        index = bisect_right(self._starts, start)
        return start, min(limit, self._starts[index]) if index < len(self._starts) else limit


class RangeLease:
    """One range that one connection fetches.

    Attributes:
        start: Its first byte.
        at: The next byte to receive; all bytes before it are written.
        stop: The byte after its last; it moves down when another connection takes over the end.
        began: When it was assigned.
        moved: When its last bytes were received.
        lost: Another connection has taken over all remaining bytes.
        stalls: How often these bytes were taken over from a stalled connection.
    """

    __slots__ = ("_measured", "at", "began", "lost", "meter", "moved", "stalls", "start", "stop")

    def __init__(self, start: int, stop: int, now: float, stalls: int = 0) -> None:
        self.start = self.at = self._measured = start
        self.stop = stop
        self.began = self.moved = now
        self.lost = False
        self.stalls = stalls
        self.meter = RateMeter(now)

    def __repr__(self) -> str:
        return f"<RangeLease {self.start}..{self.at}..{self.stop}{' lost' if self.lost else ''}>"

    @property
    def remaining(self) -> int:
        """Bytes still to receive."""
        return self.stop - self.at

    def tick(self, now: float) -> None:
        """Measure the rate since the last tick."""
        if self.at > self._measured:
            self.moved = now
        self.meter.add(self.at - self._measured, now)
        self._measured = self.at

    def expected_rate(self, now: float, usual: float, setup: float) -> float:
        """Return the rate to expect in bytes per second: zero after an unusually long silence.

        Args:
            now: Seconds.
            usual: The rate of a connection that has not received anything yet.
            setup: Seconds until a new connection brings its first byte.
        """
        if now - self.moved > (4 * setup + 2.0) * 2**self.stalls:
            return 0.0
        return self.meter.rate(now) if self.at > self.start else usual


class FetchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one fetch.

    Args:
        validator: The version that every response must have, if it names one: a strong ETag or a date.
        connections: Connections for this file at most.
        least: The smallest takeover from another connection in bytes that is worth a request.
        most: Bytes, the upper bound of ordinary parts.
        min_rate: Bytes per second below which a range is requested again, if others are faster.
        in_order: Somebody reads the bytes in order, so that no connection gets more than `most` at once.
        at_once: Request all remaining bytes in one range, which is not requested again for being slow, since its
            reader makes it wait.
    """

    validator: str | None
    connections: int
    least: int = 1 << 20
    most: int
    min_rate: float | None = None
    in_order: bool = False
    at_once: bool = False


class FetchState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a download when a connection is idle.

    Args:
        connections: How many connections are at work or about to be.
        lifetime: Seconds until the signed URL expires, 0 or less if it has expired; None if it never does.
        setup: Seconds until a new connection brings its first byte.
        limit: Only bytes below this offset may be requested now; None for no limit.
        most: Bytes, the upper bound of ordinary parts.
        least: The smallest takeover from another connection in bytes that is worth a request.
        elapsed: Seconds since the download began.
        contended: Another file waits for the connection, so that it takes over nothing here.
    """

    connections: int
    lifetime: float | None = None
    setup: float = 0.1
    limit: int | None = None
    most: int = _PART_MOST
    least: int = MIB
    elapsed: float = 0.0
    contended: bool = False


class RangePlan:
    """The ranges of one file: done, assigned to connections, and unassigned.

    Args:
        size: Bytes of the file.
        done: Intervals that are there already.
        rate: Recent bytes per second of one connection, for other files; 0.0 where unknown.
    """

    def __init__(self, size: int, done: Iterable[tuple[int, int]] = (), *, rate: float = 0.0) -> None:
        self.size = size
        self.spans = Spans((max(0, start), min(size, stop)) for start, stop in done)
        self.leases: list[RangeLease] = []
        # Done or assigned, so that the next gap is found in one step.
        self._assigned = Spans(self.spans)
        self._closed = self.spans.total
        self._rate = rate
        self._peak = 0.0

    @property
    def done(self) -> int:
        """Bytes that are there, those of unfinished leases included."""
        return self._closed + sum(lease.at - lease.start for lease in self.leases)

    @property
    def complete(self) -> bool:
        """Whether every byte is there."""
        return self._closed == self.size

    @property
    def frontier(self) -> int:
        """The offset up to which all bytes are there."""
        at = self.spans.reach(0)
        for lease in sorted(self.leases, key=lambda lease: lease.start):
            if lease.start <= at < lease.at:
                at = self.spans.reach(lease.at)
        return at

    @property
    def written(self) -> Spans:
        """All bytes that are there."""
        return Spans([*self.spans, *((lease.start, lease.at) for lease in self.leases)])

    @property
    def unassigned(self) -> int:
        """Bytes that are neither there nor assigned."""
        return self.size - self._assigned.total

    def gap(self, limit: int | None = None) -> tuple[int, int] | None:
        """Return the first interval of unassigned bytes, below an offset if there is a limit; None without any."""
        return self._assigned.gap(0, self.size if limit is None else min(limit, self.size))

    def rate(self, now: float) -> float:
        """Return the bytes per second of one connection: the mean of those at work, 0.0 where unknown."""
        # The first second goes to the request and the slow start of TCP.
        rates = [lease.meter.rate(now) for lease in self.leases if now - lease.began > 1]
        return max(self._rate, sum(rates) / len(rates)) if rates else self._rate

    def tick(self, now: float) -> None:
        """Measure all leases. Call it a few times a second."""
        for lease in self.leases:
            lease.tick(now)
        self._peak = max(self._peak, sum(lease.meter.rate(now) for lease in self.leases if now - lease.began > 2))

    def lease(self, now: float, *, most: int, limit: int | None = None) -> RangeLease | None:
        """Assign the first unassigned bytes.

        Args:
            now: Seconds.
            most: Bytes to assign at most. A remainder that is too small for a request of its own is added.
            limit: Only bytes below this offset.

        Returns:
            None if no byte below the limit is unassigned.
        """
        gap = self.gap(limit)
        if gap is None:
            return None
        start, stop = gap
        if stop - start > most + most // 4:
            stop = start + max(1, most)
            if most >= 16 * _PAGE:
                # Two connections then never write to the same page.
                stop = stop // _PAGE * _PAGE
        lease = RangeLease(start, stop, now)
        self.leases.append(lease)
        self._assigned.add(start, stop)
        return lease

    def next(self, now: float, state: FetchState) -> tuple[RangeLease, RangeLease | None] | None:
        """Return the range that an idle connection should fetch.

        Args:
            now: Seconds.
            state: The state of the connections.

        Returns:
            The lease, and the one that it takes over from, if any; None if there is nothing to do.
        """
        rate = self.rate(now)
        size = part_size(
            self.unassigned,
            rate=rate,
            connections=state.connections,
            lifetime=state.lifetime,
            served=sum(lease.remaining > 2 * _PART_SECONDS * rate for lease in self.leases),
            most=state.most,
        )
        lease = self.lease(now, most=size, limit=state.limit)
        if lease is not None:
            return lease, None
        if state.contended or (state.limit is not None and state.limit < self.size and self.unassigned):
            return None
        if state.lifetime is None or state.lifetime > 0:
            return self.steal(now, state, gain=max(0.5, state.setup))
        # It costs another metered request. More connections do not bring more then unless the work is out of balance,
        # by the rates measured so far.
        gain = max(5.0, state.elapsed / 20)
        return self.steal(now, state, gain=gain) if self._imbalance(now) > gain else None

    def steal(self, now: float, state: FetchState, *, gain: float = 0.5) -> tuple[RangeLease, RangeLease] | None:
        """Take over the end of the lease that would finish last.

        The cut is where both finish together: half of the remaining bytes between equals, nearly all from a stalled
        connection.

        Args:
            now: Seconds.
            state: The state of the connections.
            gain: Seconds that must be won; four times as many for fewer bytes than `state.least`.

        Returns:
            The new lease and the one that it takes over from, whose `lost` says that it has no bytes left; None if no
            takeover is worth it.
        """
        usual = self.rate(now)
        rates = {lease: lease.expected_rate(now, usual, state.setup) for lease in self.leases if lease.remaining >= 2}
        victim = max(
            rates, key=lambda lease: lease.remaining / rates[lease] if rates[lease] > 0 else math.inf, default=None
        )
        if victim is None:
            return None
        rate = rates[victim]
        cut, won = _cut(victim, now, rate, max(usual, rate), state.setup)
        count = victim.stop - cut
        # Few bytes are worth a request only if they would come very slowly otherwise.
        if count <= 0 or (gain if won is None else won) < (gain if count >= state.least else 4 * gain):
            return None
        stop, victim.stop = victim.stop, cut
        victim.lost = victim.remaining == 0
        # A server that is slow for all connections must not get more and more requests.
        thief = RangeLease(cut, stop, now, victim.stalls + 1 if victim.lost else 0)
        self.leases.append(thief)
        return thief, victim

    def give_back(self, thief: RangeLease, victim: RangeLease) -> None:
        """Undo a `steal` before its first byte."""
        self.leases.remove(thief)
        victim.stop, victim.lost = thief.stop, False

    def stragglers(self, now: float, *, floor: float | None, patience: float, factor: float = 16.0) -> list[RangeLease]:
        """Return the leases that a new connection should continue, because theirs is too slow.

        Args:
            now: Seconds.
            floor: Bytes per second below which a range is too slow; None compares with the others alone.
            patience: Seconds before a connection is compared.
            factor: How many times slower than the mean of the others it may be. If all are equally slow, the network
                is, and another request would not help.
        """
        stragglers = []
        for lease in self.leases:
            rate = lease.meter.rate(now)
            others = [other.meter.rate(now) for other in self.leases if other is not lease and now - other.began > 1]
            mean = sum(others) / len(others) if others else self._rate
            too_slow = (floor is not None and rate < floor and 2 * rate < mean) or rate * factor < mean
            if too_slow and now - lease.began >= patience and lease.remaining:
                stragglers.append(lease)
        return stragglers

    def release(self, lease: RangeLease, now: float) -> None:
        """End a lease, finished or not: its received bytes are done, its remaining ones unassigned."""
        self.leases.remove(lease)
        count = lease.at - lease.start
        if count:
            self.spans.add(lease.start, lease.at)
            self._closed = self.spans.total
            seconds = now - lease.began
            if seconds > 0:
                # The mean of connections, weighted by bytes so that slow ones count less.
                weight = min(0.3, count / (_PART_SECONDS * self._rate)) if self._rate else 1.0
                self._rate += (count / seconds - self._rate) * weight
        if lease.remaining:
            self._assigned = Spans([*self.spans, *((lease.start, lease.stop) for lease in self.leases)])

    def _imbalance(self, now: float) -> float:
        """Seconds by which the last lease will finish later than all would if the work were spread evenly."""
        if not self.leases or not self._peak:
            return 0.0
        remaining = sum(lease.remaining for lease in self.leases)
        longest = max(lease.remaining / max(lease.meter.rate(now), 1.0) for lease in self.leases)
        return longest - remaining / self._peak


def _cut(victim: RangeLease, now: float, rate: float, fast: float, setup: float) -> tuple[int, float | None]:
    """Return where to cut a lease for a takeover, and the seconds that it wins, None where unknown.

    Args:
        victim: The lease.
        now: Seconds.
        rate: Bytes per second of the victim.
        fast: Bytes per second of the connection that takes over.
        setup: Seconds until a new connection brings its first byte.
    """
    if rate > 0:
        together = (victim.remaining + fast * setup) / (rate + fast)
        cut, won = victim.at + int(rate * together), victim.remaining / rate - together
    elif now - victim.moved > (1 + 4 * setup) * 2**victim.stalls:
        # It has stalled: all of it.
        return victim.at, math.inf
    else:
        # No rate is known yet: half.
        cut, won = victim.at + victim.remaining // 2, None
    return (cut if cut == victim.at else max(victim.at, -(-cut // _PAGE) * _PAGE)), won


def part_size(
    unassigned: int,
    *,
    rate: float,
    connections: int,
    lifetime: float | None,
    served: int = 0,
    most: int = _PART_MOST,
) -> int:
    """Return how many bytes the next range should have.

    In the ordinary case parts take a few seconds and follow each other in the file's order, so that the bytes which
    are hashed or read in order are still in memory. But where the signature of the URL will run out before the file is
    whole, every later range would need another metered request, while a body that has begun goes on: then each
    connection takes its whole share at once.

    Args:
        unassigned: Bytes that are neither there nor assigned.
        rate: Bytes per second of one connection, 0.0 where unknown.
        connections: How many are at work.
        lifetime: Seconds that the URL still works; None: for ever.
        served: How many of the connections have a large share already.
        most: Bytes, the upper bound of ordinary parts.
    """
    connections = max(1, connections)
    share = -(-unassigned // connections)
    if rate <= 0:
        # The first ranges measure the rate; they are small enough for a decision while the URL is still valid.
        return min(most, max(_PART_LEAST, min(share, 64 * MIB if lifetime is None else 16 * MIB)))
    if lifetime is not None and unassigned / (rate * connections) > lifetime:
        return max(_PART_LEAST, -(-unassigned // max(1, connections - served)))
    # At the end parts get smaller, but not so small that the request takes longer than the bytes: idle connections take
    # over the end of large ones anyway.
    ordinary = min(int(rate * _PART_SECONDS), most)
    return min(most, max(_PART_LEAST, min(ordinary, max(share, int(rate * _PART_SECONDS / 4)))))
