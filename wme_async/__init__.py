"""The asyncio-native SDK for Wikimedia Enterprise."""

__version__ = "0.1.0"
