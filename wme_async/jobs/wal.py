"""Damage to the write-ahead log of SQLite that SQLite itself does not report. Pure.

SQLite reads a log up to its first frame with a wrong checksum, as if the power had failed there, and drops the
frames after it: committed transactions would be lost silently. The format is that of
https://www.sqlite.org/fileformat2.html#walformat.
"""

import struct
from typing import Final

_HEADER: Final = 32
_FRAME: Final = 24
_MAGIC: Final = 0x377F0682  # its last bit says that checksums are of big-endian words


def lost_transactions(log: bytes, page_size: int) -> int:
    """Return how many transactions SQLite would drop that had been written completely.

    Args:
        log: The whole log.
        page_size: Of its database, in bytes.

    Returns:
        The number; 0 also if only the last one is incomplete, as after a power failure during a commit that was not
        reported to anybody.
    """
    frames = [
        struct.unpack_from(">6I", log, at)
        for at in range(_HEADER, len(log) - page_size - _FRAME + 1, page_size + _FRAME)
    ]
    if not frames:
        return 0
    magic, *_, salt1, salt2, sum1, sum2 = struct.unpack_from(">8I", log)
    order = ">" if magic & 1 else "<"
    sums = _checksum(log[: _HEADER - 8], order, (0, 0))
    salts = (salt1, salt2)
    valid = 0
    if magic & ~1 == _MAGIC and sums == (sum1, sum2):
        for number, frame in enumerate(frames):
            start = _HEADER + number * (page_size + _FRAME)
            sums = _checksum(log[start : start + 8], order, sums)
            sums = _checksum(log[start + _FRAME : start + _FRAME + page_size], order, sums)
            if frame[2:4] != salts or frame[4:] != sums:
                break
            valid = number + 1
    elif salt1 != frames[0][2] and salt2 != frames[0][3]:
        # SQLite was about to restart the log: its frames are already in the database.
        return 0
    else:
        salts = frames[0][2:4]
    complete = sum(1 for _page, size, *tail in frames[valid:] if size and tuple(tail[:2]) == salts)
    return complete if complete > 1 else 0


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for left, right in zip(words[::2], words[1::2], strict=True):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return first, second
