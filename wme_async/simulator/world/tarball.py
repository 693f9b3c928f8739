"""Archives in the exporter's form, one gzip member around a plain ustar, and other forms on request."""

import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from wme_async.simulator.world.encoding import dumps

# What the exporter's compressor writes: no name, the "zero time" of its language cut to 32 bits, an unknown system.
_GZIP_HEADER = bytes.fromhex("1f8b080000096e8800ff")
_BLOCK = 1 << 20  # the compressor ends a block with a sync flush after each MiB of input
_SPOOL = 16 << 20  # a member above this goes to a temporary file while its size is counted

_KINDS = {
    "file": tarfile.REGTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "directory": tarfile.DIRTYPE,
    "fifo": tarfile.FIFOTYPE,
}


@dataclass(frozen=True)
class ArchiveMember:
    """One member of an archive, with more properties than a `(name, lines)` pair.

    Attributes:
        name: The name in the header; absolute and `..` names are written unchanged.
        data: The content, in pieces of any size.
        mode: Permission bits; None takes the archive's `member_mode`.
        kind: The type in the header. The exporter writes files only.
        link: The target of a symbolic or hard link.
        declared: The size in the header, in bytes, if it differs from the real one. A smaller one makes the bytes that
            follow look like a damaged header; a larger one includes the next header.
    """

    name: str
    data: Iterable[bytes] = ()
    mode: int | None = None
    kind: Literal["file", "symlink", "hardlink", "directory", "fifo"] = "file"
    link: str = ""
    declared: int | None = None


def build_archive(
    members: Iterable[tuple[str, Iterable[Any]] | ArchiveMember | Any],
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
        members: Records, such as dicts or Structs, which become lines of one member; or members: pairs of a name and
            its content, records or bytes in pieces, and `ArchiveMember` objects.
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

    Example:
        >>> data = build_archive([{"name": "Earth"}, {"name": "Moon"}])

    Raises:
        ValueError: `gzip_members` below 1.
        TypeError: Records and members are mixed, or a record has no JSON form.
    """
    if gzip_members < 1:
        raise ValueError("an archive has at least one gzip member")
    blocks = _tar(_members(list(members)), member_mode, pax=pax)
    if gzip_members == 1:
        packed = b"".join(_gzip(blocks, level))
    else:
        tar = b"".join(blocks)
        bounds = [len(tar) * step // gzip_members for step in range(gzip_members + 1)]
        packed = b"".join(chunk for start, stop in pairwise(bounds) for chunk in _gzip([tar[start:stop]], level))
    return (packed + trailing)[:keep]


def _members(entries: list[Any]) -> Iterator[ArchiveMember]:
    """Return entries as members: all of them as one, if they are records."""
    is_member = [
        isinstance(entry, ArchiveMember) or (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str))
        for entry in entries
    ]
    if any(is_member) and not all(is_member):
        raise TypeError("an archive is built of records or of members, not of both")
    if entries and not any(is_member):
        entries = [("records_0.ndjson", entries)]
    for entry in entries:
        yield entry if isinstance(entry, ArchiveMember) else ArchiveMember(entry[0], map(_line, entry[1]))


def _line(piece: Any) -> bytes:
    """Return a piece of content: bytes as they are, a record as a line of JSON."""
    return bytes(piece) if isinstance(piece, bytes | bytearray | memoryview) else dumps(piece) + b"\n"


def _tar(members: Iterable[ArchiveMember], mode: int, *, pax: bool) -> Iterator[bytes]:
    for member in members:
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL) as spool:
            spool.writelines(member.data)
            size = spool.tell()
            spool.seek(0)
            yield _header(member, size, mode, pax=pax)
            yield from iter(lambda: spool.read(_BLOCK), b"")
        yield bytes(-size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(member: ArchiveMember, size: int, mode: int, *, pax: bool) -> bytes:
    info = tarfile.TarInfo(member.name)
    info.type = _KINDS[member.kind]
    info.linkname = member.link
    info.mode = mode if member.mode is None else member.mode
    info.size = size if member.declared is None else member.declared
    if pax:
        info.pax_headers = {"comment": "written with a pax header"}
    return info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.USTAR_FORMAT)


def _gzip(blocks: Iterable[bytes], level: int) -> Iterator[bytes]:
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    checksum = total = 0
    room = _BLOCK
    yield _GZIP_HEADER
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
