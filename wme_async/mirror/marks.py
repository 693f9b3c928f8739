"""How far a mirror has come: what it stores beside its rows, and what follows from that. Pure."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from wme_async.errors import DataError, DecodeError
from wme_async.mirror.protocol import KINDS, Kind
from wme_async.mirror.rule import Mask, Page
from wme_async.models.decoding import decoding
from wme_async.offsets import Position

__all__ = [
    "EXPORT",
    "KEPT",
    "ChunkDone",
    "Hole",
    "Load",
    "Loaded",
    "MirrorState",
    "Progress",
    "Scope",
    "Source",
    "Verification",
    "hour_key",
    "hours_between",
    "parse_identifiers",
]

T = TypeVar("T")

Source: TypeAlias = Literal["stream", "batches", "snapshots"]
"""Where changes come from."""

MirrorState: TypeAlias = Literal["new", "loading", "following", "behind", "healing", "stale"]
"""`new`: nothing is loaded. `loading`: a snapshot is. `following`: it is up to date. `behind`: it catches up.
`healing`: it reads batches for a time in which it followed nothing. `stale`: changes are missing until the next
snapshot."""

KEPT: Final = timedelta(hours=47, minutes=30)
"""The service keeps events and batches for two days; what is older than this is not requested."""

EXPORT: Final = timedelta(hours=6)
"""No export takes longer: a snapshot that is complete at some time has all that was published so long before."""

_HOUR: Final = timedelta(hours=1)
_IDENTIFIER: Final = re.compile(r"(?P<project>[a-z0-9_-]+)_namespace_(?P<namespace>[0-9]+)")


class Scope(msgspec.Struct, frozen=True):
    """A project and namespace.

    Attributes:
        identifier: Of its snapshots and batches: `enwiki_namespace_0`.
        project: `enwiki`.
        namespace: 0.
    """

    identifier: str
    project: str
    namespace: int

    def has(self, record: Page | Mask) -> bool:
        """Return whether a record belongs to it; a visibility change is kept by project alone."""
        return record.project == self.project and (isinstance(record, Mask) or record.namespace == self.namespace)


def parse_identifiers(identifiers: str | Iterable[str]) -> tuple[Scope, ...]:
    """Return what identifiers of snapshots stand for.

    Raises:
        TypeError: They are not text.
        ValueError: There is none, one occurs twice, or one does not stand for a project and a namespace. Any other
            selection would hide the event by which a page leaves it.
    """
    names = (identifiers,) if isinstance(identifiers, str) else tuple(identifiers)
    scopes = []
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"identifiers must be text such as 'enwiki_namespace_0', and {name!r} is not")
        match = _IDENTIFIER.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{name!r} is not a project and a namespace, such as 'enwiki_namespace_0': a mirror has whole "
                "namespaces, since any other selection hides the event by which a page leaves it"
            )
        scopes.append(Scope(name, match["project"], int(match["namespace"])))
    if not scopes or len(set(names)) < len(names):
        raise ValueError("identifiers must be one or more different names, such as 'enwiki_namespace_0'")
    return tuple(scopes)


class Hole(msgspec.Struct, frozen=True, kw_only=True):
    """A time of which changes are missing.

    Attributes:
        begin: Its beginning, UTC.
        end: Its end, UTC.
        reason: The cause, in words.
        identifier: The project and namespace that it concerns; None for all.
    """

    begin: datetime
    end: datetime
    reason: str
    identifier: str | None = None

    @property
    def key(self) -> str:
        """Its key in the store: what ends or begins at the same time for the same reason is the same hole."""
        return f"{self.begin.isoformat()} {self.identifier or ''}"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that is being loaded.

    Attributes:
        number: Of the load.
        version: Of the snapshot.
        date_modified: The end of its export, UTC.
        total: The number of its chunks; 1 for a whole archive.
    """

    number: int
    version: str
    date_modified: datetime
    total: int = 1


class ChunkDone(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a snapshot that is merged.

    Attributes:
        load: The number of the load.
        version: Of the chunk; empty if it is not known.
        cut: The largest time of publication inside.
        records: Records in it.
        bad: Records that could not be read.
    """

    load: int
    version: str
    cut: int
    records: int
    bad: int = 0


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that is merged completely.

    Attributes:
        number: Of the load.
        version: Of the snapshot.
        date_modified: The end of its export, UTC.
        cut: The largest time of publication inside.
        records: Records in it.
        bad: Records that could not be read.
        missing: Live pages that it lacked.
        removed: How many of them were removed.
        missed: Changes that it had and the mirror had missed; of the first load, its pages.
    """

    number: int
    version: str
    date_modified: datetime
    cut: datetime
    records: int = 0
    bad: int = 0
    missing: int = 0
    removed: int = 0
    missed: int = 0

    @property
    def until(self) -> datetime:
        """The time up to which it has all that was published; the export began then or later."""
        return max(self.cut, self.date_modified - EXPORT)


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a comparison with the service.

    Attributes:
        time: When, UTC.
        kind: `sample` or `full`.
        checked: Records that were compared.
        missed: Changes that the mirror had missed, and has now.
        removed: Pages that a full snapshot lacked, and that were removed.
    """

    time: datetime
    kind: Literal["sample", "full"]
    checked: int = 0
    missed: int = 0
    removed: int = 0


class Progress:
    """The marks of a store, decoded.

    Args:
        values: As the store returns them.

    Raises:
        DataError: They are not those of a mirror.
    """

    def __init__(self, values: Mapping[Kind, Mapping[str, str]]) -> None:
        self._values: dict[Kind, dict[str, str]] = {kind: dict(values.get(kind, {})) for kind in KINDS}

    def note(self, values: Mapping[Kind, Mapping[str, str | None]]) -> None:
        """Take over marks that are stored now."""
        for kind, by_key in values.items():
            own = self._values[kind]
            for key, value in by_key.items():
                if value is None:
                    own.pop(key, None)
                else:
                    own[key] = value

    def keys(self, kind: Kind) -> list[str]:
        """Return the keys of a kind of marks."""
        return list(self._values[kind])

    def items(self, kind: Kind) -> list[tuple[str, str]]:
        """Return the keys and texts of a kind of marks."""
        return list(self._values[kind].items())

    def get(self, kind: Kind, key: str, type: Any) -> Any:
        """Return one mark, or None.

        Raises:
            DataError: It is not of this type.
        """
        text = self._values[kind].get(key)
        if text is None:
            return None
        try:
            with decoding():
                return msgspec.json.decode(text, type=type)
        except DecodeError as error:
            raise DataError(f"the store is damaged: {key!r} of {kind} ({error}); restore a copy") from error

    @property
    def positions(self) -> dict[int, Position]:
        """The positions of the stream, by partition."""
        return {int(key): self.get("positions", key, Position) for key in self._values["positions"]}

    @property
    def holes(self) -> list[Hole]:
        """The times of which changes are missing."""
        return [self.get("holes", key, Hole) for key in self._values["holes"]]

    @property
    def degraded(self) -> dict[str, str]:
        """Why the mirror keeps less than it promises, by subject."""
        return self.get("state", "degraded", dict[str, str]) or {}

    @property
    def followed_until(self) -> datetime | None:
        """The time up to which changes were followed; None if none were."""
        times = [position.safe_until for position in self.positions.values()]
        known = [time for time in times if time is not None]
        hour: datetime | None = self.get("state", "hour", datetime)
        if hour is not None:
            known.append(hour + _HOUR)
        return min(known, default=None)

    @property
    def newest(self) -> datetime | None:
        """When the newest event was published that was followed; None without any."""
        times = [position.published for position in self.positions.values() if position.offset >= 0]
        return max((time for time in times if time is not None), default=None)

    @property
    def since(self) -> datetime | None:
        """The time from which on changes were followed, but for holes; None if they are not followed."""
        since: datetime | None = self.get("state", "since", datetime)
        return since

    def loaded(self, scope: Scope) -> Loaded | None:
        """Return the last snapshot that was merged completely."""
        loaded: Loaded | None = self.get("state", f"loaded {scope.identifier}", Loaded)
        return loaded

    def load(self, scope: Scope) -> Load | None:
        """Return the snapshot that is being loaded."""
        load: Load | None = self.get("state", f"load {scope.identifier}", Load)
        return load

    def chunks(self, scope: Scope, load: int) -> dict[str, ChunkDone]:
        """Return the chunks of a load that are merged, by identifier."""
        prefix = f"{scope.identifier} "
        done = {
            key.removeprefix(prefix): self.get("chunks_done", key, ChunkDone)
            for key in self._values["chunks_done"]
            if key.startswith(prefix)
        }
        return {key: chunk for key, chunk in done.items() if chunk.load == load}

    def chunk_keys(self, scope: Scope) -> list[str]:
        """Return the keys of all chunks of a project and namespace."""
        return [key for key in self._values["chunks_done"] if key.startswith(f"{scope.identifier} ")]

    def next_load(self) -> int:
        """Return the number of the next load."""
        return 1 + (self.get("state", "loads", int) or 0)

    def state(self, scopes: Iterable[Scope], *, behind: bool = False, healing: bool = False) -> MirrorState:
        """Return the state.

        Args:
            scopes: What is mirrored.
            behind: Whether changes are read that are older than some minutes.
            healing: Whether batches are read for a hole.
        """
        scopes = tuple(scopes)
        loading = any(self.load(scope) is not None for scope in scopes)
        if not all(self.loaded(scope) for scope in scopes):
            return "loading" if loading or any(self.loaded(scope) for scope in scopes) else "new"
        if self._values["holes"]:
            return "healing" if healing else "loading" if loading else "stale"
        return "behind" if behind else "following"

    def covers(self, hole: Hole, scopes: Iterable[Scope]) -> bool:
        """Return whether complete snapshots are later than a hole, which closes it.

        One that lacks more pages than it may remove is taken for incomplete: it may lack changes as well.
        """
        concerned = [scope for scope in scopes if hole.identifier in {None, scope.identifier}]
        snapshots = [loaded for scope in concerned if (loaded := self.loaded(scope)) is not None]
        times = [loaded.until for loaded in snapshots if loaded.removed == loaded.missing]
        return len(times) == len(concerned) and all(time >= hole.end for time in times)


def hour_key(hour: datetime) -> str:
    """Return the key of an hour of batches."""
    return f"{hour:%Y-%m-%dT%H}"


def hours_between(begin: datetime, end: datetime) -> list[datetime]:
    """Return the hours whose batches have the changes of a time.

    A batch has what was published in its hour; what was published within it may have been created before.
    """
    hour = begin.replace(minute=0, second=0, microsecond=0)
    hours = []
    while hour < end:
        hours.append(hour)
        hour += _HOUR
    return hours
