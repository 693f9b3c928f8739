"""What a mirror does beside following: load, heal, resolve doubts, and compare itself with the service."""

import logging
import random
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from wme_async.errors import Forbidden, NotFound, QuotaExceeded, Replaced, Unauthorized
from wme_async.mirror.events import MirrorVerified
from wme_async.mirror.hourly import HourFollower
from wme_async.mirror.loader import Loader
from wme_async.mirror.marks import EXPORT, Scope, Verification
from wme_async.mirror.protocol import Store
from wme_async.mirror.records import RecordReader
from wme_async.mirror.rule import Picture
from wme_async.mirror.work import Work, encode
from wme_async.models import Article, Snapshot

__all__ = ["Upkeep"]

logger: logging.Logger = logging.getLogger("wme_async.mirror")

_DOUBTS: Final = 100  # look-ups in one round, each metered
_SAMPLE: Final = 5  # look-ups of a sample
_TOO_MANY: Final = 0.01  # share of changes missed in a sample above which a snapshot is loaded

# All fields of an article, as they are.
_Whole: Any = msgspec.defstruct(
    "WholeRecord",
    [
        (field.encode_name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET)
        for field in msgspec.structs.fields(Article)
        if field.encode_name != "has_parts"
    ],
    rename=None,
    omit_defaults=True,
)


class Upkeep:
    """Keeps a mirror complete.

    Args:
        work: The mirror.
        store: Its store.
        loader: Loads snapshots.
        hourly: Reads batches.
    """

    def __init__(self, work: Work, store: Store, loader: Loader, hourly: HourFollower) -> None:
        self._work = work
        self._store = store
        self._loader = loader
        self._hourly = hourly
        self._chance = random.Random()  # noqa: S311 - not for secrets
        self._reader = RecordReader(work.options.keep)

    async def run_once(self, *, snapshots: bool = False) -> None:
        """Do what is due.

        Args:
            snapshots: Load each new snapshot, since changes come from nowhere else.

        Raises:
            WMEError: A request failed.
            OSError: The store cannot be written.
        """
        work = self._work
        for scope in work.scopes:
            if work.progress.loaded(scope) is None:
                await self._loader.load(scope)
            await self._loader.check_holes(scope)
        await work.update_state()
        if work.progress.holes and not snapshots:
            await self._hourly.heal(work.progress.holes)
        await self._resolve_doubts()
        try:
            for scope in work.scopes:
                await self._reload(scope, always=snapshots)
            await self._verify()
        except NotFound as error:
            logger.info("a snapshot is withdrawn, and waited for: %s", error)
        await work.update_state()

    async def _reload(self, scope: Scope, *, always: bool) -> None:
        """Load a newer snapshot if it closes a hole, or if there is no other source."""
        work = self._work
        holes = [hole for hole in work.progress.holes if hole.identifier in {None, scope.identifier}]
        if not always and not holes and work.progress.load(scope) is None:
            return
        snapshot = await work.client.snapshots.get(scope.identifier)
        loaded = work.progress.loaded(scope)
        assert loaded is not None
        if snapshot.version == loaded.version:
            return
        end = min((hole.end for hole in holes), default=None)
        modified = snapshot.date_modified or work.now()
        if always or end is None or modified > end:
            await self._loader.load(scope)

    # Doubts

    async def _resolve_doubts(self) -> None:
        """Look up each title in doubt once; what the service has is merged like any other record."""
        for key in self._work.progress.keys("doubts")[:_DOUBTS]:
            project, _, title = key.partition("/")
            try:
                await self._look_up(project, title, mark=key)
            except (Forbidden, QuotaExceeded) as error:
                # The next snapshot resolves them as well.
                logger.warning("doubts are left to the next snapshot: %s", error)
                return

    async def _look_up(self, project: str, title: str, *, mark: str | None = None, load: int = 0) -> int:
        """Merge the present record of a title, and return how many changes were missed."""
        work = self._work
        records = []
        try:
            filters = {"is_part_of.identifier": project}
            records = await work.client.articles.lookup(title, filters=filters, limit=1, type=_Whole)
        except ValueError as error:
            logger.info("%r cannot be looked up: %s", title, error)
        except NotFound:
            pass
        picture, _, _ = await work.read(self._reader, [msgspec.json.encode(record) for record in records], load=load)
        if mark is not None:
            picture = await self._with_text(picture, project, title)
        applied = await work.apply(picture, {} if mark is None else {"doubts": {mark: None}})
        if mark is not None and mark in work.progress.keys("doubts"):
            # The text is still missing. The next snapshot may have it.
            await work.apply(values={"doubts": {mark: None}})
        return applied.missed

    async def _with_text(self, picture: Picture, project: str, title: str) -> Picture:
        """Let a record with the text follow the stored one of the same revision, which lacks it.

        Records of a bulk ingestion at which the text was hidden are newer than the record with the text, which look-ups
        still have.
        """
        stored = await self._store.get(project, title=title)
        pages = list(picture.pages.values())
        for page in pages:
            if stored is not None and page.body and (page.page_id, page.revision) == (stored.page_id, stored.revision):
                page.created, page.published = stored.created + 1, stored.published
        return Picture(pages)

    # Verification

    async def _verify(self) -> None:
        work = self._work
        if work.options.verify == "off" or work.progress.holes:
            return
        last: Verification | None = work.progress.get("state", "verification", Verification)
        times = [last.time] if last is not None else []
        times += [loaded.cut for scope in work.scopes if (loaded := work.progress.loaded(scope)) is not None]
        if work.now() - max(times) < timedelta(seconds=work.options.verify_every):
            return
        if work.options.verify == "sample" or await self._has_newer_snapshot():
            await self.verify(work.options.verify)

    async def _has_newer_snapshot(self) -> bool:
        """Return whether a snapshot would tell anything that the loaded one did not."""
        for scope in self._work.scopes:
            loaded = self._work.progress.loaded(scope)
            snapshot = await self._work.client.snapshots.get(scope.identifier)
            if loaded is None or snapshot.version != loaded.version:
                return True
        return False

    async def verify(self, kind: str) -> Verification:
        """Compare the mirror with the service, and merge what it has missed.

        Args:
            kind: `sample`: one chunk and some look-ups. `full`: the newest snapshot.

        Raises:
            WMEError: A request failed.
            OSError: The store cannot be written.
        """
        work = self._work
        now = work.now()
        checked = missed = removed = 0
        for scope in work.scopes:
            if kind == "full":
                loaded = await self._loader.load(scope)
                checked, missed = checked + loaded.records, missed + loaded.missed
                removed += loaded.removed
            else:
                counts = await self._sample(scope)
                checked, missed = checked + counts[0], missed + counts[1]
        verification = Verification(
            time=now, kind="full" if kind == "full" else "sample", checked=checked, missed=missed, removed=removed
        )
        await work.apply(values={"state": {"verification": encode(verification)}})
        work.notify(MirrorVerified(verification=verification))
        if kind != "full" and missed > max(1, _TOO_MANY * checked):
            logger.warning("%d of %d sampled pages were out of date: a snapshot is loaded", missed, checked)
            return await self.verify("full")
        return verification

    async def _sample(self, scope: Scope) -> tuple[int, int]:
        """Merge one chunk at random, and some look-ups; return how many records were checked, and missed."""
        work = self._work
        snapshot = await work.client.snapshots.get(scope.identifier)
        number = work.progress.next_load()
        await work.apply(values={"state": {"loads": encode(number)}})
        checked = missed = 0
        if snapshot.chunks and self._is_recent(snapshot):
            chunk = self._chance.choice(sorted(snapshot.chunks))
            try:
                done, missed = await self._loader.read_chunk(scope, chunk, number)
                checked = done.records
            except (Replaced, NotFound) as error:
                logger.info("the chunk %s is being exported again: %s", chunk, error)
        try:
            for title in await self._titles(scope):
                missed += await self._look_up(scope.project, title, load=number)
                checked += 1
        except (Forbidden, Unauthorized, QuotaExceeded) as error:
            logger.info("look-ups are left out of the sample: %s", error)
        return checked, missed

    def _is_recent(self, snapshot: Snapshot) -> bool:
        modified: datetime | None = snapshot.date_modified
        return modified is not None and self._work.now() - modified < timedelta(days=40) + EXPORT

    async def _titles(self, scope: Scope) -> list[str]:
        """Return some titles at random."""
        titles: list[str] = []
        seen = 0
        async for keys in self._store.keys():
            for key in keys:
                if key[0] != scope.project:
                    continue
                seen += 1
                if len(titles) < _SAMPLE:
                    titles.append(key[1])
                elif (place := self._chance.randrange(seen)) < _SAMPLE:
                    titles[place] = key[1]
            if seen > 100_000:
                break
        return titles
