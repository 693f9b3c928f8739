"""Text for people: sizes with a unit, and the names that a misspelled one may stand for. Pure."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async._text import count_text, did_you_mean, duration_text, size_text  # private: a pure module

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


@given(st.integers(0, 10**15))
def test_a_size_is_right_to_three_digits_and_short(size):
    text = size_text(size)
    match = re.fullmatch(r"([\d.]+) (\w+)", text)
    assert match is not None
    assert abs(float(match[1]) * UNITS[match[2]] - size) <= max(0.005 * size, 0.5)
    if size < 999e12:
        assert len(match[1]) <= 4


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (999, "999 B"),
        (1_000, "1.00 kB"),
        (43_713, "43.7 kB"),
        (999_400, "999 kB"),
        (999_600, "1.00 MB"),
        (120_000_000_000, "120 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes_turn_to_the_next_unit(size, text):
    assert size_text(size) == text


NAMES = ["enwiki_namespace_0", "enwiki_namespace_10", "dewiki_namespace_0", "frwiki"]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("enwiki_namspace_0", "; did you mean enwiki_namespace_0?"),
        ("?nwiki_namespace_0", "; did you mean enwiki_namespace_0?"),
        ("zz_namespace_0", "; did you mean enwiki_namespace_0 or dewiki_namespace_0?"),
        ("enwiki", "; did you mean enwiki_namespace_0 or enwiki_namespace_10?"),
        ("frwikis", "; did you mean frwiki?"),
        ("dewiki_n", "; did you mean dewiki_namespace_0?"),
        ("f", ""),
        ("something else", ""),
    ],
)
def test_similar_names_are_suggested(name, end):
    assert did_you_mean(name, NAMES) == end


@given(st.sampled_from(NAMES), st.integers(0, 30))
def test_a_name_with_a_wrong_letter_is_recognised(name, place):
    place %= len(name)
    assert name in did_you_mean(f"{name[:place]}~{name[place + 1 :]}", NAMES)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 files"), (1, "1 file"), (2, "2 files"), (1_200, "1,200 files")],
)
def test_a_count_agrees_with_its_noun(number: int, text: str) -> None:
    assert count_text(number, "file") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (119.4, "119 s"),
        (119.6, "2 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (77361, "21 h"),
        (4_000_000, "1,111 h"),
    ],
)
def test_a_duration_has_the_unit_that_people_use(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
