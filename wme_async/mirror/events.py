"""What a mirror tells its `on_event` hook."""

from typing import TypeAlias

import msgspec

from wme_async.errors import DecodeError
from wme_async.mirror.marks import Hole, Loaded, MirrorState, Source, Verification

__all__ = [
    "MirrorBadRecord",
    "MirrorChunkLoaded",
    "MirrorEvent",
    "MirrorHoleClosed",
    "MirrorHoleFound",
    "MirrorLoaded",
    "MirrorSourceChanged",
    "MirrorStateChanged",
    "MirrorTrouble",
    "MirrorVerified",
]


class MirrorStateChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The state is another one.

    Attributes:
        old: The state before.
        new: The state now.
        degraded: Why the mirror keeps less than it promises, by subject.
    """

    old: MirrorState
    new: MirrorState
    degraded: dict[str, str]


class MirrorSourceChanged(msgspec.Struct, frozen=True, kw_only=True):
    """Changes come from another source.

    Attributes:
        source: The source.
        reason: Why it is not a better one; empty if it is the best.
    """

    source: Source
    reason: str


class MirrorChunkLoaded(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a snapshot is merged.

    Attributes:
        identifier: Of the snapshot.
        done: Parts that are merged.
        total: Parts in all.
        records: Records in this part.
    """

    identifier: str
    done: int
    total: int
    records: int


class MirrorLoaded(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot is merged completely.

    Attributes:
        identifier: Of the snapshot.
        loaded: What was found.
    """

    identifier: str
    loaded: Loaded


class MirrorHoleFound(msgspec.Struct, frozen=True, kw_only=True):
    """Changes of a time are missing.

    Attributes:
        hole: The time and the reason.
    """

    hole: Hole


class MirrorHoleClosed(msgspec.Struct, frozen=True, kw_only=True):
    """The changes of a time are no longer missing.

    Attributes:
        hole: The time and the reason.
        by: `batches` or `snapshot`.
    """

    hole: Hole
    by: str


class MirrorVerified(msgspec.Struct, frozen=True, kw_only=True):
    """The mirror was compared with the service.

    Attributes:
        verification: The result.
    """

    verification: Verification


class MirrorBadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record could not be read.

    Attributes:
        error: The error, with the bytes.
        source: Where it came from.
    """

    error: DecodeError
    source: str


class MirrorTrouble(msgspec.Struct, frozen=True, kw_only=True):
    """A request failed, and will be repeated.

    Attributes:
        error: The error.
        wait: Seconds until then.
    """

    error: Exception
    wait: float


MirrorEvent: TypeAlias = (
    MirrorStateChanged
    | MirrorSourceChanged
    | MirrorChunkLoaded
    | MirrorLoaded
    | MirrorHoleFound
    | MirrorHoleClosed
    | MirrorVerified
    | MirrorBadRecord
    | MirrorTrouble
)
"""The argument of the `on_event` hook."""
