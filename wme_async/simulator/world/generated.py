"""Archives of generated pages: each line is a function of the seed, the page and the time of the export."""

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from random import Random
from typing import TYPE_CHECKING, Any, Final

from wme_async.simulator.world.archive_spec import ArchiveSpec
from wme_async.simulator.world.articles import ArticleGenerator, Kind, dumps
from wme_async.simulator.world.entities import FIRST_DELETED, EntityGenerator
from wme_async.simulator.world.generated_pages import CHUNKED, GeneratedPages
from wme_async.simulator.world.metadata import EMPTY, NAMESPACES, PROJECTS, STRUCTURED

if TYPE_CHECKING:
    from wme_async.simulator.options import SimulatorOptions

OTHERS: Final = ("commonswiki", "wikidatawiki")  # projects without pages of the built-in world
_SHIFT: Final = 5  # pages that a new export begins later


class GeneratedArchives:
    """The lines of archives, made when they are read.

    Args:
        options: The options of the simulator: `seed` and those of archives.
        sizes: The archives of each hour, and sizes in MB that determine which one is larger.
        real: Real articles.

    Attributes:
        articles: Records in each archive.
    """

    def __init__(self, options: "SimulatorOptions", sizes: Mapping[str, float], real: list[dict[str, Any]]) -> None:
        self._options = options
        self._archive_bytes = options["archive_bytes"] or {}
        self._sizes = sizes
        self._real = real
        self.articles: int = options["articles"]
        self.generator: ArticleGenerator = ArticleGenerator(options["seed"], base=real or None)
        self.entities: EntityGenerator = EntityGenerator(options["seed"], self.generator)
        self.pages: GeneratedPages = GeneratedPages(options, sizes, self.generator)

    def snapshots(self) -> list[str]:
        """Return the identifiers of the daily snapshots, in the order of their export."""
        return [f"{project}_namespace_{namespace}" for project in PROJECTS for namespace, _, _ in NAMESPACES]

    def batches(self) -> list[str]:
        """Return the identifiers of the batches of each hour."""
        return list(self._sizes)

    def chunks(self, identifier: str) -> int:
        """Return the number of chunks of a snapshot; 0 for one that is never chunked."""
        return CHUNKED.get(identifier, 0)

    def structured(self) -> list[str]:
        """Return the identifiers of the structured snapshots."""
        return [f"{project}_namespace_0" for project in STRUCTURED]

    def cache_key(self, spec: ArchiveSpec) -> object | None:
        """Return all that determines the bytes of an archive beside its spec, or None if they must not be reused."""
        if self._real or self.pages.edited_by_hand(spec.project, spec.namespace):
            return None
        options: Mapping[str, Any] = self._options
        values = [options[name] for name in ("seed", "article_size", "duplicates", "part_size")]
        return (
            *values,
            self.target(spec),
            self._count(spec),
            self.articles,
            self.pages.section(spec.project, spec.namespace),
        )

    def lines(self, spec: ArchiveSpec, member: int) -> Iterator[bytes]:
        """Make the lines of a member; a chunk has the lines of its member of the snapshot."""
        if spec.identifier == EMPTY:
            return
        target = self.target(spec)
        for line in self.real_lines(spec, member):
            target -= len(zlib.compress(line, 1)) if target else 0
            yield line
        if target > 0:
            yield from self._until(self._generated(spec, itertools.count(member, spec.members)), target)
            return
        start = member * self.articles
        yield from self._generated(spec, range(start, start + round(self._count(spec) * spec.share)))
        if spec.kind == "batch":
            yield from self._published_by_hand(spec)

    def real_lines(self, spec: ArchiveSpec, member: int) -> Iterator[bytes]:
        """Make the lines of real articles, which are in the first member of the archives of their project."""
        if member == 0 and spec.kind != "structured" and spec.namespace == 0:
            for record in self._real:
                if record["is_part_of"]["identifier"] == spec.project:
                    yield dumps(record) + b"\n"

    def target(self, spec: ArchiveSpec) -> int:
        """Return the compressed bytes that each member reaches, or 0 if a number of records decides."""
        identifier = spec.identifier.partition("_chunk_")[0]
        return (self._archive_bytes.get(spec.key) or self._archive_bytes.get(identifier, 0)) // max(1, spec.chunks)

    def _count(self, spec: ArchiveSpec) -> int:
        """Return the number of records of a member."""
        return self.articles if spec.chunks or spec.kind == "chunk" else self.pages.count(spec.identifier)

    def _generated(self, spec: ArchiveSpec, numbers: Iterable[int]) -> Iterator[bytes]:
        rnd = Random(f"duplicates {self._options['seed']} {spec.project} {spec.namespace}")
        duplicates = self._options["duplicates"]
        for number in numbers:
            record = self._record(spec, number)
            if record is None:
                continue
            yield dumps(record) + b"\n"
            if duplicates and rnd.random() < duplicates and "version" in record:
                version = {**record["version"], "identifier": record["version"]["identifier"] - 1}
                yield dumps({**record, "version": version}) + b"\n"

    def _record(self, spec: ArchiveSpec, number: int) -> dict[str, Any] | None:
        """Return a record of an archive, or None if its page is deleted."""
        if spec.project in OTHERS:
            return self._other_record(spec, number)
        section, size = self.pages.section(spec.project, spec.namespace), self._options["article_size"]
        if spec.kind == "batch":
            hour = int(spec.begin // 3600)
            position = section.updated_page(hour, number)
            if section.edited(hour, number) >= spec.asof:
                return None  # the world decides the rest of this hour
            if position is None:
                return self.pages.brief_delete(section, hour, number)
            if number < section.updates + section.deletes:
                return self.pages.newest_record(section, position, spec.asof, size)
            # A large archive has pages beyond those that have their turn.
            state = self.pages.state(section, section.pages + number, spec.asof)
            return state and self.pages.article(section, state._replace(published=section.edited(hour, number)), size)
        total = self.articles * spec.chunks
        # Each export deals the pages to its chunks anew.
        position = (number + spec.number * _SHIFT) % total if number < total and not self.target(spec) else number
        state = self.pages.state(section, position, spec.asof)
        if state is None:
            return None
        structured = spec.kind == "structured"
        return self.pages.structured(section, state) if structured else self.pages.article(section, state, size)

    def _published_by_hand(self, spec: ArchiveSpec) -> Iterator[bytes]:
        """Make the lines of pages that a test has edited on the stream and that did not have their turn."""
        section, hour = self.pages.section(spec.project, spec.namespace), int(spec.begin // 3600)
        numbers = range(section.updates + section.deletes)
        regular = {section.updated_page(hour, number) for number in numbers if section.edited(hour, number) < spec.asof}
        for position in self.pages.edited_between(section, spec.begin, spec.asof):
            if position not in regular:
                record = self.pages.newest_record(section, position, spec.asof, self._options["article_size"])
                yield dumps(record) + b"\n"

    def _other_record(self, spec: ArchiveSpec, number: int) -> dict[str, Any]:
        # Exported things are older than the export; a batch has the events of its hour.
        published = spec.asof - 3600 * (0.05 + 0.9 * ((number * 37) % 101) / 101)
        kind: Kind = "delete" if spec.kind == "batch" and number % 10 == 9 else "update"
        page = self.pages.section(spec.project, spec.namespace).first + number
        if spec.project == "wikidatawiki":
            return self._entity(spec, page, kind, published)
        size = self._options["article_size"]
        return self.generator.article(page, project=spec.project, namespace=6, size=size, published=published)

    def _entity(self, spec: ArchiveSpec, page: int, kind: Kind, published: float) -> dict[str, Any]:
        if spec.namespace:
            first = FIRST_DELETED["P"] if kind == "delete" else 1
            return self.entities.property(first + page % 10_000, shape="mixed", kind=kind, published=published)
        if kind == "delete":
            number = FIRST_DELETED["Q"] + page
            return self.entities.item(number, shape="mixed", kind=kind, published=published)
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
