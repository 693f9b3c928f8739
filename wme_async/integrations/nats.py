"""The firehose into a stream of NATS, each event once and in order (extra `nats`: `pip install 'wme-async[nats]'`).

    import nats
    from wme_async.integrations.nats import to_nats

    connection = await nats.connect("nats://broker:4222")
    async with Client.from_env() as wme:
        await to_nats(wme.realtime.articles(type=msgspec.Raw), connection.jetstream())

The subjects hold the positions: each message carries the offset of its event, and a bridge that starts continues after
the last message of each subject. The server accepts a message only behind the one that the bridge knows to be the last,
so that neither a retry nor a second bridge writes an event twice.
"""

import asyncio
import hashlib
import logging
import string
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote

from wme_async._arguments import check_choice, check_numbers, check_text
from wme_async._stream import GroupStream, Stream
from wme_async._tasks import raise_first_cause
from wme_async._telemetry import log_fields
from wme_async.errors import StreamError
from wme_async.integrations._bridge import Bridge, Bridged, DeadLetter, DeadLetters, check_stream
from wme_async.integrations._bridge_messages import Checkpoint, Message, news_of, read_checkpoint

try:
    from nats.errors import (
        ConnectionReconnectingError,
        NoRespondersError,
        OutboundBufferLimitError,
        StaleConnectionError,
    )
    from nats.errors import (
        TimeoutError as NATSTimeoutError,
    )
    from nats.js import JetStreamContext
    from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError
except ImportError as _error:
    raise ImportError("NATS needs the extra `nats`: pip install 'wme-async[nats]'") from _error

__all__ = ["Bridge", "Bridged", "DeadLetter", "to_nats"]

logger: logging.Logger = logging.getLogger("wme_async.bridge")

T = TypeVar("T")
U = TypeVar("U")

_MIB: Final = 1024 * 1024
_WRONG_SEQUENCE: Final = frozenset({10071, 10164})  # another message is the last one
_TOO_LARGE: Final = 10054
_RETRY: Final = 0.25  # seconds between attempts while the server is away
_LIBRARY_HEADERS: Final = 200  # bytes, at most, of the headers that are not ours
# Errors after which it is not known whether the server has the message.
_AWAY: Final = (
    *(NATSTimeoutError, NoRespondersError, NoStreamResponseError, ServiceUnavailableError),
    *(ConnectionReconnectingError, OutboundBufferLimitError, StaleConnectionError),
)
_SAFE: Final = string.printable[:95].replace("%", "")


def to_nats(
    stream: Stream[T] | GroupStream[T],
    jetstream: "JetStreamContext",
    subject: str = "wme.articles.{partition}",
    *,
    positions: Literal["subject", "store"] = "subject",
    in_flight: int = 1000,
    max_bytes: int = 32 * _MIB,
    dead_letter: DeadLetters | None = None,
    tombstones: bool = False,
    limit: int | None = None,
    grace: float = 5.0,
) -> Bridge[T, str]:
    """Copy a stream into subjects of JetStream; await the result to run it.

    The body of a message is the record as JSON: byte for byte as the service sent it if the type of the stream is
    `msgspec.Raw`, otherwise the value encoded. Headers name partition, offset, time of publication and type of the
    event, and in `wme-key` project and title (`enwiki/Ada Lovelace`; percent-encoded beyond ASCII).

    Messages of one subject go one after another, each once the server has confirmed the one before; subjects go beside
    each other. With one subject for all partitions, the distance to the server limits the speed.

    Args:
        stream: A stream that is not open yet.
        jetstream: JetStream of a connection; the bridge does not close it. While the server is away, the bridge waits
            as long as the connection tries to reconnect (`max_reconnect_attempts=-1` for ever).
        subject: The subject, with `{partition}` for the number of the partition. A stream of JetStream must cover it,
            and nobody else may write to it.
        positions: `subject`: the subjects say what was sent. `store`: the `offsets` of the stream do; after a crash,
            the events since its last save come again, unless the server's `duplicate_window` drops them.
        in_flight: The maximum number of events that are on their way.
        max_bytes: Bytes of records that are on their way, about. The stream's own `max_buffer` comes on top.
        dead_letter: Where a record goes that the server does not accept, or that does not decode: another subject, or a
            function, plain or async. By default the bridge ends with an error.
        tombstones: Send an empty body for a deletion.
        limit: The number of events after which it ends; by default it runs for ever.
        grace: Seconds that a cancelled bridge waits for the server to confirm what was sent.

    Returns:
        The bridge. Awaited, it runs until it is cancelled or stopped, and returns its counters.

    Raises:
        TypeError: An argument of another type.
        ValueError: An argument out of range, or a subject that is not one.
    """
    check_stream(stream)
    check_text(subject=subject)
    check_choice("positions", positions, ("subject", "store"))
    check_numbers(whole=True, optional=False, minimum=1, in_flight=in_flight)
    if not isinstance(jetstream, JetStreamContext):
        raise TypeError(f"jetstream must be connection.jetstream(), not {jetstream!r}")
    return Bridge(
        stream,
        _Subjects(jetstream, subject, stream.key),
        _subject_of(subject),
        read=positions == "subject",
        batch=in_flight,
        max_bytes=max_bytes,
        dead_letter=dead_letter,
        tombstones=tombstones,
        limit=limit,
        grace=grace,
    )


def _subject_of(template: str) -> Any:
    """Return the function from a partition to its subject.

    Raises:
        ValueError: The template is not that of a subject.
    """
    literal = template.replace("{partition}", "0")
    if any(not token or set(token) & set("*>{}" + string.whitespace) for token in literal.split(".")):
        raise ValueError(
            f"subject must be words with dots between them, of which some may have {{partition}}, not {template!r}"
        )
    return lambda number: template.replace("{partition}", str(number))


class _Subjects:
    """Subjects that messages go to.

    Args:
        jetstream: Sends them.
        subject: The template of the subjects.
        stream: The name of the stream of events and its resource.
    """

    def __init__(self, jetstream: "JetStreamContext", subject: str, stream: str) -> None:
        self.name = f"subject {subject!r}"
        self._jetstream = jetstream
        self._stream = stream
        self._streams: dict[str, str] = {}  # of JetStream, by subject
        self._last: dict[str, int] = {}  # the sequence number of the last message of each subject
        self._limits: list[int] = []  # bytes of a message in each stream of JetStream
        self._read = True
        # JetStream does not hand out its connection.
        self._connection: Any = jetstream._nc  # noqa: SLF001

    async def open(self, places: Sequence[str], *, read: bool, dead_letter: str | None) -> list[Checkpoint]:
        self._read = read
        with raise_first_cause():
            async with asyncio.TaskGroup() as group:
                lookups = [group.create_task(self._look_up(subject)) for subject in places]
        for name in set(self._streams.values()):
            limit = (await self._jetstream.stream_info(name)).config.max_msg_size
            if limit is not None and limit > 0:
                self._limits.append(limit)
        if dead_letter is not None:
            self._streams[dead_letter] = await self._stream_of(dead_letter)
        return [checkpoint for task in lookups if (checkpoint := task.result()) is not None]

    async def _stream_of(self, subject: str) -> str:
        try:
            return await self._jetstream.find_stream_name_by_subject(subject)
        except NotFoundError as error:
            raise StreamError(
                f"no stream of JetStream covers the subject {subject!r}: create one, or choose another subject"
            ) from error

    async def _look_up(self, subject: str) -> Checkpoint | None:
        """Find the stream of a subject and its last message; return the positions in that."""
        self._streams[subject] = await self._stream_of(subject)
        self._last[subject], headers = await self._last_message(subject)
        if not self._read or not self._last[subject]:
            return None
        checkpoint = read_checkpoint(headers, self._stream)
        if checkpoint is None:
            raise StreamError(
                f"the last message of {subject!r} is not from a bridge of the stream {self._stream!r}: give it a "
                'subject of its own, or pass positions="store"'
            )
        return checkpoint

    async def _last_message(self, subject: str) -> tuple[int, Mapping[str, str]]:
        """Return sequence number and headers of the last message of a subject; 0 if there is none."""
        stream = self._streams[subject]
        try:
            message = await self._persist(stream, lambda: self._jetstream.get_last_msg(stream, subject))
        except NotFoundError:
            return 0, {}
        return message.seq or 0, message.headers or {}

    def problem(self, message: Message) -> str | None:
        size = _size(message.value or b"", _headers_of(message))
        limit = min((self._connection.max_payload, *self._limits))
        if size <= limit:
            return None
        setting = "max_msg_size of the stream of JetStream" if limit in self._limits else "max_payload of the server"
        return f"it has {size} bytes with its headers, and the limit is {limit}: raise {setting}"

    async def send(self, place: str, messages: Sequence[Message]) -> None:
        """Send messages one after another: none is sent before the server has confirmed the one in front of it."""
        for message in messages:
            await self._publish(place, message)

    async def _publish(self, subject: str, message: Message) -> None:
        headers = {**_headers_of(message), "Nats-Msg-Id": _identity(subject, message)}
        while True:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(self._last[subject])
            try:
                number = await self._confirmed(subject, message.value or b"", headers)
            except APIError as error:
                if error.err_code == _TOO_LARGE:
                    raise StreamError(
                        f"{self.name} does not accept a message of {len(message.value or b'')} bytes: raise "
                        "max_msg_size of the stream of JetStream, or pass dead_letter="
                    ) from error
                if error.err_code not in _WRONG_SEQUENCE:
                    raise
                if await self._is_stored(subject, headers["Nats-Msg-Id"]):
                    return
            else:
                self._last[subject] = max(self._last[subject], number)
                return

    async def _confirmed(self, subject: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Send a message until the server confirms it, and return its sequence number.

        Sent twice, it is stored once: the second time it is not behind the last message that it expects.

        Raises:
            StreamError: The stream of JetStream no longer exists.
            nats.errors.Error: The connection is closed, or the server does not accept the message.
        """
        stream = self._streams[subject]
        result = await self._persist(
            stream, lambda: self._jetstream.publish(subject, body, stream=stream, headers=dict(headers))
        )
        return result.seq

    async def _persist(self, stream: str, request: Callable[[], Awaitable[U]]) -> U:
        """Make a request until the server answers it.

        Raises:
            StreamError: The stream of JetStream no longer exists.
            nats.errors.Error: The connection is closed, or the answer is an error.
        """
        away = False
        facts: dict[str, Any] = {"stream": self._stream, "target": self.name}
        while True:
            try:
                result = await request()
            except _AWAY as error:
                if self._connection.is_closed:
                    raise
                if not away:
                    message = "%s does not answer, retrying: %s"
                    logger.warning(message, self.name, str(error) or "no answer", extra=log_fields(error, **facts))
                    away = True
                await self._check_stream(stream)
                await asyncio.sleep(_RETRY)
            else:
                if away:
                    logger.warning("%s answers again", self.name, extra=log_fields(**facts))
                return result

    async def _check_stream(self, name: str) -> None:
        try:
            await self._jetstream.stream_info(name)
        except NotFoundError as error:
            raise StreamError(f"the stream {name!r} of JetStream no longer exists: create it again") from error
        except _AWAY:
            pass  # the next attempt shows whether the server is back

    async def _is_stored(self, subject: str, identity: str) -> bool:
        """Return whether a message is the last one of its subject after all, when another one was expected there.

        Raises:
            StreamError: Another writer has written to the subject, or the server has lost messages.
        """
        before, stream = self._last[subject], self._streams[subject]
        self._last[subject], headers = await self._last_message(subject)
        if headers.get("Nats-Msg-Id") == identity:
            return True
        info = await self._persist(stream, lambda: self._jetstream.stream_info(stream))
        if info.state.last_seq < before:
            raise StreamError(
                f"the stream {stream!r} of JetStream has lost messages that it had confirmed: start the bridge again, "
                "which goes on behind those that it has"
            )
        if self._last[subject] not in {0, before}:
            raise StreamError(
                f"another writer has written to {subject!r}: run one bridge for a subject, or give each its own parts= "
                "and subject="
            )
        return False  # the server has removed the last message meanwhile, since it was too old

    async def send_dead_letter(self, to: str, message: Message, reason: str) -> None:
        headers = {
            **_headers_of(message),
            "wme-reason": quote(reason, safe=_SAFE),
            "Nats-Msg-Id": _identity(to, message),
        }
        if message.value is not None and _size(message.value, headers) <= self._connection.max_payload:
            try:
                await self._confirmed(to, message.value, headers)
            except APIError as error:
                if error.err_code != _TOO_LARGE:
                    raise
            else:
                return
        await self._confirmed(to, news_of(message, reason), headers)


def _headers_of(message: Message) -> dict[str, str]:
    headers = dict(message.headers)
    if message.key is not None:
        headers["wme-key"] = quote(message.key, safe=_SAFE)
    return headers


def _size(body: bytes, headers: Mapping[str, str]) -> int:
    """Return bytes of a message with its headers, as the server counts them, or some more."""
    return _LIBRARY_HEADERS + len(body) + sum(len(name) + len(text) + 4 for name, text in headers.items())


def _identity(subject: str, message: Message) -> str:
    """Return the identity of a message, by which the server detects duplicates within its stream.

    The time tells a partition that is numbered anew from its former numbers.
    """
    if message.offset is None:
        place = hashlib.sha256(message.value or b"").hexdigest()
    else:
        time = "" if message.published is None else message.published.isoformat()
        place = f"{message.partition}-{message.offset}-{time}"
    return quote(f"{subject}/{place}", safe=_SAFE)
