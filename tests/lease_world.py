"""Many hosts that share many streams, in virtual time: what the product decides about leases, on a clock of its own.

Each host has the product's `LeaseKeeper`; all have one `MemoryOffsets`, whose clock is that of the world. Hosts join
and leave, die, stand still, lose the store from sight, and have clocks that are wrong and run too fast or too slow. The
world notes when a part has nobody who reads it, and whenever two may read it at a time.
"""

import asyncio
import contextlib
import random
import selectors
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

# Private: a stream of its own for each part would need a server, and real time.
from wme_async._stream import holdings, lease_keeper  # private: the decisions on leases, which a stream makes alone
from wme_async.errors import StreamError
from wme_async.offsets import MemoryOffsets, Position

Holdings = holdings.Holdings

__all__ = ["Figures", "Weather", "World", "run_in_virtual_time"]

R = TypeVar("R")

PARTS = 10
LEASE = 30.0
TIMEOUT = 10.0  # seconds after which a call of the store fails


class _VirtualSelector(selectors.SelectSelector):
    """Lets time pass where an event loop would wait for it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits for something that no time brings"
        self.now += max(0.0, timeout)
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def run_in_virtual_time(main: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """Run a coroutine in an event loop in which waiting takes no time."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main())


class Weather(NamedTuple):
    """How often something happens to a host, in times an hour, and how many answers of the store are lost."""

    deaths: float = 0.0
    sleeps: float = 0.0
    cuts: float = 0.0
    leaves: float = 0.0
    lost_answers: float = 0.0
    outages: float = 0.0  # of the store, for everybody


class Figures(NamedTuple):
    """What became of the parts.

    Attributes:
        hours: Of virtual time.
        takes: Times that a part was taken.
        overlaps: Times that two hosts could have handed out events of a part.
        without_owner: The longest time that the owner of a part did not read it and nobody had followed, in leases.
        unread: The longest time that nobody read a part, in leases.
        calls: Calls of the store.
        faults: Deaths, sleeps, cuts and leaves of hosts, and outages of the store.
        moves: Takes for each part and hour.
    """

    hours: float
    takes: int
    overlaps: int
    without_owner: float
    unread: float
    calls: int
    faults: int
    moves: float

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.3g}" for name, value in self._asdict().items())


class _Part:
    """Who reads a part, as nobody in the world knows it."""

    def __init__(self) -> None:
        self.granted = 0  # the newest token
        self.newest = 0  # of those, the newest one under which somebody has read
        self.holders: dict[_Host, holdings.Holding] = {}
        self.left_at: float | None = 0.0  # when its owner stopped reading, and nobody had followed
        self.unread_since: float | None = 0.0


class _Host:
    """One host: its clock, its sight of the store, and the product's keeper of leases."""

    def __init__(self, world: "World", group: str, number: int) -> None:
        chance = world.chance
        self.world = world
        self.group = group
        self.frozen_until = 0.0
        self.cut_until = 0.0
        self.offset = chance.uniform(-1e6, 1e6)  # seconds: a clock may be days off
        self.rate = 1 + chance.uniform(-0.002, 0.002)  # a hundred times as far as real ones
        self.held: dict[int, holdings.Holding] = {}
        self.keeper = lease_keeper.LeaseKeeper(
            _HostStore(self),
            group,
            owner=f"{chance.getrandbits(64):016x} host {number}",
            parts=PARTS,
            ttl=LEASE,
            clock=self.clock,
            on_taken=self._taken,
            on_lost=self._ended,
            on_surplus=self._surplus,
        )
        self.tasks: set[asyncio.Task[Any]] = set()

    def clock(self) -> float:
        return self.offset + self.rate * self.world.now()

    def deadline_of(self, holding: holdings.Holding) -> float:
        """Return the true time at which the host will not trust a lease any more."""
        return (holding.deadline - self.offset) / self.rate

    def may_hand_out(self, holding: holdings.Holding) -> bool:
        now = self.world.now()
        return not holding.leaving and now >= self.frozen_until and now < self.deadline_of(holding)

    async def awake(self) -> None:
        """Go on, but not before the host does."""
        while (seconds := self.frozen_until - self.world.now()) > 0:  # noqa: ASYNC110  # it may be frozen again
            await asyncio.sleep(seconds)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def live(self) -> None:
        while True:
            try:
                pause = await self.keeper.beat()
            except StreamError:
                pause = self.keeper.pause
            for holding in list(self.held.values()):
                if self.world.now() >= self.deadline_of(holding):
                    self.keeper.holdings.end(holding)
                    self._ended(holding)
            await asyncio.sleep(pause)
            await self.awake()

    def _taken(self, holding: holdings.Holding) -> None:
        part = self.world.part(self, holding)
        self.held[holding.part] = part.holders[self] = holding
        part.newest = max(part.newest, holding.token)
        self.world.look(part)

    def _ended(self, holding: holdings.Holding) -> None:
        part = self.world.part(self, holding)
        if part.holders.get(self) is holding:
            self.world.stopped(part, holding, min(self.world.now(), self.deadline_of(holding)))
            del part.holders[self]
        if self.held.get(holding.part) is holding:
            del self.held[holding.part]

    def _surplus(self, holding: holdings.Holding) -> None:
        self.world.stopped(self.world.part(self, holding), holding, self.world.now())
        self.start(self._give(holding))

    async def _give(self, holding: holdings.Holding) -> None:
        await asyncio.sleep(self.world.chance.uniform(0.0, 2.0))  # the consumer has an event of it in hand
        await self.awake()
        self._ended(holding)
        with contextlib.suppress(StreamError):
            await self.keeper.give(holding)

    def die(self) -> None:
        for holding in list(self.held.values()):
            self._ended(holding)
        for task in self.tasks:
            task.cancel()

    async def leave(self) -> None:
        for holding in list(self.held.values()):
            self.world.stopped(self.world.part(self, holding), holding, self.world.now())
            holding.leaving = True
        with contextlib.suppress(StreamError):
            await self.keeper.leave()
        self.die()

    def freeze(self, seconds: float) -> None:
        for holding in self.held.values():
            self.world.stopped(self.world.part(self, holding), holding, self.world.now())
        self.frozen_until = max(self.frozen_until, self.world.now() + seconds)
        self.start(self._thaw())

    async def _thaw(self) -> None:
        await self.awake()
        for holding in list(self.held.values()):
            self.world.look(self.world.part(self, holding))


class _HostStore:
    """The store as one host sees it: answers take time, or do not come."""

    def __init__(self, host: _Host) -> None:
        self._host = host
        self._store = host.world.store

    async def _call(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        host, world = self._host, self._host.world
        world.calls += 1
        await asyncio.sleep(world.chance.expovariate(200.0))
        if world.now() < max(host.cut_until, world.away_until):
            await asyncio.sleep(TIMEOUT)
            await host.awake()
            raise StreamError("no answer")
        answer = await work()
        lost = world.chance.random() < world.weather.lost_answers
        await asyncio.sleep(TIMEOUT if lost else world.chance.expovariate(200.0))
        await host.awake()
        if lost:
            raise StreamError("no answer")
        return answer

    async def load(self, name: str) -> Mapping[int, Position]:
        return await self._call(lambda: self._store.load(name))

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        await self._call(lambda: self._store.save(name, positions))

    async def take(self, name: str, owner: str, parts: int, ttl: float) -> Mapping[int, int]:
        async def work() -> Mapping[int, int]:
            taken = await self._store.take(name, owner, parts, ttl)
            self._host.world.followed(name, taken)
            return taken

        return await self._call(work)

    async def renew(self, name: str, owner: str, ttl: float) -> Mapping[int, int]:
        held = await self._call(lambda: self._store.renew(name, owner, ttl))
        for holding in self._host.held.values():
            self._host.world.look(self._host.world.part(self._host, holding))
        return held

    async def members(self, name: str) -> Sequence[str]:
        return await self._call(lambda: self._store.members(name))

    async def save_held(self, name: str, part: int, owner: str, token: int, positions: Mapping[int, Position]) -> bool:
        return await self._call(lambda: self._store.save_held(name, part, owner, token, positions))

    async def give(self, name: str, owner: str, parts: Collection[int] | None = None) -> None:
        await self._call(lambda: self._store.give(name, owner, parts))


class World:
    """Hosts in groups.

    Args:
        groups: How many streams.
        hosts: How many hosts, dealt out over the groups.
        seed: Of chance.
    """

    def __init__(self, *, groups: int, hosts: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.store = MemoryOffsets(clock=self.now)
        self.weather = Weather()
        self.away_until = 0.0
        self.parts = {f"group {number}": [_Part() for _ in range(PARTS)] for number in range(groups)}
        self._groups = [f"group {number % groups}" for number in range(hosts)]
        self._numbers = iter(range(10**9))
        self._hosts: list[_Host] = []
        self._reset()

    def _reset(self) -> None:
        self.calls = self.takes = self.overlaps = self.faults = 0
        self.without_owner = self.unread = 0.0

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def part(self, host: _Host, holding: holdings.Holding) -> _Part:
        return self.parts[host.group][holding.part]

    # What is noted

    def stopped(self, part: _Part, holding: holdings.Holding, at: float) -> None:
        """Note that the owner of a part stopped reading it, unless somebody has followed already."""
        if holding.token < part.granted:
            return
        part.left_at = at if part.left_at is None else part.left_at
        part.unread_since = at if part.unread_since is None else part.unread_since

    def followed(self, group: str, taken: Mapping[int, int]) -> None:
        """Note that the store has given parts to somebody, who may not know it yet."""
        for number, token in taken.items():
            part = self.parts[group][number]
            part.granted = token
            self.takes += 1
            # The last owner may not have stopped: its lease has just ended.
            if part.left_at is not None:
                self.without_owner = max(self.without_owner, self.now() - max(part.left_at, self._outage_end()))
                part.left_at = None

    def look(self, part: _Part) -> None:
        """Note who may hand out events of a part now."""
        reading = [host for host, holding in part.holders.items() if host.may_hand_out(holding)]
        self.overlaps += len(reading) > 1
        self.overlaps += any(part.holders[host].token < part.newest for host in reading)
        if reading and part.unread_since is not None:
            self.unread = max(self.unread, self.now() - max(part.unread_since, self._outage_end()))
            part.unread_since = part.left_at = None

    def _outage_end(self) -> float:
        """Return when the last outage of the store ended: no part can be taken in one."""
        return self.away_until

    # What happens

    async def join(self, group: str) -> None:
        host = _Host(self, group, next(self._numbers))
        self._hosts.append(host)
        host.start(host.live())

    async def start(self) -> None:
        """Let all hosts join within a minute."""
        for group in self._groups:
            await asyncio.sleep(60 / len(self._groups))
            await self.join(group)

    async def pass_by(self, hours: float, weather: Weather) -> Figures:
        """Let time pass, and return what became of the parts."""
        self._reset()
        self.weather = weather
        began = self.now()
        rates = [weather.deaths, weather.sleeps, weather.cuts, weather.leaves]
        total = sum(rates) * len(self._groups) + weather.outages
        while total:
            await asyncio.sleep(self.chance.expovariate(total / 3600))
            if self.now() - began >= hours * 3600:
                break
            self.faults += 1
            if self.chance.random() < weather.outages / total:
                self.away_until = self.now() + self.chance.uniform(1, 20)
            else:
                self._trouble(rates)
        await asyncio.sleep(max(0.0, began + hours * 3600 - self.now()))
        passed = (self.now() - began) / 3600
        return Figures(
            hours=passed,
            takes=self.takes,
            overlaps=self.overlaps,
            without_owner=self.without_owner / LEASE,
            unread=self.unread / LEASE,
            calls=self.calls,
            faults=self.faults,
            moves=self.takes / passed / (PARTS * len(self.parts)),
        )

    def _trouble(self, rates: Sequence[float]) -> None:
        chance = self.chance
        host = chance.choice(self._hosts)
        kind = chance.choices(["death", "sleep", "cut", "leave"], rates)[0]
        if kind == "sleep":
            host.freeze(chance.uniform(0.1, 4 * LEASE))
        elif kind == "cut":
            host.cut_until = self.now() + chance.uniform(0.1, 4 * LEASE)
        else:
            self._hosts.remove(host)
            if kind == "death":
                host.die()
            else:
                host.start(host.leave())
            asyncio.get_running_loop().create_task(self._replace(host))  # the loop ends with the world

    async def _replace(self, host: _Host) -> None:
        await asyncio.sleep(self.chance.uniform(1, 60))
        await self.join(host.group)

    def shares(self) -> dict[str, list[int]]:
        """Return how many parts each host of each group holds."""
        shares: dict[str, list[int]] = {group: [] for group in self.parts}
        for host in self._hosts:
            shares[host.group].append(len(host.held))
        return shares

    async def stop(self) -> None:
        for host in self._hosts:
            host.die()
        await asyncio.sleep(0)
