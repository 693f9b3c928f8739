"""The client: resources with their paths, and the methods that users call."""

from wme_async._client.account import Account
from wme_async._client.archive_source import ArchiveSource
from wme_async._client.cache import Cache
from wme_async._client.client import Client
from wme_async._client.collection import Collection
from wme_async._client.concurrent_lookups import Looked, LookupProgress, Lookups
from wme_async._client.entities import Entities, Labels, Wikidata
from wme_async._client.files import ChunkedFiles, Files
from wme_async._client.lookup import Lookup
from wme_async._client.media import MediaFiles

__all__ = [
    "Account",
    "ArchiveSource",
    "Cache",
    "ChunkedFiles",
    "Client",
    "Collection",
    "Entities",
    "Files",
    "Labels",
    "Looked",
    "Lookup",
    "LookupProgress",
    "Lookups",
    "MediaFiles",
    "Wikidata",
]
