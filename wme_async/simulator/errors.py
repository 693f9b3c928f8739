"""The two ways in which a handler of a host gives up."""

__all__ = ["HTTPError", "Panic"]


class HTTPError(Exception):
    """The request is answered with the error document of the services.

    Args:
        status: The HTTP status.
        message: The text of the document.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Panic(Exception):
    """The handler of the real server panics: 500 with an empty body, or, with `fatal`, the whole process dies."""

    def __init__(self, *, fatal: bool = False) -> None:
        super().__init__("panic")
        self.fatal = fatal
