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

A store that cannot outlive its object, such as `MemoryOffsets`, returns the same object each time. A store of leases
passes `LEASE_CHECKS` as well; these take some seconds, since leases have to end by the clock of the store.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias, cast

from wme_async.errors import StreamError
from wme_async.offsets.lease_table import share_of
from wme_async.offsets.protocol import ClaimingStore, LeaseStore, OffsetStore, Position

__all__ = ["CHECKS", "LEASE_CHECKS", "Check", "LeaseCheck", "OpenLeaseStore", "OpenStore", "check_all"]

OpenStore: TypeAlias = Callable[[], OffsetStore]
Check: TypeAlias = Callable[[OpenStore], Awaitable[None]]
OpenLeaseStore: TypeAlias = Callable[[], LeaseStore]
LeaseCheck: TypeAlias = Callable[[OpenLeaseStore], Awaitable[None]]

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


_LONG: Final = 600.0  # seconds; no check takes so long
_SHORT: Final = 0.1
_PATIENCE: Final = 60.0


async def _take_ended(store: LeaseStore, name: str, owner: str, parts: int) -> Mapping[int, int]:
    """Take parts whose leases are about to end."""
    async with asyncio.timeout(_PATIENCE):
        while not (taken := await store.take(name, owner, parts, _LONG)):  # noqa: ASYNC110  # no event tells it
            await asyncio.sleep(_SHORT / 4)
    # Leases that were taken at once may end microseconds apart.
    await asyncio.sleep(_SHORT / 4)
    return {**taken, **await store.take(name, owner, parts, _LONG)}


async def the_first_member_takes_all(open_store: OpenLeaseStore) -> None:
    """One member alone takes all parts, each with a token above 0, once."""
    store, name = open_store(), _name()
    taken = await store.take(name, "a", 10, _LONG)
    _expect(sorted(taken) == list(range(10)), f"of 10 parts it took {sorted(taken)}")
    _expect(all(type(token) is int and token > 0 for token in taken.values()), f"tokens are {taken}")
    _expect(await store.take(name, "a", 10, _LONG) == {}, "it took parts that it held")
    _expect(await store.renew(name, "a", _LONG) == taken, "a renewal does not return what was taken")
    _expect(list(await store.members(name)) == ["a"], "it is not the one member")


async def held_parts_stay_with_their_owner(open_store: OpenLeaseStore) -> None:
    """A second member gets nothing until the first one gives parts back, and then its share, with higher tokens."""
    store, other, name = open_store(), open_store(), _name()
    first = await store.take(name, "a", 10, _LONG)
    _expect(await other.take(name, "b", 10, _LONG) == {}, "a part was taken from its owner")
    _expect(await other.renew(name, "b", _LONG) == {}, "a member renewed leases of another one")
    _expect(list(await other.members(name)) == ["a", "b"], "the second member is not in the group")
    await other.give(name, "b", list(range(10)))
    _expect(await store.renew(name, "a", _LONG) == first, "a member gave back the parts of another one")
    await store.give(name, "a", range(3, 10))
    second = await other.take(name, "b", 10, _LONG)
    _expect(len(second) == 5, f"of 10 parts, 7 of them free, one of two members took {sorted(second)}")
    _expect(set(second) <= set(range(3, 10)), f"{sorted(second)} were not all free")
    _expect(all(token > first[part] for part, token in second.items()), f"tokens went from {first} to {second}")
    kept = {part: token for part, token in first.items() if part < 3}
    _expect(await store.renew(name, "a", _LONG) == kept, "the first member lost parts that it had not given back")


async def shares_differ_by_one(open_store: OpenLeaseStore) -> None:
    """Each of several members takes its share, and all parts are taken."""
    store, name = open_store(), _name()
    owners = ["d", "B", "a", "C"]
    for owner in owners:
        await store.renew(name, owner, _LONG)
    members = await store.members(name)
    _expect(list(members) == sorted(owners), f"members are in the order {members}")
    parts: list[int] = []
    for owner in owners:
        taken = await store.take(name, owner, 10, _LONG)
        share = share_of(10, owner, members)
        _expect(len(taken) == share, f"{owner} took {len(taken)} parts, and its share is {share}")
        parts += taken
    _expect(sorted(parts) == list(range(10)), f"together they took {sorted(parts)}")
    many = [f"m{number:02}" for number in range(30)]
    for owner in many:
        await store.renew(name, owner, _LONG)
    _expect(await store.take(name, "m29", 10, _LONG) == {}, "the last of many members has no share")


async def members_that_take_at_a_time_meet_nowhere(open_store: OpenLeaseStore) -> None:
    """Members that take at the same moment never get the same part, and in the end all parts are taken."""
    name = _name()
    owners = [f"m{number}" for number in range(8)]
    held: dict[int, str] = {}
    async with asyncio.timeout(_PATIENCE):
        while len(held) < 20:
            taken = await asyncio.gather(*(open_store().take(name, owner, 20, _LONG) for owner in owners))
            for owner, parts in zip(owners, taken, strict=True):
                for part in parts:
                    _expect(part not in held, f"{held.get(part)} and {owner} have part {part}")
                    held[part] = owner
            # The first ones took more than their share before the others had joined.
            for owner in owners:
                own = sorted(part for part, other in held.items() if other == owner)
                excess = own[share_of(20, owner, await open_store().members(name)) :]
                await open_store().give(name, owner, excess)
                for part in excess:
                    del held[part]


async def an_ended_lease_is_lost(open_store: OpenLeaseStore) -> None:
    """A lease that was not renewed in time is neither renewed nor kept from others, and its owner leaves the group."""
    store, name = open_store(), _name()
    old = await store.take(name, "a", 4, _SHORT)
    _expect(len(old) == 4, f"of 4 parts it took {sorted(old)}")
    new = await _take_ended(store, name, "b", 4)
    _expect(sorted(new) == [0, 1, 2, 3], f"the share of a member that is gone was not passed on: {sorted(new)}")
    _expect(all(token > old[part] for part, token in new.items()), f"tokens went from {old} to {new}")
    _expect(list(await store.members(name)) == ["b"], "the first one is still a member")
    _expect(await store.renew(name, "a", _LONG) == {}, "a lease was renewed after its end")
    _expect(await store.renew(name, "b", _LONG) == new, "the second owner does not hold what it took")


async def an_ended_lease_is_taken_anew(open_store: OpenLeaseStore) -> None:
    """An owner that comes too late for a renewal loses the lease even if nobody else took the part."""
    store, name = open_store(), _name()
    old = await store.take(name, "a", 2, _SHORT)
    new = await _take_ended(store, name, "a", 2)
    _expect(all(token > old[part] for part, token in new.items()), f"tokens went from {old} to {new}")
    _expect(await store.renew(name, "a", _LONG) == new, "it does not hold what it took")


async def a_renewal_extends_a_lease(open_store: OpenLeaseStore) -> None:
    """A lease that is renewed lasts from the renewal on."""
    store, ttl = open_store(), _SHORT
    while True:
        name = _name()
        taken = await store.take(name, "a", 4, ttl)
        held = await store.renew(name, "a", _LONG)
        if held == taken:
            break
        # It may have come too late.
        _expect(held == {} and ttl < _PATIENCE / 4, f"of {taken}, renewed within {ttl} s, {held} are left")
        ttl *= 2
    await asyncio.sleep(1.5 * ttl)
    _expect(await store.take(name, "b", 4, _LONG) == {}, "a part was taken although its lease was renewed")
    _expect(await store.renew(name, "a", _LONG) == taken, "a renewed lease ended")


async def only_the_last_lease_saves(open_store: OpenLeaseStore) -> None:
    """Positions are saved by the last owner of a part with its token, by nobody else, and all or none."""
    store, name = open_store(), _name()
    old = await store.take(name, "a", 2, _SHORT)
    start = {0: Position(5, _TIME, _TIME), 1: Position(-1, _TIME)}
    _expect(await store.save_held(name, 0, "a", old[0], start), "its owner could not save")
    new = await _take_ended(store, name, "b", 2)
    token = new[0]
    for owner, wrong in (("a", old[0]), ("a", token), ("b", old[0]), ("b", token + 1), ("c", token)):
        saved = await store.save_held(name, 0, owner, wrong, {0: Position(9), 3: Position(9)})
        _expect(not saved, f"{owner} saved with the token {wrong}; b has the token {token}")
    _expect(not await store.save_held(name, 7, "b", 1, {7: Position(1)}), "a part that nobody took was saved")
    _expect(await _load(open_store, name) == start, "positions were saved without the lease")
    # A lower offset may be right; only an older token is wrong.
    _expect(await store.save_held(name, 0, "b", token, {0: Position(4)}), "its owner could not save")
    got = await _load(open_store, name)
    _expect(got == {0: Position(4), 1: Position(-1, _TIME)}, f"after a save of partition 0 they are {got}")
    _expect(await store.save_held(name, 0, "b", token, {}), "a save of nothing does not tell that the lease is held")


async def an_ended_lease_saves_until_the_part_is_taken(open_store: OpenLeaseStore) -> None:
    """A host that comes late saves, as long as nobody has followed it."""
    store, name = open_store(), _name()
    taken = await store.take(name, "a", 1, _SHORT)
    await asyncio.sleep(2 * _SHORT)
    _expect(await store.save_held(name, 0, "a", taken[0], {0: Position(1)}), "nobody followed, and it could not save")
    await store.give(name, "a", [0])
    _expect(not await store.save_held(name, 0, "a", taken[0], {0: Position(2)}), "it saved a part that it gave back")
    _expect(await _load(open_store, name) == {0: Position(1)}, "a save after giving back changed the positions")


async def giving_back_leaves_positions(open_store: OpenLeaseStore) -> None:
    """A member that leaves gives all its parts back and keeps the positions; tokens go on growing."""
    store, name = open_store(), _name()
    first = await store.take(name, "a", 3, _LONG)
    await store.save_held(name, 0, "a", first[0], {0: Position(1)})
    await store.give(name, "a", [])
    _expect(await store.renew(name, "a", _LONG) == first, "giving nothing back lost leases")
    await store.give(name, "a")
    _expect(list(await store.members(name)) == [], "a member that left is still there")
    _expect(await store.renew(name, "b", _LONG) == {}, "a new member holds parts")
    second = await store.take(name, "b", 3, _LONG)
    _expect(sorted(second) == [0, 1, 2], f"of 3 parts that were given back it took {sorted(second)}")
    _expect(all(token > first[part] for part, token in second.items()), f"tokens went from {first} to {second}")
    _expect(await _load(open_store, name) == {0: Position(1)}, "giving back changed the positions")


async def groups_are_apart(open_store: OpenLeaseStore) -> None:
    """Groups of other names share nothing, nor do leases and plain saves."""
    store, stem = open_store(), _name("")
    one, two = stem + "ä{}'; --", stem + "Ä{}'; --"
    first = await store.take(one, "a", 2, _LONG)
    second = await store.take(two, "b", 2, _LONG)
    _expect(sorted(first) == sorted(second) == [0, 1], "a group took parts of another one")
    _expect(list(await store.members(one)) == ["a"], "a member of another group is in it")
    await store.save(one, {0: Position(3)})
    _expect(await store.renew(one, "a", _LONG) == first, "a plain save changed the leases")
    _expect(await _load(open_store, two) == {}, "a save changed another group")


LEASE_CHECKS: Final[tuple[LeaseCheck, ...]] = (
    the_first_member_takes_all,
    held_parts_stay_with_their_owner,
    shares_differ_by_one,
    members_that_take_at_a_time_meet_nowhere,
    an_ended_lease_is_lost,
    an_ended_lease_is_taken_anew,
    a_renewal_extends_a_lease,
    only_the_last_lease_saves,
    an_ended_lease_saves_until_the_part_is_taken,
    giving_back_leaves_positions,
    groups_are_apart,
)
"""The checks of a `LeaseStore`. Each one raises `AssertionError` with the fault."""


async def check_all(open_store: OpenStore) -> None:
    """Run all checks, and those of leases if it is a store of leases.

    Args:
        open_store: Returns a new store object over the same storage.

    Raises:
        AssertionError: The first check that fails.
    """
    for check in CHECKS:
        await check(open_store)
    if isinstance(open_store(), LeaseStore):
        for lease_check in LEASE_CHECKS:
            await lease_check(cast("OpenLeaseStore", open_store))
