"""Checks that any store of positions has to pass.

Give each check a function that returns a new store object over the same storage; each run uses new names, so the
storage may be in use. With pytest:

```python
import pytest
from wme_async.offsets.conformance import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_my_store(check):
    await check(lambda: MyStore("dsn"))
```

A store that cannot outlive its object, such as `MemoryOffsets`, returns the same object each time.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from wme_async.errors import StreamError
from wme_async.offsets.protocol import ClaimingStore, OffsetStore, Position

__all__ = ["CHECKS", "Check", "OpenStore", "check_all"]

OpenStore: TypeAlias = Callable[[], OffsetStore]
Check: TypeAlias = Callable[[OpenStore], Awaitable[None]]

_TIME = datetime(2025, 4, 11, 4, 59, 23, 770471, tzinfo=UTC)


def _expect(true: object, message: str) -> None:
    if not true:
        raise AssertionError(message)


def _name(suffix: str = "articles") -> str:
    return f"conformance-{uuid.uuid4().hex[:12]}/{suffix}"


async def _load(open_store: OpenStore, name: str) -> dict[int, Position]:
    return dict(await open_store().load(name))


async def _saved(open_store: OpenStore, name: str, positions: Mapping[int, Position]) -> dict[int, Position]:
    await open_store().save(name, positions)
    return await _load(open_store, name)


async def unknown_name_is_empty(open_store: OpenStore) -> None:
    """A name that was never saved has no positions."""
    _expect(await _load(open_store, _name()) == {}, "load() of an unknown name is not empty")


async def positions_come_back_exactly(open_store: OpenStore) -> None:
    """Every position comes back as it was: 63-bit offsets, microseconds, absent times, no event yet."""
    positions = {
        0: Position(0, _TIME),
        1: Position(2**63 - 2, _TIME, _TIME + timedelta(microseconds=1)),
        7: Position(-1, _TIME),
        49: Position(12),
        1000: Position(3, None, _TIME),
    }
    got = await _saved(open_store, _name(), positions)
    _expect(got == positions, f"saved {positions}, loaded {got}")
    _expect(all(type(partition) is int for partition in got), "partitions are not whole numbers any more")
    for position in got.values():
        for time in (position.published, position.reached):
            _expect(time is None or time.utcoffset() == timedelta(0), f"{time} is not UTC")


async def save_leaves_other_partitions(open_store: OpenStore) -> None:
    """A save of some partitions leaves the others as they are, and overwrites its own."""
    name = _name()
    await open_store().save(name, {partition: Position(partition) for partition in range(50)})
    got = await _saved(open_store, name, {3: Position(33), 60: Position(66)})
    positions = {partition: Position(partition) for partition in range(50)} | {3: Position(33), 60: Position(66)}
    _expect(got == positions, f"after a save of 3 and 60: {got}")


async def the_last_save_counts(open_store: OpenStore) -> None:
    """The position saved last is loaded, even if its offset is lower."""
    name = _name()
    await open_store().save(name, {0: Position(5, _TIME, _TIME)})
    got = await _saved(open_store, name, {0: Position(4)})
    _expect(got == {0: Position(4)}, f"saved 5, then 4, loaded {got}")


async def names_are_apart(open_store: OpenStore) -> None:
    """Names that look alike or odd do not share positions."""
    stem = _name("")
    names = [
        stem + end for end in ("articles", "ARTICLES", "articles ", "a/b", "a%2Fb", "../x", "ünï\u2028", "'; --", "*")
    ]
    for index, name in enumerate(names):
        await open_store().save(name, {0: Position(index)})
    for index, name in enumerate(names):
        got = await _load(open_store, name)
        _expect(got == {0: Position(index)}, f"{name!r} has {got}")


async def saving_nothing_changes_nothing(open_store: OpenStore) -> None:
    """A save of no positions succeeds and changes nothing."""
    name = _name()
    await open_store().save(name, {})
    _expect(await _load(open_store, name) == {}, "an empty save left something")
    await open_store().save(name, {1: Position(1)})
    got = await _saved(open_store, name, {})
    _expect(got == {1: Position(1)}, f"an empty save changed the positions to {got}")


async def stores_keep_copies(open_store: OpenStore) -> None:
    """A later change of the mapping passed to `save`, or returned by `load`, does not change the store."""
    name = _name()
    store = open_store()
    positions = {0: Position(1)}
    await store.save(name, positions)
    positions[0] = Position(99)
    loaded = await store.load(name)
    if isinstance(loaded, dict):
        loaded[0] = Position(98)
    got = dict(await store.load(name))
    _expect(got == {0: Position(1)}, f"the store was changed from outside: {got}")


async def saves_at_a_time_are_all_kept(open_store: OpenStore) -> None:
    """Saves of one object that overlap are all kept."""
    name = _name()
    store = open_store()
    async with asyncio.TaskGroup() as tasks:
        for partition in range(20):
            tasks.create_task(store.save(name, {partition: Position(partition)}))
    got = await _load(open_store, name)
    _expect(got == {partition: Position(partition) for partition in range(20)}, f"of 20 saves: {sorted(got)}")


async def a_cancelled_save_is_whole_or_nothing(open_store: OpenStore) -> None:
    """After a save that was cancelled, either all or none of its positions are there."""
    name = _name()
    old = {partition: Position(1, _TIME) for partition in range(50)}
    new = {partition: Position(2, _TIME) for partition in range(50)}
    for turns in range(6):
        await open_store().save(name, old)
        async with asyncio.TaskGroup() as tasks:
            saving = tasks.create_task(open_store().save(name, new))
            for _ in range(turns):
                await asyncio.sleep(0)
            saving.cancel()
        got = await _load(open_store, name)
        _expect(got in (old, new), f"a cancelled save left {got}")


async def a_second_claim_is_refused(open_store: OpenStore) -> None:
    """A store that claims names refuses a second reader of one, and gives the name free again."""
    store, other = open_store(), open_store()
    if not isinstance(store, ClaimingStore) or not isinstance(other, ClaimingStore):
        return
    name, elsewhere = _name(), _name()
    for _ in range(2):
        async with store.claim(name), other.claim(elsewhere):
            try:
                async with other.claim(name):
                    raise AssertionError("two readers could claim one name")
            except StreamError as error:
                _expect(name in str(error), f"the error does not name the positions: {error}")
            await store.save(name, {0: Position(1)})
    with contextlib.suppress(ZeroDivisionError):
        async with store.claim(name):
            _ = 1 / 0
    async with other.claim(name):
        got = dict(await other.load(name))
    _expect(got == {0: Position(1)}, f"positions saved under a claim: {got}")


CHECKS: Final[tuple[Check, ...]] = (
    unknown_name_is_empty,
    positions_come_back_exactly,
    save_leaves_other_partitions,
    the_last_save_counts,
    names_are_apart,
    saving_nothing_changes_nothing,
    stores_keep_copies,
    saves_at_a_time_are_all_kept,
    a_cancelled_save_is_whole_or_nothing,
    a_second_claim_is_refused,
)
"""All checks. Each one raises `AssertionError` with the fault."""


async def check_all(open_store: OpenStore) -> None:
    """Run all checks.

    Args:
        open_store: Returns a new store object over the same storage.

    Raises:
        AssertionError: The first check that fails.
    """
    for check in CHECKS:
        await check(open_store)
