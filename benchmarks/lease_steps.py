"""What the steps of a store of leases cost: milliseconds for one at a time, and how many a second from many hosts.

python benchmarks/lease_steps.py postgresql://user@host/database redis://host
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

from wme_async.offsets import LeaseStore, Position, PostgresOffsets, RedisOffsets

PARTS = 10
LEASE = 600.0
ROUNDS = 500
HOSTS = 50


async def timed(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Return the median and the 99th percentile of a step, in milliseconds."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await work()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times), sorted(times)[int(ROUNDS * 0.99)]


async def measure(address: str) -> None:
    """Measure one store."""
    store: LeaseStore = RedisOffsets(address) if address.startswith("redis") else PostgresOffsets(address)
    name = f"lease steps {time.monotonic()}"
    positions = {partition: Position(1) for partition in range(5)}
    async with store:  # type: ignore[attr-defined]
        token = (await store.take(name, "a", PARTS, LEASE))[0]
        steps: dict[str, Callable[[], Awaitable[object]]] = {
            "renew": lambda: store.renew(name, "a", LEASE),
            "members": lambda: store.members(name),
            "take": lambda: store.take(name, "a", PARTS, LEASE),
            "save": lambda: store.save_held(name, 0, "a", token, positions),
        }
        for step, work in steps.items():
            median, late = await timed(work)
            print(f"{store!r}: {step} {median:.2f} ms, p99 {late:.2f} ms")

    async def host(number: int) -> int:
        done, group = 0, f"{name} {number}"
        own: LeaseStore = RedisOffsets(address) if address.startswith("redis") else PostgresOffsets(address)
        async with own:  # type: ignore[attr-defined]
            token = (await own.take(group, "a", PARTS, LEASE))[0]
            while time.perf_counter() < until:
                await own.renew(group, "a", LEASE)
                await own.save_held(group, 0, "a", token, positions)
                done += 2
        return done

    until = time.perf_counter() + 5
    counts = await asyncio.gather(*(host(number) for number in range(HOSTS)))
    print(f"{store!r}: {sum(counts) / 5:.0f} steps a second from {HOSTS} hosts in one process")


async def main() -> None:
    """Measure all stores that are named."""
    for address in sys.argv[1:]:
        await measure(address)


if __name__ == "__main__":
    asyncio.run(main())
