"""The shape of requests, aiohttp's own request method replaced: what is asked of whom, with which headers and body."""

import json
import re
from typing import Any

import pytest
from aioresponses import aioresponses

from wme_async import Client, Retry
from wme_async.errors import (
    BadRequest,
    Forbidden,
    NotFound,
    RateLimited,
    ServerError,
    StatusError,
    Unauthorized,
    Unprocessable,
)

API = "https://api.enterprise.wikimedia.com"
AUTH = "https://auth.enterprise.wikimedia.com"

pytestmark = pytest.mark.usefixtures("_aioresponses_on_new_aiohttp")


@pytest.fixture
async def wme():
    async with Client("somebody", "secret", retry=Retry(attempts=1)) as client:
        yield client


@pytest.fixture
def net():
    with aioresponses() as mocked:
        mocked.post(f"{AUTH}/v1/login", payload={"access_token": "abc", "refresh_token": "def", "expires_in": 86400})
        yield mocked


def sent(net: aioresponses, method: str, url: str) -> Any:
    """Return the arguments of the one request to a URL."""
    (calls,) = [calls for (verb, to), calls in net.requests.items() if (verb, str(to)) == (method, url)]
    (call,) = calls
    return call.kwargs


async def test_a_sign_in_is_json_and_says_so(wme, net):
    await wme.auth.login()
    call = sent(net, "POST", f"{AUTH}/v1/login")
    assert json.loads(call["data"]) == {"username": "somebody", "password": "secret"}
    assert call["headers"]["Content-Type"] == "application/json"
    assert "Authorization" not in call["headers"]


@pytest.mark.parametrize(
    ("verb", "path", "body"),
    [
        (lambda wme: wme.codes.list(), "/v2/codes", {}),
        (lambda wme: wme.projects.get("enwiki"), "/v2/projects/enwiki", {}),
        (
            lambda wme: wme.batches("2025-07-16T05").list(fields=["identifier"], filters={"version": "x"}),
            "/v2/batches/2025-07-16/05",
            {"fields": ["identifier"], "filters": [{"field": "version", "value": "x"}]},
        ),
        (lambda wme: wme.snapshots.chunks("a_namespace_0").get(2), "/v2/snapshots/a_namespace_0/chunks/2", {}),
        (lambda wme: wme.structured_snapshots.list(), "/v2/snapshots/structured-contents", {}),
        (
            lambda wme: wme.articles.lookup("Who's? C#/AC %", limit=2, order=None),
            "/v2/articles/Who%27s%3F_C%23%2FAC_%25",
            {"limit": 2},
        ),
        (lambda wme: wme.wikidata.items.get("Q42", fields=["name"]), "/v2/wikidata/items/Q42", {"fields": ["name"]}),
    ],
)
async def test_each_verb_posts_its_query_as_json_to_its_path(wme, net, verb, path, body):
    # By pattern, since a URL given as text would be quoted anew.
    net.post(re.compile(re.escape(API)), body=b'[{"name":"x"}]', repeat=True)
    await verb(wme)
    (calls,) = [calls for (method, to), calls in net.requests.items() if method == "POST" and to.host == API[8:]]
    call = calls[0].kwargs
    (url,) = [to for (method, to) in net.requests if method == "POST" and to.host == API[8:]]
    assert url.raw_path == path
    assert json.loads(call["data"]) == body
    assert call["headers"]["Content-Type"] == "application/json"
    assert call["headers"]["Authorization"] == "Bearer abc"
    assert call["allow_redirects"] is False


async def test_a_head_goes_to_the_archive_and_has_no_body(wme, net):
    net.head(
        f"{API}/v2/batches/2025-07-16/05/enwiki_namespace_0/download", headers={"Content-Length": "7", "ETag": '"e"'}
    )
    info = await wme.batches("2025-07-16T05").head("enwiki_namespace_0")
    assert (info.size, info.etag) == (7, '"e"')
    assert sent(net, "HEAD", f"{API}/v2/batches/2025-07-16/05/enwiki_namespace_0/download")["data"] is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (418, StatusError),
        (422, Unprocessable),
        (429, RateLimited),
        (500, ServerError),
        (502, ServerError),
        (503, ServerError),
        (504, ServerError),
    ],
)
async def test_each_status_has_its_error(wme, net, status, kind):
    net.post(f"{API}/v2/codes", status=status, body=b'{"status":1,"message":"words of the server"}\n', repeat=True)
    net.post(f"{AUTH}/v1/token-refresh", payload={"access_token": "ghi", "expires_in": 86400})
    with pytest.raises(kind, match="words of the server") as caught:
        await wme.codes.list()
    assert caught.value.status == status
    assert type(caught.value) is kind
