"""The names of downloaded archives: a path below a folder that identifies the content."""

import functools
import string
from collections.abc import Mapping
from pathlib import PurePosixPath

import msgspec

from wme_async._arguments import check_type
from wme_async._client.paths import chunk_number

EXTENSION = "tar.gz"

FIELDS = ("kind", "date", "hour", "snapshot", "chunk", "identifier", "version", "ext")
"""The fields of a template, in braces."""


class ArchiveName(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an archive's name.

    Args:
        kind: The name of its resource, such as `wikidata.snapshots.chunks`.
        identifier: From the list.
        place: The hour of a batch, as `YYYY-MM-DD/HH`, or the snapshot of a chunk.
    """

    kind: str
    identifier: str
    place: str = ""

    @property
    def is_chunk(self) -> bool:
        """Whether it is a chunk of a snapshot."""
        return self.kind.endswith(".chunks")

    @property
    def is_batch(self) -> bool:
        """Whether it is a batch of an hour."""
        return self.kind.endswith("batches")

    @property
    def template(self) -> str:
        """The default template."""
        if self.is_batch:
            return "{kind}/{date}/{hour}/{identifier}"
        return "{kind}/{snapshot}/{chunk}" if self.is_chunk else "{kind}/{identifier}"

    @property
    def flat(self) -> str:
        """The name in releases without folders, which lacks the hour and the kind."""
        return f"{self.identifier}.{EXTENSION}"

    def path(self, template: str | None = None, *, version: str | None = None) -> PurePosixPath:
        """Return the path below a folder.

        Args:
            template: Literal text, slashes and `FIELDS` in braces; None for the default. A missing extension is
                appended.
            version: MD5 of the metadata; None to check the template before the version is known.

        Raises:
            TypeError: As `text`.
            ValueError: As `text`.
        """
        return PurePosixPath(self.text(template, version=version))

    def text(self, template: str | None = None, *, version: str | None = None) -> str:
        """Return the path below a folder as text, with slashes.

        Args:
            template: As for `path`.
            version: As for `path`.

        Raises:
            TypeError: The template is not text.
            ValueError: It has an unknown field, or one that this kind of archive does not have, or its path leads out
                of the folder.
        """
        template = self.template if template is None else template
        check_type("name", template, str, "a template as text")
        values = self._values(version or "0" * 32)
        missing = next((field for field in _fields_of(template) if field not in values), None)
        if missing is not None:
            fields_in_words = ", ".join(f"{{{field}}}" for field in FIELDS if field in values)
            raise ValueError(f"name={template!r}: {self.kind} have no {{{missing}}}; use {fields_in_words}")
        text = template.format_map(values)
        levels = text.split("/")
        if {"", ".", "..", f".{EXTENSION}"}.intersection(levels) or "\\" in text or not text.isprintable():
            raise ValueError(
                f"name={template!r} gives {text!r}, which is not a path below the folder; use names without '..', "
                "empty levels, backslashes and control characters"
            )
        if not text.endswith(f".{EXTENSION}"):
            levels[-1] = f"{levels[-1]}.{EXTENSION}"
        return "/".join(levels)

    def _values(self, version: str) -> Mapping[str, str]:
        values = {
            "kind": self.kind.removesuffix(".chunks").replace(".", "/"),
            "identifier": self.identifier,
            "version": version.strip('"').replace("/", "_"),
            "ext": EXTENSION,
        }
        if self.is_batch:
            values["date"], _, values["hour"] = self.place.partition("/")
        elif self.is_chunk:
            values |= {"snapshot": self.place, "chunk": f"chunk_{chunk_number(self.identifier)}"}
        else:
            values["snapshot"] = self.identifier
        return values


def uses_version(template: str | None) -> bool:
    """Return whether a template can only be filled in with the version of the archive."""
    return template is not None and any(field == "version" for _, field, _, _ in string.Formatter().parse(template))


@functools.lru_cache(maxsize=64)
def _fields_of(template: str) -> tuple[str, ...]:
    """Return the fields of a template, checked; it is filled in for thousands of archives."""
    if not template:
        raise ValueError("name is empty; leave it out for the usual name")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"name={template!r}: {error}; write {{{{ for a brace itself") from None
    for _, field, spec, conversion in parts:
        if field is not None and (field not in FIELDS or spec or conversion):
            fields_in_words = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise ValueError(f"name={template!r}: {{{field}}} is unknown in this form; use {fields_in_words}")
    return tuple(field for _, field, _, _ in parts if field is not None)
