"""What the ETag of an object that was uploaded in parts proves."""

import hashlib
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from download_store import PartSums, etags
from hypothesis import given
from hypothesis import strategies as st

MIB = 1 << 20
MANY_PARTS = [(100_000_000, 100_000_000), (5 * MIB, 5 * MIB), (4096 * MIB + 1, 4096 * MIB)]


def tag_of(data: bytes, first: int, rest: int) -> str:
    """Return the ETag of an upload in parts, computed at once and in its own way."""
    parts = [data[:first], *(data[at : at + rest] for at in range(first, len(data), rest))]
    return f'"{hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest()}-{len(parts)}"'


def fed(etag: str, data: bytes, pieces: int = 7) -> PartSums:
    sums = PartSums(etag, len(data))
    for at in range(0, len(data), step := max(1, len(data) // pieces)):
        sums.update(data[at : at + step])
    return sums


def test_the_tag_of_a_file_that_was_uploaded_in_parts_is_computed_on_the_way() -> None:
    data = random.Random(0).randbytes(12 * MIB + 5)
    for part in (5 * MIB, 8 * MIB, 10 * MIB):
        tag = tag_of(data, part, part)
        assert fed(tag, data).proven()
        assert not fed(tag, data[:-1] + b"!").proven()
        assert not fed(tag.replace("-", "-1"), data).proven()
    # A cut that makes another number of parts costs nothing, nor does a tag of another form.
    for tag in (f'"{"0" * 32}-2000"', f'"{hashlib.md5(data).hexdigest()}"', '"whatever"', '"a-b-c"'):
        assert not PartSums(tag, len(data))
        assert not fed(tag, data).proven()


@given(
    cut=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    data=st.binary(max_size=200),
    pieces=st.integers(1, 20),
    other=st.integers(0, 255),
)
def test_every_cut_is_told_from_every_other(cut: tuple[int, int], data: bytes, pieces: int, other: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wme_async._download.etags._CUTS", (cut, (cut[0] + 1, cut[1]), (7, 7)))
        tag = tag_of(data, *cut)
        assert fed(tag, data, pieces).proven()
        if data and data[-1] != other:
            assert not fed(tag, data[:-1] + bytes([other]), pieces).proven()


@pytest.mark.parametrize(("first", "rest"), MANY_PARTS)
@pytest.mark.parametrize("count", [2, 3, 40, 1000])
def test_a_known_cut_is_tried_wherever_it_fits(first: int, rest: int, count: int) -> None:
    # The smallest and the largest object of so many parts.
    for size in (first + (count - 2) * rest + 1, first + (count - 1) * rest):
        assert PartSums(f'"{"0" * 32}-{count}"', size)


def test_a_single_part_is_tried_once_whatever_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    md5, digests = hashlib.md5, []

    def counted(*args: Any, **options: Any) -> Any:
        digests.append(args)
        return md5(*args, **options)

    for data in (b"", b"x", bytes(1000)):
        tag = tag_of(data, max(1, len(data)), 1)
        with monkeypatch.context() as patch:
            patch.setattr(hashlib, "md5", counted)
            sums = fed(tag, data)
        assert len(digests) == 2, "one digest of the part, and one of the parts' digests"
        digests.clear()
        assert sums.proven()
    # More than there should be does no harm.
    sums = PartSums(f'"{"0" * 32}-1"', 0)
    sums.update(b"abc")
    assert not sums.proven()


def test_metadata_of_an_earlier_day_may_be_of_an_earlier_object() -> None:
    day = datetime(2025, 7, 16, tzinfo=UTC)
    assert etags.may_be_newer(day + timedelta(seconds=1), day)
    assert not etags.may_be_newer(day, day)
    assert not etags.may_be_newer(day, day + timedelta(days=1))
    assert etags.may_be_newer(None, day)
    assert etags.may_be_newer(day, None)
