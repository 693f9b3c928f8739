"""The records of the metadata endpoints: codes, languages, projects, namespaces, and the archives there are.

Absent means false, zero or empty: the server leaves such values out, and so the fields here default to them. Nested
objects that every record has are never `None`: where one is missing (because `fields` did not ask for it) an empty one
stands in, so that `batch.size.bytes` needs no check.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from msgspec import field

from wme_async.models._struct import Model, Timestamp

__all__ = [
    "Archive",
    "Batch",
    "Chunk",
    "Code",
    "Event",
    "EventType",
    "Language",
    "Namespace",
    "Project",
    "Size",
    "Snapshot",
    "StructuredSnapshot",
]

_UNITS: Final = {"B": 1, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000, "TB": 1_000_000_000_000}


class EventType(StrEnum):
    """The event types that are known. `Event.type` is an open string: new ones may come and must not fail.

    The stream sends update, delete and visibility-change; creations and moves arrive there as updates.
    """

    UPDATE = "update"
    DELETE = "delete"
    VISIBILITY_CHANGE = "visibility-change"
    CREATE = "create"
    MOVE = "move"


class Event(Model):
    """An event of a record, with its position on the stream.

    Attributes:
        identifier: A UUID. Not unique for each message: a move sends a delete and an update with the same one, and it
            comes again in batches and snapshots.
        type: One of `EventType`, or something newer. A delete may also mean that the page became a redirect, or was
            moved away from this title.
        date_created: Creation of the event, UTC.
        date_published: When it was written to the stream, UTC. The server gives microseconds; a finer fraction is
            rounded to the nearest one and may thus be up to half a microsecond later than the event. To resume
            from this time, request a slightly earlier one (the server compares whole milliseconds).
        fail_count: How often processing was retried before it worked.
        fail_reason: Why, the last time.
        partition: Partition of the stream, 0 to 49 for articles. `None` anywhere but on the stream.
        offset: Position within the partition. Not contiguous. `None` anywhere but on the stream.
    """

    identifier: str = ""
    type: str = ""
    date_created: Timestamp | None = None
    date_published: Timestamp | None = None
    fail_count: int = 0
    fail_reason: str = ""
    partition: int | None = None
    offset: int | None = None


class Size(Model):
    """A size as the server states it.

    Attributes:
        value: The amount in `unit_text`. 0.0 if absent: the server omits a value that rounds to 0.
        unit_text: `"MB"` (10^6 bytes, rounded to three decimals) for archives, `"B"` for articles.
    """

    value: float = 0.0
    unit_text: str = ""

    @property
    def bytes(self) -> int:
        """The size in bytes; for archives exact to 500 bytes, so never a substitute for a `Content-Length`.

        Raises:
            ValueError: The unit is unknown, or not among `fields` (request `size`, not `size.value`); or the value is
                not a number of bytes.
        """
        if not self.value:
            return 0
        try:
            return round(self.value * _UNITS[self.unit_text.upper()])
        except KeyError:
            raise ValueError(f"the unit of this size is {self.unit_text!r}, which says nothing about bytes") from None
        except OverflowError:
            raise ValueError(f"{self.value} {self.unit_text} is not a number of bytes") from None


class Code(Model):
    """A kind of project.

    Attributes:
        identifier: The ending of database names: `"wiki"`, `"wikibooks"`, ...
        name: `"Wikipedia"`, `"Wikibooks"`, ...
        description: One English sentence.
    """

    identifier: str = ""
    name: str = ""
    description: str = ""


class Language(Model):
    """A language that projects are written in.

    Attributes:
        identifier: Wikimedia's own code, which follows no single standard (`"en"`, `"nds-nl"`, `"simple"`).
        name: English name.
        alternate_name: Name in the language itself.
        direction: `"ltr"` or `"rtl"`.
        event: In the schema; not seen on the wire.
    """

    identifier: str = ""
    name: str = ""
    alternate_name: str = ""
    direction: str = ""
    event: Event | None = None


class Namespace(Model):
    """A namespace of pages.

    Attributes:
        identifier: 0 articles, 6 files, 10 templates, 14 categories; Wikidata has others. Always written by the server.
        name: English name.
        alternate_name: Other name, rarely there.
        description: English text.
        event: In the schema; not seen on the wire.
    """

    identifier: int = field(default_factory=int)
    name: str = ""
    alternate_name: str = ""
    description: str = ""
    event: Event | None = None


class Project(Model):
    """A wiki.

    Attributes:
        identifier: Database name: `"enwiki"`, `"frwiktionary"`.
        name: Name in the project's own language.
        alternate_name: Other name, rarely there.
        code: Identifier of its `Code`. Within an article only `identifier` and `url` are sent.
        url: `"https://en.wikipedia.org"`.
        in_language: Its language; only the identifier is sent.
        additional_type: In the schema; not seen on the wire. The same is true of the rest.
        version: See above.
        namespace: See above.
        date_modified: See above.
        size: See above.
        event: See above.
    """

    identifier: str = ""
    name: str = ""
    alternate_name: str = ""
    code: str = ""
    url: str = ""
    in_language: Language = Language()
    additional_type: str = ""
    version: str = ""
    namespace: Namespace | None = None
    date_modified: Timestamp | None = None
    size: Size | None = None
    event: Event | None = None


class Archive(Model):
    """The metadata of an archive (`.tar.gz` of NDJSON) that all kinds share.

    Attributes:
        identifier: `"enwiki_namespace_0"`, or `"enwiki_namespace_0_chunk_2"` for a chunk.
        name: Never set by the exporter; only in made-up data.
        version: MD5 of the whole archive, 32 hexadecimal digits. It is replaced some time after the archive itself is,
            and so may describe the one before.
        date_modified: End of the export, UTC.
        is_part_of: The project; only the identifier is sent.
        in_language: Its language; only the identifier is sent.
        namespace: The namespace; only the identifier is sent.
        size: Compressed size in MB of 10^6 bytes. Archives under 500 bytes have no value, and are missing from lists
            although they can be downloaded.
    """

    identifier: str = ""
    name: str = ""
    version: str = ""
    date_modified: Timestamp | None = None
    is_part_of: Project = Project()
    in_language: Language = Language()
    namespace: Namespace = Namespace()
    size: Size = Size()

    def age(self, now: datetime) -> timedelta | None:
        """How old the content is: copies on the free plan can be a month old under the same identifier.

        Args:
            now: The present, as an aware datetime.

        Returns:
            `now - date_modified`, or `None` where the date was not sent.

        Raises:
            ValueError: `now` is naive.
        """
        if now.tzinfo is None:
            raise ValueError("age() needs an aware datetime: datetime.now(UTC)")
        return None if self.date_modified is None else now - self.date_modified


class Batch(Archive):
    """The changes of one hour in one project and namespace. Kept by the server for two days.

    It may hold some minutes of the following hour as well, and the same article more than once.
    """


class Snapshot(Archive):
    """All pages of one project and namespace.

    Attributes:
        chunks: Identifiers of the parts that can be downloaded by themselves, in no order.
    """

    chunks: tuple[str, ...] = ()


class Chunk(Archive):
    """One part of a snapshot. It may vanish for a while when the snapshot is exported again."""


class StructuredSnapshot(Archive):
    """All articles of one project as structured contents. `version` is a checksum here too, not a revision."""
