"""What a sync does with each entry of a listing: decided from the listing, the folder and the folder's state alone."""

import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from wme_async._client.archive_names import ArchiveName
from wme_async.errors import DataError
from wme_async.models import Archive

__all__ = [
    "SMALL",
    "Entry",
    "FileState",
    "check_removals",
    "check_template",
    "entries_of",
    "is_current",
]

SMALL: Final = 1 << 20
"""Bytes up to which a file is fetched in one answer, in memory."""

_TELLING: Final = {"identifier", "chunk", "snapshot"}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One archive of a listing.

    Args:
        identifier: As the list has it.
        name: Its path below the folder, with slashes.
        version: MD5 of the list; empty where it has none.
        size: Bytes of the list, rounded to 1,000; None where it says nothing.
    """

    identifier: str
    name: str
    version: str
    size: int | None

    @property
    def is_small(self) -> bool:
        """Whether it is known to be small enough to be fetched in one answer."""
        return self.size is not None and 0 < self.size <= SMALL and bool(self.version)


class FileState(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder's state says of one file.

    Args:
        version: MD5 of its bytes.
        listed: MD5 of the list for which it was fetched; another one where the archive was newer than its metadata.
        size: Bytes.
        mtime_ns: When it was written last, in nanoseconds since 1970.
    """

    version: str
    listed: str
    size: int
    mtime_ns: int


def check_template(template: str | None, sample: Callable[[str], ArchiveName]) -> None:
    """Raise if a template cannot be filled in, or gives two archives the same name.

    Args:
        template: As for downloads; None for the usual names.
        sample: Returns what is known about an archive with an identifier.

    Raises:
        TypeError: The template is not text.
        ValueError: It has an unknown field, leads out of the folder, or does not tell two archives apart.
    """
    one, two = sample("a_namespace_0_chunk_0"), sample("b_namespace_0_chunk_1")
    if one.path(template) == two.path(template):
        fields = {field for _, field, _, _ in string.Formatter().parse(template or "") if field}
        usable = "{chunk}" if one.is_chunk else "{identifier}"
        assert not fields & _TELLING or one.is_chunk
        raise ValueError(f"name={template!r} gives all archives of the listing one name; add {usable}")


def entries_of(listing: Iterable[Archive], name: Callable[[Archive], str]) -> list[Entry]:
    """Return the entries of a listing, the largest first, so that no large one is left for the end.

    Args:
        listing: Records of the metadata.
        name: Returns the path of an archive below the folder.

    Raises:
        ValueError: Two entries have one name, or names that differ only in case, which are one file on some disks.
    """
    entries: list[Entry] = []
    identifiers: dict[str, str] = {}
    for record in listing:
        path = name(record)
        key = unicodedata.normalize("NFC", path).casefold()
        other = identifiers.setdefault(key, record.identifier)
        if len(identifiers) == len(entries):
            raise ValueError(
                f"{other!r} and {record.identifier!r} get one name, {path!r}, or names that differ only in case; add "
                "{identifier} to name=, or sync them into two folders with filters="
            )
        size = record.size.bytes if record.size.value else None
        entries.append(Entry(identifier=record.identifier, name=path, version=record.version.lower(), size=size))
    entries.sort(key=lambda entry: -(entry.size or 0))
    return entries


def is_current(entry: Entry, state: FileState | None, size: int, mtime_ns: int) -> bool | None:
    """Say whether a file is the version of the listing.

    Args:
        entry: What the listing says.
        state: What the folder's state says of the file.
        size: Bytes of the file on the disk.
        mtime_ns: When it was written last.

    Returns:
        None where only its bytes can tell: the state does not know it, or it has been written since.
    """
    if state is None or (state.size, state.mtime_ns) != (size, mtime_ns) or not entry.version:
        return None
    return entry.version in {state.version, state.listed}


def check_removals(removable: Mapping[str, FileState], recorded: int, entries: int, max_delete: float) -> None:
    """Raise if a sync would remove more than it may.

    Args:
        removable: Files that the listing lacks.
        recorded: Files that the state has of the same collection and filters.
        entries: Entries of the listing.
        max_delete: Share of the recorded files, 0 to 1.

    Raises:
        DataError: The listing is empty, or lacks too many.
    """
    if not entries:
        raise DataError(
            "the listing is empty, which is more likely an error than the truth; nothing was removed. Leave out "
            "delete=True (--delete), or remove the files yourself"
        )
    if len(removable) > max_delete * recorded:
        raise DataError(
            f"the listing lacks {len(removable)} of the {recorded} files that were synced, more than max_delete="
            f"{max_delete:g} allows; nothing was removed. Raise max_delete (--max-delete) if they are to go"
        )
