"""Names and hours become paths that say what the caller meant, or are refused."""

import unicodedata
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async._client.paths import (  # private: pure
    article_path,
    chunk_number,
    chunk_path,
    file_path,
    hour_advice,
    hour_path,
    identifier_path,
)

TITLES = [
    ("Marie Curie", "Marie_Curie"),
    ("C#", "C%23"),
    ("Who's Afraid of Virginia Woolf?", "Who%27s_Afraid_of_Virginia_Woolf%3F"),
    ("AC/DC", "AC%2FDC"),
    ("100% Design", "100%25_Design"),
    ("%41", "%2541"),
    ("../../etc/passwd", "..%2F..%2Fetc%2Fpasswd"),
    ("A+B & C=D;e", "A%2BB_%26_C%3DD%3Be"),
    ("Köln", "K%C3%B6ln"),
    ("東京", "%E6%9D%B1%E4%BA%AC"),
    ("...", "..."),
]


@pytest.mark.parametrize(("name", "path"), TITLES)
def test_a_title_is_quoted(name: str, path: str) -> None:
    assert article_path(name) == path


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029"), min_size=1))
def test_the_server_gets_the_very_title_out_of_the_path(name: str) -> None:
    if not name.strip(" _") or unicodedata.normalize("NFC", name) in {".", ".."}:
        with pytest.raises(ValueError, match=r"title is needed|no page"):
            article_path(name)
        return
    url = urlsplit("https://host/v2/articles/" + article_path(name))
    assert (url.query, url.fragment) == ("", "")
    assert url.path.count("/") == 3
    # The server decodes once and turns spaces into underscores.
    asked = unquote(url.path.removeprefix("/v2/articles/"), errors="strict").replace(" ", "_")
    assert asked == unicodedata.normalize("NFC", name).replace(" ", "_")


def test_a_decomposed_title_is_asked_for_composed() -> None:
    assert article_path("Ko\u0308ln") == article_path("Köln")


@pytest.mark.parametrize("name", ["", " ", "__", ".", "..", "a\nb", "a\x00", "\ud800"])
def test_a_title_that_no_page_has_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"title|page"):
        article_path(name)


@pytest.mark.parametrize("function", [article_path, file_path])
def test_names_that_are_not_text_are_refused(function: Callable[[Any], str]) -> None:
    with pytest.raises(TypeError, match="must be text, not 7"):
        function(7)


def test_a_file_name_has_underscores_for_spaces() -> None:
    assert file_path("Ottawa 0757.jpg") == "Ottawa_0757.jpg"
    assert file_path("!!!, SXSW 2013 (8678302775).jpg") == "%21%21%21%2C_SXSW_2013_%288678302775%29.jpg"


@pytest.mark.parametrize("name", ["a/b.jpg", "a\\b.jpg", "", "..", ".", " ", "a\r\nb"])
def test_a_file_name_that_cannot_be_routed_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="file name"):
        file_path(name)


@pytest.mark.parametrize(
    ("identifier", "path"),
    [
        ("enwiki_namespace_0", "enwiki_namespace_0"),
        ("nds-nl", "nds-nl"),
        (14, "14"),
        (0, "0"),
        ("Q42", "Q42"),
        ("a b%2e?", "a%20b%252e%3F"),
    ],
)
def test_an_identifier_is_quoted(identifier: Any, path: str) -> None:
    assert identifier_path(identifier) == path


@pytest.mark.parametrize(
    "identifier", ["", "  ", ".", "..", "../../etc/passwd", "a/b", "a\\b", "a..b", "a\x00", "a\n", "a\u2028", -1]
)
def test_an_identifier_that_could_lead_elsewhere_is_refused(identifier: Any) -> None:
    with pytest.raises(ValueError, match="identifier"):
        identifier_path(identifier)


@pytest.mark.parametrize("identifier", [None, True, 1.5, b"enwiki"])
def test_an_identifier_of_another_type_is_refused(identifier: Any) -> None:
    with pytest.raises(TypeError, match="identifier must be text"):
        identifier_path(identifier)


@pytest.mark.parametrize("identifier", ["structured-contents", "wikidata"])
def test_a_reserved_word_is_no_snapshot(identifier: Any) -> None:
    with pytest.raises(ValueError, match="list of other archives"):
        identifier_path(identifier, reserved={"structured-contents", "wikidata"})
    assert identifier_path(identifier) == identifier


@given(st.text())
def test_an_accepted_identifier_is_one_segment_and_a_safe_file_name(identifier: Any) -> None:
    try:
        path = identifier_path(identifier)
    except ValueError:
        return
    assert unquote(path) == identifier
    assert not set("/\\?# ") & set(path)
    assert path not in {"", ".", ".."}


@pytest.mark.parametrize("chunk", [2, "2", "chunk_2", "enwiki_namespace_0_chunk_2", "enwiki_namespace_0_2"])
def test_a_chunk_of_the_snapshot_is_accepted_in_every_spelling(chunk: Any) -> None:
    assert chunk_path("enwiki_namespace_0", chunk) == str(chunk)


@pytest.mark.parametrize(
    "chunk",
    ["frwiki_namespace_0_chunk_2", "enwiki_namespace_0_group_1", "x_2", "enwiki_namespace_0", "chunk", "2 ", "../2"],
)
def test_a_chunk_the_server_would_take_for_another_is_refused(chunk: Any) -> None:
    with pytest.raises(ValueError, match=r"chunk|identifier"):
        chunk_path("enwiki_namespace_0", chunk)


def test_the_number_of_a_chunk_is_at_the_end_of_its_identifier() -> None:
    assert [chunk_number(chunk) for chunk in (2, "chunk_3", "enwiki_namespace_0_chunk_10")] == [2, 3, 10]
    with pytest.raises(ValueError, match="a chunk is a number or ends in one"):
        chunk_number("chunk")


@pytest.mark.parametrize(
    "hour",
    [
        "2025-07-16T05",
        "2025-07-16/05",
        "2025-07-16 05",
        "2025-07-16T05Z",
        "2025-07-16T05:00",
        "2025-07-16T05:00:00Z",
        "2025-07-16T05:00:00.000z",
        "2025-07-16T07:00:00+02:00",
        "2025-07-16T00-0500",
        "2025-07-16T10:30+05:30",
        datetime(2025, 7, 16, 5, tzinfo=UTC),
        datetime(2025, 7, 16, 5, 59, 59, 999_999, tzinfo=UTC),
        datetime(2025, 7, 16, 10, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    ],
)
def test_one_hour_in_many_spellings(hour: Any) -> None:
    assert hour_path(hour) == "2025-07-16/05"


@pytest.mark.parametrize(
    ("hour", "why"),
    [
        ("2025-07-16T05:30", "not on the hour"),
        ("2025-07-16T05:00:01Z", "not on the hour"),
        ("2025-07-16T05:00:00.5Z", "not on the hour"),
        ("2025-07-16T05:00+05:30", "not on the hour"),
        ("2025-07-16", "looks like"),
        ("2025-07-16T5", "looks like"),
        ("16.07.2025 05", "looks like"),
        ("2025-07-16T24", "no such hour"),
        ("2025-02-30T05", "no such hour"),
        ("2025-13-01T05", "no such hour"),
        ("0001-01-01T00+01:00", "no such hour"),
        ("2025-07-16T05+99:00", "no such hour"),
        ("\uff12025-07-16T05", "looks like"),
        ("../../etc/passwd", "looks like"),
        ("", "looks like"),
        (datetime(2025, 7, 16, 5), "naive datetime"),  # noqa: DTZ001 - it is naive on purpose
    ],
)
def test_an_hour_that_is_none_is_refused(hour: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        hour_path(hour)


@pytest.mark.parametrize("hour", [date(2025, 7, 16), 1752642000, None])
def test_an_hour_of_another_type_is_refused(hour: Any) -> None:
    with pytest.raises(TypeError, match="aware datetime"):
        hour_path(hour)


@given(st.datetimes(timezones=st.just(UTC)), st.integers(-14 * 60, 14 * 60))
def test_an_aware_datetime_is_floored_to_its_hour_in_utc(moment: datetime, minutes: int) -> None:
    try:
        local = moment.astimezone(timezone(timedelta(minutes=minutes)))
    except OverflowError:
        return
    floored = moment.replace(minute=0, second=0, microsecond=0)
    assert hour_path(local) == hour_path(floored)
    path = hour_path(moment)
    assert datetime.fromisoformat(path.replace("/", "T") + ":00:00+00:00") == floored
    assert hour_path(path) == path


@given(st.integers(-100, 100))
def test_advice_on_an_hour_is_given_unless_it_should_exist(hours):
    now = datetime(2025, 7, 16, 12, 30, tzinfo=UTC)
    hour = datetime(2025, 7, 16, 12, tzinfo=UTC) + timedelta(hours=hours)
    advice = hour_advice(hour, now)
    assert bool(advice) == (hours > -2 or hours <= -48)
    if advice:
        assert "'latest'" in advice
