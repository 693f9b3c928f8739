"""The two ways in which a handler of a host gives up."""

from dataclasses import dataclass

__all__ = ["HTTPError", "Panic"]


@dataclass(eq=False)
class HTTPError(Exception):
    """The request is answered with the error document of the services.

    Args:
        status: The HTTP status.
        message: The text of the document.
    """

    status: int
    message: str


@dataclass(eq=False)
class Panic(Exception):
    """The handler of the real server panics: 500 with an empty body, or, with `fatal`, the whole process dies."""

    fatal: bool = False
