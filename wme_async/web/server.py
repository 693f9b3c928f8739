"""The listener of `serve`: it limits connections, closes idle ones, and waits out a shortage of descriptors."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

from wme_async import _platform

logger: logging.Logger = logging.getLogger("wme_async.web")

# Memory or descriptors are used up: connections wait in the system's queue meanwhile.
_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_SHORTAGE_PAUSE = 0.5
_BACKLOG = 128
# Descriptors for the jobs of the manager, their files and its database.
_RESERVED_DESCRIPTORS = 128


def default_limit() -> int:
    """Return how many connections may be open at once, by the limit of descriptors of this process."""
    soft = _platform.max_descriptors()
    if soft is None:
        return 1000
    return max(8, min(1000, soft - _RESERVED_DESCRIPTORS if soft > 2 * _RESERVED_DESCRIPTORS else soft // 2))


class _Connection(asyncio.Protocol):
    """Passes everything on to the protocol of the web framework, and limits the time without a request."""

    def __init__(self, inner: asyncio.Protocol, listener: "Listener") -> None:
        self._inner = inner
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.busy: bool = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._listener.add(self)
        self._start_timer()
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._listener.remove(self)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.busy and self._timer is None:
            # The head of a further request on this connection begins.
            self._start_timer()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    @contextlib.contextmanager
    def request_in_progress(self) -> Iterator[None]:
        """Stop the timer; neither it nor the limit of connections may end a request."""
        self.busy = True
        self._stop_timer()
        try:
            yield
        finally:
            self.busy = False

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._listener.head_timeout, self.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _ListeningSocket(socket.socket):
    """Holds on to an accepted connection, which asyncio drops if the task is cancelled before it resumes.

    Attributes:
        accepted: The connection that nobody has taken yet.
    """

    accepted: socket.socket | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        self.accepted, address = super().accept()
        return self.accepted, address


class Listener:
    """Accepts connections on one address.

    Args:
        factory: Makes the protocol of a connection.
        host: Name or address to listen on.
        port: Port, 0 for any that is free.
        head_timeout: Seconds in which the head of a request must arrive.
        limit: Connections at once. Above it, the oldest one without a request is closed for a new one; if all have
            one, new ones wait in the system's queue.
    """

    def __init__(
        self,
        factory: Callable[[], asyncio.Protocol],
        host: str,
        port: int,
        *,
        head_timeout: float = 15.0,
        limit: int | None = None,
    ) -> None:
        self._factory = factory
        self._host = host
        self._port = port
        self.head_timeout: float = head_timeout
        self._limit = default_limit() if limit is None else limit
        # By age; dicts keep the order.
        self._connections: dict[_Connection, None] = {}
        self._freed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Accept connections until the end of the block. The web framework closes open ones.

        Yields:
            The port.

        Raises:
            OSError: The address cannot be used.
        """
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(sock) for sock in await self._bind()]
            tasks = [asyncio.create_task(self._accept(sock), name="wme_async listener") for sock in sockets]
            try:
                yield sockets[0].getsockname()[1]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    def add(self, connection: _Connection) -> None:
        """Add a new connection."""
        self._connections[connection] = None

    def remove(self, connection: _Connection) -> None:
        """Remove a connection that has ended."""
        self._connections.pop(connection, None)
        self._freed.set()

    def request_in_progress(self, transport: asyncio.BaseTransport | None) -> contextlib.AbstractContextManager[None]:
        """Return a block during which the connection of a transport has a request."""
        protocol = transport.get_protocol() if transport is not None else None
        return protocol.request_in_progress() if isinstance(protocol, _Connection) else contextlib.nullcontext()

    async def _bind(self) -> list[_ListeningSocket]:
        loop = asyncio.get_running_loop()
        addresses = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with contextlib.ExitStack() as stack:
            sockets = []
            for family, kind, number, _, address in dict.fromkeys(addresses):
                sock = stack.enter_context(_ListeningSocket(family, kind, number))
                sock.settimeout(0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    sock.bind(address)
                    sock.listen(_BACKLOG)
                except OSError as error:
                    message = f"cannot listen on {self._host}, port {self._port}: {error.strerror}"
                    raise OSError(error.errno, message) from None
                sockets.append(sock)
            stack.pop_all()
        return sockets

    async def _accept(self, listening: _ListeningSocket) -> None:
        loop = asyncio.get_running_loop()
        shortage = False
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _SHORTAGE:
                    if not shortage:
                        logger.warning("no connections can be accepted at the moment: %s", error)
                    shortage = True
                    self._evict()
                    await asyncio.sleep(_SHORTAGE_PAUSE)
                # Other errors concern the one connection, which has ended already.
                continue
            except asyncio.CancelledError:
                if listening.accepted is not None:
                    listening.accepted.close()
                raise
            listening.accepted = None
            if shortage:
                logger.info("connections are accepted again")
                shortage = False
            try:
                await self._wait_for_room()
                await loop.connect_accepted_socket(lambda: _Connection(self._factory(), self), connection)
            except OSError as error:
                logger.debug("a connection ended at once: %s", error)
                connection.close()
            except BaseException:
                connection.close()
                raise

    async def _wait_for_room(self) -> None:
        """Wait until one more connection may be open."""
        while len(self._connections) >= self._limit:
            self._freed.clear()
            self._evict()
            await self._freed.wait()

    def _evict(self) -> None:
        """Close the oldest connection without a request."""
        oldest = next((connection for connection in self._connections if not connection.busy), None)
        if oldest is not None:
            oldest.abort()
