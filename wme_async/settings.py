"""Settings that a user may give: frozen, with defaults, checked when they are made."""

import math
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

__all__ = ["Hosts", "Limits", "Retry", "Timeouts"]


class Hosts(msgspec.Struct, frozen=True, kw_only=True):
    """Where the services live: scheme and host of each, without a path.

    Args:
        auth: Sign-in.
        api: Metadata, archives and look-ups.
        realtime: The firehose.

    Raises:
        TypeError: A value is no text.
        ValueError: A value is not `http(s)://host[:port]`.
    """

    auth: str = "https://auth.enterprise.wikimedia.com"
    api: str = "https://api.enterprise.wikimedia.com"
    realtime: str = "https://realtime.enterprise.wikimedia.com"

    def __post_init__(self) -> None:
        """Refuse what would send credentials to a wrong place."""
        for name in self.__struct_fields__:
            scheme, host, rest = _origin(name, getattr(self, name))
            if rest or "@" in host:
                raise ValueError(f"Hosts.{name} must be a scheme and a host without path, query or user")
            msgspec.structs.force_setattr(self, name, f"{scheme}://{host}")

    @classmethod
    def of(cls, value: "Hosts | Mapping[str, str] | None") -> "Hosts":
        """Make `Hosts` of a mapping with any of the keys `auth`, `api`, `realtime`.

        Raises:
            TypeError: It is neither.
            ValueError: An unknown key, or a bad URL.
        """
        if isinstance(value, Hosts):
            return value
        if value is not None and not isinstance(value, Mapping):
            raise TypeError('hosts are Hosts(api=...) or a mapping such as {"api": "https://host"}, not one address')
        unknown = set(value or ()) - set(cls.__struct_fields__)
        if unknown:
            raise ValueError(f"unknown host role {sorted(unknown)}; roles are {list(cls.__struct_fields__)}")
        return cls(**dict(value or {}))


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait, in seconds.

    All but `answer` and `error` measure inactivity: no download, archive or stream is ever cut for being long.

    Args:
        connect: For a connection: name resolution, proxy, TCP and TLS together. An aiohttp session of your own goes by
            its connector, which may count otherwise.
        read: Between two pieces of a body, and for the whole head of an answer once there is a connection. (With an
            aiohttp session of your own, between two pieces of the head.)
        answer: For the whole body of an answer that is read at once: lists, look-ups, metadata, tokens. Without it, a
            server that sends a byte now and then would hold a call for hours.
        error: For the body of an error, which only adds words to a status that is known already; what has come by then
            is used.
        lookup: For the head of an on-demand answer. A look-up without a project filter walks up to 900 projects on the
            server, so it is longer than `read`.
        pool: For a free connection of the pool, counted from the last one that was given to anybody: a long queue that
            moves is no error. None waits for ever.

    Raises:
        TypeError: A value is no number.
        ValueError: A value is not a positive number.
    """

    connect: float = 30.0
    read: float = 60.0
    answer: float = 300.0
    error: float = 5.0
    lookup: float = 120.0
    pool: float | None = 300.0

    def __post_init__(self) -> None:
        """Refuse times that would fail every request, or none."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is None and name == "pool":
                continue
            _positive("Timeouts", name, value)


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """When to try again. Both the number of attempts and the whole time are bounded.

    The wait before attempt n + 1 is random between 0 and `min(cap, base * 2**(n - 1))` (full jitter), or the server's
    `Retry-After` where that is longer.

    Args:
        attempts: How often in all, the first included. 1 never retries.
        base: Seconds, the first upper bound of a wait.
        cap: Seconds, the last upper bound of a wait.
        total: Seconds after which no new attempt is started.
        retry_after_cap: The longest `Retry-After` that is obeyed, in seconds; a longer one ends the attempts.

    Raises:
        TypeError: A value is no number.
        ValueError: A value is out of range.
    """

    attempts: int = 5
    base: float = 0.5
    cap: float = 30.0
    total: float = 300.0
    retry_after_cap: float = 120.0

    def __post_init__(self) -> None:
        """Refuse a policy that could never make a request."""
        _whole("Retry", "attempts", self.attempts)
        if self.attempts < 1:
            raise ValueError("Retry.attempts counts the first attempt too, so it is at least 1")
        for name in ("base", "cap", "total", "retry_after_cap"):
            _not_negative("Retry", name, getattr(self, name))


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much at once.

    Args:
        connections: Requests that may have a connection at the same time, for each host role of a pool. Those of
            streams, which never end, come on top.
        requests_per_second: Client-side limit of requests to the API, None for none. The server answers 429 above a
            rate that is not published.
        burst: Requests that may go at once when the client was quiet, if `requests_per_second` is set.
        max_response: Bytes of a whole answer (not of a download or stream) above which it is refused.

    Raises:
        TypeError: A value is no number.
        ValueError: A value is out of range.
    """

    connections: int = 100
    requests_per_second: float | None = None
    burst: int = 10
    max_response: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse limits that would let nothing through."""
        for name in ("connections", "burst", "max_response"):
            _whole("Limits", name, getattr(self, name))
            if getattr(self, name) < 1:
                raise ValueError(f"Limits.{name} must be at least 1")
        if self.requests_per_second is not None:
            _positive("Limits", "requests_per_second", self.requests_per_second)


def _origin(name: str, value: str) -> tuple[str, str, bool]:
    """Return scheme and host of a URL, and whether there is something behind them."""
    if not isinstance(value, str):
        raise TypeError(f"Hosts.{name} must be text such as https://host, not {type(value).__name__}")
    try:
        parts = urlsplit(value)
        # Reading the port checks it.
        well_formed = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed or not value.isprintable() or " " in value:
        raise ValueError(f"Hosts.{name} must be a URL such as https://host or http://host:8080")
    return parts.scheme, parts.netloc.lower(), bool(parts.path.strip("/") or parts.query or parts.fragment)


def _whole(owner: str, name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}.{name} must be a whole number, not {value!r}")


def _number(owner: str, name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{owner}.{name} must be a number, not {value!r}")


def _positive(owner: str, name: str, value: float) -> None:
    _number(owner, name, value)
    if not value > 0 or math.isinf(value):
        raise ValueError(f"{owner}.{name} must be a number of seconds above 0, not {value!r}")


def _not_negative(owner: str, name: str, value: float) -> None:
    _number(owner, name, value)
    if not value >= 0 or math.isinf(value):
        raise ValueError(f"{owner}.{name} must be a number of seconds, 0 or more, not {value!r}")
