# ruff: noqa: RUF001
"""URLs of strangers: one form for each, redirects as servers send them, and no credentials in what others are shown."""

import base64
import contextlib
import json
import logging
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from jobs_server import open_manager

from wme_async.jobs import BatchManager, InvalidBatch, JobLimits, Options
from wme_async.jobs.url_policy import check_web_url, netloc_of, redacted, redacted_url, redirect_target
from wme_async.jobs.validation import check_batch


@contextlib.asynccontextmanager
async def serving(handler):
    """Run a handler for every path, and yield the URL of the server."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def run_batch(manager, *urls, **options):
    batch = await manager.submit(urls, **options)
    return await manager.wait(batch.batch_id, timeout=10)


# One form


@pytest.mark.parametrize(
    ("host", "ascii_form"),
    [
        # Another owner's domain in IDNA 2003.
        ("straße.de", "xn--strae-oqa.de"),
        ("Straße.DE", "xn--strae-oqa.de"),
        ("βόλος.com", "xn--nxasmm1c.com"),
        ("ΒΌΛΟΣ.com", "xn--nxasmq6b.com"),
        ("نامه‌ای.com", "xn--mgba3gch31f060k.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER。example", "xn--bcher-kva.example"),
        ("ｅｘａｍｐｌｅ.com", "example.com"),
        ("xn--bcher-kva.example.", "xn--bcher-kva.example"),
    ],
)
def test_international_names_are_encoded_as_browsers_encode_them(host, ascii_form):
    assert check_batch([f"http://{host}/"], Options(), limits=JobLimits())[0] == [f"http://{ascii_form}/"]


@pytest.mark.parametrize("host", ["１２７.0.0.1", "127。0。0。1", "ⓛocalhost", "-é.example", "é" * 80])
def test_a_name_that_becomes_a_local_one_or_none_is_refused(host):
    with pytest.raises(InvalidBatch):
        check_batch([f"http://{host}/"], Options(), limits=JobLimits())


async def test_the_same_holds_for_webhooks_and_allowed_hosts(tmp_path):
    async with BatchManager(tmp_path, allow_hosts=["Straße.local"]) as manager:
        with pytest.raises(InvalidBatch, match=r"xn--strae-oqa\.lan is refused"):
            await manager.submit(["https://example.com/a"], webhook_url="http://straße.lan/")
        await manager.submit(["http://straße.local/a"])


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/a/../b", "/b"),
        ("/../../b", "/b"),
        ("/a/./b/.", "/a/b/"),
        ("/a/b/..", "/a/"),
        ("/a/%2E%2e/b", "/b"),
        ("/a/.%2e/%2e/b?c=../d", "/b?c=../d"),
        ("/a//../b", "/a/b"),
        ("/...", "/..."),
        ("/a/b..", "/a/b.."),
        ("", "/"),
    ],
)
def test_dot_segments_are_resolved(path, clean):
    assert check_web_url(f"http://example.com{path}") == f"http://example.com{clean}"


def test_two_spellings_of_one_path_are_duplicates():
    with pytest.raises(InvalidBatch, match="Duplicate URL"):
        check_batch(["http://example.com/a/../b", "http://example.com/b"], Options(), limits=JobLimits())


@given(st.lists(st.sampled_from(["", ".", "..", "a", "%2e", "%2E.", "b.c"]), max_size=8))
def test_a_checked_path_has_no_dot_segments_and_stays_as_it_is(segments):
    url = check_web_url("http://example.com/" + "/".join(segments))
    path = urlsplit(url).path
    assert path.startswith("/")
    assert not {".", "..", "%2e", "%2E."} & set(path.split("/"))
    assert check_web_url(url) == url


# Redirects


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/a b|c", "/a%20b%7Cc"),
        (' /q?x="y"&z={1} ', "/q?x=%22y%22&z=%7B1%7D"),
        ("/x^y`z", "/x%5Ey%60z"),
        ("/caf\udce9", "/caf%E9"),
        ("/café", "/caf%C3%A9"),
        ("../x/./y", "/x/y"),
        ("/a%20b", "/a%20b"),
        ("/a\\b", "/a%5Cb"),
    ],
)
def test_a_location_is_encoded_and_then_checked(location, target):
    assert redirect_target("http://example.com/d/e", location) == f"http://example.com{target}"


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/",
        "file:///etc/passwd",
        "http://a b.example/",
        "http://u:p@example.com/",
        "//[::1/",
        "x" * 9000,
    ],
)
def test_a_location_that_must_not_be_followed_is_refused(location):
    with pytest.raises(ValueError, match=r"\w"):
        redirect_target("http://example.com/", location)


@given(st.text(max_size=40))
def test_any_location_gives_a_checked_url_or_a_refusal(location):
    try:
        target = redirect_target("http://example.com/d/", location)
    except ValueError:
        return
    assert check_web_url(target) == target
    assert target.isascii()


async def test_a_redirect_with_raw_bytes_is_followed(tmp_path):
    async def handler(request):
        if request.raw_path == "/start":
            response = web.StreamResponse(status=302)
            response.headers["Location"] = "/caf\u00e9 |x"
            return response
        assert request.raw_path == "/caf%C3%A9%20%7Cx"
        return web.Response(body=b"data")

    async with serving(handler) as url, open_manager(tmp_path) as manager:
        finished = await run_batch(manager, f"{url}/start")
    assert finished.jobs[0].error is None


async def test_a_cookie_that_a_redirect_sets_is_sent_back_to_its_host_alone(tmp_path):
    cookies = []

    async def other(request):
        cookies.append(request.headers.get("Cookie"))
        return web.Response(body=b"elsewhere")

    async def handler(request):
        if request.path == "/away":
            return web.Response(
                status=302,
                headers={"Location": f"{away.replace('127.0.0.1', 'localhost')}/x", "Set-Cookie": "gate=1"},
            )
        if request.cookies.get("gate") != "open%3Byes":
            response = web.Response(status=302, headers={"Location": str(request.rel_url)})
            response.set_cookie("gate", "open%3Byes")
            return response
        data = bytes(300_000)
        span = request.http_range
        if span.start is None:
            return web.Response(body=data, headers={"ETag": '"1"'})
        start, stop = span.start, min(span.stop or len(data), len(data))
        headers = {"ETag": '"1"', "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        return web.Response(status=206, body=data[start:stop], headers=headers)

    async with serving(other) as away, serving(handler) as url:
        async with open_manager(tmp_path) as manager:
            finished = await run_batch(manager, f"{url}/file.bin", f"{url}/other.bin")
            assert [job.error for job in finished.jobs] == [None, None]
            assert finished.jobs[0].file_info.size_bytes == 300_000
        async with BatchManager(
            tmp_path / "2", allow_hosts=["127.0.0.1", "localhost"], limits=JobLimits(free_space=0)
        ) as manager:
            finished = await run_batch(manager, f"{url}/away")
            assert finished.jobs[0].error is None
    assert set(cookies) == {None}


# What others are shown

SECRETS = ("AKIAEXAMPLE", "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c4")
SIGNED = f"X-Amz-Algorithm=AWS4&X-Amz-Credential={SECRETS[0]}&X-Amz-Signature={SECRETS[1]}&part=2"


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (SIGNED, "X-Amz-Algorithm=AWS4&X-Amz-Credential=REDACTED&X-Amz-Signature=REDACTED&part=2"),
        ("sig=ab%3D&se=1", "sig=REDACTED&se=1"),
        ("access_token=x&page=2", "access_token=REDACTED&page=2"),
        ("h=0123456789abcdef0123456789abcdef", "h=REDACTED"),
        ("0123456789abcdef0123456789abcdef", "REDACTED"),
        ("title=Paris,_France&lang=en", "title=Paris,_France&lang=en"),
        ("token=", "token="),
        ("language_code=en&code=x", "language_code=en&code=REDACTED"),
        ("keyword=monkey&expires=3&design=1", "keyword=monkey&expires=3&design=1"),
        ("title=List_of_2024_Summer_Olympics_medal_winners", "title=List_of_2024_Summer_Olympics_medal_winners"),
        ("AWSAccessKeyId=A&Key-Pair-Id=B&hdnts=exp", "AWSAccessKeyId=REDACTED&Key-Pair-Id=REDACTED&hdnts=exp"),
    ],
)
def test_a_query_is_shown_without_credentials(query, text):
    assert redacted_url(f"https://example.com/a?{query}") == f"https://example.com/a?{text}"


SECRET = "s3cr3tValueXYZ"


@pytest.mark.parametrize(
    "url",
    [
        *(
            f"https://h/p?{name}={SECRET}"
            for name in ("sig", "sign", "st", "h", "k", "pw", "x", "sig[]", "?sig", "md5")
        ),
        *(f"https://h/p?{name}=abcdef" for name in ("Signature", "X%2DAmz%2DSignature", "?sig", "sig[]", "auth_key")),
        f"https://h/p?hdnts=exp=1~acl=/*~hmac={SECRET}",
        f"https://h/p?verify=1700000000-{SECRET}",
        f"https://h/p?{SECRET}",
        f"https://h/p?{SECRET}=",
        f"https://h/p?a=1;sig={SECRET}",
        f"https://h/p?a=1&amp;sig={SECRET}",
        f"https://h/p?a=1#access_token={SECRET}",
        f"https://h/p;jsessionid={SECRET}/x",
        f"https://user:{SECRET}@h/p",
        f"https://h/p?url=https%3A%2F%2Fx%2F%3Fy%3D{SECRET}",
    ],
)
def test_a_signature_of_any_name_is_not_shown(url):
    shown = redacted_url(url)
    assert SECRET not in shown
    assert "abcdef" not in shown
    assert "REDACTED" in shown or "#" in url


@given(name=st.from_regex(r"[A-Za-z_-]{1,12}", fullmatch=True), secret=st.binary(min_size=16, max_size=64))
def test_random_bytes_are_not_shown_whatever_their_name(name, secret):
    for text in (secret.hex(), base64.urlsafe_b64encode(secret).decode()):
        # Bytes that are far from random look like a number or a word.
        if len(set(text)) > 10:
            assert text not in redacted_url(f"https://h/p?part=2&{name}={text}")


def test_titles_in_any_script_are_shown():
    for query in (
        "title=Zürich",
        "title=%D0%9C%D0%BE%D1%81%D0%BA%D0%B2%D0%B0",
        "t=東京都",
        "page=3&lang=zh-hant",
        "f=mp4",
    ):
        assert redacted_url(f"https://h/p?{query}") == f"https://h/p?{query}"


def test_a_message_is_shown_without_credentials_and_addresses():
    text = f"cannot reach https://h.example/a?{SIGNED}: [Connect call failed ('10.1.2.3', 80), ('fd00::1', 80, 0, 0)]"
    message = redacted(text, url="https://h.example/a")
    assert not any(secret in message for secret in (*SECRETS, "10.1.2.3", "fd00::1"))
    assert "part=2" in message
    assert redacted("no answer from 8.8.8.8 at 10:00:00", url="http://8.8.8.8/") == "no answer from 8.8.8.8 at 10:00:00"


async def test_signatures_are_in_no_webhook_error_or_log_and_the_path_of_a_webhook_in_no_log(tmp_path, caplog):
    bodies = []

    async def handler(request):
        if request.path.startswith("/hook"):
            bodies.append(await request.text())
            return web.Response(status=500)
        return web.Response(status=404)

    caplog.set_level(logging.DEBUG)
    async with serving(handler) as url, open_manager(tmp_path) as manager:
        finished = await run_batch(
            manager, f"{url}/a?{SIGNED}", stop_on_error=True, ignore_errors=False, webhook_url=f"{url}/hook/T0PSECRET"
        )
        events = [event async for event in manager.watch(finished.batch_id, after=0)]
        while (message := (await manager.webhooks(finished.batch_id))[0]).state == "waiting":
            await manager.counts()
    assert json.loads(bodies[0])["data"]["jobs"][0]["url"].startswith(f"{url}/a?X-Amz-Algorithm=AWS4&")
    text = [*bodies, finished.error, finished.jobs[0].error, *(event.error or "" for event in events), caplog.text]
    for secret in SECRETS:
        assert not any(secret in text for text in text)
    assert "T0PSECRET" not in caplog.text
    assert message.error == "HTTP 500"


async def test_an_unreachable_webhook_is_told_without_its_path(tmp_path, unused_tcp_port_factory):
    port = unused_tcp_port_factory()

    async def handler(_request):
        return web.Response(body=b"data")

    async with serving(handler) as url, open_manager(tmp_path) as manager:
        finished = await run_batch(manager, f"{url}/a", webhook_url=f"http://127.0.0.1:{port}/T0PSECRET")
        while (message := (await manager.webhooks(finished.batch_id))[0]).state == "waiting":
            await manager.counts()
    assert message.error
    assert "T0PSECRET" not in message.error


@pytest.mark.parametrize("host", ["[v1.a]", "[fe80::1%25eth0]", "ä" * 254])
def test_a_host_that_cannot_be_resolved_is_an_error(host):
    with pytest.raises(ValueError, match=r"brackets|zone|host"):
        check_web_url(f"http://{host}/")


def test_a_damaged_url_has_no_host_and_hides_no_message():
    assert netloc_of("http://[") == ""
    assert redacted("refused by 10.0.0.1", url="http://[") == "refused by (address)"
