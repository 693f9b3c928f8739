"""Exports of a snapshot that deal its pages to chunks anew."""

import json
import random

from wme_async.simulator import Simulator, build_archive

SNAPSHOT = "enwiki_namespace_0"
CHUNKS = 12
PAGES = range(60)


def export(sim: Simulator, number: int, *, only: set[int] | None = None, update_metadata: bool = True) -> None:
    """Replace the chunks of a snapshot; each page is in one of them.

    Args:
        sim: The simulator.
        number: Of the export, which decides the order of pages.
        only: Only these chunks, as while an export goes on.
        update_metadata: Whether the metadata follows.
    """
    pages = list(PAGES)
    random.Random(number).shuffle(pages)
    for chunk in range(CHUNKS):
        if only is None or chunk in only:
            lines = [
                json.dumps({"identifier": page, "export": number}).encode() + b"\n" for page in pages[chunk::CHUNKS]
            ]
            data = build_archive([(f"chunk_{chunk}.ndjson", lines)])
            sim.put_object(f"chunks/{SNAPSHOT}/chunk_{chunk}.tar.gz", data, update_metadata=update_metadata)


def metered(sim: Simulator) -> int:
    """Return how many requests for chunks counted against the allowance."""
    return sum(
        sim.requests.count("api", method="GET", path="/chunks/.*/download", status=status) for status in (302, 307)
    )
