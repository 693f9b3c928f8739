"""Stand-ins for libraries that the documentation shows and that are too large to install for it.

Each has as much of the interface as the recipes use, and is put in place only where the library itself is missing.
"""

import dataclasses
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest


@dataclasses.dataclass(kw_only=True)
class Document:
    """`langchain_core.documents.Document`."""

    page_content: str
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    id: str | None = None


@dataclasses.dataclass(kw_only=True)
class TextNode:
    """`llama_index.core.schema.TextNode`."""

    text: str
    id_: str
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


class Dataset(list[Any]):
    """`datasets.Dataset`."""

    @classmethod
    def from_generator(cls, generator: Any, *, gen_kwargs: dict[str, Any]) -> "Dataset":
        # The library runs generators in a thread or process of its own, where no event loop runs.
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as executor:
            return cls(executor.submit(lambda: list(generator(**gen_kwargs))).result())


STAND_INS = {
    "langchain_core": ("langchain_core.documents", Document),
    "llama_index": ("llama_index.core.schema", TextNode),
    "datasets": ("datasets", Dataset),
}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in in place of each library that is not installed."""
    for library, (path, value) in STAND_INS.items():
        if importlib.util.find_spec(library) is None:
            parts = path.split(".")
            for end in range(1, len(parts) + 1):
                monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
            setattr(sys.modules[path], value.__name__, value)
