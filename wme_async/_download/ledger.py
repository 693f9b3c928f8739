"""The written ranges of an unfinished file, in a ledger beside it that stays true when the process is killed.

The ledger is one small file. It begins with a table of intervals: two little-endian 64-bit offsets and a CRC-32 of both
each. Whoever writes bytes moves the second offset forward, with one write that stays within a page, after the bytes
themselves are written. The kernel keeps both when a process is killed, so the table never leases a byte that is not in
the file. After a power failure it might; therefore the ledger knows the boot it was written in, and of another boot it
believes only what was flushed to the disk before it was noted. Those notes are JSON with a CRC-32, in two areas that
are written in turn, so that one of them is always whole.

Nothing is believed that does not match its check: the CRC of an interval begins with that of the note, so an interval
counts for this version, boot and unfinished file alone. Whatever is damaged is fetched again.
"""

import contextlib
import errno
import os
import struct
import zlib
from pathlib import Path

import msgspec

from wme_async import _platform
from wme_async._download.range_plan import RangeLease, RangePlan, Spans
from wme_async._files import Problem, sync_file
from wme_async.errors import DecodeError
from wme_async.models.decoding import decode_json

_TABLE = 8192
_AREA = 16384
_SLOT = struct.Struct("<QQI4x")
_OFFSETS = struct.Struct("<QQ")
_SLOT_SIZE = 32  # a divisor of the page size, so that no slot lies on two pages
_SLOTS = _TABLE // _SLOT_SIZE
_PREFIX = struct.Struct("<4sII")
_MAGIC = b"WME2"
_MOST_SPANS = 400

# The ledger is written to right after the file. A file that was changed this much later was changed by another program.
_SLACK = 10_000_000_000  # nanoseconds


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """The slowly changing part of a ledger."""

    sequence: int = 0
    identity: str
    size: int
    etag: str
    boot: str | None
    inode: int | None
    synced: list[tuple[int, int]]

    def seed(self) -> int:
        """Return the CRC with which those of all intervals begin."""
        return zlib.crc32(msgspec.json.encode((self.identity, self.size, self.etag, self.boot, self.inode)))


_NOTE = msgspec.json.Decoder(Note)


class Ledger:
    """The ledger of one unfinished file.

    Args:
        path: Where it is. It is created if it does not exist.
        boot: This boot, or None where unknown: then only flushed bytes are believed later.

    Raises:
        OSError: It cannot be created, read or written; so do all methods.
    """

    def __init__(self, path: Path, *, boot: str | None) -> None:
        self._boot = boot
        self._problem = Problem(
            "the ledger of the unfinished file cannot be used; received bytes are kept, so call again", path
        )
        with self._problem:
            self._fd = _platform.open_file(path, os.O_RDWR | os.O_CREAT)
        self._note: Note | None = None
        self._seed = 0
        self._used = 0
        self._slots: dict[RangeLease, int] = {}

    def load(self, *, identity: str, size: int, etag: str, part: os.stat_result | None = None) -> Spans:
        """Return the written bytes of this version; none if the ledger is of another one.

        Args:
            identity: Host and path of the file on its server.
            size: Its bytes.
            etag: Its strong ETag.
            part: The status of the unfinished file; None to skip the check that the ledger belongs to it.
        """
        note = self._read()
        if note is None or (note.identity, note.size, note.etag) != (identity, size, etag):
            return Spans()
        # Without names of boots, a file that another program changed is told from one of another boot by nothing.
        same_boot = note.boot == self._boot
        if part is not None and (
            note.inode != part.st_ino or (same_boot and part.st_mtime_ns > os.fstat(self._fd).st_mtime_ns + _SLACK)
        ):
            return Spans()
        self._note, self._seed = note, note.seed()
        spans = Spans(note.synced)
        if same_boot and self._boot is not None:
            table = self._get(_TABLE, 0)
            for at in range(0, len(table) - _SLOT.size + 1, _SLOT_SIZE):
                start, stop, check = _SLOT.unpack_from(table, at)
                if start < stop <= size and check == _check(start, stop, self._seed):
                    spans.add(start, stop)
        return spans

    def begin(
        self,
        plan: RangePlan,
        *,
        identity: str,
        size: int,
        etag: str,
        inode: int | None = None,
    ) -> None:
        """Begin the record of a plan. Entries of another version are removed, on the disk too.

        Args:
            plan: The ranges.
            identity: Host and path of the file on its server.
            size: Its bytes.
            etag: Its strong ETag.
            inode: The number of the unfinished file.
        """
        note = self._note
        if not plan.done or note is None or (note.identity, note.size, note.etag) != (identity, size, etag):
            # Notes of another version or attempt must not come back to life if the new one is damaged.
            with self._problem:
                os.ftruncate(self._fd, 0)
            self._write(Note(identity=identity, size=size, etag=etag, boot=self._boot, inode=inode, synced=[]))
            self._sync()
        elif note.boot != self._boot:
            self._write(msgspec.structs.replace(note, boot=self._boot))
        self.rewrite(plan)

    def open(self, lease: RangeLease, plan: RangePlan) -> None:
        """Add an entry for a lease."""
        if self._used >= _SLOTS:
            self.rewrite(plan)
        if lease not in self._slots:
            self._slots[lease] = self._used
            self._used += 1
            self.advance(lease)

    def advance(self, lease: RangeLease) -> None:
        """Record that the bytes before `lease.at` are written."""
        self._put(self._slot(lease.start, lease.at), _SLOT_SIZE * self._slots[lease])

    def forget(self, lease: RangeLease) -> None:
        """Free the entry of a lease; its bytes stay recorded."""
        self._slots.pop(lease, None)

    def rewrite(self, plan: RangePlan) -> None:
        """Write the table anew with neighbours joined. Every interval, old or new, is true while that is done."""
        spans = sorted(plan.spans, key=lambda span: span[0] - span[1])[: _SLOTS // 2]
        pairs = [*spans, *((lease.start, lease.at) for lease in plan.leases)][:_SLOTS]
        self._slots = {lease: len(spans) + index for index, lease in enumerate(plan.leases[: _SLOTS - len(spans)])}
        self._used = len(pairs)
        table = b"".join(self._slot(start, stop).ljust(_SLOT_SIZE, b"\0") for start, stop in pairs)
        self._put(table.ljust(_TABLE, b"\0"), 0)

    def synced(self, spans: Spans) -> None:
        """Record bytes that are flushed to the disk, and flush the record. Blocks; meant for a thread."""
        assert self._note is not None
        largest = sorted(spans, key=lambda span: span[0] - span[1])[:_MOST_SPANS]
        self._write(msgspec.structs.replace(self._note, synced=sorted(largest)))
        self._sync(only_data=True)

    def close(self) -> None:
        """Close the file; it stays."""
        os.close(self._fd)

    def _slot(self, start: int, stop: int) -> bytes:
        return _SLOT.pack(start, stop, _check(start, stop, self._seed))

    def _read(self) -> Note | None:
        notes = [_note_of(self._get(_AREA, _TABLE + area * _AREA)) for area in (0, 1)]
        return max(filter(None, notes), key=lambda note: note.sequence, default=None)

    def _write(self, note: Note) -> None:
        note = msgspec.structs.replace(note, sequence=self._note.sequence + 1 if self._note else 1)
        text = msgspec.json.encode(note)
        data = _PREFIX.pack(_MAGIC, len(text), zlib.crc32(text)) + text
        if len(data) > _AREA:
            raise ValueError("the name of the file is too long for its ledger")
        self._put(data, _TABLE + (note.sequence % 2) * _AREA)
        self._note = note
        self._seed = note.seed()

    def _get(self, size: int, offset: int) -> bytes:
        with self._problem:
            return _platform.read_at(self._fd, size, offset)

    def _put(self, data: bytes, offset: int) -> None:
        with self._problem:
            if _platform.write_at(self._fd, data, offset) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _sync(self, *, only_data: bool = False) -> None:
        with self._problem:
            sync_file(self._fd, only_data=only_data)


def _note_of(raw: bytes) -> Note | None:
    """Return the note in an area; None if it is damaged, or was never written."""
    if len(raw) >= _PREFIX.size:
        magic, length, crc = _PREFIX.unpack_from(raw)
        text = raw[_PREFIX.size : _PREFIX.size + length]
        if magic == _MAGIC and len(text) == length and zlib.crc32(text) == crc:
            with contextlib.suppress(DecodeError):
                return decode_json(text, _NOTE)
    return None


def _check(start: int, stop: int, seed: int) -> int:
    return zlib.crc32(_OFFSETS.pack(start, stop), seed)
