"""The table of states, against a model that was written from the prose and shares nothing with it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from wme_async.jobs import Options, Status, WrongState, states
from wme_async.jobs.model import FINAL, BatchRow, JobRow
from wme_async.jobs.states import TRANSITIONS, Cause, Waiting, choose

ENDED = {"completed", "failed", "cancelled"}


def batch_of(size, **options):
    jobs = [JobRow(position=position, url=f"https://example.com/{position}") for position in range(size)]
    return BatchRow(batch_id="batch_1", options=Options(**options), created_at=0.0, jobs=jobs)


def statuses(row):
    return [str(job.status) for job in row.jobs]


class Model:
    """A batch as a person would keep it on paper."""

    def __init__(self, size, limit, stop, ignore):
        self.jobs = ["queued"] * size
        self.limit, self.stop, self.ignore = limit, stop, ignore
        self.paused = self.cancelled = False

    @property
    def ended(self):
        return all(job in ENDED for job in self.jobs)

    def status(self):
        if not self.ended:
            if self.paused:
                return "paused"
            busy = [job for job in self.jobs if job not in {"queued", "paused"}]
            return "running" if busy else "queued"
        if self.cancelled or all(job == "cancelled" for job in self.jobs):
            return "cancelled"
        if "failed" in self.jobs:
            return "completed" if self.ignore else "failed"
        return "completed"

    def room(self):
        if self.paused:
            return 0
        return min(self.jobs.count("queued"), max(0, self.limit - self.jobs.count("running")))

    def swap(self, old, new):
        self.jobs = [new if job in old else job for job in self.jobs]

    def fail(self, at):
        self.jobs[at] = "failed"
        if self.stop:
            self.swap({"queued", "running", "paused"}, "cancelled")


class Machine(RuleBasedStateMachine):
    @initialize(size=st.integers(1, 12), limit=st.integers(1, 10), stop=st.booleans(), ignore=st.booleans())
    def start(self, size, limit, stop, ignore):
        self.model = Model(size, limit, stop, ignore)
        self.real = batch_of(size, concurrent_limit=limit, stop_on_error=stop, ignore_errors=ignore)

    def pick(self, data, state):
        return data.draw(st.sampled_from([at for at, job in enumerate(self.model.jobs) if job == state]))

    def take(self, answer):
        before, (self.real, changes) = self.real, answer
        assert statuses(before) == self.seen
        for change in changes:
            assert before.jobs[change.position].status is change.old
            assert self.real.jobs[change.position].status is change.new
        touched = {change.position for change in changes}
        assert len(touched) == len(changes)
        assert all(self.real.jobs[at] is old for at, old in enumerate(before.jobs) if at not in touched)

    @precondition(lambda self: self.model.room() > 0)
    @rule(data=st.data())
    def a_job_starts(self, data):
        at = self.pick(data, "queued")
        self.model.jobs[at] = "running"
        self.take(states.apply(self.real, Cause.START, at))

    @precondition(lambda self: "running" in self.model.jobs)
    @rule(data=st.data(), well=st.booleans())
    def a_job_ends(self, data, well):
        at = self.pick(data, "running")
        if well:
            self.model.jobs[at] = "completed"
        else:
            self.model.fail(at)
        self.take(states.apply(self.real, Cause.COMPLETE if well else Cause.FAIL, at))

    @rule(data=st.data())
    def one_job_is_cancelled(self, data):
        at = data.draw(st.integers(0, len(self.model.jobs) - 1))
        if self.model.jobs[at] in ENDED:
            with pytest.raises(WrongState):
                states.apply(self.real, Cause.CANCEL, at)
            return
        self.model.jobs[at] = "cancelled"
        self.take(states.apply(self.real, Cause.CANCEL, at))

    @rule(verb=st.sampled_from(["cancel", "pause", "resume"]))
    def the_batch_is_told(self, verb):
        if verb == "cancel" and self.real.status is Status.CANCELLED:
            assert states.cancel(self.real) == (self.real, ())
            return
        if self.model.ended:
            with pytest.raises(WrongState):
                getattr(states, verb)(self.real)
            return
        if verb == "cancel":
            self.model.swap({"queued", "running", "paused"}, "cancelled")
            self.model.cancelled, self.model.paused = True, False
        elif verb == "pause":
            self.model.swap({"queued", "running"}, "paused")
            self.model.paused = True
        else:
            self.model.swap({"paused"}, "queued")
            self.model.paused = False
        self.take(getattr(states, verb)(self.real))

    @rule()
    def the_process_is_killed(self):
        self.model.swap({"running"}, "queued")
        self.take(states.interrupt(self.real))

    @invariant()
    def both_agree(self):
        if not hasattr(self, "model"):
            return
        self.seen = statuses(self.real)
        assert self.seen == self.model.jobs
        assert str(self.real.status) == str(states.status_of(self.real)) == self.model.status()
        assert states.startable(self.real) == self.model.room()
        assert self.seen.count("running") <= self.real.options.concurrent_limit


TestAgainstTheModel = Machine.TestCase


@pytest.mark.parametrize(
    ("stop", "ignore", "status", "jobs"),
    [
        (False, True, "completed", ["failed", "completed", "completed"]),
        (False, False, "failed", ["failed", "completed", "completed"]),
        (True, True, "completed", ["failed", "cancelled", "cancelled"]),
        (True, False, "failed", ["failed", "cancelled", "cancelled"]),
    ],
)
def test_one_failure_ends_a_batch_as_the_two_options_say(stop, ignore, status, jobs):
    row = batch_of(3, concurrent_limit=2, stop_on_error=stop, ignore_errors=ignore)
    row, _ = states.apply(row, Cause.START, 0, 1)
    row, _ = states.apply(row, Cause.FAIL, 0)
    while row.status not in FINAL:
        job = next(job for job in row.jobs if job.status in {Status.RUNNING, Status.QUEUED})
        row, _ = states.apply(row, Cause.START if job.status is Status.QUEUED else Cause.COMPLETE, job.position)
    assert (row.status, statuses(row)) == (status, jobs)


def test_a_final_state_is_never_left():
    for status, cause in itertools.product(FINAL, Cause):
        assert (status, cause) not in TRANSITIONS


def test_every_state_reaches_an_end():
    reached = {old: {new for (state, _), new in TRANSITIONS.items() if state is old} for old in Status}
    for status in set(Status) - FINAL:
        assert Status.CANCELLED in reached[status]


waiting = st.builds(
    Waiting,
    batch_id=st.uuids().map(str),
    priority=st.integers(-2, 2),
    order=st.integers(0, 1000),
    startable=st.integers(0, 10),
    queued=st.lists(st.tuples(st.integers(0, 99), st.sampled_from("abc")), max_size=12, unique_by=lambda pair: pair[0]),
)


@given(
    st.lists(waiting, max_size=6, unique_by=lambda batch: batch.batch_id),
    st.integers(0, 12),
    st.integers(1, 6),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 6)),
)
def test_what_starts_respects_every_limit_and_leaves_no_room_unused(batches, free, per_host, busy):
    chosen = choose(batches, free=free, per_host=per_host, busy=busy)
    total = sum(map(len, chosen.values()))
    assert total <= free
    hosts = {batch.batch_id: dict(batch.queued) for batch in batches}
    load = dict(busy)
    for batch_id, positions in chosen.items():
        assert len(set(positions)) == len(positions)
        for position in positions:
            host = hosts[batch_id][position]
            load[host] = load.get(host, 0) + 1
    assert all(count <= max(per_host, busy.get(host, 0)) for host, count in load.items())
    for batch in batches:
        started = chosen.get(batch.batch_id, [])
        assert len(started) <= batch.startable
        waiting_hosts = [host for position, host in batch.queued if position not in started]
        if total < free and len(started) < batch.startable:
            assert all(load.get(host, 0) >= per_host for host in waiting_hosts)


def test_a_higher_priority_starts_first_and_then_the_older_batch():
    rows = [
        Waiting("young", 0, 3, 2, [(0, "a"), (1, "a")]),
        Waiting("old", 0, 1, 2, [(0, "a"), (1, "a")]),
        Waiting("urgent", 5, 9, 1, [(0, "a")]),
    ]
    assert choose(rows, free=4, per_host=9, busy={}) == {"urgent": [0], "old": [0, 1], "young": [0]}


def test_a_busy_host_does_not_hold_up_the_others():
    rows = [Waiting("one", 0, 1, 2, [(0, "slow"), (1, "slow"), (2, "quick")])]
    assert choose(rows, free=5, per_host=1, busy={"slow": 1}) == {"one": [2]}
