"""Positions and leases in Redis (extra `redis`: `pip install 'wme-async[redis]'`)."""

import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from wme_async._arguments import check_numbers
from wme_async.errors import DataError, DecodeError
from wme_async.models.decoding import decoding
from wme_async.offsets._database import DatabaseStore, needed_extra, server_name
from wme_async.offsets.lease_table import MEMBERSHIP
from wme_async.offsets.protocol import Position, check_lease, check_name, check_positions

__all__ = ["RedisOffsets"]

logger: logging.Logger = logging.getLogger("wme_async.offsets")

R = TypeVar("R")

# Keys: the positions, by partition; the owner (o), token (t) and end (u) of each part's last lease; the members with
# the end of their membership. Time is that of the server, in milliseconds. A script runs whole, and alone.
_PRELUDE: Final = f"""
local MEMBERSHIP = {MEMBERSHIP}
local positions, leases, members, owner = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function lease(part)
    local fields = redis.call('HMGET', leases, 'o' .. part, 't' .. part, 'u' .. part)
    return fields[1], fields[2], tonumber(fields[3] or 0)
end
local function extend(part, ttl) redis.call('HSET', leases, 'u' .. part, now + ttl) end
local function join(ttl)
    redis.call('ZREMRANGEBYSCORE', members, '-inf', now)
    redis.call('ZADD', members, now + ttl * MEMBERSHIP, owner)
end
"""
# Redis compares strings by the language of its machine; shares are dealt out by bytes.
_TAKE: Final = """
local function before(a, b)
    for i = 1, math.min(#a, #b) do
        if a:byte(i) ~= b:byte(i) then return a:byte(i) < b:byte(i) end
    end
    return #a < #b
end
local parts, ttl = tonumber(ARGV[2]), tonumber(ARGV[3])
join(ttl)
local rank, count = 0, 0
for _, member in ipairs(redis.call('ZRANGE', members, 0, -1)) do
    count = count + 1
    if before(member, owner) then rank = rank + 1 end
end
local share, free, taken = math.ceil((parts - rank) / count), {}, {}
for part = 0, parts - 1 do
    local holder, _, ending = lease(part)
    if not holder or ending <= now then free[#free + 1] = part elseif holder == owner then share = share - 1 end
end
for i = 1, math.min(share, #free) do
    local part = free[i]
    taken[#taken + 1] = part
    taken[#taken + 1] = redis.call('HINCRBY', leases, 't' .. part, 1)
    redis.call('HSET', leases, 'o' .. part, owner)
    extend(part, ttl)
end
return taken
"""
_RENEW: Final = """
local ttl, held = tonumber(ARGV[2]), {}
join(ttl)
local fields = redis.call('HGETALL', leases)
for i = 1, #fields, 2 do
    if fields[i]:sub(1, 1) == 'o' and fields[i + 1] == owner then
        local part = fields[i]:sub(2)
        local _, token, ending = lease(part)
        if ending > now then
            extend(part, ttl)
            held[#held + 1] = tonumber(part)
            held[#held + 1] = tonumber(token)
        end
    end
end
return held
"""
_MEMBERS: Final = "return redis.call('ZRANGEBYSCORE', members, '(' .. now, '+inf')"
_SAVE_HELD: Final = """
local holder, token = lease(ARGV[2])
if holder ~= owner or token ~= ARGV[3] then return 0 end
for i = 4, #ARGV, 2 do redis.call('HSET', positions, ARGV[i], ARGV[i + 1]) end
return 1
"""
_GIVE: Final = """
local leaving, given = ARGV[2] == 'leave', {}
if leaving then redis.call('ZREM', members, owner) end
for i = 3, #ARGV do given[ARGV[i]] = true end
local fields = redis.call('HGETALL', leases)
for i = 1, #fields, 2 do
    local part = fields[i]:match('^o(.+)$')
    if part and fields[i + 1] == owner and (leaving or given[part]) then
        redis.call('HDEL', leases, 'o' .. part, 'u' .. part)
    end
end
"""


class RedisOffsets(DatabaseStore[Any]):
    """Keeps positions and leases in Redis, under three keys for each name that a cluster keeps together.

    Any number of hosts may use it. Only the clock of the server counts. It has no claims: with it, readers of one name
    share its parts with `share="group"`.

    Positions are as durable as the server is set up to be. If it loses the last second (`appendonly yes`) or the last
    minutes (`save`), events come again. If it keeps nothing over a restart, or may evict keys that do not expire
    (`maxmemory-policy allkeys-*`), events can be lost; then a warning is logged.

    Args:
        server: A URL such as `redis://:password@host:6379/0`; or a client of `redis.asyncio`, which stays yours.
        timeout: Seconds for one call. While the server cannot be reached, as in a restart, calls are repeated for so
            long.

    Raises:
        TypeError: The server is neither a URL nor a client.
        ValueError: It is the URL of something else, or the time is not above 0.
        ImportError: The extra `redis` is not installed.
    """

    def __init__(self, server: Any, *, timeout: float = 10.0) -> None:
        check_numbers(optional=False, above=0, unit="seconds", timeout=timeout)
        with needed_extra("RedisOffsets", "redis", "redis"):
            import redis.asyncio  # noqa: PLC0415  # needed by this store alone
        self._redis: Any = redis
        self._checked = False
        if isinstance(server, str):
            if not server.startswith(("redis://", "rediss://", "unix://")):
                raise ValueError("the server must be a URL such as redis://:password@host:6379/0")
            self._url = server
            super().__init__(server_name("Redis", urlsplit(server)), timeout, None)
        elif isinstance(server, type) or not hasattr(server, "eval"):
            raise TypeError(f"the server must be a URL or a client of redis.asyncio, not {server!r}")
        else:
            super().__init__("Redis", timeout, server)

    def __repr__(self) -> str:
        return f"<RedisOffsets {self._server}>"

    async def load(self, name: str) -> Mapping[int, Position]:
        """Return the last saved position of each partition.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
            DataError: Something else is stored there.
        """
        check_name(name)
        key = _keys(name)[0]
        fields = await self._call(lambda client: client.hgetall(key))
        try:
            with decoding():
                return {int(number): msgspec.json.decode(value, type=Position) for number, value in fields.items()}
        except DecodeError as error:
            raise DataError(
                f"{key} of {self._server} does not hold positions ({error}); delete it to start anew"
            ) from error

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        """Save these positions, leaving other partitions as they are.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
        """
        check_positions(name, positions)
        if positions:
            fields = {partition: msgspec.json.encode(position) for partition, position in positions.items()}
            await self._call(lambda client: client.hset(_keys(name)[0], mapping=fields))

    async def take(self, name: str, owner: str, parts: int, ttl: float) -> Mapping[int, int]:
        """Join a group, and take free parts up to this member's share.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
        """
        check_lease(name, owner, ttl, parts)
        return _pairs(await self._run(_TAKE, name, owner, parts, _milliseconds(ttl)))

    async def renew(self, name: str, owner: str, ttl: float) -> Mapping[int, int]:
        """Extend the leases that a member still has.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
        """
        check_lease(name, owner, ttl)
        return _pairs(await self._run(_RENEW, name, owner, _milliseconds(ttl)))

    async def members(self, name: str) -> Sequence[str]:
        """Return the live members of a group, in order.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
        """
        check_name(name)
        owners = await self._run(_MEMBERS, name, "")
        return sorted(owner.decode() if isinstance(owner, bytes) else owner for owner in owners)

    async def save_held(self, name: str, part: int, owner: str, token: int, positions: Mapping[int, Position]) -> bool:
        """Save positions, if this is the last lease of the part, in one script.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
        """
        check_positions(name, positions)
        check_lease(name, owner)
        pairs = ((partition, msgspec.json.encode(position)) for partition, position in positions.items())
        return bool(await self._run(_SAVE_HELD, name, owner, part, token, *chain(*pairs)))

    async def give(self, name: str, owner: str, parts: Collection[int] | None = None) -> None:
        """Give parts back; with None all of them, and leave the group.

        Raises:
            StreamError: The server cannot be reached, or does not permit it.
        """
        check_lease(name, owner)
        await self._run(_GIVE, name, owner, "leave" if parts is None else "stay", *(parts or ()))

    async def _run(self, script: str, name: str, *arguments: object) -> Any:
        keys = _keys(name)
        return await self._call(lambda client: client.eval(_PRELUDE + script, len(keys), *keys, *arguments))

    async def _call(self, work: Callable[[Any], Awaitable[R]]) -> R:
        async with self:
            if not self._checked:
                await super()._call(self._check)
                self._checked = True
            return await super()._call(work)

    async def _check(self, client: Any) -> None:
        """Log a warning if the server may forget positions, as far as it tells."""
        settings: dict[str, Any] = {}
        for name in ("maxmemory-policy", "appendonly", "save"):
            with contextlib.suppress(self._redis.exceptions.ResponseError):  # managed servers do not tell
                settings |= await client.config_get(name)
        policy = settings.get("maxmemory-policy", "")
        if policy.startswith("allkeys-"):
            logger.warning(
                "%s may evict positions (maxmemory-policy %s), and streams would then skip events without notice: use "
                "noeviction or a volatile policy, or another server",
                *(self._server, policy),
            )
        if settings.get("appendonly") == "no" and settings.get("save") == "":
            logger.warning(
                "%s keeps nothing over a restart, and streams would then skip events without notice: set appendonly "
                "yes",
                self._server,
            )

    async def _open(self) -> Any:
        # Calls have a time limit already; with one for sockets, redis-py loses cancellations.
        return self._redis.asyncio.from_url(
            self._url,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=self._redis.asyncio.retry.Retry(self._redis.backoff.NoBackoff(), 0),
        )

    async def _close(self, client: Any) -> None:
        await client.aclose()

    def _is_passing(self, error: Exception) -> bool:
        errors = self._redis.exceptions
        if isinstance(error, errors.AuthenticationError | errors.AuthorizationError):
            return False
        passing = (OSError, errors.ConnectionError, errors.TimeoutError, errors.ReadOnlyError, errors.ClusterDownError)
        return isinstance(error, (*passing, errors.TryAgainError))

    def _problem(self, error: Exception) -> str | None:
        errors = self._redis.exceptions
        if isinstance(error, OSError | errors.ConnectionError | errors.TimeoutError):
            return f"does not answer ({str(error) or type(error).__name__}): see whether it runs and can be reached"
        return f"reports an error: {error}" if isinstance(error, errors.RedisError) else None


def _keys(name: str) -> tuple[str, str, str]:
    """Return the keys of a name. What is in braces decides where a cluster keeps them."""
    return (f"{{wme:{name}}}:positions", f"{{wme:{name}}}:leases", f"{{wme:{name}}}:members")


def _milliseconds(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def _pairs(values: Sequence[int]) -> dict[int, int]:
    return dict(zip(values[::2], values[1::2], strict=True))
