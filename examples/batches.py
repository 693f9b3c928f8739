"""The five uses of hourly batches: list, filter, get one, its headers, download and read.

    python examples/batches.py 2025-07-16T05 enwiki_namespace_0

Credentials come from WME_USERNAME and WME_PASSWORD; `wme-async simulate` prints those of a simulator.
"""

import argparse
import asyncio
import itertools
import tempfile
from datetime import UTC, datetime, timedelta

import msgspec

from wme_async import Client, read_archive
from wme_async.models import Article


async def main(hour: str, identifier: str) -> None:
    """Show each use in turn."""
    async with Client.from_env() as wme:
        await wme.auth.login()
        batches = wme.batches(hour)

        rows = await batches.list()
        print(f"i) {len(rows)} batches; the first: {msgspec.json.encode(rows[0]).decode()}")

        english = await batches.list(filters={"in_language.identifier": "en"})
        print(f"ii) {len(english)} 'en' batches: {', '.join(batch.identifier for batch in english)}")

        batch = await batches.get(identifier)
        print(f"iii) {batch.identifier}: {batch.size.value} {batch.size.unit_text}, modified {batch.date_modified}")

        info = await batches.head(identifier)
        print(f"iv) {info.size} bytes, {info.content_type}, ETag {info.etag}, last modified {info.last_modified}")

        with tempfile.TemporaryDirectory() as folder:
            download = await batches.download(identifier, folder)
            print(f"v) downloaded {download.size / 1e6:.2f} MB in {download.seconds:.2f} s")
            print(f"   MD5 verified: {download.verified}")
            async with read_archive(download.path, type=Article) as articles:
                identifiers = [article.identifier async for article in articles]
            print(f"   {len(identifiers)} articles; the first five: {list(itertools.islice(identifiers, 5))}")

        await wme.auth.revoke()
        print("tokens revoked")


if __name__ == "__main__":
    three_hours_ago = (datetime.now(UTC) - timedelta(hours=3)).strftime("%Y-%m-%dT%H")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("hour", nargs="?", default=three_hours_ago, help="YYYY-MM-DDTHH, UTC")
    parser.add_argument("identifier", nargs="?", default="enwiki_namespace_0")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.hour, arguments.identifier))
