"""The account: signing in and out, its plan and its quotas."""

import asyncio
import logging
from collections import Counter

import msgspec

from wme_async._arguments import check_type
from wme_async._client.quota import FREE_PLAN, POOLS, Allowances, Cost, Quota, month_of, quota_of
from wme_async._query.query import known_names
from wme_async._tasks import in_thread
from wme_async._telemetry import log_fields
from wme_async._transport import Request, TokenManager, Transport
from wme_async._transport.error_responses import error_in_place_of, is_error_document
from wme_async.errors import DecodeError, QuotaExceeded, WMEError
from wme_async.models import User
from wme_async.models.decoding import decode_json

logger: logging.Logger = logging.getLogger("wme_async.auth")

# Each save writes a file, so the counts of look-ups, which come in thousands, are saved once in a hundred.
_SAVE_EVERY = 100

# Seconds to wait for another process that writes; the request waits too.
_LOCK_PATIENCE = 5.0

_USER = msgspec.json.Decoder(User)

_FREE_GROUP = "group_1"

# Concurrent requests may exceed a limit by one fiftieth.
_OVERSHOT = 50

# Seconds between two checks of an exhausted allowance: it stays exhausted until the month ends or the plan changes.
_EXHAUSTED_SECONDS = 60.0


class Account:
    """`wme.auth`: sign-in, sign-out and quotas of one account.

    The WME dashboard creates accounts and sets passwords.

    Args:
        transport: Sends the requests.
        allowances: Monthly limits; by default those of the free plan for free accounts and none for others, once
            `quota()` or `check()` has read the plan.
        warn_at: Share of an allowance, 0 to 1, from which a warning is logged once for each month and pool.
    """

    def __init__(self, transport: Transport, *, allowances: Allowances | None = None, warn_at: float = 0.8) -> None:
        self._transport = transport
        self._allowances = allowances
        self._warn_at = warn_at
        self._limits = allowances
        self._counts: Counter[str] = Counter()
        self._unsaved: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._exhausted_pools: dict[str, tuple[float, str, QuotaExceeded]] = {}
        self._month = (-1, "")
        self._save_lock = asyncio.Lock()
        self._request_lock = asyncio.Lock()
        self._responses: dict[str, int] = {}
        self._file = transport.token_file
        transport.on_metered = self._count
        transport.quota_check = self._check_exhaustion
        transport.quota_gate = self._recent_exhaustion

    def __repr__(self) -> str:
        return f"<Account {self._keeper!r}>"

    @property
    def _keeper(self) -> TokenManager:
        keeper = self._transport.tokens
        assert keeper is not None
        return keeper

    async def login(self) -> None:
        """Sign in now rather than with the first request.

        Raises:
            Unauthorized: The user name or the password is wrong. The server also responds so while its identity
                provider fails.
            TransportError: The auth host could not be reached.
        """
        await self._keeper.login()

    async def token(self) -> str:
        """Return a valid access token, for other programs that send requests; refresh it or sign in if there is none.

        Raises:
            Unauthorized: The server rejects the credentials, or there is no password and the stored sign-in has ended.
            WMEError: The request to the auth host failed.
        """
        return await self._keeper.token()

    async def revoke(self) -> None:
        """Sign out: revoke the refresh token and delete all tokens, in the token file too.

        Every process that shares the token file is signed out. The server may still accept an access token that came
        straight from a sign-in until it expires.

        Raises:
            WMEError: The request failed; the local tokens are deleted all the same.
        """
        await self._keeper.revoke()

    async def user(self) -> User:
        """Return the account's groups, its counts of this month and its limits.

        These limits are constants of the service, not this account's own caps.

        Raises:
            DecodeError: The response is malformed.
            WMEError: The request failed.
        """
        response = await self._transport.request(Request(method="POST", role="auth", path="/v1/get-user", token=True))
        # It would decode to an account without groups, and so without allowances.
        if is_error_document(response.body, known_names(User)):
            raise DecodeError(
                f"get-user responded with {error_in_place_of('an account', response.body)}", record=response.body
            )
        try:
            return decode_json(response.body, _USER)
        except DecodeError as error:
            raise DecodeError(
                f"get-user did not respond with an account: {error.message}", record=response.body
            ) from error

    async def quota(self) -> Quota:
        """Return the used and the remaining requests of each monthly allowance.

        Counts are the higher of the server's and the local ones, which include all processes that share the token
        file.

        Raises:
            WMEError: The request failed.
        """
        user = await self.user()
        self._limits = limits = self._plan_of(user)
        return quota_of(month=self._this_month(), served=_served(user), counted=await self._counted(), limits=limits)

    async def check(self, *costs: Cost) -> Quota:
        """Raise if a job does not fit into the remaining allowances of the month.

        Example:
            >>> await wme.auth.check(wme.articles.cost(titles), wme.snapshots.cost("enwiki_namespace_0"))

        Args:
            *costs: The costs of its parts, from `cost()` of look-ups and archives.

        Returns:
            The quota before the job.

        Raises:
            TypeError: An argument is not a cost; nothing was sent.
            QuotaExceeded: It does not fit; nothing was spent. Other processes may still spend the remaining requests.
            WMEError: The request failed.
        """
        for cost in costs:
            check_type("an argument of check", cost, Cost, "the result of one cost(), as in check(*costs)")
        quota = await self.quota()
        for pool in POOLS:
            needed = sum(cost.requests for cost in costs if cost.pool == pool)
            if needed and not quota.allows(Cost(pool=pool, requests=needed)):
                allowance = quota.of(pool)
                raise QuotaExceeded(
                    f"the job needs {needed} {pool} requests, and {allowance.left} of this month's {allowance.limit} "
                    "are left; nothing was sent",
                    used=allowance.used,
                    limit=allowance.limit,
                    pool=pool,
                )
        return quota

    async def save(self) -> None:
        """Write the counts that are not saved yet."""
        async with self._save_lock:
            await self._save()

    def _plan_of(self, user: User) -> Allowances:
        return self._allowances or (FREE_PLAN if _FREE_GROUP in user.groups else Allowances())

    async def _counted(self) -> dict[str, int]:
        saved_counts = {} if self._file is None else await in_thread(self._file.usage)
        # Counts that are not saved yet come on top of those of all processes.
        return {
            **saved_counts,
            **{key: max(n, saved_counts.get(key, 0) + self._unsaved[key]) for key, n in self._counts.items()},
        }

    async def _count(self, pool: str) -> None:
        key = f"{pool}/{self._this_month()}"
        self._counts[key] += 1
        self._unsaved[key] += 1
        if pool != "ondemand" or self._unsaved[key] % _SAVE_EVERY == 0:
            async with self._save_lock:
                await self._save()
        self._warn(pool, key)

    def _this_month(self) -> str:
        # A month begins at a full hour, so the calendar is read once an hour rather than thousands of times a second.
        now = self._transport.server_now("api")
        hour = int(now // 3600)
        if hour != self._month[0]:
            self._month = (hour, month_of(now))
        return self._month[1]

    def _warn(self, pool: str, key: str) -> None:
        limit = self._limits.of(pool) if self._limits is not None else None
        if limit is not None and self._counts[key] >= self._warn_at * limit and key not in self._warned:
            self._warned.add(key)
            logger.warning(
                "%d of %d %s requests of this month are used",
                self._counts[key],
                limit,
                pool,
                extra=log_fields(pool=pool, used=self._counts[key], limit=limit),
            )

    async def _save(self) -> None:
        file = self._file
        if file is None or not self._unsaved:
            return
        unsaved, self._unsaved = self._unsaved, Counter()
        months: dict[str, dict[str, int]] = {}
        for key, n in unsaved.items():
            pool, month = key.split("/")
            months.setdefault(month, {})[pool] = n
        totals: dict[str, int] = {}

        def write(month: str, counts: dict[str, int]) -> None:
            totals.update(file.count(month, counts))
            for pool in counts:
                del unsaved[f"{pool}/{month}"]

        try:
            async with file.locked(asyncio.sleep, patience=_LOCK_PATIENCE):
                for month, counts in sorted(months.items()):
                    await in_thread(write, month, counts)
        except OSError as error:
            logger.warning("could not write the usage to %s: %s", file.path, error.strerror)
        finally:
            # Counts that were not written stay unsaved, with those of the meantime on top.
            self._unsaved.update(unsaved)
            for key, n in totals.items():
                self._counts[key] = n + self._unsaved[key]

    def _recent_exhaustion(self, pool: str) -> QuotaExceeded | None:
        """Return the error of a recent check, so that not every request repeats the check of an exhausted allowance."""
        recent = self._exhausted_pools.get(pool)
        if recent is None:
            return None
        at, month, error = recent
        if self._transport.monotonic() - at > _EXHAUSTED_SECONDS or month != self._this_month():
            del self._exhausted_pools[pool]
            return None
        # A raised error carries its traceback, so each request gets its own error.
        return QuotaExceeded(error.message, status=429, used=error.used, limit=error.limit, pool=pool)

    async def _check_exhaustion(self, pool: str) -> QuotaExceeded | None:
        """Return the error of an exhausted allowance after a 429, which may also be a rate limit."""
        responses = self._responses.get(pool, 0)
        async with self._request_lock:
            # Of many requests that were rejected together, one checks.
            recent = self._recent_exhaustion(pool)
            if recent is not None or self._responses.get(pool, 0) != responses:
                return recent
            try:
                error = await self._request_exhaustion(pool)
            except WMEError:
                # The requests that waited for this check would get no better result.
                self._responses[pool] = responses + 1
                raise
            self._responses[pool] = responses + 1
            if error is not None:
                self._exhausted_pools[pool] = (self._transport.monotonic(), self._this_month(), error)
            return error

    async def _request_exhaustion(self, pool: str) -> QuotaExceeded | None:
        user = await self.user()
        count = _served(user).get(pool, 0)
        stated: int = getattr(user, f"{pool}_limit", 0)
        limit = self._plan_of(user).of(pool)
        if limit is None or (self._allowances is None and count < limit):
            # The stated limit is a constant of the service, and the account's own cap may differ. A count stops at the
            # cap, or a little above it with concurrent requests: a count far above the limit shows another cap.
            if count > stated + stated // _OVERSHOT:
                return None
            limit = stated
        if not limit or count < limit:
            return None
        return QuotaExceeded(
            f"the month's allowance of {pool} requests is used up ({count} of {limit}); it is restored on the first of "
            "the month, 00:00 UTC",
            status=429,
            used=count,
            limit=limit,
            pool=pool,
        )


def _served(user: User) -> dict[str, int]:
    return {pool: getattr(user, f"{pool}_requests_count") for pool in POOLS}
