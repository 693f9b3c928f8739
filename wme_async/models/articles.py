"""Articles: on demand, in snapshots and batches, and on the stream.

Absent means false, zero or empty: the server leaves such values out, so `is_bot` is false and not unknown where it is
missing. Nested objects are never `None` where being absent and being empty say the same (`version`, `editor`,
`scores`, ...): an empty one stands in, and `article.version.editor.is_bot` needs no check. They are `None` where being
there is itself a fact: a delete has no `article_body`, most pages no `image`, only visibility changes a `visibility`.
"""

from msgspec import UNSET, UnsetType, field
from msgspec.structs import force_setattr

from wme_async.models._struct import Model, Timestamp
from wme_async.models.metadata import Event, Language, Namespace, Project, Size
from wme_async.models.parts import Image, Part
from wme_async.models.passages import Passage
from wme_async.models.reading import Block, passages_of, text_of

__all__ = [
    "Article",
    "ArticleBody",
    "Delta",
    "Diff",
    "Editor",
    "EntityReference",
    "FilePage",
    "FileRevision",
    "License",
    "MaintenanceTags",
    "PageLink",
    "PreviousVersion",
    "Probability",
    "Protection",
    "ReferenceNeed",
    "ReferenceRisk",
    "Score",
    "Scores",
    "Version",
    "Visibility",
]


class ArticleBody(Model):
    """The text of a page.

    Attributes:
        html: Rendered HTML (Parsoid).
        wikitext: Its source.
    """

    html: str = ""
    wikitext: str = ""


class License(Model):
    """A licence that applies.

    Attributes:
        name: `"Creative Commons Attribution-ShareAlike License 4.0"`; may be missing for files.
        identifier: `"CC-BY-SA-4.0"`; older records have other versions, files other spellings.
        url: Its text.
    """

    name: str = ""
    identifier: str = ""
    url: str = ""


class PageLink(Model):
    """Another page that this one names: a category, a template, or a redirect to it.

    Attributes:
        name: Its title.
        url: Its address.
    """

    name: str = ""
    url: str = ""


class EntityReference(Model):
    """A Wikidata entity that the page is about or uses.

    Attributes:
        identifier: `"Q42"`; among additional entities also `"P31"`.
        url: `"https://www.wikidata.org/entity/Q42"`; plain http in older data.
        aspects: Its parts that the page uses (`"S"` sitelinks, `"L.en"` a label, ...).
    """

    identifier: str = ""
    url: str = ""
    aspects: tuple[str, ...] = ()


class Protection(Model):
    """A protection of the page.

    Attributes:
        type: The protected action: `"edit"`, `"move"`, ...
        level: Who still may: `"autoconfirmed"`, `"sysop"`, ...
        expiry: A string and not a date: a time, or `"infinity"`, `"infinite"`, `"indefinite"`, `"never"`.
    """

    type: str = ""
    level: str = ""
    expiry: str = ""


class Editor(Model):
    """Who made a revision. Empty on protected pages; bulk-loaded articles have only the first two and `is_anonymous`.

    Attributes:
        identifier: Id of the account; 0 for anonymous editors.
        name: Name of the account, or the IP address.
        edit_count: Edits of the account at that time.
        groups: Its user groups, `"*"` and `"user"` included.
        is_bot: It is a bot.
        is_anonymous: The editor has no account.
        is_admin: It is an administrator.
        is_patroller: It may patrol.
        has_advanced_rights: It belongs to a group with advanced rights.
        date_started: Creation of the account, UTC; the year 1 for anonymous editors.
    """

    identifier: int = 0
    name: str = ""
    edit_count: int = 0
    groups: tuple[str, ...] = ()
    is_bot: bool = False
    is_anonymous: bool = False
    is_admin: bool = False
    is_patroller: bool = False
    has_advanced_rights: bool = False
    date_started: Timestamp | None = None


class Probability(Model):
    """Both sides of a prediction; a side that is exactly 0 is absent on the wire.

    Attributes:
        false: 0 to 1.
        true: 0 to 1.
    """

    false: float = 0.0
    true: float = 0.0


class Score(Model):
    """A model's verdict on a revision.

    Attributes:
        prediction: The verdict.
        probability: How sure it is of either side.
    """

    prediction: bool = False
    probability: Probability = Probability()


class ReferenceRisk(Model):
    """How likely the references are to be poor.

    Attributes:
        reference_risk_score: 0 to 1.
    """

    reference_risk_score: float = field(default_factory=float)


class ReferenceNeed(Model):
    """How much of the text lacks references.

    Attributes:
        reference_need_score: 0 to 1.
    """

    reference_need_score: float = field(default_factory=float)


class Scores(Model):
    """The predictions of models for a revision. Sent for articles of Wikipedias with an earlier revision.

    Attributes:
        damaging: In older data.
        goodfaith: In older data.
        revertrisk: Will it be reverted?
        referencerisk: See `ReferenceRisk`.
        referenceneed: See `ReferenceNeed`.
    """

    damaging: Score | None = None
    goodfaith: Score | None = None
    revertrisk: Score | None = None
    referencerisk: ReferenceRisk | None = None
    referenceneed: ReferenceNeed | None = None


class MaintenanceTags(Model):
    """How many maintenance templates of each kind the page carries.

    Attributes:
        citation_needed_count: Missing citations.
        pov_count: Doubts about neutrality.
        clarification_needed_count: Unclear passages.
        update_count: Outdated passages.
    """

    citation_needed_count: int = 0
    pov_count: int = 0
    clarification_needed_count: int = 0
    update_count: int = 0


class Delta(Model):
    """How the number of words of a kind changed. The server writes all five, zeros too.

    Attributes:
        increase: Words gained.
        decrease: Words lost, as a negative number.
        sum: Both together.
        proportional_increase: In proportion to the text before.
        proportional_decrease: In proportion to the text before, as a negative number.
    """

    increase: int = field(default_factory=int)
    decrease: int = field(default_factory=int)
    sum: int = field(default_factory=int)
    proportional_increase: float = field(default_factory=float)
    proportional_decrease: float = field(default_factory=float)


class Diff(Model):
    """How a revision differs from the one before. Only where the server has it switched on.

    Attributes:
        longest_new_repeated_character: Length of the longest run of one character that is new; 1 if none is.
        dictionary_words: Words of the language.
        non_dictionary_words: Other words.
        non_safe_words: Offensive words.
        informal_words: Informal words.
        uppercase_words: Words in capitals.
        size: Change of size.
    """

    longest_new_repeated_character: int = 0
    dictionary_words: Delta | None = None
    non_dictionary_words: Delta | None = None
    non_safe_words: Delta | None = None
    informal_words: Delta | None = None
    uppercase_words: Delta | None = None
    size: Size | None = None


class Version(Model):
    """A revision.

    Attributes:
        identifier: Revision id.
        comment: Edit summary.
        tags: Change tags.
        is_minor_edit: Marked as minor by its editor.
        is_flagged_stable: Reviewed, where the wiki has reviews.
        has_tag_needs_citation: The page carries a "citation needed".
        is_breaking_news: Taken for breaking news.
        noindex: Search engines should not index the page.
        number_of_characters: Length of the text in characters.
        size: Length of the text in bytes. The stream knows this field as `version.sizes`.
        editor: Who made it.
        scores: The predictions of models for it.
        maintenance_tags: Maintenance templates on the page.
        diff: Change against the revision before.
        event: In the schema; never set.
    """

    identifier: int = 0
    comment: str = ""
    tags: tuple[str, ...] = ()
    is_minor_edit: bool = False
    is_flagged_stable: bool = False
    has_tag_needs_citation: bool = False
    scores: Scores = Scores()
    editor: Editor = Editor()
    number_of_characters: int = 0
    size: Size = Size()
    event: Event | None = None
    diff: Diff | None = None
    is_breaking_news: bool = False
    noindex: bool = False
    maintenance_tags: MaintenanceTags = MaintenanceTags()


class PreviousVersion(Model):
    """The revision before. Empty (identifier 0) for first revisions.

    Attributes:
        identifier: Revision id. Deletes and visibility changes carry nothing else.
        number_of_characters: Length of its text in characters.
    """

    identifier: int = 0
    number_of_characters: int = 0


class Visibility(Model):
    """The parts of a revision that are still visible. The server writes all three, false too.

    A query for some of the three alone gets the others as false, which then means nothing: ask for `visibility.*`.

    Attributes:
        text: The text is visible.
        editor: The editor's name is visible. Where this key is spelled `user` it is read just the same; should both
            come, one that is true decides.
        comment: The edit summary is visible.
    """

    text: bool = field(default_factory=bool)
    editor: bool = field(default_factory=bool)
    comment: bool = field(default_factory=bool)
    _user: bool | UnsetType = field(name="user", default=UNSET)

    def __post_init__(self) -> None:
        if self._user is not UNSET:
            force_setattr(self, "editor", self.editor or self._user)
            force_setattr(self, "_user", UNSET)

    @property
    def user(self) -> bool:
        """The same as `editor`, under the name that the published documentation uses."""
        return self.editor


class Article(Model):
    """A page, or an event of it.

    Attributes:
        name: Title: with spaces on updates, with underscores on deletes and visibility changes.
        identifier: Page id within its project. A move keeps it: a delete followed by it may be of the old title only.
        abstract: The beginning as plain text; it may start with a space. Articles only.
        date_created: First revision, UTC. Absent where the page was loaded in bulk.
        date_modified: This revision, UTC.
        date_previously_modified: The revision before, UTC. Absent where the page was loaded in bulk.
        protection: Who may still edit or move it.
        version: This revision.
        previous_version: The revision before.
        url: Canonical address: percent-encoded on updates, decoded on deletes and visibility changes.
        watchers_count: How many watch it.
        namespace: Its namespace; only the identifier is sent.
        in_language: Its language; only the identifier is sent (`"simple"` for simplewiki).
        main_entity: The Wikidata item about the same subject.
        additional_entities: Wikidata entities that it uses, in no order.
        categories: Categories it is in.
        templates: Templates it uses.
        redirects: Redirects to it.
        is_part_of: Its project; only the identifier and the address are sent.
        article_body: The text. `None` for deletes and visibility changes.
        license: Licences of the text.
        visibility: The visible parts. Only on visibility changes.
        event: The latest event.
        image: The main image.
        has_parts: Named in the published schema; not seen on the wire.
    """

    name: str = ""
    identifier: int = 0
    abstract: str = ""
    date_created: Timestamp | None = None
    date_modified: Timestamp | None = None
    date_previously_modified: Timestamp | None = None
    protection: tuple[Protection, ...] = ()
    version: Version = Version()
    previous_version: PreviousVersion = PreviousVersion()
    url: str = ""
    watchers_count: int = 0
    namespace: Namespace = Namespace()
    in_language: Language = Language()
    main_entity: EntityReference | None = None
    additional_entities: tuple[EntityReference, ...] = ()
    categories: tuple[PageLink, ...] = ()
    templates: tuple[PageLink, ...] = ()
    redirects: tuple[PageLink, ...] = ()
    is_part_of: Project = Project()
    article_body: ArticleBody | None = None
    license: tuple[License, ...] = ()
    visibility: Visibility | None = None
    event: Event = Event()
    image: Image | None = None
    has_parts: tuple[Part, ...] = ()

    def text(self) -> str:
        """Return the text of the page, each heading on a line of its own; empty for a page without HTML.

        Infoboxes, navigation, notices, pictures and footnotes are omitted.

        Raises:
            ImportError: selectolax is not installed (extra `html`).
        """
        return text_of(self._blocks())

    def passages(self, max_chars: int = 1000) -> list[Passage]:
        """Return the text of the page as passages for search and retrieval, each within one section.

        Args:
            max_chars: Characters in a passage at most. The headings above it are not counted.

        Raises:
            TypeError: `max_chars` is not a whole number.
            ValueError: `max_chars` is below 1.
            ImportError: selectolax is not installed (extra `html`).
        """
        return passages_of(self._blocks(), max_chars)

    def _blocks(self) -> list[Block]:
        if self.article_body is None or not self.article_body.html:
            return []
        from wme_async.models._html import html_blocks  # noqa: PLC0415  # an extra

        return html_blocks(self.article_body.html)


class FileRevision(Model):
    """One upload of a file.

    Attributes:
        sha1: Checksum, hexadecimal.
        size: Size in bytes.
        width: Pixels.
        height: Pixels.
        mime: MIME type.
        date_modified: When it was uploaded, UTC.
        editor: Who uploaded it.
        license: Licences; identifiers look like `"CC BY-SA 3.0 pl"`, names may be missing.
    """

    sha1: str = ""
    size: Size = Size()
    width: int = 0
    height: int = 0
    mime: str = ""
    date_modified: Timestamp | None = None
    editor: Editor = Editor()
    license: tuple[License, ...] = ()


class FilePage(Article):
    """The page of a media file on Wikimedia Commons: an article with less in it, and its files.

    Attributes:
        files: The uploads.
    """

    files: tuple[FileRevision, ...] = ()
