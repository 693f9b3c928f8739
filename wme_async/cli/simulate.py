"""`wme-async simulate`: the WME services on this machine, for trying things out with any client."""

import json
import re
import shlex
from typing import Any

import click

from wme_async.cli import base
from wme_async.simulator import Simulator
from wme_async.simulator.faults import KINDS, STREAM_KINDS, Faults

_GROUPS = ("group_1", "group_2", "group_3")


class _FaultType(click.Choice[str]):
    """The kind of a fault, and arguments of `Faults.inject` behind it, as in `status,status=429,times=all`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        kind, *pairs = value.split(",")
        kind = super().convert(kind, param, ctx)
        arguments = {}
        for pair in pairs:
            name, separator, text = pair.partition("=")
            if not (name and separator):
                self.fail(f"{pair!r} is not ARGUMENT=VALUE, such as times=5", param, ctx)
            arguments[name] = None if (name, text) == ("times", "all") else _json_or_text(text)
        try:
            Faults().inject_default(kind, **arguments)
        except (ValueError, TypeError, re.error) as error:
            self.fail(str(error), param, ctx)
        return kind, arguments


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@click.command("simulate")
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False), help="Folder of real lists and articles to serve."
)
@click.option(
    "--articles", type=click.IntRange(0), default=20, show_default=True, help="Records in each batch and chunk."
)
@click.option(
    "--archive-bytes",
    multiple=True,
    metavar="ARCHIVE=BYTES",
    help="Compressed size of an archive, such as enwiki_namespace_0=50000000; may be repeated.",
)
@click.option("--port", type=click.IntRange(1, 65532), help="First of four ports; free ones by default.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Changes of pages each second, which the stream publishes.",
)
@click.option(
    "--groups",
    type=click.Choice(_GROUPS),
    multiple=True,
    default=("group_3",),
    show_default=True,
    help="Plan of the account: group_1 is the free one, group_3 has everything; may be repeated.",
)
@click.option(
    "--fault",
    "faults",
    type=_FaultType(sorted(KINDS | STREAM_KINDS)),
    multiple=True,
    metavar="NAME[,ARGUMENT=VALUE]...",
    help="Fault of the simulator, such as slow, cut or status,status=429,times=all; may be repeated. docs/testing.md "
    "lists them.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed makes the same world.")
def command(
    *,
    data: str | None,
    articles: int,
    archive_bytes: tuple[str, ...],
    port: int | None,
    rate: float,
    groups: tuple[str, ...],
    faults: tuple[tuple[str, dict[str, Any]], ...],
    seed: int,
) -> None:
    """Run a simulator of all WME services on this machine, until interrupted.

    It prints the environment variables with which any WME client connects to it. Pages change all the time: the
    stream, look-ups, the batches of each hour and new snapshots follow.
    """
    roles = ("auth", "api", "realtime", "store")
    ports = {role: port + number for number, role in enumerate(roles)} if port is not None else None
    sizes = dict(map(_size, archive_bytes))

    async def serve() -> None:
        simulator = Simulator(
            seed=seed,
            data=data,
            articles=articles,
            article_size=None,
            archive_bytes=sizes,
            ports=ports,
            groups=groups,
        )
        for kind, arguments in faults:
            simulator.faults.inject_default(kind, **arguments)
        async with simulator:
            for name, value in simulator.environment().items():
                base.echo(f"export {name}={shlex.quote(value)}")
            hours = simulator.hours
            base.stderr.print(f"The hours from {hours[0]} to {hours[-1]} have batches. Ctrl-C stops.", highlight=False)
            simulator.publish_history()
            simulator.world.rate = rate
            await simulator.world.run()

    base.run(serve())


def _size(value: str) -> tuple[str, int]:
    name, _, size = value.rpartition("=")
    if not name or not size.isascii() or not size.isdecimal():
        raise click.BadParameter(
            f"{value!r} is not ARCHIVE=BYTES, such as enwiki_namespace_0=50000000", param_hint="--archive-bytes"
        )
    return name, int(size)
