"""The four hosts of the service."""
