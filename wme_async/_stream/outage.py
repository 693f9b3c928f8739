"""Logs a stream that stays without its connections: once when they are lost, once when they are back."""

import logging

from wme_async._telemetry import log_fields
from wme_async.errors import WMEError

logger: logging.Logger = logging.getLogger("wme_async.stream.outage")

_ATTEMPTS = 3  # failed ones in a row, so that a reconnect that works at once is not mentioned


class Outage:
    """Watches the connections of one stream.

    Args:
        key: The name of the stream's positions, for the messages.
        connections: How many connections the stream has.
    """

    def __init__(self, key: str, connections: int) -> None:
        self._key = key
        self._connections = connections
        self._since: dict[int, float] = {}
        self._worked: set[int] = set()
        self._began: float | None = None  # of the outage that was logged

    def failed(self, connection: int, error: WMEError, *, attempts: int, now: float) -> None:
        """Note a failed attempt, and log the beginning of an outage.

        Args:
            connection: The number of the connection.
            error: The reason.
            attempts: Failed attempts since the connection last brought records.
            now: Monotonic seconds.
        """
        since = self._since.setdefault(connection, now)
        if attempts < _ATTEMPTS or self._began is not None:
            return
        self._began = since
        count = f"connection {connection} of {self._connections}" if self._connections > 1 else "the connection"
        state = "was lost and cannot be made again" if connection in self._worked else "cannot be made"
        fields = log_fields(error, stream=self._key, connection=connection, attempt=attempts)
        message = "stream %r: %s %s, attempt %d: %s; retrying"
        logger.warning(message, self._key, count, state, attempts, error, extra=fields)

    def received(self, connection: int, *, now: float) -> None:
        """Note that records arrived, and log the end of an outage.

        Args:
            connection: The number of the connection.
            now: Monotonic seconds.
        """
        self._worked.add(connection)
        self._since.pop(connection, None)
        if self._began is not None and not self._since:
            count = "all connections are" if self._connections > 1 else "the connection is"
            fields = log_fields(stream=self._key, seconds=now - self._began)
            logger.warning("stream %r: %s back after %.0f s", self._key, count, now - self._began, extra=fields)
            self._began = None
