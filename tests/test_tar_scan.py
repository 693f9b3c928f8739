"""The tar and line scanner, fed in every way, with the standard library's tarfile as the second opinion."""

import contextlib
import io
import re
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wme_async._archive.tar import (  # private: pure, so any cuts can be tried
    Lines,
    Run,
    TarScanner,
    TooLong,
    describe_content,
)
from wme_async.errors import ArchiveError

Member = tuple[str, bytes]
END = bytes(1024)


def tar(members: Iterable[Member], kind: int = tarfile.USTAR_FORMAT, **facts: Any) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in facts.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return sink.getvalue()


def blocks(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


def scan(data: bytes, sizes: Iterable[int] = (), **options: Any) -> list[Lines | Run | TooLong]:
    scanner = TarScanner(**options)
    lines = []
    for block in blocks(data, sizes):
        for item in scanner.feed(block):
            if isinstance(item, Lines):
                item.records = [bytes(record) for record in item.records]
            lines.append(item)
    scanner.close()
    return lines


def flat(found: list[Lines | Run | TooLong]) -> list[tuple[str, int, int, bytes | None]]:
    """Return (member, line, offset, record) of each line; None for a record that was too long."""
    lines: list[tuple[str, int, int, bytes | None]] = []
    for item in found:
        assert not isinstance(item, Run), "a scanner gives runs only when told to"
        if isinstance(item, TooLong):
            lines.append((item.member, item.line, item.offset, None))
        else:
            lines.extend(
                (item.member, item.line + index, item.offset_of(index), bytes(record))
                for index, record in enumerate(item.records)
            )
    return lines


def expected(members: Iterable[Member], limit: int = 10**9) -> list[tuple[str, int, int, bytes | None]]:
    lines: list[tuple[str, int, int, bytes | None]] = []
    for name, data in members:
        offset = 0
        for number, record in enumerate(data.split(b"\n")[: None if not data.endswith(b"\n") else -1], 1):
            if data:
                lines.append((name, number, offset, record if len(record) <= limit else None))
            offset += len(record) + 1
    return lines


# U+0085 and U+2028 end lines for str.splitlines and must not here.
contents = st.lists(
    st.sampled_from([b"\n", b"\n", b"\r", b"{}", "\u0085\u2028".encode(), b"x" * 300, b"y" * 900, b"\0"]), max_size=12
).map(b"".join)
names = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=20)
long_names = st.one_of(names, st.tuples(names, st.integers(80, 160)).map(lambda pair: pair[0] + "n" * pair[1]))
archives = st.lists(st.tuples(long_names, contents), max_size=4)
cuts = st.lists(st.integers(0, 1500), max_size=40)


@given(members=archives, sizes=cuts, kind=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
@example(members=[], sizes=[1] * 40, kind=tarfile.GNU_FORMAT)
@example(members=[("a", b"")], sizes=[], kind=tarfile.GNU_FORMAT)
def test_lines_come_out_whole_with_their_places_however_the_bytes_are_cut(
    members: list[Member], sizes: list[int], kind: int
) -> None:
    data = tar(members, kind)
    assert flat(scan(data, sizes)) == expected(members)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as archive:
        assert [member.name for member in archive] == [name for name, _ in members]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_split_points_all_over_give_the_same(kind: int) -> None:
    members = [("p" * 60 + "/" + "n" * 70, b'{"a":1}\n\n{"b":2}'), ("b.ndjson", b"x\n" * 3), ("c", b""), ("d", b"\n")]
    data = tar(members, kind)
    for at in range(0, len(data.rstrip(b"\0")) + 2000, 3 if kind == tarfile.USTAR_FORMAT else 7):
        assert flat(scan(data, [at])) == expected(members)


def test_one_byte_at_a_time() -> None:
    members = [("a", b"one\ntwo\n"), ("b", b"three")]
    data = tar(members, tarfile.PAX_FORMAT)
    assert flat(scan(data, [1] * len(data))) == expected(members)


@given(members=archives, sizes=cuts, limit=st.integers(1, 1000))
@example(members=[("a", b"xxx\n" * 5 + b"x")], sizes=[514, 515, 516], limit=2)
def test_a_line_above_the_limit_costs_that_line_alone(members: list[Member], sizes: list[int], limit: int) -> None:
    blocks = scan(tar(members, tarfile.GNU_FORMAT), sizes, max_record=limit)
    assert flat(blocks) == expected(members, limit)
    for item in blocks:
        assert not isinstance(item, TooLong) or len(item.head) > limit or len(item.head) == 4096


def test_a_line_above_the_limit_is_told_before_it_ends_and_is_not_kept() -> None:
    scanner = TarScanner(max_record=10_000)
    block = b"x" * 1000
    header = tar([("a", b"x" * 50_000_000)])[:512]
    assert not list(scanner.feed(header))
    while not any(isinstance(item, TooLong) for item in scanner.feed(block)):
        assert scanner.position < 20_000
    tracemalloc.start()
    try:
        for _ in range(2000):
            assert not list(scanner.feed(block))
        growth, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert scanner.position > 2_000_000
    assert growth < 100_000


@given(members=archives, sizes=cuts)
def test_members_that_are_not_wanted_are_passed_over(members: list[Member], sizes: list[int]) -> None:
    names = {name for name, _ in members[::2]}
    blocks = scan(tar(members, tarfile.GNU_FORMAT), sizes, select=lambda name: name in names)
    assert flat(blocks) == expected([member for member in members if member[0] in names])


@given(members=archives, cut=st.integers(0, 10**6))
def test_a_tar_that_is_cut_anywhere_is_an_error_and_gives_no_line_that_is_not_there(
    members: list[Member], cut: int
) -> None:
    whole = tar(members, tarfile.GNU_FORMAT)
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 1024  # at most here the end marker is not yet whole
    data = whole[: cut % min(len(whole), end)]
    scanner = TarScanner()
    found: list[Lines | Run | TooLong] = []

    def read() -> None:
        for block in blocks(data, [700] * 9):
            found.extend(scanner.feed(block))
        scanner.close()

    with pytest.raises(ArchiveError) as caught:
        read()
    assert caught.value.offset is not None
    assert set(flat(found)) <= set(expected(members))


@given(members=archives, at=st.integers(0, 10**6), value=st.integers(0, 255), sizes=cuts)
def test_a_changed_byte_is_an_archive_error_or_changes_only_contents(
    members: list[Member], at: int, value: int, sizes: list[int]
) -> None:
    data = bytearray(tar(members, tarfile.PAX_FORMAT))
    data[at % len(data)] = value
    with contextlib.suppress(ArchiveError):
        flat(scan(bytes(data), sizes))


@given(data=st.binary(max_size=3000), sizes=cuts)
def test_arbitrary_bytes_never_fail_otherwise(data: bytes, sizes: list[int]) -> None:
    with contextlib.suppress(ArchiveError):
        scan(data, sizes)


def patched(change: Callable[[bytearray], None], member: Member = ("a.ndjson", b"{}\n")) -> bytes:
    """Make a tar and change its first header, with the checksum made right again."""
    data = bytearray(tar([member]))
    change(data)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def put(at: int, value: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[at : at + len(value)] = value

    return change


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.CHRTYPE, "character device"),
        (tarfile.BLKTYPE, "block device"),
        (tarfile.FIFOTYPE, "named pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"M", "another volume"),
        (b"V", "volume label"),
        (b"Z", "unknown type b'Z'"),
    ],
)
def test_what_is_no_regular_file_is_refused(kind: bytes, words: str) -> None:
    with pytest.raises(ArchiveError, match=words) as caught:
        scan(tar([("odd", b"")], linkname="/etc/passwd", type=kind))
    assert caught.value.member == "odd"
    assert caught.value.offset == 512


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../b", "..", "a\x07b", "a\nb"])
def test_names_that_lead_elsewhere_or_hide_are_refused(name: str) -> None:
    with pytest.raises(ArchiveError, match="no archive of the service has"):
        scan(tar([(name, b"{}\n")]))


def test_a_directory_is_passed_over() -> None:
    directory = tar([("data", b"")], type=tarfile.DIRTYPE)[:512]
    old_style = patched(put(0, b"old/\0\0\0\0"), ("a.ndjson", b""))[:512]
    assert flat(scan(directory + old_style + tar([("data/a", b"x\n")]))) == [("data/a", 1, 0, b"x")]


def sized(data: bytes, size: int) -> bytes:
    """Return a header with another size and the checksum for it."""
    header = bytearray(data[:512])
    header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_the_size_of_a_directory_is_not_that_of_its_bytes() -> None:
    """As GNU and BSD tools write what a directory may grow to; no bytes follow."""
    directory = sized(tar([("data", b"")], type=tarfile.DIRTYPE), 4096)
    assert flat(scan(directory + tar([("data/a", b"x\n")]))) == [("data/a", 1, 0, b"x")]
    regular = tar([("data/", b"not a record\n")])[:1024]
    assert flat(scan(regular + tar([("data/a", b"x\n")]))) == [("data/a", 1, 0, b"x")]


def test_bytes_behind_a_directory_are_no_member() -> None:
    with pytest.raises(ArchiveError, match="damaged header"):
        scan(patched(put(156, b"5")))


@pytest.mark.parametrize("size", ["2", "02", "0" * 30 + "2", "0" * 5000 + "2"])
def test_numbers_of_pax_headers_may_have_leading_zeros(size: str) -> None:
    big = tar([("a", b"x\n")], tarfile.PAX_FORMAT, pax_headers={"size": size})
    assert flat(scan(big)) == [("a", 1, 0, b"x")]


@pytest.mark.parametrize("kind", [b"0", b"5", b"g", b"L"])
def test_many_headers_without_content_are_refused(kind: bytes) -> None:
    header = bytearray(tar([("e", b"")])[:512])
    header[156:157] = kind
    empty = sized(bytes(header), 0)
    full = tar([("a", b"x\n")])[:1024]
    with pytest.raises(ArchiveError, match="pack it again"):
        scan(full + empty * 10_100)
    if kind in {b"0", b"5"}:
        members = (full + empty * 9) * 1200  # as many in all, but each tenth has a record
        assert len(flat(scan(members + bytes(1024)))) == 1200


def test_a_pax_header_of_many_records_is_read_in_one_pass() -> None:
    """A megabyte of them took minutes when the rest was copied for each."""
    records = {f"k{number}": "v" for number in range(25_000)}
    assert flat(scan(tar([("a", b"x\n")], tarfile.PAX_FORMAT, pax_headers=records))) == [("a", 1, 0, b"x")]


def test_sparse_files_of_pax_headers_are_refused() -> None:
    with pytest.raises(ArchiveError, match="sparse"):
        scan(tar([("a", b"x")], tarfile.PAX_FORMAT, pax_headers={"GNU.sparse.major": "1"}))


def test_sizes_come_from_pax_headers_and_from_binary_numbers() -> None:
    big = tar([("a", b"x\n")], tarfile.PAX_FORMAT, pax_headers={"size": "2", "comment": "a = b\nc"})
    assert flat(scan(big)) == [("a", 1, 0, b"x")]
    binary = patched(put(124, b"\x80" + (3).to_bytes(11, "big")))
    assert flat(scan(binary)) == [("a.ndjson", 1, 0, b"{}")]


def test_global_pax_headers_and_old_headers_without_magic_are_read() -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"}) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    assert scan(sink.getvalue()) == []
    assert flat(scan(patched(put(257, bytes(8))))) == [("a.ndjson", 1, 0, b"{}")]


def test_a_long_link_name_before_a_regular_file_is_ignored() -> None:
    assert flat(scan(extended(b"x" * 200 + b"\0", b"K") + tar([("a", b"x\n")]))) == [("a", 1, 0, b"x")]


def test_a_checksum_of_signed_bytes_is_read() -> None:
    data = bytearray(tar([("\u00e9", b"x\n")], tarfile.GNU_FORMAT))
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in data[:512])
    assert flat(scan(bytes(data))) == [("\u00e9", 1, 0, b"x")]


def extended(records: bytes, kind: bytes = b"x") -> bytes:
    info = tarfile.TarInfo("ext")
    info.type = kind
    info.size = len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "contains no tar"),
        (b"garbage that is no tar" * 60, "damaged header"),
        (tar([])[:512], "no end marker"),
        (tar([("a", b"")])[:512], "no end marker"),
        (tar([("a", b"")])[:1024], "no end marker"),
        (tar([("a", b"xyz")])[:514], "cut short"),
        (tar([("a", b"xyz")])[:600], "cut short"),
        (tar([("a", b"")])[:100], "cut short"),
        (tar([("a", b"")])[:512] + bytes(512) + tar([("b", b"")]), "single zero block"),
        (tar([("a", b"")]) + b"more", "more after the end"),
        (tar([("a", b"")]) + tar([("b", b"")]), "more after the end"),
        (tar([]) + bytes(1100 * 1024), "padding"),
        (patched(put(124, b"99999999999\0")), "damaged number"),
        (patched(put(124, b"\xff" * 12)), "damaged number"),
        (tar([("a", b"x\n")], tarfile.PAX_FORMAT, pax_headers={"size": "-1"}), "size that is not a number"),
        (extended(b"12 path=a\n") + tar([("a", b"")]), "damaged pax"),
        (extended(b"path=a\n") + tar([("a", b"")]), "damaged pax"),
        (extended(b"0 path=a\n") + tar([("a", b"")]), "damaged pax"),
        (extended(b"10 path=a\n") + END, "no end marker"),
        (extended(b"name\0", b"L") + END, "no end marker"),
        (extended(b"", b"x") + END[:512], "no end marker"),
        (extended(b"x" * 1100 * 1024, b"L") + END, "extended header of"),
        (extended(b"x" * 600, b"L")[:700], "cut short"),
    ],
)
def test_what_no_honest_archive_is_comes_out_as_an_error(data: bytes, words: str) -> None:
    for size in (10**9, 100):
        with pytest.raises(ArchiveError, match=words):
            scan(data, [size] * (len(data) // size + 1))


def test_a_block_that_only_ends_a_line_above_the_limit_gives_no_run() -> None:
    data = tar([("a", b"x" * 9 + b"\ny\nz\n")])
    scanner = TarScanner(max_record=8)
    scanner.runs = True
    cut = data.index(b"\n")
    (too_long,) = scanner.feed(data[:cut])
    assert isinstance(too_long, TooLong)
    assert (too_long.line, too_long.offset) == (1, 0)
    assert list(scanner.feed(data[cut : cut + 1])) == []
    (run,) = scanner.feed(data[cut + 1 :])
    scanner.close()
    assert isinstance(run, Run)
    assert (run.line, run.offset, b"".join(run.parts)) == (2, 10, b"y\nz\n")


def test_lines_before_the_damage_come_first() -> None:
    scanner = TarScanner()
    items = scanner.feed(tar([("a", b"x\ny\n")])[:1024] + b"garbage" * 100)
    assert flat([next(items)]) == [("a", 1, 0, b"x"), ("a", 2, 2, b"y")]
    with pytest.raises(ArchiveError) as caught:
        next(items)
    assert (caught.value.member, caught.value.offset) == ("a", 1536)


def test_the_scanner_says_where_it_is() -> None:
    data = tar([("a", b"x\n"), ("b", b"y\n"), ("c", b"")])
    scanner = TarScanner()
    list(scanner.feed(data))
    assert (scanner.member, scanner.members, scanner.position) == ("c", 3, len(data))


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "nothing"),
        (b"\n<!DOCTYPE html><html>", "HTML"),
        (b"\xef\xbb\xbf<HTML>", "HTML"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', r"XML error of the object store \(AccessDenied\)"),
        (b"<Error><Message>x", "XML error of the object store$"),
        (b'{"message": "forbidden"}', "JSON"),
        (b"[{}]", "JSON"),
        (tar([("a", b"x")])[:512], "tar without"),
        (b"PK\x03\x04rest", "zip"),
        (b"\x28\xb5\x2f\xfdrest", "zstd"),
        (b"BZh9", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\0\1\2", "00 01 02"),
    ],
)
def test_what_came_in_place_of_an_archive_is_named(head: bytes, words: str) -> None:
    assert re.search(words, describe_content(head))
