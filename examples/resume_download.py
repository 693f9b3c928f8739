"""Download a snapshot; after an interruption of any kind the same command continues.

    python examples/resume_download.py enwiki_namespace_0 data/

A free account has 30 snapshots a month: the script checks the allowance first, and a file that is already there in the
same version costs nothing.
"""

import asyncio
import sys
from pathlib import Path

from wme_async import Client, IntegrityError, Progress, QuotaExceeded


def show(progress: Progress) -> None:
    """Draw one line."""
    share = progress.done / progress.total if progress.total else 0.0
    remaining = "" if progress.eta is None else f", {progress.eta:.0f} s left"
    print(f"\r{share:6.1%} of {(progress.total or 0) / 1e6:.1f} MB{remaining} ", end="", file=sys.stderr)


async def main(identifier: str, folder: Path) -> None:
    """Download it, and once more if it was damaged on the way."""
    async with Client.from_env() as wme:
        await wme.auth.check(wme.snapshots.cost(identifier))
        for attempt in (1, 2):
            try:
                download = await wme.snapshots.download(identifier, folder, progress=show, if_changed=True)
                break
            except IntegrityError as error:
                print(f"attempt {attempt}: {error}", file=sys.stderr)
        else:
            sys.exit("it came damaged twice")
    if download.unchanged:
        print(f"{download.path} is already the newest")
    else:
        sizes = f"{download.size} bytes, {download.resumed} of them from before"
        print(f"{download.path}: {sizes}, MD5 verified: {download.verified}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    try:
        asyncio.run(main(sys.argv[1], target))
    except QuotaExceeded as error:
        sys.exit(f"not started: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from here")
