"""The PostgreSQL store of a mirror: the conformance suite, restarts of the server, and what may be wrong with it."""

import asyncio
import itertools

import pytest

pytest.importorskip("asyncpg")

from mirror_world import IDENTIFIER, copy_of, differences, index_of, running, service, titles_of, until_equal
from real_servers import Postgres

from wme_async import DataError
from wme_async.mirror import Marks, Mirror, MirrorReader, PostgresStore
from wme_async.mirror.conformance import CHECKS
from wme_async.mirror.rule import Page, Picture

pytestmark = pytest.mark.servers

numbers = itertools.count(1)


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    """The address of a database for all tests; each has a schema of its own."""
    return f"postgresql://postgres@127.0.0.1:{postgres.port}/{postgres.new_database()}"


@pytest.fixture
def schema() -> str:
    return f"mirror_{next(numbers)}"


def pages(*titles: str) -> Picture:
    return Picture(
        Page(
            project="testwiki", title=title, page_id=number, revision=1, created=5, published=6, digest=b"12345678",
            record=b'{"name":"A"}' * 9,
        )
        for number, title in enumerate(titles, 1)
    )  # fmt: skip


async def titles_in(store: PostgresStore) -> set[str]:
    return {key[1] async for keys in store.keys() for key in keys}  # noqa: SIM118 - not a dict


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_store_conforms(check, database: str, schema: str) -> None:
    await check(lambda: PostgresStore(database, schema=schema))


async def test_two_mirrors_in_one_database_do_not_mix(database: str) -> None:
    stores = [PostgresStore(database, schema=f"mirror_{next(numbers)}") for _ in range(2)]
    for number, store in enumerate(stores):
        await store.open()
        await store.apply(pages(f"Of {number}"), Marks())
    assert [await titles_in(store) for store in stores] == [{"Of 0"}, {"Of 1"}]
    for store in stores:
        await store.close()


@pytest.mark.parametrize("kill", [False, True])
async def test_a_restart_of_the_server_is_waited_out(
    postgres: Postgres, database: str, schema: str, kill: bool
) -> None:
    store = PostgresStore(database, schema=schema)
    await store.open()
    await store.apply(pages("A"), Marks(values={"positions": {"1": "a"}}))
    postgres_down = asyncio.Event()

    def restart() -> None:
        postgres.kill() if kill else postgres.stop()
        loop.call_soon_threadsafe(postgres_down.set)
        postgres.start()

    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(restart))
        await postgres_down.wait()
        applied = await store.apply(pages("A", "B"), Marks(values={"positions": {"1": "b"}}))
        assert (applied.rows, applied.seq) == (1, 2)
        assert await titles_in(store) == {"A", "B"}
    assert await store.value("positions", "1") == "b"
    # The lock is held again.
    with pytest.raises(BlockingIOError, match="another mirror writes"):
        await PostgresStore(database, schema=schema, timeout=0.3).open()
    await store.close()
    await PostgresStore(database, schema=schema).close()
    assert (await reopened(database, schema)).seq == 2


async def reopened(database: str, schema: str):
    store = PostgresStore(database, schema=schema)
    try:
        return await store.open()
    finally:
        await store.close()


async def test_a_mirror_in_postgresql_equals_the_wiki_over_a_restart(
    postgres: Postgres, database: str, schema: str
) -> None:
    def mirror(wme) -> Mirror:
        return Mirror(wme, IDENTIFIER, PostgresStore(database, schema=schema), poll=0.02)

    async with service() as (world, _, wme):
        async with mirror(wme) as first, running(first):
            await until_equal(first, world)
            index = await index_of(first, "index", {})
        titles = sorted(world.truth("enwiki").pages)
        world.edit("enwiki", titles[0])
        world.move("enwiki", titles[1], "Moved", redirect=False)
        world.delete("enwiki", titles[2])
        world.advance(20)
        async with mirror(wme) as second, running(second):
            await asyncio.to_thread(lambda: postgres.restart(kill=True))
            await until_equal(second, world)
            world.advance(600)
            world.edit("enwiki", titles[3])
            world.advance(20)
            await until_equal(second, world)
            article = await second.get("Moved")
            assert article is not None
            assert article.name == "Moved"
        async with MirrorReader(PostgresStore(database, schema=schema)) as reader:
            assert not differences(await copy_of(reader), world)
            assert titles_of(await index_of(reader, "index", index)) == await copy_of(reader)
            statistics = await reader.statistics()
            assert statistics.bytes is not None
            assert statistics.bytes > 100_000


async def test_a_server_that_does_not_answer_is_an_error_with_its_name(
    schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(OSError, match=rf"PostgreSQL at 127.0.0.1:9/x, schema {schema} does not answer") as caught:
        await PostgresStore("postgresql://u:secret@127.0.0.1:9/x", schema=schema, timeout=0.2).open()
    (warning,) = caplog.messages  # before the wait
    assert "does not answer" in warning
    assert warning.endswith("trying again")
    assert "secret" not in f"{caught.value} {warning}"


async def test_a_store_to_be_read_has_to_exist(database: str, schema: str) -> None:
    with pytest.raises(FileNotFoundError, match="has no mirror"):
        await PostgresStore(database, schema=schema).open(writing=False)


async def test_an_error_of_the_server_is_an_oserror(database: str, schema: str) -> None:
    with pytest.raises(OSError, match="reports an error"):
        await PostgresStore(database.rpartition("/")[0] + "/nowhere", schema=schema).open()


async def test_tables_that_were_dropped_or_have_another_version_are_a_data_error(
    postgres: Postgres, database: str, schema: str
) -> None:
    name = database.rpartition("/")[2]
    store = PostgresStore(database, schema=schema)
    await store.open()
    await asyncio.to_thread(postgres.execute, f"UPDATE {schema}.format SET version = 99", name)
    with pytest.raises(DataError, match="upgrade wme_async"):
        await PostgresStore(database, schema=schema).open(writing=False)
    await asyncio.to_thread(postgres.execute, f"UPDATE {schema}.format SET version = 0", name)
    with pytest.raises(DataError, match="load the mirror anew"):
        await PostgresStore(database, schema=schema).open(writing=False)
    await asyncio.to_thread(postgres.execute, f"DROP SCHEMA {schema} CASCADE", name)
    with pytest.raises(DataError, match="were dropped"):
        await store.apply(pages("A"), Marks())
    await store.close()


async def test_a_damaged_record_is_a_data_error(postgres: Postgres, database: str, schema: str) -> None:
    store = PostgresStore(database, schema=schema, codec="zlib")
    await store.open()
    picture = pages("A")
    picture.pages["testwiki", "A"].record = b'{"name":"' + b"x" * 3000 + b'"}'
    await store.apply(picture, Marks())
    name = database.rpartition("/")[2]
    await asyncio.to_thread(postgres.execute, f"UPDATE {schema}.records SET record = '\\x00'", name)
    with pytest.raises(DataError, match="record of 'A'"):
        await store.get("testwiki", title="A")
    await store.close()


async def test_pgbouncer_is_refused_since_the_lock_needs_a_session(pgbouncer_dsn: str, schema: str) -> None:
    with pytest.raises(OSError, match="PostgreSQL at"):
        await PostgresStore(pgbouncer_dsn, schema=schema, timeout=0.3).open()


async def test_arguments_are_checked(schema: str) -> None:
    with pytest.raises(ValueError, match="postgresql://"):
        PostgresStore("mysql://x/y")
    with pytest.raises(TypeError, match="database must be text"):
        PostgresStore(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lower-case"):
        PostgresStore("postgresql://x/y", schema="a b")
    with pytest.raises(ValueError, match="codec"):
        PostgresStore("postgresql://x/y", codec="lz4")
    store = PostgresStore("postgresql://u:secret@x/y", schema=schema)
    assert "secret" not in repr(store)
    with pytest.raises(RuntimeError, match="not open"):
        await store.changes(0, 1)
    with pytest.raises(RuntimeError, match="not open"):
        await store.apply(Picture(), Marks())
