"""Exports of a snapshot that deal its pages to chunks anew."""

import json
import random

from wme_async.simulator import Simulator, build_archive

SNAPSHOT = "enwiki_namespace_0"
CHUNKS = 12
PAGES = range(60)


def export(
    sim: Simulator,
    number: int,
    *,
    only: set[int] | None = None,
    update_metadata: bool = True,
    chunks: int = CHUNKS,
    size: int = 0,
) -> None:
    """Replace the chunks of a snapshot; each page is in one of them.

    Args:
        sim: The simulator.
        number: Of the export, which decides the order of pages.
        only: Only these chunks, as while an export goes on.
        update_metadata: Whether the metadata follows.
        chunks: The number of chunks. Other numbers than that of the simulator are for `list_chunks`.
        size: Compressed bytes of each page, about.
    """
    rnd = random.Random(number)
    pages = list(PAGES)
    rnd.shuffle(pages)
    for chunk in range(chunks):
        if only is None or chunk in only:
            records = [
                {"identifier": page, "export": number, "text": rnd.randbytes(size * 8 // 11).hex()}
                for page in pages[chunk::chunks]
            ]
            data = build_archive(
                [(f"chunk_{chunk}.ndjson", [json.dumps(record).encode() + b"\n" for record in records])], level=1
            )
            sim.put_object(f"chunks/{SNAPSHOT}/chunk_{chunk}.tar.gz", data, update_metadata=update_metadata)


def list_chunks(sim: Simulator, chunks: int) -> None:
    """Let the record of the snapshot name so many chunks."""
    record = {"identifier": SNAPSHOT, "version": "0" * 32, "chunks": [f"{SNAPSHOT}_chunk_{n}" for n in range(chunks)]}
    body = json.dumps(record).encode()
    sim.faults.inject("status", role="api", path=f"/snapshots/{SNAPSHOT}$", status=200, body=body, times=1000)


def metered(sim: Simulator) -> int:
    """Return how many requests for chunks counted against the allowance."""
    return sum(
        sim.requests.count("api", method="GET", path="/chunks/.*/download", status=status) for status in (302, 307)
    )
