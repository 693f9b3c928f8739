"""What the file of a URL is called: by `Content-Disposition` as browsers read it, by its URL, and by its type."""

from email.header import Header
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async.jobs.disposition import disposition_name
from wme_async.jobs.naming import expand, name_file, safe_name


def named(url="https://example.com/x", *, kind=None, header=None):
    file = name_file(url, content_type=kind, disposition=header, upload_date="20250101")
    return expand("{safe_title}.{ext}", file, batch_id="b").name


# Content-Disposition


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("attachment; filename=my report 2025.txt", "my report 2025.txt"),
        ("attachment; filename=my report.txt ; size=3", "my report.txt"),
        ("filename=foo.html", "foo.html"),
        ('filename="foo.html"; attachment', "foo.html"),
        (' attachment ;filename = "foo.html"', "foo.html"),
        ("inline; FileName=foo.html", "foo.html"),
        ("attachment; filename*=\"UTF-8''na%C3%AFve.txt\"", "naïve.txt"),
        ("attachment; filename*=UTF-8''foo%20bar.txt; filename=x", "foo bar.txt"),
        ("attachment; filename*=iso-8859-1''caf%E9.txt", "café.txt"),
        ("attachment; filename*=windows-1251''%CF%F0.txt", "Пр.txt"),
        ("attachment; filename*=UTF-16''%00a; filename=plain.txt", "plain.txt"),
        ("attachment; filename*=foo%20bar; filename=plain.txt", "plain.txt"),
        ("attachment; filename*=''; filename=plain.txt", "plain.txt"),
        ('attachment; filename*0="foo."; filename*1="html"', "foo.html"),
        ("attachment; filename*1*=%20b.txt; filename*0*=UTF-8'en'%C3%A4", "ä b.txt"),
        ("attachment; filename*0*=UTF-8''a; filename*1=b; filename*3=x", "ab"),
        ("attachment; filename*0*=a; filename=plain.txt", "plain.txt"),
        ('attachment; filename="=?utf-8?b?a?=.txt"', "=?utf-8?b?a?=.txt"),
        ("attachment; filename*1=b; filename=plain.txt", "plain.txt"),
        ('attachment; filename="=?UTF-8?Q?na=C3=AFve_file.txt?="', "naïve file.txt"),
        ('attachment; filename="=?ISO-8859-1?B?Y2Fm6S50eHQ=?="', "café.txt"),
        ('attachment; filename="=?utf-8?q?a?= =?utf-8?q?b.txt?="', "ab.txt"),
        ('attachment; filename="=?utf-8?b?!?="', "=?utf-8?b?!?="),
        ('attachment; filename="=?utf-16?b?AGE?=.txt"', "=?utf-16?b?AGE?=.txt"),
        ("attachment; filename=README", "README"),
        ('attachment; filename="a;b.txt"', "a;b.txt"),
        ('attachment; filename="a\\"b.txt"', 'a"b.txt'),
        ('attachment; filename="f\\oo.html"', "foo.html"),
        ('attachment; filename="open.html', "open.html"),
        ('attachment; filename="open.html\\', "open.html"),
        ('attachment; filename="foo.html"bar; size=1', "foo.html"),
        ('attachment; note="; filename=evil.exe"; filename=good.txt', "good.txt"),
        ('attachment; note="; filename=evil.exe"', None),
        ('attachment; note="\\"; filename=evil.exe; x="; filename=good.txt', "good.txt"),
        ('"attachment; filename=evil.exe"; filename=good.txt', "good.txt"),
        ("attachment; note=x filename=evil.exe", None),
        ("attachment; xfilename=evil.exe", None),
        ("attachment; filename=first.txt; filename=second.txt", "first.txt"),
        ("attachment; filename=caf\udce9.txt", "café.txt"),
        ("attachment; filename=naïve.txt", "naïve.txt"),
        ("attachment; filename=na%C3%AFve.txt", "naïve.txt"),
        ("attachment; filename=100%.txt", "100%.txt"),
        ("attachment; filename=", None),
        ('attachment; filename=""', None),
        ('attachment; filename="a/"', None),
        ("", None),
        (";;;=;", None),
    ],
)
def test_a_header_is_read_as_browsers_read_it(header, name):
    assert disposition_name(header) == name


names = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=30
).filter(lambda name: name == name.strip() and not name.isspace())
tokens = st.text("abcdefxyz-", min_size=1, max_size=8).filter(lambda name: not name.startswith("filename"))


@given(names)
def test_every_extended_name_comes_back(name):
    assert disposition_name(f"attachment; filename*=UTF-8''{quote(name, safe='')}; filename=x") == name


@given(names)
def test_every_encoded_word_comes_back(name):
    word = Header(name, "utf-8", maxlinelen=1000).encode(linesep="")
    assert disposition_name(f'attachment; filename="{word}"') == name


@given(names, st.integers(1, 5))
def test_every_continued_name_comes_back(name, size):
    text = quote(name, safe="")
    # An escape is not cut.
    pieces = [quote(name[at : at + size], safe="") for at in range(0, len(name), size)]
    assert "".join(pieces) == text
    header = "; ".join(
        f"filename*{number}*={'UTF-8' + chr(39) * 2 if number == 0 else ''}{piece}"
        for number, piece in enumerate(pieces)
    )
    assert disposition_name(f"attachment; {header}") == name


@given(
    tokens,
    names.filter(lambda name: "%" not in name and "=?" not in name),
    st.text("abc;=\"\\' filename*", max_size=30),
)
def test_nothing_inside_a_quoted_string_is_a_parameter(other, name, text):
    def quoted(value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    assert disposition_name(f"attachment; {other}={quoted(text)}; filename={quoted(name)}") == name
    assert disposition_name(f"attachment; {other}={quoted(text)}") is None


@given(st.text(max_size=60), st.text("filename*=;\"'\\%=? abc012", max_size=60))
def test_any_header_gives_a_name_without_folders_or_none(text, header):
    for value in (text, header, f"attachment; {header}", f"attachment; filename={text}"):
        name = disposition_name(value)
        assert name is None or (name and "/" not in name and "\\" not in name and name == name.strip())


def test_a_suggested_name_without_extension_stays_without_in_every_template():
    assert named("https://example.com/get.php", kind="text/plain", header="attachment; filename=README") == "README"
    file = name_file("https://example.com/x", disposition="attachment; filename=Makefile", upload_date="20250101")
    assert str(expand("{ext}/{id}-{safe_title}.{ext}", file, batch_id="b")).endswith("-Makefile")
    assert str(expand("{safe_title}.{ext}.old", file, batch_id="b")) == "Makefile.old"


# Extensions

KEPT = {
    "application/xml": "xml.gz rss",
    "application/gzip": "xml.gz tgz",
    "application/x-gzip": "xml.gz sql.gz",
    "text/plain": "csv tsv safetensors js py yaml srt vtt md nq.gz",
    "application/vnd.ms-excel": "csv",
    "application/csv": "csv",
    "application/json": "jsonl ndjson geojson ipynb map",
    "application/zip": "docx epub whl npz jar apk kmz 7z xpi",
    "video/mp4": "m4a mov m4v",
    "video/mpeg": "mp3",
    "audio/ogg": "opus",
    "application/x-gtar": "tgz",
    "application/x-tar": "tar.gz",
    "application/x-bzip2": "tar.bz2",
    "application/octet-stream": "safetensors parquet jpg webp",
    "application/x-gguf": "gguf",
    "text/xml": "svg",
    "image/jpeg": "jpeg",
    "image/jpg": "jpg",
    "binary/octet-stream": "pdf",
    "application/x-msdownload": "exe",
    "video/mp2t": "ts",
    "video/webm": "mkv",
    "application/zstd": "json.zst",
    "image/svg+xml": "svgz",
    "text/html": "htm xhtml",
    "application/pdf": "ai",
    "text/x-bibtex": "bib",
}


@pytest.mark.parametrize(("kind", "ext"), [(kind, ext) for kind, exts in KEPT.items() for ext in exts.split()])
def test_a_known_extension_outlives_a_vague_type(kind, ext):
    assert named(f"https://example.com/x.{ext}", kind=f"{kind}; charset=utf-8") == f"x.{ext}"


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        ("get.php?id=1", "application/pdf", "get.pdf"),
        ("get.php", "text/csv", "get.csv"),
        ("get.aspx", "application/zip", "get.zip"),
        ("get.cgi", "application/octet-stream", "get.bin"),
        ("get.php", None, "get.php"),
        ("photo.jpg", "text/html", "photo.html"),
        ("photo.jpg", "image/webp", "photo.webp"),
        ("movie.gif", "video/mp4", "movie.mp4"),
        ("paper.txt", "application/pdf", "paper.pdf"),
        ("archive.zip", "image/png", "archive.png"),
        ("release-1.2", "application/zip", "release-1.2.zip"),
        ("backup.001", "application/zip", "backup.001"),
        ("U.S", "text/html", "U.S.html"),
        ("dump", "application/xml", "dump.xml"),
        ("dump", "application/x-ndjson", "dump.ndjson"),
        ("dump", "application/x-unheard-of", "dump.bin"),
        ("dump", None, "dump.bin"),
    ],
)
def test_a_type_names_what_the_url_does_not(path, kind, name):
    assert named(f"https://example.com/{path}", kind=kind) == name


@given(st.text(max_size=300), st.integers(1, 150))
def test_a_safe_name_is_never_longer_than_its_limit(text, limit):
    for value in (text, f"con.{text}", "con." + "x" * 300, f"{text}nul"):
        assert len(safe_name(value, limit=limit, fallback="").encode()) <= limit
