"""How the parts of a stream are shared among several processes: by a fixed plan, or by leases."""

import secrets
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from wme_async._arguments import check_numbers, check_text
from wme_async._stream.options import StreamOptions, checked_options
from wme_async._stream.resume import StreamResource
from wme_async.offsets import LeaseStore


class Static(msgspec.Struct, frozen=True):
    """A fixed share of the parts, for processes that are numbered, such as those of a StatefulSet.

    It needs no store that knows about leases. While a process is down, nobody reads its parts. Give all processes the
    same `of`, and change it only while none is running.

    Args:
        ordinal: The number of this process, from 0.
        of: How many processes there are.

    Raises:
        TypeError: They are not whole numbers.
        ValueError: The ordinal is not below `of`.
    """

    ordinal: int
    of: int

    def __post_init__(self) -> None:
        """Raise if the numbers do not fit."""
        check_numbers(whole=True, optional=False, minimum=0, owner="Static", ordinal=self.ordinal)
        check_numbers(whole=True, optional=False, minimum=1, owner="Static", of=self.of)
        if self.ordinal >= self.of:
            raise ValueError(f"Static.ordinal counts from 0 to {self.of - 1}, so not {self.ordinal}")


Share: TypeAlias = Literal["group"] | Static
"""How to share the parts."""


class Group(msgspec.Struct, frozen=True):
    """The options of a group.

    Attributes:
        store: The store of positions and leases.
        owner: This member: another one for each stream that is opened.
        lease: Seconds that a lease lasts from a renewal.
    """

    store: LeaseStore
    owner: str
    lease: float


class GroupOptions(StreamOptions, total=False):
    """The options of streams with `share="group"`."""

    lease: float
    member: str | None


def checked_sharing(
    share: object, options: Mapping[str, Any], resource: StreamResource
) -> tuple[StreamOptions, Group | list[str] | None]:
    """Return the options of a stream, complete, and how it is shared.

    Args:
        share: `"group"`, a `Static`, or None.
        options: The options of the call.
        resource: The stream.

    Returns:
        The options, and: the options of the group; or what to claim below the name, for a fixed plan; or None.

    Raises:
        TypeError: An option does not exist or has the wrong type, or the store has no leases.
        ValueError: An option cannot be used with others, or the server would reject or misread it.
    """
    group = {name: options[name] for name in ("lease", "member") if name in options}
    options = {name: value for name, value in options.items() if name not in group}
    if share is not None and options.get("parts") is not None:
        raise ValueError("share= decides which parts to read: leave parts out")
    if share == "group":
        settings = checked_options(options, resource)
        return settings, _checked_group(options.get("offsets"), settings, **group)
    if group:
        raise ValueError(f"{' and '.join(group)} can be used with share='group' alone")
    if share is None:
        return checked_options(options, resource), None
    if not isinstance(share, Static):
        raise TypeError(f"share must be 'group' or Static(ordinal, of), not {share!r}")
    if share.of > resource.parts:
        raise ValueError(f"{resource.name} has {resource.parts} parts, so at most {resource.parts} processes share it")
    parts = range(share.ordinal, resource.parts, share.of)
    # Not the name as a whole, which the others use too.
    return checked_options({**options, "parts": parts}, resource), [f"part {part}" for part in parts]


def _checked_group(store: object, settings: StreamOptions, *, lease: float = 30.0, member: str | None = None) -> Group:
    if not isinstance(store, LeaseStore):
        raise TypeError(
            "share='group' needs a store of leases as offsets=, such as PostgresOffsets('postgresql://…') or, on one "
            f"machine, SQLiteOffsets('offsets.db'), not {store!r}"
        )
    if settings["connections"] != 1:
        raise ValueError("share='group' makes one connection for each part that it reads: leave connections out")
    check_numbers(optional=False, above=0, unit="seconds", lease=lease)
    check_text(member=member)
    return Group(store, f"{secrets.token_hex(8)}{'' if member is None else f' {member}'}", lease)
