"""URLs out of CSV files, as many programs write them."""

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async.jobs import from_csv

A, B = "https://example.com/1", "https://example.com/2"


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        (f'title,url\n"a, b",{A}\nc,\nd, {B} \n', [A, B]),
        (f"title;URL \r\nx;{A}\r\ny;{B}", [A, B]),
        (f"title\t Url\nx\t{A}\n\n  \ny\t{B}\n", [A, B]),
        (f"\n\nurl\n{A}\r\n{B}\n", [A, B]),
        (f"sep=;\nurl;title\n{A};x\n", [A]),
        (f"url,,\n{A},,\n{B},,,,\n", [A, B]),
        (f'"url","title"\r"{A}","a\nb"\r', [A]),
        (
            f'url\n"https://commons.wikimedia.org/Paris,_France.jpg"\n{A}\n',
            ["https://commons.wikimedia.org/Paris,_France.jpg", A],
        ),
        (f"title,url\nshort\nx,{A}\n", [A]),
        (f"title,url\na\u2028b\x0b,{A}\n", [A]),
        (f'title,url\n"{"x" * 300_000}",{A}\n', [A]),
        ("url\n", []),
    ],
)
def test_a_csv_file_gives_its_urls(tmp_path, text, urls):
    path = tmp_path / "urls.csv"
    path.write_bytes(text.encode())
    limit = csv.field_size_limit()
    assert from_csv(path) == urls
    assert csv.field_size_limit() == limit


def test_another_column_is_taken_by_its_name(tmp_path):
    path = tmp_path / "urls.csv"
    path.write_text(f"URL,url,Page Link\n{A},{B},x\n")
    assert from_csv(path) == [B]
    assert from_csv(path, column="URL") == [A]
    assert from_csv(path, column=" page link") == ["x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'url\n{A}\n"{B}\n' + f"{A}\n" * 10_000, "line 3: .*is a quote left open"),
        (f'url\n{A}\n"x"{B}\n{A}\n', "line 3: .*is a quote left open"),
        (f"title,url\nx,{A}\ny,https://commons.wikimedia.org/Paris,_France.jpg\n", "line 3: 3 cells for 2 columns"),
        (f'title,url\n"a\nb",{A}\n\ny,{A},z\n', "line 5: 3 cells for 2 columns; put quotes .*a comma"),
        ("url\nhttps://commons.wikimedia.org/Paris,_France.jpg\n", "line 2: 2 cells for 1 columns"),
        (f"url;title\n{A};x;y\n", "a semicolon"),
        ("\nlink,title\n", "line 2: the column 'url' is missing; the columns are link, title"),
        ("url,Title,url \n", "line 1: the column 'url' is there 2 times"),
        ("", "has no column 'url': it is empty"),
    ],
)
def test_a_row_that_would_lose_a_url_is_an_error_with_its_line(tmp_path, text, message):
    path = tmp_path / "urls.csv"
    path.write_bytes(text.encode())
    with pytest.raises(ValueError, match=rf"urls\.csv.*{message}"):
        from_csv(path)


def test_other_encodings_are_an_error_that_names_the_line(tmp_path):
    path = tmp_path / "urls.csv"
    path.write_bytes(f"url,title\n{A},x\n{B},é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"urls\.csv, line 3: the text is not UTF-8; save the file as UTF-8"):
        from_csv(path)


@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8),
            st.text("abc/?,;\t\"'=", min_size=1, max_size=12).map(lambda tail: f"https://h/{tail}x"),
        ),
        max_size=6,
    ),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_every_url_that_a_csv_writer_writes_is_read(rows, encoding, delimiter, end):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerows([("title", "url"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "urls.csv"
        path.write_bytes(text.getvalue().encode(encoding))
        assert from_csv(path) == [url for _, url in rows]
