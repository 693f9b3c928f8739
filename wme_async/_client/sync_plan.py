"""The decisions of a sync about each entry of a listing, from the listing, the folder and the folder's state."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from wme_async._client.archive_names import ArchiveName
from wme_async.errors import DataError
from wme_async.models import Archive

_LARGEST: Final = 1 << 63

SMALL: Final = 1 << 20
"""Bytes up to which a file is fetched in one response, in memory."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One archive of a listing.

    Args:
        identifier: From the list.
        name: Its path below the folder, with slashes.
        version: MD5 of the list; empty without one.
        size: Bytes of the list, rounded to 1,000; None without a size.
    """

    identifier: str
    name: str
    version: str
    size: int | None

    @property
    def is_small(self) -> bool:
        """Whether its size is known and small enough for one response."""
        return self.size is not None and 0 < self.size <= SMALL and bool(self.version)


def size_of(record: Archive) -> int | None:
    """Return the bytes of an archive, rounded to 1,000; None if its metadata has no size, or none that can be true."""
    try:
        size = record.size.bytes
    except ValueError:
        return None
    return size if 0 < size < _LARGEST else None


class FileState(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one file in a folder's state.

    Args:
        version: MD5 of its bytes.
        listed: MD5 of the list at that time; it differs from `version` if the archive was newer than its metadata.
        size: Bytes.
        mtime_ns: Time of the last modification, in nanoseconds since 1970.
    """

    version: str
    listed: str
    size: int
    mtime_ns: int


def check_template(template: str | None, sample: Callable[[str], ArchiveName]) -> None:
    """Raise if a template cannot be filled in, or gives two archives the same name.

    Args:
        template: As for downloads; None for the default names.
        sample: Returns the parts of the name of an archive.

    Raises:
        TypeError: The template is not text.
        ValueError: It has an unknown field, leads out of the folder, or gives two archives the same name.
    """
    one, two = sample("a_namespace_0_chunk_0"), sample("b_namespace_0_chunk_1")
    if one.path(template) == two.path(template):
        field = "{chunk}" if one.is_chunk else "{identifier}"
        raise ValueError(f"name={template!r} gives all archives of the listing one name; add {field}")


def entries_of(listing: Iterable[Archive], name: Callable[[Archive], str]) -> list[Entry]:
    """Return the entries of a listing, the largest first, so that none of the large ones is the last to end.

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
        size = size_of(record)
        entries.append(Entry(identifier=record.identifier, name=path, version=record.version.lower(), size=size))
    entries.sort(key=lambda entry: -(entry.size or 0))
    return entries


def is_current(entry: Entry, state: FileState | None, size: int, mtime_ns: int) -> bool | None:
    """Return whether a file has the version of the listing.

    Args:
        entry: The entry of the listing.
        state: The record of the file in the folder's state.
        size: Bytes of the file on the disk.
        mtime_ns: Time of its last modification, in nanoseconds since 1970.

    Returns:
        None if only its bytes show it: the state does not have the file, or the file has changed since.
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
