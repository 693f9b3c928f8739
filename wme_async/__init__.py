"""The asyncio-native SDK for Wikimedia Enterprise."""

from wme_async._version import __version__

__all__ = ["__version__"]
