"""The account: signing in and out, what it may do, and what it has used."""

import asyncio
import logging

import msgspec

from wme_async._client.quota import FREE_PLAN, POOLS, Allowances, Cost, Quota, month_of, quota_of
from wme_async._query.query import known_names
from wme_async._tasks import in_thread
from wme_async._transport import Request, TokenManager, Transport
from wme_async._transport.error_responses import error_in_place_of, is_error_document
from wme_async.errors import DecodeError, QuotaExceeded, WMEError
from wme_async.models import User
from wme_async.models.decoding import decode_json

__all__ = ["Account"]

logger = logging.getLogger("wme_async.auth")

# Look-ups come in thousands, and a file is written for each save: they are saved a hundred at a time.
_SAVE_EVERY = 100

# Seconds to wait for another process that writes: a request waits with us.
_LOCK_PATIENCE = 5.0

_USER = msgspec.json.Decoder(User)

_FREE_GROUP = "group_1"

# A fiftieth of a limit may be overshot by requests that come together.
_OVERSHOT = 50

# An allowance that is used up stays so until the month ends, unless the plan is changed: so it is asked about again,
# but not with every request.
_BELIEVED = 60.0


class Account:
    """`wme.auth`: sign-in, sign-out and quotas of one account.

    Passwords are set and accounts are made on the WME dashboard, not here.

    Args:
        transport: Sends the requests.
        allowances: Monthly limits to go by; where not given, those of the free plan for free accounts, none for others,
            once `quota()` or `check()` has found out which it is.
        warn_at: Share of an allowance, 0 to 1, above which a warning is logged once a month and pool.
    """

    def __init__(self, transport: Transport, *, allowances: Allowances | None = None, warn_at: float = 0.8) -> None:
        self._transport = transport
        self._allowances = allowances
        self._warn_at = warn_at
        self._limits = allowances
        self._counts: dict[str, int] = {}
        self._unsaved: dict[str, int] = {}
        self._warned: set[str] = set()
        self._gone: dict[str, tuple[float, str, QuotaExceeded]] = {}
        self._month = (-1, "")
        self._lock = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._answers: dict[str, int] = {}
        file = transport.token_file
        self._file = file
        transport.on_metered = self._count
        transport.quota_check = self._exhausted
        transport.quota_gate = self._known_exhausted

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
            Unauthorized: The user name or the password is wrong. The server says so too while its identity provider is
                in trouble.
            TransportError: The auth host could not be reached.
        """
        await self._keeper.login()

    async def revoke(self) -> None:
        """Sign out: revoke the refresh token and forget all tokens, in the token file too.

        Every process that shares the token file is signed out. An access token that came straight from a sign-in may be
        accepted by the server until it expires, even so.

        Raises:
            WMEError: The auth host could not be asked; the tokens are forgotten here all the same.
        """
        await self._keeper.revoke()

    async def user(self) -> User:
        """Return the account's groups, its counts of this month, and what it may request.

        The limits in it are constants of the service, not this account's own caps.

        Raises:
            DecodeError: The answer is not what the API gives.
            WMEError: It could not be asked.
        """
        response = await self._transport.request(Request(method="POST", role="auth", path="/v1/get-user", token=True))
        # It would be an account without groups, which has no allowances to keep to.
        if is_error_document(response.body, known_names(User)):
            raise DecodeError(
                f"get-user answered with {error_in_place_of('an account', response.body)}", record=response.body
            )
        try:
            return decode_json(response.body, _USER)
        except DecodeError as error:
            raise DecodeError(
                f"get-user did not answer with an account: {error.message}", record=response.body
            ) from error

    async def quota(self) -> Quota:
        """Return what was used of each monthly allowance and what is left.

        Counts are the higher of what the server says and what was counted here, by all processes that share the token
        file.

        Raises:
            WMEError: The auth host could not be asked.
        """
        user = await self.user()
        limits = self._plan_of(user)
        self._limits = limits
        return quota_of(month=self._this_month(), served=_served(user), counted=await self._counted(), limits=limits)

    async def check(self, *costs: Cost) -> Quota:
        """Make sure that a job fits into what is left of the month, before it starts.

        Example:
            >>> await wme.auth.check(wme.articles.cost(titles), wme.snapshots.cost("enwiki_namespace_0"))

        Args:
            *costs: What its parts will be charged: `cost()` of look-ups and archives says it.

        Returns:
            The quota, as it was before the job.

        Raises:
            TypeError: What is given is no cost; nothing was asked.
            QuotaExceeded: It does not fit; nothing was spent. Other processes may spend meanwhile what fits now.
            WMEError: The auth host could not be asked.
        """
        for cost in costs:
            if not isinstance(cost, Cost):
                raise TypeError(f"check takes what cost() returns, one by one, not {cost!r}")
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
        """Write the counts that are not written yet."""
        async with self._lock:
            await self._save()

    def _plan_of(self, user: User) -> Allowances:
        return self._allowances or (FREE_PLAN if _FREE_GROUP in user.groups else Allowances())

    async def _counted(self) -> dict[str, int]:
        stored = {} if self._file is None else await in_thread(self._file.usage)
        # What is not written yet comes on top of what all processes have.
        ours = {key: max(n, stored.get(key, 0) + self._unsaved.get(key, 0)) for key, n in self._counts.items()}
        return {**stored, **ours}

    async def _count(self, pool: str) -> None:
        key = f"{pool}/{self._this_month()}"
        self._counts[key] = self._counts.get(key, 0) + 1
        self._unsaved[key] = self._unsaved.get(key, 0) + 1
        if pool != "ondemand" or self._unsaved[key] % _SAVE_EVERY == 0:
            async with self._lock:
                await self._save()
        self._warn(pool, key)

    def _this_month(self) -> str:
        # A month begins with an hour: to say so a thousand times a second needs no calendar.
        now = self._transport.server_now("api")
        hour = int(now // 3600)
        if hour != self._month[0]:
            self._month = (hour, month_of(now))
        return self._month[1]

    def _warn(self, pool: str, key: str) -> None:
        limit = self._limits.of(pool) if self._limits is not None else None
        if limit is None or self._counts.get(key, 0) < self._warn_at * limit or key in self._warned:
            return
        self._warned.add(key)
        logger.warning("%d of %d %s requests of this month are used", self._counts[key], limit, pool)

    async def _save(self) -> None:
        file = self._file
        if file is None or not self._unsaved:
            return
        unsaved, self._unsaved = self._unsaved, {}
        months: dict[str, dict[str, int]] = {}
        for key, n in unsaved.items():
            pool, month = key.split("/")
            months.setdefault(month, {})[pool] = n
        written: dict[str, int] = {}

        def write(month: str, counts: dict[str, int]) -> None:
            written.update(file.count(month, counts))
            for pool in counts:
                del unsaved[f"{pool}/{month}"]

        try:
            async with file.locked(asyncio.sleep, patience=_LOCK_PATIENCE):
                for month, counts in sorted(months.items()):
                    await in_thread(write, month, counts)
        except OSError as error:
            logger.warning("could not write the usage to %s: %s", file.path, error.strerror)
        finally:
            # Nothing is lost where the writing failed or was cancelled, and what was counted meanwhile is on top.
            for key, n in unsaved.items():
                self._unsaved[key] = self._unsaved.get(key, 0) + n
            for key, n in written.items():
                self._counts[key] = n + self._unsaved.get(key, 0)

    def _known_exhausted(self, pool: str) -> QuotaExceeded | None:
        """Say what was found out a moment ago, so that an exhausted allowance is not asked for again and again."""
        known = self._gone.get(pool)
        if known is None:
            return None
        at, month, error = known
        if self._transport.monotonic() - at > _BELIEVED or month != self._this_month():
            del self._gone[pool]
            return None
        # An error carries the traceback of where it was raised, so each has its own.
        return QuotaExceeded(error.message, status=429, used=error.used, limit=error.limit, pool=pool)

    async def _exhausted(self, pool: str) -> QuotaExceeded | None:
        """Say whether a 429 means that the month's allowance is gone; the answer itself does not tell."""
        answers = self._answers.get(pool, 0)
        async with self._asking:
            # Of many requests that were refused together, one asks.
            known = self._known_exhausted(pool)
            if known is not None or self._answers.get(pool, 0) != answers:
                return known
            try:
                error = await self._ask_exhausted(pool)
            except WMEError:
                # Nobody who waited for this answer gets a better one.
                self._answers[pool] = answers + 1
                raise
            self._answers[pool] = answers + 1
            if error is not None:
                self._gone[pool] = (self._transport.monotonic(), self._this_month(), error)
            return error

    async def _ask_exhausted(self, pool: str) -> QuotaExceeded | None:
        user = await self.user()
        used = _served(user).get(pool, 0)
        stated: int = getattr(user, f"{pool}_limit", 0)
        limits = self._plan_of(user)
        limit = limits.of(pool)
        if limit is None or (self._allowances is None and used < limit):
            # The stated limit is a constant of the service, and the account's own cap may be another. A count stops at
            # the cap, or a little behind it where requests come together: one that is well beyond shows that it is.
            if used > stated + stated // _OVERSHOT:
                return None
            limit = stated
        if not limit or used < limit:
            return None
        return QuotaExceeded(
            f"the month's allowance of {pool} requests is used up ({used} of {limit}); it is restored on the first of "
            "the month, 00:00 UTC",
            status=429,
            used=used,
            limit=limit,
            pool=pool,
        )


def _served(user: User) -> dict[str, int]:
    return {pool: getattr(user, f"{pool}_requests_count") for pool in POOLS}
