"""Batches as callers see them: names, and figures that agree with each other."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async.jobs import JobProgress, Options, Status
from wme_async.jobs.model import FINAL, BatchRow, JobRow
from wme_async.jobs.views import live_progress, show


def shown(jobs, *, live=None, listed=False, **options):
    """Return a batch with jobs of these states, bytes and sizes; as in a list, if so wished."""
    rows = [
        JobRow(position=at, url=f"https://example.com/{at}", status=status, done=done, total=total, filepath="f")
        for at, (status, done, total) in enumerate(jobs)
    ]
    row = BatchRow(batch_id="batch_1", options=Options(**options), created_at=0.0, jobs=rows)
    if listed:
        row.jobs, row.first_url = [], rows[0].url
        for status, group in itertools.groupby(sorted(rows, key=lambda job: job.status), key=lambda job: job.status):
            members = list(group)
            sizes = [job.total for job in members if job.total is not None]
            row.sums[status] = (len(members), len(sizes), sum(job.done for job in members), sum(sizes))
    return show(row, now=1.0, live=live or {})


@st.composite
def jobs(draw):
    status = draw(st.sampled_from(list(Status)))
    total = draw(st.none() | st.integers(0, 10**9))
    done = 0 if status is Status.QUEUED else draw(st.integers(0, 10**9 if total is None else total))
    if status is Status.COMPLETED and total is not None:
        done = total
    return status, done, total


@given(st.lists(jobs(), min_size=1, max_size=12), st.booleans())
def test_the_percentage_is_that_of_the_bytes_which_stand_beside_it(states, listed):
    progress = shown(states, listed=listed).progress
    ended = all(status in FINAL for status, _, _ in states)
    counted = [job for job in states if ended or job[0] is not Status.CANCELLED]
    assert progress.done == sum(done for _, done, _ in counted)
    assert 0 <= progress.percent <= 100
    assert ended or progress.percent < 100
    if progress.total:
        assert progress.done <= progress.total
        assert progress.percent == pytest.approx(100 * progress.done / progress.total, abs=0.11)
        assert progress.estimated == any(
            total is None and status not in {Status.COMPLETED, Status.FAILED} for status, _, total in counted
        )
    elif counted:
        over = sum(status in {Status.COMPLETED, Status.FAILED} for status, _, _ in counted)
        assert progress.percent == pytest.approx(100 * over / len(counted), abs=0.11)


@given(st.lists(jobs(), min_size=1, max_size=12))
def test_a_list_shows_the_same_figures_and_name_as_the_status(states):
    batch, listed = shown(states), shown(states, listed=True)
    assert (listed.progress.done, listed.progress.estimated, listed.name) == (
        batch.progress.done,
        batch.progress.estimated,
        batch.name,
    )
    # A list knows the sums of a state alone; a job that has more bytes than the average may differ.
    sizes = [total for status, _, total in states if total is not None and status is not Status.FAILED]
    if sizes and None not in {total for _, _, total in states}:
        assert (listed.progress.total, listed.progress.percent) == (batch.progress.total, batch.progress.percent)


@pytest.mark.parametrize(
    ("states", "figures"),
    [
        # A failed job does not come any more: its missing bytes are no part of the whole.
        ([("running", 40, 80), ("failed", 0, 80)], (50.0, 40, 80, False)),
        ([("running", 40, 80), ("queued", 0, None)], (25.0, 40, 160, True)),
        ([("running", 5, None), ("queued", 0, None)], (0.0, 5, None, False)),
        ([("completed", 5, None), ("queued", 0, None)], (50.0, 5, 10, True)),
        ([("completed", 0, 0), ("queued", 0, None)], (50.0, 0, None, False)),
        ([("completed", 0, 0)], (100.0, 0, 0, False)),
        ([("completed", 60, 60), ("cancelled", 0, 20)], (75.0, 60, 80, False)),
        ([("running", 30, 60), ("cancelled", 10, 20)], (50.0, 30, 60, False)),
        ([("completed", 60, 60), ("failed", 20, 50)], (100.0, 80, 80, False)),
        ([("failed", 0, None)], (100.0, 0, None, False)),
        ([("cancelled", 0, None)], (0.0, 0, None, False)),
    ],
)
def test_figures_of_a_batch(states, figures):
    progress = shown([(Status(status), done, total) for status, done, total in states]).progress
    assert (progress.percent, progress.done, progress.total, progress.estimated) == figures


def test_running_jobs_count_with_what_is_in_memory():
    states = [(Status.RUNNING, 0, None), (Status.COMPLETED, 50, 50)]
    live = {0: JobProgress(percent=50.0, done=25, total=50, rate=5.0, eta=5.0)}
    for listed in (False, True):
        progress = shown(states, live=live, listed=listed).progress
        assert (progress.percent, progress.done, progress.total, progress.rate) == (75.0, 75, 100, 5.0)
        assert progress.eta == pytest.approx(5.0)
    assert live_progress(10, 0).percent == 0.0
    assert live_progress(10, 10).percent == 99.9


def test_a_batch_is_named_by_its_first_url_unless_it_has_a_name():
    states = [(Status.QUEUED, 0, None)] * 3
    assert shown(states, name="Mine").name == "Mine"
    assert shown(states).name == "https://example.com/0 and 2 more"
    assert shown(states[:1]).name == "https://example.com/0"
    assert shown(states, listed=True).name == "https://example.com/0 and 2 more"


@pytest.mark.parametrize("length", [10, 5000])
def test_the_name_shows_no_credentials_and_is_short(length):
    url = f"https://user:secret@example.com/{'x' * length}?X-Amz-Signature={'0' * 64}&page=1"
    row = BatchRow(batch_id="b", options=Options(), created_at=0.0, jobs=[JobRow(position=0, url=url)])
    name = show(row, now=0.0, live={}).name
    assert "secret" not in name
    assert "0" * 64 not in name
    assert len(name) <= 121
