"""Archives in the exporter's form: one gzip member around a plain ustar, and the odd forms on request."""

import hashlib
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import IO, Literal

# What the exporter's compressor writes: no name, the "zero time" of its language cut to 32 bits, an unknown system.
_GZIP_HEADER = bytes.fromhex("1f8b080000096e8800ff")
_BLOCK = 1 << 20  # the compressor ends a block with a sync flush after each MiB of input
_SPOOL = 16 << 20  # a member above this goes to a temporary file while its size is counted
_END = bytes(1024)

_KINDS = {
    "file": tarfile.REGTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "directory": tarfile.DIRTYPE,
    "fifo": tarfile.FIFOTYPE,
}


@dataclass(frozen=True)
class ArchiveMember:
    """One member of an archive, for the cases that a `(name, lines)` pair cannot say.

    Attributes:
        name: The name as it stands in the header; absolute and `..` names are written as they are.
        data: The content, in pieces of any size.
        mode: Permission bits; None takes the archive's `member_mode`.
        kind: What the header says the member is. The exporter writes files only.
        link: The target of a symbolic or hard link.
        declared: The size in the header, in bytes, where it shall differ from the real one. A smaller one makes what
            follows look like a damaged header; a larger one swallows the next header.
    """

    name: str
    data: Iterable[bytes] = ()
    mode: int | None = None
    kind: Literal["file", "symlink", "hardlink", "directory", "fifo"] = "file"
    link: str = ""
    declared: int | None = None


@dataclass(frozen=True)
class ArchiveInfo:
    """What was written: `size` in bytes and the `md5` in hex, as metadata give it under `version`."""

    size: int
    md5: str
    members: tuple[str, ...]


def build_archive(
    members: Iterable[tuple[str, Iterable[bytes]] | ArchiveMember],
    *,
    member_mode: int = 0o766,
    level: int = 6,
    gzip_members: int = 1,
    pax: bool = False,
    trailing: bytes = b"",
    keep: int | None = None,
) -> bytes:
    """Build a `.tar.gz` in memory, byte for byte in the exporter's form unless told otherwise.

    The exporter writes one gzip member (a sync flush after each MiB of input) around a ustar of regular files with
    owner 0 and no directories; no member at all is a valid archive of a few bytes.

    Args:
        members: Pairs of a name and the content in pieces, or `ArchiveMember` objects.
        member_mode: Permission bits of each member: 0o766 in snapshots and batches, 0o644 in chunks, 0o600 in Commons
            archives.
        level: Compression, 0 to 9.
        gzip_members: How many gzip members to spread the tar over, evenly and without regard to tar members. The
            whole tar is held in memory when this is above 1.
        pax: Put a pax header before each member; the exporter never does.
        trailing: Garbage after the last gzip member.
        keep: Keep this many bytes only; a negative number cuts that many from the end.

    Returns:
        The archive.

    Raises:
        ValueError: `gzip_members` below 1.
    """
    built = b"".join(_compressed(members, member_mode, level, gzip_members, pax=pax, names=[])) + trailing
    return built if keep is None else built[:keep]


def write_archive(
    path: str | PathLike[str],
    members: Iterable[tuple[str, Iterable[bytes]] | ArchiveMember],
    *,
    member_mode: int = 0o766,
    level: int = 6,
    gzip_members: int = 1,
    pax: bool = False,
    trailing: bytes = b"",
) -> ArchiveInfo:
    """Write a `.tar.gz` to a file in flat memory; the options are those of `build_archive`.

    Returns:
        Size, MD5 and the names of the members.

    Raises:
        ValueError: `gzip_members` below 1.
        OSError: The file cannot be written.
    """
    names: list[str] = []
    digest = hashlib.md5(usedforsecurity=False)
    size = 0
    with Path(path).open("wb") as out:
        for piece in _compressed(members, member_mode, level, gzip_members, pax=pax, names=names):
            out.write(piece)
            digest.update(piece)
            size += len(piece)
        out.write(trailing)
        digest.update(trailing)
        size += len(trailing)
    return ArchiveInfo(size=size, md5=digest.hexdigest(), members=tuple(names))


def _compressed(
    members: Iterable[tuple[str, Iterable[bytes]] | ArchiveMember],
    mode: int,
    level: int,
    gzip_members: int,
    *,
    pax: bool,
    names: list[str],
) -> Iterator[bytes]:
    if gzip_members < 1:
        raise ValueError("an archive has at least one gzip member")
    blocks = _tar(members, mode, pax=pax, names=names)
    if gzip_members == 1:
        yield from _gzip(blocks, level)
        return
    whole = b"".join(blocks)
    bounds = [len(whole) * step // gzip_members for step in range(gzip_members + 1)]
    for start, stop in pairwise(bounds):
        yield from _gzip([whole[start:stop]], level)


def _tar(
    members: Iterable[tuple[str, Iterable[bytes]] | ArchiveMember], mode: int, *, pax: bool, names: list[str]
) -> Iterator[bytes]:
    for given in members:
        member = given if isinstance(given, ArchiveMember) else ArchiveMember(given[0], given[1])
        names.append(member.name)
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL) as spool:
            for piece in member.data:
                spool.write(piece)
            size = spool.tell()
            spool.seek(0)
            yield _header(member, size, mode, pax=pax)
            yield from _pieces(spool)
        if size % tarfile.BLOCKSIZE:
            yield bytes(tarfile.BLOCKSIZE - size % tarfile.BLOCKSIZE)
    yield _END


def _header(member: ArchiveMember, size: int, mode: int, *, pax: bool) -> bytes:
    info = tarfile.TarInfo(member.name)
    info.type = _KINDS[member.kind]
    info.linkname = member.link
    info.mode = mode if member.mode is None else member.mode
    info.size = size if member.declared is None else member.declared
    if pax:
        info.pax_headers = {"comment": "written with a pax header"}
    return info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.USTAR_FORMAT)


def _pieces(spool: IO[bytes]) -> Iterator[bytes]:
    while piece := spool.read(_BLOCK):
        yield piece


def _gzip(blocks: Iterable[bytes], level: int) -> Iterator[bytes]:
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    checksum = total = room = 0
    yield _GZIP_HEADER
    room = _BLOCK
    for block in blocks:
        checksum = zlib.crc32(block, checksum)
        total += len(block)
        view = memoryview(block)
        while len(view) >= room:
            yield packer.compress(view[:room]) + packer.flush(zlib.Z_SYNC_FLUSH)
            view = view[room:]
            room = _BLOCK
        room -= len(view)
        yield packer.compress(view)
    yield packer.flush()
    yield checksum.to_bytes(4, "little") + (total & 0xFFFFFFFF).to_bytes(4, "little")
