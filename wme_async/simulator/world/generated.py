"""Archives of generated pages: each line is a function of the seed, the page and the time of the export."""

import math
import zlib
from collections.abc import Iterator, Mapping
from itertools import count, islice
from random import Random
from typing import TYPE_CHECKING, Any, Final

from wme_async.simulator.world.archive_spec import ArchiveSpec
from wme_async.simulator.world.articles import ArticleGenerator, Kind, dumps
from wme_async.simulator.world.entities import EntityGenerator
from wme_async.simulator.world.metadata import EMPTY, NAMESPACES, PROJECTS, STRUCTURED

if TYPE_CHECKING:
    from wme_async.simulator.options import SimulatorOptions

__all__ = ["GeneratedArchives"]

_CHUNKED: Final[Mapping[str, int]] = {"enwiki_namespace_0": 12, "simplewiki_namespace_0": 2}


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

    def snapshots(self) -> list[str]:
        """Return the identifiers of the daily snapshots, in the order of their export."""
        return [f"{project}_namespace_{namespace}" for project in PROJECTS for namespace, _, _ in NAMESPACES]

    def batches(self) -> list[str]:
        """Return the identifiers of the batches of each hour."""
        return list(self._sizes)

    def chunks(self, identifier: str) -> int:
        """Return the number of chunks of a snapshot; 0 for one that is never chunked."""
        return _CHUNKED.get(identifier, 0)

    def structured(self) -> list[str]:
        """Return the identifiers of the structured snapshots."""
        return [f"{project}_namespace_0" for project in STRUCTURED]

    def cache_key(self, spec: ArchiveSpec) -> object | None:
        """Return all that determines the bytes of an archive beside its spec, or None if they must not be reused."""
        if self._real:
            return None
        options: Mapping[str, Any] = self._options
        own = [options[name] for name in ("seed", "article_size", "duplicates", "part_size")]
        return (*own, self.target(spec), self._count(spec), self.articles)

    def lines(self, spec: ArchiveSpec, member: int) -> Iterator[bytes]:
        """Make the lines of a member; a chunk has the lines of its member of the snapshot."""
        if spec.identifier == EMPTY:
            return
        target = self.target(spec)
        if member == 0 and spec.kind != "structured" and spec.namespace == 0:
            for record in self._real:
                if record["is_part_of"]["identifier"] == spec.project:
                    line = dumps(record) + b"\n"
                    target -= len(zlib.compress(line, 1)) if target else 0
                    yield line
        lines = self._generated(spec, self.first_page(spec.project, spec.namespace) + member * self.articles)
        yield from self._until(lines, target) if target > 0 else islice(lines, round(self._count(spec) * spec.share))

    def target(self, spec: ArchiveSpec) -> int:
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
