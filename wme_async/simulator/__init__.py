"""Wikimedia Enterprise on loopback: auth, API, object store and the firehose, with their quirks, and faults on request.

    async with Simulator() as simulator:
        async with Client(**simulator.client_options()) as wme: ...

It imports nothing else of this package, so that it is a second opinion on the wire format, and it serves any HTTP
client. For synchronous code there is `Simulator.run_in_thread()`, for pytest the fixture `wme_simulator`.

A request enters through `server`, which records it (`record`), looks up its faults (`faults`) and passes it to one of
the four `hosts`. A host parses it with `protocol`, takes the data from `world`, and returns a response, which `server`
sends, damaged by the faults for bodies. The streams of `hosts.realtime` write their responses themselves, from the
events in `log`. Everything goes by one `clock`; `options` has the keyword arguments of `Simulator`.

A `World` is a history of wikis (`world.wiki`, changed by `world.editing`), which `world.pipeline` turns into published
records; `world.exports` makes snapshots and batches of them.
"""

from wme_async.simulator.clock import Clock
from wme_async.simulator.faults import Fault, Faults
from wme_async.simulator.hosts.access import ACCESS_2025, ACCESS_2026, CAPS_2025, CAPS_2026, AccessRow
from wme_async.simulator.hosts.accounts import User
from wme_async.simulator.hosts.realtime import Connection, Firehose
from wme_async.simulator.protocol.stream_request import Accepted, Refused, check_stream_request
from wme_async.simulator.record import Request, Requests
from wme_async.simulator.server import Simulator
from wme_async.simulator.world.articles import ArticleGenerator, build_archive, dumps
from wme_async.simulator.world.entities import EntityGenerator
from wme_async.simulator.world.exports import Export
from wme_async.simulator.world.pipeline import Message, PublishedRecord
from wme_async.simulator.world.truth import Truth
from wme_async.simulator.world.wiki import Change, WikiPage
from wme_async.simulator.world.world import World

__all__ = [
    "ACCESS_2025",
    "ACCESS_2026",
    "CAPS_2025",
    "CAPS_2026",
    "Accepted",
    "AccessRow",
    "ArticleGenerator",
    "Change",
    "Clock",
    "Connection",
    "EntityGenerator",
    "Export",
    "Fault",
    "Faults",
    "Firehose",
    "Message",
    "PublishedRecord",
    "Refused",
    "Request",
    "Requests",
    "Simulator",
    "Truth",
    "User",
    "WikiPage",
    "World",
    "build_archive",
    "check_stream_request",
    "dumps",
]
