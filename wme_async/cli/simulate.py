"""`wme-async simulate`: the WME services on this machine, for trying things out with any client."""

import asyncio
import shlex

import click

from wme_async.cli import base
from wme_async.simulator import Simulator

__all__ = ["command"]


@click.command("simulate")
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False), help="Folder of real lists and articles to serve."
)
@click.option("--articles", type=click.IntRange(0), default=100, show_default=True, help="Records in each archive.")
@click.option("--port", type=click.IntRange(1, 65532), help="First of four ports; free ones by default.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Events published each second on the stream.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed makes the same world.")
def command(data: str | None, articles: int, port: int | None, rate: float | None, seed: int) -> None:
    """Run a simulator of all WME services on this machine, until interrupted.

    It prints the environment variables with which any WME client connects to it.
    """
    roles = ("auth", "api", "realtime", "store")
    ports = {role: port + number for number, role in enumerate(roles)} if port is not None else None

    async def serve() -> None:
        async with Simulator(seed=seed, data=data, articles=articles, article_size=None, ports=ports) as simulator:
            for name, value in simulator.environment().items():
                base.echo(f"export {name}={shlex.quote(value)}")
            if rate is None:
                await asyncio.Event().wait()
            else:
                await simulator.firehose.run(rate)

    base.run(serve())
