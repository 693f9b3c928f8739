"""Archives of a `World`: each line is a record that it has published."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from wme_async.simulator.world.archive_spec import ArchiveSpec
from wme_async.simulator.world.articles import Size, dumps
from wme_async.simulator.world.metadata import STRUCTURED
from wme_async.simulator.world.records import encode_record, encode_structured
from wme_async.simulator.world.world import World

_PAGES_OF_A_CHUNK: Final = 8
_MOST_CHUNKS: Final = 4


@dataclass(frozen=True)
class WorldArchives:
    """The lines of archives.

    Args:
        world: The world.
        size: As in `ArticleGenerator.article`.
    """

    world: World
    size: Size

    def snapshots(self) -> list[str]:
        """Return the identifiers of the daily snapshots, in the order of their export."""
        return [
            f"{project}_namespace_{namespace}" for project in self.world.projects for namespace in self.world.namespaces
        ]

    def batches(self) -> list[str]:
        """Return the identifiers of the batches of each hour."""
        return self.snapshots()

    def structured(self) -> list[str]:
        """Return the identifiers of the structured snapshots."""
        names = self.snapshots()
        return [name for project in STRUCTURED if (name := f"{project}_namespace_0") in names]

    def chunks(self, identifier: str) -> int:
        """Return the number of chunks of a snapshot; 0 for one that is never chunked."""
        return min(_MOST_CHUNKS, self.world.pages // _PAGES_OF_A_CHUNK) if identifier.endswith("_namespace_0") else 0

    def lines(self, spec: ArchiveSpec, member: int) -> Iterator[bytes]:
        """Make the lines of a member; a chunk has the lines of its member of the snapshot."""
        if spec.kind == "batch":
            rows = self.world.batch(spec.project, spec.namespace, spec.begin, spec.asof)
        else:
            rows = self.world.snapshot(
                spec.project, spec.namespace, spec.asof, spec.members, number=spec.number, share=spec.share
            )[member]
        for row in rows:
            structured = spec.kind == "structured"
            generator = self.world.generator
            record = encode_structured(row, generator) if structured else encode_record(row, generator, self.size)
            yield dumps(record) + b"\n"
