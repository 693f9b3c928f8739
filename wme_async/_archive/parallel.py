"""Many archives at once, in worker processes."""

import asyncio
import contextlib
import inspect
import multiprocessing
import os
import pickle
import signal
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import msgspec

from wme_async._archive.reader import ArchiveReader, ArchiveStatistics, OnBadRecord
from wme_async._arguments import check_functions, check_numbers, check_path
from wme_async._tasks import WorkGroup, first_cause, in_thread, wait_done
from wme_async.errors import WMEError
from wme_async.models.decoding import is_plain_data

__all__ = ["ManyReader", "ManyResult"]

R = TypeVar("R")

_HEAD: Final = struct.Struct(">cQ")  # kind and length of what follows
_AHEAD: Final = 2 * 1024 * 1024  # bytes of a worker that may wait in this process
_NOT_OPEN: Final = "the archives are not open: use `async with`"
_PACKED, _PICKLED, _BAD, _DONE, _FAILED = b"m", b"p", b"b", b"d", b"e"


class ManyResult(msgspec.Struct, Generic[R], frozen=True):
    """Something that a worker process has to tell.

    Attributes:
        path: The archive.
        records: A list of records of one member, in their order, or what `each` made of it. Empty in the last result.
        statistics: Set in the last result of an archive, which proved whole.
    """

    path: str
    records: list[R]
    statistics: ArchiveStatistics | None = None


class _Job(msgspec.Struct, frozen=True):
    """What a worker process is told once."""

    type: Any
    each: Callable[[list[Any]], list[Any]] | None
    count_only: bool
    report_bad: bool
    options: dict[str, Any]


class ManyReader(Generic[R]):
    """An async context manager and an async iterator of `ManyResult`; made by `read_many`."""

    def __init__(
        self,
        paths: "Iterable[str | os.PathLike[str]]",
        *,
        type: Any,
        each: Callable[[list[Any]], list[R]] | None,
        count_only: bool,
        workers: int | None,
        on_bad_record: OnBadRecord,
        **options: Any,
    ) -> None:
        if isinstance(paths, str | os.PathLike):
            raise TypeError(f"paths must be a list of paths, such as [{paths!r}], not one path")
        given: object = paths
        if isinstance(given, bytes) or not isinstance(given, Iterable):
            raise TypeError(f"paths must be a list of paths, not {paths!r}")
        names = []
        for path in paths:
            check_path("each of paths", path)
            names.append(os.fspath(path))
        check_numbers(whole=True, workers=workers)
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be a number of processes above 0, not {workers}")
        check_functions(each=each)
        if each is not None and count_only:
            raise ValueError("with count_only nothing is there for `each` to see")
        report = callable(on_bad_record)
        # The reader checks the rest, here rather than in the worker.
        ArchiveReader("-", type=type, on_bad_record=on_bad_record, **options)
        options["on_bad_record"] = "skip" if report else on_bad_record
        self._job = _Job(type, each, count_only, report, options)
        for name, given in (("type", type), ("each", each)):
            try:
                pickle.dumps(given)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise TypeError(
                    f"{name} must stand at the top of a module, where worker processes find it, not {given!r}"
                ) from error
        self._on_bad_record = on_bad_record
        self._workers = min(len(names), workers or os.cpu_count() or 1)
        self._paths: Iterator[str] = iter(names)
        self._decoder = msgspec.msgpack.Decoder(list[type])
        self._results: asyncio.Queue[ManyResult[R] | BaseException | None] = asyncio.Queue(max(1, self._workers))
        self._task: asyncio.Task[None] | None = None
        self._over: BaseException | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        """Start the workers.

        Raises:
            RuntimeError: It was entered before.
        """
        if self._task is not None or self._closed:
            raise RuntimeError("archives can be read once: call read_many again")
        self._task = asyncio.get_running_loop().create_task(self._run(), name="read many archives")
        return self

    async def __aexit__(
        self, kind: "type[BaseException] | None", error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the workers that are still at work, and wait for them."""
        self._closed = True
        try:
            if self._task is not None:
                self._task.cancel()
                await wait_done(self._task)
        finally:
            if self._results.empty():
                self._results.put_nowait(RuntimeError(_NOT_OPEN))  # for a task that still waits

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ManyResult[R]:
        """Return the next result of any worker.

        Raises:
            ArchiveError: An archive is damaged, cut short, or none.
            DecodeError: A bad record, if `on_bad_record` is `raise`.
            OSError: An archive cannot be read.
            WMEError: A worker process died.
            RuntimeError: Not open.
        """
        if self._closed or self._task is None:
            raise RuntimeError(_NOT_OPEN)
        if self._over is None:
            result = await self._results.get()
            if isinstance(result, ManyResult):
                return result
            self._over = StopAsyncIteration() if result is None else result
            self._results.put_nowait(result)  # for the other tasks that wait, if there are any
        raise self._over

    async def _run(self) -> None:
        """Run the workers, and tell how it ended; an error of one ends all."""
        end: BaseException | None = None
        try:
            async with WorkGroup() as group:
                for _ in range(self._workers):
                    group.start(self._serve())
        except BaseExceptionGroup as errors:
            end = first_cause(errors)
        await self._results.put(end)

    async def _serve(self) -> None:
        """Keep one worker process at work until no path is left."""
        path = next(self._paths, None)
        if path is None:
            return
        ours, theirs = socket.socketpair()
        process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(theirs, self._job), name="wme_async read_many", daemon=True
        )
        try:
            with theirs:
                await in_thread(process.start)
            reader, writer = await asyncio.open_connection(sock=ours, limit=_AHEAD)
            try:
                while path is not None:
                    writer.write(path.encode("utf-8", "surrogateescape") + b"\0")
                    await self._receive(path, reader)
                    path = next(self._paths, None)
            except _GoneError:
                await in_thread(process.join)
                code = process.exitcode
                raise WMEError(f"a worker process died (exit code {code}) while it read {path}") from None
            finally:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
        finally:
            ours.close()
            if process.pid is not None:
                process.kill()
                try:
                    await in_thread(process.join)
                finally:
                    process.close()

    async def _receive(self, path: str, reader: asyncio.StreamReader) -> None:
        while True:
            kind, data = await _frame(reader)
            if kind == _PACKED:
                await self._results.put(ManyResult(path, self._decoder.decode(data)))
                continue
            found = pickle.loads(data)  # noqa: S301 - of a process that this one has started
            if kind == _PICKLED:
                await self._results.put(ManyResult(path, found))
            elif kind == _BAD:
                assert callable(self._on_bad_record)
                answer = self._on_bad_record(found)
                if inspect.isawaitable(answer):
                    await answer
            elif kind == _DONE:
                await self._results.put(ManyResult(path, [], found))
                return
            else:
                raise found


class _GoneError(Exception):
    """The process at the other end is gone. Errors of connections may also be those of the user's own functions."""


async def _frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Receive what `_send` sent: its kind and the bytes."""
    try:
        kind, length = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        return kind, await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        raise _GoneError from None


def _work(connection: socket.socket, job: _Job) -> None:
    """Be a worker process: read paths, one at a time, and tell what comes of them."""
    for name in ("SIGINT", "SIGHUP"):  # a terminal sends them to the parent too, which kills this process
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    connection.settimeout(None)  # sockets come non-blocking from a process with an event loop
    with connection, connection.makefile("rb") as requests, contextlib.suppress(_GoneError):
        while path := _until_zero(requests):
            try:
                statistics = asyncio.run(_read(connection, path, job))
            except _GoneError:
                raise  # nobody listens any more
            except Exception as error:  # noqa: BLE001 - it is raised in the parent
                _send(connection, _FAILED, _pickled(error))
            else:
                _send(connection, _DONE, pickle.dumps(statistics))


def _until_zero(requests: Any) -> str:
    name = b""
    while (byte := requests.read(1)) not in {b"", b"\0"}:
        name += byte
    return name.decode("utf-8", "surrogateescape")


async def _read(connection: socket.socket, path: str, job: _Job) -> ArchiveStatistics:
    options = dict(job.options)
    if job.report_bad:
        options["on_bad_record"] = lambda error: _send(connection, _BAD, pickle.dumps(error))
    pack = None if job.each is not None or not is_plain_data(job.type) else msgspec.msgpack.Encoder().encode
    async with ArchiveReader(path, type=job.type, **options) as reader:
        async for records in reader.batches():
            if job.count_only:
                continue
            if pack is not None:
                _send(connection, _PACKED, pack(records))
            elif made := records if job.each is None else job.each(records):
                _send(connection, _PICKLED, pickle.dumps(made, pickle.HIGHEST_PROTOCOL))
        return reader.statistics()


def _send(connection: socket.socket, kind: bytes, data: bytes) -> None:
    """Send a frame; it waits while the parent does not read, which bounds what lies between the two."""
    try:
        connection.sendall(_HEAD.pack(kind, len(data)))
        connection.sendall(data)
    except ConnectionError:
        raise _GoneError from None


def _pickled(error: Exception) -> bytes:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)  # noqa: S301 - just made; some exceptions pickle and do not come back
    except Exception:  # noqa: BLE001 - whatever a foreign exception does
        return pickle.dumps(WMEError(f"{type(error).__name__} in a worker process: {error}"))
    return data
