"""The mirror: load, follow, heal, verify."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

from wme_async._arguments import check_choice, check_functions, check_numbers
from wme_async._client.client import Client
from wme_async._tasks import WorkGroup, raise_first_cause
from wme_async._transport.retry import is_transient
from wme_async.errors import Forbidden, NotFound, QuotaExceeded, WMEError
from wme_async.mirror.events import MirrorEvent, MirrorSourceChanged, MirrorTrouble
from wme_async.mirror.feed import Watch
from wme_async.mirror.follower import Follower
from wme_async.mirror.hourly import HourFollower
from wme_async.mirror.loader import Loader
from wme_async.mirror.marks import MirrorState, Progress, Source, Verification, parse_identifiers
from wme_async.mirror.plan import MirrorPlan, plan_load
from wme_async.mirror.protocol import Kind, State, Store
from wme_async.mirror.reader import MirrorReader
from wme_async.mirror.records import RecordReader
from wme_async.mirror.upkeep import Upkeep
from wme_async.mirror.work import Options, Work, encode

__all__ = ["Mirror"]

logger: logging.Logger = logging.getLogger("wme_async.mirror")

_SOURCES: Final[tuple[Source, ...]] = ("stream", "batches", "snapshots")
_SELDOM: Final = 10  # polls between two looks for a new snapshot
_REASONS: Final[dict[Source, str]] = {
    "stream": "",
    "batches": "the account has no stream: changes come with the hourly batches, visibility changes not at all",
    "snapshots": "the account has neither stream nor batches: changes come with the daily snapshots",
}


class Mirror(MirrorReader):
    """An up-to-date copy of the pages of projects and namespaces, in a store of your own.

    ```python
    async with Client.from_env() as wme, Mirror(wme, "enwiki_namespace_0", SQLiteStore("mirror.db")) as mirror:
        await mirror.run()
    ```

    It loads the snapshot and follows the stream at the same time, merges both by one rule (`wme_async.mirror.rule`),
    and stores rows and positions in one transaction, so that it goes on after any interruption with nothing lost and
    nothing done twice. Without the stream it follows the hourly batches, and without these the snapshots.

    Args:
        client: The account.
        identifiers: Of snapshots, such as `"enwiki_namespace_0"`, one or more. A mirror has whole namespaces.
        store: The store, such as `SQLiteStore("mirror.db")`.
        source: Where changes come from: `"stream"`, `"batches"`, `"snapshots"`; `"auto"` takes the best that the
            account has.
        keep: The fields to keep, as dotted names of `Article`; `"wikitext"` and `"html"` are short for those of
            `article_body`. By default whole records.
        load: `"chunks"`: snapshots are loaded by chunks, which resumes after an interruption and costs a metered
            request each; `"archive"`: whole, for one metered request.
        overlap: Seconds before the end of a snapshot's export from which changes are followed, since its beginning is
            not known.
        verify: `"sample"`: now and then compare a chunk and some look-ups; `"full"`: a whole snapshot; `"off"`.
        verify_every: Seconds between two comparisons.
        max_removed: The share of the live pages, 0 to 1, above which a snapshot that lacks them removes none of them
            (10 pages are always allowed): it is then taken for incomplete.
        poll: Seconds between two requests for something that is due.
        on_event: Called with frozen records about states, loads, holes and failures. It must not block.

    Raises:
        TypeError: An argument is of another type.
        ValueError: An identifier is not a project and a namespace, or an option is out of range.
    """

    _writing = True

    def __init__(
        self,
        client: Client,
        identifiers: str | Iterable[str],
        store: Store,
        *,
        source: Literal["auto", "stream", "batches", "snapshots"] = "auto",
        keep: Sequence[str] | None = None,
        load: Literal["chunks", "archive"] = "chunks",
        overlap: float = 86_400.0,
        verify: Literal["sample", "full", "off"] = "sample",
        verify_every: float = 604_800.0,
        max_removed: float = 0.01,
        poll: float = 60.0,
        on_event: Callable[[MirrorEvent], None] | None = None,
    ) -> None:
        super().__init__(store)
        if not isinstance(client, Client):
            raise TypeError(f"client must be a Client, not {client!r}")
        check_choice("source", source, ("auto", *_SOURCES))
        check_choice("load", load, ("chunks", "archive"))
        check_choice("verify", verify, ("sample", "full", "off"))
        check_numbers(optional=False, minimum=0, unit="seconds", overlap=overlap)
        check_numbers(optional=False, above=0, unit="seconds", verify_every=verify_every, poll=poll)
        check_numbers(optional=False, minimum=0, max_removed=max_removed)
        if max_removed > 1:
            raise ValueError(f"max_removed is a share, 0 to 1, not {max_removed}")
        check_functions(on_event=on_event)
        RecordReader(keep)
        self._scopes = parse_identifiers(identifiers)
        self._client = client
        self._source: Literal["auto", "stream", "batches", "snapshots"] = source
        self._options = Options(
            keep=None if keep is None else tuple(keep),
            load=load,
            overlap=overlap,
            verify=verify,
            verify_every=verify_every,
            max_removed=max_removed,
            poll=poll,
            on_event=on_event,
        )
        self._work: Work | None = None
        self._running = False

    async def _open(self, state: State) -> None:
        try:
            progress = Progress(state.values)
            work = Work(self._client, self._scopes, self._store, progress, state.seq, self._options)
            await work.apply(values={"state": self._identity(progress)})
        except BaseException:
            await self._store.close()
            raise
        self._work = work
        self._loader = Loader(work, self._store)
        self._hourly = HourFollower(work)
        self._upkeep = Upkeep(work, self._store, self._loader, self._hourly)

    def _identity(self, progress: Progress) -> dict[str, str | None]:
        """Return the marks of what the store is for.

        Raises:
            ValueError: It is for something else.
        """
        identity = {
            "identifiers": tuple(scope.identifier for scope in self._scopes),
            "keep": self._options.keep,
        }
        for name, value in identity.items():
            if name not in progress.keys("state"):
                continue
            stored = progress.get("state", name, tuple[str, ...] | None)
            if stored != value:
                raise ValueError(
                    f"the store was made with {name}={stored!r}, not {value!r}: use the same, or another store"
                )
        return {name: encode(value) for name, value in identity.items()}

    async def aclose(self) -> None:
        """Save the positions of consumers, and close the store. A second call does nothing."""
        self._work = None
        await super().aclose()

    def _watch(self) -> Watch | None:
        return self._work

    def _opened(self) -> Work:
        if self._work is None:
            raise RuntimeError("the mirror is not open: use `async with`")
        return self._work

    @property
    def state(self) -> MirrorState:
        """The state, now.

        Raises:
            RuntimeError: The mirror is not open.
        """
        return self._opened().state

    # Running

    async def run(self) -> None:
        """Load, follow, heal and verify until cancelled.

        Failures of the network and of the service are waited out; what cannot be cured so is raised.

        Raises:
            NotFound: A snapshot does not exist when it begins.
            Unauthorized: The account was rejected.
            Forbidden: The account lacks the source that was asked for.
            OSError: The store cannot be written, for example because the disk is full; what was written is consistent,
                and the next run goes on from there.
            DataError: The store was deleted, or is damaged.
            RuntimeError: The mirror is not open, or runs already.
        """
        await self._exclusively(self._run_source)

    async def sync(self, *, quiet: float = 30.0) -> None:
        """Load or catch up, then return: for cron.

        Args:
            quiet: Seconds without an event of the stream after which all that was there is taken to be read; events
                that were published since the load ended do not count. The stream does not tell its end.

        Raises:
            ValueError: `quiet` is negative.
            QuotaExceeded: The allowance of the month is used up.
            WMEError: A request failed.
            OSError: As for `run`.
            RuntimeError: As for `run`.
        """
        check_numbers(optional=False, minimum=0, unit="seconds", quiet=quiet)
        await self._exclusively(lambda source: self._sync_source(source, quiet))

    async def _exclusively(self, follow: Callable[[Source], Coroutine[Any, Any, None]]) -> None:
        """Follow the best source that the account has."""
        work = self._opened()
        if self._running:
            raise RuntimeError("the mirror is running already")
        self._running = True
        try:
            sources = _SOURCES if self._source == "auto" else (self._source,)
            for source in sources:
                best = source == sources[0]
                try:
                    await self._use(source, best=best)
                    with raise_first_cause():
                        await follow(source)
                except Forbidden as error:
                    if source == sources[-1]:
                        raise
                    logger.warning("no access to the %s: %s", source, error)
                else:
                    return
        finally:
            self._running = False
            work.behind = False

    async def _use(self, source: Source, *, best: bool) -> None:
        work = self._opened()
        reason = "" if best else _REASONS[source]
        values: dict[Kind, Mapping[str, str | None]] = {"state": {"source": encode(source)}}
        if source == "snapshots":
            # Nothing is followed, so there is no time from which on it is.
            values = {
                "state": {"source": encode(source), "since": None, "hour": None},
                "positions": dict.fromkeys(work.progress.keys("positions")),
            }
        await work.apply(values=values)
        await work.degrade("source", reason or None)
        work.notify(MirrorSourceChanged(source=source, reason=reason))
        await work.update_state()

    async def _learn_time(self) -> None:
        """Have a response bring the clock of the service, by which everything is old or new.

        Raises:
            NotFound: A snapshot does not exist, and was never loaded.
        """
        for scope in self._scopes:
            try:
                await self._client.snapshots.get(scope.identifier, fields=["identifier"])
            except NotFound:
                # What is loaded may be followed while the snapshot is withdrawn.
                if self._opened().progress.loaded(scope) is None:
                    raise

    async def _run_source(self, source: Source) -> None:
        await self._persist(self._learn_time, wait_for_missing=False)
        if source == "stream":
            follower = Follower(self._opened())
            async with WorkGroup() as group:
                group.start(follower.run(), name="follow the stream of a mirror")
                group.start(self._keep_up(follower.begun, source), name="keep a mirror complete")
        elif source == "batches":
            async with WorkGroup() as group:
                group.start(self._persist(self._hourly.run), name="follow the batches of a mirror")
                group.start(self._keep_up(self._hourly.begun, source), name="keep a mirror complete")
        else:
            await self._keep_up(_at_once, source)

    async def _keep_up(self, begun: Callable[[], Coroutine[Any, Any, None]], source: Source) -> None:
        await begun()
        while True:
            await self._persist(lambda: self._upkeep.run_once(snapshots=source == "snapshots"))
            await asyncio.sleep(self._options.poll * _SELDOM)

    async def _persist(self, step: Callable[[], Coroutine[Any, Any, None]], *, wait_for_missing: bool = True) -> None:
        """Repeat a step until it succeeds, unless its error will not go away.

        Args:
            step: The step.
            wait_for_missing: Whether what does not exist may exist later: a snapshot that is withdrawn comes back with
                the next export.
        """
        work = self._opened()
        wait = self._options.poll
        while True:
            try:
                await step()
            except WMEError as error:
                waits = isinstance(error, QuotaExceeded) or (wait_for_missing and isinstance(error, NotFound))
                if not (is_transient(error) or waits):
                    raise
                await work.degrade("requests", f"a request fails again and again: {error}")
                work.notify(MirrorTrouble(error=error, wait=wait))
                await asyncio.sleep(wait)
                wait = min(2 * wait, 60 * self._options.poll)
            else:
                await work.degrade("requests", None)
                return

    async def _sync_source(self, source: Source, quiet: float) -> None:
        await self._learn_time()
        if source == "stream":
            follower, loaded = Follower(self._opened()), asyncio.Event()
            async with WorkGroup() as group:
                group.start(follower.run(until=loaded, quiet=quiet), name="follow the stream of a mirror")
                await follower.begun()
                await self._upkeep.run_once()
                loaded.set()
        elif source == "batches":
            last = await self._latest_hour()
            if last is not None:
                await self._hourly.run(last=last)
            await self._upkeep.run_once()
        else:
            await self._upkeep.run_once(snapshots=True)

    async def _latest_hour(self) -> datetime | None:
        """Return the newest hour that has batches; None if none has."""
        files = self._client.batches("latest")
        try:
            await files.list(fields=["identifier"])
        except NotFound:
            return None
        return files.hour

    async def verify(self, kind: Literal["sample", "full"] = "full") -> Verification:
        """Compare the mirror with the service now, and merge what it has missed.

        Args:
            kind: `"full"`: with the newest snapshot. `"sample"`: with one of its chunks, and some look-ups.

        Returns:
            The result.

        Raises:
            ValueError: Another kind, or nothing is loaded yet.
            WMEError: A request failed.
            OSError: The store cannot be written.
            RuntimeError: The mirror is not open.
        """
        check_choice("kind", kind, ("sample", "full"))
        work = self._opened()
        if any(work.progress.loaded(scope) is None for scope in self._scopes):
            raise ValueError("nothing is loaded yet: call sync() first")
        return await self._upkeep.verify(kind)

    async def plan(self) -> MirrorPlan:
        """Return what loading the snapshots costs: bytes, metered requests, disk; free of charge.

        Raises:
            NotFound: A snapshot does not exist.
            WMEError: A request failed.
        """
        path = getattr(self._store, "path", None)
        return await plan_load(self._client, self._scopes, load=self._options.load, path=path)

    async def forget(self, title: str | None = None, *, page_id: int | None = None, project: str | None = None) -> None:
        """Take a page down: its record is deleted, consumers get a `delete`, and no later record of it is stored.

        Args:
            title: The title of a live page.
            page_id: The page id, instead of the title; the page need not be live.
            project: Its project; needed if the mirror has several.

        Raises:
            ValueError: Not exactly one of title and page id, or no live page has the title.
            OSError: The store cannot be written.
            RuntimeError: The mirror is not open.
        """
        if (title is None) == (page_id is None):
            raise ValueError("name either the title or the page_id of a page")
        work, name = self._opened(), self._project(project)
        if page_id is None and title is not None:
            entry = await self._store.get(name, title=title.replace("_", " "))
            if entry is None:
                raise ValueError(f"no live page of {name} is called {title!r}: name its page_id")
            page_id = entry.page_id
        assert page_id is not None
        await work.apply(forget=[(name, page_id)])


async def _at_once() -> None:
    """Begin at once."""
