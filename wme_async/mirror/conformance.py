"""Checks that any store of a mirror has to pass.

Give each check a function that returns a new store object over the same storage, which is empty at the beginning of
each check. With pytest:

```python
import pytest
from wme_async.mirror.conformance import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_my_store(check, empty_database):
    await check(lambda: MyStore(empty_database))
```
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Final, TypeAlias

import msgspec

from wme_async.mirror.protocol import KINDS, Change, Entry, Marks, State, Store
from wme_async.mirror.rule import HIDDEN_TEXT, MARGIN, Mask, Page, PageKey, Picture

__all__ = ["CHECKS", "Check", "OpenStore", "check_all"]

OpenStore: TypeAlias = Callable[[], Store]
Check: TypeAlias = Callable[[OpenStore], Awaitable[None]]
_Live: TypeAlias = dict[PageKey, tuple[str, int, bytes]]

_END: Final = 1 << 60
_NOTHING: Final = Marks()


def _expect(true: object, message: str) -> None:
    if not true:
        raise AssertionError(message)


def _page(title: str, page_id: int, revision: int, created: int, *, gone: bool = False, load: int = 0) -> Page:
    record = f'{{"name":"{title}","revision":{revision}}}'.encode()
    return Page(
        project="testwiki",
        title=title,
        page_id=page_id,
        revision=revision,
        created=created,
        published=created + 1,
        gone=gone,
        digest=record[-8:],
        record=b"" if gone else record,
        load=load,
    )


@contextlib.asynccontextmanager
async def _opened(open_store: OpenStore, *, writing: bool = True) -> AsyncGenerator[tuple[Store, State]]:
    store = open_store()
    state = await store.open(writing=writing)
    try:
        yield store, state
    finally:
        await store.close()


async def _apply(store: Store, *records: Page | Mask, settled: int | None = None) -> None:
    await store.apply(Picture(records), Marks(settled=settled))


async def _live(store: Store) -> _Live:
    return {
        (project, page_id): (title, revision, digest)
        async for keys in store.keys()  # noqa: SIM118 - not a dict
        for project, title, page_id, revision, digest in keys
    }


async def _entries(store: Store) -> list[Entry]:
    return [entry async for entries in store.entries() for entry in entries]


async def _titles(store: Store) -> dict[str, int]:
    return {title: page_id for (_, page_id), (title, _, _) in (await _live(store)).items()}


async def _all_changes(store: Store, after: int = 0, limit: int = 7) -> list[Change]:
    changes: list[Change] = []
    while batch := await store.changes(after, limit):
        _expect(len(batch) <= limit, f"{len(batch)} changes for limit={limit}")
        _expect([c.seq for c in batch] == sorted(c.seq for c in batch), "changes are not in order")
        _expect(batch[0].seq > after, f"a change that is not after {after}: {batch[0]}")
        changes += batch
        after = batch[-1].seq
    return changes


def _index(changes: Iterable[Change], index: _Live) -> _Live:
    for change in changes:
        key = change.project, change.page_id
        if change.kind == "delete":
            index.pop(key, None)
        else:
            index[key] = (change.title, change.revision, change.digest)
    return index


async def a_new_store_is_empty(open_store: OpenStore) -> None:
    """A new store has no rows, no changes, and no marks of any kind."""
    async with _opened(open_store) as (store, state):
        _expect(state.values == {kind: {} for kind in KINDS}, f"the marks are {state.values}")
        _expect(state.seq == 0, f"the number of the last change is {state.seq}")
        counts = await store.counts()
        _expect((counts.pages, counts.tombstones, counts.held, counts.seq) == (0, 0, 0, 0), f"it has {counts}")
        _expect(await store.changes(0, 10) == [], "there are changes")
        _expect(await _live(store) == {}, "there are keys")
        _expect(await store.get("testwiki", title="A") is None, "there is a page")
        _expect(await store.value("consumers", "index") is None, "there is a mark")


async def rows_come_back_exactly(open_store: OpenStore) -> None:
    """Records, keys and numbers come back as they were, also in another process."""
    titles = ["A", "a", "A b", "Ünï\u2028", "'; --", "💥", "%", "A" * 255]
    records = [_page(title, number + 1, 2**40 + number, 2**50 + number) for number, title in enumerate(titles)]
    records[3].record = b'{"name":"' + b"x" * 300_000 + b'"}'
    records[4].record = b"{}"
    copies = [msgspec.structs.replace(page) for page in records]
    async with _opened(open_store) as (store, _):
        await _apply(store, *records)
    async with _opened(open_store) as (store, state):
        _expect(state.seq == len(records), f"{len(records)} pages made {state.seq} changes")
        entries = {entry.title: entry for entry in await _entries(store)}
        _expect(len(entries) == len(titles), f"of {titles} there are {sorted(entries)}")
        for page in copies:
            entry = entries[page.title]
            _expect(entry.record == page.record, f"the record of {page.title!r} is {entry.record[:100]!r}")
            _expect(
                (entry.project, entry.page_id, entry.namespace, entry.revision, entry.created, entry.published)
                == (page.project, page.page_id, page.namespace, page.revision, page.created, page.published),
                f"the entry is {entry} for {page}",
            )
            _expect(await store.get("testwiki", title=page.title) == entry, "get() by title differs")
            _expect(await store.get("testwiki", page_id=page.page_id) == entry, "get() by page id differs")
        _expect(await store.get("otherwiki", title="A") is None, "a page is in another project")
        _expect(await _live(store) == {(p.project, p.page_id): (p.title, p.revision, p.digest) for p in copies}, "keys")


async def marks_come_back_exactly(open_store: OpenStore) -> None:
    """Marks of all kinds are stored with rows, overwritten, and removed."""
    marks = Marks(values={kind: {"a": f'{{"{kind}":1}}', "b/ü": "2"} for kind in KINDS if kind != "forgotten"})
    async with _opened(open_store) as (store, _):
        await store.apply(Picture(), marks)
        await store.apply(Picture(), Marks(values={"holes": {"a": None, "c": "3", "none": None}, "state": {"a": "4"}}))
        _expect(await store.value("holes", "c") == "3", "value() differs")
    async with _opened(open_store) as (_, state):
        _expect(state.values["holes"] == {"b/ü": "2", "c": "3"}, f"holes are {state.values['holes']}")
        _expect(state.values["state"].items() >= {"a": "4", "b/ü": "2"}.items(), f"state is {state.values['state']}")
        _expect(state.values["positions"] == {"a": '{"positions":1}', "b/ü": "2"}, "positions differ")


async def it_follows_the_rule(open_store: OpenStore) -> None:
    """Random records in random batches, with reopening in between: pages and an index equal the rule, at each step."""
    for seed in range(4):
        chance = random.Random(seed)  # noqa: S311 - not for secrets
        records: list[Page | Mask] = []
        for _ in range(40):
            title, page_id, revision = (
                f"{seed} {chance.choice('ABCD')}",
                10 * seed + chance.randint(1, 4),
                chance.randint(1, 5),
            )
            created = chance.randint(1, 9)
            if chance.random() < 0.15:
                hidden = chance.choice((0, HIDDEN_TEXT))
                records.append(
                    Mask(project="testwiki", page_id=page_id, revision=revision, created=created, hidden=hidden)
                )
            else:
                records.append(_page(title, page_id, revision, created, gone=chance.random() < 0.3))
        index: _Live = {}
        after = 0
        picture = Picture()
        while records:
            batch = [msgspec.structs.replace(record) for record in records[: chance.randint(1, 6)]]
            del records[: len(batch)]
            async with _opened(open_store) as (store, _):
                await _apply(store, *batch, settled=None if records else _END)
                picture.join(Picture(batch))
                live = await _live(store)
                mine = {key: value for key, value in live.items() if key[1] // 10 == seed}
                _expect(mine == _expected(picture), f"seed {seed}: {mine} instead of {_expected(picture)}")
                if chance.random() < 0.5:
                    changes = await _all_changes(store, after)
                    index = _index(changes, index)
                    after = changes[-1].seq if changes else after
        async with _opened(open_store) as (store, _):
            index = _index(await _all_changes(store, after), index)
            mine = {key: value for key, value in index.items() if key[1] // 10 == seed}
            _expect(mine == _expected(picture), f"seed {seed}: the index has {mine}")


def _expected(picture: Picture) -> _Live:
    live: _Live = {}
    for key, place in picture.places.items():
        page = picture.pages[place.project, place.title]
        if not page.gone and page.page_id == place.page_id:
            live[key] = (page.title, page.revision, page.digest)
    return live


async def a_move_is_one_change(open_store: OpenStore) -> None:
    """The delete of a move waits for the other half, and is told once it is settled."""
    async with _opened(open_store) as (store, _):
        await _apply(store, _page("Old", 1, 1, 10), _page("Away", 2, 1, 10))
        start = (await _all_changes(store))[-1].seq
        await _apply(store, _page("Old", 1, 5, 21, gone=True), _page("Away", 2, 6, 31, gone=True))
        _expect(await _titles(store) == {}, "deleted pages are live")
        _expect(await store.changes(start, 9) == [], "a delete that may be half of a move is in the feed")
        _expect((await store.counts()).held == 2, "the removals are not counted as held")
    async with _opened(open_store) as (store, _):
        await _apply(store, _page("New", 1, 5, 20))
        moved = await store.changes(start, 9)
        _expect([(c.kind, c.page_id, c.title, c.old_title) for c in moved] == [("upsert", 1, "New", "Old")], f"{moved}")
        await _apply(store, settled=30)
        _expect(len(await store.changes(start, 9)) == 1, "it is settled too early")
        await _apply(store, settled=31)
        last = await store.changes(moved[-1].seq, 9)
        _expect([(c.kind, c.page_id, c.title) for c in last] == [("delete", 2, "Away")], f"{last}")
    async with _opened(open_store) as (store, _):
        await _apply(store, _page("New", 1, 7, 25, gone=True))
        kinds = [c.kind for c in await store.changes(last[-1].seq, 9)]
        _expect(kinds == ["delete"], f"after reopening, a settled delete gives {kinds}")


async def hidden_parts_are_told(open_store: OpenStore) -> None:
    """A visibility change is a change of the feed, before and after its page."""
    async with _opened(open_store) as (store, _):
        await _apply(store, Mask(project="testwiki", page_id=1, revision=3, created=9, hidden=HIDDEN_TEXT))
    async with _opened(open_store) as (store, _):
        await _apply(store, _page("A", 1, 3, 5))
        (change,) = await store.changes(0, 9)
        _expect((change.kind, change.hidden) == ("hide", ("text",)), f"the change is {change}")
        entry = await store.get("testwiki", title="A")
        _expect(entry is not None and entry.hidden == HIDDEN_TEXT, f"the entry is {entry}")
        await _apply(store, Mask(project="testwiki", page_id=1, revision=3, created=11, hidden=0))
        (change,) = await store.changes(change.seq, 9)
        _expect((change.kind, change.hidden) == ("upsert", ()), f"the change is {change}")


async def doubts_become_marks(open_store: OpenStore) -> None:
    """A text that is visible again and missing is a mark, stored with the row."""
    page = _page("A/b", 1, 3, 5)
    page.body = False
    async with _opened(open_store) as (store, _):
        await _apply(store, page)
        mask = Mask(project="testwiki", page_id=1, revision=3, created=11, hidden=0)
        applied = await store.apply(Picture([mask]), _NOTHING)
        _expect(applied.doubts == (("testwiki", "A/b"),), f"the doubts are {applied.doubts}")
    async with _opened(open_store) as (_, state):
        _expect(state.values["doubts"] == {"testwiki/A/b": "{}"}, f"the marks are {state.values['doubts']}")


async def a_sweep_removes_few_and_old_pages(open_store: OpenStore) -> None:
    """Pages that a snapshot lacks go, all or none; later ones stay; a later snapshot that has them revives them."""
    cut = MARGIN + 1000
    count = 14
    old = [_page(f"Old {number}", number, 1, number) for number in range(1, count + 1)]
    others = [_page("Other", 90, 1, 1), _page("Elsewhere", 91, 1, 1)]
    others[0].namespace, others[1].project = 14, "otherwiki"
    async with _opened(open_store) as (store, _):
        await _apply(store, *old, _page("New", 89, 1, 2000), *others)
        await _apply(store, *(_page(f"Old {n}", n, 1, n, load=1) for n in (1, 2, 3)))
        start = (await _all_changes(store))[-1].seq
        sweep = await store.sweep("testwiki", 0, load=1, cut=cut, max_removed=0.0)
        _expect((sweep.missing, sweep.limit, sweep.removed) == (11, 10, 0), f"above the limit: {sweep}")
        _expect(await store.changes(start, 9) == [], "the marks of a load are changes")
        await _apply(store, _page("Old 4", 4, 1, 4, load=1))
        sweep = await store.sweep("testwiki", 0, load=1, cut=cut, max_removed=0.0)
        _expect((sweep.missing, sweep.removed, sweep.revived) == (10, 10, 0), f"at the limit: {sweep}")
        live = sorted(await _titles(store))
        _expect(live == ["Elsewhere", "New", "Old 1", "Old 2", "Old 3", "Old 4", "Other"], f"live are {live}")
        changes = await _all_changes(store, start)
        _expect({c.kind for c in changes} == {"delete"} and len(changes) == 10, f"{changes}")
        _expect({c.page_id for c in changes} == set(range(5, count + 1)), f"{changes}")
    async with _opened(open_store) as (store, _):
        await _apply(store, _page("Old 5", 5, 2, 500))
        _expect("Old 5" in await _titles(store), "a newer event does not revive a swept page")
        await _apply(store, *(_page(f"Old {n}", n, 1, n, load=2) for n in range(1, 8)))
        _expect("Old 6" not in await _titles(store), "a page is revived before the snapshot is complete")
        sweep = await store.sweep("testwiki", 0, load=2, cut=cut + 1, max_removed=1.0)
        _expect((sweep.missing, sweep.removed, sweep.revived) == (0, 0, 2), f"revival: {sweep}")
        expected = ["Elsewhere", "New", *(f"Old {n}" for n in range(1, 8)), "Other"]
        _expect(sorted(await _titles(store)) == expected, f"live are {await _titles(store)}")
        _expect(_index(await _all_changes(store), {}) == await _live(store), "the feed differs from the live pages")
        sweep = await store.sweep("testwiki", 0, load=3, cut=cut + 2, max_removed=1.0)
        _expect((sweep.missing, sweep.removed) == (7, 7), f"with any share: {sweep}")


async def forgotten_pages_stay_forgotten(open_store: OpenStore) -> None:
    """A page that is forgotten has no record, and is not taken again."""
    async with _opened(open_store) as (store, _):
        await _apply(store, _page("A", 1, 1, 5), _page("B", 2, 1, 5))
        await store.apply(Picture(), Marks(forget=[("testwiki", 1)]))
        _expect(await _titles(store) == {"B": 2}, "a forgotten page is live")
    async with _opened(open_store) as (store, state):
        _expect(set(state.values["forgotten"]) == {"testwiki/1"}, f"forgotten are {state.values['forgotten']}")
        await _apply(store, _page("C", 1, 2, 6, load=1), _page("A", 3, 3, 7))
        _expect(await _titles(store) == {"A": 3, "B": 2}, "a forgotten page came back")
        _expect(_index(await _all_changes(store), {}) == await _live(store), "the feed differs from the live pages")


async def a_cancelled_apply_is_whole_or_nothing(open_store: OpenStore) -> None:
    """After an `apply` that was cancelled, all of its rows and marks are there, or none."""
    async with _opened(open_store) as (store, _):
        for turns in range(6):
            titles = [f"{turns} {number}" for number in range(20)]
            news = Picture(_page(title, 100 * turns + number, 1, 5) for number, title in enumerate(titles))
            marks = Marks(values={"positions": {str(turns): "1"}})
            async with asyncio.TaskGroup() as group:
                task = group.create_task(store.apply(news, marks))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
            count = len([title for title in await _titles(store) if title.startswith(f"{turns} ")])
            mark = await store.value("positions", str(turns))
            _expect((count, mark) in {(20, "1"), (0, None)}, f"{count} rows and the mark {mark!r}")
        _expect(_index(await _all_changes(store), {}) == await _live(store), "the feed differs from the live pages")


async def applies_at_a_time_are_all_there(open_store: OpenStore) -> None:
    """Calls that overlap are all executed, with different numbers of changes."""
    async with _opened(open_store) as (store, _):
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(_apply(store, _page(f"{number}", number, 1, 5)))
                group.create_task(store.changes(0, 5))
        _expect(len(await _titles(store)) == 20, "rows are missing")
        _expect(len({change.seq for change in await _all_changes(store)}) == 20, "numbers occur twice")


async def one_writes_and_others_read(open_store: OpenStore) -> None:
    """A second writer is refused; readers see what is committed, and keep the positions of consumers."""
    async with _opened(open_store) as (store, _):
        try:
            async with _opened(open_store):
                raise AssertionError("two could open the store for writing")
        except BlockingIOError:
            pass
        async with _opened(open_store, writing=False) as (reader, _):
            await _apply(store, _page("A", 1, 1, 5))
            _expect(await _titles(reader) == {"A": 1}, "a reader does not see a row")
            await reader.apply(Picture(), Marks(values={"consumers": {"index": "7"}}))
            _expect(await store.value("consumers", "index") == "7", "the position of a consumer is not there")
            for writing in (
                reader.apply(Picture([_page("B", 2, 1, 5)]), _NOTHING),
                reader.apply(Picture(), Marks(settled=4)),
                reader.sweep("testwiki", 0, load=1, cut=MARGIN * 2, max_removed=1.0),
            ):
                try:
                    await writing
                except RuntimeError:
                    continue
                raise AssertionError("a reader could write")
    async with _opened(open_store) as (store, _):
        await store.close()
        await store.close()


CHECKS: Final[tuple[Check, ...]] = (
    a_new_store_is_empty,
    rows_come_back_exactly,
    marks_come_back_exactly,
    it_follows_the_rule,
    a_move_is_one_change,
    hidden_parts_are_told,
    doubts_become_marks,
    a_sweep_removes_few_and_old_pages,
    forgotten_pages_stay_forgotten,
    a_cancelled_apply_is_whole_or_nothing,
    applies_at_a_time_are_all_there,
    one_writes_and_others_read,
)
"""All checks. Each one raises `AssertionError` with the fault."""


async def check_all(open_store: Callable[[], OpenStore]) -> None:
    """Run all checks.

    Args:
        open_store: Called before each check; returns a function that returns a new store object over the same storage,
            which is empty at first.

    Raises:
        AssertionError: The first check that fails.
    """
    for check in CHECKS:
        await check(open_store())
