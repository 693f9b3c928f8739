"""Metadata and archives: the lists, and the archives, which are built on first use.

Every archive is a pure function of the seed and its key, so that lists, archives and checksums agree without anything
being stored beforehand. A list builds all its archives, since it states the MD5 of each.
"""

import asyncio
import math
import re
import threading
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from wme_async.simulator.clock import Clock
from wme_async.simulator.hosts.store import StoredObject, stored
from wme_async.simulator.world.articles import ArticleGenerator, Kind, build_archive, dumps, site_of, timestamp
from wme_async.simulator.world.entities import EntityGenerator
from wme_async.simulator.world.metadata import EMPTY, NAMESPACES, PROJECTS, batch_sizes, real_articles, static_world

if TYPE_CHECKING:
    from wme_async.simulator.options import SimulatorOptions

__all__ = ["ArchiveSpec", "Catalog"]

_STRUCTURED: Final = ("enwiki", "dewiki", "frwiki", "eswiki", "itwiki")
_CHUNKED: Final[Mapping[str, int]] = {"enwiki_namespace_0": 12, "simplewiki_namespace_0": 2}
_IDENTIFIER = re.compile(r"^(?P<project>.+)_namespace_(?P<namespace>\d+)$")
_WIKIDATA: Final = "batches/wikidata/"
_WIKIDATA_CHUNKS: Final[Mapping[str, int]] = {"wikidatawiki_namespace_0": 3, "wikidatawiki_namespace_120": 0}
_HOUR = re.compile(r"^batches/(?:wikidata/)?(?P<date>\d{4}-\d\d-\d\d)/(?P<hour>\d\d)$")
TWIN: Final = "_group_1"

# Seconds after midnight UTC at which the exports of a day's snapshots end, one after the other.
_FIRST_SNAPSHOT: Final = 53.25
_SNAPSHOT_STEP: Final = 61.892227533
_STRUCTURED_SNAPSHOT: Final = 3600.5
_WIKIDATA_SNAPSHOT: Final = 7200.125
_LAST_SNAPSHOT: Final = max(
    _FIRST_SNAPSHOT + len(PROJECTS) * len(NAMESPACES) * _SNAPSHOT_STEP, _STRUCTURED_SNAPSHOT, _WIKIDATA_SNAPSHOT
)


@dataclass(frozen=True, slots=True)
class ArchiveSpec:
    """The properties from which an archive is built.

    Attributes:
        key: The object's key without `.tar.gz`.
        identifier: Its identifier in the metadata.
        project: Database name.
        language: Language code.
        namespace: Namespace number.
        modified: Time of its export, epoch seconds.
        kind: "snapshot", "batch", "chunk" or "structured".
        chunks: The number of chunks of a snapshot; 0 for one that was never chunked.
        chunk: The number of a chunk.
        asof: Time at which its records were current, epoch seconds: a chunk has those of its snapshot.
        listed: Whether it has metadata at all.
    """

    key: str
    identifier: str
    project: str
    language: str
    namespace: int
    modified: float
    kind: str
    chunks: int = 0
    chunk: int = 0
    asof: float = 0.0
    listed: bool = True


class _ArchiveCache:
    """Archives that simulators of this process have built: test suites start many simulators with the same archives.

    Args:
        limit: Bytes of all archives together; beyond it the oldest are dropped.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._archives: dict[Hashable, StoredObject] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, build: Callable[[], StoredObject]) -> StoredObject:
        """Return the archive of a key, built by the function if it is not there."""
        archive = self._archives.get(key)
        if archive is None:
            archive = build()
            with self._lock:
                self._archives[key] = archive
                size = sum(archive.size for archive in self._archives.values())
                while size > self._limit:
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
        self.articles: int = options["articles"]
        self._archive_bytes = options["archive_bytes"] or {}
        data = options["data"]
        folder = None if data is None else Path(data)
        self.real: list[dict[str, Any]] = real_articles(folder)
        self.generator: ArticleGenerator = ArticleGenerator(options["seed"], base=self.real or None)
        self.entities: EntityGenerator = EntityGenerator(options["seed"], self.generator)
        self.static: dict[str, list[dict[str, Any]]] = static_world(folder)
        self.languages: dict[str, str] = {
            str(row["identifier"]): str(row.get("in_language", {}).get("identifier", ""))
            for row in self.static["projects"]
        }
        self._sizes = batch_sizes(folder)
        self._specs: dict[str, dict[str, ArchiveSpec]] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._put: dict[str, dict[str, str]] = {}
        self._lock = asyncio.Lock()
        self.stopping: threading.Event = threading.Event()
        self.objects: dict[str, StoredObject] = {}
        self._add_snapshots()

    # Existing archives

    def _add_snapshots(self) -> None:
        # The newest day whose snapshots have all ended: nothing is modified in the future.
        latest = datetime.fromtimestamp(self.clock.now() - _LAST_SNAPSHOT, UTC)
        midnight = latest.replace(hour=0, minute=0, second=0, microsecond=0)
        first_of_month = midnight.replace(day=1).timestamp()
        identifiers = [f"{project}_namespace_{namespace}" for project in PROJECTS for namespace, _, _ in NAMESPACES]
        for suffix, day in (("", midnight.timestamp()), (TWIN, first_of_month)):
            for number, identifier in enumerate(identifiers):
                modified = day + _FIRST_SNAPSHOT + number * _SNAPSHOT_STEP
                self._add_snapshot("snapshots", identifier, modified, _CHUNKED.get(identifier, 0), suffix)
            self._add_snapshot("snapshots", "commonswiki_namespace_6", first_of_month, 0, suffix, listed=False)
            for identifier, chunks in _WIKIDATA_CHUNKS.items():
                self._add_snapshot("wikidata-snapshots", identifier, day + _WIKIDATA_SNAPSHOT, chunks, suffix)
        modified = midnight.timestamp() + _STRUCTURED_SNAPSHOT
        names = [f"{project}_namespace_0" for project in _STRUCTURED]
        self._specs["structured-snapshots"] = {
            name: self._spec("structured-snapshots", name, modified, "structured") for name in names
        }

    def _add_snapshot(
        self, collection: str, identifier: str, modified: float, chunks: int, suffix: str, *, listed: bool = True
    ) -> None:
        snapshot = self._spec(collection, identifier, modified, "snapshot", chunks, suffix, listed=listed)
        self._specs.setdefault(collection + suffix, {})[identifier] = snapshot
        chunk_collection = f"{collection.replace('snapshots', 'chunks')}/{identifier}"
        for number in range(chunks):
            self._specs.setdefault(chunk_collection + suffix, {})[f"chunk_{number}"] = replace(
                snapshot,
                key=f"{chunk_collection}/chunk_{number}{suffix}",
                identifier=f"{identifier}_chunk_{number}",
                modified=modified - chunks + number,
                kind="chunk",
                chunk=number,
            )

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
            return self._specs.get(collection)
        now = self.clock.now()
        if not begin + 3600 <= now <= begin + 3600 + self.retention:
            return None
        if collection not in self._specs:
            self._forget_old()
            self._specs[collection] = self._hour(collection, begin)
        return {name: spec for name, spec in self._specs[collection].items() if spec.modified <= now}

    def _hour(self, collection: str, begin: float) -> dict[str, ArchiveSpec]:
        names = list(_WIKIDATA_CHUNKS if collection.startswith(_WIKIDATA) else self._sizes)
        # The exports of one hour finish one after the other; the list is written when all are there.
        spread = self._options["batch_delay"] * 0.95 / max(1, len(names))
        return {
            name: self._spec(collection, name, begin + 3600.05093 + number * spread, "batch")
            for number, name in enumerate(names)
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

        Archives below 500 bytes round to a size of 0 and are left out.
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
        if name.endswith(TWIN) and (collection + TWIN) in self._specs:
            return self._specs[collection + TWIN].get(name.removesuffix(TWIN))
        return (self._collection(collection) or {}).get(name)

    async def _ensure(self, keys: Iterable[str]) -> None:
        if all(key in self._rows for key in keys):
            return
        async with self._lock:
            missing = [spec for key in keys if key not in self._rows and (spec := self._spec_of(key)) is not None]
            if missing:
                await asyncio.to_thread(self._build_all, missing)

    def _build_all(self, specs: Iterable[ArchiveSpec]) -> None:
        for spec in specs:
            self._build(spec)

    def _build(self, spec: ArchiveSpec) -> None:
        if spec.key not in self._rows:
            options = [self._options[name] for name in ("seed", "article_size", "duplicates", "part_size")]
            key = (spec, *options, self._target(spec), self._count(spec), self.articles)
            archive = _built.get(key, lambda: self._pack(spec)) if not self.real else self._pack(spec)
            self.objects.setdefault(f"{spec.key}.tar.gz", archive)
            self._rows[spec.key] = self._describe(spec, archive)

    def _pack(self, spec: ArchiveSpec) -> StoredObject:
        mode = 0o644 if spec.kind == "chunk" else 0o766
        data = build_archive(self._members(spec), member_mode=mode, level=1 if self._target(spec) else 6)
        return stored(data, spec.modified, part_size=self._options["part_size"])

    def _describe(self, spec: ArchiveSpec, archive: StoredObject) -> dict[str, Any]:
        size: dict[str, Any] = {"value": round(archive.size / 1e6, 3), "unit_text": "MB"}
        if not size["value"]:
            del size["value"]
        row: dict[str, Any] = {
            "identifier": spec.identifier,
            "version": archive.md5,
            "date_modified": timestamp(archive.modified, 9),
            "is_part_of": {"identifier": spec.project},
            "in_language": {"identifier": spec.language},
            "namespace": {"identifier": spec.namespace},
            "size": size,
        }
        if spec.chunks and spec.kind != "chunk":
            # Workers finish in any order, and this list has that order.
            order = Random(self._options["seed"] + spec.chunks).sample(range(spec.chunks), spec.chunks)
            row["chunks"] = [f"{spec.identifier}_chunk_{number}" for number in order]
        return row

    def _members(self, spec: ArchiveSpec) -> list[tuple[str, Iterable[bytes]]]:
        if spec.identifier == EMPTY:
            return []
        if spec.kind == "chunk":
            return [(f"chunk_{spec.chunk}.ndjson", self._lines(spec, spec.chunk))]
        return [
            (f"{spec.identifier}_{number}.ndjson", self._lines(spec, number)) for number in range(max(1, spec.chunks))
        ]

    def _lines(self, spec: ArchiveSpec, member: int) -> Iterator[bytes]:
        """Make the lines of a member, unless the simulator is ending: a thread cannot be cancelled."""
        for line in self._all_lines(spec, member):
            if self.stopping.is_set():
                raise InterruptedError("the simulator is ending")
            yield line

    def _all_lines(self, spec: ArchiveSpec, member: int) -> Iterator[bytes]:
        """Make the lines of a member; a chunk has the lines of its member of the snapshot."""
        target = self._target(spec)
        if member == 0 and spec.kind != "structured" and spec.namespace == 0:
            for record in self.real:
                if record["is_part_of"]["identifier"] == spec.project:
                    line = dumps(record) + b"\n"
                    target -= len(zlib.compress(line, 1)) if target else 0
                    yield line
        lines = self._generated(spec, self.first_page(spec.project, spec.namespace) + member * self.articles)
        yield from self._until(lines, target) if target > 0 else islice(lines, self._count(spec))

    def _target(self, spec: ArchiveSpec) -> int:
        """Return the compressed bytes that each member reaches, or 0 if a number of records decides."""
        identifier = spec.identifier.partition("_chunk_")[0]
        return (self._archive_bytes.get(spec.key) or self._archive_bytes.get(identifier, 0)) // max(1, spec.chunks)

    def _count(self, spec: ArchiveSpec) -> int:
        """Return the number of records: larger projects have more, on a scale that keeps all archives small."""
        if spec.chunks or spec.kind == "chunk":
            return self.articles
        return round(self.articles * (0.5 + 0.5 * math.log10(1 + 1000 * self._sizes.get(spec.identifier, 0.05))))

    def _generated(self, spec: ArchiveSpec, first: int) -> Iterator[bytes]:
        rnd = Random(first ^ self._options["seed"])
        duplicates = self._options["duplicates"]
        for number in count():
            record = self._record(spec, first + number, number)
            yield dumps(record) + b"\n"
            if duplicates and rnd.random() < duplicates and "version" in record:
                version = {**record["version"], "identifier": record["version"]["identifier"] - 1}
                yield dumps({**record, "version": version}) + b"\n"

    def _record(self, spec: ArchiveSpec, page: int, number: int) -> dict[str, Any]:
        # Exported things are older than the export; a batch has the events of its hour.
        published = spec.asof - 3600 * (0.05 + 0.9 * ((number * 37) % 101) / 101)
        if spec.kind == "structured":
            return self.generator.structured(page, project=spec.project, where="snapshot", published=published)
        kind: Kind = "delete" if spec.kind == "batch" and number % 10 == 9 else "update"
        if spec.project == "wikidatawiki":
            return self._entity(spec, page, kind, published)
        return self.generator.article(
            page,
            project=spec.project,
            namespace=spec.namespace,
            kind=kind,
            size=self._options["article_size"],
            published=published,
        )

    def _entity(self, spec: ArchiveSpec, page: int, kind: Kind, published: float) -> dict[str, Any]:
        if spec.namespace:
            return self.entities.property(1 + page % 10_000, shape="mixed", kind=kind, published=published)
        # One item in eleven belongs to the scholarly graph, which is not exported: count only the others.
        block, position = divmod(page % 1_000_000, 10)
        numbers = [
            number for number in range(110 + block * 11, 121 + block * 11) if not self.entities.is_scholarly(number)
        ]
        return self.entities.item(numbers[position], shape="mixed", kind=kind, published=published)

    @staticmethod
    def _until(lines: Iterator[bytes], target: int) -> Iterator[bytes]:
        """Yield lines until they would compress to `target` bytes."""
        packer, size = zlib.compressobj(1), 0
        while size < target:
            line = next(lines)
            size += len(packer.compress(line))
            yield line

    def first_page(self, project: str, namespace: int) -> int:
        """Return the index of the first page of a project and namespace: each has room for 20,000 pages."""
        return (zlib.crc32(project.encode()) % 31) * 300_000 + namespace * 20_000

    def put(self, object_key: str, replacement: StoredObject, *, update_metadata: bool) -> None:
        """Store an object under a key; its metadata follow, or stay as they are."""
        key = object_key.removesuffix(".tar.gz")
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
