"""Webhooks in the Standard Webhooks form: signing, checking, and when to try again. Pure but for the clock's default.

A message is POSTed with three headers: `webhook-id`, the same at every attempt; `webhook-timestamp`, Unix seconds of
it; `webhook-signature`, one or several of `v1,` and the Base64 HMAC-SHA256 of `id.timestamp.body` over the very
bytes that are sent. Several signatures are how a secret is changed with nothing lost.
"""

import base64
import binascii
import hashlib
import hmac
import secrets as secrets_module
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from wme_async import _clock
from wme_async._transport.retry import next_delay
from wme_async.errors import DecodeError, IntegrityError
from wme_async.models.decoding import decode_json

__all__ = ["DELAYS", "WebhookMessage", "new_secret", "retry_delay", "sign_webhook", "verify_webhook"]

DELAYS: tuple[float, ...] = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Seconds between attempts, as the Standard Webhooks specification proposes: about three days in all."""

_PREFIX = "whsec_"


class WebhookMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a webhook.

    Args:
        type: `batch.completed`, `batch.failed` or `batch.cancelled`.
        timestamp: When it happened: RFC 3339, UTC.
        data: The batch, as its status shows it.
    """

    type: str
    timestamp: str
    data: dict[str, Any]


_MESSAGE: Final = msgspec.json.Decoder(WebhookMessage)


def new_secret() -> str:
    """Make a secret of 32 random bytes, written as `whsec_` and Base64."""
    return _PREFIX + base64.b64encode(secrets_module.token_bytes(32)).decode()


def _key(secret: str) -> bytes:
    if not isinstance(secret, str):
        raise TypeError(f"a webhook secret must be text, not {type(secret).__name__}")
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
        body: The bytes that are sent.
        secrets: One or more; each gives one signature.

    Raises:
        ValueError: A secret is malformed, there is none, or the id has a full stop.
    """
    if "." in message_id:
        raise ValueError("a webhook id has no full stop: it would make the signed text ambiguous")
    signed = f"{message_id}.{timestamp}.".encode() + body
    made = [base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode() for secret in secrets]
    if not made:
        raise ValueError("a webhook cannot be signed without a secret")
    return " ".join(f"v1,{signature}" for signature in made)


def verify_webhook(
    body: bytes,
    headers: Mapping[str, str],
    secrets: str | Iterable[str],
    *,
    tolerance: float = 300.0,
    now: float | None = None,
) -> WebhookMessage:
    """Check a webhook that was received, and return what it says. Then drop those whose `webhook-id` was seen before.

    One valid signature is enough. Of a header with several, the first 16 are compared, so that nobody can make this
    take long; senders put one signature for each of their valid secrets there, rarely more than two.

    Args:
        body: The bytes of the request, as they came: parsed and written again they are other bytes.
        headers: Its headers, in any case.
        secrets: The secret, or all that are valid at the moment.
        tolerance: Seconds that the timestamp may differ from this machine's clock; older ones may be recorded and
            played again.
        now: Unix seconds; this machine's clock where not given.

    Raises:
        IntegrityError: It is not from who knows the secret, was changed, or is too old.
        TypeError: An argument of another type, such as a body that was parsed.
        ValueError: A secret is malformed, or there is none.
    """
    if not isinstance(body, bytes | bytearray | memoryview):
        raise TypeError(f"body is the bytes of the request as they came, not {type(body).__name__}")
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers must be a mapping of name and value, not {type(headers).__name__}")
    if not isinstance(secrets, Iterable):
        raise TypeError(f"secrets must be a webhook secret or a list of them, not {type(secrets).__name__}")
    keys = [_key(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    if not keys:
        raise ValueError("secrets is empty, so no webhook could be verified")
    found = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, stamp, signatures = (found[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
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
    expected = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys]
    good = False
    for signature in signatures.split()[:16]:
        version, _, value = signature.partition(",")
        for each in expected:
            # Every pair is compared, in constant time: the answer takes as long whichever matches.
            good |= version == "v1" and hmac.compare_digest(value.encode("utf-8", "replace"), each)
    if not good:
        raise IntegrityError("no signature of the message is valid")
    try:
        return decode_json(body, _MESSAGE)
    except DecodeError as error:
        raise IntegrityError(f"the message is signed but not one of ours: {error.message}") from error


def retry_delay(
    attempts: int, *, delays: tuple[float, ...] = DELAYS, random: Callable[[], float], retry_after: float | None = None
) -> float | None:
    """Say how long to wait after a failed attempt.

    Args:
        attempts: How many there were, at least 1.
        delays: Seconds after the first, the second, ...
        random: Gives numbers from 0.0 up to 1.0.
        retry_after: What the receiver asked for, in seconds; obeyed up to a day.

    Returns:
        Seconds, up to a fifth more than planned so that many do not return together; None to give up.
    """
    if attempts > len(delays):
        return None
    planned = delays[attempts - 1] * (1.0 + 0.2 * random())
    return next_delay(planned, retry_after, cap=86_400.0)
