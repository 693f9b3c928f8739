"""Wikidata: items and properties, on demand, in archives and on the stream. A beta of the service.

The published schema leaves open whether several fields hold one object, a list, or an object of lists. The decoder
accepts all of these and returns one form: `statements` and `sitelinks` are dicts, `qualifiers`, `references`, `license`
and `protection` tuples. The fields are annotated with that form.

Labels are embedded in every property and value, in all languages: one entity can be many megabytes. Ask for less with
`fields`.
"""

import re
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from msgspec import field
from msgspec.structs import force_setattr

from wme_async.models._struct import Model, Timestamp
from wme_async.models._tolerant import decode_record
from wme_async.models.articles import License, PageLink, Protection, Version, Visibility
from wme_async.models.metadata import Event, Language, Namespace, Project

__all__ = [
    "LabelsAnswer",
    "PropertyValue",
    "Rank",
    "Sitelink",
    "Statement",
    "StatementProperty",
    "StatementReference",
    "StatementValue",
    "TimePrecision",
    "WikibaseTime",
    "WikidataArticle",
    "WikidataEntity",
    "merge_labels",
]

LabelsAnswer: TypeAlias = dict[str, str] | list[dict[str, str]]
"""A response of the labels endpoint: one object of language and label, or a list of them."""

Scalar: TypeAlias = str | int | float | bool | None

_TIME: Final = re.compile(
    r"(?P<sign>[+-]?)(?P<year>\d{1,16})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"T(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)Z",
    re.ASCII,
)
_JULIAN: Final = "Q1985786"


def merge_labels(answer: LabelsAnswer) -> dict[str, str]:
    """Return the answer of the labels endpoint as one dict of language code and label, whichever form it came in."""
    if isinstance(answer, dict):
        return answer
    return {language: label for labels in answer for language, label in labels.items()}


class Rank(StrEnum):
    """Ranks of statements. `Statement.rank` is an open string; compare it without regard to case."""

    PREFERRED = "preferred"
    NORMAL = "normal"
    DEPRECATED = "deprecated"


class TimePrecision(IntEnum):
    """The precision of a time; its finer parts carry no meaning."""

    BILLION_YEARS = 0
    HUNDRED_MILLION_YEARS = 1
    TEN_MILLION_YEARS = 2
    MILLION_YEARS = 3
    HUNDRED_THOUSAND_YEARS = 4
    TEN_THOUSAND_YEARS = 5
    MILLENNIUM = 6
    CENTURY = 7
    DECADE = 8
    YEAR = 9
    MONTH = 10
    DAY = 11
    HOUR = 12
    MINUTE = 13
    SECOND = 14


class WikibaseTime(Model):
    """A time as Wikibase has it: not a `datetime`, which knows no month 0, no year beyond 9999 and none before 1.

    Attributes:
        text: As it was written: `"+1861-00-00T00:00:00Z"`.
        year: With its sign; years before Christ are negative and the year 0 does not exist (`-44` is 44 BC).
        month: 1 to 12, or `None` where the time is no more exact than a year.
        day: 1 to 31, or `None` where the time is no more exact than a month.
        hour: 0 to 23.
        minute: 0 to 59.
        second: 0 to 59.
        precision: One of `TimePrecision`, or `None` where it was not data.
        calendar: Address of the calendar's item: Q1985727 is the proleptic Gregorian, Q1985786 the proleptic Julian.
        timezone: Offset from UTC in minutes; always 0 so far.
        before: How many units of the precision it may be earlier.
        after: How many units of the precision it may be later.
    """

    text: str = ""
    year: int = 0
    month: int | None = None
    day: int | None = None
    hour: int = 0
    minute: int = 0
    second: int = 0
    precision: int | None = None
    calendar: str = ""
    timezone: int = 0
    before: int = 0
    after: int = 0

    @property
    def is_julian(self) -> bool:
        """The date counts in the Julian calendar."""
        return self.calendar.rpartition("/")[2] == _JULIAN

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        precision: int | None = None,
        calendar: str = "",
        timezone: int = 0,
        before: int = 0,
        after: int = 0,
    ) -> "WikibaseTime":
        """Read the text of a time; months and days written as 00, or finer than the precision, become `None`.

        Args:
            text: `"+1952-03-11T00:00:00Z"`; the sign may be missing.
            precision: See the attributes, as for the rest.
            calendar: See the attributes.
            timezone: See the attributes.
            before: See the attributes.
            after: See the attributes.

        Raises:
            ValueError: It is not a time of Wikibase's form.
        """
        match = _TIME.fullmatch(text)
        if match is None:
            raise ValueError(f"not a Wikibase time: {text!r}")
        year = int(match["year"])
        # Of a year alone many write the first of January, which says no more than 00.
        exact = TimePrecision.SECOND if precision is None else precision
        return cls(
            text=text,
            year=-year if match["sign"] == "-" else year,
            month=(int(match["month"]) or None) if exact >= TimePrecision.MONTH else None,
            day=(int(match["day"]) or None) if exact >= TimePrecision.DAY else None,
            hour=int(match["hour"]),
            minute=int(match["minute"]),
            second=int(match["second"]),
            precision=precision,
            calendar=calendar,
            timezone=timezone,
            before=before,
            after=after,
        )


class StatementProperty(Model):
    """The property that a statement uses.

    Attributes:
        identifier: `"P31"`.
        data_type: Type of its values: `"wikibase-item"`, `"time"`, `"quantity"`, `"url"`, `"external-id"`, ...
        labels: Language code and label.
    """

    identifier: str = ""
    data_type: str = ""
    labels: dict[str, str] = field(default_factory=dict)


class StatementValue(Model):
    """The value of a statement, of a qualifier, or of a part of a reference.

    "Some value" and "no value" have neither `content` nor `content_data`.

    Attributes:
        type: Its type: `"string"`, `"wikibase-entityid"` or `"wikibase-item"`, `"time"`, `"quantity"`,
            `"monolingualtext"`, `"globecoordinate"`, ... An open string.
        content: The value, where it is a string or a whole number.
        content_data: Its pieces, where it is composite; usually all strings (`{"precision": "9"}`), and in any case of
            letters: read them with `data`.
        labels: Label of the entity that it names: language code and label.
    """

    type: str = ""
    content: str | int | None = None
    content_data: dict[str, Scalar] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def data(self, key: str) -> str:
        """Return a value of `content_data` as text, regardless of the case of its key; `""` if it is absent."""
        value = self.content_data.get(key)
        if value is None:
            lower = key.lower()
            value = next((v for k, v in self.content_data.items() if k.lower() == lower and v is not None), "")
        return str(value).lower() if isinstance(value, bool) else str(value)

    @property
    def entity_id(self) -> str:
        """Identifier of the entity that it names (`"Q5"`), or `""` where it names none."""
        if not self.type.startswith("wikibase-"):
            return ""
        return self.data("id") or (self.content if isinstance(self.content, str) else "")

    @property
    def time(self) -> WikibaseTime | None:
        """The value as a time, or `None` if it is not a time.

        Raises:
            ValueError: Its parts do not make a time.
        """
        text = self.data("time")
        if not text:
            return None
        precision = self.data("precision")
        return WikibaseTime.parse(
            text,
            precision=int(precision) if precision else None,
            calendar=self.data("calendarmodel"),
            timezone=int(self.data("timezone") or 0),
            before=int(self.data("before") or 0),
            after=int(self.data("after") or 0),
        )


class PropertyValue(Model):
    """A qualifier, or a part of a reference.

    Attributes:
        property: The property.
        value: Its value.
    """

    property: StatementProperty = field(default_factory=StatementProperty)
    value: StatementValue = field(default_factory=StatementValue)


class StatementReference(Model):
    """Where a statement comes from.

    Attributes:
        identifier: A hash.
        parts: The content of the reference.
    """

    identifier: str = ""
    parts: tuple[PropertyValue, ...] = ()


class Sitelink(Model):
    """The page of a project about an item.

    Attributes:
        site: Database name, where the server names it inside the object too.
        title: Title of the page.
        badges: Item identifiers of its badges.
        url: Its address.
    """

    site: str = ""
    title: str = ""
    badges: tuple[str, ...] = ()
    url: str = ""


class _Half(Model):
    """The property or the value of a qualifier that came without a list around it."""

    identifier: str = ""
    data_type: str = ""
    type: str = ""
    content: str | int | None = None
    content_data: dict[str, Scalar] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


if TYPE_CHECKING:
    _Qualifiers: TypeAlias = tuple[PropertyValue, ...]
    _References: TypeAlias = tuple[StatementReference, ...]
else:
    _Qualifiers: TypeAlias = tuple[PropertyValue, ...] | dict[str, tuple[PropertyValue, ...] | _Half]
    _References: TypeAlias = tuple[StatementReference, ...] | StatementReference


class Statement(Model):
    """A claim about an entity.

    Attributes:
        identifier: `"Q5$<UUID>"`.
        rank: One of `Rank`, in any case of letters.
        property: The property.
        value: Its value.
        qualifiers: Its restrictions.
        references: Its sources.
    """

    identifier: str = ""
    rank: str = ""
    property: StatementProperty = field(default_factory=StatementProperty)
    value: StatementValue = field(default_factory=StatementValue)
    qualifiers: _Qualifiers = ()
    references: _References = ()

    def __post_init__(self) -> None:
        if type(self.qualifiers) is not tuple:
            force_setattr(self, "qualifiers", _listed_qualifiers(self.qualifiers))
        if type(self.references) is not tuple:
            force_setattr(self, "references", (self.references,))


if TYPE_CHECKING:
    _Statements: TypeAlias = dict[str, tuple[Statement, ...]]
    _Sitelinks: TypeAlias = dict[str, Sitelink]
    _Protections: TypeAlias = tuple[Protection, ...]
    _Licenses: TypeAlias = tuple[License, ...]
    _Redirects: TypeAlias = tuple[PageLink, ...]
else:
    _Statements: TypeAlias = dict[str, tuple[Statement, ...] | Statement] | tuple[Statement, ...]
    _Sitelinks: TypeAlias = dict[str, Sitelink | tuple[str, ...] | str] | tuple[Sitelink, ...]
    _Protections: TypeAlias = tuple[Protection, ...] | Protection
    _Licenses: TypeAlias = tuple[License, ...] | License
    _Redirects: TypeAlias = tuple[PageLink | str, ...] | PageLink


class WikidataEntity(Model):
    """An item or a property.

    Attributes:
        identifier: `"Q42"` or `"P31"`.
        type: `"item"` or `"property"`; an open string.
        labels: Language code and label.
        descriptions: Language code and description.
        aliases: Language code and other names.
        statements: Identifier of the property and its statements, in the order of the response.
        sitelinks: Database name of the project and page. A page without a project is listed by its address.
    """

    identifier: str = ""
    type: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    statements: _Statements = field(default_factory=dict)
    sitelinks: _Sitelinks = field(default_factory=dict)

    def __post_init__(self) -> None:
        statements: Any = self.statements
        if type(statements) is tuple or Statement in map(type, statements.values()):
            force_setattr(self, "statements", _grouped_statements(statements))
        sitelinks: Any = self.sitelinks
        if type(sitelinks) is tuple or any(type(link) is not Sitelink for link in sitelinks.values()):
            force_setattr(self, "sitelinks", _named_sitelinks(sitelinks))


class WikidataArticle(Model):
    """The page of an entity, and the entity.

    Attributes:
        name: Title: the identifier of the entity; properties have it without their namespace.
        identifier: Page id, which is not the number of the entity.
        date_created: First revision, UTC.
        date_modified: This revision, UTC.
        date_previously_modified: The revision before, UTC.
        protection: Who may still edit it.
        redirects: Redirects to it.
        license: Licences; Wikidata's is not that of Wikipedia.
        url: `"https://www.wikidata.org/wiki/Q42"`.
        namespace: 0 for items; properties have another.
        is_part_of: The project.
        in_language: Not promised.
        version: The revision. Not promised.
        visibility: Its visible parts.
        event: The latest event.
        entity: The entity.
    """

    name: str = ""
    identifier: int = 0
    date_created: Timestamp | None = None
    date_modified: Timestamp | None = None
    date_previously_modified: Timestamp | None = None
    protection: _Protections = ()
    redirects: _Redirects = ()
    license: _Licenses = ()
    url: str = ""
    namespace: Namespace = Namespace()
    is_part_of: Project = Project()
    in_language: Language = Language()
    version: Version = Version()
    visibility: Visibility | None = None
    event: Event = Event()
    entity: WikidataEntity = field(default_factory=WikidataEntity)

    def __post_init__(self) -> None:
        for name in ("protection", "license", "redirects"):
            value: Any = getattr(self, name)
            if type(value) is not tuple:
                force_setattr(self, name, (value,))
        redirects: Any = self.redirects
        if str in map(type, redirects):
            links = tuple(PageLink(name=link) if isinstance(link, str) else link for link in redirects)
            force_setattr(self, "redirects", links)


def _listed_qualifiers(data: Any) -> tuple[PropertyValue, ...]:
    """Flatten a dict of property and list; or put the one qualifier that the dict itself is into a tuple."""
    qualifiers: list[PropertyValue] = []
    halves: dict[str, _Half] = {}
    for key, value in data.items():
        if isinstance(value, _Half):
            halves[key] = value
        else:
            qualifiers.extend(value)
    if halves:
        prop, value = halves.get("property", _Half()), halves.get("value", _Half())
        qualifiers.append(
            PropertyValue(
                property=StatementProperty(identifier=prop.identifier, data_type=prop.data_type, labels=prop.labels),
                value=StatementValue(
                    type=value.type, content=value.content, content_data=value.content_data, labels=value.labels
                ),
            )
        )
    return tuple(qualifiers)


def _grouped_statements(data: Any) -> dict[str, tuple[Statement, ...]]:
    if isinstance(data, dict):
        return {key: value if isinstance(value, tuple) else (value,) for key, value in data.items()}
    groups: dict[str, list[Statement]] = {}
    for statement in data:
        groups.setdefault(statement.property.identifier, []).append(statement)
    return {identifier: tuple(group) for identifier, group in groups.items()}


def _named_sitelinks(data: Any) -> dict[str, Sitelink]:
    if isinstance(data, dict):
        if all(isinstance(value, Sitelink | str) for value in data.values()) and not {"title", "url"} & data.keys():
            return {site: Sitelink(title=link) if isinstance(link, str) else link for site, link in data.items()}
        data = (
            Sitelink(
                site=data.get("site", ""),
                title=data.get("title", ""),
                badges=data.get("badges", ()),
                url=data.get("url", ""),
            ),
        )
    return {link.site or link.url or link.title: link for link in data}


_entities: Final = msgspec.json.Decoder(WikidataEntity)


def fold_entity(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record, as plain data, with the statements and sitelinks of its entity in the one form of the models.

    Raises:
        msgspec.ValidationError: They are in none of the forms that are known.
    """
    entity = record.get("entity")
    if not isinstance(entity, dict):
        return record
    loose = {key: entity[key] for key in ("statements", "sitelinks") if key in entity}
    folded = msgspec.to_builtins(decode_record(_entities, msgspec.json.encode(loose)))
    return {**record, "entity": {**entity, **{key: folded.get(key, {}) for key in loose}}}
