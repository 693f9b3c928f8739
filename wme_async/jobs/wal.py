"""Damage to SQLite's write-ahead log, in which SQLite itself sees none. Pure.

SQLite reads a log up to its first frame with a wrong checksum, as if the power had failed there, and drops what comes
after it: transactions that were answered would be lost without a word. The format is that of
https://www.sqlite.org/fileformat2.html#walformat.
"""

import struct
from typing import Final

__all__ = ["lost_transactions"]

_HEADER: Final = 32
_FRAME: Final = 24
_MAGIC: Final = 0x377F0682  # its last bit says that checksums are of big-endian words


def lost_transactions(log: bytes, page_size: int) -> int:
    """Return how many transactions SQLite would drop that had been written completely.

    Args:
        log: The whole log.
        page_size: Of its database, in bytes.

    Returns:
        A number; 0 also if one alone was cut off at the end, which is what a power failure leaves of a transaction that
        nobody was told of.
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
    good = 0
    if magic & ~1 == _MAGIC and sums == (sum1, sum2):
        for number, frame in enumerate(frames):
            start = _HEADER + number * (page_size + _FRAME)
            sums = _checksum(log[start : start + 8], order, sums)
            sums = _checksum(log[start + _FRAME : start + _FRAME + page_size], order, sums)
            if frame[2:4] != salts or frame[4:] != sums:
                break
            good = number + 1
    elif salt1 != frames[0][2] and salt2 != frames[0][3]:
        # The log was about to begin anew: its frames are in the database already.
        return 0
    else:
        salts = frames[0][2:4]
    complete = sum(1 for _page, size, *rest in frames[good:] if size and tuple(rest[:2]) == salts)
    return complete if complete > 1 else 0


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
