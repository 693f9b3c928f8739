"""Cuts blocks of a tar into members and their lines.

Nothing here reads, waits or inflates: `TarScanner.feed` takes the next block of the uncompressed tar, of any size, and
yields the lines that it completes. Memory is one block and one unfinished line.

Archives of the service are ustar, with only regular files of NDJSON, each line ended by a line feed, and two zero
blocks at the end; the archive of an hour without edits has no member. pax headers and GNU long names are read too, for
archives that users pack again, and directories are skipped. Everything else is rejected, and so are names that lead out
of the archive: nothing is ever extracted and a name is only a label here, but such a name is an attack.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from wme_async._archive.field_trimmer import FieldTrimmer
from wme_async.errors import ArchiveError
from wme_async.models.decoding import Buffer

DEFAULT_MAX_RECORD: Final = 64 * 1024 * 1024
"""Bytes. The longest known lines of archives are a little above 20 MiB."""

_BLOCK: Final = 512
_MAX_META: Final = 1024 * 1024  # bytes of one pax header or GNU long name
_EMPTY_HEADERS: Final = 10_000  # headers without content in any archive at most,
_EMPTY_HEADERS_PER_MEMBER: Final = 10  # and more for each member with content; both bound work that costs no bytes
_MAX_TAIL: Final = 1024 * 1024  # bytes of zeros after the end marker; tar pads to 10 KiB
_MAX_LINES: Final = 1024  # lines yielded together, so that a block of empty lines does not keep the reader for long
_HEAD_BYTES: Final = 4096  # bytes kept of a line above the limit
_LONG_LINE: Final = 2 * 1024 * 1024  # bytes of a line from which on its unneeded strings are dropped

_PAX_RECORD: Final = re.compile(rb"0*([0-9]{1,9}) ([^=]+)=")
_PAX_KEYS: Final = frozenset({"path", "size"})  # others are irrelevant here, and may be many

_REJECTED: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"M": "a part of a file that began on another volume",
    b"S": "a sparse file",
    b"V": "a volume label",
}


class Lines(msgspec.Struct):
    """Whole lines that follow each other in one member.

    Attributes:
        member: Name of the member.
        line: Number of the first line, counted from 1.
        offset: Byte offset of the first line in the uncompressed member.
        records: The lines without their line feeds, which may be empty. Views of the block they were cut from.
    """

    member: str
    line: int
    offset: int
    records: list[Buffer]

    def offset_of(self, index: int) -> int:
        """Return the byte offset of the line at an index of `records`."""
        return self.offset + sum(len(record) + 1 for record in self.records[:index])


class Block(msgspec.Struct, frozen=True):
    """Whole lines of NDJSON that follow each other in one member of an archive.

    Attributes:
        member: Name of the member.
        line: Number of the first line, counted from 1.
        offset: Byte offset of the first line in the uncompressed member.
        data: The lines, each ended by a line feed.
        lines: Number of lines.
    """

    member: str
    line: int
    offset: int
    data: bytes
    lines: int


class Run(msgspec.Struct):
    """Whole lines that follow each other in one member, not cut apart.

    Attributes:
        member: Name of the member.
        line: Number of the first line, counted from 1.
        offset: Byte offset of the first line in the uncompressed member.
        parts: The bytes, line feeds included, in pieces.
        lines: Number of lines.
        size: Number of bytes.
    """

    member: str
    line: int
    offset: int
    parts: list[Buffer]
    lines: int
    size: int


class TooLong(msgspec.Struct, frozen=True):
    """A line above the limit, yielded as soon as it exceeds it.

    Attributes:
        member: Name of the member.
        line: Its number, counted from 1.
        offset: Its byte offset in the uncompressed member.
        head: Its first 4 KiB.
    """

    member: str
    line: int
    offset: int
    head: bytes


class TarScanner:
    """Scans a tar block by block.

    Args:
        max_record: Bytes of a line at most, without its line feed. A longer one is a `TooLong` and is dropped.
        select: Called with the name of each member; returns whether to yield its lines. Other members are skipped.
        names: The keys to keep of a line, None for all. In a very long line an empty string may replace the text of
            other keys.

    Attributes:
        runs: Whether to yield many lines as a `Run`, rather than as `Lines`.
        position: Bytes of the tar scanned so far.
        member: Name of the current member, or of the last one.
        members: Number of regular members started.
    """

    def __init__(
        self,
        *,
        max_record: int = DEFAULT_MAX_RECORD,
        select: Callable[[str], bool] | None = None,
        names: frozenset[str] | None = None,
    ) -> None:
        self.runs = False
        self.position = 0
        self.member: str | None = None
        self.members = 0
        self._max_record = max_record
        self._select = select
        self._names = names
        self._header = bytearray()
        self._body = 0  # remaining bytes of the member
        self._padding = 0
        self._selected = False
        self._meta_kind = b""
        self._meta = bytearray()
        self._long_name: str | None = None
        self._pax: dict[str, str] = {}
        self._pax_global: dict[str, str] = {}
        self._zero_blocks = 0
        self._empty_headers = 0
        self._full_members = 0
        self._tail = 0
        self._line = 1
        self._offset = 0
        self._carry = bytearray()  # the unfinished line of the last block
        self._trimmer: FieldTrimmer | None = None
        self._trimmed = 0  # bytes dropped from that line
        self._dropping = False  # inside a line above the limit

    def feed(self, block: bytes) -> Iterator[Lines | Run | TooLong]:
        """Scan the next block and yield the lines that it completes.

        Exhaust the iterator before feeding the next block. It yields the lines before an error first.

        Raises:
            ArchiveError: The tar is damaged, or has members that no archive of the service has.
        """
        at, end = 0, len(block)
        while at < end:
            if self._zero_blocks == 2:
                self._check_tail(block[at:])
                at = end
            elif self._body:
                take = min(self._body, end - at)
                self._body -= take
                self.position += take
                if self._selected:
                    yield from self._cut(block, at, at + take)
                elif self._meta_kind:
                    self._meta += block[at : at + take]
                at += take
                if not self._body:
                    yield from self._end_member()
            elif self._padding:
                take = min(self._padding, end - at)
                self._padding -= take
                self.position += take
                at += take
            else:
                take = min(_BLOCK - len(self._header), end - at)
                self._header += block[at : at + take]
                self.position += take
                at += take
                if len(self._header) == _BLOCK:
                    size = self._read_header(bytes(self._header))
                    self._header.clear()
                    if self._meta_kind and size == 0:
                        yield from self._end_member()

    def close(self) -> None:
        """Check that the tar is complete.

        Raises:
            ArchiveError: The tar is truncated. Without its end marker it is truncated between two members: its writer
                died there, and members are missing although the gzip file may be intact.
        """
        if self._body or self._padding or self._header or self._meta_kind:
            raise self._error("the tar inside is cut short")
        if not self.position:
            raise self._error("it contains no tar")
        if self._zero_blocks < 2 or self._long_name is not None or self._pax:
            raise self._error("the tar inside has no end marker: it was not written to its end")

    def _error(self, message: str, *, member: str | None = None) -> ArchiveError:
        return ArchiveError(message, member=self.member if member is None else member, offset=self.position)

    def _check_tail(self, rest: bytes) -> None:
        self._tail += len(rest)
        if rest.strip(b"\0"):
            raise self._error("there is more after the end of the tar inside")
        self.position += len(rest)
        if self._tail > _MAX_TAIL:
            raise self._error(f"more than {_MAX_TAIL} bytes of padding after the end of the tar inside")

    def _read_header(self, header: bytes) -> int:
        """Read a header and return the size of its content."""
        if not header.strip(b"\0"):
            self._zero_blocks += 1
            return 0
        if self._zero_blocks:
            raise self._error("a single zero block amid the tar inside")
        if not _checksum_fits(header):
            raise self._error("a damaged header in the tar inside")
        self._empty_headers += 1
        if self._empty_headers > _EMPTY_HEADERS + _EMPTY_HEADERS_PER_MEMBER * self._full_members:
            raise self._error(
                f"{self._empty_headers} headers without content in the tar inside and {self._full_members} with some: "
                "pack it again without them if it is yours"
            )
        size = self._number(header[124:136])
        kind = header[156:157]
        if kind in {b"x", b"g", b"L", b"K"}:
            if size > _MAX_META:
                raise self._error(f"an extended header of {size} bytes")
            self._meta_kind = kind
            self._meta.clear()
            self._selected = False
        else:
            size = self._begin_member(header, kind, size)
        self._body = size
        self._padding = -size % _BLOCK
        return size

    def _begin_member(self, header: bytes, kind: bytes, size: int) -> int:
        pax = {**self._pax_global, **self._pax}
        name = self._long_name or pax.get("path") or _name(header)
        self._pax = {}
        self._long_name = None
        if "size" in pax:
            if not re.fullmatch(r"0*[0-9]{1,19}", pax["size"], re.ASCII):
                raise self._error(f"a size that is not a number: {pax['size']!r}", member=name)
            size = int(pax["size"].lstrip("0") or "0")
        if "GNU.sparse" in pax:
            kind = b"S"
        if not name or name.startswith("/") or ".." in name.split("/") or not name.isprintable():
            raise self._error(f"a member with a name that no archive of the service has: {name!r}", member=name)
        if kind == b"5" or (kind in {b"0", b"\0"} and name.endswith("/")):
            self._selected = False
            # The size of a directory is a bound, without bytes that follow (POSIX, ustar typeflag 5; old archives mark
            # a directory only by the slash). The bytes of a regular file do follow, whatever its name.
            return size if kind == b"0" else 0
        if kind not in {b"0", b"\0", b"7"}:
            description = _REJECTED.get(kind, f"a member of the unknown type {kind!r}")
            raise self._error(f"{description}, where only regular files are expected", member=name)
        self.member = name
        self.members += 1
        if size:
            self._empty_headers -= 1
            self._full_members += 1
        self._line = 1
        self._offset = 0
        self._selected = self._select is None or self._select(name)
        return size

    def _end_member(self) -> Iterator[Lines | Run | TooLong]:
        if self._meta_kind:
            self._read_meta()
        elif self._carry:  # the last line has no line feed, and ends with its member
            lines = Lines(self.member or "", self._line, self._offset, [self._carry])
            self._reset_line()
            yield lines
        self._dropping = False

    def _read_meta(self) -> None:
        meta = bytes(self._meta)
        kind, self._meta_kind = self._meta_kind, b""
        if kind == b"L":
            self._long_name = _text(meta.rstrip(b"\0"))
        elif kind == b"x":
            self._pax = self._pax_records(meta)
        elif kind == b"g":
            self._pax_global.update(self._pax_records(meta))

    def _pax_records(self, meta: bytes) -> dict[str, str]:
        """Read records of `LENGTH KEY=VALUE` and a line feed, where the length counts the whole record."""
        records: dict[str, str] = {}
        start = 0
        while start < len(meta):
            match = _PAX_RECORD.match(meta, start)
            end = start + int(match[1]) if match else 0
            if not match or end <= match.end() or meta[end - 1 : end] != b"\n":
                raise self._error("a damaged pax header")
            key = _text(match[2])
            if key in _PAX_KEYS:
                records[key] = _text(meta[match.end() : end - 1])
            elif key.startswith("GNU.sparse"):
                records["GNU.sparse"] = ""
            start = end
        return records

    def _number(self, field: bytes) -> int:
        """Read an octal number, or a binary one of GNU tar, which has the highest bit set."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        digits = field.split(b"\0", 1)[0].strip(b" ")
        if not re.fullmatch(rb"[0-7]*", digits):
            raise self._error("a damaged number in a header of the tar inside")
        return int(digits or b"0", 8)

    def _cut(self, block: bytes, start: int, stop: int) -> Iterator[Lines | Run | TooLong]:
        first = block.find(b"\n", start, stop)
        if first < 0:
            yield from self._keep(block, start, stop)
            return
        records: list[Buffer] = []
        size = first + 1 - start
        if self._carry or self._dropping or first - start > self._max_record:
            yield from self._keep(block, start, first)
            if self._dropping:
                self._dropping = False
                self._line += 1
                self._offset += 1
                size = 0
            else:
                records.append(self._carry)
                size = len(self._carry) + self._trimmed + 1
                trimmed = self._trimmed
                self._reset_line()
                if trimmed:  # on its own, since its length differs from its size in the member
                    yield from self._lines(records, size)
                    records, size = [], 0
        else:
            records.append(memoryview(block)[start:first])
        last = block.rfind(b"\n", first, stop) + 1
        yield from self._cut_whole(block, first + 1, last, records, size)
        if last < stop:
            yield from self._keep(block, last, stop)

    def _cut_whole(
        self, block: bytes, start: int, stop: int, records: list[Buffer], size: int
    ) -> Iterator[Lines | Run | TooLong]:
        """Cut a run of whole lines; `records` may hold the line just before them, of `size` bytes."""
        view = memoryview(block)
        limit = self._max_record
        if self.runs and stop - start <= limit:
            yield from self._run(view[start:stop], _count_lines(block, start, stop), records, size)
            return
        find = block.find
        run = start
        while start < stop:
            at = find(b"\n", start, stop)
            if at - start > limit:
                yield from self._lines(records, size + start - run)
                records, size, run = [], 0, at + 1
                yield TooLong(self.member or "", self._line, self._offset, block[start : start + _HEAD_BYTES])
                self._line += 1
                self._offset += at + 1 - start
            else:
                records.append(view[start:at])
                if len(records) == _MAX_LINES:
                    yield from self._lines(records, size + at + 1 - run)
                    records, size, run = [], 0, at + 1
            start = at + 1
        yield from self._lines(records, size + stop - run)

    def _run(self, view: memoryview, lines: int, records: list[Buffer], size: int) -> Iterator[Run]:
        parts = [part for record in records for part in (record, b"\n")]
        lines += len(records)
        size += len(view)
        if lines:
            yield Run(self.member or "", self._line, self._offset, [*parts, view], lines, size)
        self._line += lines
        self._offset += size

    def _lines(self, records: list[Buffer], size: int) -> Iterator[Lines]:
        if records:
            lines = Lines(self.member or "", self._line, self._offset, records)
            self._line += len(records)
            self._offset += size
            yield lines

    def _keep(self, block: bytes, start: int, stop: int) -> Iterator[TooLong]:
        """Add a piece to the unfinished line, or drop it if the line is too long."""
        if self._dropping:
            self._offset += stop - start
        elif len(self._carry) + self._trimmed + stop - start > self._max_record:
            head = bytes(self._carry[:_HEAD_BYTES]) + block[start : min(stop, start + _HEAD_BYTES)]
            too_long = TooLong(self.member or "", self._line, self._offset, head[:_HEAD_BYTES])
            self._offset += len(self._carry) + self._trimmed + stop - start
            self._reset_line()
            self._dropping = True
            yield too_long
        elif self._names is None or (self._trimmer is None and len(self._carry) + stop - start < _LONG_LINE):
            self._carry += memoryview(block)[start:stop]
        else:
            if self._trimmer is None:
                self._trimmer = FieldTrimmer(self._names)
                start_of_line, self._carry = bytes(self._carry), bytearray()
                self._trimmed = self._trimmer.take(self._carry, start_of_line)
            self._trimmed += self._trimmer.take(self._carry, block[start:stop])

    def _reset_line(self) -> None:
        """Start another line with a new buffer; the caller may hold the last one."""
        self._carry = bytearray()
        self._trimmer = None
        self._trimmed = 0


def _count_lines(block: bytes, start: int, stop: int) -> int:
    """Count line feeds: searching from one to the next takes a fraction of the time of `count`, which is bytewise."""
    lines = 0
    find = block.find
    while (start := find(b"\n", start, stop) + 1) > 0:
        lines += 1
    return lines


def describe_content(head: bytes) -> str:
    """Describe a file that is not a gzip file by its first bytes (512 are enough)."""
    if not head:
        return "nothing at all (0 bytes)"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    lower = text[:64].lower()
    if lower.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, perhaps of a proxy"
    if lower.startswith((b"<?xml", b"<error")):
        code = re.search(rb"<Code>(\w{1,64})</Code>", head)
        return f"an XML error of the object store{f' ({code[1].decode()})' if code else ''}"
    if text[:1] in {b"{", b"["}:
        return "JSON without compression"
    if head[257:262] == b"ustar":
        return "a tar without compression"
    for magic, name in ((b"PK\x03\x04", "zip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz")):
        if head.startswith(magic):
            return f"a {name} file"
    return f"something else (it begins {head[:8].hex(' ')})"


def _checksum_fits(header: bytes) -> bool:
    """Return whether the checksum is right. Its own field counts as spaces; some old tars sum signed bytes."""
    checksum = header[148:156].split(b"\0", 1)[0].strip(b" ")
    if not re.fullmatch(rb"[0-7]+", checksum):
        return False
    summed = header[:148] + b" " * 8 + header[156:]
    total = sum(summed)
    return int(checksum, 8) in {total, total - 256 * sum(byte > 127 for byte in summed)}


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and prefix:  # GNU's own format, "ustar  ", has other things there
        name = prefix + b"/" + name
    return _text(name)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
