"""Fetch all batches of an hour as one would by hand with aiohttp: list, sign, fetch, check the MD5, write.

python benchmarks/sync_reference.py OPTIONS.json FOLDER [CONCURRENCY]
"""

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp


async def main(options: dict[str, Any], folder: Path, concurrency: int) -> int:
    """Return how many there were."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=200)) as session:
        login = {"username": options["username"], "password": options["password"]}
        async with session.post(options["hosts"]["auth"] + "/v1/login", json=login) as response:
            headers = {"Authorization": "Bearer " + (await response.json())["access_token"]}
        day, hour = options["hour"].split("T")
        base = f"{options['hosts']['api']}/v2/batches/{day}/{hour}"
        async with session.post(base, headers=headers, json={}) as response:
            batches = json.loads(await response.text())
        slots = asyncio.Semaphore(concurrency)

        async def fetch(batch: dict[str, Any]) -> None:
            async with slots:
                url = f"{base}/{batch['identifier']}/download"
                async with session.get(url, headers=headers, allow_redirects=False) as response:
                    signed = response.headers["Location"]
                async with session.get(signed) as response:
                    body = await response.read()
                if hashlib.md5(body).hexdigest() != batch["version"]:  # noqa: S324  # of the service
                    raise SystemExit(f"{batch['identifier']} is damaged")
                (folder / f"{batch['identifier']}.tar.gz").write_bytes(body)

        await asyncio.gather(*map(fetch, batches))
        return len(batches)


if __name__ == "__main__":
    arguments = [*sys.argv[1:], "32"]
    count = asyncio.run(main(json.loads(Path(arguments[0]).read_text()), Path(arguments[1]), int(arguments[2])))
    print(json.dumps({"files": count}))
