"""Who may ask, and how often: API keys, links that expire, and a limit on new batches."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Collection, Iterable
from urllib.parse import quote, urlsplit

from wme_async._arguments import check_numbers, texts_of
from wme_async.web.messages import Call, Refused

__all__ = ["Keys", "Links", "Throttle", "hash_key"]

_HASHED = re.compile(r"sha256:[0-9a-f]{64}")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def hash_key(key: str) -> str:
    """Return an API key in the form in which it may be stored: `sha256:` and 64 hexadecimal digits.

    A key is long and random, so a plain hash is enough: there is nothing to guess that a slow one would protect.

    Args:
        key: The key. Blanks and line ends around it do not count, as in the header that it is sent in.

    Raises:
        TypeError: It is no text.
    """
    if not isinstance(key, str):
        raise TypeError(f"a key must be text, not {type(key).__name__}")
    return "sha256:" + hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).hexdigest()


def _given_keys(keys: Iterable[str]) -> list[str]:
    # What is wrong with them is said without them.
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise TypeError(f"api_keys must be a list of keys, not one {type(keys).__name__}")
    given = list(keys)
    for key in given:
        if not isinstance(key, str):
            raise TypeError(f"an API key must be text, not {type(key).__name__}")
        if any(character < " " or character == "\x7f" for character in key.strip()):
            raise ValueError("an API key has a line end or another control character in it, which no header can carry")
    return [key.strip() for key in given]


class Keys:
    """The API keys of a service. Only their hashes are kept.

    Args:
        keys: The keys, or their hashes as `hash_key` makes them; None asks for no key. Blanks and line ends around
            them, as files leave them, are dropped: no header has any, so such a key could never match.
        hosts: Without keys: names under which the service may be called. Any web page can call what runs on the
            machine of its reader, under a name of its own; so others are refused.

    Raises:
        TypeError: One string instead of a list, or something else than text in it.
        ValueError: There is none, one is too short to be safe, or no header could have it.
    """

    def __init__(self, keys: Iterable[str] | None, *, hosts: Collection[str] | None) -> None:
        hosts = None if hosts is None else texts_of("allowed_hosts", hosts, "names")
        self._hashes: tuple[bytes, ...] | None = None
        self._hosts = None if hosts is None and keys is not None else {name.lower() for name in hosts or _LOOPBACK}
        if keys is not None:
            given = _given_keys(keys)
            if not given:
                raise ValueError("api_keys is empty, so nobody could ask; None asks for no key")
            if any(len(key) < 8 for key in given):
                raise ValueError("an API key has 8 characters at least; wme_async.web.new_key() makes good ones")
            self._hashes = tuple((key if _HASHED.fullmatch(key) else hash_key(key)).encode() for key in given)

    @property
    def required(self) -> bool:
        """Whether a key is asked for."""
        return self._hashes is not None

    def check_host(self, call: Call) -> None:
        """Refuse a call under a name that is not ours.

        Raises:
            Refused: 421.
        """
        if self._hosts is None:
            return
        host = call.headers.get("host", "")
        name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
        if name.lower() not in self._hosts:
            raise Refused(421, "wrong_host", "this service is not called by that name")

    def check(self, call: Call) -> str:
        """Return who calls, as the hash of the key.

        Raises:
            Refused: 401, or 400 for several different keys.
        """
        if self._hashes is None:
            return "anybody"
        if call.repeated & {"x-api-key", "authorization"}:
            # A proxy in front may have looked at another one.
            raise Refused(400, "several_keys", "send one API key; this request has several different ones")
        given = call.headers.get("x-api-key")
        if given is None and call.headers.get("authorization", "").lower().startswith("bearer "):
            given = call.headers["authorization"][7:].strip()
        if given is None:
            raise Refused(
                401, "no_key", "send your API key in the header X-API-Key", headers={"WWW-Authenticate": "ApiKey"}
            )
        hashed = hash_key(given).encode()
        found = False
        for each in self._hashes:
            # All are compared, each in constant time: how long it takes tells nothing.
            found |= hmac.compare_digest(hashed, each)
        if not found:
            raise Refused(401, "wrong_key", "this API key is not known here", headers={"WWW-Authenticate": "ApiKey"})
        return hashed.decode()


class Links:
    """Links to files that need no key for a while: what a browser's own download can use.

    Args:
        now: Gives UTC epoch seconds.
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

    def check(self, filepath: str, call: Call) -> bool:
        """Say whether a call has a good link to a file."""
        expires, signature = call.query.get("expires", ""), call.query.get("signature", "")
        if not re.fullmatch(r"[0-9]{1,12}", expires) or int(expires) < self._now():
            return False
        return hmac.compare_digest(self._sign(filepath, int(expires)).encode(), signature.encode("utf-8", "replace"))

    def _sign(self, filepath: str, expires: int) -> str:
        signed = f"{expires}\n{filepath}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._secret, signed, "sha256").hex()


class Throttle:
    """A token bucket for each caller.

    Args:
        rate: Tokens per second, None for no limit.
        burst: Tokens at most.
        clock: Gives seconds that never go back.
    """

    def __init__(self, rate: float | None, burst: int, clock: Callable[[], float]) -> None:
        check_numbers(whole=False, create_rate=rate)
        check_numbers(whole=True, optional=False, create_burst=burst)
        if (rate is not None and not rate > 0) or burst < 1:
            raise ValueError(f"create_rate must be above 0, and create_burst at least 1, not {rate} and {burst}")
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, who: str) -> None:
        """Take one token.

        Raises:
            Refused: 429, with the seconds to wait.
        """
        if self._rate is None:
            return
        now = self._clock()
        level, at = self._levels.get(who, (float(self._burst), now))
        level = min(float(self._burst), level + (now - at) * self._rate)
        if level < 1.0:
            wait = max(1, round((1.0 - level) / self._rate + 0.5))
            raise Refused(
                429,
                "too_many_batches",
                f"too many new batches; try again in {wait} s",
                headers={"Retry-After": str(wait)},
            )
        self._levels[who] = (level - 1.0, now)


def same_origin(call: Call) -> bool:
    """Say whether a browser's call comes from our own page, or from no browser.

    Browsers say so themselves in `Sec-Fetch-Site` where the page came by https, also from behind a proxy that ends TLS.
    Without it, scheme, host and port of `Origin` are compared.
    """
    site = call.headers.get("sec-fetch-site")
    if site is not None:
        return site in {"same-origin", "none"}
    origin = call.headers.get("origin")
    return origin is None or (_origin_of(origin) is not None and _origin_of(origin) == _origin_of(call.base))


def _origin_of(url: str) -> tuple[str, str, int | None] | None:
    """Return scheme, host and port of a URL; None where it has none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, host, port) if host else None
