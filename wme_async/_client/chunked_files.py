"""Archives that are also available in chunks, and the plan of bulk work on them."""

import builtins
import os
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from wme_async._arguments import check_choice, check_path
from wme_async._client.files import Files
from wme_async._client.paths import chunk_path
from wme_async._client.resources import Resource
from wme_async._query.query import Query
from wme_async._transport import Response, Transport
from wme_async.errors import NotFound
from wme_async.models import Archive, Chunk

if TYPE_CHECKING:  # imported when they are first used
    from wme_async._client.bulk import Format, Plan

M = TypeVar("M", bound=Archive)
R = TypeVar("R", bound=msgspec.Struct)


class ChunkedFiles(Files[M, R]):
    """Archives that are also available in chunks.

    Args:
        transport: Sends the requests.
        resource: Their row of the table.
        chunks: The row of their chunks.
    """

    def __init__(self, transport: Transport, resource: Resource, chunks: Resource) -> None:
        super().__init__(transport, resource, resource.path)
        self._chunks = chunks

    def chunks(self, identifier: str) -> "Files[Chunk, R]":
        """Return the chunks of an archive: the same records in pieces of some hundred megabytes.

        Args:
            identifier: Of the archive, from its list.

        Raises:
            ValueError: The identifier is malformed.
        """
        return _Chunks(
            self._transport,
            self._chunks,
            self._chunks.at(snapshot=self._quote(identifier)),
            identifier,
            self._resource,
        )

    async def plan(
        self,
        identifier: str,
        *,
        to: str | os.PathLike[str],
        type: builtins.type[Any] | str | None = None,
        format: "Format" = "parquet",
    ) -> "Plan":
        """Plan to write all records of a snapshot to files, a task for each chunk; see `wme_async.tasks`.

        It takes metadata alone and costs no metered request; `plan.cost` says what running it will cost.

        Example:
            >>> plan = await wme.snapshots.plan("enwiki_namespace_0", to="enwiki/")  # doctest: +SKIP
            >>> manifest = await wme_async.tasks.run_plan(plan)  # doctest: +SKIP

        Args:
            identifier: Of the snapshot, from its list.
            to: The folder of the output, on a disk that all workers share or in an object store (`s3://bucket/folder`,
                `gs://…`, `az://…`: extra `cloud`). Use a folder for one snapshot, and for one type.
            type: The msgspec Struct to decode records into, or its name as `module:Name`. Workers import it by its
                name, so that it must not belong to the script itself. The model by default.
            format: `parquet` (extra `arrow`), or `ndjson` for JSON lines.

        Raises:
            TypeError: `type` is not a class.
            ValueError: The identifier is malformed, or an argument is invalid.
            Replaced: The snapshot is being exported anew; try again later.
            NotFound: The snapshot, or a chunk of it, does not exist.
            DataError: The snapshot has no chunks.
            WMEError: A request failed.
        """
        from wme_async._client.bulk import FORMATS, type_name  # noqa: PLC0415 - seldom used
        from wme_async._client.bulk_plan import make_plan, output_folder  # noqa: PLC0415

        check_path("to", to)
        check_choice("format", format, FORMATS)
        return await make_plan(
            self, self.chunks(identifier), self._transport, snapshot=identifier, to=output_folder(to), format=format,
            type=type_name(type or self._resource.record), collection=self._resource.name,
            pool=self._chunks.pool,
        )  # fmt: skip


class _Chunks(Files[Chunk, R]):
    """The chunks of one archive; the server reads the last number of an identifier and nothing else."""

    def __init__(self, transport: Transport, resource: Resource, path: str, snapshot: str, snapshots: Resource) -> None:
        super().__init__(transport, resource, path, place=snapshot)
        self._snapshots = snapshots

    async def _send_list(self, query: Query) -> Response:
        try:
            return await super()._send_list(query)
        except NotFound as error:
            snapshots = Files[Archive, R](self._transport, self._snapshots, self._snapshots.path)
            await snapshots._advise(error, self._place)  # noqa: SLF001 - the same class
            raise

    def _quote(self, identifier: str | int) -> str:
        return chunk_path(self._place, identifier)
