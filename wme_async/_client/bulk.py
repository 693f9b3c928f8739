"""Bulk work as data: the chunks of a snapshot as tasks, their results, and the manifest of the output. Pure.

All of it can be pickled and written as JSON, and names neither hosts nor credentials: each worker takes those from its
own environment.
"""

import builtins
import hashlib
import re
from collections.abc import Iterable
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import msgspec

from wme_async._arguments import check_choice, check_numbers, check_record_type, check_text
from wme_async._client.paths import chunk_number, chunk_path, identifier_path
from wme_async._client.quota import Cost
from wme_async.errors import DecodeError
from wme_async.models.decoding import decoding

Format = Literal["parquet", "ndjson"]
FORMATS: tuple[Format, ...] = ("parquet", "ndjson")

_SCHEMES = ("s3", "s3a", "gs", "az", "azure")
_TYPE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_MD5 = re.compile("[0-9a-f]{32}")
_GENERATION = re.compile("[0-9a-f]{16}")


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    """A record that can be written as JSON."""

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return the record of a JSON text.

        Raises:
            ValueError: It is not JSON of this record.
        """
        try:
            with decoding():
                return msgspec.json.decode(text, type=cls)
        except DecodeError as error:
            raise ValueError(f"this is not the JSON of a {cls.__name__}: {error}") from error


class ChunkTask(_Document, frozen=True, kw_only=True):
    """One chunk of a snapshot to read, and where to write its records.

    Args:
        snapshot: Identifier of the snapshot.
        chunk: Identifier of the chunk.
        generation: Of the export that the chunk belongs to; that of its plan.
        md5: MD5 of the chunk's archive. Another version is not read.
        size: Bytes of the archive.
        to: The folder of the output: a path, or `s3://…`, `gs://…`, `az://…`.
        format: `parquet`, or `ndjson` for JSON lines.
        type: The msgspec Struct of the records, as `module:Name`. It is imported where the task runs.
        collection: The snapshots that it is from: `snapshots`, or `wikidata.snapshots`.

    Raises:
        ValueError: A value is malformed, such as an identifier with a path in it.
    """

    snapshot: str
    chunk: str
    generation: str
    md5: str
    size: int
    to: str
    format: Format
    type: str
    collection: str = "snapshots"

    def __post_init__(self) -> None:
        """Check the values: identifiers become file names."""
        identifier_path(self.snapshot)
        chunk_path(self.snapshot, self.chunk)
        check_text(to=self.to)
        check_choice("format", self.format, FORMATS)
        check_choice("collection", self.collection, ("snapshots", "wikidata.snapshots"))
        check_numbers(whole=True, optional=False, minimum=0, size=self.size)
        for name, pattern in (("md5", _MD5), ("generation", _GENERATION), ("type", _TYPE)):
            value = getattr(self, name)
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise ValueError(f"{name} is malformed: {value!r}")
        _check_url(self.to)

    @property
    def output(self) -> str:
        """The file of the records, relative to `to`."""
        return f"{self.generation}/{self.chunk}.{self.format}"

    @property
    def done(self) -> str:
        """The file that is written once the output is complete, relative to `to`."""
        return f"{self.generation}/{self.chunk}.done.json"


class TaskResult(_Document, frozen=True, kw_only=True):
    """A finished task.

    Attributes:
        chunk: Identifier of the chunk.
        generation: Of the export.
        rows: Records written.
        bad: Records that could not be decoded, which are left out and logged.
        path: The output: a path or a URL.
        bytes: Bytes of the output.
        md5: MD5 of the chunk's archive.
        skipped: Whether the output was there already, so that nothing was requested.
        seconds: Time that the task took; of a skipped one, that of the run which wrote it.
    """

    chunk: str
    generation: str
    rows: int
    bad: int
    path: str
    bytes: int
    md5: str
    skipped: bool = False
    seconds: float = 0.0


class Plan(_Document, frozen=True, kw_only=True):
    """All chunks of one export of a snapshot, as tasks.

    Args:
        tasks: One for each chunk, in order of their numbers.
        generation: A digest of all chunks and their MD5s. The next export has another one.
        cost: Metered requests, if nothing is interrupted.
        bytes: Bytes of all archives.

    Raises:
        ValueError: There is no task, or they do not belong together.
    """

    tasks: tuple[ChunkTask, ...]
    generation: str
    cost: Cost
    bytes: int

    def __post_init__(self) -> None:
        """Check that the tasks are of one export and one output."""
        if not self.tasks:
            raise ValueError("a plan has at least one task")
        common = {(task.snapshot, task.to, task.format, task.type, task.collection) for task in self.tasks}
        if len(common) != 1 or len({task.chunk for task in self.tasks}) != len(self.tasks):
            raise ValueError(
                "the tasks of a plan are different chunks of one snapshot, with one output, format and type"
            )
        generation = generation_of((task.chunk, task.md5) for task in self.tasks)
        if {generation} != {self.generation, *(task.generation for task in self.tasks)}:
            raise ValueError(
                "the tasks of a plan are the chunks of one export, and some were added, removed or changed"
            )

    @property
    def snapshot(self) -> str:
        """Identifier of the snapshot."""
        return self.tasks[0].snapshot

    @property
    def to(self) -> str:
        """The folder of the output."""
        return self.tasks[0].to

    @classmethod
    def of(
        cls,
        chunks: Iterable[tuple[str, str, int]],
        *,
        snapshot: str,
        to: str,
        format: Format,
        type: str,
        collection: str,
        pool: str | None,
    ) -> Self:
        """Return the plan of an export.

        Args:
            chunks: Identifier, MD5 and bytes of each chunk.
            snapshot: As for `ChunkTask`, and so the next ones.
            to: As for `ChunkTask`.
            format: As for `ChunkTask`.
            type: As for `ChunkTask`.
            collection: As for `ChunkTask`.
            pool: The monthly allowance that counts the chunks.
        """
        ordered = sorted(chunks, key=lambda chunk: chunk_number(chunk[0]))
        generation = generation_of((chunk, md5) for chunk, md5, _ in ordered)
        tasks = tuple(
            ChunkTask(
                snapshot=snapshot, chunk=chunk, generation=generation, md5=md5, size=size, to=to, format=format,
                type=type, collection=collection,
            )
            for chunk, md5, size in ordered
        )  # fmt: skip
        return cls(
            tasks=tasks,
            generation=generation,
            cost=Cost(pool=pool, requests=len(tasks) if pool else 0),
            bytes=sum(task.size for task in tasks),
        )


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a finished output.

    Attributes:
        chunk: Identifier of the chunk.
        path: The file, relative to the folder of the output.
        rows: Records in it.
        bad: Records that could not be decoded and are not in it.
        bytes: Its bytes.
        md5: MD5 of the chunk's archive.
    """

    chunk: str
    path: str
    rows: int
    bad: int
    bytes: int
    md5: str


class Manifest(_Document, frozen=True, kw_only=True):
    """The files of a finished output: all chunks of one export, each once.

    Attributes:
        snapshot: Identifier of the snapshot.
        generation: Of the export.
        type: The type of the records, as `module:Name`.
        format: `parquet` or `ndjson`.
        rows: Records of all files.
        bad: Records that could not be decoded and are in no file.
        bytes: Bytes of all files.
        files: The files, in order of the chunks.
    """

    snapshot: str
    generation: str
    type: str
    format: Format
    rows: int
    bad: int
    bytes: int
    files: tuple[ManifestFile, ...]

    def paths(self, to: str) -> list[str]:
        """Return the paths or URLs of all files, for `read_parquet` of an engine.

        Args:
            to: The folder of the output, wherever it is now.
        """
        return [f"{str(to).rstrip('/')}/{file.path}" for file in self.files]


def generation_of(chunks: Iterable[tuple[str, str]]) -> str:
    """Return a digest of the chunks of an export, 16 hexadecimal digits.

    Args:
        chunks: Identifier and MD5 of each chunk, in any order.
    """
    text = "\n".join(f"{chunk} {md5}" for chunk, md5 in sorted(chunks))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def type_name(type: Any) -> str:
    """Return the name by which another process imports a type: `module:Name`.

    Args:
        type: A class; or such a name, which is returned as it is.

    Raises:
        TypeError: It is not a class.
        ValueError: It cannot be imported by name: a class of a script, or one inside of a function.
    """
    if not isinstance(type, str):
        check_record_type(type)
        if not isinstance(type, builtins.type):
            raise TypeError(f"type must be a class that can be imported by its name, not {type!r}")
        if type.__module__ == "__main__":
            raise ValueError(
                f"{type.__qualname__} belongs to the script that runs, and workers import it by its name: move it to a "
                "module of its own"
            )
    name = type if isinstance(type, str) else f"{type.__module__}:{type.__qualname__}"
    if not _TYPE.fullmatch(name):
        raise ValueError(f"a type is a class at the level of a module, such as 'package.module:Name', not {name!r}")
    return name


def _check_url(to: str) -> None:
    """Raise if the folder of an output is a URL that is not just a bucket and a key, such as one with a password."""
    if "://" not in to:
        return
    parts = urlsplit(to)
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"{parts.scheme}://… must be a path or one of {', '.join(f'{name}://' for name in _SCHEMES)}")
    if not parts.netloc:
        raise ValueError(f"{parts.scheme}://… must name a bucket")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}… must be a bucket and a key; credentials come from "
            "the environment of each worker"
        )
