"""JSON and times with the very bytes of the service's encoder."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

import msgspec

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.json.Encoder().encode
_SHORT_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)


def dumps(obj: Any) -> bytes:
    r"""Encode to JSON with the very bytes of the service's encoder.

    Compact; `<`, `>`, `&`, U+2028 and U+2029 as `\u003c` and so on; all other text raw UTF-8, U+0085 too; whole floats
    without a fraction (`34723`); exponents only below 1e-6 and from 1e21 on (`1e+21`). Keys keep the order of the
    mapping.

    Args:
        obj: A JSON value: dict, list, str, int, float, bool, None.

    Returns:
        The document, without a line feed at its end.

    Raises:
        TypeError: A value has no JSON form.
    """
    data = _encode(_plain_numbers(obj) if _has_odd_number(obj) else obj)
    if b"<" in data or b">" in data:
        data = data.replace(b"<", b"\\u003c").replace(b">", b"\\u003e")
    if b"&" in data:
        data = data.replace(b"&", b"\\u0026")
    if b"\xe2\x80" in data:
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    if b"\\b" in data or b"\\f" in data:
        data = _SHORT_ESCAPE.sub(_long_escape, data)
    return data


def _long_escape(match: re.Match[bytes]) -> bytes:
    return {b"b": b"\\u0008", b"f": b"\\u000c"}.get(match[1], match[0])


def _has_odd_number(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_odd_number(item) for item in value.values() if not isinstance(item, (str, int)))
    if isinstance(value, (list, tuple)):
        return any(_has_odd_number(item) for item in value if not isinstance(item, (str, int)))
    return isinstance(value, float) and (value.is_integer() or not 1e-4 <= abs(value) < 1e15)


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, float):
        return msgspec.Raw(_go_float(value))
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_numbers(item) for item in value]
    return value


def _go_float(value: float) -> bytes:
    if value == 0:
        return b"-0" if str(value).startswith("-") else b"0"
    if 1e-6 <= abs(value) < 1e21:
        # The shortest digits, moved by the exponent: formatting the float itself would add digits of noise.
        return format(Decimal(repr(value)), "f").removesuffix(".0").encode()
    mantissa, _, exponent = repr(value).partition("e")
    return f"{mantissa.removesuffix('.0')}e{exponent[0]}{exponent[1:].lstrip('0')}".encode()


def timestamp(seconds: float | datetime, digits: int = 6) -> str:
    """Write a time as the service does: RFC 3339, UTC with `Z`, trailing zeros of the fraction trimmed.

    Args:
        seconds: Seconds since 1970 (UTC), or an aware datetime.
        digits: At most so many fractional digits, 0 to 9: events have six, metadata up to nine, articles none.

    Returns:
        Such as `2025-04-11T04:59:23.77047Z`.
    """
    if isinstance(seconds, float) and digits > 6:
        return stamp(round(seconds * 1_000_000_000), digits)
    return stamp(nanoseconds_of(seconds), digits)


def nanoseconds_of(seconds: float | datetime) -> int:
    """Nanoseconds since 1970, in whole microseconds, the precision of a float of this size."""
    if isinstance(seconds, datetime):
        return (seconds - _EPOCH) // timedelta(microseconds=1) * 1000
    return round(seconds * 1_000_000) * 1000


def stamp(nanoseconds: int, digits: int) -> str:
    """Write nanoseconds since 1970 with at most so many fractional digits."""
    seconds, nanoseconds = divmod(nanoseconds, 1_000_000_000)
    fraction = f"{nanoseconds:09d}"[:digits].rstrip("0")
    base = _second(seconds)
    return f"{base}.{fraction}Z" if fraction else f"{base}Z"


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
