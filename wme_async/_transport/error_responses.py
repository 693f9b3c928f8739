"""From a status, headers and a body to an exception."""

import contextlib
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final
from urllib.parse import urljoin, urlsplit, urlunsplit

import msgspec

from wme_async._transport.retry import parse_retry_after
from wme_async.errors import DecodeError, StatusError, TransportError, error_for_status
from wme_async.models.decoding import decode_json, decoding

_EXCERPT = 2000
_ANY_JSON = msgspec.json.Decoder()

_FIRST_KEY = re.compile(rb'[\s\[]*\{\s*"([^"\\]*)"')
# Keys of the error documents of gateways. Every record of the services has a key besides these.
_ERROR_KEYS = frozenset({"code", "detail", "error", "errors", "fault", "message", "status"})


REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
"""Statuses of redirects, if there is a `Location`."""

_WITHOUT_BODY: Final = frozenset({204, 205})


def is_accepted(status: int, headers: Mapping[str, str], accepts: str) -> bool:
    """Return whether a request accepts a status; all others are errors.

    A redirect, or a 204 without a body, would otherwise pass for an empty 200, which means that there are no records.

    Args:
        status: HTTP status.
        headers: Case-insensitive.
        accepts: `body`: 200-299 but for 204 and 205. `empty`: all of 200-299. `redirect`: like `body`, and redirects
            with a `Location`. `any`: all below 400, for a caller with rules of its own.
    """
    if accepts == "any":
        return status < 400
    if accepts == "redirect" and status in REDIRECTS:
        return bool(headers.get("Location"))
    return 200 <= status < 300 and (accepts == "empty" or status not in _WITHOUT_BODY)


def bare_url(url: str) -> str:
    """Return a URL without query, fragment and user, which may carry signatures and passwords."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return urlunsplit((parts.scheme, host + port, parts.path, "", ""))


def redirect_target(url: str, location: str) -> str:
    """Return the absolute URL that a redirect leads to.

    Args:
        url: The URL of the request.
        location: The `Location` of the response.

    Raises:
        TransportError: It is not a URL of HTTP, or it leads from `https` to `http`, where the network in between could
            read and change the content.
    """
    try:
        parts = urlsplit(location)
        target = location
        if not (parts.scheme and parts.netloc and location.isprintable()):
            target = urljoin(url, location)
            parts = urlsplit(target)
        well_formed = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed:
        problem = "to a Location that is not an http(s) URL"
    elif parts.scheme == "http" and url[:6].lower() == "https:":
        problem = f"from https to {bare_url(target)}, where the network in between could change the content"
    else:
        return target
    error = TransportError(f"{bare_url(url)} redirects {problem}; it is not followed", url=bare_url(url))
    error.permanent = True
    raise error


def server_message(body: bytes) -> str:
    """Return the message of an error body in one line: `message` of JSON, XML of S3, the title of a page, or text."""
    text = body[: 4 * _EXCERPT].decode("utf-8", "replace").strip()
    if not text:
        return ""
    if text.startswith("{"):
        with contextlib.suppress(DecodeError), decoding():
            document = _ANY_JSON.decode(body)
            message = document.get("message") if isinstance(document, dict) else None
            return " ".join(str(message).split())[:_EXCERPT] if message else ""
        return ""
    if "<Error>" in text:
        return ": ".join(filter(None, (_inside(text, "Code"), _inside(text, "Message"))))
    if text[:1] == "<":
        title = _inside(text, "title") or _inside(text, "h1")
        return f"an HTML page, not a response of the API{f': {title}' if title else ''}"
    return " ".join(text.split())[:200]


def is_error_document(body: bytes, known: AbstractSet[str]) -> bool:
    """Return whether a response with a status of success holds an error, as proxies and gateways send it.

    All fields of a record may be missing, so an error would decode into an empty record. An object is an error if none
    of its keys is a field of the records and one is a usual key of errors.

    Args:
        body: JSON: an object, or a list of objects.
        known: The fields that an object of this response may have; of flat ones (`size__value`) that of their object.

    Returns:
        False also for a body that is not JSON, which fails when it is decoded.
    """
    first = _FIRST_KEY.match(body)
    # The first key of nearly every record is a known field, so that the body need not be decoded twice.
    if first is None or first[1].decode(errors="replace").partition("__")[0] in known:
        return False
    try:
        document = decode_json(body, _ANY_JSON)
    except DecodeError:
        return False
    return any(
        isinstance(row, dict) and _has_error_keys(row.keys(), known)
        for row in (document if isinstance(document, list) else [document])
    )


def _has_error_keys(keys: AbstractSet[str], known: AbstractSet[str]) -> bool:
    return not any(key.partition("__")[0] in known for key in keys) and any(key.lower() in _ERROR_KEYS for key in keys)


def error_in_place_of(expected: str, body: bytes) -> str:
    """Return the message for an `is_error_document`, with its beginning in one line."""
    return f"an error in place of {expected}: {' '.join(body[:_EXCERPT].decode('utf-8', 'replace').split())[:200]}"


def _inside(text: str, tag: str) -> str:
    import html  # noqa: PLC0415  # a large table, for the pages of proxies alone

    match = re.search(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.IGNORECASE | re.DOTALL)
    return " ".join(html.unescape(match[1]).split())[:500] if match else ""


def error_from_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    url: str,
    now: float,
    product: str | None = None,
    role: str = "api",
) -> StatusError:
    """Return the error for a response that is not `is_accepted`.

    Args:
        status: HTTP status.
        headers: Case-insensitive.
        body: The body, or its beginning.
        url: The URL of the request. The error has it without its query, which may carry a signature.
        now: UTC epoch seconds, to read a `Retry-After` that is a date.
        product: The name of the product, for the advice on 403.
        role: The host of the request, for the advice on 401: no sign-in helps with hosts that never get the account.
    """
    url = bare_url(url)
    reason = server_message(body) if status >= 400 else _unexpected(status, headers, url)
    advice = _advice(status, product, role)
    return error_for_status(status)(
        f"HTTP {status} from {url}{f': {reason}' if reason else ''}{f' ({advice})' if advice else ''}",
        status=status,
        url=url,
        request_id=headers.get("X-Request-Id") or headers.get("x-amz-request-id"),
        retry_after=parse_retry_after(headers.get("Retry-After"), now=now),
        # Error documents of an object store may echo parts of the signature, and those of the auth host what was sent
        # to it, so only their message is kept.
        body=reason if role == "auth" or body.lstrip()[:1] == b"<" else body[:_EXCERPT].decode("utf-8", "replace"),
    )


def _unexpected(status: int, headers: Mapping[str, str], url: str) -> str:
    """Return the reason why a status below 400 is an error."""
    location = headers.get("Location")
    if location and status in REDIRECTS:
        try:
            target = bare_url(urljoin(url, location))
        except ValueError:
            target = "(not a URL)"
        return f"redirected to {target} (Location), which is not followed, since credentials would go with it"
    if status in REDIRECTS:
        return "redirected without a Location"
    return "a response without a body" if status in _WITHOUT_BODY else "a status that the request does not accept"


def _advice(status: int, product: str | None, role: str) -> str:
    if status == 403 and product:
        return f"the account's plan does not include {product}, or the path has changed; `auth.user()` lists its groups"
    if status == 401 and role in {"store", "public"}:
        return ""
    if status in REDIRECTS:
        return "check the hosts and paths of the client, and the proxies in between"
    return {
        401: "sign in again, or check the user name and password",
        407: "the proxy requires a user name and password",
    }.get(status, "")
