"""What strangers may ask for: URLs, addresses, templates and names, most of them hostile."""
# ruff: noqa: RUF001, SIM905  # hostile text is ambiguous on purpose; long lists of words read best as words

import ipaddress
import pickle
import unicodedata
from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wme_async.jobs.naming import (
    VARIABLES,
    FileName,
    check_template,
    expand,
    file_key,
    fitted,
    name_file,
    numbered,
    safe_name,
)
from wme_async.jobs.url_policy import AddressBlocked, check_address, check_host, guard
from wme_async.jobs.validation import (
    InvalidBatch,
    JobLimits,
    Options,
    WmeUrl,
    check_batch,
    check_url,
    parse_wme,
    split,
)

LIMITS = JobLimits()

HOSTILE_URLS = """
file:///etc/passwd
file://localhost/etc/passwd
ftp://example.com/a
gopher://127.0.0.1:6379/_FLUSHALL
dict://127.0.0.1:11211/stats
ldap://example.com/
jar:http://example.com/a!/b
data:text/plain,hello
javascript:alert(1)
about:blank
ws://example.com/
//example.com/a
/etc/passwd
example.com/a
http:example.com
http:/example.com
http://
http:///path
http://:80/
https://?q
http://127.0.0.1/
http://127.0.0.1:8080/admin
http://127.1/
http://127.0.1/
http://2130706433/
http://017700000001/
http://0x7f000001/
http://0x7f.0.0.1/
http://0177.0.0.1/
http://0/
http://0.0.0.0/
http://127.0.0.1./
http://localhost/
http://LOCALHOST/
http://localhost./
http://foo.localhost/
http://ip6.localhost.localdomain/
http://router.lan/
http://nas.local/
http://wiki.corp/
http://db.internal/
http://metadata.google.internal/computeMetadata/v1/
http://169.254.169.254/latest/meta-data/
http://[::ffff:169.254.169.254]/
http://[::1]/
http://[::]/
http://[0:0:0:0:0:0:0:1]/
http://[::ffff:127.0.0.1]/
http://[::ffff:7f00:1]/
http://[64:ff9b::7f00:1]/
http://[2002:7f00:1::]/
http://[fe80::1]/
http://[fe80::1%25eth0]/
http://[fd00:ec2::254]/
http://[fc00::1]/
http://[ff02::1]/
http://[::1
http://]/
http://[127.0.0.1]/
http://10.0.0.1/
http://172.16.0.1/
http://192.168.1.1/
http://100.64.0.1/
http://100.100.100.200/latest/meta-data/
http://168.63.129.16/
http://192.0.0.192/
http://198.18.0.1/
http://224.0.0.1/
http://255.255.255.255/
http://１２７.０.０.１/
http://①②⑦.⓪.⓪.①/
http://user:password@example.com/
http://user@example.com/
http://@example.com/
http://example.com@127.0.0.1/
http://127.0.0.1\\@example.com/
http://example.com\\.evil.example/
http://exam ple.com/
http://example.com/a b
http://example.com/<script>
http://example.com/"quote
http://example.com/{braces}
http://example.com:0/
http://example.com:65536/
http://example.com:-1/
http://example.com:port/
http://example.com:99999999999999999999/
http://exa_mple..com/
http://.example.com/
http://-example-.com/
http://*.example.com/
http://example.com%00.evil.example/
http://example.com%2f@evil.example/
http://example%2ecom/
http://xn--a-\u0000b.com/
http://a,b.com/
http://$(id).example.com/
http://`id`.example.com/
http://example.com;rm/
http://1.2.3/
http://1.2.3.4.5/
http://1.2.3.256/
http://example.0x7f/
http://example.1/
wme:
wme:/
wme:///snapshots/enwiki_namespace_0
wme://snapshots/enwiki_namespace_0
wme:../../etc/passwd
wme:snapshots/../batches
wme:snapshots/%2e%2e
wme:snapshots/%2e%2e%2fauth
wme:snapshots/a%2Fb
wme:snapshots/a/b
wme:snapshots/a/chunks/b/c
wme:snapshots/a?x=1
wme:snapshots/a#b
wme:snapshots?x
wme:snapshots?x=1&&y=2
wme:batches
wme:batches/2025-07-16
wme:batches/2025-07-16/24/a
wme:batches/2025-07-16/5/a
wme:batches/25-07-16/05/a
wme:batches/2025-07-16/05/a/b
wme:batches/2025-07-16/05/.hidden
wme:wikidata/structured-snapshots/a
wme:wikidata
wme:auth/login
""".strip().splitlines()

CONTROLS = ["http://example.com/" + chr(code) for code in (0, 9, 10, 13, 27, 32, 127, 0x85, 0xA0, 0x2028, 0xFEFF)]
ODD = ["", "http://example.com/" + "a" * 9000, "http://example.com/\ud800", "http://" + "a" * 300 + ".com/"]


@pytest.mark.parametrize("url", HOSTILE_URLS + CONTROLS + ODD, ids=ascii)
def test_a_hostile_url_is_refused_before_anything_is_asked(url):
    with pytest.raises(InvalidBatch) as caught:
        check_batch([url], Options(), limits=LIMITS)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].reason.startswith("Invalid URL: ")
    assert "password@" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 1, b"http://example.com/", ["http://example.com/"]])
def test_what_is_not_text_is_not_a_url(value):
    with pytest.raises(InvalidBatch, match="it must be a text"):
        check_batch([value], Options(), limits=LIMITS)


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("HTTP://Example.COM:80", "http://example.com/"),
        ("https://example.com:443/a?b=c#d", "https://example.com/a?b=c"),
        ("https://example.com.:8443/a%20b", "https://example.com:8443/a%20b"),
        ("http://bücher.example/ü", "http://xn--bcher-kva.example/%C3%BC"),
        ("http://[2001:4860:4860:0:0:0:0:8888]:81/", "http://[2001:4860:4860::8888]:81/"),
        ("http://8.8.8.8/", "http://8.8.8.8/"),
        ("WME:snapshots/enwiki_namespace_0", "wme:snapshots/enwiki_namespace_0"),
    ],
)
def test_a_good_url_is_brought_to_one_form(url, clean):
    assert check_url(url) == clean
    assert check_url(clean) == clean


def test_all_that_is_wrong_is_named_at_once():
    urls = [
        "https://example.com/a",
        "nonsense",
        "https://EXAMPLE.com/a#top",
        "http://127.0.0.1/",
        "https://example.com/b",
    ]
    with pytest.raises(InvalidBatch) as caught:
        check_batch(urls, Options(), limits=LIMITS)
    assert [problem.what for problem in caught.value.problems] == [urls[1], urls[2], urls[3]]
    assert "Duplicate URL: the same as number 1" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        ([], "at least 1 URL"),
        ([f"https://example.com/{number}" for number in range(101)], "Maximum 100 URLs per batch"),
    ],
)
def test_the_number_of_urls_is_limited_in_the_words_of_the_guide(urls, words):
    with pytest.raises(InvalidBatch, match=words):
        check_batch(urls, Options(), limits=LIMITS)


def test_a_hundred_urls_are_a_batch():
    urls = [f"https://example.com/{number}" for number in range(100)]
    assert check_batch(urls, Options(), limits=LIMITS)[0] == urls


def test_one_text_is_not_taken_for_a_list_of_urls():
    with pytest.raises(TypeError, match="urls must be a list of URLs, not 5"):
        check_batch(5, Options(), limits=LIMITS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not one string"):
        check_batch("https://example.com/", Options(), limits=LIMITS)


def test_a_private_host_passes_where_it_is_allowed_by_name():
    assert check_url("http://127.0.0.1:99/a", allow=["127.0.0.1"]) == "http://127.0.0.1:99/a"
    assert check_url("http://db.internal/", allow=["DB.internal."]) == "http://db.internal/"
    with pytest.raises(ValueError, match="refused"):
        check_url("http://127.0.0.2/", allow=["127.0.0.1"])


@pytest.mark.parametrize(
    ("changes", "what", "words"),
    [
        ({"concurrent_limit": 0}, "concurrent_limit", "1-10, not 0"),
        ({"concurrent_limit": 11}, "concurrent_limit", "Maximum 10 concurrent downloads"),
        ({"timeout": 0}, "timeout", "above 0"),
        ({"timeout": 86_401}, "timeout", "at most 86400 seconds"),
        ({"timeout": float("nan")}, "timeout", "not nan"),
        ({"priority": 101}, "priority", "-100 to 100"),
        ({"quality": "1080p; rm -rf /"}, "quality", "a height"),
        ({"quality": "best[height<=1]"}, "quality", "a height"),
        ({"video_format": "../mp4"}, "video_format", "file extension"),
        ({"path_template": "../{id}.{ext}"}, "path_template", "dot"),
        ({"webhook_url": "http://169.254.169.254/"}, "webhook_url", "metadata service"),
        ({"webhook_url": "wme:snapshots/a"}, "webhook_url", "http://"),
    ],
)
def test_options_out_of_range_are_refused_with_a_reason(changes, what, words):
    with pytest.raises(InvalidBatch, match=words) as caught:
        check_batch(["https://example.com/"], Options(**changes), limits=LIMITS)
    assert [problem.what for problem in caught.value.problems] == [what]


@pytest.mark.parametrize(
    "changes",
    [{"stop_on_error": 1}, {"download_subtitles": "x"}, {"concurrent_limit": 2.5}, {"priority": 0.5}, {"quality": 720}],
)
def test_an_option_that_could_be_stored_and_not_be_read_again_is_refused(changes):
    with pytest.raises(TypeError, match=r"of the batch must be (True|a whole number|text).*, not "):
        check_batch(["https://example.com/"], Options(**changes), limits=LIMITS)


def test_the_defaults_are_those_of_the_guide():
    _, options = check_batch(["https://example.com/"], Options(), limits=LIMITS)
    assert (options.concurrent_limit, options.stop_on_error, options.ignore_errors) == (3, False, True)
    assert (options.timeout, LIMITS.urls, LIMITS.concurrent) == (1800.0, 100, 10)


@pytest.mark.parametrize("bad", [{"urls": 0}, {"running": 0}, {"timeout": 0}, {"bandwidth": 0.0}, {"free_space": -1}])
def test_limits_under_which_nothing_runs_are_refused(bad):
    with pytest.raises(ValueError, match="JobLimits"):
        JobLimits(**bad)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("wme:batches/2025-07-16/05/enwiki_namespace_0", WmeUrl("batches", "2025-07-16T05", "enwiki_namespace_0")),
        (
            "wme:batches/2025-07-16/05?in_language.identifier=en&namespace.identifier=0",
            WmeUrl("batches", "2025-07-16T05", None, (("in_language.identifier", "en"), ("namespace.identifier", 0))),
        ),
        ("wme:snapshots", WmeUrl("snapshots", None, None)),
        ("wme:snapshots/dewiki_namespace_0", WmeUrl("snapshots", None, "dewiki_namespace_0")),
        ("wme:snapshots/dewiki_namespace_0/chunks", WmeUrl("chunks", "dewiki_namespace_0", None)),
        ("wme:snapshots/de/chunks/de_1", WmeUrl("chunks", "de", "de_1")),
        ("wme:structured-snapshots/enwiki_namespace_0", WmeUrl("structured-snapshots", None, "enwiki_namespace_0")),
        ("wme:wikidata/snapshots/wikidata_namespace_0", WmeUrl("wikidata/snapshots", None, "wikidata_namespace_0")),
        (
            "wme:snapshots?a.b=true&c=007&d=-3",
            WmeUrl("snapshots", None, None, (("a.b", True), ("c", "007"), ("d", -3))),
        ),
    ],
)
def test_a_wme_url_names_an_archive_or_a_list(url, parts):
    assert parse_wme(url) == parts


def test_split_cuts_a_list_and_loses_nothing():
    urls = [str(number) for number in range(120)]
    parts = list(split(urls, 50))
    assert [len(part) for part in parts] == [50, 50, 20]
    assert [url for part in parts for url in part] == urls
    with pytest.raises(ValueError, match="at least 1"):
        split(urls, 0)
    with pytest.raises(TypeError, match="a list of URLs, not one string"):
        split("https://example.com/a")


# Addresses

REFUSED = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.254 100.100.100.200 127.0.0.1 127.255.255.254
169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1
192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
255.255.255.255 168.63.129.16 :: ::1 ::2 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254
::ffff:0:127.0.0.1 64:ff9b::127.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::1 100::1 2001::1 2001:db8::1 2001:10::1
2002:7f00:1:: 2002:a00:1:: 2002:a9fe:a9fe:: fc00::1 fd00:ec2::254 fd20:ce::254 fe80::1 fe80::1%eth0 fe80::5efe:127.0.0.1
2001:4860::5efe:10.0.0.1 fec0::1 ff00::1 ff02::1 5f00::1 4000::1 127.1 0x7f000001 2130706433 localhost
""".split()

ALLOWED = """
1.1.1.1 8.8.8.8 93.184.216.34 172.15.255.255 172.32.0.1 100.63.255.255 100.128.0.1 198.17.255.255 198.20.0.1
2001:4860:4860::8888 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2a00:1450::1
""".split()


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_of_the_public_internet_is_refused(address):
    assert check_address(address)


@pytest.mark.parametrize("address", ALLOWED)
def test_a_public_address_passes(address):
    assert check_address(address) is None


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_every_way_to_write_it_as_ipv6(address):
    plain = check_address(str(address))
    assert (check_address(f"::ffff:{address}") is None) == (plain is None)
    assert (check_address(f"64:ff9b::{address}") is None) == (plain is None)
    if plain:
        number = int(address)
        assert check_address(str(ipaddress.IPv6Address((0x2002 << 112) | (number << 80))))
        # Teredo carries the address with its bits turned over.
        assert check_address(str(ipaddress.IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF))))


@given(st.ip_addresses())
def test_nothing_passes_that_python_calls_private_loopback_or_multicast(address):
    bad = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    mapped = getattr(address, "ipv4_mapped", None)
    if bad and mapped is None:
        assert check_address(str(address))


def test_the_guard_looks_at_the_address_and_lets_pass_what_is_allowed_by_name():
    check = guard(["files.example", "::1"])
    assert check("example.com", "93.184.216.34") is None
    assert check("files.example", "10.0.0.1") is None
    assert check("::1", "::1") is None
    with pytest.raises(AddressBlocked, match=r"example.com is refused: it leads to an address outside") as caught:
        check("example.com", "10.0.0.1")
    assert "10.0.0.1" not in str(caught.value)
    with pytest.raises(AddressBlocked, match=r"10.0.0.1 is refused: private"):
        check("10.0.0.1", "10.0.0.1")


@pytest.mark.parametrize("host", ["localhost", "a.localhost", "x.internal", "127.1", "0x7f", "10.0.0.1", "fe80::1%1"])
def test_a_host_that_is_local_by_name_is_refused(host):
    assert check_host(host)


# Templates

HOSTILE_TEMPLATES = [
    *(
        "",
        "/",
        "//",
        "/etc/passwd",
        "/{id}",
        "../{id}",
        "a/../{id}",
        "a/..",
        "..",
        ".",
        "./{id}",
        "a/./{id}",
        "a//{id}",
    ),
    *("{id}/", "~/{id}", "~root/{id}", ".jobs/{id}", ".hidden", "a/.ssh/{id}", "C:/{id}", "C:\\{id}", "a\\..\\{id}"),
    *(
        "\\\\server\\share\\{id}",
        "{id}\0",
        "{id}\n",
        "a\x1b[0m{id}",
        "{id}\u202egnp.exe",
        "{id}:stream",
        "a|b",
        "a*b",
        "a?b",
    ),
    *('"{id}"', "<{id}>", "{", "}", "{id", "id}", "{}", "{0}", "{id!r}", "{id:>10}", "{id:{ext}}", "{id.__class__}"),
    *(
        "{id[0]}",
        "{title}",
        "{path}",
        "{ batch_id }",
        "{BATCH_ID}",
        "{{id}",
        "nul",
        "a/con/{id}",
        "aux.{ext}",
        "COM1.txt",
    ),
    *(
        "{id}.",
        "a./{id}",
        "a /{id}",
        " {id}",
        "{id} ",
        "/".join(["a"] * 13),
        "a" * 501,
        "{__import__('os')}",
        "lpt¹.txt",
    ),
]


@pytest.mark.parametrize("template", HOSTILE_TEMPLATES, ids=ascii)
def test_a_template_that_could_leave_the_directory_is_refused(template):
    with pytest.raises(ValueError, match=r"."):
        check_template(template)


@pytest.mark.parametrize(
    "template",
    [
        "batch/{batch_id}/{safe_title}-{id}.{ext}",
        "{safe_title}.{ext}",
        "{uploader}/{upload_date}/{id}.{ext}",
        "a b/{{literal}}/{id}",
        "fixed-name",
    ],
)
def test_a_template_of_the_guide_is_accepted(template):
    check_template(template)


def test_every_variable_of_the_guide_is_filled_in():
    template = "/".join("{" + name + "}" for name in VARIABLES)
    name = FileName(title="Video 1", ext="mp4", id="abc123", uploader="Somebody", upload_date="20251106")
    assert str(expand(template, name, batch_id="batch_1")) == "batch_1/Video 1/abc123/mp4/Somebody/20251106"


# Names

HOSTILE_NAMES = [
    *(
        "",
        ".",
        "..",
        "...",
        "/",
        "\\",
        "a/b",
        "a\\b",
        "../../etc/passwd",
        "..\\..\\windows",
        "/etc/passwd",
        "C:\\boot.ini",
    ),
    *("\\\\server\\share", "~", "~root", "-rf", "--help", ".bashrc", ".ssh/authorized_keys", "con", "CON", "con.txt"),
    *("nul.tar.gz", "aux .txt", "COM1", "LPT9.log", "com¹", "prn.", "a.", "a ", " a", "a...", "a\0b", "a\nb", "a\rb"),
    *("a\tb", "\x1b[31mred", "\x7f", "a\u202egpj.exe", "\u200b", "\ufeffa", "a\u2028b", "e\u0301", "\ud800", "\udcff"),
    *("a" * 300, "ü" * 200, "😀" * 100, "a:b", "a::$DATA", "a*?b", '"a"', "<a>", "a|b", "$(id)", "`id`", "%2e%2e%2f"),
    *(
        "%00",
        "file.php\0.jpg",
        "....//....//a",
        "‥/‥/a",
        "／etc／passwd",
        "Ａ",
        "ﬁ",
        "ı",
        "ß",
        "\u0130",
        "a\u0000" * 200,
    ),
]


def assert_safe(path, root):
    for part in path.parts:
        assert part
        assert part not in {".", ".."}
        assert not set(part) & set('<>:"/\\|?*\0')
        assert all(unicodedata.category(char)[0] != "C" for char in part)
        assert not part.startswith((".", " ", "~", "-"))
        assert not part.endswith((".", " "))
        assert len(part.encode()) <= 255 - len(".part.lock") - len(" (999)")
        assert part.split(".")[0].strip().casefold() not in {"con", "prn", "aux", "nul", "com1", "lpt1"}
    full = root.joinpath(path)
    assert full.resolve().is_relative_to(root.resolve())
    full.parent.mkdir(parents=True, exist_ok=True)
    full.write_bytes(b"x")
    assert full.parent.joinpath(full.name).exists()


@pytest.mark.parametrize("text", HOSTILE_NAMES, ids=ascii)
def test_a_hostile_name_becomes_a_safe_file_wherever_it_comes_from(text, tmp_path):
    name = FileName(title=text, ext=text, id=text, uploader=text, upload_date=text)
    templates = ("{safe_title}", "{uploader}/{upload_date}/{safe_title}-{id}.{ext}", "x/{batch_id}/{id}.{ext}")
    for number, template in enumerate(templates):
        assert_safe(expand(template, name, batch_id=text), tmp_path / str(number))


@given(st.text(max_size=400), st.text(max_size=20))
@example("CON", "txt")
@example("a.", ".")
def test_any_text_is_made_safe_once_and_for_all(title, ext):
    name = FileName(title=title, ext=ext, id=title, uploader=title, upload_date=ext)
    path = expand("{uploader}/{safe_title}.{ext}", name, batch_id="b")
    assert len(path.parts) == 2
    for part in path.parts:
        assert not set(part) & set('<>:"/\\|?*')
        assert part.strip(". ") == part
        assert len(part.encode()) <= 220
    assert safe_name(safe_name(title)) == safe_name(title)


HEADERS = [
    ('attachment; filename="../../etc/passwd"', "passwd", ""),
    ('attachment; filename="..\\\\..\\\\boot.ini"', "boot", "ini"),
    ("attachment; filename=/etc/shadow.txt", "shadow", "txt"),
    ("attachment; filename*=UTF-8''%2e%2e%2fetc%2fpasswd.tar.gz", "passwd", "tar.gz"),
    ("attachment; filename=\"plain.txt\"; filename*=UTF-8''na%C3%AFve.pdf", "naïve", "pdf"),
    ("attachment; filename*=utf-8'en'%e2%82%ac.csv", "€", "csv"),
    ('attachment; filename="a\\"b.txt"', 'a"b', "txt"),
    ('attachment; filename="naïve.txt"', "naïve", "txt"),
    ("attachment; FILENAME=Upper.ZIP", "Upper", "zip"),
    ("attachment; filename=semi;colon.txt", "semi", ""),
    ('attachment; filename=""', "video1", "bin"),
    ("attachment", "video1", "bin"),
    ("attachment; filename*=UTF-16''%00a", "video1", "bin"),
    ("attachment; filename*=UTF-8''%ff%fe.txt", "��", "txt"),
    ("; filename=" + "a" * 9000, "video1", "bin"),
    ("garbage\0; filename", "video1", "bin"),
]


@pytest.mark.parametrize(("header", "title", "ext"), HEADERS, ids=[ascii(row[0][:40]) for row in HEADERS])
def test_a_name_in_content_disposition_is_taken_without_its_folders(header, title, ext, tmp_path):
    name = name_file("https://example.com/video1", disposition=header, upload_date="20251106")
    assert (name.title, name.ext) == (title, ext)
    assert_safe(expand("{safe_title}.{ext}", name, batch_id="b"), tmp_path)


@pytest.mark.parametrize(
    ("url", "kind", "name"),
    [
        ("https://example.com/video1", "video/mp4", "video1.mp4"),
        ("https://example.com/video1", None, "video1.bin"),
        ("https://example.com/", "text/html; charset=utf-8", "example.com.html"),
        ("https://example.com/a.tar.gz", "application/gzip", "a.tar.gz"),
        ("https://example.com/a.tar.gz", "application/octet-stream", "a.tar.gz"),
        ("https://example.com/photo.jpeg", "image/jpeg", "photo.jpeg"),
        ("https://example.com/get.php?id=1", "application/pdf", "get.pdf"),
        ("https://example.com/na%C3%AFve%2Fname.txt", "text/plain", "naïve_name.txt"),
        ("https://example.com/%2e%2e%2f%2e%2e%2fetc", "text/plain", "_.._etc.txt"),
        ("https://example.com/.htaccess", "text/plain", "htaccess.txt"),
    ],
)
def test_without_a_disposition_type_and_path_make_the_name(url, kind, name):
    file_name = name_file(url, content_type=kind, upload_date="20251106")
    assert expand("{safe_title}.{ext}", file_name, batch_id="b").name == name


def test_two_urls_have_two_ids_and_one_url_always_the_same():
    ids = [name_file(f"https://example.com/{number}", upload_date="").id for number in (1, 2, 1)]
    assert ids[0] == ids[2] != ids[1]


@given(
    st.lists(st.text(min_size=1, max_size=200).map(safe_name), min_size=1, max_size=4),
    st.sampled_from(["", ".bin", ".tar.gz"]),
    st.integers(40, 255),
)
def test_every_level_of_a_fitted_path_fits(levels, ext, limit):
    path = PurePosixPath(*levels[:-1], levels[-1] + ext)
    shorter = fitted(path, limit)
    assert all(0 < len(part.encode()) <= limit for part in shorter.parts)
    assert len(shorter.parts) == len(path.parts)
    assert shorter.name.endswith(ext)
    if all(len(part.encode()) <= limit for part in path.parts):
        assert str(shorter).casefold() == str(path).casefold()


@given(st.text(min_size=1, max_size=60).map(safe_name), st.integers(2, 999))
def test_a_numbered_name_keeps_its_extension_and_is_another(name, number):
    path = PurePosixPath("a", name + ".tar.gz")
    other = numbered(path, number)
    assert other.name.endswith(f" ({number}).tar.gz")
    assert other.parent == path.parent
    assert numbered(path, 1) == path


def test_a_cut_that_makes_a_device_is_repaired():
    assert safe_name("console", limit=3) == "_co"


def test_an_archive_has_the_path_of_its_download():
    name = FileName(
        title="x", ext="tar.gz", id="1", uploader="u", upload_date="", path="batches/2025-07-16/05/x.tar.gz"
    )
    assert str(expand("{id}.{ext}", name, batch_id="b")) == "batches/2025-07-16/05/x.tar.gz"


def test_names_that_some_file_system_takes_for_one_have_one_key():
    assert file_key(PurePosixPath("A/É.TXT")) == file_key(PurePosixPath("a/e\u0301.txt"))
    assert file_key(PurePosixPath("a")) != file_key(PurePosixPath("b"))


def test_the_list_of_hostile_things_is_long():
    lists = (HOSTILE_URLS, CONTROLS, ODD, REFUSED, HOSTILE_TEMPLATES, HOSTILE_NAMES, HEADERS)
    assert sum(len(texts) for texts in lists) >= 300


def test_arguments_of_other_types_are_named():
    with pytest.raises(TypeError, match=r"JobLimits\.urls must be a whole number, not 'x'"):
        JobLimits(urls="x")  # type: ignore[arg-type]  # the test
    with pytest.raises(TypeError, match="urls must be a list of URLs, not 5"):
        split(5)  # type: ignore[arg-type]  # the test
    with pytest.raises(ValueError, match="not a wme: URL"):
        parse_wme("https://example.com/")


@pytest.mark.parametrize(
    ("name", "stored"), [("  My \n list ", "My list"), ("", None), (" ", None), ("ü" * 200, "ü" * 200)]
)
def test_a_name_has_single_blanks(name, stored):
    _, options = check_batch(["https://example.com/"], Options(name=name), limits=LIMITS)
    assert options.name == stored


@pytest.mark.parametrize("name", ["x" * 201, "a\x00b", "a\u202eb"])
def test_a_name_is_short_and_printable(name):
    with pytest.raises(InvalidBatch, match="name"):
        check_batch(["https://example.com/"], Options(name=name), limits=LIMITS)
