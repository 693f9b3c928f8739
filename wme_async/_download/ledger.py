"""What is on the disk already, kept beside it: a ledger that a killed process leaves true.

The ledger is one small file. Its first page holds a table of intervals, each a pair of little-endian 64-bit offsets;
whoever writes bytes moves the second offset forward, with one write of eight bytes, after the bytes themselves are
written. The kernel keeps both when a process is killed, so the table never claims a byte that is not in the file. After
a power failure it might; therefore the ledger knows the boot it was written in, and of another boot only that is
believed which was flushed to the disk before it was noted. Those notes are JSON, in two areas that are written in turn,
so that one of them is always whole.
"""

import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from wme_async._protocol.decode import decode_json
from wme_async._protocol.ranges import Claim, Plan, Spans
from wme_async.errors import DecodeError

__all__ = ["Ledger", "boot_id"]

_PAGE = 4096
_AREA = 16384
_SLOTS = _PAGE // 16
_PAIR = struct.Struct("<QQ")
_OFFSET = struct.Struct("<Q")
_PREFIX = struct.Struct("<4sII")
_MAGIC = b"WME1"
_MOST_SPANS = 400


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """The slowly changing part of a ledger."""

    sequence: int = 0
    identity: str
    size: int
    etag: str
    boot: str | None
    synced: list[tuple[int, int]]


_NOTE = msgspec.json.Decoder(Note)


def boot_id() -> str | None:
    """Return what names the time since this machine was started; None where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeError):
        return None


class Ledger:
    """The ledger of one unfinished file.

    Args:
        path: Where it is. It is made if it is not there.
        boot: This boot, or None where unknown: then only flushed bytes are believed later.
    """

    def __init__(self, path: Path, *, boot: str | None) -> None:
        self._boot = boot
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        self._note: Note | None = None
        self._used = 0
        self._slots: dict[Claim, int] = {}

    def load(self, *, identity: str, size: int, etag: str) -> Spans:
        """Return the bytes that are there of this very version; none where the ledger tells of another one."""
        note = self._read()
        if note is None or (note.identity, note.size, note.etag) != (identity, size, etag):
            return Spans()
        self._note = note
        spans = Spans(note.synced)
        if note.boot is not None and note.boot == self._boot:
            table = os.pread(self._fd, _PAGE, 0)
            for start, stop in _PAIR.iter_unpack(table[: len(table) // 16 * 16]):
                if start < stop <= size:
                    spans.add(start, stop)
        return spans

    def begin(self, plan: Plan, *, identity: str, size: int, etag: str, synced: Iterable[tuple[int, int]] = ()) -> None:
        """Start to keep account of a plan. What the ledger said of another version is gone, on the disk too."""
        known = self._note
        if known is None or (known.identity, known.size, known.etag) != (identity, size, etag):
            # First the claims of the old version, then its name: in no order may old claims stand under a new name.
            os.pwrite(self._fd, bytes(_PAGE), 0)
            self._write(Note(identity=identity, size=size, etag=etag, boot=self._boot, synced=list(synced)))
            os.fsync(self._fd)
        elif known.boot != self._boot:
            # What the table said in another boot must not be believed in this one.
            os.pwrite(self._fd, bytes(_PAGE), 0)
            self._write(msgspec.structs.replace(known, boot=self._boot))
        self.rewrite(plan)

    def open(self, claim: Claim, plan: Plan) -> None:
        """Make room for a claim."""
        if self._used >= _SLOTS:
            self.rewrite(plan)
        if claim not in self._slots:
            self._slots[claim] = self._used
            os.pwrite(self._fd, _PAIR.pack(claim.start, claim.at), 16 * self._used)
            self._used += 1

    def advance(self, claim: Claim) -> None:
        """Note that the bytes before `claim.at` are written."""
        os.pwrite(self._fd, _OFFSET.pack(claim.at), 16 * self._slots[claim] + 8)

    def forget(self, claim: Claim) -> None:
        """A claim has ended; what it brought stays noted."""
        self._slots.pop(claim, None)

    def rewrite(self, plan: Plan) -> None:
        """Write the table anew with neighbours joined: one page, so that it is old or new and never half."""
        spans = sorted(plan.spans, key=lambda span: span[0] - span[1])[: _SLOTS // 2]
        pairs = [*spans, *((claim.start, claim.at) for claim in plan.claims)][:_SLOTS]
        self._slots = {claim: len(spans) + index for index, claim in enumerate(plan.claims[: _SLOTS - len(spans)])}
        self._used = len(pairs)
        table = b"".join(_PAIR.pack(*pair) for pair in pairs)
        os.pwrite(self._fd, table.ljust(_PAGE, b"\0"), 0)

    def synced(self, spans: Spans) -> None:
        """Note what has been flushed to the disk, and flush the note. Blocks; meant for a thread."""
        assert self._note is not None
        largest = sorted(spans, key=lambda span: span[0] - span[1])[:_MOST_SPANS]
        self._write(msgspec.structs.replace(self._note, synced=sorted(largest)))
        _flush(self._fd)

    def close(self) -> None:
        """Close the file; it stays."""
        os.close(self._fd)

    def _read(self) -> Note | None:
        best: Note | None = None
        for area in (0, 1):
            raw = os.pread(self._fd, _AREA, _PAGE + area * _AREA)
            if len(raw) < _PREFIX.size:
                continue
            magic, length, crc = _PREFIX.unpack_from(raw)
            text = raw[_PREFIX.size : _PREFIX.size + length]
            if magic != _MAGIC or len(text) != length or zlib.crc32(text) != crc:
                continue
            try:
                note = decode_json(text, _NOTE)
            except DecodeError:
                continue
            if best is None or note.sequence > best.sequence:
                best = note
        return best

    def _write(self, note: Note) -> None:
        sequence = max((self._note.sequence if self._note else 0), 0) + 1
        if self._note is None:
            old = self._read()
            sequence = old.sequence + 1 if old else 1
        note = msgspec.structs.replace(note, sequence=sequence)
        text = msgspec.json.encode(note)
        data = _PREFIX.pack(_MAGIC, len(text), zlib.crc32(text)) + text
        if len(data) > _AREA:
            raise ValueError("the name of the file is too long for its ledger")
        os.pwrite(self._fd, data, _PAGE + (sequence % 2) * _AREA)
        self._note = note


def _flush(fd: int) -> None:
    getattr(os, "fdatasync", os.fsync)(fd)
