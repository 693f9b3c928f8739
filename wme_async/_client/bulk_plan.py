"""The plan of bulk work: the chunks of one export, from metadata alone."""

import logging
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from wme_async._client.bulk import Plan
from wme_async._client.paths import chunk_number
from wme_async._client.sync_plan import size_of
from wme_async._download import FileInfo
from wme_async._download.etags import plain_md5
from wme_async._download.verification import wait_before_restart
from wme_async._tasks import map_bounded
from wme_async._transport import Transport
from wme_async.errors import DataError, NotFound, Replaced
from wme_async.models import Chunk, Snapshot

logger: logging.Logger = logging.getLogger("wme_async.tasks")

_ATTEMPTS: Final = 5
_CONCURRENCY: Final = 8
_EXPORT: Final = timedelta(hours=20)  # longer than any export, and shorter than the time between two


def output_folder(to: str | os.PathLike[str]) -> str:
    """Return the folder of an output as it is written into a plan: a URL, or an absolute path."""
    target = os.fspath(to)
    return target if "://" in target else os.path.abspath(target)  # noqa: PTH100  # a Path has no abspath


async def make_plan(snapshots: Any, chunks: Any, transport: Transport, *, snapshot: str, **settings: Any) -> Plan:
    """Return the plan of the export that the server has now; free of charge.

    Metadata is written after its archive, the chunks of an export one after the other, and lists hours later. So each
    chunk of the snapshot's record is compared with its ETag, after all the metadata was read: then all of them were on
    the server at one moment. Chunks that the record lacks are looked for, too. Dates that do not belong to one export
    are a reason to ask again, and in the end a warning.

    Args:
        snapshots: The archives that the snapshot belongs to.
        chunks: Its chunks.
        transport: Has the clock.
        snapshot: Its identifier.
        **settings: The others of `Plan.of`.

    Raises:
        Replaced: The snapshot is being exported anew, also after several attempts.
        NotFound: The snapshot does not exist, or a chunk of its record does not, also after several attempts.
        DataError: The snapshot has no chunks.
        WMEError: A request failed.
    """
    attempt = 1
    while True:
        try:
            plan, doubt = await _survey(snapshots, chunks, snapshot, settings)
        except (Replaced, NotFound):
            if attempt == _ATTEMPTS:
                raise
        else:
            if doubt is None or attempt == _ATTEMPTS:
                break
        await wait_before_restart(transport, attempt)
        attempt += 1
    if doubt is not None:
        logger.warning("%s: %s; if it is being exported anew, plan it again later", snapshot, doubt)
    return plan


async def _survey(snapshots: Any, chunks: Any, snapshot: str, settings: Mapping[str, Any]) -> tuple[Plan, str | None]:
    """Return the plan, and a reason to doubt that its chunks are of one export."""
    record: Snapshot = await snapshots.get(snapshot)
    identifiers = sorted(set(record.chunks), key=chunk_number)
    if not identifiers:
        raise DataError(f"{snapshot} has no chunks; read it as a whole: wme.snapshots.read({snapshot!r})")
    metadata: list[Chunk] = await map_bounded(chunks.get, identifiers, limit=_CONCURRENCY)
    infos: list[FileInfo] = await map_bounded(chunks.head, identifiers, limit=_CONCURRENCY)
    rows = []
    for identifier, chunk, info in zip(identifiers, metadata, infos, strict=True):
        md5 = chunk.version.lower()
        stored = plain_md5(info.etag) or md5
        if not md5 or stored != md5:
            raise Replaced(
                f"{identifier} has version {stored or 'unknown'}, and its metadata says {md5 or 'nothing'}: the "
                "snapshot is being exported anew; plan it later",
                expected=md5,
                got=stored,
            )
        rows.append((identifier, md5, info.size if info.size is not None else size_of(chunk) or 0))
    await _check_last(chunks, chunk_number(identifiers[-1]) + 1, snapshot)
    return Plan.of(rows, snapshot=snapshot, **settings), _doubt(record, metadata)


def _doubt(record: Snapshot, chunks: Sequence[Chunk]) -> str | None:
    """Return why chunks may be of two exports, by their dates; None if they fit together.

    An export takes hours and ends with the record of the snapshot. The next one comes a day later, or a month.
    """
    dates = [chunk.date_modified for chunk in chunks if chunk.date_modified is not None]
    if dates and max(dates) - min(dates) > _EXPORT:
        return f"its chunks are from {min(dates):%Y-%m-%d %H:%M} to {max(dates):%Y-%m-%d %H:%M} UTC"
    if record.date_modified is not None and 0 < sum(date > record.date_modified for date in dates) < len(chunks):
        return "some of its chunks are newer than its record"
    return None


async def _check_last(chunks: Any, number: int, snapshot: str) -> None:
    """Raise if there is a chunk after the last one of the record, which is then of an earlier export."""
    try:
        info: FileInfo = await chunks.head(number)
    except NotFound:
        return
    raise Replaced(
        f"{snapshot} has a chunk {number}, which its record lacks: the snapshot is being exported anew; plan it later",
        got=plain_md5(info.etag),
    )
