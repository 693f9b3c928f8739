"""Single files of Commons: their pages, and the redirect to their bytes."""

import hashlib
from typing import Any, Final

from wme_async.simulator.hosts.api import ApiRequest, download_redirect, single_row
from wme_async.simulator.hosts.http import Response
from wme_async.simulator.hosts.store import ObjectStore

_NAMES: Final = ("Ottawa_0757.jpg", "Squirrel_in_a_tree.jpg", "Skylark.ogg")
_MIME: Final = {"jpg": "image/jpeg", "ogg": "application/ogg", "png": "image/png"}
_MAGIC: Final = {"jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", "ogg": b"OggS\x00\x02", "png": b"\x89PNG\r\n\x1a\n"}


class Commons:
    """Files by name.

    Args:
        store: Holds the bytes.
        seed: Determines the bytes of the built-in files.

    Attributes:
        pages: The metadata of each file by its name.
    """

    def __init__(self, store: ObjectStore, seed: int) -> None:
        self._store = store
        self.pages: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(_NAMES):
            body = hashlib.shake_256(f"{seed} {name}".encode()).digest(20_000 + 1000 * number)
            self.add(name, _MAGIC[name.rpartition(".")[2]] + body)

    def add(self, name: str, data: bytes) -> None:
        """Add or replace a file and its page."""
        name = name.replace(" ", "_")
        self._store.put(f"commons/files/{name}", data)
        license_ = {"name": "CC BY-SA 3.0", "identifier": "CC BY-SA 3.0 pl", "url": "https://creativecommons.org/"}
        self.pages[name] = {
            "name": f"File:{name.replace('_', ' ')}",
            "identifier": 40_000_000 + len(self.pages),
            "date_modified": "2024-02-11T09:30:01Z",
            "version": {"identifier": 800_000_000 + len(self.pages), "is_minor_edit": True},
            "url": f"https://commons.wikimedia.org/wiki/File:{name}",
            "namespace": {"identifier": 6},
            "in_language": {"identifier": "en"},
            "is_part_of": {"identifier": "commonswiki", "url": "https://commons.wikimedia.org"},
            "license": [license_],
            "files": [
                {
                    "sha1": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
                    "size": {"value": len(data), "unit_text": "B"},
                    "width": 1024,
                    "height": 768,
                    "mime": _MIME.get(name.rpartition(".")[2], "application/octet-stream"),
                    "date_modified": "2024-02-11T09:30:01Z",
                    "editor": {"identifier": 11, "name": "Example"},
                    "license": [{"identifier": "CC BY-SA 3.0 pl"}],
                }
            ],
        }

    async def page(self, request: ApiRequest) -> Response:
        """Answer `/v2/files/{filename}`."""
        query = request.bound()
        return single_row(request, self.pages.get(request.values["id"].replace(" ", "_")), query)

    async def download(self, request: ApiRequest) -> Response:
        """Answer `/v2/files/{filename}/download`."""
        key = f"commons/files/{request.values['id'].replace(' ', '_')}"
        return download_redirect(request, self._store, key)
