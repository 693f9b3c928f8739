"""The options of downloads and of reading, stated once for every method that takes them."""

from collections.abc import Collection
from pathlib import Path
from typing import TypedDict

import msgspec

from wme_async._arguments import check_flags, check_functions, check_instances, check_numbers
from wme_async._download.budget import Budget
from wme_async._download.source import ProgressHook

MIB = 1 << 20


class TransferOptions(TypedDict, total=False):
    """Options of everything that fetches a file.

    Args:
        connections: Concurrent byte ranges at most; None lets the measured rate decide.
        max_rate: Bytes per second at most.
        budget: Connections and bandwidth to share with other downloads.
    """

    connections: int | None
    max_rate: float | None
    budget: Budget | None


class DownloadOptions(TransferOptions, total=False):
    """Options of a download; `DownloadSettings` has their defaults.

    Args:
        overwrite: Replace a file of whatever version that is there.
        progress: Receives `Progress` about ten times a second and once at the end.
        verify: Compare the MD5 with the one in the metadata.
        if_changed: Keep the file up to date: fetch nothing if it has the version on the server, else replace it.
        min_rate: Bytes per second below which a range is requested again on a new connection.
    """

    overwrite: bool
    progress: ProgressHook | None
    verify: bool
    if_changed: bool
    min_rate: float | None


class ContentOptions(TransferOptions, total=False):
    """Options of reading a file while it is fetched.

    Args:
        overwrite: Replace a file of another version that `tee` finds there.
        window: Bytes held in memory ahead of the reader.
    """

    overwrite: bool
    window: int


class DownloadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The checked options of one download.

    Args:
        overwrite: Replace a file that is there. False: one of this version is returned as it is, and one of another
            version is an error, unless `if_changed` keeps it up to date.
        verify: Compare the MD5 of the file with the one in its metadata.
        if_changed: Fetch nothing if the target already has this version. That costs no allowance.
        progress: Receives `Progress` about ten times a second and once at the end. Its exceptions end the download.
        connections: Connections for this file at most; None leaves it to the budget.
        min_rate: Bytes per second below which a range is requested again on a new connection, if others are faster.
        max_rate: Bytes per second for this download; several downloads share the limit of their `budget`.
        budget: Connections and bandwidth shared with other downloads.
        sha1: SHA-1 digests in hexadecimal, of which the file must have one; empty for no check. For sources without an
            MD5.
        also: Another file that satisfies `if_changed` if it has this version.
        create: Create missing folders of the target, once the file is known to exist on the server.
        part_size: Bytes, the upper bound of a range. If the signature expires before the file is complete, each
            connection takes its whole share at once instead, since a body that has begun continues.
        durable: Flush to the disk regularly, and before the file gets its name. Without it a power failure may cost
            more than the last seconds; a killed process never does.
        refetch: Fetch the file even if it is there in this version, because somebody reads it meanwhile.
        in_order: Fetch the parts in their order, because somebody reads the file from its beginning meanwhile.

    Raises:
        TypeError: An option has another type.
        ValueError: A number is out of range, or both `max_rate` and `budget` are given.
    """

    overwrite: bool = False
    verify: bool = True
    if_changed: bool = False
    progress: ProgressHook | None = None
    connections: int | None = None
    min_rate: float | None = None
    max_rate: float | None = None
    budget: Budget | None = None
    sha1: Collection[str] = ()
    also: Path | None = None
    create: bool = False
    part_size: int = 256 * MIB
    durable: bool = True
    refetch: bool = False
    in_order: bool = False

    def __post_init__(self) -> None:
        """Check the options that users give."""
        check_numbers(whole=True, minimum=1, connections=self.connections, part_size=self.part_size)
        check_numbers(above=0, unit="bytes per second", min_rate=self.min_rate)
        check_flags(verify=self.verify, if_changed=self.if_changed, overwrite=self.overwrite)
        check_functions(progress=self.progress)


def budget_for(budget: Budget | None, connections: int | None, max_rate: float | None) -> Budget:
    """Return the budget of a transfer: the shared one, or one of its own.

    Raises:
        TypeError: The budget is of another type, or a value is not a number.
        ValueError: There are both a shared budget and a rate, or a number is out of range.
    """
    check_instances(budget=(budget, Budget))
    if budget is None:
        return Budget.for_one(connections, max_rate)
    if max_rate is not None:
        raise ValueError("give max_rate to the budget that the downloads share")
    return budget
