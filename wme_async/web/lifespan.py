"""The lifespan of your own web service: what it opens, and the jobs in its background."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from wme_async._arguments import check_functions
from wme_async._tasks import end_task

__all__ = ["Lifespan"]

_logger = logging.getLogger("wme_async.web")

T = TypeVar("T")


class Lifespan:
    """Opens what a web service uses and runs its jobs, from its start to its shutdown.

    Pass it to Starlette, FastAPI or Litestar (there in a list) as `lifespan`. Each start of the application calls a
    function of yours, which opens things and starts jobs in order. At shutdown, or if the function raises, they are
    ended in the opposite order.

    Example:
        >>> async def start(app, service):
        ...     app.state.wme = await service.open(Client.from_env())  # doctest: +SKIP
        ...     service.run(copy_batches(app.state.wme))
        >>> service = Lifespan(start)
        >>> app = FastAPI(lifespan=service)  # doctest: +SKIP

    Args:
        start: An async function of the application and this object.

    Raises:
        TypeError: `start` is not a function.
    """

    def __init__(self, start: Callable[[Any, "Lifespan"], Awaitable[None]]) -> None:
        check_functions(start=start)
        self._start = start
        self._stack: AsyncExitStack | None = None
        self._opened: list[object] = []
        self._failure: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Lifespan {'closed' if self._stack is None else 'open'}>"

    def __call__(self, app: Any) -> AbstractAsyncContextManager[None]:
        """Return the context manager of one run of an application; the web framework calls it.

        Args:
            app: The application.
        """
        return self._run_application(app)

    @asynccontextmanager
    async def _run_application(self, app: Any) -> AsyncGenerator[None, None]:
        if self._stack is not None:
            raise RuntimeError("the application runs already; each one needs a Lifespan of its own")
        self._opened, self._failure = [], None
        try:
            async with AsyncExitStack() as self._stack:
                await self._start(app, self)
                yield
        finally:
            self._stack = None

    async def open(self, resource: AbstractAsyncContextManager[T]) -> T:
        """Enter a context manager, such as a client, a relay or a mirror, and leave it at shutdown.

        Args:
            resource: The context manager.

        Returns:
            What `async with … as` would give.

        Raises:
            RuntimeError: The application does not run.
            Exception: Any exception of the context manager.
        """
        value = await self._running().enter_async_context(resource)
        self._opened.append(resource)
        return value

    def run(self, job: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine in the background, and cancel it at shutdown. If it fails, the log and `failure` say so.

        Args:
            job: The coroutine.

        Raises:
            RuntimeError: The application does not run.
        """
        try:
            stack = self._running()
        except RuntimeError:
            job.close()
            raise
        name = getattr(job, "__qualname__", "of a service")
        task = asyncio.create_task(self._watch(job, name), name=f"wme job {name}")
        stack.push_async_callback(end_task, task, again=True)

    @property
    def failure(self) -> BaseException | None:
        """The exception of the first job that failed, or of a relay whose stream has ended; None if all is well."""
        if self._failure is not None:
            return self._failure
        failures = (getattr(resource, "failure", None) for resource in self._opened)
        return next((failure for failure in failures if failure is not None), None)

    def _running(self) -> AsyncExitStack:
        if self._stack is None:
            raise RuntimeError("the application does not run: open resources and run jobs in the function `start`")
        return self._stack

    async def _watch(self, job: Coroutine[Any, Any, object], name: str) -> None:
        try:
            await job
        except Exception as error:  # the health check of the service reports it
            _logger.exception("the job %s has failed", name)
            self._failure = self._failure or error
