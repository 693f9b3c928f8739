"""The world that the simulator serves: metadata, and archives that are built when somebody first asks for them.

Every archive is a pure function of the seed and its key, so that lists, archives and checksums agree without anything
being stored beforehand. What is listed is built, since a list states the MD5 of each archive.
"""

import asyncio
import math
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from random import Random
from typing import Any, Final

from wme_async.simulator.clock import Clock
from wme_async.simulator.hosts.store import StoredObject, stored
from wme_async.simulator.world.articles import ArticleGenerator, Kind, build_archive, dumps, site_of, timestamp
from wme_async.simulator.world.entities import EntityGenerator
from wme_async.simulator.world.metadata import EMPTY, NAMESPACES, PROJECTS, batch_sizes, real_articles, static_world

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
    """What an archive is made of.

    Attributes:
        key: The object's key without `.tar.gz`.
        identifier: What metadata call it.
        project: Database name.
        language: Language code.
        namespace: Namespace number.
        modified: When it was exported, epoch seconds.
        kind: "snapshot", "batch", "chunk" or "structured".
        chunks: How many chunks a snapshot has; 0 for one that was never chunked.
        chunk: The number of a chunk.
        asof: When its records were current: a chunk's are those of its snapshot.
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


class Catalog:
    """Metadata and archives.

    Args:
        clock: Tells which hours exist.
        seed: What everything follows from.
        data: A folder with real files: `articles.ndjson`, `batches.json`, `projects.json`, `languages.json`,
            `namespaces.json`, `codes.json`, each used where it is there.
        articles: Records in each archive (in each chunk of a chunked snapshot).
        article_size: As in `ArticleGenerator.article`.
        archive_bytes: For single identifiers, or keys such as `batches/2025-07-16/05/enwiki_namespace_0`, the size to
            reach, in compressed bytes, instead of a count.
        duplicates: The share of records that come a second time with an older revision, as compaction leaves them.
        part_size: As in `ObjectStore`.
        batch_delay: Seconds after the end of an hour at which its list appears.
        retention: Seconds that batches stay.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        seed: int = 0,
        data: str | PathLike[str] | None = None,
        articles: int = 12,
        article_size: Any = "small",
        archive_bytes: Mapping[str, int] | None = None,
        duplicates: float = 0.0,
        part_size: int = 100_000_000,
        batch_delay: float = 1500.0,
        retention: float = 48 * 3600.0,
    ) -> None:
        self.clock = clock
        self.seed = seed
        self.articles = articles
        self.article_size = article_size
        self.archive_bytes: dict[str, int] = dict(archive_bytes or {})
        self.duplicates = duplicates
        self.part_size = part_size
        self.batch_delay = batch_delay
        self.retention = retention
        folder = None if data is None else Path(data)
        self.real: list[dict[str, Any]] = real_articles(folder)
        self.generator: ArticleGenerator = ArticleGenerator(seed, base=self.real or None)
        self.entities: EntityGenerator = EntityGenerator(seed, self.generator)
        self.static: dict[str, list[dict[str, Any]]] = static_world(folder)
        self.languages: dict[str, str] = {
            str(row["identifier"]): str(row.get("in_language", {}).get("identifier", ""))
            for row in self.static["projects"]
        }
        self._sizes = batch_sizes(folder)
        self._specs: dict[str, dict[str, ArchiveSpec]] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._extra: dict[str, dict[str, str]] = {}
        self._lock = asyncio.Lock()
        self.stopping: threading.Event = threading.Event()
        self.objects: dict[str, StoredObject] = {}
        self._snapshots()

    # What exists

    def _snapshots(self) -> None:
        # The newest day whose snapshots have all ended: nothing is modified in the future.
        latest = datetime.fromtimestamp(self.clock.now() - _LAST_SNAPSHOT, UTC)
        midnight = latest.replace(hour=0, minute=0, second=0, microsecond=0)
        first = midnight.replace(day=1)
        for suffix, day in (("", midnight), (TWIN, first)):
            known: dict[str, ArchiveSpec] = {}
            for number, (project, namespace) in enumerate(
                (project, namespace) for project in PROJECTS for namespace, _, _ in NAMESPACES
            ):
                identifier = f"{project}_namespace_{namespace}"
                chunks = _CHUNKED.get(identifier, 0)
                modified = day.timestamp() + _FIRST_SNAPSHOT + number * _SNAPSHOT_STEP
                known[identifier] = self._spec("snapshots", identifier, modified, "snapshot", chunks, suffix)
                for chunk in range(chunks):
                    self._add_chunk(known[identifier], chunk, suffix)
            commons = self._spec(
                "snapshots", "commonswiki_namespace_6", first.timestamp(), "snapshot", 0, suffix, listed=False
            )
            known[commons.identifier] = commons
            self._specs["snapshots" + suffix] = known
            self._specs["wikidata-snapshots" + suffix] = {
                name: self._wikidata(name, day.timestamp() + _WIKIDATA_SNAPSHOT, chunks, suffix)
                for name, chunks in _WIKIDATA_CHUNKS.items()
            }
        self._specs["structured-snapshots"] = {
            f"{project}_namespace_0": self._spec(
                "structured-snapshots",
                f"{project}_namespace_0",
                midnight.timestamp() + _STRUCTURED_SNAPSHOT,
                "structured",
            )
            for project in _STRUCTURED
        }

    def _wikidata(self, name: str, modified: float, chunks: int, suffix: str) -> ArchiveSpec:
        made = self._spec("wikidata-snapshots", name, modified, "snapshot", chunks, suffix)
        for chunk in range(chunks):
            self._add_chunk(made, chunk, suffix, "wikidata-chunks")
        return made

    def _add_chunk(self, snapshot: ArchiveSpec, chunk: int, suffix: str, where: str = "chunks") -> None:
        collection = f"{where}/{snapshot.identifier}"
        made = replace(
            snapshot,
            key=f"{collection}/chunk_{chunk}{suffix}",
            identifier=f"{snapshot.identifier}_chunk_{chunk}",
            modified=snapshot.modified - snapshot.chunks + chunk,
            kind="chunk",
            chunk=chunk,
        )
        self._specs.setdefault(collection + suffix, {})[f"chunk_{chunk}"] = made

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

    def _known(self, collection: str) -> dict[str, ArchiveSpec] | None:
        """Return what is in a collection by the last part of its key, or None where there is no such collection."""
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
        spread = self.batch_delay * 0.95 / max(1, len(names))
        return {
            name: self._spec(collection, name, begin + 3600.05093 + number * spread, "batch")
            for number, name in enumerate(names)
        }

    def _forget_old(self) -> None:
        """Drop the hours that retention has passed, with what was built for them, so that long runs stay small."""
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
        last = int((now - self.batch_delay) // 3600) * 3600 - 3600
        first = int((now - self.retention - 3600) // 3600) * 3600 + 3600
        return [f"{datetime.fromtimestamp(hour, UTC):%Y-%m-%dT%H}" for hour in range(first, last + 1, 3600)]

    # Rows

    async def rows(self, collection: str) -> list[Mapping[str, Any]] | None:
        """Return a list as it was aggregated, in byte order of keys, or None where it was not.

        Archives below 500 bytes round to a size of nothing and are left out.
        """
        if collection in self.static:
            return sorted(self.static[collection], key=lambda row: f"{row['identifier']}.json".encode())
        known = self._known(collection)
        begin = _begin(collection)
        if begin is not None and self.clock.now() < begin + 3600 + self.batch_delay:
            known = None
        extra = self._extra.get(collection, {})
        if known is None and not extra:
            return None
        keys = {name: spec.key for name, spec in (known or {}).items() if spec.listed} | extra
        await self._ensure(keys.values())
        ordered = sorted(keys, key=lambda name: f"{name}.json".encode())
        return [row for row in (self._rows[keys[name]] for name in ordered) if row["size"].get("value")]

    async def row(self, collection: str, name: str) -> Mapping[str, Any] | None:
        """Return the metadata of one thing, or None."""
        if collection in self.static:
            return next((row for row in self.static[collection] if str(row["identifier"]) == name), None)
        key = self._extra.get(collection, {}).get(name)
        if key is None:
            spec = (self._known(collection) or {}).get(name)
            if spec is None or not spec.listed:
                return None
            key = spec.key
        await self._ensure([key])
        return self._rows[key]

    # Objects

    async def find(self, object_key: str) -> StoredObject | None:
        """Build the archive of a key, or return None where there is none."""
        key = object_key.removesuffix(".tar.gz")
        if key == object_key or self._spec_of(key) is None:
            return None
        await self._ensure([key])
        return self.objects.get(object_key)

    def _spec_of(self, key: str) -> ArchiveSpec | None:
        collection, _, name = key.rpartition("/")
        if name.endswith(TWIN) and (collection + TWIN) in self._specs:
            return self._specs[collection + TWIN].get(name.removesuffix(TWIN))
        return (self._known(collection) or {}).get(name)

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
        if spec.key in self._rows:
            return
        mode = 0o644 if spec.kind == "chunk" else 0o766
        wanted = self._wanted(spec)
        data = build_archive(self._members(spec), member_mode=mode, level=1 if wanted else 6)
        made = stored(data, spec.modified, part_size=self.part_size)
        self.objects.setdefault(f"{spec.key}.tar.gz", made)
        self._rows[spec.key] = self._describe(spec, made, spec.modified)

    def _describe(self, spec: ArchiveSpec, made: StoredObject, modified: float) -> dict[str, Any]:
        size: dict[str, Any] = {"value": round(made.size / 1e6, 3), "unit_text": "MB"}
        if not size["value"]:
            del size["value"]
        row: dict[str, Any] = {
            "identifier": spec.identifier,
            "version": made.md5,
            "date_modified": timestamp(modified, 9),
            "is_part_of": {"identifier": spec.project},
            "in_language": {"identifier": spec.language},
            "namespace": {"identifier": spec.namespace},
            "size": size,
        }
        if spec.chunks and spec.kind != "chunk":
            # Workers finish in any order, and this list keeps theirs.
            order = Random(self.seed + spec.chunks).sample(range(spec.chunks), spec.chunks)
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
        """Make the records of a member, unless the simulator is ending: a thread cannot be cancelled."""
        for line in self._made(spec, member):
            if self.stopping.is_set():
                raise InterruptedError("the simulator is ending")
            yield line

    def _made(self, spec: ArchiveSpec, member: int) -> Iterator[bytes]:
        """Make the records of a member; a chunk has the very lines of its member of the snapshot."""
        first = self.first_page(spec.project, spec.namespace) + member * self.articles
        wanted = self._wanted(spec)
        if member == 0 and spec.kind != "structured":
            for record in self.real:
                if record["is_part_of"]["identifier"] == spec.project and spec.namespace == 0:
                    line = dumps(record) + b"\n"
                    wanted -= len(zlib.compress(line, 1)) if wanted else 0
                    yield line
        yield from self._until(self._records(spec, first), wanted) if wanted > 0 else self._count(spec, first)

    def _wanted(self, spec: ArchiveSpec) -> int:
        """Return the compressed bytes wished for in each member, or 0 where a count of records decides."""
        whole = spec.identifier.partition("_chunk_")[0]
        return (self.archive_bytes.get(spec.key) or self.archive_bytes.get(whole, 0)) // max(1, spec.chunks)

    def _count(self, spec: ArchiveSpec, first: int) -> Iterator[bytes]:
        records = self._records(spec, first)
        for _ in range(round(self.articles * (1 if spec.chunks or spec.kind == "chunk" else self._weight(spec)))):
            yield next(records)

    def _weight(self, spec: ArchiveSpec) -> float:
        """Larger projects have larger archives, on a scale that keeps all of them small."""
        return 0.5 + 0.5 * math.log10(1 + 1000 * self._sizes.get(spec.identifier, 0.05))

    def _records(self, spec: ArchiveSpec, first: int) -> Iterator[bytes]:
        rnd = Random(first ^ self.seed)
        number = 0
        while True:
            record = self._record(spec, first + number, number)
            line = dumps(record) + b"\n"
            yield line
            if self.duplicates and rnd.random() < self.duplicates and "version" in record:
                version = {**record["version"], "identifier": record["version"]["identifier"] - 1}
                yield dumps({**record, "version": version}) + b"\n"
            number += 1

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
            size=self.article_size,
            published=published,
        )

    def _entity(self, spec: ArchiveSpec, page: int, kind: Kind, published: float) -> dict[str, Any]:
        if spec.namespace:
            return self.entities.property(1 + page % 10_000, shape="mixed", kind=kind, published=published)
        # One item in eleven belongs to the scholarly graph, which is not exported: count only the others.
        block, place = divmod(page % 1_000_000, 10)
        numbers = [
            number for number in range(110 + block * 11, 121 + block * 11) if not self.entities.is_scholarly(number)
        ]
        return self.entities.item(numbers[place], shape="mixed", kind=kind, published=published)

    @staticmethod
    def _until(lines: Iterator[bytes], wanted: int) -> Iterator[bytes]:
        """Pass lines on until they would compress to so many bytes."""
        packer = zlib.compressobj(1)
        packed = 0
        while packed < wanted:
            line = next(lines)
            packed += len(packer.compress(line))
            yield line

    def first_page(self, project: str, namespace: int) -> int:
        """Return the index of the first page of a project and namespace: 20,000 pages are kept for each."""
        return (zlib.crc32(project.encode()) % 31) * 300_000 + namespace * 20_000

    def put(self, object_key: str, made: StoredObject, *, update_metadata: bool) -> None:
        """Store an object under a key, and let its metadata follow or stay as they are."""
        key = object_key.removesuffix(".tar.gz")
        if key != object_key:
            spec = self._spec_of(key)
            if spec is not None and not update_metadata:
                self._build(spec)  # the metadata describe what was there before
            elif update_metadata:
                if spec is None:
                    collection, _, name = key.rpartition("/")
                    spec = self._spec(collection, name, made.modified, "batch")
                    self._extra.setdefault(collection, {})[name] = key
                self._rows[key] = {**self._describe(spec, made, made.modified)}
        self.objects[object_key] = made


def _begin(collection: str) -> float | None:
    """Return when the hour of a collection of batches begins, epoch seconds, or None for anything else."""
    match = _HOUR.match(collection)
    if match is None:
        return None
    try:
        return datetime.fromisoformat(f"{match['date']}T{match['hour']}:00:00+00:00").timestamp()
    except ValueError:
        return None
