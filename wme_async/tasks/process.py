"""One event loop and one client for all synchronous calls of a process."""

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from wme_async._client.client import Client

__all__ = ["run_in_process"]

T = TypeVar("T")

OpenClient: TypeAlias = Callable[[], contextlib.AbstractAsyncContextManager[Client]]

_CLOSING = 5.0  # seconds for closing the clients at the end of the process


class _Loop:
    """An event loop in a thread, with a client for each account and address of the environment."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._clients: dict[tuple[tuple[str, str], ...], Client] = {}
        self._stack = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        # Not waited for at the end of the process; `close` ends it before.
        self._thread = threading.Thread(target=self._loop.run_forever, name="wme_async tasks", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[Client], Coroutine[Any, Any, T]], open_client: OpenClient) -> T:
        ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(self._run(work, open_client, ended), self._loop)
        try:
            return future.result()
        except BaseException:
            # After an interruption of this thread, the work removes its unfinished files first.
            if future.cancel():
                ended.wait(_CLOSING)
            raise

    async def _run(
        self,
        work: Callable[[Client], Coroutine[Any, Any, T]],
        open_client: OpenClient,
        ended: threading.Event,
    ) -> T:
        try:
            return await work(await self._client(open_client))
        finally:
            ended.set()

    async def _client(self, open_client: OpenClient) -> Client:
        key = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("WME_")))
        async with self._opening:
            if key not in self._clients:
                self._clients[key] = await self._stack.enter_async_context(open_client())
        return self._clients[key]

    def close(self) -> None:
        """Close the clients and end the thread."""
        if self.pid == os.getpid() and self._thread.is_alive():
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._stack.aclose(), self._loop).result(_CLOSING)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSING)
            if not self._thread.is_alive():
                self._loop.close()


_lock = threading.Lock()
_loops: list[_Loop] = []


def run_in_process(work: Callable[[Client], Coroutine[Any, Any, T]], open_client: OpenClient) -> T:
    """Run a coroutine with the client of this process, and return its result.

    Args:
        work: Receives the client.
        open_client: Opens a client of the present environment.

    Raises:
        BaseException: Any exception of the coroutine or of opening the client.
    """
    with _lock:
        # A forked child has the list of its parent, and not its thread.
        if not _loops or _loops[-1].pid != os.getpid():
            _loops.append(_Loop())
            atexit.register(_loops[-1].close)
    return _loops[-1].run(work, open_client)
