"""Which bytes to ask for next, and from whom to take some over.

All decisions of a ranged download that need no socket. Offsets are bytes; an interval is half-open: [start, stop).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from wme_async._rates import RateMeter

__all__ = ["RangeLease", "RangePlan", "Spans", "part_size"]

MIB = 1 << 20
_PAGE = 4096

# A part that takes this long keeps a connection busy enough that opening the next one does not show.
_PART_SECONDS = 8.0
_PART_LEAST = 2 * MIB
_PART_MOST = 256 * MIB


class Spans:
    """A set of bytes, kept as sorted intervals that neither touch nor overlap.

    Args:
        intervals: Pairs of start and stop in any order; empty and reversed ones count for nothing.
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
        """Put an interval in; it may overlap others."""
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
        """Return where the run of bytes that begins at `start` ends; `start` itself where there is none."""
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
    """One range that one connection is fetching.

    Attributes:
        start: Its first byte.
        at: The next byte to come; what lies before it is written.
        stop: The first byte that is no longer its own; it moves down when another connection takes over the end.
        began: When it was handed out.
        moved: When bytes last came.
        lost: Another connection has taken over all that was left.
        tries: How often these bytes were taken from a connection that stood still.
    """

    __slots__ = ("_seen", "at", "began", "lost", "meter", "moved", "start", "stop", "tries")

    def __init__(self, start: int, stop: int, now: float, tries: int = 0) -> None:
        self.start = self.at = self._seen = start
        self.stop = stop
        self.began = self.moved = now
        self.lost = False
        self.tries = tries
        self.meter = RateMeter(now)

    def __repr__(self) -> str:
        return f"<RangeLease {self.start}..{self.at}..{self.stop}{' lost' if self.lost else ''}>"

    @property
    def rest(self) -> int:
        """Bytes still to come."""
        return self.stop - self.at

    def tick(self, now: float) -> None:
        """Measure the rate of what came since the last tick."""
        if self.at > self._seen:
            self.moved = now
        self.meter.add(self.at - self._seen, now)
        self._seen = self.at


class RangePlan:
    """The ranges of one file: which are done, which are on their way, which come next.

    Args:
        size: Bytes of the file.
        done: Intervals that are there already.
        rate: Bytes per second that one connection brought lately, for other files; 0.0 where unknown.
    """

    def __init__(self, size: int, done: Iterable[tuple[int, int]] = (), *, rate: float = 0.0) -> None:
        self.size = size
        self.spans = Spans((max(0, start), min(size, stop)) for start, stop in done)
        self.leases: list[RangeLease] = []
        # What is done or on its way, so that the next gap is found in one step.
        self._taken = Spans(self.spans)
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
        """Up to where the file is whole from its beginning."""
        at = 0
        while True:
            reached = self.spans.reach(at)
            for lease in self.leases:
                if lease.start <= reached < lease.at:
                    reached = lease.at
            if reached == at:
                return at
            at = reached

    @property
    def written(self) -> Spans:
        """All bytes that are there."""
        spans = Spans(self.spans)
        for lease in self.leases:
            spans.add(lease.start, lease.at)
        return spans

    @property
    def unassigned(self) -> int:
        """Bytes that nobody fetches yet."""
        return self.size - self._taken.total

    def open_below(self, limit: int) -> bool:
        """Say whether there are bytes below an offset that nobody fetches yet."""
        return self._taken.gap(0, min(limit, self.size)) is not None

    def rate(self, now: float) -> float:
        """Return what one connection brings, in bytes per second: the mean of those at work, 0.0 where unknown."""
        # The first second is the connection's own: asking, and the slow start of TCP.
        rates = [lease.meter.rate(now) for lease in self.leases if now - lease.began > 1]
        return max(self._rate, sum(rates) / len(rates)) if rates else self._rate

    def tick(self, now: float) -> None:
        """Measure all leases. Call it a few times a second."""
        for lease in self.leases:
            lease.tick(now)
        self._peak = max(self._peak, sum(lease.meter.rate(now) for lease in self.leases if now - lease.began > 2))

    def lease(self, now: float, *, most: int, limit: int | None = None) -> RangeLease | None:
        """Hand out the first bytes that nobody fetches yet.

        Args:
            now: Seconds.
            most: Bytes to hand out at once. A remainder that would be too small for a request of its own goes along.
            limit: Only bytes below this offset.

        Returns:
            None where all bytes below the limit are there or on their way.
        """
        gap = self._taken.gap(0, self.size if limit is None else min(limit, self.size))
        if gap is None:
            return None
        start, stop = gap
        if stop - start > most + most // 4:
            stop = start + max(1, most)
            if most >= 16 * _PAGE:
                # Two connections then never write to the same page.
                stop = stop // _PAGE * _PAGE
        return self._hand_out(start, stop, now)

    def next(
        self,
        now: float,
        *,
        connections: int,
        lifetime: float | None = None,
        setup: float = 0.1,
        limit: int | None = None,
        most: int = _PART_MOST,
        least: int = MIB,
        elapsed: float = 0.0,
        alone: bool = True,
    ) -> tuple[RangeLease, RangeLease | None] | None:
        """Say what an idle connection should fetch.

        Args:
            now: Seconds.
            connections: How many are at work or about to be.
            lifetime: Seconds that the signed URL still works, 0 or less where it has run out; None: for ever.
            setup: Seconds until a new connection brings its first byte.
            limit: Only bytes below this offset.
            most: Bytes, the upper bound of ordinary parts.
            least: Bytes that are worth a request when they are taken from another.
            elapsed: Seconds since the download began.
            alone: No other file has use for the connection; else it takes nothing from those that are at work here.

        Returns:
            The lease, and the one that it was taken from, if any; None where there is nothing to do.
        """
        rate = self.rate(now)
        size = part_size(
            self.unassigned,
            rate=rate,
            connections=connections,
            lifetime=lifetime,
            served=sum(lease.rest > 2 * _PART_SECONDS * rate for lease in self.leases),
            most=most,
        )
        lease = self.lease(now, most=size, limit=limit)
        if lease is not None:
            return lease, None
        if not alone or (limit is not None and limit < self.size and self.unassigned):
            return None
        if lifetime is not None and lifetime <= 0:
            # It would cost another metered request. That a line brings more with more connections is then not assumed:
            # it must be out of balance, by what it has been seen to bring.
            worth = max(5.0, elapsed / 20)
            return self.steal(now, setup=setup, least=least, gain=worth) if self._imbalance(now) > worth else None
        return self.steal(now, setup=setup, least=least, gain=max(0.5, setup))

    def steal(
        self, now: float, *, setup: float, least: int = MIB, gain: float = 0.5
    ) -> tuple[RangeLease, RangeLease] | None:
        """Take over the end of the lease that would be the last to finish.

        The cut is where both finish together: half of the rest between equals, nearly all from one that stands still.

        Args:
            now: Seconds.
            setup: Seconds until a new connection brings its first byte.
            least: Bytes below which four times as many seconds must be won.
            gain: Seconds that must be won.

        Returns:
            The new lease and the one it was taken from, whose `lost` says that nothing was left to it; None where
            nothing is worth taking over.
        """
        usual = self.rate(now)
        victim, longest = None, 0.0
        for lease in self.leases:
            rate = self._expected(lease, now, usual, setup)
            left = lease.rest / rate if rate > 0 else float("inf")
            if lease.rest >= 2 and left > longest:
                victim, longest = lease, left
        if victim is None:
            return None
        rate = self._expected(victim, now, usual, setup)
        fast = max(usual, rate)
        if rate <= 0 or fast <= 0:
            # It stands still: all of it. Or nothing is known of anybody: half.
            asleep = now - victim.moved > (1 + 4 * setup) * 2**victim.tries
            cut = victim.at if asleep else victim.at + victim.rest // 2
            won = float("inf") if asleep else gain
        else:
            together = (victim.rest + fast * setup) / (rate + fast)
            cut = victim.at + int(rate * together)
            won = longest - together
        cut = cut if cut == victim.at else max(victim.at, -(-cut // _PAGE) * _PAGE)
        taken = victim.stop - cut
        # Few bytes are worth a request only if they would come very slowly otherwise.
        if taken <= 0 or won < (gain if taken >= least else 4 * gain):
            return None
        stop, victim.stop = victim.stop, cut
        victim.lost = victim.rest == 0
        # A server that is slow to answer everybody must not be asked more and more often.
        thief = RangeLease(cut, stop, now, victim.tries + 1 if victim.lost else 0)
        self.leases.append(thief)
        return thief, victim

    def give_back(self, thief: RangeLease, victim: RangeLease) -> None:
        """Undo a `steal` that nothing has come of yet."""
        self.leases.remove(thief)
        victim.stop, victim.lost = thief.stop, False

    def stragglers(self, now: float, *, floor: float | None, patience: float, factor: float = 16.0) -> list[RangeLease]:
        """Return the leases that ought to be asked for again, from their last byte, by a new connection.

        Args:
            now: Seconds.
            floor: Bytes per second below which a range is too slow; None compares with the others alone.
            patience: Seconds that a connection gets before it is judged.
            factor: How many times slower than the mean of the others it may be. All equally slow is the network's
                doing, and asking again would not help.
        """
        slow = []
        for lease in self.leases:
            if now - lease.began < patience or not lease.rest:
                continue
            rate = lease.meter.rate(now)
            others = [other.meter.rate(now) for other in self.leases if other is not lease and now - other.began > 1]
            mean = sum(others) / len(others) if others else self._rate
            if (floor is not None and rate < floor and 2 * rate < mean) or rate * factor < mean:
                slow.append(lease)
        return slow

    def release(self, lease: RangeLease, now: float) -> None:
        """Take a lease back, finished or not: what came is done, the rest is free for the next."""
        self.leases.remove(lease)
        came = lease.at - lease.start
        if came:
            self.spans.add(lease.start, lease.at)
            self._closed = self.spans.total
            self._learn(came, now - lease.began)
        if lease.rest:
            self._retake()

    def _imbalance(self, now: float) -> float:
        """Seconds by which the last lease will finish later than all would if the work were spread evenly."""
        if not self.leases or not self._peak:
            return 0.0
        rest = sum(lease.rest for lease in self.leases)
        longest = max(lease.rest / max(lease.meter.rate(now), 1.0) for lease in self.leases)
        return longest - rest / self._peak

    def _learn(self, came: int, seconds: float) -> None:
        """Remember what a connection brought; by bytes, so that slow ones do not make all look slow."""
        if seconds <= 0:
            return
        self._rate = (
            came / seconds
            if not self._rate
            else self._rate + (came / seconds - self._rate) * min(0.3, came / (_PART_SECONDS * self._rate))
        )

    def _expected(self, lease: RangeLease, now: float, usual: float, setup: float) -> float:
        """Return the rate at which a lease will go on: nothing if it has been silent for longer than it should."""
        if now - lease.moved > (4 * setup + 2.0) * 2**lease.tries:
            return 0.0
        return lease.meter.rate(now) if lease.at > lease.start else usual

    def _hand_out(self, start: int, stop: int, now: float) -> RangeLease:
        lease = RangeLease(start, stop, now)
        self.leases.append(lease)
        self._taken.add(start, stop)
        return lease

    def _retake(self) -> None:
        self._taken = Spans(self.spans)
        for lease in self.leases:
            self._taken.add(lease.start, lease.stop)


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
        unassigned: Bytes that nobody fetches yet.
        rate: Bytes per second of one connection, 0.0 where unknown.
        connections: How many are at work.
        lifetime: Seconds that the URL still works; None: for ever.
        served: How many of the connections have a large share already.
        most: Bytes, the upper bound of ordinary parts.
    """
    connections = max(1, connections)
    share = -(-unassigned // connections)
    if rate <= 0:
        # The first ranges measure the way; small enough that a decision can still be made while the URL is fresh.
        return min(most, max(_PART_LEAST, min(share, 64 * MIB if lifetime is None else 16 * MIB)))
    if lifetime is not None and unassigned / (rate * connections) > lifetime:
        return max(_PART_LEAST, -(-unassigned // max(1, connections - served)))
    # At the end parts get smaller, but not so small that asking takes longer than the bytes: idle connections take
    # over what is left of the large ones anyway.
    ordinary = min(int(rate * _PART_SECONDS), most)
    return min(most, max(_PART_LEAST, min(ordinary, max(share, int(rate * _PART_SECONDS / 4)))))
