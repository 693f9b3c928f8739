"""Many look-ups at once: bounded, in order or as they complete, with one result or error for each name."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sized
from typing import Any, Final, Generic, Self, TypedDict, TypeVar

import msgspec

from wme_async._arguments import check_flags, check_functions, check_numbers
from wme_async._tasks import WorkGroup, first_cause, is_cancelling, settle
from wme_async.errors import ClientClosed, Forbidden, QuotaExceeded, Unauthorized, WMEError

logger: logging.Logger = logging.getLogger("wme_async.lookup")

T = TypeVar("T")

_END: Final[Any] = object()

# These errors hold for every name: they become the result of all following names without another request.
_FATAL = (Unauthorized, Forbidden, QuotaExceeded)

_REPORT_INTERVAL = 0.2


class Looked(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """The result of one name.

    Attributes:
        name: The name, unchanged.
        records: The records; empty if nothing has this name. Beside an error, the records that could be read.
        error: The reason why the result is missing or incomplete; None without an error.
    """

    name: str
    records: tuple[T, ...] = ()
    error: Exception | None = None

    @property
    def found(self) -> bool:
        """Whether there is at least one record."""
        return bool(self.records)

    @property
    def first(self) -> T | None:
        """The first record, or None."""
        return self.records[0] if self.records else None

    def unwrap(self) -> tuple[T, ...]:
        """Return the records.

        Raises:
            WMEError: The error, if there is one.
            ValueError: No page or entity can have this name.
        """
        if self.error is not None:
            raise self.error
        return self.records


class LookupProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of many look-ups.

    Attributes:
        done: Finished names: the sum of the next three.
        found: Names with at least one record.
        missing: Names without a record.
        failed: Names with an error.
        total: Number of names, or None if it is not known.
        rate: Names a second since the beginning.
        eta: Remaining seconds, or None if they are not known.
    """

    done: int
    found: int
    missing: int
    failed: int
    total: int | None
    rate: float
    eta: float | None


class ConcurrencyOptions(TypedDict, total=False):
    """The options of `Lookups` that callers of `lookup_many` and `get_many` set."""

    concurrency: int
    ordered: bool
    progress: Callable[[LookupProgress], None] | None


class Lookups(Generic[T]):
    """Many look-ups: an async iterator of `Looked`, one for each name.

    Requests start with the first `anext`. At most `concurrency` of them run at a time, and at most twice as many
    results wait for the consumer: a slow consumer slows the requests down. A cancelled wait for the next item loses
    nothing. Leave the loop early inside `async with` (or `contextlib.aclosing`), and all requests have ended when the
    block has; otherwise they are cancelled as soon as the iterator is garbage-collected.

    Example:
        >>> async with wme.articles.lookup_many(titles, concurrency=20) as results:  # doctest: +SKIP
        ...     async for looked in results: ...

    Args:
        names: The names. They are read as requests start, so there may be more of them than fit into memory.
        find: Looks one name up. A `WMEError`, `ValueError` or `TypeError` becomes the error of that name, except
            `ClientClosed`, which ends the iteration as all other exceptions do.
        monotonic: Returns seconds.
        concurrency: Concurrent requests, at least 1.
        ordered: Whether results come in the order of names; otherwise they come as requests complete, which is quicker.
        progress: Called with `LookupProgress` at most five times a second and at the end. It must not block.

    Raises:
        TypeError: `names` is one name, or an option has the wrong type.
        ValueError: `concurrency` is below 1.
    """

    def __init__(
        self,
        names: Iterable[str] | AsyncIterable[str],
        find: Callable[[str], Awaitable[Looked[T]]],
        *,
        monotonic: Callable[[], float],
        concurrency: int = 10,
        ordered: bool = True,
        progress: Callable[[LookupProgress], None] | None = None,
    ) -> None:
        if isinstance(names, str | bytes) or not (hasattr(names, "__iter__") or hasattr(names, "__aiter__")):
            raise TypeError(f"names must be an iterable of names, such as a list, not {names!r}")
        check_numbers(whole=True, optional=False, minimum=1, concurrency=concurrency)
        check_flags(ordered=ordered)
        check_functions(progress=progress)
        self._runner = _LookupRunner(names, find, monotonic, concurrency, ordered=ordered, progress=progress)

    def __repr__(self) -> str:
        return f"<Lookups {self._runner.state}, {self._runner.done} done>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Looked[T]:
        return await self._runner.take()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel all requests and wait until they have ended. A second call does nothing."""
        await self._runner.aclose()

    def __del__(self) -> None:
        # The runner holds no reference to the iterator, so breaking out of a loop drops the iterator and ends the work.
        runner = getattr(self, "_runner", None)
        if runner is not None:
            runner.abandon()


class _LookupRunner(Generic[T]):
    """The workers of `Lookups`, the results that wait for the consumer, and the counts."""

    def __init__(
        self,
        names: Iterable[str] | AsyncIterable[str],
        find: Callable[[str], Awaitable[Looked[T]]],
        monotonic: Callable[[], float],
        concurrency: int,
        *,
        ordered: bool,
        progress: Callable[[LookupProgress], None] | None,
    ) -> None:
        self._names = names
        self._find = find
        self._monotonic = monotonic
        self._ordered = ordered
        self._progress = progress
        self._total = len(names) if isinstance(names, Sized) else None
        self._workers = concurrency if self._total is None else max(1, min(concurrency, self._total))
        # Bounds the names that are started and not yet taken by the consumer, whatever the number of workers.
        self._slots = asyncio.Semaphore(2 * self._workers)
        self._turn = asyncio.Lock()
        self._exhausted = False
        self._started_names = 0
        self._results: dict[int, Looked[T]] = {}
        self._next = 0
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._fatal: Exception | None = None
        self._error: BaseException | None = None
        self._start_time = self._report_time = 0.0
        self.done = self._found = self._failed = 0

    @property
    def state(self) -> str:
        return "ended" if self._ended else "running" if self._task is not None else "not started"

    async def take(self) -> Looked[T]:
        """Return the next result as soon as there is one."""
        if self._task is None and not self._ended:
            self._start_time = self._report_time = self._monotonic()
            self._task = asyncio.create_task(self._run(), name="wme-lookups")
        while self._next not in self._results:
            if self._ended:
                error, self._error = self._error, None
                raise error or StopAsyncIteration
            if self._waiter is not None:
                raise RuntimeError("another task reads these results; give each reader its own look-ups")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        result = self._results.pop(self._next)
        self._next += 1
        self._slots.release()
        return result

    async def aclose(self) -> None:
        self._ended = True
        self._error = None
        self._results.clear()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        settle(self._waiter)

    def abandon(self) -> None:
        """Cancel all requests from any thread that the garbage collector runs in."""
        if self._task is not None and not self._task.done():
            logger.debug("look-ups were dropped before their end; their requests are cancelled")
            # The loop may be closed, or is being closed by another thread.
            with contextlib.suppress(RuntimeError):
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    async def _run(self) -> None:
        try:
            names = aiter(self._names) if isinstance(self._names, AsyncIterable) else iter(self._names)
            async with WorkGroup() as group:
                for _ in range(self._workers):
                    group.start(self._work(names), name="wme look-up")
            self._report()
        except Exception as error:  # noqa: BLE001  # exceptions of the caller's names and progress belong to the caller
            self._error = first_cause(error)
        except asyncio.CancelledError:
            if not self._ended:
                self._error = RuntimeError("the task of these look-ups was cancelled before their end")
            raise
        finally:
            self._ended = True
            settle(self._waiter)

    async def _work(self, names: Iterator[str] | AsyncIterator[str]) -> None:
        while True:
            await self._slots.acquire()
            name = await self._next_name(names)
            if name is _END:
                self._slots.release()
                return
            number = self._started_names
            self._started_names += 1
            self._add_result(number, await self._look_up(name))

    async def _next_name(self, names: Iterator[str] | AsyncIterator[str]) -> Any:
        """Return the next name; `_END` after the last one and after an exception of the iterator, which is stored."""
        async with self._turn:  # an async iterator takes one call at a time
            if self._exhausted:
                return _END
            name = _END
            try:
                name = await anext(names, _END) if isinstance(names, AsyncIterator) else next(names, _END)
            except Exception as error:  # noqa: BLE001  # raised to the consumer after the results of earlier names
                self._error = error
            except asyncio.CancelledError as error:
                if is_cancelling():
                    raise
                # The iterator awaited something that was cancelled; a task group would take it for the worker's end.
                self._error = RuntimeError("the names were cancelled before their end")
                self._error.__cause__ = error
            self._exhausted = name is _END
            return name

    async def _look_up(self, name: str) -> Looked[T]:
        if self._fatal is not None:
            return Looked(name=name, error=self._fatal)
        try:
            return await self._find(name)
        except ClientClosed:
            # It says nothing about this name, and no further request is possible.
            raise
        except (WMEError, ValueError, TypeError) as error:
            if isinstance(error, _FATAL):
                self._fatal = error
            return Looked(name=name, error=error)

    def _add_result(self, number: int, result: Looked[T]) -> None:
        key = number if self._ordered else self.done
        self._results[key] = result
        self.done += 1
        self._found += result.error is None and result.found
        self._failed += result.error is not None
        if key == self._next:
            settle(self._waiter)
        if self._progress is not None and self._monotonic() - self._report_time >= _REPORT_INTERVAL:
            self._report()

    def _report(self) -> None:
        if self._progress is None:
            return
        self._report_time = self._monotonic()
        elapsed = self._report_time - self._start_time
        rate = self.done / elapsed if elapsed > 0 else 0.0
        remaining = None if self._total is None else self._total - self.done
        self._progress(
            LookupProgress(
                done=self.done,
                found=self._found,
                missing=self.done - self._found - self._failed,
                failed=self._failed,
                total=self._total,
                rate=rate,
                eta=None if remaining is None or not rate else remaining / rate,
            )
        )
