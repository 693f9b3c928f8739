"""`wme-async stream --to`: the firehose into Kafka or NATS."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

import click

from wme_async._stream import Stream
from wme_async.cli import base
from wme_async.errors import ConnectFailed, StreamError

_PATIENCE = 10.0  # seconds to reach the broker
_FAREWELL = 2.0  # seconds to take leave of it
_PORTS = {"kafka": 9092, "nats": 4222}
_SUBJECT = "wme.articles.{partition}"


class BrokerURL(NamedTuple):
    """Where events go.

    Attributes:
        scheme: `kafka` or `nats`.
        server: Host and port, or several with commas between them; for NATS with user and password.
        place: The topic, or the subject.
    """

    scheme: str
    server: str
    place: str

    @property
    def hosts(self) -> str:
        """The server without its password."""
        return self.server.rpartition("@")[2]


def parse_url(_context: click.Context, _option: click.Parameter, text: str | None) -> BrokerURL | None:
    """Return the parts of a URL of a broker.

    Raises:
        click.BadParameter: It is not one.
    """
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        parts: SplitResult = urlsplit(text.replace("{partition}", "%7Bpartition%7D"))
        place = unquote(parts.path.strip("/")) or (_SUBJECT if parts.scheme == "nats" else "")
        if parts.scheme in _PORTS and parts.netloc and place and not (parts.query or parts.fragment):
            servers = [
                name if ":" in name.rpartition("@")[2] else f"{name}:{_PORTS[parts.scheme]}"
                for name in parts.netloc.split(",")
            ]
            return BrokerURL(parts.scheme, ",".join(servers), place)
    raise click.BadParameter(f"{text!r} is neither kafka://host:9092/topic nor nats://host:4222/subject")


options: Callable[[Any], Any] = base.all_of(
    click.option(
        "--to",
        metavar="kafka://HOST:PORT/TOPIC|nats://HOST:PORT/SUBJECT",
        callback=parse_url,
        help="Copy the events into Kafka or NATS instead, each once and in order; positions are kept there.",
    ),
    click.option(
        "--dead-letter",
        metavar="TOPIC|SUBJECT",
        help="With --to: where records go that the broker does not accept, instead of ending with an error.",
    ),
    click.option("--tombstones", is_flag=True, help="With --to: send deletions without a value."),
    click.option(
        "--max-message",
        type=click.IntRange(1),
        metavar="BYTES",
        help="With --to kafka: max.message.bytes of the topic, if it is not the 1 MiB of a broker.",
    ),
)
"""The options of a bridge."""


def check_options(options: Mapping[str, Any]) -> None:
    """Raise if options of the command contradict each other.

    Raises:
        click.UsageError: They do.
    """
    to = options["to"]
    if to is not None and options["table"]:
        raise click.UsageError("--table shows the events, and --to sends them: leave out one")
    for name in ("dead_letter", "max_message", "tombstones"):
        if options[name] and (to is None or (name == "max_message" and to.scheme != "kafka")):
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --to{' kafka://…' * (name == 'max_message')}")


async def copy(stream: Stream[Any], to: BrokerURL, **options: Any) -> None:
    """Copy a stream into a broker.

    Args:
        stream: A stream that is not open yet.
        to: The broker.
        **options: For `to_kafka` or `to_nats`.
    """
    options = {name: value for name, value in options.items() if value is not None}
    base.when_stopped(f"the positions are in the messages, and {base.CONTINUES}")
    async with (_kafka if to.scheme == "kafka" else _nats)(stream, to, options) as bridge:
        base.stderr.print(f"{stream.key} into {to.place} at {to.hosts}", style="dim", highlight=False)
        try:
            await bridge
        finally:
            now = bridge.statistics()
            lag = "" if now.lag is None else f", {now.lag:.0f} s behind"
            with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
                base.stderr.print(
                    f"{now.sent} events sent, {now.bytes / 1e6:.1f} MB{lag}; {now.dead_letters} dead letters, "
                    f"{now.pending} not confirmed",
                    style="dim",
                    highlight=False,
                )


@contextlib.asynccontextmanager
async def _kafka(stream: Stream[Any], to: BrokerURL, options: dict[str, Any]) -> AsyncIterator[Any]:
    from aiokafka import AIOKafkaProducer  # noqa: PLC0415
    from aiokafka.errors import KafkaError  # noqa: PLC0415

    from wme_async.integrations.kafka import to_kafka  # noqa: PLC0415  # an extra

    log = logging.getLogger("aiokafka")
    if not log.isEnabledFor(logging.INFO):
        log.setLevel(logging.CRITICAL)  # it writes lines all the time while a broker is away; the bridge says so once
    producer = AIOKafkaProducer(
        bootstrap_servers=to.server, enable_idempotence=True, max_batch_size=1 << 20, max_request_size=32 << 20
    )
    try:
        async with asyncio.timeout(_PATIENCE):
            await producer.start()
    except (KafkaError, TimeoutError) as error:
        await producer.stop()
        raise ConnectFailed(f"Kafka at {to.hosts} cannot be reached: {error}") from error
    try:
        yield to_kafka(stream, producer, to.place, **options)
    except KafkaError as error:
        raise StreamError(f"Kafka at {to.hosts} failed: {error}") from error
    finally:
        # It would wait for a broker that is away. What was not sent is sent by the next run.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await producer.stop()


@contextlib.asynccontextmanager
async def _nats(stream: Stream[Any], to: BrokerURL, options: dict[str, Any]) -> AsyncIterator[Any]:
    import nats  # noqa: PLC0415

    from wme_async.integrations.nats import to_nats  # noqa: PLC0415  # an extra

    servers = [f"nats://{server}" for server in to.server.split(",")]

    async def ignore(_error: Exception) -> None:
        """The bridge logs that the server is away."""

    try:
        async with asyncio.timeout(_PATIENCE):
            connection = await nats.connect(servers, max_reconnect_attempts=1, reconnect_time_wait=0.5, error_cb=ignore)
        connection.options["max_reconnect_attempts"] = -1  # a server that was there is waited for
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise ConnectFailed(f"NATS at {to.hosts} cannot be reached: {error}") from error
    try:
        yield to_nats(stream, connection.jetstream(), to.place, **options)
    except nats.errors.Error as error:
        raise StreamError(f"NATS at {to.hosts} failed: {error}") from error
    finally:
        await connection.close()
