"""Types of records for tests of bulk work, in a module of their own, since workers import them by name."""

import msgspec


class Page(msgspec.Struct):
    """A page, and the export that it is from."""

    identifier: int
    export: int = 0


class Other(msgspec.Struct):
    """Other columns."""

    identifier: int
