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

import functools
import importlib
from typing import TYPE_CHECKING

from wme_async import errors
from wme_async._version import __version__ as __version__
from wme_async.errors import *  # noqa: F403  # each error is public

if TYPE_CHECKING:
    from wme_async._exports import *  # noqa: F403  # the names that `__getattr__` loads
else:

    @functools.cache
    def _modules() -> dict[str, str]:
        """Return the module of each public name but the errors, from the text of `_exports`, which is not run."""
        import ast  # noqa: PLC0415  # not for the errors

        try:
            source = __spec__.loader.get_data(__file__.replace("__init__", "_exports"))
        except (AttributeError, OSError):  # only bytecode is installed
            exports = importlib.import_module("wme_async._exports")
            return {name: exports.__name__ for name in vars(exports) if not name.startswith("_")}
        imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
        return {alias.name: node.module for node in imports for alias in node.names}

    def __getattr__(name: str) -> object:
        """Load a public name when it is first used, with no more of the package than it needs."""
        if name in {"models", "offsets", "settings"}:
            return importlib.import_module(f"wme_async.{name}")
        if name == "__all__":
            value: object = sorted([*_modules(), *errors.__all__, "__version__"])
        elif name.startswith("_") or name not in _modules():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        else:
            value = getattr(importlib.import_module(_modules()[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
