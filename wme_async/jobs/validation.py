"""Validation of batches: limits, URLs and options, with every problem in words. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

import msgspec

from wme_async._arguments import check_numbers, check_type
from wme_async.jobs.naming import check_template
from wme_async.jobs.url_policy import check_web_url

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_TYPES: Mapping[Any, str] = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_LONGEST_NAME = 200  # characters of the name of a batch


class Problem(NamedTuple):
    """One problem of a submitted batch.

    Args:
        what: The URL, or the name of the option.
        reason: The reason, in words.
    """

    what: str
    reason: str


class InvalidBatch(ValueError):
    """A batch that was rejected as a whole, with every problem.

    Args:
        problems: Every problem.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        message = "; ".join(f"{subject}: {reason}" for subject, reason in self.problems[:5])
        omitted = len(self.problems) - 5
        super().__init__(f"{message}; and {omitted} more" if omitted > 0 else message)

    def __reduce__(self) -> tuple[type["InvalidBatch"], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class JobLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a manager.

    Args:
        urls: URLs in one batch.
        expanded: Jobs in one batch after `wme:` lists were expanded.
        concurrent: The largest `concurrent_limit`.
        running: Jobs that run at once, over all batches.
        per_host: Jobs of one host that run at once, over all batches.
        connections: Connections that receive bytes at once, over all batches.
        bandwidth: Bytes per second over all jobs, None for no limit.
        timeout: The longest `timeout` of a job, in seconds.
        free_space: Bytes that must stay free on the disk.
        job_size: The largest file of a plain URL in bytes, None for no limit.

    Raises:
        TypeError: A value is not a number.
        ValueError: A value is out of range.
    """

    urls: int = 100
    expanded: int = 2_000
    concurrent: int = 10
    running: int = 10
    per_host: int = 6
    connections: int = 32
    bandwidth: float | None = None
    timeout: float = 86_400.0
    free_space: int = 64 * 1024 * 1024
    job_size: int | None = None

    def __post_init__(self) -> None:
        """Raise if a limit is not valid."""
        counts = ("urls", "expanded", "concurrent", "running", "per_host", "connections")
        values: dict[str, Any] = {name: getattr(self, name) for name in counts}
        check_numbers(owner="JobLimits", whole=True, optional=False, minimum=1, **values)
        check_numbers(
            owner="JobLimits", whole=True, optional=False, minimum=0, unit="bytes", free_space=self.free_space
        )
        check_numbers(owner="JobLimits", whole=True, minimum=1, unit="bytes", job_size=self.job_size)
        check_numbers(owner="JobLimits", optional=False, above=0, unit="seconds", timeout=self.timeout)
        check_numbers(owner="JobLimits", above=0, unit="bytes a second", bandwidth=self.bandwidth)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a batch.

    Args:
        concurrent_limit: Jobs of this batch at once, 1 to 10.
        stop_on_error: Stop the entire batch on the first error.
        ignore_errors: Individual failures do not fail the batch.
        path_template: Where files go under the manager's directory.
        timeout: Seconds that one job may run, counted again from zero after a pause or restart.
        webhook_url: Receives a webhook when the batch ends.
        priority: Batches with a higher one start first, -100 to 100.
        quality: For pages with media: `best`, or a height such as `1080p`.
        video_format: For pages with media: the preferred container, such as `mp4`.
        download_subtitles: For pages with media: download subtitle files too.
        name: A name to recognise the batch by, at most 200 characters.
    """

    concurrent_limit: int = 3
    stop_on_error: bool = False
    ignore_errors: bool = True
    path_template: str = "batch/{batch_id}/{safe_title}.{ext}"
    timeout: float = 1800.0
    webhook_url: str | None = None
    priority: int = 0
    quality: str | None = None
    video_format: str | None = None
    download_subtitles: bool = False
    name: str | None = None


class WmeUrl(NamedTuple):
    """A `wme:` URL in parts.

    Args:
        collection: `batches`, `snapshots`, `chunks`, `structured-snapshots`, or one of these after `wikidata/`.
        scope: The hour as `YYYY-MM-DDTHH` for batches, the snapshot for chunks, else None.
        identifier: The archive; None for all archives of the list.
        filters: Conditions of the list.
    """

    collection: str
    scope: str | None
    identifier: str | None
    filters: tuple[tuple[str, str | int | bool], ...] = ()


def _check_list(urls: object) -> None:
    check_type("urls", urls, Sequence, "a list of URLs")
    if isinstance(urls, str | bytes):
        raise TypeError("urls must be a list of URLs, not one string")


def split(urls: Sequence[str], size: int = 50) -> Iterator[list[str]]:
    """Cut a long list of URLs into batches.

    Args:
        urls: Any number of them.
        size: URLs in each batch, at least 1; the last may be shorter.

    Raises:
        TypeError: One URL instead of several, or a size that is not a whole number.
        ValueError: `size` is below 1.
    """
    _check_list(urls)
    check_numbers(whole=True, optional=False, minimum=1, size=size)
    return (list(urls[start : start + size]) for start in range(0, len(urls), size))


def parse_wme(url: str) -> WmeUrl:
    """Read a `wme:` URL.

    The forms are `wme:batches/2025-07-16/05/enwiki_namespace_0`, `wme:snapshots/enwiki_namespace_0`,
    `wme:snapshots/enwiki_namespace_0/chunks/enwiki_namespace_0_chunk_0`, `wme:structured-snapshots/enwiki_namespace_0`,
    and `wme:wikidata/` before the first three. Without the last part they stand for the whole list, which a query such
    as `?in_language.identifier=en` filters.

    Raises:
        ValueError: It has another form.
    """
    scheme, _, address = url.partition(":")
    if scheme.lower() != "wme":
        raise ValueError("not a wme: URL")
    path, _, query = address.partition("?")
    if "#" in address or address.startswith("/"):
        raise ValueError("a wme: URL is wme:COLLECTION/..., without a host or fragment")
    parts = [unquote(part) for part in path.split("/")]
    prefix = ""
    scope: str | None
    if parts[0] == "wikidata":
        prefix, parts = "wikidata/", parts[1:]
    match parts:
        case ["batches", date, hour, *identifier] if len(identifier) <= 1:
            if not _DATE.fullmatch(date) or not re.fullmatch(r"[01]\d|2[0-3]", hour):
                raise ValueError("hours are written wme:batches/YYYY-MM-DD/HH, in UTC")
            collection, scope = "batches", f"{date}T{hour}"
        case ["snapshots", snapshot, "chunks", *identifier] if len(identifier) <= 1:
            collection, scope = "chunks", _identifier(snapshot)
        case ["snapshots" | "structured-snapshots" as collection, *identifier] if len(identifier) <= 1:
            scope = None
            if prefix and collection == "structured-snapshots":
                raise ValueError("Wikidata has no structured snapshots")
        case _:
            raise ValueError(
                "use wme:batches/YYYY-MM-DD/HH/ID, wme:snapshots/ID, wme:snapshots/ID/chunks/ID"
                " or wme:structured-snapshots/ID"
            )
    if not identifier:
        return WmeUrl(prefix + collection, scope, None, _filters(query))
    if query:
        raise ValueError("a query belongs to a list; this URL names one archive")
    return WmeUrl(prefix + collection, scope, _identifier(identifier[0]))


def _identifier(text: str) -> str:
    if not _IDENTIFIER.fullmatch(text):
        raise ValueError(f"{text!r} is not an identifier such as enwiki_namespace_0")
    return text


def _filters(query: str) -> tuple[tuple[str, str | int | bool], ...]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=50)
    except ValueError:
        raise ValueError("filters are written ?field.name=value&other.field=value") from None
    return tuple((name, _value(value)) for name, value in pairs)


def _value(text: str) -> str | int | bool:
    """Return a filter value with the type of its form: for the server, the text "0" equals no number."""
    if text in {"true", "false"}:
        return text == "true"
    return int(text) if re.fullmatch(r"0|-?[1-9]\d{0,17}", text) else text


def _check_urls(urls: Sequence[str], problems: list[Problem], *, limits: JobLimits, allow: Iterable[str]) -> list[str]:
    _check_list(urls)
    if not urls:
        problems.append(Problem("urls", "a batch needs at least 1 URL"))
    if len(urls) > limits.urls:
        problems.append(Problem("urls", f"Maximum {limits.urls} URLs per batch, not {len(urls)}: split them"))
        return []
    positions: dict[str, int] = {}
    for at, url in enumerate(urls):
        try:
            if not isinstance(url, str):
                raise ValueError("it must be a text")  # noqa: TRY004, TRY301  # one message with the others
            clean = check_url(url, allow=allow)
        except ValueError as error:
            problems.append(Problem(_shown(url), f"Invalid URL: {error}"))
            continue
        if clean in positions:
            problems.append(Problem(_shown(url), f"Duplicate URL: the same as number {positions[clean] + 1}"))
        positions.setdefault(clean, at)
    return list(positions)


def check_url(url: str, *, allow: Iterable[str] = (), schemes: Sequence[str] = ("http", "https", "wme")) -> str:
    """Check one URL of any kind, as `check_web_url` does for the web.

    Raises:
        ValueError: The URL is not valid or not allowed. The message can be shown to callers.
    """
    if url.partition(":")[0].lower() != "wme" or "wme" not in schemes or ":" not in url:
        return check_web_url(url, allow=allow, schemes=schemes)
    parse_wme(url)
    return "wme:" + url.partition(":")[2]


def _shown(url: object) -> str:
    text = url if isinstance(url, str) else repr(url)
    text = text.encode("utf-8", "replace").decode()
    # A rejected password must not come back in the error.
    text = re.sub(r"//[^/?#]*@", "//...@", text)
    return text if len(text) <= 300 else text[:297] + "..."


def _check_options(options: Options, problems: list[Problem], *, limits: JobLimits, allow: Iterable[str]) -> Options:
    # They are stored as JSON, which a manager must be able to read again when it opens its database.
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Options):
        value = getattr(options, field.name)
        try:
            values[field.name] = msgspec.convert(msgspec.to_builtins(value), type=field.type)
        except (msgspec.ValidationError, TypeError, ValueError, OverflowError, RecursionError):
            raise TypeError(
                f"{field.name} of the batch must be {_TYPES.get(field.type, 'text or None')}, not {value!r}"
            ) from None
    options = Options(**values)
    quality, video_format = options.quality, options.video_format
    checks = (
        (
            1 <= options.concurrent_limit <= limits.concurrent,
            "concurrent_limit",
            f"Maximum {limits.concurrent} concurrent downloads: 1-{limits.concurrent}, not {options.concurrent_limit}",
        ),
        (
            0 < options.timeout <= limits.timeout,
            "timeout",
            f"a job's timeout is above 0 and at most {limits.timeout:g} seconds, not {options.timeout:g}",
        ),
        (-100 <= options.priority <= 100, "priority", "it is from -100 to 100"),
        (
            quality is None or re.fullmatch(r"best|worst|[1-9]\d{1,3}p?", quality),
            "quality",
            "it is best, worst or a height such as 1080p",
        ),
        (
            video_format is None or re.fullmatch(r"[a-z0-9]{1,8}", video_format),
            "video_format",
            "it is a file extension such as mp4",
        ),
    )
    problems += [Problem(name, reason) for valid, name, reason in checks if not valid]
    try:
        check_template(options.path_template)
    except ValueError as error:
        problems.append(Problem("path_template", str(error)))
    webhook = options.webhook_url
    if webhook is not None:
        try:
            webhook = check_url(webhook, allow=allow, schemes=("http", "https"))
        except ValueError as error:
            problems.append(Problem("webhook_url", f"Invalid URL: {error}"))
    name = " ".join((options.name or "").split())
    if len(name) > _LONGEST_NAME or not name.isprintable():
        problems.append(Problem("name", f"it is text of at most {_LONGEST_NAME} printable characters"))
    return msgspec.structs.replace(options, webhook_url=webhook, name=name or None)


def check_batch(
    urls: Sequence[str], options: Options, *, limits: JobLimits, allow: Iterable[str] = ()
) -> tuple[list[str], Options]:
    """Check the URLs and the options of a batch.

    Args:
        urls: The submitted URLs.
        options: The options of the batch.
        limits: The limits of both.
        allow: Hosts that may be fetched although they are private.

    Returns:
        The URLs in the same order, in the form in which they are compared and fetched, without fragments; the options,
        the webhook's URL in its checked form, and single blanks in the name.

    Raises:
        TypeError: An argument or an option is of another type.
        InvalidBatch: The list is empty or too long, or has invalid or duplicate URLs, or an option is out of range;
            with every problem of both.
    """
    problems: list[Problem] = []
    allowed = frozenset(allow)
    valid_urls = _check_urls(urls, problems, limits=limits, allow=allowed)
    options = _check_options(options, problems, limits=limits, allow=allowed)
    if problems:
        raise InvalidBatch(problems)
    return valid_urls, options
