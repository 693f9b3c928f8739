"""The asyncio-native SDK for Wikimedia Enterprise.

    async with Client.from_env() as wme:
        hour = wme.batches("latest")
        await hour.download("enwiki_namespace_0", "data/")
        async with hour.read("enwiki_namespace_0") as articles:
            async for article in articles: ...

Most programs need these names alone. `wme_async.models` has all types of records, `wme_async.offsets` the stores for
positions of streams, `wme_async.simulator` a server for tests without an account, `wme_async.jobs` and `wme_async.web`
batches of downloads.

A public name is written once: an error in `wme_async.errors`, any other in `wme_async._exports`.
"""

import importlib
from typing import TYPE_CHECKING

from wme_async import errors
from wme_async._version import __version__ as __version__
from wme_async.errors import *  # noqa: F403  # each error is public

if TYPE_CHECKING:
    from wme_async._exports import *  # noqa: F403  # the names that `__getattr__` loads
else:

    def __getattr__(name: str) -> object:
        """Load the public names when the first of them is used: programs that need the errors alone start at once."""
        if name == "__all__" or not name.startswith("_"):
            exports = vars(importlib.import_module("wme_async._exports"))
            names = {key: value for key, value in exports.items() if key[0].isalpha()}
            globals().update(names, __all__=sorted([*names, *errors.__all__, "__version__"]))
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
