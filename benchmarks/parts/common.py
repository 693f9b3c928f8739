"""Shared by the parts: paths, and the ways in which a case is left out."""

import dataclasses
import functools
import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from inputs import Inputs
from servers import Nginx, StreamServer

__all__ = ["Bench", "clear", "lacks", "script"]

_HERE = Path(__file__).parent.parent


@dataclasses.dataclass(kw_only=True)
class Bench:
    """The inputs and servers of the cases.

    Attributes:
        inputs: Makes the files.
        work: A folder for downloads.
        folder: One for lists and settings.
        nginx: Serves the inputs, None where it is not installed.
        streams: Serves ready-made answers.
        rounds: How many rounds count, for scripts that count their own.
    """

    inputs: Inputs
    work: Path
    folder: Path
    nginx: Nginx | None
    streams: StreamServer
    rounds: int

    @property
    def servers(self) -> list[int]:
        """Their processes."""
        return [self.streams.pid, *([self.nginx.pid] if self.nginx else [])]


def script(name: str, *arguments: object) -> list[str]:
    """Return the command that runs one of the scripts beside this folder."""
    return [sys.executable, str(_HERE / f"{name}.py"), *map(str, arguments)]


def lacks(*, programs: tuple[str, ...] = (), packages: tuple[str, ...] = ()) -> str | None:
    """Return why a case cannot be run: which program or package is not there."""
    missing = [name for name in programs if shutil.which(name) is None]
    missing += [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def clear(folder: Path) -> Callable[[], None]:
    """Return a function that empties a folder."""
    return functools.partial(_clear, folder)


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
