"""The first item of a response body, before the response begins."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

__all__ = ["fetch_first"]

T = TypeVar("T")


async def fetch_first(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Fetch the first item of a body before its response begins, and return all items.

    An error before the first item, such as `NotFound`, is then raised here and becomes a response of its own. A
    response that has begun can only be cut.

    Example:
        >>> return StreamingResponse(await fetch_first(lines()))  # doctest: +SKIP

    Args:
        items: An async generator.

    Returns:
        The items, from the first on. Closing them closes the generator.

    Raises:
        BaseException: Any exception of the generator before its first item.
    """
    try:
        first = await anext(items)
    except StopAsyncIteration:
        return items
    return _chain(first, items)


async def _chain(first: T, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    async with aclosing(items):
        yield first
        async for item in items:
            yield item
