"""Metadata and archives: the lists, and the archives, which are built on first use.

Every archive is a pure function of the seed and its key, so that lists, archives and checksums agree without anything
being stored beforehand. A list builds all its archives, since it states the MD5 of each.
"""

import asyncio
import math
import re
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from wme_async.simulator.clock import Clock
from wme_async.simulator.hosts.store import StoredObject, stored
from wme_async.simulator.world.archive_spec import ArchiveSpec
from wme_async.simulator.world.articles import ArticleGenerator, build_archive, site_of, timestamp
from wme_async.simulator.world.entities import EntityGenerator
from wme_async.simulator.world.generated import OTHERS, GeneratedArchives
from wme_async.simulator.world.metadata import NAMESPACES, PROJECTS, batch_sizes, real_articles, static_world
from wme_async.simulator.world.wiki import SUPPORTED
from wme_async.simulator.world.world import World
from wme_async.simulator.world.world_archives import WorldArchives

if TYPE_CHECKING:
    from wme_async.simulator.options import SimulatorOptions

_IDENTIFIER = re.compile(r"^(?P<project>.+)_namespace_(?P<namespace>\d+)$")
_WIKIDATA: Final = "batches/wikidata/"
_WIKIDATA_CHUNKS: Final[Mapping[str, int]] = {"wikidatawiki_namespace_0": 3, "wikidatawiki_namespace_120": 0}
_HOUR = re.compile(r"^batches/(?:wikidata/)?(?P<date>\d{4}-\d\d-\d\d)/(?P<hour>\d\d)$")
TWIN: Final = "_group_1"

# Seconds after midnight UTC, when the exports of a day's snapshots begin, at which they end one after the other.
_FIRST_SNAPSHOT: Final = 53.25
_SNAPSHOT_STEP: Final = 61.892227533
_STRUCTURED_SNAPSHOT: Final = 3600.5
_WIKIDATA_SNAPSHOT: Final = 7200.125
_LAST_SNAPSHOT: Final = max(
    _FIRST_SNAPSHOT + len(PROJECTS) * len(NAMESPACES) * _SNAPSHOT_STEP, _STRUCTURED_SNAPSHOT, _WIKIDATA_SNAPSHOT
)


@dataclass(eq=False)
class _ArchiveCache:
    """Archives that simulators of this process have built: test suites start many simulators with the same archives.

    Args:
        limit: Bytes of all archives together; beyond it the oldest are dropped.
    """

    limit: int
    _archives: dict[Hashable, StoredObject] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: Hashable, build: Callable[[], StoredObject]) -> StoredObject:
        """Return the archive of a key, built by the function if it is not there."""
        archive = self._archives.get(key)
        if archive is None:
            archive = build()
            with self._lock:
                self._archives[key] = archive
                size = sum(archive.size for archive in self._archives.values())
                while size > self.limit:
                    size -= self._archives.pop(next(iter(self._archives))).size
        return archive


_built: Final = _ArchiveCache(32 << 20)


class Catalog:
    """Metadata and archives.

    Args:
        clock: Determines which hours exist.
        options: The options of the simulator: `seed`, `data`, and those of archives.
    """

    retention: float = 48 * 3600.0  # seconds that batches stay

    def __init__(self, clock: Clock, options: "SimulatorOptions") -> None:
        self.clock = clock
        self._options = options
        data = options["data"]
        folder = None if data is None else Path(data)
        self.real: list[dict[str, Any]] = real_articles(folder)
        self.generated: GeneratedArchives = GeneratedArchives(options, batch_sizes(folder), self.real)
        self.generator: ArticleGenerator = self.generated.generator
        self.entities: EntityGenerator = self.generated.entities
        # A world of the caller's own decides everything; the built-in one takes over what it changes.
        custom = options["world"]
        assert custom is None or isinstance(custom, World)
        self.has_built_in_world: bool = custom is None
        self.world: World = custom or World(options["seed"], PROJECTS, pages=0, namespaces=SUPPORTED)
        self.own_articles: list[dict[str, Any]] = [] if custom else self.real
        self._world_archives = WorldArchives(self.world, options["article_size"])
        self._archives = self._world_archives if custom else self.generated
        self.static: dict[str, list[dict[str, Any]]] = static_world(folder, self.world.projects)
        self.languages: dict[str, str] = {
            str(row["identifier"]): str(row.get("in_language", {}).get("identifier", ""))
            for row in self.static["projects"]
        }
        self._specs: dict[str, dict[str, ArchiveSpec]] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._put: dict[str, dict[str, str]] = {}
        self._replaced: set[str] = set()
        self._exports = 0
        self._lock = asyncio.Lock()
        self.stopping: threading.Event = threading.Event()
        self.objects: dict[str, StoredObject] = {}
        self.deleted: set[str] = set()
        self._midnight: datetime | None = None

    # Existing archives

    def _renew_snapshots(self) -> None:
        """Replace the snapshots of the day before, if the exports of a newer day have all ended."""
        latest = datetime.fromtimestamp(self.clock.now() - _LAST_SNAPSHOT, UTC)
        midnight = latest.replace(hour=0, minute=0, second=0, microsecond=0)
        if midnight == self._midnight:
            return
        self._midnight = midnight
        first_of_month = midnight.replace(day=1)
        for suffix, day in (("", midnight), (TWIN, first_of_month)):
            begin, number = day.timestamp(), day.toordinal()
            for position, identifier in enumerate(self._archives.snapshots()):
                modified = begin + _FIRST_SNAPSHOT + position * _SNAPSHOT_STEP
                self._add_snapshot(self._snapshot("snapshots", identifier, begin, modified, number, suffix))
            commons = self._snapshot("snapshots", "commonswiki_namespace_6", begin, begin, number, suffix)
            commons = replace(commons, modified=first_of_month.timestamp(), asof=first_of_month.timestamp())
            self._add_snapshot(replace(commons, listed=False, number=first_of_month.toordinal()))
            for identifier in _WIKIDATA_CHUNKS:
                modified = begin + _WIKIDATA_SNAPSHOT
                self._add_snapshot(self._snapshot("wikidata-snapshots", identifier, begin, modified, number, suffix))
        modified = midnight.timestamp() + _STRUCTURED_SNAPSHOT
        for identifier in self._archives.structured():
            spec = self._spec("structured-snapshots", identifier, modified, "structured")
            self._add_snapshot(replace(spec, asof=midnight.timestamp(), number=midnight.toordinal()))

    @property
    def cut(self) -> float:
        """The time at which the exports of the present snapshots began, epoch seconds."""
        self._renew_snapshots()
        assert self._midnight is not None
        return self._midnight.timestamp()

    def _snapshot(
        self, collection: str, identifier: str, begin: float, modified: float, number: int, suffix: str = ""
    ) -> ArchiveSpec:
        wikidata = _WIKIDATA_CHUNKS.get(identifier)
        chunks = self._archives.chunks(identifier) if wikidata is None else wikidata
        spec = self._spec(collection, identifier, modified, "snapshot", chunks, suffix)
        return replace(spec, asof=begin, number=number)

    def _add_snapshot(self, snapshot: ArchiveSpec) -> None:
        """Make a snapshot and its chunks exist, in place of those before."""
        collection, _, name = snapshot.key.rpartition("/")
        suffix = TWIN if name.endswith(TWIN) else ""
        self._replace(collection + suffix, snapshot.identifier, snapshot)
        chunk_collection = f"{collection.replace('snapshots', 'chunks')}/{snapshot.identifier}"
        for number in range(snapshot.chunks):
            chunk = replace(
                snapshot,
                key=f"{chunk_collection}/chunk_{number}{suffix}",
                identifier=f"{snapshot.identifier}_chunk_{number}",
                modified=snapshot.modified - snapshot.chunks + number,
                kind="chunk",
                chunk=number,
            )
            self._replace(chunk_collection + suffix, f"chunk_{number}", chunk)

    def _replace(self, collection: str, name: str, spec: ArchiveSpec) -> None:
        specs = self._specs.setdefault(collection, {})
        if specs.get(name) != spec:
            specs[name] = spec
            object_key = f"{spec.key}.tar.gz"
            self.deleted.discard(object_key)
            if object_key not in self._replaced:
                self._rows.pop(spec.key, None)
                self.objects.pop(object_key, None)

    def export(self, identifier: str, share: float) -> ArchiveSpec:
        """Export a snapshot and its chunks now.

        Args:
            identifier: Such as `enwiki_namespace_0`.
            share: The share of its records; below 1 the export is incomplete.

        Raises:
            ValueError: There is no such snapshot.
        """
        if identifier not in self._archives.snapshots():
            raise ValueError(f"there is no snapshot {identifier!r} to export")
        self._renew_snapshots()
        self._exports += 1
        now = self.clock.now()
        snapshot = replace(self._snapshot("snapshots", identifier, now, now, -self._exports), share=share)
        for spec in (snapshot, *self._specs.get(f"chunks/{identifier}", {}).values()):
            self._replaced.discard(f"{spec.key}.tar.gz")
        self._add_snapshot(snapshot)
        return snapshot

    def withdraw(self, identifier: str) -> None:
        """Remove a snapshot and its chunks, with their metadata.

        Args:
            identifier: Such as `enwiki_namespace_0`.

        Raises:
            ValueError: There is no such snapshot.
        """
        spec = (self._collection("snapshots") or {}).get(identifier)
        if spec is None:
            raise ValueError(f"there is no snapshot {identifier!r}")
        for key in [spec.key, *(chunk.key for chunk in self._specs.get(f"chunks/{identifier}", {}).values())]:
            self.objects.pop(f"{key}.tar.gz", None)
            self.deleted.add(f"{key}.tar.gz")
            self.drop(key)

    def _spec(
        self,
        collection: str,
        identifier: str,
        modified: float,
        kind: str,
        chunks: int = 0,
        suffix: str = "",
        *,
        listed: bool = True,
    ) -> ArchiveSpec:
        match = _IDENTIFIER.match(identifier)
        project, namespace = (match["project"], int(match["namespace"])) if match else (identifier, 0)
        return ArchiveSpec(
            key=f"{collection}/{identifier}{suffix}",
            identifier=identifier,
            project=project,
            language=self.languages.get(project) or site_of(project)[0],
            namespace=namespace,
            modified=modified,
            kind=kind,
            chunks=chunks,
            asof=modified,
            listed=listed,
        )

    def _collection(self, collection: str) -> dict[str, ArchiveSpec] | None:
        """Return the archives of a collection by the last part of their keys, or None if it does not exist."""
        begin = _begin(collection)
        if begin is None:
            self._renew_snapshots()
            return self._specs.get(collection)
        now = self.clock.now()
        if not begin + 3600 <= now <= begin + 3600 + self.retention:
            return None
        if collection not in self._specs:
            self._forget_old()
            self._specs[collection] = self._hour(collection, begin)
        return {name: spec for name, spec in self._specs[collection].items() if spec.modified <= now}

    def _hour(self, collection: str, begin: float) -> dict[str, ArchiveSpec]:
        names = list(_WIKIDATA_CHUNKS) if collection.startswith(_WIKIDATA) else self._archives.batches()
        delays = self.generated.pages.delays
        if collection.startswith(_WIKIDATA) or self._archives is not self.generated:
            spread = self._options["batch_delay"] * 0.95 / max(1, len(names))
            delays = {name: number * spread for number, name in enumerate(names)}
        return {
            name: replace(
                self._spec(collection, name, begin + 3600.05093 + delays[name], "batch"),
                asof=begin + 3600 + delays[name],
                begin=begin,
            )
            for name in names
            if not self.world.export_fails(f"{collection}/{name}")
        }

    def _forget_old(self) -> None:
        """Drop the hours beyond the retention with their archives, so that long runs stay small."""
        now = self.clock.now()
        for name in list(self._specs):
            begin = _begin(name)
            if begin is not None and begin + 3600 + self.retention < now:
                for spec in self._specs.pop(name).values():
                    self._rows.pop(spec.key, None)
                    self.objects.pop(f"{spec.key}.tar.gz", None)

    def hours(self) -> list[str]:
        """Return the hours whose batch lists exist now, oldest first, such as `2025-07-16T05`."""
        now = self.clock.now()
        last = int((now - self._options["batch_delay"]) // 3600) * 3600 - 3600
        first = int((now - self.retention - 3600) // 3600) * 3600 + 3600
        return [f"{datetime.fromtimestamp(hour, UTC):%Y-%m-%dT%H}" for hour in range(first, last + 1, 3600)]

    # Rows

    async def rows(self, collection: str) -> list[Mapping[str, Any]] | None:
        """Return a list as it was aggregated, in byte order of keys, or None if it does not exist.

        Generated archives below 500 bytes round to a size of 0 and are left out.
        """
        if collection in self.static:
            return sorted(self.static[collection], key=lambda row: f"{row['identifier']}.json".encode())
        specs = self._collection(collection)
        begin = _begin(collection)
        if begin is not None and self.clock.now() < begin + 3600 + self._options["batch_delay"]:
            specs = None
        added = self._put.get(collection, {})
        if specs is None and not added:
            return None
        keys = {name: spec.key for name, spec in (specs or {}).items() if spec.listed} | added
        await self._ensure(keys.values())
        ordered = sorted(keys, key=lambda name: f"{name}.json".encode())
        return [row for row in (self._rows[keys[name]] for name in ordered) if row["size"].get("value")]

    async def row(self, collection: str, name: str) -> Mapping[str, Any] | None:
        """Return the metadata of one thing, or None."""
        if collection in self.static:
            return next((row for row in self.static[collection] if str(row["identifier"]) == name), None)
        key = self._put.get(collection, {}).get(name)
        if key is None:
            spec = (self._collection(collection) or {}).get(name)
            if spec is None or not spec.listed:
                return None
            key = spec.key
        await self._ensure([key])
        return self._rows[key]

    # Objects

    async def find(self, object_key: str) -> StoredObject | None:
        """Build the archive of a key, or return None if it does not exist."""
        key = object_key.removesuffix(".tar.gz")
        if key == object_key or self._spec_of(key) is None:
            return None
        await self._ensure([key])
        return self.objects.get(object_key)

    def _spec_of(self, key: str) -> ArchiveSpec | None:
        collection, _, name = key.rpartition("/")
        self._renew_snapshots()
        if name.endswith(TWIN) and (collection + TWIN) in self._specs:
            return self._specs[collection + TWIN].get(name.removesuffix(TWIN))
        return (self._collection(collection) or {}).get(name)

    async def _ensure(self, keys: Iterable[str]) -> None:
        if all(key in self._rows for key in keys):
            return
        async with self._lock:
            missing = [spec for key in keys if key not in self._rows and (spec := self._spec_of(key)) is not None]
            for spec in missing:
                await asyncio.to_thread(self._build, spec)

    def _build(self, spec: ArchiveSpec) -> None:
        if spec.key not in self._rows:
            key = self.generated.cache_key(spec) if spec.asof <= self._opened_at(spec) else None
            archive = self._pack(spec) if key is None else _built.get((spec, key), lambda: self._pack(spec))
            self.objects.setdefault(f"{spec.key}.tar.gz", archive)
            self._rows[spec.key] = self._describe(spec, archive)

    def _pack(self, spec: ArchiveSpec) -> StoredObject:
        mode = 0o644 if spec.kind == "chunk" else 0o766
        level = 1 if self.generated.target(spec) else 6
        data = build_archive(self._members(spec), member_mode=mode, level=level)
        return stored(data, spec.modified, part_size=self._options["part_size"])

    def _describe(self, spec: ArchiveSpec, archive: StoredObject) -> dict[str, Any]:
        megabytes = round(archive.size / 1e6, 3)
        row: dict[str, Any] = {
            "identifier": spec.identifier,
            "version": archive.md5,
            "date_modified": timestamp(archive.modified, 9),
            "is_part_of": {"identifier": spec.project},
            "in_language": {"identifier": spec.language},
            "namespace": {"identifier": spec.namespace},
            "size": {"value": megabytes, "unit_text": "MB"} if megabytes else {"unit_text": "MB"},
        }
        if spec.chunks and spec.kind != "chunk":
            # Workers finish in any order, and this list has that order.
            order = Random(self._options["seed"] + spec.chunks).sample(range(spec.chunks), spec.chunks)
            row["chunks"] = [f"{spec.identifier}_chunk_{number}" for number in order]
        return row

    def _members(self, spec: ArchiveSpec) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Yield name and lines of each member; a member without lines is not written."""
        for number in [spec.chunk] if spec.kind == "chunk" else range(spec.members):
            lines = self._lines(spec, number)
            first = next(lines, None)
            if first is not None or spec.kind == "chunk":
                name = f"chunk_{number}" if spec.kind == "chunk" else f"{spec.identifier}_{number}"
                yield f"{name}.ndjson", chain([] if first is None else [first], lines)

    def _lines(self, spec: ArchiveSpec, member: int) -> Iterator[bytes]:
        """Make the lines of a member, unless the simulator is ending: a thread cannot be cancelled."""
        for line in self._all_lines(spec, member):
            if self.stopping.is_set():
                raise InterruptedError("the simulator is ending")
            yield line

    def _opened_at(self, spec: ArchiveSpec) -> float:
        """Return the time from which on the world decides an archive; never those of Wikidata and Commons."""
        return math.inf if spec.project in OTHERS else self.world.opened_at(spec.project)

    def _all_lines(self, spec: ArchiveSpec, member: int) -> Iterator[bytes]:
        opened = self._opened_at(spec)
        if spec.asof <= opened:
            yield from self.generated.lines(spec, member)
        elif spec.kind == "batch" and spec.begin < opened:
            yield from self.generated.lines(replace(spec, asof=opened), member)
            yield from self._world_archives.lines(replace(spec, begin=opened), member)
        else:
            if self.own_articles:
                yield from self.generated.real_lines(spec, member)
            yield from self._world_archives.lines(spec, member)

    def put(self, object_key: str, replacement: StoredObject, *, update_metadata: bool) -> None:
        """Store an object under a key; its metadata follow, or stay as they are."""
        key = object_key.removesuffix(".tar.gz")
        self._replaced.add(object_key)
        if key != object_key:
            spec = self._spec_of(key)
            if spec is not None and not update_metadata:
                self._build(spec)  # the metadata describe the object before
            elif update_metadata:
                if spec is None:
                    collection, _, name = key.rpartition("/")
                    spec = self._spec(collection, name, replacement.modified, "batch")
                    self._put.setdefault(collection, {})[name] = key
                self._rows[key] = self._describe(spec, replacement)
                # However small the object of a test is, the lists have it.
                self._rows[key]["size"].setdefault("value", 0.001)
        self.objects[object_key] = replacement

    def drop(self, key: str) -> None:
        """Forget an archive: its metadata and its entry in the list.

        Args:
            key: Of the object, without `.tar.gz`.
        """
        collection, _, name = key.rpartition("/")
        self._collection(collection)  # the hour may not have been looked at yet
        self._specs.get(collection, {}).pop(name, None)
        self._put.get(collection, {}).pop(name, None)
        self._rows.pop(key, None)


def _begin(collection: str) -> float | None:
    """Return the begin of the hour of a collection of batches, epoch seconds, or None for other collections."""
    match = _HOUR.match(collection)
    if match is None:
        return None
    try:
        return datetime.fromisoformat(f"{match['date']}T{match['hour']}:00:00+00:00").timestamp()
    except ValueError:
        return None
