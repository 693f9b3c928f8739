"""Stores of leases: each passes the suite, on real servers, directly and through PgBouncer, and over restarts."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
from real_servers import Postgres, Server

from wme_async import Client
from wme_async.errors import DataError, StreamError
from wme_async.offsets import MemoryOffsets, Position, PostgresOffsets, RedisOffsets, SQLiteOffsets
from wme_async.offsets.conformance import CHECKS, LEASE_CHECKS, LeaseCheck, OpenLeaseStore, check_all
from wme_async.simulator import Simulator

NAME = "default/articles"
# Redis starts at once; the others are for `nox -s servers`.
SLOW = [pytest.param(kind, marks=pytest.mark.servers) for kind in ("postgres", "pgbouncer", "pool", "redis_client")]
SERVERS = ["redis", *SLOW]
KINDS = ["memory", "sqlite", *SERVERS]


@pytest.fixture
async def open_store(request: pytest.FixtureRequest) -> AsyncIterator[OpenLeaseStore]:
    """Opens a store of the kind that the test is for, in an empty database."""
    async with opened(request.param, request) as open_one:
        yield open_one


@asynccontextmanager
async def opened(kind: str, request: pytest.FixtureRequest) -> AsyncIterator[OpenLeaseStore]:
    if kind == "memory":
        memory = MemoryOffsets()
        yield lambda: memory
    elif kind == "sqlite":
        path = request.getfixturevalue("tmp_path") / "deep" / "offsets.db"
        yield lambda: SQLiteOffsets(path)
    elif kind in {"postgres", "pgbouncer"}:
        pytest.importorskip("asyncpg")
        dsn = request.getfixturevalue("postgres_dsn" if kind == "postgres" else "pgbouncer_dsn")
        yield lambda: PostgresOffsets(dsn)
    elif kind == "pool":
        # As an application has it that has not thought of PgBouncer: with a cache of statements.
        asyncpg = pytest.importorskip("asyncpg")
        dsn = request.getfixturevalue("pgbouncer_dsn")
        async with asyncpg.create_pool(dsn, min_size=0, max_size=6) as pool:
            yield lambda: PostgresOffsets(pool)
    else:
        redis = pytest.importorskip("redis.asyncio")
        url = request.getfixturevalue("redis_url")
        if kind == "redis":
            yield lambda: RedisOffsets(url)
        else:
            async with redis.from_url(url, decode_responses=True) as client:
                yield lambda: RedisOffsets(client)


@pytest.mark.parametrize("open_store", SERVERS, indirect=True)
async def test_every_server_keeps_the_promises_of_positions(open_store: OpenLeaseStore) -> None:
    for check in CHECKS:
        await check(open_store)


@pytest.mark.parametrize("open_store", KINDS, indirect=True)
async def test_every_store_keeps_the_promises_of_leases(open_store: OpenLeaseStore) -> None:
    async with asyncio.TaskGroup() as tasks:  # they use different names
        for check in LEASE_CHECKS:
            tasks.create_task(run(check, open_store))


async def run(check: LeaseCheck, open_store: OpenLeaseStore) -> None:
    await check(open_store)


@pytest.mark.servers
@pytest.mark.parametrize(
    ("kind", "kill"),
    [("postgres", False), ("pgbouncer", True), ("pool", True), ("redis", True), ("redis_client", False)],
)
async def test_a_restart_of_the_server_in_the_middle_is_waited_for(
    kind: str, kill: bool, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue("redis_server" if kind.startswith("redis") else "postgres")
    async with opened(kind, request) as open_one:
        store = open_one()
        token = (await store.take(NAME, "a", 1, 600.0))[0]
        restart = asyncio.create_task(asyncio.to_thread(lambda: server.restart(kill=kill)))
        number = 0
        while not restart.done():
            number += 1
            assert await store.save_held(NAME, 0, "a", token, {0: Position(number)})
            await store.save(NAME, {1: Position(number)})
        await restart
        assert await store.load(NAME) == {0: Position(number), 1: Position(number)}
        assert await store.renew(NAME, "a", 600.0) == {0: token}


@pytest.mark.parametrize("open_store", KINDS, indirect=True)
async def test_no_cancellation_is_lost_at_any_moment_and_the_store_works_on(open_store: OpenLeaseStore) -> None:
    store: Any = open_store()
    async with store if hasattr(store, "__aenter__") else nullcontext():
        await store.take(NAME, "a", 1, 600.0)
        for turns in range(60):
            task = asyncio.create_task(store.renew(NAME, "a", 600.0))
            for _ in range(turns // 3):
                await asyncio.sleep(0)
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert await store.renew(NAME, "a", 600.0) == {0: 1}


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["postgres", "redis"])
async def test_a_server_that_is_away_for_longer_is_an_error_that_names_it(
    kind: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    server: Server = request.getfixturevalue("redis_server" if kind == "redis" else "postgres")
    address: str = request.getfixturevalue("redis_url" if kind == "redis" else "postgres_dsn")
    pytest.importorskip("redis" if kind == "redis" else "asyncpg")
    secret = address.replace("://", "://:hidden@").replace(":hidden@postgres@", "postgres:hidden@")
    store = RedisOffsets(secret, timeout=0.2) if kind == "redis" else PostgresOffsets(secret, timeout=0.2)
    await asyncio.to_thread(server.stop)
    try:
        for _ in range(2):
            with pytest.raises(StreamError, match=rf"127.0.0.1:{server.port}/.*does not answer.*see whether") as caught:
                await store.load(NAME)
    finally:
        await asyncio.to_thread(server.start)
    (warning,) = caplog.messages  # one for the whole outage, before the wait
    assert warning.endswith("trying again")
    assert "hidden" not in f"{caught.value}{store!r}{warning}"


@pytest.mark.servers
async def test_a_host_that_stands_still_within_a_transaction_keeps_no_part_from_others(pgbouncer_dsn: str) -> None:
    """Only a user's pool has transactions, and only as long as something happens in them."""
    asyncpg: Any = pytest.importorskip("asyncpg")
    standing = asyncio.Event()

    class Standing(asyncpg.Connection):  # type: ignore[misc]
        async def execute(self, query: str, *args: Any, **options: Any) -> Any:
            if query.startswith("COMMIT"):
                standing.set()
                await asyncio.Event().wait()
            return await super().execute(query, *args, **options)

    store = PostgresOffsets(pgbouncer_dsn)
    await store.load(NAME)  # creates the tables
    async with asyncpg.create_pool(pgbouncer_dsn, min_size=0, connection_class=Standing) as pool:
        taking = asyncio.create_task(PostgresOffsets(pool, timeout=0.6).take(NAME, "a", 1, 600.0))
        await standing.wait()
        assert await store.take(NAME, "b", 1, 600.0) == {0: 1}
        with pytest.raises(StreamError):
            await taking


@pytest.mark.servers
async def test_tables_made_before_need_no_right_to_create_them(postgres: Postgres, postgres_dsn: str) -> None:
    pytest.importorskip("asyncpg")
    database = postgres_dsn.rpartition("/")[2]
    await PostgresOffsets(postgres_dsn).take(NAME, "a", 1, 60.0)
    user = f"reader_{database}"
    for statement in (
        f"CREATE ROLE {user} LOGIN",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {user}",
    ):
        await asyncio.to_thread(postgres.execute, statement, database)
    store = PostgresOffsets(postgres_dsn.replace("postgres@", f"{user}@"))
    await store.save(NAME, {0: Position(1)})
    assert await store.load(NAME) == {0: Position(1)}
    await asyncio.to_thread(postgres.execute, f"REVOKE SELECT ON wme_offsets FROM {user}", database)
    with pytest.raises(StreamError, match=r"PostgreSQL at 127.0.0.1.*reports an error"):
        await store.load(NAME)


@pytest.mark.servers
async def test_many_hosts_that_begin_together_create_the_tables_once(postgres_dsn: str) -> None:
    pytest.importorskip("asyncpg")
    async with asyncio.TaskGroup() as tasks:
        loads = [tasks.create_task(PostgresOffsets(postgres_dsn).load(NAME)) for _ in range(8)]
    assert [load.result() for load in loads] == [{}] * 8


@pytest.mark.parametrize("kind", [SLOW[0], "redis"])
async def test_connections_last_as_long_as_the_store_is_used(kind: str, request: pytest.FixtureRequest) -> None:
    async with opened(kind, request) as open_one:
        store: Any = open_one()

        async def connections() -> int:
            if kind == "postgres":
                server: Postgres = request.getfixturevalue("postgres")
                count = "SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = current_database()"
                asyncpg = pytest.importorskip("asyncpg")
                watching = await asyncpg.connect(request.getfixturevalue("postgres_dsn"))
                assert server.port
                try:
                    return int(await watching.fetchval(count))
                finally:
                    await watching.close()
            redis = pytest.importorskip("redis.asyncio")
            async with redis.from_url(request.getfixturevalue("redis_url")) as client:
                database = request.getfixturevalue("redis_url").rpartition("/")[2]
                return len([one for one in await client.client_list() if one["db"] == database]) - 1

        async with store, store:
            await store.save(NAME, {0: Position(1)})
            assert await connections() == 1
        async with asyncio.timeout(20):
            while await connections():
                pass
        await store.load(NAME)  # outside of a block it is opened for one call
        async with asyncio.timeout(20):
            while await connections():
                pass


async def test_redis_that_may_forget_positions_is_warned_of(
    redis_server: Server, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    redis = pytest.importorskip("redis.asyncio")
    async with redis.from_url(redis_url) as client:
        store = RedisOffsets(redis_url)
        await store.load(NAME)
        await store.load(NAME)
        assert not caplog.records
        await client.config_set("maxmemory-policy", "allkeys-lru")
        await client.config_set("appendonly", "no")
        try:
            store = RedisOffsets(redis_url)
            await store.load(NAME)
            await store.load(NAME)
        finally:
            await client.config_set("maxmemory-policy", "noeviction")
            await client.config_set("appendonly", "yes")
            async with asyncio.timeout(30):
                while (await client.info("persistence"))["aof_rewrite_in_progress"]:
                    pass
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "maxmemory-policy allkeys-lru" in messages[0]
    assert "set appendonly yes" in messages[1]


async def test_leases_in_a_file_end_with_the_boot_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteOffsets(tmp_path / "offsets.db")
    for boot, token in (("one", 1), ("two", 2), (None, 3), (None, None)):
        monkeypatch.setattr("wme_async.offsets.sqlite.boot_id", lambda boot=boot: boot)
        taken = await store.take(NAME, "a", 1, 600.0)
        assert taken == ({} if token is None else {0: token})
    assert await store.members(NAME) == ["a"]


async def test_keys_of_a_name_lie_in_one_slot_and_something_else_there_is_an_error(redis_url: str) -> None:
    redis = pytest.importorskip("redis.asyncio")
    store = RedisOffsets(redis_url)
    await store.save("in {braces}/articles", {0: Position(1)})
    await store.take("in {braces}/articles", "a", 1, 60.0)
    async with redis.from_url(redis_url) as client:
        keys = await client.keys()
        assert len(keys) == 3
        assert len({key[: key.index(b"}") + 1] for key in keys}) == 1
        await client.hset(next(key for key in keys if key.endswith(b"positions")), "0", "no position")
    with pytest.raises(DataError, match=r"does not hold positions.*delete it"):
        await store.load("in {braces}/articles")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PostgresOffsets("mysql://host/db"), ValueError, "postgresql://user"),
        (
            lambda: PostgresOffsets("postgres://user:hidden@host:port/db"),
            ValueError,
            "the port in the URL of PostgreSQL",
        ),
        (lambda: RedisOffsets("redis://host:70000"), ValueError, "the port in the URL of Redis"),
        (lambda: PostgresOffsets(7), TypeError, "a URL or an asyncpg pool, not 7"),
        (lambda: PostgresOffsets("postgres://host/db", timeout=0), ValueError, "timeout must be"),
        (lambda: RedisOffsets("http://host"), ValueError, "redis://:password"),
        (lambda: RedisOffsets(None), TypeError, "a URL or a client of redis.asyncio, not None"),
        (lambda: RedisOffsets("redis://host", timeout=cast("Any", "1")), TypeError, "timeout must be"),
        (lambda: MemoryOffsets(clock=cast("Any", 3.0)), TypeError, "clock must be a function"),
    ],
)
def test_a_wrong_argument_is_an_error_at_once(make: Callable[[], object], error: type[Exception], message: str) -> None:
    pytest.importorskip("asyncpg")
    pytest.importorskip("redis")
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", ["PostgresOffsets", "RedisOffsets"])
def test_a_missing_extra_says_what_to_install(name: str) -> None:
    code = f"""
import sys
sys.modules["asyncpg"] = sys.modules["redis"] = None
from wme_async.offsets import {name}
try:
    {name}("postgresql://x" if "Post" in "{name}" else "redis://x")
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"pip install 'wme-async[{name.removesuffix('Offsets').lower()}]'" in result.stdout


@pytest.mark.parametrize("open_store", KINDS, indirect=True)
async def test_wrong_arguments_of_leases_are_errors(open_store: OpenLeaseStore) -> None:
    store = open_store()
    for owner, parts, ttl, error in (
        ("", 10, 1.0, ValueError),
        (7, 10, 1.0, TypeError),
        (None, 10, 1.0, TypeError),
        ("a", 0, 1.0, ValueError),
        ("a", 1.5, 1.0, TypeError),
        ("a", 10, 0, ValueError),
        ("a", 10, float("inf"), ValueError),
    ):
        with pytest.raises(error):
            await store.take(NAME, owner, parts, ttl)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await store.save_held(NAME, 0, "a", 1, {0: 5})  # type: ignore[dict-item]


class Faulty(MemoryOffsets):
    """A store of leases with one fault, to see that the suite finds it."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.tokens: dict[tuple[str, int], int] = {}

    async def take(self, name: str, owner: str, parts: int, ttl: float) -> Mapping[int, int]:
        name = name.lower() if self.fault == "names" else name
        if self.fault == "greedy":
            await self.give(name, "a")
        taken = dict(await super().take(name, owner, parts, ttl))
        if self.fault == "tokens":
            return dict.fromkeys(taken, 1)
        return dict(list(taken.items())[:3]) if self.fault == "lazy" else taken

    async def renew(self, name: str, owner: str, ttl: float) -> Mapping[int, int]:
        held = await super().renew(name, owner, 0.01 if self.fault == "no renewal" else ttl)
        if self.fault == "late renewal" and not held:
            return await super().take(name, owner, 2, ttl)
        return held

    async def members(self, name: str) -> Sequence[str]:
        members = await super().members(name)
        return members[::-1] if self.fault == "order" else members

    async def save_held(self, name: str, part: int, owner: str, token: int, positions: Mapping[int, Position]) -> bool:
        held = await super().save_held(name, part, owner, token, positions)
        if not held and self.fault == "unfenced":
            await self.save(name, positions)
        if not held and self.fault == "owner alone":
            held = (await self.renew(name, owner, 600.0)).get(part) is not None
        return held or self.fault == "says yes"

    async def give(self, name: str, owner: str, parts: Collection[int] | None = None) -> None:
        if self.fault == "keeps":
            return
        await super().give(name, "a" if self.fault == "gives for others" else owner, parts)
        if self.fault == "forgets":
            await self.save(name, {0: Position(-1)})


FAULTS = ["names", "greedy", "tokens", "lazy", "no renewal", "late renewal", "order", "unfenced"]
FAULTS += ["owner alone", "says yes", "keeps", "gives for others", "forgets"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_suite_finds_each_fault_of_leases(fault: str) -> None:
    store = Faulty(fault)
    with pytest.raises(AssertionError):
        await check_all(lambda: store)


@pytest.mark.parametrize("kind", [SLOW[0], "redis"])
async def test_the_hourly_feed_keeps_its_place_on_a_server(
    kind: str, sim: Simulator, wme: Client, request: pytest.FixtureRequest
) -> None:
    async with opened(kind, request) as open_one:
        hours: list[str] = []
        for _ in range(2):
            async with wme.hours(since="-4h", offsets=open_one(), poll=0.01) as feed:
                hours.append(repr(await anext(feed)))
                await anext(feed)
        assert len(set(hours)) == 2
