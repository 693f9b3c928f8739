"""One archive, before it is built."""

from dataclasses import dataclass


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
        asof: Time at which its export started, epoch seconds: its records were current then.
        begin: The start of the hour of a batch, epoch seconds.
        listed: Whether it has metadata at all.
        number: Of the export: each deals pages to chunks anew.
        share: The share of its records that an incomplete export has.
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
    begin: float = 0.0
    listed: bool = True
    number: int = 0
    share: float = 1.0

    @property
    def members(self) -> int:
        """The number of members of its snapshot."""
        return max(1, self.chunks)
