"""The output of one task: whether it is there, writing it, and the record that it is complete."""

import functools
import hashlib
import importlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from wme_async._archive import ArchiveReader
from wme_async._client.bulk import ChunkTask, Manifest, TaskResult
from wme_async._tasks import in_thread
from wme_async.errors import DataError, DecodeError, VersionConflict
from wme_async.models.decoding import decode_json
from wme_async.tasks.target import Target

__all__ = ["MANIFEST", "Completion", "Output", "check_snapshot", "find_completion", "load_type"]

MANIFEST = "manifest.json"


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `CHUNK.done.json`.

    Attributes:
        task: The task.
        columns: A digest of the fields of the type, which may change under the same name.
        result: Its result.
    """

    task: ChunkTask
    columns: str
    result: TaskResult


_COMPLETION = msgspec.json.Decoder(Completion)


async def find_completion(target: Target, task: ChunkTask) -> Completion | None:
    """Return the record of a complete output; None if it has to be written.

    Raises:
        DataError: The record is damaged.
        OSError: The folder cannot be read.
    """
    data = await target.read(task.done)
    if data is None:
        return None
    try:
        completion = decode_json(data, _COMPLETION)
    except DecodeError as error:
        raise DataError(
            f"{target.location(task.done)} is damaged ({error}); remove it and run the task again"
        ) from error
    # Somebody may have removed the output.
    return completion if await target.size(completion.task.output) == completion.result.bytes else None


async def check_snapshot(target: Target, snapshot: str) -> None:
    """Raise if the folder has the manifest of another snapshot or program, which would be replaced.

    Raises:
        VersionConflict: It has.
        OSError: The folder cannot be read.
    """
    data = await target.read(MANIFEST)
    if data is None:
        return
    try:
        other = Manifest.from_json(data).snapshot
    except ValueError:
        other = "another program"
    if other != snapshot:
        path = target.location(MANIFEST)
        raise VersionConflict(f"{path} is of {other}; write {snapshot} to a folder of its own", path=path)


class Output:
    """The output of a task.

    Args:
        task: The task.
        target: Its folder.

    Raises:
        ValueError: The type cannot be imported.
    """

    def __init__(self, task: ChunkTask, target: Target) -> None:
        self._task = task
        self._target = target
        self.type: Any = load_type(task.type)
        self._columns = _digest(self.type)

    async def find(self) -> TaskResult | None:
        """Return the result of an earlier run; None if the output has to be written.

        Raises:
            VersionConflict: The output is there with another type, other fields, or in another format.
            DataError: As for `find_completion`.
            OSError: The folder cannot be read.
        """
        completion = await find_completion(self._target, self._task)
        if completion is None:
            return None
        task = completion.task
        mine, theirs = (self._task.type, self._task.format), (task.type, task.format)
        if mine != theirs or completion.columns != self._columns:
            problem = f"{theirs[0]} as {theirs[1]}" if mine != theirs else f"an earlier form of {task.type}"
            path = self._target.location(task.output)
            raise VersionConflict(f"{path} has the records as {problem}; write to another folder", path=path)
        return msgspec.structs.replace(completion.result, path=self._target.location(self._task.output), skipped=True)

    async def write(self, records: ArchiveReader[Any]) -> None:
        """Write the records of an open archive."""
        async with aclosing(self._encoded(records)) as chunks:
            await self._target.write(self._task.output, chunks)

    async def complete(self, *, rows: int, bad: int, seconds: float) -> TaskResult:
        """Record that the output is complete.

        The same task may run elsewhere and replace the output by its own, with the same records and perhaps another
        size, so the size is looked at before and afterwards.
        """
        task, target = self._task, self._target
        create = True
        while True:
            size = await target.size(task.output)
            if size is None:
                raise DataError(f"{target.location(task.output)} was removed while its task ended; run it again")
            result = TaskResult(
                chunk=task.chunk, generation=task.generation, rows=rows, bad=bad, path=target.location(task.output),
                bytes=size, md5=task.md5, seconds=seconds,
            )  # fmt: skip
            data = msgspec.json.encode(Completion(task=task, columns=self._columns, result=result))
            if not create or (not await target.create(task.done, data) and await self._differs(size)):
                await target.replace(task.done, data)
            create = False
            if await target.size(task.output) == size:
                return result

    async def _differs(self, size: int) -> bool:
        """Return whether the record that is there is not of this output."""
        completion = await find_completion(self._target, self._task)
        return completion is None or completion.columns != self._columns or completion.result.bytes != size

    async def _encoded(self, records: ArchiveReader[Any]) -> AsyncGenerator[bytes, None]:
        if self._task.format == "ndjson":
            encoder = msgspec.json.Encoder()
            async for batch in records.batches():
                yield await in_thread(encoder.encode_lines, batch)
        else:
            from wme_async.integrations.arrow import parquet_chunks  # noqa: PLC0415 - an extra

            async with aclosing(parquet_chunks(records, self.type)) as chunks:
                async for chunk in chunks:
                    yield chunk


def load_type(name: str) -> Any:
    """Import a type by its name, `module:Name`.

    Raises:
        ValueError: The module cannot be imported here, or does not have the class.
    """
    module, _, path = name.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for part in path.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the type {name} cannot be imported here ({error}); install its module, or set PYTHONPATH"
        ) from error
    return value


@functools.lru_cache(maxsize=16)
def _digest(type: Any) -> str:
    """Return a digest of the fields of a type."""
    try:
        schema: Any = msgspec.json.schema(type)
    except (TypeError, RuntimeError):  # a type that JSON schemas do not know
        schema = repr(type)
    return hashlib.sha256(msgspec.json.encode(schema, order="sorted")).hexdigest()[:16]
