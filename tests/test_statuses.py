"""Outside 200-299 is an error, except the redirect that was asked for; a 204 is one where a body was asked for."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from transports import error_responses

from wme_async import (
    Cache,
    Client,
    RateLimited,
    Retry,
    Retrying,
    StatusError,
    StreamRetrying,
    TransportError,
)
from wme_async.simulator import Simulator

ELSEWHERE = "https://api.example.org/v2/elsewhere?X-Signature=secret"
Question = Callable[[Client], Awaitable[object]]


async def _read(wme: Client) -> None:
    async with wme.snapshots.read("enwiki_namespace_0") as articles:
        await anext(articles)


async def _many(wme: Client) -> None:
    async with wme.articles.lookup_many(["NATO", "Paris"]) as answers:
        async for answer in answers:
            if answer.error is not None:
                raise answer.error


QUESTIONS: dict[str, Question] = {
    "list": lambda wme: wme.projects.list(),
    "get": lambda wme: wme.projects.get("enwiki"),
    "lookup": lambda wme: wme.articles.lookup("NATO"),
    "lookup_many": _many,
    "structured": lambda wme: wme.structured_contents.lookup("NATO"),
    "item": lambda wme: wme.wikidata.items.get("Q42", recheck=False),
    "labels": lambda wme: wme.wikidata.labels.get("Q42", recheck=False),
    "head": lambda wme: wme.snapshots.head("enwiki_namespace_0"),
    "file": lambda wme: wme.files.get("x.jpg"),
    "user": lambda wme: wme.auth.user(),
    "read": _read,
}
STATUSES: list[tuple[int, dict[str, str]]] = [
    (204, {}),
    (205, {}),
    (300, {}),
    (301, {"Location": ELSEWHERE}),
    (302, {}),
    (304, {}),
    (307, {"Location": ELSEWHERE}),
]


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
async def test_an_answer_that_was_not_asked_for_is_an_error_that_is_neither_kept_nor_counted(
    sim: Simulator, question: Question
) -> None:
    cache = Cache()
    async with Client(**sim.client_options(), cache=cache, retry=Retry(attempts=1)) as wme:
        await wme.auth.login()
        for status, headers in STATUSES:
            if question is _read and "Location" in headers:
                continue  # the one redirect that is asked for
            fault = sim.faults.inject("status", status=status, body=b"", headers=headers, times=None)
            with pytest.raises(StatusError) as caught:
                await question(wme)
            fault.remove()
            assert caught.value.status == status
            if "Location" in headers:
                assert "Location" in str(caught.value)
                assert "https://api.example.org/v2/elsewhere" in str(caught.value)
                assert "secret" not in str(caught.value)
        assert len(cache) == 0
        quota = await wme.auth.quota()
        assert [quota.of(pool).used for pool in ("ondemand", "snapshot", "chunk")] == [0, 0, 0]


async def test_an_empty_200_means_that_nothing_was_found(sim: Simulator) -> None:
    async with Client(**sim.client_options()) as wme:
        sim.faults.inject("status", role="api", status=200, body=b"")
        assert await wme.articles.lookup("NATO") == []


@pytest.mark.parametrize("status", [301, 302, 307])
async def test_signing_out_reports_a_redirect_as_an_error(sim: Simulator, status: int) -> None:
    async with Client(**sim.client_options()) as wme:
        await wme.auth.login()
        sim.faults.inject(
            "status", role="auth", path="token-revoke", status=status, body=b"", headers={"Location": ELSEWHERE}
        )
        with pytest.raises(StatusError, match="Location"):
            await wme.auth.revoke()


async def test_signing_out_takes_a_204(sim: Simulator) -> None:
    async with Client(**sim.client_options()) as wme:
        await wme.auth.login()
        sim.faults.inject("status", role="auth", path="token-revoke", status=204, body=b"")
        await wme.auth.revoke()


@pytest.mark.parametrize(("status", "headers"), STATUSES)
async def test_a_stream_ends_at_an_answer_that_was_not_asked_for(
    sim: Simulator, status: int, headers: dict[str, str]
) -> None:
    async with Client(**sim.client_options()) as wme:
        sim.faults.inject(
            "status", role="realtime", path="/v2/articles", status=status, body=b"", headers=headers, times=None
        )
        with pytest.raises(StatusError) as caught:
            async with wme.realtime.articles() as stream:
                await anext(stream)
        assert caught.value.status == status


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://host/x", "https://[", "mailto:a@b"])
async def test_a_download_is_not_sent_to_what_is_not_http(sim: Simulator, tmp_path: Path, location: str) -> None:
    async with Client(**sim.client_options(), retry=Retry(attempts=1)) as wme:
        sim.faults.inject(
            "status", path="/download", method="GET", status=307, body=b"", headers={"Location": location}
        )
        with pytest.raises(TransportError, match="redirect"):
            await wme.snapshots.download("enwiki_namespace_0", tmp_path)


@pytest.mark.parametrize(
    ("asked", "location", "target"),
    [
        ("https://api.example/a/b", "/c?d=%2F", "https://api.example/c?d=%2F"),
        ("https://api.example/a/b", "https://store.example/c", "https://store.example/c"),
        ("http://api.example/a", "http://store.example/c", "http://store.example/c"),
        ("http://api.example/a", "https://store.example/c", "https://store.example/c"),
        ("https://api.example/a", "https://store.example/c;v=1?", "https://store.example/c;v=1?"),
        ("https://api.example/a", "//store.example/c", "https://store.example/c"),
        ("https://api.example/a", "http://api.example/c", None),
        ("https://api.example/a", "HTTP://store.example/c?X-Signature=secret", None),
        ("https://api.example/a", "https://store.example:0/c", None),
    ],
)
def test_a_redirect_keeps_to_http_and_never_leaves_tls(asked: str, location: str, target: str | None) -> None:
    if target is not None:
        assert error_responses.redirect_target(asked, location) == target
        return
    with pytest.raises(TransportError) as caught:
        error_responses.redirect_target(asked, location)
    assert caught.value.permanent
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("header", ["0", "-5", "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_a_retry_after_of_now_does_not_take_the_waits_away(sim: Simulator, header: str) -> None:
    waits: list[float] = []

    def note(event: object) -> None:
        if isinstance(event, Retrying | StreamRetrying):
            waits.append(event.wait)

    quick = Retry(attempts=4, base=0.01)
    async with Client(**sim.client_options(), retry=quick, on_retry=note) as wme:
        await wme.auth.login()
        sim.faults.inject("status", status=429, headers={"Retry-After": header}, times=None)
        with pytest.raises(RateLimited):
            await wme.projects.list()
        assert len(waits) == 3
        assert sum(waits) > 0
        waits.clear()
        with pytest.raises(RateLimited):
            async with wme.realtime.articles(retry=quick, on_event=note) as stream:
                await anext(stream)
        assert len(waits) == 3
        assert sum(waits) > 0
