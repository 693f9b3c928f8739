"""What may happen to a job and to a batch, in one table. Pure: no clock, no disk, no loop.

    job       start       complete   fail      cancel      pause    resume   interrupt
    queued    running                          cancelled   paused
    running               completed  failed    cancelled   paused            queued
    paused                                     cancelled            queued
    completed, failed, cancelled: final

A batch has no state of its own to get wrong: it is what its jobs are, with two marks (paused, cancelled).

    jobs                                          stop_on_error  ignore_errors  batch
    none failed                                   any            any            completed
    one failed                                    false          true           completed, failed_jobs > 0 (default)
    one failed                                    false          false          failed, when the others have ended
    one failed: queued and running are cancelled  true           true           completed, failed_jobs > 0
    one failed: queued and running are cancelled  true           false          failed
    the batch was cancelled before its end        any            any            cancelled
    every job was cancelled, one by one           any            any            cancelled
"""

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

__all__ = [
    "FINAL",
    "TRANSITIONS",
    "BatchState",
    "Cause",
    "Change",
    "Status",
    "Waiting",
    "WrongState",
    "choose",
]


class Status(enum.StrEnum):
    """The state of a job, or of a batch."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Cause(enum.StrEnum):
    """Why a job changes its state."""

    START = "start"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    INTERRUPT = "interrupt"


FINAL: frozenset[Status] = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
"""States that nothing leaves."""

TRANSITIONS: Mapping[tuple[Status, Cause], Status] = {
    (Status.QUEUED, Cause.START): Status.RUNNING,
    (Status.QUEUED, Cause.CANCEL): Status.CANCELLED,
    (Status.QUEUED, Cause.PAUSE): Status.PAUSED,
    (Status.RUNNING, Cause.COMPLETE): Status.COMPLETED,
    (Status.RUNNING, Cause.FAIL): Status.FAILED,
    (Status.RUNNING, Cause.CANCEL): Status.CANCELLED,
    (Status.RUNNING, Cause.PAUSE): Status.PAUSED,
    (Status.RUNNING, Cause.INTERRUPT): Status.QUEUED,
    (Status.PAUSED, Cause.CANCEL): Status.CANCELLED,
    (Status.PAUSED, Cause.RESUME): Status.QUEUED,
}
"""Every change of a job that there is."""


class WrongState(RuntimeError):
    """What was asked cannot be done in this state, such as cancelling a batch that has ended."""


class Change(NamedTuple):
    """One job that changed.

    Args:
        position: Its index in the batch, from 0.
        old: Before.
        new: After.
    """

    position: int
    old: Status
    new: Status


class BatchState(msgspec.Struct, frozen=True, kw_only=True):
    """A batch at one moment. Each operation answers the next one and what changed on the way.

    Args:
        jobs: The state of each job, in the order of the URLs.
        concurrent_limit: How many may run at once.
        stop_on_error: The first failure cancels what has not ended.
        ignore_errors: Failures do not make the batch `failed`.
        paused: The batch was paused as a whole.
        cancelled: The batch was cancelled as a whole.
    """

    jobs: tuple[Status, ...]
    concurrent_limit: int = 3
    stop_on_error: bool = False
    ignore_errors: bool = True
    paused: bool = False
    cancelled: bool = False

    @property
    def counts(self) -> Counter[Status]:
        """How many jobs are in each state."""
        return Counter(self.jobs)

    @property
    def status(self) -> Status:
        """The state of the batch, by the table at the top of this module."""
        seen = set(self.jobs)
        if not seen <= FINAL:
            if self.paused:
                return Status.PAUSED
            return Status.QUEUED if seen <= {Status.QUEUED, Status.PAUSED} else Status.RUNNING
        if self.cancelled or seen == {Status.CANCELLED}:
            return Status.CANCELLED
        return Status.FAILED if Status.FAILED in seen and not self.ignore_errors else Status.COMPLETED

    @property
    def startable(self) -> int:
        """How many more jobs may start now."""
        if self.paused or self.cancelled:
            return 0
        counts = self.counts
        return min(counts[Status.QUEUED], max(0, self.concurrent_limit - counts[Status.RUNNING]))

    def apply(self, position: int, cause: Cause) -> "tuple[BatchState, tuple[Change, ...]]":
        """Change one job, and what follows from it: with `stop_on_error` a failure cancels the rest.

        Args:
            position: Which job, from 0.
            cause: Why.

        Returns:
            The batch afterwards, and every job that changed, the named one first.

        Raises:
            WrongState: The table has no such change.
        """
        old = self.jobs[position]
        new = TRANSITIONS.get((old, cause))
        if new is None:
            raise WrongState(f"a job that is {old} cannot {cause}")
        after, changes = self._change({position: new})
        if new is Status.FAILED and self.stop_on_error:
            after, more = after.every(Cause.CANCEL)
            changes += more
        return after, changes

    def cancel(self) -> "tuple[BatchState, tuple[Change, ...]]":
        """Cancel every job that has not ended.

        Raises:
            WrongState: The batch has ended.
        """
        self._unfinished("cancelled")
        after, changes = self.every(Cause.CANCEL)
        return msgspec.structs.replace(after, cancelled=True, paused=False), changes

    def pause(self) -> "tuple[BatchState, tuple[Change, ...]]":
        """Pause every job that has not ended. Pausing twice changes nothing.

        Raises:
            WrongState: The batch has ended.
        """
        self._unfinished("paused")
        after, changes = self.every(Cause.PAUSE)
        return msgspec.structs.replace(after, paused=True), changes

    def resume(self) -> "tuple[BatchState, tuple[Change, ...]]":
        """Queue every paused job again. Resuming what is not paused changes nothing.

        Raises:
            WrongState: The batch has ended.
        """
        self._unfinished("resumed")
        after, changes = self.every(Cause.RESUME)
        return msgspec.structs.replace(after, paused=False), changes

    def interrupt(self) -> "tuple[BatchState, tuple[Change, ...]]":
        """Put every running job back into the queue: the process ends, or has ended."""
        return self.every(Cause.INTERRUPT)

    def _unfinished(self, verb: str) -> None:
        if self.status in FINAL:
            raise WrongState(f"the batch is {self.status} and cannot be {verb}")

    def every(self, cause: Cause) -> "tuple[BatchState, tuple[Change, ...]]":
        """Apply a cause to every job that it can change."""
        pairs = ((at, TRANSITIONS.get((status, cause))) for at, status in enumerate(self.jobs))
        return self._change({at: new for at, new in pairs if new is not None})

    def _change(self, new: Mapping[int, Status]) -> "tuple[BatchState, tuple[Change, ...]]":
        changes = tuple(Change(at, self.jobs[at], status) for at, status in new.items())
        jobs = tuple(new.get(at, status) for at, status in enumerate(self.jobs))
        return msgspec.structs.replace(self, jobs=jobs), changes


class Waiting(NamedTuple):
    """A batch that has jobs to start.

    Args:
        batch_id: Which one.
        priority: Higher goes first.
        order: Among equals, lower goes first.
        startable: How many of its jobs may start now.
        queued: Position and host of each queued job, in order.
    """

    batch_id: str
    priority: int
    order: int
    startable: int
    queued: Iterable[tuple[int, str]]


def choose(batches: Sequence[Waiting], *, free: int, per_host: int, busy: Mapping[str, int]) -> list[tuple[str, int]]:
    """Decide which jobs start now.

    Args:
        batches: Those with something to start, in any order.
        free: How many more jobs may run in all.
        per_host: How many jobs of one host may run at once.
        busy: How many run now, by host.

    Returns:
        Batch and position of each job to start. A host that has enough to do holds up only its own jobs.
    """
    load = Counter(busy)
    chosen: list[tuple[str, int]] = []
    for batch in sorted(batches, key=lambda waiting: (-waiting.priority, waiting.order)):
        left = batch.startable
        for position, host in batch.queued:
            if left <= 0 or len(chosen) >= free:
                break
            if load[host] < per_host:
                load[host] += 1
                left -= 1
                chosen.append((batch.batch_id, position))
    return chosen
