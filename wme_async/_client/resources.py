"""Every endpoint as a row of one table.

The verbs are written once; a resource is data: its path, its model, the back end whose rules apply to queries, the plan
that includes it and its cost. Paths that the published reference does not show in full are marked as a guess, and every
path except those of the sign-in can be replaced without changing code (`Client(paths={"wikidata.batches": "/v2/…"})`).
"""

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from wme_async._arguments import check_type
from wme_async._query.backends import Backend
from wme_async.models import (
    Archive,
    Article,
    Batch,
    Chunk,
    Code,
    FilePage,
    Language,
    Namespace,
    Project,
    Snapshot,
    StructuredContent,
    StructuredSnapshot,
    User,
    WikidataArticle,
)

Tier = Literal["free", "paid", "any"]
Verb = Literal["list", "get", "head", "download", "read", "lookup", "stream", "call"]

_PLACEHOLDER = re.compile(r"{(\w+)}")

COLLECTION: tuple[Verb, ...] = ("list", "get")
FILES: tuple[Verb, ...] = ("list", "get", "head", "download", "read")


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """One row.

    Attributes:
        name: Its attribute of the client: `wme.<name>`.
        path: Path template on its host. The values of placeholders are percent-encoded.
        model: The type of its list's records.
        record: The type of its archives' records, if it has archives.
        verbs: Its methods.
        backend: The back end whose rules `fields` and `filters` obey; None if it takes none.
        role: Its host.
        tier: The plan that includes it.
        product: Its name in messages.
        pool: The monthly allowance that counts its downloads or look-ups.
        reserved: Identifiers that the server would read as the name of another resource.
        beta: Announced as beta: shapes and paths may still change.
        guess: The path is by analogy; no reference shows it.
        undocumented: The server has it, the reference does not.
    """

    name: str
    path: str
    model: type
    record: type | None = None
    verbs: tuple[Verb, ...] = COLLECTION
    backend: Backend | None = Backend.METADATA
    role: Literal["auth", "api", "realtime"] = "api"
    tier: Tier = "any"
    product: str = ""
    pool: str | None = None
    reserved: frozenset[str] = frozenset()
    beta: bool = False
    guess: bool = False
    undocumented: bool = False

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The placeholders of the path template, in order."""
        return tuple(_PLACEHOLDER.findall(self.path))

    def at(self, **values: str) -> str:
        """Return the path with percent-encoded values in place of its placeholders."""
        return self.path.format(**values)


_ROWS: tuple[Resource, ...] = (
    Resource(name="codes", path="/v2/codes", model=Code, product="metadata"),
    Resource(name="languages", path="/v2/languages", model=Language, product="metadata"),
    Resource(name="projects", path="/v2/projects", model=Project, product="metadata"),
    Resource(name="namespaces", path="/v2/namespaces", model=Namespace, product="metadata"),
    Resource(
        name="batches",
        path="/v2/batches/{hour}",
        model=Batch,
        record=Article,
        verbs=FILES,
        tier="paid",
        product="hourly batches",
        reserved=frozenset({"wikidata"}),
    ),
    Resource(
        name="snapshots",
        path="/v2/snapshots",
        model=Snapshot,
        record=Article,
        verbs=FILES,
        tier="free",
        product="snapshots",
        pool="snapshot",
        reserved=frozenset({"structured-contents", "wikidata"}),
    ),
    Resource(
        name="snapshots.chunks",
        path="/v2/snapshots/{snapshot}/chunks",
        model=Chunk,
        record=Article,
        verbs=FILES,
        tier="free",
        product="snapshot chunks",
        pool="chunk",
    ),
    Resource(
        name="structured_snapshots",
        path="/v2/snapshots/structured-contents",
        model=StructuredSnapshot,
        record=StructuredContent,
        verbs=FILES,
        tier="free",
        product="structured contents snapshots",
        beta=True,
    ),
    Resource(
        name="articles",
        path="/v2/articles/{name}",
        model=Article,
        verbs=("lookup",),
        backend=Backend.ONDEMAND,
        tier="free",
        product="on-demand articles",
        pool="ondemand",
    ),
    Resource(
        name="structured_contents",
        path="/v2/structured-contents/{name}",
        model=StructuredContent,
        verbs=("lookup",),
        backend=Backend.STRUCTURED,
        tier="free",
        product="structured contents",
        pool="ondemand",
        beta=True,
    ),
    Resource(
        name="files",
        path="/v2/files",
        model=FilePage,
        verbs=("get", "download"),
        tier="paid",
        product="files",
        undocumented=True,
    ),
    *(
        Resource(
            name=f"wikidata.{name}",
            path=f"/v2/wikidata/{name}",
            model=model,
            verbs=("get",),
            backend=Backend.LOOKUP_FIELDS_ONLY,
            tier="free",
            product="Wikidata look-ups",
            pool="ondemand",
            beta=True,
        )
        for name, model in (("items", WikidataArticle), ("properties", WikidataArticle), ("labels", dict))
    ),
    Resource(
        name="wikidata.snapshots",
        path="/v2/snapshots/wikidata",
        model=Snapshot,
        record=WikidataArticle,
        verbs=FILES,
        tier="free",
        product="Wikidata snapshots",
        pool="snapshot",
        beta=True,
    ),
    Resource(
        name="wikidata.snapshots.chunks",
        path="/v2/snapshots/wikidata/{snapshot}/chunks",
        model=Chunk,
        record=WikidataArticle,
        verbs=FILES,
        tier="free",
        product="Wikidata snapshot chunks",
        pool="chunk",
        beta=True,
    ),
    Resource(
        name="wikidata.batches",
        path="/v2/batches/wikidata/{hour}",
        model=Archive,
        record=WikidataArticle,
        verbs=FILES,
        tier="paid",
        product="Wikidata hourly batches",
        beta=True,
        guess=True,
    ),
    Resource(
        name="realtime.articles",
        path="/v2/articles",
        model=Article,
        verbs=("stream",),
        backend=Backend.REALTIME,
        role="realtime",
        tier="paid",
        product="the realtime stream",
    ),
    Resource(
        name="realtime.wikidata",
        path="/v2/wikidata",
        model=WikidataArticle,
        verbs=("stream",),
        backend=Backend.REALTIME,
        role="realtime",
        tier="paid",
        product="the Wikidata realtime stream",
        beta=True,
    ),
    *(
        Resource(
            name=f"auth.{verb}",
            path=path,
            model=model,
            verbs=("call",),
            backend=None,
            role="auth",
            undocumented=hidden,
        )
        for verb, path, model, hidden in (
            ("login", "/v1/login", dict, False),
            ("refresh", "/v1/token-refresh", dict, False),
            ("revoke", "/v1/token-revoke", dict, False),
            ("user", "/v1/get-user", User, True),
        )
    ),
)

RESOURCES: Mapping[str, Resource] = {row.name: row for row in _ROWS}
"""The table, by name."""


def resource_table(overrides: Mapping[str, str] | None = None) -> Mapping[str, Resource]:
    """Return the table with some paths replaced.

    Args:
        overrides: Path templates by resource name, for beta paths that have moved.

    Raises:
        TypeError: It is not a mapping, or a path is not text.
        ValueError: The resource is unknown, it belongs to the sign-in, or the placeholders of the template differ from
            those of the row.
    """
    check_type("paths", overrides, Mapping | None, "a mapping of resource name to path")
    table = dict(RESOURCES)
    for name, path in (overrides or {}).items():
        row = table.get(name)
        if row is None:
            raise ValueError(f"the resource {name!r} is unknown; resources are {', '.join(sorted(table))}")
        if row.role == "auth":
            raise ValueError(f"the path of {name} cannot be replaced: passwords are sent there")
        check_type(f"the path of {name}", path, str, "text")
        if not path.startswith("/") or sorted(_PLACEHOLDER.findall(path)) != sorted(row.placeholders):
            placeholders = ", ".join(f"{{{placeholder}}}" for placeholder in row.placeholders) or "no placeholder"
            raise ValueError(f"the path of {name} must begin with a slash and have {placeholders}, not {path!r}")
        table[name] = msgspec.structs.replace(row, path=path.rstrip("/"))
    return table
