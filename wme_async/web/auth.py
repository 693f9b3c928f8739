"""Authentication and limits: API keys, links that expire, and the rate of new batches."""

import hashlib
import hmac
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from functools import partial
from urllib.parse import quote, urlsplit

from wme_async._arguments import check_numbers, check_type, texts_of
from wme_async._rates import TokenBucket
from wme_async.web.messages import HTTPProblem, Request

HASHED = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def hash_key(key: str) -> str:
    """Return an API key in the form in which it may be stored: `sha256:` and 64 hexadecimal digits.

    A key is long and random, so that a fast hash is enough: nobody can find it by guessing.

    Args:
        key: The key. Blanks and line ends around it do not count, as in the header that carries it.

    Raises:
        TypeError: The key is not text.
    """
    check_type("a key", key, str, "text", secret=True)
    return "sha256:" + hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).hexdigest()


def _check_keys(keys: Iterable[str]) -> list[str]:
    """Return keys without the blanks around them. No error message contains a key."""
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise TypeError(f"api_keys must be a list of keys, not one {type(keys).__name__}")
    stripped = []
    for key in keys:
        check_type("an API key", key, str, "text", secret=True)
        stripped.append(key.strip())
        if any(character < " " or character == "\x7f" for character in stripped[-1]):
            raise ValueError("an API key has a line end or another control character in it, which no header can carry")
    if not stripped:
        raise ValueError("api_keys is empty, so nobody could call the service; None requires no key")
    if any(len(key) < 8 for key in stripped):
        raise ValueError("an API key has 8 characters at least; wme_async.web.new_key() makes good ones")
    return stripped


class Keys:
    """The API keys of a service. It stores their hashes alone.

    Args:
        keys: The keys, or their hashes as `hash_key` makes them; with None no key is required. Blanks and line ends
            around them, as files leave them, are removed: no header has any, so such a key could never match.
        hosts: Names under which the service may be called; any with keys, and those of loopback without, by default.
            Every web page can call a service on the machine of its reader, under a name of its own.

    Raises:
        TypeError: One string instead of a list, or an item that is not text.
        ValueError: The list is empty, a key is too short to be safe, or no header can carry it.
    """

    def __init__(self, keys: Iterable[str] | None, *, hosts: Collection[str] | None) -> None:
        names = None if hosts is None else texts_of("allowed_hosts", hosts, "names")
        self._hosts = None if names is None and keys is not None else {name.lower() for name in names or _LOOPBACK}
        self._hashes: tuple[bytes, ...] | None = None
        if keys is not None:
            hashes = (key if HASHED.fullmatch(key) else hash_key(key) for key in _check_keys(keys))
            self._hashes = tuple(key_hash.encode() for key_hash in hashes)

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self._hashes is not None

    def check_host(self, request: Request) -> None:
        """Raise if a request uses a name of the service that is not allowed.

        Raises:
            HTTPProblem: 421, or 400 for a malformed name.
        """
        host = _HOST.fullmatch(request.headers.get("host", ""))
        if host is None:
            raise HTTPProblem(400, "bad_request", "the request has no proper Host header")
        if self._hosts is not None and host[1].lower() not in self._hosts:
            raise HTTPProblem(421, "wrong_host", "this service is not called by that name")

    def check(self, request: Request) -> str:
        """Return the caller, identified by the hash of the key.

        Raises:
            HTTPProblem: 401, or 400 for several different keys.
        """
        if self._hashes is None:
            return "anybody"
        if request.repeated & {"x-api-key", "authorization"}:
            # A proxy in front may have checked another one.
            raise HTTPProblem(400, "several_keys", "send one API key; this request has several different ones")
        key = request.headers.get("x-api-key")
        authorization = request.headers.get("authorization", "")
        if key is None and authorization.lower().startswith("bearer "):
            key = authorization[7:].strip()
        challenge = {"WWW-Authenticate": "ApiKey"}
        if key is None:
            raise HTTPProblem(401, "no_key", "send your API key in the header X-API-Key", headers=challenge)
        key_hash = hash_key(key)
        # All are compared, each in constant time: the duration reveals nothing.
        if not any([hmac.compare_digest(key_hash.encode(), known) for known in self._hashes]):  # noqa: C419
            raise HTTPProblem(401, "wrong_key", "this API key is not known here", headers=challenge)
        return key_hash


class Links:
    """Links to files that need no key for a while, for downloads by a browser itself.

    Args:
        now: Returns UTC epoch seconds.
        seconds: How long a link works.
    """

    def __init__(self, now: Callable[[], float], seconds: float = 300.0) -> None:
        self._now = now
        self._seconds = seconds
        self._secret = secrets.token_bytes(32)

    def make(self, filepath: str) -> tuple[str, float]:
        """Return the path and query of a link, and when it expires."""
        expires = int(self._now() + self._seconds)
        return f"/files/{quote(filepath)}?expires={expires}&signature={self._sign(filepath, expires)}", float(expires)

    def check(self, filepath: str, request: Request) -> bool:
        """Return whether a request has a valid signature for a file."""
        expires, signature = request.query.get("expires", ""), request.query.get("signature", "")
        if not re.fullmatch(r"[0-9]{1,12}", expires) or int(expires) < self._now():
            return False
        return hmac.compare_digest(self._sign(filepath, int(expires)).encode(), signature.encode("utf-8", "replace"))

    def _sign(self, filepath: str, expires: int) -> str:
        message = f"{expires}\n{filepath}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._secret, message, "sha256").hex()


class Throttle:
    """A token bucket for each caller.

    Args:
        rate: Tokens per second, None for no limit.
        burst: Tokens at most.
        clock: Returns seconds that never go back.

    Raises:
        TypeError: A value is not a number.
        ValueError: A value is too small.
    """

    def __init__(self, rate: float | None, burst: int, clock: Callable[[], float]) -> None:
        check_numbers(above=0, create_rate=rate)
        check_numbers(whole=True, optional=False, minimum=1, create_burst=burst)
        self._clock = clock
        self._buckets: defaultdict[str, TokenBucket] = defaultdict(partial(TokenBucket, rate, burst))

    def take(self, caller: str) -> None:
        """Take one token.

        Raises:
            HTTPProblem: 429, with the seconds to wait.
        """
        bucket, now = self._buckets[caller], self._clock()
        delay = bucket.delay(1, now)
        if delay > 0:
            wait = max(1, round(delay + 0.5))
            message = f"too many new batches; try again in {wait} s"
            raise HTTPProblem(429, "too_many_batches", message, headers={"Retry-After": str(wait)})
        bucket.take(1, now)


def same_origin(request: Request) -> bool:
    """Return whether a request comes from the page of this service, or not from a browser.

    Browsers send `Sec-Fetch-Site` where the page came by https, also from behind a proxy that ends TLS. Without it,
    scheme, host and port of `Origin` are compared.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in {"same-origin", "none"}
    header = request.headers.get("origin")
    if header is None:
        return True
    origin = _origin_of(header)
    return origin is not None and origin == _origin_of(request.base)


def _origin_of(url: str) -> tuple[str, str, int | None] | None:
    """Return scheme, host and port of a URL; None where it has no host."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, host, port) if host else None
