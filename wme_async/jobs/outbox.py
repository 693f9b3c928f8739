"""Delivering webhooks: from the database, until the receiver has taken them or there is no hope."""

import asyncio
import contextlib
import json
import logging
import secrets as secrets_module
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import msgspec

from wme_async._transport import Request, Transport
from wme_async._transport.error_responses import bare_url
from wme_async.errors import StatusError, WMEError
from wme_async.jobs.errors import DatabaseError
from wme_async.jobs.model import Batch
from wme_async.jobs.rows import BatchRow, MessageRow
from wme_async.jobs.store import Store
from wme_async.jobs.url_policy import AddressRefused
from wme_async.jobs.urls import origin, redacted_url
from wme_async.jobs.views import plain
from wme_async.jobs.webhooks import WebhookMessage, new_secret, retry_delay, sign_webhook

__all__ = ["Delivery", "check_delivery"]

logger: logging.Logger = logging.getLogger("wme_async.jobs")

_AT_ONCE = 8
_TIMEOUT = 20.0
# How long to wait before the database is asked again that could not be read or written.
_DISK_PAUSE = 2.0
_ERROR_PAUSE = 10.0
# Seconds at most after which an attempt that a kill cut off is made again.
_LONGEST_LEASE = 60.0
_MAX_ERROR = 500
_SETTING = "webhook_secrets"


class _Secret(msgspec.Struct):
    secret: str
    until: float | None = None


def check_delivery(secrets: object, delays: object) -> None:
    """Refuse what webhooks cannot be signed with, or times between attempts that are none.

    Raises:
        TypeError: An argument of another type. Secrets are not shown.
        ValueError: A secret is malformed, there is none, or a delay is negative.
    """
    if secrets is not None:
        if isinstance(secrets, str | bytes) or not isinstance(secrets, Collection):
            what = "one string" if isinstance(secrets, str) else type(secrets).__name__
            raise TypeError(f"webhook_secrets must be a list of secrets, not {what}")
        sign_webhook("check", 0, b"", secrets=secrets)
    if isinstance(delays, str | bytes) or not isinstance(delays, Sequence):
        raise TypeError(f"webhook_delays must be a list of seconds, not {delays!r}")
    for delay in delays:
        if isinstance(delay, bool) or not isinstance(delay, int | float):
            raise TypeError(f"webhook_delays must be a list of seconds, and {delay!r} is not")
        if not delay >= 0:
            raise ValueError(f"webhook_delays must be a list of seconds, and {delay!r} is below 0")


class Delivery:
    """Sends what is in the outbox.

    Args:
        store: Where the outbox is.
        transport: Sends requests of role `public`, behind a guard.
        secrets: What to sign with, the newest first; None: made here and kept in the database.
        delays: Seconds between attempts.
    """

    def __init__(
        self, *, store: Store, transport: Transport, secrets: Sequence[str] | None, delays: tuple[float, ...]
    ) -> None:
        self._store = store
        self._transport = transport
        self._given = secrets
        self._kept: list[_Secret] = []
        self._delays = delays
        self._news = asyncio.Event()
        if secrets is not None:
            # A malformed secret is found now, not when the first batch ends.
            sign_webhook("check", 0, b"", secrets=secrets)

    async def prepare(self) -> None:
        """Read the secrets, or make the first."""
        if self._given is not None:
            return
        stored = await self._store.setting(_SETTING)
        if stored is not None:
            self._kept = msgspec.json.decode(stored, type=list[_Secret])
        else:
            await self._keep([_Secret(new_secret())])

    async def _keep(self, kept: list[_Secret]) -> None:
        await self._store.set_setting(_SETTING, msgspec.json.encode(kept))
        self._kept = kept

    async def current(self) -> tuple[str, ...]:
        """Return the secrets that are valid now, the newest first."""
        if self._given is not None:
            return tuple(self._given)
        now = self._transport.now()
        return tuple(each.secret for each in self._kept if each.until is None or each.until > now)

    async def rotate(self, keep: float) -> str:
        """Make a new secret, and let the old ones sign for some seconds more.

        Raises:
            RuntimeError: The secrets are not kept here.
        """
        if self._given is not None:
            raise RuntimeError("webhook_secrets were given to BatchManager: change them there")
        now = self._transport.now()
        fresh = _Secret(new_secret())
        older = [_Secret(each.secret, min(each.until or now + keep, now + keep)) for each in self._kept]
        await self._keep([fresh, *(each for each in older if each.until is None or each.until > now)])
        return fresh.secret

    def compose(self, row: BatchRow, batch: Batch, now: float) -> MessageRow:
        """Return the message that tells how a batch ended."""
        assert row.options.webhook_url is not None
        message = WebhookMessage(
            type=f"batch.{row.status}",
            timestamp=datetime.fromtimestamp(now, UTC).isoformat().replace("+00:00", "Z"),
            data=plain(_without_credentials(batch)),
        )
        # The bytes are kept, not the batch: every attempt sends the same ones.
        body = json.dumps(msgspec.to_builtins(message), ensure_ascii=False, separators=(",", ":")).encode()
        return MessageRow(
            message_id=f"msg_{secrets_module.token_hex(16)}",
            batch_id=row.batch_id,
            url=row.options.webhook_url,
            body=body,
            next_at=now,
        )

    def wake(self) -> None:
        """Say that there is something new to send."""
        self._news.set()

    async def run(self) -> None:
        """Send due messages, for ever. Jobs do without webhooks for a while, and never end because of them."""
        while True:
            self._news.clear()
            try:
                upcoming = await self._send_due()
            except DatabaseError as error:
                logger.error("the outbox could not be read (%s); it is tried again", error)  # noqa: TRY400  # no bug of ours
                await asyncio.sleep(_DISK_PAUSE)
                continue
            except Exception:
                logger.exception("webhooks could not be sent; it is tried again")
                await asyncio.sleep(_ERROR_PAUSE)
                continue
            now = self._transport.now()
            if upcoming is not None and upcoming <= now:
                continue
            # The clock may be set; once a minute is soon enough to notice.
            wait = 60.0 if upcoming is None else min(60.0, upcoming - now)
            try:
                async with asyncio.timeout(max(0.0, wait)):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _send_due(self) -> float | None:
        """Send every message that is due.

        Returns:
            When the next one is due, UTC epoch seconds; None if there is none.
        """
        now = self._transport.now()
        await self._store.limit_waits(now)
        messages = await self._store.messages(due=now)
        slots = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for message in messages:
                group.create_task(self._attempt(message, slots))
        return await self._store.next_message()

    async def _attempt(self, message: MessageRow, slots: asyncio.Semaphore) -> None:
        """Make one attempt, and count it whatever comes of it: before it begins, and with its result."""
        async with slots:
            if message.attempts > len(self._delays):
                reason = message.error or "the process ended during the last attempt"
                await self._record(msgspec.structs.replace(message, state="given up", next_at=None, error=reason))
                return
            attempts = message.attempts + 1
            # A message that ends the process must not be sent for ever. After a kill, the next attempt waits as after
            # a failed one, but not for hours: most kills have nothing to do with it.
            pause = min(self._delays[min(attempts, len(self._delays)) - 1] if self._delays else 0.0, _LONGEST_LEASE)
            next_at = self._transport.now() + pause
            begun = msgspec.structs.replace(message, attempts=attempts, next_at=next_at, delay=pause)
            try:
                if not await self._record(begun):
                    return
                error, hopeless, asked = await self._try_to_send(message)
            except asyncio.CancelledError:
                # The manager is being closed: whether it arrived is unknown, and the next manager sends it again.
                with contextlib.suppress(DatabaseError):
                    await self._store.attempted(message)
                raise
        delay = None
        if error is not None and not hopeless:
            delay = retry_delay(attempts, delays=self._delays, random=self._transport.random.random, retry_after=asked)
        state = "delivered" if error is None else "given up" if delay is None else "waiting"
        if error is not None:
            logger.info("webhook %s, attempt %d: %s; %s", message.message_id, attempts, error, state)
        due = None if delay is None else self._transport.now() + delay
        await self._record(
            msgspec.structs.replace(
                message, state=state, attempts=attempts, next_at=due, delay=delay or 0.0, error=error
            )
        )

    async def _record(self, message: MessageRow) -> bool:
        """Store how a message stands, however long the disk refuses: otherwise it would be sent again.

        Returns:
            False if the message was deleted in the meantime.
        """
        while True:
            try:
                return await self._store.attempted(message)
            except DatabaseError as error:
                logger.error("how %s went could not be stored (%s); it is tried again", message.message_id, error)  # noqa: TRY400  # no bug of ours
                await asyncio.sleep(_DISK_PAUSE)

    async def _try_to_send(self, message: MessageRow) -> tuple[str | None, bool, float | None]:
        """Make one attempt; any error is a failed attempt of this message."""
        try:
            return await self._send(message)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return "the request was cancelled from within", False, None
        except Exception as error:
            logger.exception("webhook %s failed with an unexpected error", message.message_id)
            return f"{type(error).__name__}: {error}"[:_MAX_ERROR], False, None

    async def _send(self, message: MessageRow) -> tuple[str | None, bool, float | None]:
        """Make one attempt.

        Returns:
            What went wrong, whether there is no hope, and the seconds that the receiver asked us to wait.
        """
        stamp = int(self._transport.now())
        signature = sign_webhook(message.message_id, stamp, message.body, secrets=await self.current())
        request = Request(
            method="POST",
            role="public",
            path=message.url,
            headers={
                "Content-Type": "application/json",
                "webhook-id": message.message_id,
                "webhook-timestamp": str(stamp),
                "webhook-signature": signature,
            },
            body=message.body,
            idempotent=False,
            secret_path=True,
            accepts="any",
        )
        try:
            async with (
                asyncio.timeout(_TIMEOUT),
                self._transport.open(request, retry=False, read_timeout=_TIMEOUT) as answer,
            ):
                status = answer.status
        except TimeoutError:
            return f"no answer within {_TIMEOUT:g} s", False, None
        except AddressRefused as error:
            return str(error), True, None
        except StatusError as error:
            # 410 is how a receiver says that it wants no more of them.
            return f"HTTP {error.status}", error.status == 410, error.retry_after
        except (WMEError, ValueError) as error:
            # For many receivers the path is the secret.
            return str(error).replace(bare_url(message.url), origin(message.url)), False, None
        if 200 <= status < 300:
            return None, False, None
        # Redirects are not followed: the body would go to where nobody was asked to send it.
        return f"HTTP {status}", False, None


def _without_credentials(batch: Batch) -> Batch:
    """Return a batch as a receiver sees it, who need not be the one that submitted its URLs."""
    jobs = tuple(msgspec.structs.replace(job, url=redacted_url(job.url)) for job in batch.jobs)
    return msgspec.structs.replace(batch, jobs=jobs)
