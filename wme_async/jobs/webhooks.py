"""Webhooks in the Standard Webhooks form: signed, verified, and delivered from the database until they are received.

A message is POSTed with three headers: `webhook-id`, the same at every attempt; `webhook-timestamp`, the Unix seconds
of the attempt; `webhook-signature`, one or several of `v1,` and the Base64 HMAC-SHA256 of `id.timestamp.body` over the
very bytes of the body. With several signatures a secret can be replaced without losing a message.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import itertools
import json
import logging
import secrets as secrets_module
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from wme_async import _clock
from wme_async._arguments import check_numbers, check_type
from wme_async._tasks import is_cancelling
from wme_async._transport import Request, Transport
from wme_async._transport.error_responses import bare_url
from wme_async._transport.retry import next_delay
from wme_async.errors import DecodeError, IntegrityError, StatusError, WMEError
from wme_async.jobs.changes import retry_pause
from wme_async.jobs.database import DatabaseError
from wme_async.jobs.model import Batch, MessageRow
from wme_async.jobs.store import Store
from wme_async.jobs.url_policy import AddressBlocked, origin, redacted_url
from wme_async.models.decoding import decode_json

logger: logging.Logger = logging.getLogger("wme_async.jobs")

DELAYS: tuple[float, ...] = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Seconds between attempts, as the Standard Webhooks specification recommends: about three days in all."""

_PREFIX: Final = "whsec_"
_PARALLEL: Final = 8
_TIMEOUT: Final = 20.0
# The longest wait in seconds before an attempt that a kill interrupted is repeated.
_MAX_LEASE: Final = 60.0
_MAX_ERROR: Final = 500
_SETTING: Final = "webhook_secrets"


class WebhookMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a webhook.

    Args:
        type: `batch.completed`, `batch.failed` or `batch.cancelled`.
        timestamp: Time of the event: RFC 3339, UTC.
        data: The batch, as its status shows it.
    """

    type: str
    timestamp: str
    data: dict[str, Any]


_MESSAGE: Final = msgspec.json.Decoder(WebhookMessage)


def new_secret() -> str:
    """Return a new secret of 32 random bytes, written as `whsec_` and Base64."""
    return _PREFIX + base64.b64encode(secrets_module.token_bytes(32)).decode()


def _key(secret: str) -> bytes:
    check_type("a webhook secret", secret, str, "text", secret=True)
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a webhook secret is written whsec_ and Base64") from None
    # The specification's range. A short key can be guessed from one message.
    if not 24 <= len(key) <= 64:
        raise ValueError(f"a webhook secret has 24 to 64 bytes, not {len(key)}")
    return key


def sign_webhook(message_id: str, timestamp: int, body: bytes, *, secrets: Iterable[str]) -> str:
    """Return the `webhook-signature` header for a body.

    Args:
        message_id: The `webhook-id`.
        timestamp: The `webhook-timestamp`, Unix seconds.
        body: The bytes of the body.
        secrets: One or more; each gives one signature.

    Raises:
        ValueError: A secret is malformed or missing, or the id contains a full stop.
    """
    if "." in message_id:
        raise ValueError("a webhook id must not contain a full stop: it would make the signed text ambiguous")
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode() for secret in secrets]
    if not signatures:
        raise ValueError("a webhook cannot be signed without a secret")
    return " ".join(f"v1,{signature}" for signature in signatures)


def verify_webhook(
    body: bytes,
    headers: Mapping[str, str],
    secrets: str | Iterable[str],
    *,
    tolerance: float = 300.0,
    now: float | None = None,
) -> WebhookMessage:
    """Verify a webhook that was received, and return its content. Then drop those whose `webhook-id` was seen before.

    One valid signature is enough. Of a header with several, the first 16 are compared, so that nobody can
    make this slow; senders send one signature for each of their valid secrets, rarely more than two.

    Args:
        body: The bytes of the request as received: parsed and written again they are other bytes.
        headers: Its headers, in any case.
        secrets: The secret, or all valid ones.
        tolerance: Seconds that the timestamp may differ from this machine's clock; older ones may be recorded and
            replayed.
        now: Unix seconds; by default this machine's clock.

    Raises:
        IntegrityError: It is not signed with the secret, was changed, or is too old.
        TypeError: An argument of another type, such as a body that was parsed.
        ValueError: A secret is malformed or missing.
    """
    check_type("body", body, bytes | bytearray | memoryview, "the bytes of the request as received", secret=True)
    check_type("headers", headers, Mapping, "a mapping of name and value", secret=True)
    check_type("secrets", secrets, Iterable, "a webhook secret or a list of them", secret=True)
    keys = [_key(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    if not keys:
        raise ValueError("secrets is empty, so no webhook could be verified")
    lowered = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, stamp, signatures = (lowered[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    except KeyError as error:
        raise IntegrityError(f"the header {error.args[0]} is missing") from None
    if not stamp.isascii() or not stamp.isdigit() or len(stamp) > 15:
        raise IntegrityError("webhook-timestamp is not a number of seconds")
    age = (_clock.now() if now is None else now) - int(stamp)
    if abs(age) > tolerance:
        raise IntegrityError(
            f"the message is {abs(age):.0f} s {'old' if age > 0 else 'ahead'}; {tolerance:g} s are allowed"
        )
    signed = f"{message_id}.{stamp}.".encode() + body
    digests = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys]
    versioned = (signature.partition(",") for signature in signatures.split()[:16])
    # Every pair is compared, in constant time: the duration does not show which one matches.
    comparisons = [
        version == "v1" and hmac.compare_digest(value.encode("utf-8", "replace"), digest)
        for version, _, value in versioned
        for digest in digests
    ]
    if not any(comparisons):
        raise IntegrityError("no signature of the message is valid")
    try:
        return decode_json(body, _MESSAGE)
    except DecodeError as error:
        raise IntegrityError(f"the message is signed but not one of ours: {error.message}") from error


def retry_delay(
    attempts: int, *, delays: tuple[float, ...] = DELAYS, random: Callable[[], float], retry_after: float | None = None
) -> float | None:
    """Return how long to wait after a failed attempt.

    Args:
        attempts: Attempts so far, at least 1.
        delays: Seconds after the first, the second, ...
        random: Gives numbers from 0.0 up to 1.0.
        retry_after: Seconds of the receiver's `Retry-After`; obeyed up to a day.

    Returns:
        Seconds, up to a fifth more than planned so that many do not come back together; None to give up.
    """
    if attempts > len(delays):
        return None
    delay = delays[attempts - 1] * (1.0 + 0.2 * random())
    return next_delay(delay, retry_after, cap=86_400.0)


class _Secret(msgspec.Struct):
    secret: str
    until: float | None = None


def check_webhooks(secrets: Collection[str] | None, delays: Sequence[float]) -> None:
    """Raise if webhooks cannot be signed with the secrets, or if the delays between attempts are not seconds.

    Raises:
        TypeError: An argument of another type. Secrets are not shown.
        ValueError: A secret is malformed or missing, or a delay is negative.
    """
    if secrets is not None:
        check_type("webhook_secrets", secrets, list | tuple | set | frozenset, "a list of secrets", secret=True)
        sign_webhook("check", 0, b"", secrets=secrets)
    check_type("webhook_delays", delays, list | tuple, "a list of seconds")
    for delay in delays:
        items: dict[str, Any] = {"an item of webhook_delays": delay}
        check_numbers(optional=False, minimum=0, unit="seconds", **items)


class WebhookDelivery:
    """Sends the messages of the outbox.

    Args:
        store: The database with the outbox.
        transport: Sends requests of role `public`, behind a guard.
        secrets: The secrets to sign with, the newest first; None: created here and stored in the database.
        delays: Seconds between attempts.
    """

    def __init__(
        self, *, store: Store, transport: Transport, secrets: Sequence[str] | None, delays: tuple[float, ...]
    ) -> None:
        self._store = store
        self._transport = transport
        self._fixed = secrets
        self._secrets: list[_Secret] = []
        self._delays = delays
        self._new_message = asyncio.Event()

    async def prepare(self) -> None:
        """Read the secrets from the database, or create the first one."""
        if self._fixed is not None:
            return
        setting = await self._store.setting(_SETTING)
        if setting is not None:
            self._secrets = msgspec.json.decode(setting, type=list[_Secret])
        else:
            await self._save([_Secret(new_secret())])

    async def _save(self, secrets: list[_Secret]) -> None:
        await self._store.set_setting(_SETTING, msgspec.json.encode(secrets))
        self._secrets = secrets

    def secrets(self) -> tuple[str, ...]:
        """Return the secrets that are valid now, the newest first."""
        if self._fixed is not None:
            return tuple(self._fixed)
        now = self._transport.now()
        return tuple(entry.secret for entry in self._secrets if entry.until is None or entry.until > now)

    async def rotate(self, keep: float) -> str:
        """Create a new secret; the old ones sign for some seconds more.

        Raises:
            RuntimeError: The secrets are those of the constructor.
        """
        if self._fixed is not None:
            raise RuntimeError("webhook_secrets were given to BatchManager: change them there")
        now = self._transport.now()
        newest = _Secret(new_secret())
        older = [_Secret(entry.secret, min(entry.until or now + keep, now + keep)) for entry in self._secrets]
        await self._save([newest, *(entry for entry in older if entry.until is None or entry.until > now)])
        return newest.secret

    def wake(self) -> None:
        """Wake the delivery: there is a new message."""
        self._new_message.set()

    async def run(self) -> None:
        """Send due messages until cancelled. An error delays them, and never ends jobs."""
        failures = 0
        while True:
            self._new_message.clear()
            try:
                upcoming = await self._send_due()
            except Exception as error:
                if isinstance(error, DatabaseError):
                    logger.error("the outbox cannot be read (%s); trying again", error)  # noqa: TRY400  # no bug of ours
                else:
                    logger.exception("webhooks could not be sent; trying again")
                failures += 1
                await asyncio.sleep(retry_pause(self._transport, failures))
                continue
            failures = 0
            # The clock may be set, which is noticed once a minute.
            wait = 60.0 if upcoming is None else min(60.0, upcoming - self._transport.now())
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._new_message.wait()

    async def _send_due(self) -> float | None:
        """Send every message that is due.

        Returns:
            When the next one is due, UTC epoch seconds; None without further messages.
        """
        now = self._transport.now()
        await self._store.limit_waits(now)
        messages = await self._store.messages(due=now)
        slots = asyncio.Semaphore(_PARALLEL)
        async with asyncio.TaskGroup() as group:
            for message in messages:
                group.create_task(self._attempt(message, slots))
        return await self._store.next_message()

    async def _attempt(self, message: MessageRow, slots: asyncio.Semaphore) -> None:
        """Make one attempt, and count it in any case: before it begins, and with its result."""
        replace = msgspec.structs.replace
        async with slots:
            if message.attempts > len(self._delays):
                reason = message.error or "the process ended during the last attempt"
                await self._record(replace(message, state="given up", next_at=None, error=reason))
                return
            attempts = message.attempts + 1
            # A message that kills the process must not be sent for ever. After a kill, the next attempt waits as after
            # a failed one, but not for hours: most kills are unrelated.
            lease = min(self._delays[min(attempts, len(self._delays)) - 1] if self._delays else 0.0, _MAX_LEASE)
            next_at = self._transport.now() + lease
            try:
                if not await self._record(replace(message, attempts=attempts, next_at=next_at, delay=lease)):
                    return
                error, permanent, retry_after = await self._try_to_send(message)
            except asyncio.CancelledError:
                # The manager closes. Nobody knows whether the message arrived, so the next manager sends it again.
                with contextlib.suppress(DatabaseError):
                    await self._store.attempted(message)
                raise
        delay = None
        if error is not None and not permanent:
            random = self._transport.random.random
            delay = retry_delay(attempts, delays=self._delays, random=random, retry_after=retry_after)
        state = "delivered" if error is None else "given up" if delay is None else "waiting"
        due = None if delay is None else self._transport.now() + delay
        message = replace(message, attempts=attempts, error=error, next_at=due, delay=delay or 0.0, state=state)
        if error is not None:
            logger.info("webhook %s, attempt %d: %s; %s", message.message_id, attempts, error, message.state)
        await self._record(message)

    async def _record(self, message: MessageRow) -> bool:
        """Store the state of a message, however long the disk fails: otherwise it would be sent again.

        Returns:
            False if the message was deleted in the meantime.
        """
        for attempt in itertools.count(1):
            try:
                return await self._store.attempted(message)
            except DatabaseError as error:
                logger.error("webhook %s cannot be stored (%s); trying again", message.message_id, error)  # noqa: TRY400  # no bug of ours
                await asyncio.sleep(retry_pause(self._transport, attempt))
        raise AssertionError("unreachable")

    async def _try_to_send(self, message: MessageRow) -> tuple[str | None, bool, float | None]:
        """Make one attempt; any error is a failed attempt of this message."""
        try:
            return await self._send(message)
        except asyncio.CancelledError:
            if is_cancelling():
                raise
            return "the request was cancelled from within", False, None
        except Exception as error:
            logger.exception("webhook %s failed with an unexpected error", message.message_id)
            return f"{type(error).__name__}: {error}"[:_MAX_ERROR], False, None

    async def _send(self, message: MessageRow) -> tuple[str | None, bool, float | None]:
        """Make one attempt.

        Returns:
            The error if it failed, whether another attempt is useless, and the seconds of `Retry-After`.
        """
        stamp = int(self._transport.now())
        request = Request(
            method="POST",
            role="public",
            path=message.url,
            headers={
                "Content-Type": "application/json",
                "webhook-id": message.message_id,
                "webhook-timestamp": str(stamp),
                "webhook-signature": sign_webhook(message.message_id, stamp, message.body, secrets=self.secrets()),
            },
            body=message.body,
            idempotent=False,
            secret_path=True,
            accepts="any",
        )
        try:
            async with (
                asyncio.timeout(_TIMEOUT),
                self._transport.open(request, retry=False, read_timeout=_TIMEOUT) as response,
            ):
                status = response.status
        except TimeoutError:
            return f"no answer within {_TIMEOUT:g} s", False, None
        except AddressBlocked as error:
            return str(error), True, None
        except StatusError as error:
            # By 410 a receiver unsubscribes.
            return f"HTTP {error.status}", error.status == 410, error.retry_after
        except (WMEError, ValueError) as error:
            # The path of many receivers is a secret.
            return str(error).replace(bare_url(message.url), origin(message.url)), False, None
        # Redirects are not followed: the body would go to a receiver that nobody named.
        return None if 200 <= status < 300 else f"HTTP {status}", False, None


def compose(batch: Batch, url: str, now: float) -> MessageRow:
    """Return the message that reports how a batch ended.

    Its URLs show no credentials, because the receiver need not be the one that submitted them.

    Args:
        batch: The batch as its status shows it.
        url: The receiver.
        now: UTC epoch seconds.
    """
    jobs = tuple(msgspec.structs.replace(job, url=redacted_url(job.url)) for job in batch.jobs)
    message = WebhookMessage(
        type=f"batch.{batch.status}",
        timestamp=datetime.fromtimestamp(now, UTC).isoformat().replace("+00:00", "Z"),
        data=msgspec.to_builtins(msgspec.structs.replace(batch, jobs=jobs)),
    )
    # The bytes are stored, not the batch: every attempt sends the same ones.
    body = json.dumps(msgspec.to_builtins(message), ensure_ascii=False, separators=(",", ":")).encode()
    message_id = f"msg_{secrets_module.token_hex(16)}"
    return MessageRow(message_id=message_id, batch_id=batch.batch_id, url=url, body=body, next_at=now)
