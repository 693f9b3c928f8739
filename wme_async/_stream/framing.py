"""From the bytes of a streamed body to its records, whatever the size of the chunks.

Two framings, one interface: `feed` takes a chunk and returns the records that it completes. A record is the JSON of one
event. Both ways split on bytes and never decode text: a line separator of Unicode (U+0085, U+2028) is legal inside
a JSON string, and a splitter that honours it tears events apart.

Time is linear in the bytes, also for one record in a million pieces. Memory is bounded by the longest record that is
allowed; a longer one is reported in its place as `Oversize`, and the stream continues behind it.
"""

from typing import Final, Literal, TypeAlias

import msgspec

from wme_async.models.decoding import Buffer

Framing: TypeAlias = Literal["ndjson", "sse"]

MAX_RECORD: Final = 64 * 1024 * 1024
"""Bytes. The service's messages are up to 20 MiB before JSON escapes them, which makes up to six bytes of one."""

_SAMPLE: Final = 8192  # bytes of either end of an over-long record; the event stands near the end of an article
_LONG: Final = 4096  # mean length in bytes from which copying a line costs more than slicing a view of it
_BOM: Final = b"\xef\xbb\xbf"


class Oversize(msgspec.Struct, frozen=True):
    """Stands in the place of a record that is longer than allowed.

    Attributes:
        head: Its first bytes.
        tail: Its last bytes, where an article has its event.
        size: Its length in bytes.
    """

    head: bytes
    tail: bytes
    size: int


Record: TypeAlias = Buffer | Oversize


class _Lines:
    r"""Splits bytes into lines: `\n`, `\r\n` and `\r` end one. A byte order mark at the very start is dropped."""

    def __init__(self, max_record: int) -> None:
        self._max = max_record
        self._partial = bytearray()  # the line that is not complete yet, or its end
        self._over = False  # the current line is over-long
        self._dropped = 0  # bytes of it
        self._head = b""
        self._after_cr = False
        self._start = True
        self._view = False  # lines are long enough that views pay
        self.oversize = False  # the last result has an `Oversize` in it

    @property
    def pending(self) -> int:
        """Bytes of the line that is not complete yet."""
        return self._dropped + len(self._partial)

    def feed(self, data: bytes) -> list[Record]:
        """Take a chunk and return the lines that it completes, without their ends; empty ones too."""
        self.oversize = False
        if self._start:
            data = self._without_bom(data)
        if self._after_cr or b"\r" in data:
            data = self._without_cr(data)
        first = data.find(b"\n")
        if first < 0:
            self._append(memoryview(data))
            return []
        lines: list[Record] = []
        if self._over or self._partial:
            self._append(memoryview(data)[:first])
            lines.append(self._finish())
            first += 1
        else:
            first = 0
        last = data.rfind(b"\n") + 1
        if first < last:
            lines += self._split(data, first, last)
        self._view = last > _LONG * len(lines)
        if last < len(data):
            self._append(memoryview(data)[last:])
        return lines

    def _split(self, data: bytes, first: int, last: int) -> list[Record]:
        """Split complete lines."""
        lines: list[Record] = []
        if self._view or last - first > self._max:
            view = memoryview(data)
            while first < last:
                end = data.find(b"\n", first)
                line = view[first:end]
                if end - first > self._max:
                    lines.append(Oversize(bytes(line[:_SAMPLE]), bytes(line[-_SAMPLE:]), end - first))
                    self.oversize = True
                else:
                    lines.append(line)
                first = end + 1
        else:
            lines += data[first : last - 1].split(b"\n")
        return lines

    def _append(self, data: memoryview) -> None:
        self._partial += data
        if not self._over:
            if len(self._partial) <= self._max:
                return
            self._over = True
            self._head = bytes(self._partial[:_SAMPLE])
        drop = len(self._partial) - _SAMPLE
        if drop > _SAMPLE:
            self._dropped += drop
            del self._partial[:drop]

    def _finish(self) -> Record:
        line: Record = self._partial
        if self._over:
            line = Oversize(self._head, bytes(self._partial[-_SAMPLE:]), self.pending)
            self._over, self._dropped, self._head = False, 0, b""
            self.oversize = True
        self._partial = bytearray()  # a new one: the caller may have the old one
        return line

    def _without_bom(self, data: bytes) -> bytes:
        data = bytes(self._partial) + data
        self._partial.clear()
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._partial += data
            return b""
        self._start = False
        return data.removeprefix(_BOM)

    def _without_cr(self, data: bytes) -> bytes:
        if self._after_cr and data:
            self._after_cr = False
            if data.startswith(b"\n"):
                data = data[1:]
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data


class NDJSONFramer:
    """One record a line. Blank lines are skipped; the JSON decoder skips spaces around a record.

    Args:
        max_record: Bytes above which a record is reported as `Oversize`.
    """

    def __init__(self, max_record: int = MAX_RECORD) -> None:
        self._lines = _Lines(max_record)

    @property
    def pending(self) -> int:
        """Bytes of the record that is not complete yet, and that the end of the body would cut off."""
        return self._lines.pending

    def feed(self, data: bytes) -> list[Record]:
        """Take the next bytes of the body and return the records that they complete."""
        lines = self._lines.feed(data)
        if self._lines.oversize:
            return [line for line in lines if isinstance(line, Oversize) or bytes(line).strip()]
        # No JSON begins with a byte up to the space, so the first byte decides about nearly all lines.
        return [line for line in lines if line and (line[0] > 0x20 or bytes(line).strip())]  # type: ignore[index,arg-type]  # no Oversize here


class SSEFramer:
    """Server-sent events: the `data` of each, its lines joined by a line feed.

    The service names every event `message` and sends neither ids nor retry times, so the other fields are skipped, as
    are comments, events without data, and one that the end of the body cuts off.

    Args:
        max_record: Bytes of data above which a record is reported as `Oversize`.
    """

    def __init__(self, max_record: int = MAX_RECORD) -> None:
        self._max = max_record
        self._lines = _Lines(max_record + len(b"data: "))
        self._data: Record | None = None

    @property
    def pending(self) -> int:
        """Bytes of the event that is not complete yet."""
        data = self._data
        size = 0 if data is None else data.size if isinstance(data, Oversize) else len(data)
        return size + self._lines.pending

    def feed(self, data: bytes) -> list[Record]:
        """Take the next bytes of the body and return the records that they complete."""
        lines = self._lines.feed(data)
        records: list[Record] = []
        at = 0
        tried = False
        while at < len(lines):
            if not tried and self._data is None and lines[at] == b"event: message":
                tried = True  # once a chunk: looking ahead at each event of an irregular chunk would be quadratic
                regular = _regular(lines, at)
                records += regular
                at += 3 * len(regular)
                continue
            record = self._line(lines[at])
            if record is not None:
                records.append(record)
            at += 1
        return records

    def _line(self, line: Record) -> Record | None:
        """Take one line; return the record if it completes one."""
        previous = self._data
        if isinstance(line, Oversize):
            if line.head.startswith(b"data:"):
                self._data = _joined(previous, _stripped(line), self._max)
        elif not line:
            self._data = None
            return previous or None
        elif line[:5] == b"data:":
            self._data = _joined(previous, line[6:] if line[5:6] == b" " else line[5:], self._max)
        elif line == b"data":
            self._data = _joined(previous, b"", self._max)
        return None


def _regular(lines: list[Record], at: int) -> list[Record]:
    """Return the data of all events from one line on if each has the form that the service writes; else nothing."""
    end = at + (len(lines) - at) // 3 * 3
    kinds, bodies, ends = lines[at:end:3], lines[at + 1 : end : 3], lines[at + 2 : end : 3]
    count = len(kinds)
    if kinds.count(b"event: message") != count or ends.count(b"") != count:
        return []
    values: list[Record] = [line[6:] for line in bodies if not isinstance(line, Oversize) and line[:6] == b"data: "]
    return values if len(values) == count and all(values) else []


def _stripped(line: Oversize) -> Oversize:
    """Return the over-long value of an over-long line."""
    name = 6 if line.head.startswith(b"data: ") else 5
    size = line.size - name
    return Oversize(line.head[name:], line.tail[-size:], size)


def _joined(previous: Record | None, value: Record, max_record: int) -> Record:
    """Return the data of an event with one more line."""
    if previous is None:
        return value
    if isinstance(previous, Oversize) or isinstance(value, Oversize):
        head, before = (
            (previous.head, previous.size)
            if isinstance(previous, Oversize)
            else (bytes(previous[:_SAMPLE]), len(previous))
        )
        tail, after = (value.tail, value.size) if isinstance(value, Oversize) else (bytes(value), len(value))
        if len(tail) < _SAMPLE:
            tail = (previous.tail if isinstance(previous, Oversize) else bytes(previous[-_SAMPLE:])) + b"\n" + tail
        return Oversize(head, tail[-_SAMPLE:], before + 1 + after)
    # A bytearray grows in place, so that many short lines take linear time.
    data = previous if isinstance(previous, bytearray) else bytearray(previous)
    data += b"\n"
    data += value
    if len(data) > max_record:
        return Oversize(bytes(data[:_SAMPLE]), bytes(data[-_SAMPLE:]), len(data))
    return data


Framer: TypeAlias = NDJSONFramer | SSEFramer


def framer_for(framing: Framing, max_record: int = MAX_RECORD) -> Framer:
    """Return a fresh framer for one body."""
    return SSEFramer(max_record) if framing == "sse" else NDJSONFramer(max_record)
