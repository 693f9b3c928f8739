"""Settings of a client: frozen, with defaults, and checked on creation."""

from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from wme_async._arguments import check_numbers, check_type

__all__ = ["Hosts", "Limits", "Retry", "Timeouts"]


class Hosts(msgspec.Struct, frozen=True, kw_only=True):
    """The addresses of the services: scheme and host of each, without a path.

    Args:
        auth: Sign-in.
        api: Metadata, archives and look-ups.
        realtime: The firehose.

    Raises:
        TypeError: A value is not text.
        ValueError: A value is not `http(s)://host[:port]`.
    """

    auth: str = "https://auth.enterprise.wikimedia.com"
    api: str = "https://api.enterprise.wikimedia.com"
    realtime: str = "https://realtime.enterprise.wikimedia.com"

    def __post_init__(self) -> None:
        """Check the addresses, since credentials are sent there."""
        for name in self.__struct_fields__:
            msgspec.structs.force_setattr(self, name, _origin(name, getattr(self, name)))

    @classmethod
    def of(cls, value: "Hosts | Mapping[str, str] | None") -> "Hosts":
        """Return `Hosts` from a mapping with any of the keys `auth`, `api`, `realtime`.

        Raises:
            TypeError: It is neither `Hosts` nor a mapping.
            ValueError: A key is unknown, or a URL is not one of a host.
        """
        if isinstance(value, Hosts):
            return value
        check_type(
            "hosts", value, Mapping | None, 'Hosts(api=...) or a mapping such as {"api": "https://host"}', secret=True
        )
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
        error: For the body of an error, which only adds a message to its status; the bytes that arrive in this time are
            used.
        lookup: For the head of an on-demand answer. A look-up without a project filter walks up to 900 projects on the
            server, so it is longer than `read`.
        pool: For a free connection of the pool, since the last one was released, so that a long queue that moves
            is not an error. None waits for ever.

    Raises:
        TypeError: A value is not a number.
        ValueError: A value is not above 0, or not finite.
    """

    connect: float = 30.0
    read: float = 60.0
    answer: float = 300.0
    error: float = 5.0
    lookup: float = 120.0
    pool: float | None = 300.0

    def __post_init__(self) -> None:
        """Check that each time is positive: others would fail every request, or none."""
        times = msgspec.structs.asdict(self)
        check_numbers(owner="Timeouts", above=0, unit="seconds", pool=times.pop("pool"))
        check_numbers(owner="Timeouts", above=0, unit="seconds", optional=False, **times)


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
        TypeError: A value is not a number.
        ValueError: A value is out of range.
    """

    attempts: int = 5
    base: float = 0.5
    cap: float = 30.0
    total: float = 300.0
    retry_after_cap: float = 120.0

    def __post_init__(self) -> None:
        """Check that the policy allows a first attempt, and no negative times."""
        times = msgspec.structs.asdict(self)
        check_numbers(owner="Retry", whole=True, optional=False, minimum=1, attempts=times.pop("attempts"))
        check_numbers(owner="Retry", unit="seconds", optional=False, minimum=0, **times)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much at once.

    Args:
        connections: Requests that may have a connection at the same time, for each host role of a pool. Those of
            streams, which never end, come on top.
        requests_per_second: Client-side limit of requests to the API, None for none. The server answers 429 above a
            rate that is not published.
        burst: Requests that may go at once when the client was quiet, if `requests_per_second` is set.
        max_response: The most bytes of a whole response, other than a download or a stream.

    Raises:
        TypeError: A value is not a number.
        ValueError: A value is out of range.
    """

    connections: int = 100
    requests_per_second: float | None = None
    burst: int = 10
    max_response: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        """Check that the limits let something through."""
        counts = msgspec.structs.asdict(self)
        check_numbers(owner="Limits", above=0, requests_per_second=counts.pop("requests_per_second"))
        check_numbers(owner="Limits", whole=True, optional=False, minimum=1, **counts)


def _origin(name: str, value: str) -> str:
    """Return a URL that is a scheme and a host, with the host in lower case."""
    check_type(f"Hosts.{name}", value, str, "text such as https://host", secret=True)
    try:
        parts = urlsplit(value)
        # Reading the port checks it.
        well_formed = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed or not value.isprintable() or " " in value:
        raise ValueError(f"Hosts.{name} must be a URL such as https://host or http://host:8080")
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"Hosts.{name} must be a scheme and a host without path, query or user")
    return f"{parts.scheme}://{parts.netloc.lower()}"
