"""One request for each of many names: bounded, in order or as completed, one result or error for each name."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sized
from typing import Any, Final, Generic, Self, TypeVar

import msgspec

from wme_async._arguments import check_flags, check_functions
from wme_async._tasks import WorkGroup, first_cause
from wme_async.errors import Forbidden, QuotaExceeded, Unauthorized

__all__ = ["Looked", "LookupProgress", "Lookups"]

logger = logging.getLogger("wme_async.lookup")

T = TypeVar("T")
N = TypeVar("N")

_END: Final[Any] = object()

# What holds for one name holds for all that follow, and asking for them would only be noise.
_FATAL = (Unauthorized, Forbidden, QuotaExceeded)

_REPORT_EVERY = 0.2


class Looked(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What became of one name.

    Attributes:
        name: As it was given.
        records: What was found; empty where there is nothing of this name. Beside an error, what of the answer could
            be read.
        error: Why there is no (whole) answer, or None.
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
            WMEError: The error, where there is one.
            ValueError: The name was none that can be asked for.
        """
        if self.error is not None:
            raise self.error
        return self.records


class LookupProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far many look-ups have come.

    Attributes:
        done: Names that are finished: the sum of the next three.
        found: Names with at least one record.
        missing: Names of which there is nothing.
        failed: Names with an error.
        total: Names in all, or None where that is not known.
        rate: Names a second, since the beginning.
        eta: Seconds that are left, or None.
    """

    done: int
    found: int
    missing: int
    failed: int
    total: int | None
    rate: float
    eta: float | None


class Lookups(Generic[T]):
    """Many look-ups on their way: an async iterator of `Looked`, one for each name.

    Requests start with the first item that is asked for. No more than `concurrency` are under way, and no more than
    twice as many results wait to be taken: who is slow in taking them slows the requests. A wait for the next item may
    be cancelled, and goes on where it was. Leave the loop early inside `async with` (or `contextlib.aclosing`), and
    all that is under way has ended when the block has; without one, it is cancelled as soon as the iterator is dropped.

    Example:
        >>> async with wme.articles.lookup_many(titles, concurrency=20) as results:  # doctest: +SKIP
        ...     async for looked in results: ...

    Args:
        names: What to ask for; drawn from as requests go out, so it may be longer than memory.
        ask: Makes a `Looked` of a name; expected errors are in it, others end the whole.
        concurrency: Requests at a time.
        ordered: Results in the order of names; else as they complete, which is quicker where answers differ in time.
        progress: Told how far it is, at most five times a second and at the end. It must not block.
        monotonic: Seconds.
    """

    def __init__(
        self,
        names: Iterable[str] | AsyncIterable[str],
        ask: Callable[[str], Awaitable[Looked[T]]],
        *,
        concurrency: int,
        ordered: bool,
        progress: Callable[[LookupProgress], None] | None,
        monotonic: Callable[[], float],
    ) -> None:
        if isinstance(names, str | bytes) or not (hasattr(names, "__iter__") or hasattr(names, "__aiter__")):
            raise TypeError(f"names are several, got {names!r}")
        if type(concurrency) is not int or concurrency < 1:
            raise ValueError(f"concurrency must be a whole number of 1 or more, not {concurrency!r}")
        check_flags(ordered=ordered)
        check_functions(progress=progress)
        self._runner = _LookupRunner(names, ask, concurrency, progress, monotonic, ordered=ordered)

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
        """End all that is under way, and wait until it has. Once is enough, twice does no harm."""
        await self._runner.aclose()

    def __del__(self) -> None:
        # The runner does not know of us, so dropping the iterator is how a loop that was left early is noticed.
        runner = getattr(self, "_runner", None)
        if runner is not None:
            runner.abandon()


class _LookupRunner(Generic[T]):
    def __init__(
        self,
        names: Iterable[str] | AsyncIterable[str],
        ask: Callable[[str], Awaitable[Looked[T]]],
        concurrency: int,
        progress: Callable[[LookupProgress], None] | None,
        monotonic: Callable[[], float],
        *,
        ordered: bool,
    ) -> None:
        self._total = len(names) if isinstance(names, Sized) else None
        self._names = names
        self._ask = ask
        self._size = concurrency if self._total is None else max(1, min(concurrency, self._total))
        # The width of the window, not the number of workers, is what holds results back.
        self._room = asyncio.Semaphore(2 * self._size)
        self._progress = progress
        self._monotonic = monotonic
        self._ordered = ordered
        self._finished: dict[int, Looked[T]] = {}
        self._completed: deque[Looked[T]] = deque()
        self._issued = 0
        self._next = 0
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False
        self._exhausted = False
        self._fatal: Exception | None = None
        self._error: BaseException | None = None
        self._started = 0.0
        self._reported = 0.0
        self.done = self._found = self._failed = 0

    @property
    def state(self) -> str:
        return "ended" if self._ended else "running" if self._task is not None else "not started"

    async def take(self) -> Looked[T]:
        if self._task is None and not self._ended:
            self._loop = asyncio.get_running_loop()
            self._started = self._reported = self._monotonic()
            self._task = asyncio.create_task(self._run(), name="wme-lookups")
        while True:
            if self._ordered:
                looked = self._finished.pop(self._next, None)
            else:
                looked = self._completed.popleft() if self._completed else None
            if looked is not None:
                self._next += 1
                self._room.release()
                return looked
            if self._ended:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            if self._waiter is not None:
                raise RuntimeError("these results have a reader already; give each reader its own look-ups")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def aclose(self) -> None:
        self._ended = True
        self._error = None
        self._finished.clear()
        self._completed.clear()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        self._wake()

    def abandon(self) -> None:
        if self._task is None or self._task.done() or self._loop is None or self._loop.is_closed():
            return
        logger.debug("look-ups were dropped before their end; what was under way is cancelled")
        # Garbage is collected in whatever thread happens to be running, perhaps while the loop is being closed.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._task.cancel)

    async def _run(self) -> None:
        try:
            draw = self._drawer()
            async with WorkGroup() as group:
                for _ in range(self._size):
                    group.start(self._work(draw), name="wme look-up")
            self._report(last=True)
        except Exception as error:  # noqa: BLE001  # whatever the caller's names or progress raise belongs to the caller
            self._error = first_cause(error)
        except asyncio.CancelledError:
            if not self._ended:
                self._error = RuntimeError("the task of these look-ups was cancelled before their end")
            raise
        finally:
            self._ended = True
            self._wake()

    def _drawer(self) -> Callable[[], Awaitable[Any]] | Callable[[], Any]:
        if isinstance(self._names, AsyncIterable):
            return _SharedIterator(self._names).draw
        iterator = iter(self._names)
        return lambda: next(iterator, _END)

    async def _work(self, draw: Callable[[], Any]) -> None:
        patient = isinstance(self._names, AsyncIterable)
        while True:
            await self._room.acquire()
            try:
                name = _END if self._exhausted else await draw() if patient else draw()
            except Exception as error:  # noqa: BLE001  # the caller's, for whom what was asked before is finished
                self._error = error
                name = _END
            except asyncio.CancelledError as error:
                if _cancelled():
                    raise
                # Something that the names waited for was cancelled, not we: a task group would take it for our end.
                self._error = RuntimeError("the names were cancelled before their end")
                self._error.__cause__ = error
                name = _END
            if name is _END:
                self._exhausted = True
                self._room.release()
                return
            number = self._issued
            self._issued += 1
            if self._fatal is None:
                looked = await self._ask(name)
                if isinstance(looked.error, _FATAL):
                    self._fatal = looked.error
            else:
                looked = Looked(name=name, error=self._fatal)
            self._put(number, looked)

    def _put(self, number: int, looked: Looked[T]) -> None:
        self.done += 1
        self._found += looked.error is None and bool(looked.records)
        self._failed += looked.error is not None
        if self._ordered:
            self._finished[number] = looked
            if number == self._next:
                self._wake()
        else:
            self._completed.append(looked)
            self._wake()
        if self._progress is not None:
            self._report()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _report(self, *, last: bool = False) -> None:
        if self._progress is None:
            return
        now = self._monotonic()
        if not last and now - self._reported < _REPORT_EVERY:
            return
        self._reported = now
        elapsed = now - self._started
        rate = self.done / elapsed if elapsed > 0 else 0.0
        left = None if self._total is None else self._total - self.done
        self._progress(
            LookupProgress(
                done=self.done,
                found=self._found,
                missing=self.done - self._found - self._failed,
                failed=self._failed,
                total=self._total,
                rate=rate,
                eta=None if left is None or not rate else left / rate,
            )
        )


class _SharedIterator(Generic[N]):
    """Lets several tasks draw from one async iterator, which can be asked by one at a time."""

    def __init__(self, names: AsyncIterable[N]) -> None:
        self._iterator = aiter(names)
        self._turn = asyncio.Lock()
        self._ended = False

    async def draw(self) -> Any:
        async with self._turn:
            if self._ended:
                return _END
            try:
                return await anext(self._iterator)
            except StopAsyncIteration:
                self._ended = True
                return _END


def _cancelled() -> bool:
    """Say whether the running task itself was asked to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
