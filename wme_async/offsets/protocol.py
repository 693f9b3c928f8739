"""What a store of positions has to do."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from wme_async._protocol.positions import Position
from wme_async.errors import StreamError

__all__ = ["ClaimingStore", "OffsetStore", "check_name", "check_positions", "in_use"]


class OffsetStore(Protocol):
    """Keeps positions by name and partition.

    A name is `"<name of the stream>/<resource>"`, such as `"default/articles"`; to a store it is any string. The checks
    in `wme_async.offsets.conformance` say what else is expected.
    """

    async def load(self, name: str) -> Mapping[int, Position]:
        """Return the last saved position of each partition; empty for a name that was never saved."""
        ...

    async def save(self, name: str, positions: Mapping[int, Position]) -> None:
        """Keep these positions and leave those of other partitions as they are: all of them, or none if it fails.

        When it returns, a later process must find them. It may be called with nothing.
        """
        ...


@runtime_checkable
class ClaimingStore(OffsetStore, Protocol):
    """A store that also notices when two readers use one name at a time.

    Two readers of one name would each save their own progress over the other's, and events between the two would be
    lost at the next start. A stream claims its name while it is open if the store can do that.
    """

    def claim(self, name: str) -> AbstractAsyncContextManager[None]:
        """Return a context manager within which no other reader can claim the name.

        The claim must end with its process, also if that is killed, and must not need renewal by the caller.

        Raises:
            StreamError: On entering, if another live reader holds the name.
        """
        ...


def check_name(name: object) -> None:
    """Refuse what is no name; it would be found under another one, or not at all.

    Raises:
        TypeError: It is no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of positions is text such as 'default/articles', not {name!r}")


def check_positions(name: object, positions: object) -> None:
    """Refuse what could be written and not read again.

    Raises:
        TypeError: The name is no text, or the positions are not `Position`s by the number of their partition.
    """
    check_name(name)
    if not isinstance(positions, Mapping):
        raise TypeError(f"positions are a dict of partition and Position, not {positions!r}")
    for partition, position in positions.items():
        whole = isinstance(partition, int) and not isinstance(partition, bool)
        if not whole or not isinstance(position, Position):
            raise TypeError(f"positions are a dict of partition and Position, and {partition!r}: {position!r} is none")


def in_use(name: str, holder: str) -> StreamError:
    """Return the error for a second reader of a name."""
    return StreamError(
        f"positions {name!r} are in use by another reader ({holder}): stop that one, or give this stream another name="
    )
