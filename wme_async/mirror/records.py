"""Records as the services send them, read for the rule: which title and page, when, and what of it is kept. Pure."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from wme_async._query.query import Query
from wme_async.errors import DecodeError
from wme_async.mirror.rule import HIDDEN_COMMENT, HIDDEN_EDITOR, HIDDEN_TEXT, MARGIN, Mask, Page, TitleKey
from wme_async.models import Article
from wme_async.models.decoding import Buffer, decoding, make_decoder

__all__ = ["NEEDED", "RecordReader", "microseconds", "time_of", "title_of", "visible_record"]

NEEDED: Final = (
    *("name", "identifier", "is_part_of.identifier", "namespace.identifier", "version.identifier", "date_modified"),
    *("event", "visibility"),
)
"""The fields without which records cannot be merged."""

_SHORT: Final = {"wikitext": "article_body.wikitext", "html": "article_body.html"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DIGEST: Final = 8  # bytes
_LONGEST: Final = 600  # characters of project and title, of up to 4 bytes each


# What databases keep. One number beyond would end every attempt to store the records beside it.
_Integer: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_SmallInteger: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]


class _Number(msgspec.Struct, gc=False, frozen=True):
    identifier: _Integer = 0


class _Namespace(msgspec.Struct, gc=False, frozen=True):
    identifier: _SmallInteger = 0


class _Name(msgspec.Struct, gc=False, frozen=True):
    identifier: str = ""


class _Event(msgspec.Struct, gc=False, frozen=True):
    type: str = "update"
    date_created: datetime | None = None
    date_published: datetime | None = None


class _Visibility(msgspec.Struct, gc=False, frozen=True):
    text: bool = False
    editor: bool = False
    comment: bool = False
    user: bool = False


class _Record(msgspec.Struct, gc=False):
    name: str = ""
    identifier: _Integer = 0
    is_part_of: _Name = _Name()
    namespace: _Namespace = _Namespace()
    version: _Number = _Number()
    date_modified: datetime | None = None
    visibility: _Visibility | None = None
    event: msgspec.Raw = msgspec.Raw(b"")
    article_body: msgspec.Raw = msgspec.Raw(b"")


_NO_EVENT: Final = _Event()
_NOTHING: Final = frozenset({b"", b"null", b"{}"})
_LONGEST_NOTHING: Final = max(map(len, _NOTHING))


def microseconds(time: datetime | None) -> int:
    """Return a time as microseconds since 1970, UTC; 0 for none, and for the years 1 and 9999, which mean the same."""
    if time is None or not 1 < time.year < 9999:
        return 0
    return ((time if time.tzinfo is not None else time.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def time_of(time: int) -> datetime:
    """Return microseconds since 1970 as a time."""
    return _EPOCH + timedelta(microseconds=time)


class _Title(msgspec.Struct, gc=False, frozen=True):
    name: str
    is_part_of: _Name


_decode_title: Final = msgspec.json.Decoder(_Title).decode


def title_of(record: bytes) -> TitleKey | None:
    """Return project and title of a record of which other parts cannot be read; None if they cannot either."""
    try:
        with decoding(record):
            fields = _decode_title(record)
    except DecodeError:
        return None
    project = fields.is_part_of.identifier
    return (project, fields.name.replace("_", " ")) if _is_storable(project, fields.name) else None


def _is_storable(project: str, title: str) -> bool:
    """Return whether databases can keep a title: PostgreSQL stores no NUL, and no index entry of more than 2.7 kB.

    Titles of MediaWiki have 255 bytes at most.
    """
    return "\0" not in title and "\0" not in project and len(title) + len(project) <= _LONGEST


class RecordReader:
    """Reads records for the rule.

    Attributes:
        fields: The fields that are kept, dotted, and those that the rule needs; None for all.

    Args:
        keep: The fields to keep, as dotted names of `Article`; `wikitext` and `html` are short for those of
            `article_body`. None keeps whole records.

    Raises:
        TypeError: The fields are not a list of text.
        ValueError: A field does not exist.
    """

    def __init__(self, keep: Sequence[str] | None = None) -> None:
        self._decode = make_decoder(_Record, use_orjson=False)
        self._decode_event = make_decoder(_Event, use_orjson=False)
        self._query: Query | None = None
        self.fields: list[str] | None = None
        if keep is not None:
            if isinstance(keep, str):
                raise TypeError(f"keep must be a list of fields, such as [{keep!r}], not one text")
            names = [*NEEDED, *(_SHORT.get(name, name) for name in keep)]
            self.fields = list(dict.fromkeys(names))
            self._query = Query.build("realtime", Article, fields=self.fields).for_unfiltered()

    def read(self, record: Buffer, *, load: int = 0) -> Page | Mask:
        """Return a record as a row.

        Args:
            record: Its JSON.
            load: The number of the snapshot load that it comes from; 0 for none.

        Raises:
            DecodeError: It is not a record, has no title or no project, or what no store keeps.
        """
        # A view of a large block is kept as it is, and copied only for as long as it is read.
        data = bytes(record)
        fields = self._decode(data)
        event_json = bytes(fields.event)
        event = _NO_EVENT if event_json in _NOTHING else self._decode_event(event_json)
        project = fields.is_part_of.identifier
        if not fields.name or not project:
            raise DecodeError("the record has no title or no project", record=data)
        if not _is_storable(project, fields.name):
            raise DecodeError(
                f"the record has a NUL in its title or project, or they are longer than {_LONGEST} characters",
                record=data,
            )
        published = microseconds(event.date_published)
        created = microseconds(event.date_created) or published or microseconds(fields.date_modified)
        if created == published:
            # A bulk record, whose content was read some time before.
            created -= MARGIN
        revision = fields.version.identifier
        if event.type == "visibility-change":
            return Mask(
                project=project,
                page_id=fields.identifier,
                revision=revision,
                created=created,
                hidden=_hidden_parts(fields.visibility or _Visibility()),
            )
        gone = event.type == "delete"
        content: bytes | memoryview = record if isinstance(record, memoryview) else data
        if self._query is not None:
            data, event_json = self._reduced(data, self._query)
            content = data
        return Page(
            project=project,
            title=fields.name.replace("_", " "),
            namespace=fields.namespace.identifier,
            page_id=fields.identifier,
            revision=revision,
            created=created,
            published=published,
            gone=gone,
            digest=_digest(data, event_json),
            body=_has_content(fields.article_body),
            record=b"" if gone else content,
            load=load,
        )

    def _reduced(self, data: bytes, query: Query) -> tuple[bytes, bytes]:
        """Return a record with the kept fields alone, and its event as it is in there."""
        with decoding(data):
            plain = query.project(msgspec.json.decode(data))
            return msgspec.json.encode(plain), msgspec.json.encode(plain.get("event", {}))


def _has_content(value: msgspec.Raw) -> bool:
    """Return whether a value is there, without a copy of a long one."""
    return memoryview(value).nbytes > _LONGEST_NOTHING or bytes(value) not in _NOTHING


def _digest(record: bytes, event: bytes) -> bytes:
    """Return a digest of a record without its event, which differs between the sources of one record."""
    begin = record.rfind(event) if event else -1
    if begin < 0:
        return hashlib.sha1(record, usedforsecurity=False).digest()[:_DIGEST]
    content = memoryview(record)
    digest = hashlib.sha1(content[:begin], usedforsecurity=False)
    digest.update(content[begin + len(event) :])
    return digest.digest()[:_DIGEST]


def _hidden_parts(visibility: _Visibility) -> int:
    return (
        (0 if visibility.text else HIDDEN_TEXT)
        | (0 if visibility.editor or visibility.user else HIDDEN_EDITOR)
        | (0 if visibility.comment else HIDDEN_COMMENT)
    )


def visible_record(record: bytes, hidden: int) -> bytes:
    """Return a record without its hidden parts.

    Args:
        record: Its JSON.
        hidden: The hidden parts, as a sum of `HIDDEN_…`.
    """
    if not hidden or not record:
        return record
    fields: dict[str, Any] = msgspec.json.decode(record)
    if hidden & HIDDEN_TEXT:
        for name in ("article_body", "abstract"):
            fields.pop(name, None)
    version = fields.get("version")
    if isinstance(version, dict):
        if hidden & HIDDEN_EDITOR:
            version.pop("editor", None)
        if hidden & HIDDEN_COMMENT:
            version.pop("comment", None)
    return msgspec.json.encode(fields)
