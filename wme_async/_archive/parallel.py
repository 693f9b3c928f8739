"""Reads many archives at once in worker processes."""

import asyncio
import contextlib
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
from wme_async._arguments import check_functions, check_numbers, check_path, list_of
from wme_async._tasks import WorkGroup, call_hook, end_task, first_cause, in_thread
from wme_async.errors import WMEError
from wme_async.models.decoding import is_plain_data

R = TypeVar("R")

FRAME_HEADER: Final = struct.Struct(">cQ")  # kind of a frame and length of its data
_BUFFER: Final = 2 * 1024 * 1024  # bytes of a worker's frames that this process buffers
_NOT_OPEN: Final = "the archives are not open: use `async with`"
PACKED, PICKLED, BAD_RECORD, DONE, FAILED = b"m", b"p", b"b", b"d", b"e"


class ManyResult(msgspec.Struct, Generic[R], frozen=True):
    """A list of records, or the end of an archive.

    Attributes:
        path: The archive.
        records: Records of one member in their order, or the result of `each` for them. Empty in the last result.
        statistics: Set in the last result of an archive, which is then complete.
    """

    path: str
    records: list[R]
    statistics: ArchiveStatistics | None = None


class WorkerTask(msgspec.Struct, frozen=True):
    """The arguments of a worker process."""

    type: Any
    each: Callable[[list[Any]], list[Any]] | None
    count_only: bool
    report_bad: bool
    options: dict[str, Any]


class ManyReader(Generic[R]):
    """An async context manager and an async iterator of `ManyResult`; `read_many` creates it."""

    def __init__(
        self,
        paths: "Iterable[str | os.PathLike[str]]",
        *,
        type: Any,
        each: Callable[[list[Any]], list[R]] | None = None,
        count_only: bool = False,
        workers: int | None = None,
        on_bad_record: OnBadRecord = "raise",
        **options: Any,
    ) -> None:
        if isinstance(paths, os.PathLike):
            raise TypeError(f"paths must be a list of paths, such as [{paths!r}], not one path")
        names = []
        for path in list_of("paths", paths, "paths"):
            check_path("an item of paths", path)
            names.append(os.fspath(path))
        check_numbers(whole=True, minimum=1, workers=workers)
        check_functions(each=each)
        if each is not None and count_only:
            raise ValueError("each has no records to work on with count_only; leave one of the two out")
        report = callable(on_bad_record)
        # The reader checks the other options here, rather than in the worker.
        ArchiveReader("-", type=type, on_bad_record=on_bad_record, **options)
        options["on_bad_record"] = "skip" if report else on_bad_record
        self._worker_task = WorkerTask(type, each, count_only, report, options)
        for name, value in (("type", type), ("each", each)):
            try:
                pickle.dumps(value)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise TypeError(
                    f"{name} must be at the top level of a module, where worker processes find it, not {value!r}"
                ) from error
        self._on_bad_record = on_bad_record
        self._workers = min(len(names), workers or os.cpu_count() or 1)
        self._paths: Iterator[str] = iter(names)
        self._decoder = msgspec.msgpack.Decoder(list[type])
        self._results: asyncio.Queue[ManyResult[R] | BaseException | None] = asyncio.Queue(max(1, self._workers))
        self._task: asyncio.Task[None] | None = None
        self._end: BaseException | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        """Start the workers.

        Raises:
            RuntimeError: It was entered before.
        """
        if self._task is not None or self._closed:
            raise RuntimeError("the archives can be read once: call read_many again")
        self._task = asyncio.get_running_loop().create_task(self._run(), name="read many archives")
        return self

    async def __aexit__(
        self, kind: "type[BaseException] | None", error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the remaining workers, and wait for them."""
        self._closed = True
        try:
            if self._task is not None:
                await end_task(self._task)
        finally:
            if self._results.empty():
                self._results.put_nowait(RuntimeError(_NOT_OPEN))  # for a task that waits

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ManyResult[R]:
        """Return the next result of any worker.

        Raises:
            ArchiveError: An archive is damaged, cut short, or not an archive.
            DecodeError: A bad record, if `on_bad_record` is `raise`.
            OSError: An archive cannot be read.
            WMEError: A worker process died.
            RuntimeError: Not open.
        """
        if self._closed or self._task is None:
            raise RuntimeError(_NOT_OPEN)
        if self._end is None:
            result = await self._results.get()
            if isinstance(result, ManyResult):
                return result
            self._end = StopAsyncIteration() if result is None else result
            self._results.put_nowait(result)  # for other tasks that wait
        raise self._end

    async def _run(self) -> None:
        """Run the workers and queue their end; the error of one ends all."""
        end: BaseException | None = None
        try:
            async with WorkGroup() as group:
                for _ in range(self._workers):
                    group.start(self._serve())
        except BaseExceptionGroup as errors:
            end = first_cause(errors)
        await self._results.put(end)

    async def _serve(self) -> None:
        """Give paths to one worker process until there are no more."""
        path = next(self._paths, None)
        if path is None:
            return
        local, remote = socket.socketpair()
        import multiprocessing  # noqa: PLC0415  # seldom needed, and slow to import

        process = multiprocessing.get_context("spawn").Process(
            target=run_worker, args=(remote, self._worker_task), name="wme_async read_many", daemon=True
        )
        try:
            with remote:
                await in_thread(process.start)
            reader, writer = await asyncio.open_connection(sock=local, limit=_BUFFER)
            try:
                while path is not None:
                    writer.write(path.encode("utf-8", "surrogateescape") + b"\0")
                    await self._receive(path, reader)
                    path = next(self._paths, None)
            except _DisconnectedError:
                await in_thread(process.join)
                raise WMEError(f"a worker process died (exit code {process.exitcode}) while it read {path}") from None
            finally:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
        finally:
            local.close()
            if process.pid is not None:
                process.kill()
                try:
                    await in_thread(process.join)
                finally:
                    process.close()

    async def _receive(self, path: str, reader: asyncio.StreamReader) -> None:
        while True:
            kind, data = await _frame(reader)
            # Only data of a process that this one has started is unpickled.
            value: Any = self._decoder.decode(data) if kind == PACKED else pickle.loads(data)  # noqa: S301
            if kind in {PACKED, PICKLED}:
                await self._results.put(ManyResult(path, value))
            elif kind == BAD_RECORD:
                assert callable(self._on_bad_record)
                await call_hook(self._on_bad_record, value)
            elif kind == DONE:
                await self._results.put(ManyResult(path, [], value))
                return
            else:
                raise value


class _DisconnectedError(Exception):
    """The other process has ended. A ConnectionError could also come from the user's own functions."""


async def _frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Receive a frame of `_send`: its kind and its data."""
    try:
        kind, length = FRAME_HEADER.unpack(await reader.readexactly(FRAME_HEADER.size))
        return kind, await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        raise _DisconnectedError from None


def run_worker(connection: socket.socket, task: WorkerTask) -> None:
    """Run a worker process: read one path after the other, and send the results."""
    for name in ("SIGINT", "SIGHUP"):  # a terminal also sends them to the parent, which kills this process
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    connection.settimeout(None)  # sockets come non-blocking from a process with an event loop
    with connection, connection.makefile("rb") as requests, contextlib.suppress(_DisconnectedError):
        while path := _until_zero(requests):
            try:
                statistics = asyncio.run(_read(connection, path, task))
            except _DisconnectedError:
                raise
            except Exception as error:  # noqa: BLE001 - raised in the parent
                _send(connection, FAILED, _pickled(error))
            else:
                _send(connection, DONE, pickle.dumps(statistics))


def _until_zero(requests: Any) -> str:
    name = b""
    while (byte := requests.read(1)) not in {b"", b"\0"}:
        name += byte
    return name.decode("utf-8", "surrogateescape")


async def _read(connection: socket.socket, path: str, task: WorkerTask) -> ArchiveStatistics:
    options = dict(task.options)
    if task.report_bad:
        options["on_bad_record"] = lambda error: _send(connection, BAD_RECORD, pickle.dumps(error))
    pack = None if task.each is not None or not is_plain_data(task.type) else msgspec.msgpack.Encoder().encode
    async with ArchiveReader(path, type=task.type, **options) as reader:
        async for records in reader.batches():
            if task.count_only:
                continue
            if pack is not None:
                _send(connection, PACKED, pack(records))
            elif result := records if task.each is None else task.each(records):
                _send(connection, PICKLED, pickle.dumps(result, pickle.HIGHEST_PROTOCOL))
        return reader.statistics()


def _send(connection: socket.socket, kind: bytes, data: bytes) -> None:
    """Send a frame; it blocks while the parent does not read, which bounds the data between the two."""
    try:
        connection.sendall(FRAME_HEADER.pack(kind, len(data)))
        connection.sendall(data)
    except ConnectionError:
        raise _DisconnectedError from None


def _pickled(error: Exception) -> bytes:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)  # noqa: S301 - the line above made it; some exceptions pickle and do not unpickle
    except Exception:  # noqa: BLE001 - pickling runs code of the exception's class
        return pickle.dumps(WMEError(f"{type(error).__name__} in a worker process: {error}"))
    return data
