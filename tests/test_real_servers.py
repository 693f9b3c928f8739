"""The servers that tests use: each test has an empty database, and a restart keeps address and data."""

import asyncio

import pytest
from real_servers import Postgres, Server

pytestmark = pytest.mark.servers


@pytest.mark.parametrize("kill", [False, True])
async def test_postgresql_keeps_its_data_over_a_restart(postgres: Postgres, postgres_dsn: str, kill: bool) -> None:
    asyncpg = pytest.importorskip("asyncpg")
    database = postgres_dsn.rpartition("/")[2]
    await asyncio.to_thread(postgres.execute, "CREATE TABLE numbers AS SELECT 7 AS number", database)
    await asyncio.to_thread(lambda: postgres.restart(kill=kill))
    connection = await asyncpg.connect(postgres_dsn)
    try:
        assert await connection.fetchval("SELECT number FROM numbers") == 7
    finally:
        await connection.close()


async def test_pgbouncer_gives_transactions_other_connections(pgbouncer: Server, pgbouncer_dsn: str) -> None:
    asyncpg = pytest.importorskip("asyncpg")
    connections = [await asyncpg.connect(pgbouncer_dsn, statement_cache_size=0) for _ in range(3)]
    try:
        processes: set[int] = set()
        for _ in range(4):
            async with asyncio.TaskGroup() as tasks:
                asked = [
                    tasks.create_task(one.fetchval("SELECT pg_backend_pid() FROM pg_sleep(0.01)"))
                    for one in connections
                ]
            processes.update(task.result() for task in asked)
            first = await connections[0].fetchval("SELECT pg_backend_pid()")
            processes.add(first)
        assert len(processes) >= 3
    finally:
        for connection in connections:
            await connection.close()


@pytest.mark.parametrize("kill", [False, True])
async def test_redis_keeps_its_data_over_a_restart(redis_server: Server, redis_url: str, kill: bool) -> None:
    redis = pytest.importorskip("redis.asyncio")
    async with redis.from_url(redis_url) as client:
        assert await client.dbsize() == 0
        await client.set("number", 7)
    await asyncio.to_thread(lambda: redis_server.restart(kill=kill))
    async with redis.from_url(redis_url) as client:
        assert await client.get("number") == b"7"


async def test_nats_has_streams(nats_server: Server, nats_url: str) -> None:
    nats = pytest.importorskip("nats")
    client = await nats.connect(nats_url, reconnect_time_wait=0.01)
    try:
        jetstream = client.jetstream()
        await jetstream.add_stream(name="numbers", subjects=["numbers.>"])
        await jetstream.publish("numbers.one", b"7")
        await asyncio.to_thread(nats_server.restart)
        message = await jetstream.get_last_msg("numbers", "numbers.one")
        assert message.data == b"7"
    finally:
        await client.close()
