"""Paths and verbs: what users call."""

from wme_async._client.account import Account
from wme_async._client.client import Client
from wme_async._client.collection import Collection
from wme_async._client.files import ArchiveSource, ChunkedFiles, Files

__all__ = ["Account", "ArchiveSource", "ChunkedFiles", "Client", "Collection", "Files"]
