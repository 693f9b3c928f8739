"""Both ways to inflate give what was compressed, however it is cut, and tell damage from its end."""

import random
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from gzip import BadGzipFile, compress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wme_async._archive import feed, gzip  # private: pure but for a thread; archives show blocks only joined

ENGINES = [pytest.param(gzip.by_isal, id="isal"), pytest.param(gzip.by_zlib, id="zlib")]

Inflate = Callable[[feed.Feed], Iterator[bytes]]


class Pieces(feed.Feed):
    """Gives bytes in pieces of sizes that take turns, and says now and then that it has none ready."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        super().__init__()
        self.data = data
        self.sizes = sizes
        self.at = self.turn = 0

    def fetch(self, view: memoryview) -> int:
        """Give the next piece."""
        self.turn += 1
        piece = self.data[self.at : self.at + min(len(view), self.sizes[self.turn % len(self.sizes)])]
        view[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)

    def ready(self) -> int:
        """Say that there is something every other time."""
        return self.turn % 2


def contents(seed: int, kind: str, size: int) -> bytes:
    """Return bytes that compress by 1,000, by 20 or not at all."""
    if kind == "noise":
        return random.Random(seed).randbytes(min(size, 300_000))
    return bytes(size) if kind == "zeros" else b'{"identifier": %d, "name": "x"}\n' % seed * (size // 32)


@lru_cache(maxsize=256)
def packed_member(seed: int, kind: str, size: int, level: int) -> bytes:
    """Return a gzip member, compressed once for all examples of a property."""
    return compress(contents(seed, kind, size), level, mtime=0)


@lru_cache
def lines_and_noise() -> tuple[bytes, bytes]:
    """Return bytes of both kinds, plain and packed."""
    plain = contents(1, "lines", 100_000) + contents(2, "noise", 20_000)
    return plain, compress(plain, mtime=0)


@pytest.fixture(params=ENGINES)
def inflate(request: pytest.FixtureRequest) -> Inflate:
    """Return one of the two."""
    if request.param is gzip.by_isal and not gzip.has_isal():
        pytest.skip("isal is not installed")
    engine: Inflate = request.param
    return engine


MEMBERS = st.lists(
    st.tuples(
        st.sampled_from(["noise", "zeros", "lines"]),
        st.sampled_from([0, 1, 100, 70_000, 1 << 20, 5 << 19]),
        st.sampled_from([0, 1, 6]),
        st.sampled_from([0, 3, 600]),
    ),
    min_size=1,
    max_size=4,
)
SIZES = st.lists(st.sampled_from([1, 7, 100, 5_000, 70_000, 1 << 20]), min_size=1, max_size=3)


@example(members=[("zeros", 6 << 20, 1, 0)], sizes=[1 << 20])
@given(members=MEMBERS, sizes=SIZES)
def test_what_was_compressed_comes_out(
    inflate: Inflate, members: list[tuple[str, int, int, int]], sizes: list[int]
) -> None:
    plain = b""
    packed = b""
    for number, (kind, size, level, zeros) in enumerate(members):
        plain += contents(number, kind, size)
        packed += packed_member(number, kind, size, level) + bytes(zeros)
    blocks = list(inflate(Pieces(packed, sizes if len(packed) < 50_000 else [*sizes, 1 << 20])))
    assert b"".join(blocks) == plain
    assert all(blocks)


HEADERS = [
    (2, b""),
    (4, b"\6\0BC\2\0\1\2"),
    (8, b"a.tar\0"),
    (16, b"by hand\0"),
    (24, b"a.tar\0by hand\0"),
    (30, b"\6\0BC\2\0\1\2a.tar\0by hand\0"),
]


@pytest.mark.parametrize(("flags", "more"), HEADERS, ids=[str(flags) for flags, _ in HEADERS])
def test_a_header_may_have_all_that_it_can_have_and_be_cut_anywhere(inflate: Inflate, flags: int, more: bytes) -> None:
    plain = contents(1, "lines", 1000)
    packed = compress(plain, mtime=0)
    header = packed[:3] + bytes([flags]) + packed[4:10] + more
    if flags & 2:
        header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    whole = (header + packed[10:]) * 2
    for size in range(1, len(header) + 10):
        assert b"".join(inflate(Pieces(whole, [size]))) == plain * 2
        with pytest.raises(EOFError):
            list(inflate(Pieces(header[:size] if size < len(header) else whole[: size - len(whole)], [1000])))


def test_a_name_without_an_end_is_told(inflate: Inflate) -> None:
    data = compress(b"all of it") + b"\x1f\x8b\x08\x18" + b"x" * (8 << 20)
    with pytest.raises((EOFError, *gzip.CORRUPT)):
        list(inflate(Pieces(data, [1 << 20])))


@given(cut=st.floats(0, 1, exclude_max=True), sizes=SIZES)
def test_an_end_too_early_is_told(inflate: Inflate, cut: float, sizes: list[int]) -> None:
    plain, packed = lines_and_noise()
    given_out = b""
    with pytest.raises(EOFError):
        for block in inflate(Pieces(packed[: max(1, int(len(packed) * cut))], sizes)):
            given_out += block
    assert plain.startswith(given_out)


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), sizes=SIZES)
def test_a_flipped_bit_never_passes_for_the_whole(inflate: Inflate, at: float, bit: int, sizes: list[int]) -> None:
    packed = bytearray(lines_and_noise()[1])
    packed[10 + int((len(packed) - 10) * at)] ^= 1 << bit  # the ten bytes before tell a time and a system
    with pytest.raises((EOFError, *gzip.CORRUPT)):
        for _ in inflate(Pieces(bytes(packed), sizes)):
            pass


def test_a_bomb_comes_in_bounded_blocks(inflate: Inflate) -> None:
    sizes = [len(block) for block in inflate(Pieces(packed_member(0, "zeros", 100 << 20, 9), [1 << 20]))]
    assert sum(sizes) == 100 << 20
    assert max(sizes) <= 70 << 20


def test_something_else_behind_the_end_is_told(inflate: Inflate) -> None:
    with pytest.raises(BadGzipFile, match="there is more after the end"):
        list(inflate(Pieces(compress(b"all of it") + b"\0\0PK", [3])))


@pytest.mark.parametrize("flag", [0x20, 0x40, 0x80, 0xE8])
def test_reserved_flags_are_refused_by_both(inflate: Inflate, flag: int) -> None:
    """RFC 1952, 2.3.1.2; the flags of a later member count too."""
    header = bytearray(compress(b"x", mtime=0))
    header[3] |= flag
    for packed in (bytes(header), compress(b"first", mtime=0) + header):
        with pytest.raises((BadGzipFile, zlib.error)):
            list(inflate(Pieces(packed, [1, 7, 100])))


def test_many_empty_members_in_a_row_are_refused(inflate: Inflate) -> None:
    empty, full = compress(b"", mtime=0), compress(b"x", mtime=0)
    blocks = list(inflate(Pieces((empty * 900 + full) * 12, [1 << 20])))
    assert b"".join(blocks) == b"x" * 12
    with pytest.raises(BadGzipFile, match="empty gzip members"):
        list(inflate(Pieces(full + empty * 10_001, [1 << 20])))


def test_many_small_members_come_in_bounded_blocks(inflate: Inflate) -> None:
    """Pieces grow after incompressible bytes, and a large piece may hold any number of bombs."""
    noise = random.Random(5).randbytes(1_100_000)
    packed = compress(noise, 0) + bytes(1 << 20) + compress(bytes(2 << 20), 9) * 30
    sizes = [len(block) for block in inflate(Pieces(packed, [1 << 20]))]
    assert sum(sizes) == len(noise) + 30 * (2 << 20)
    assert max(sizes) <= gzip.MAX_BLOCK


class Failing(Pieces):
    """Fails at its end."""

    def fetch(self, view: memoryview) -> int:
        """Give the next piece, or fail."""
        count = super().fetch(view)
        if not count:
            raise feed.SourceError(OSError("the cable is out"))
        return count


@pytest.mark.parametrize(
    ("source", "tail", "error"),
    [
        (Failing, b"", feed.SourceError),
        (Pieces, b"more", BadGzipFile),
        (Pieces, compress(b"")[:4] + b"\xff" * 20, zlib.error),
        (Pieces, compress(b"a")[:-1], EOFError),
    ],
    ids=["failure", "junk", "corrupt", "truncated"],
)
def test_blocks_before_an_error_are_returned(
    inflate: Inflate, source: type[Pieces], tail: bytes, error: type[BaseException]
) -> None:
    blocks = b""
    with pytest.raises(error):
        for block in inflate(source(compress(b"good ") + compress(b"bytes") + tail, [1 << 20])):
            blocks += block
    assert blocks.startswith(b"good bytes")


def test_zlib_is_used_without_flush_where_a_flushed_stream_cannot_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip, "flush_keeps_stream", lambda: False)
    plain = contents(1, "lines", 300_000)
    packed = compress(plain) * 3
    assert b"".join(gzip.by_zlib(Pieces(packed, [70_000]))) == plain * 3
    with pytest.raises(EOFError):
        list(gzip.by_zlib(Pieces(packed[:-1], [70_000])))


def test_the_trial_of_flush_finds_out_whether_a_stream_can_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gzip.flush_keeps_stream.__wrapped__()

    class Broken:
        def __init__(self, *_: object) -> None:
            self.eof = False

        def decompress(self, *_: object) -> bytes:
            raise zlib.error("inconsistent stream state")

    monkeypatch.setattr(zlib, "decompressobj", Broken)
    assert not gzip.flush_keeps_stream.__wrapped__()
