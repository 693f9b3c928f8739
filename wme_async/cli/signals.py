"""The signals that stop a command: the first lets it save its state, a later one ends it at once."""

import asyncio
import atexit
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

EXIT_INTERRUPTED: Final = 130
_NAMES: Final = ("SIGINT", "SIGTERM", "SIGHUP")
_GRACE: Final = (
    1.0  # seconds; a terminal, a shell and a wrapper such as `uv run` may each send the signal of one Ctrl-C
)
_SHOW_CURSOR: Final = b"\x1b[?25h"


class StopSignals:
    """The handler of SIGINT (Ctrl-C), SIGTERM and SIGHUP.

    The first signal cancels the task of the command, or raises `KeyboardInterrupt` where none runs. Others within a
    second change nothing. A later one ends the process with exit code 130, as `kill -9` would.

    Attributes:
        received: Whether a signal has arrived.

    Args:
        grace: Seconds after the first signal in which others change nothing.
    """

    def __init__(self, grace: float = _GRACE) -> None:
        self.received: bool = False
        self._grace = grace
        self._time = 0.0
        self._task: asyncio.Task[Any] | None = None

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: It is the first, and no task runs.
        """
        now = time.monotonic()
        if not self.received:
            self.received, self._time = True, now
            if self._task is None:
                raise KeyboardInterrupt
            if not self._task.done():
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        elif now - self._time > self._grace:
            # Not `print`: the signal may have interrupted another one.
            with contextlib.suppress(OSError):
                os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + b"stopped at once\n")
            os._exit(EXIT_INTERRUPTED)

    def cancel(self, task: "asyncio.Task[Any] | None") -> None:
        """Set the task that the first signal cancels; None for none."""
        self._task = task


def _handle(handler: StopSignals) -> dict[int, Any]:
    """Install a handler, and return the handlers before. Signals that the process ignores stay so: `nohup`."""
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    return {
        number: signal.signal(number, handler) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN
    }


_of_process: StopSignals | None = None


def handle_in_process() -> None:
    """Handle the signals until the process ends, also while the interpreter shuts down."""
    global _of_process  # noqa: PLW0603  # signals are handled once in a process
    handler = _of_process = StopSignals()

    def ignore() -> None:
        # The interpreter's last step would restore the default, which ends the process by the signal.
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    # The first function that is registered is the last one that is called.
    atexit.register(ignore)
    numbers = _handle(handler)


@contextlib.contextmanager
def handled() -> Iterator[StopSignals]:
    """Handle the signals for a block, at least.

    Yields:
        Their handler.

    Raises:
        KeyboardInterrupt: A signal arrived after the task had ended.
    """
    if _of_process is not None:
        handler, previous = _of_process, {}
    else:
        handler = StopSignals()
        previous = _handle(handler)
    try:
        yield handler
    finally:
        handler.cancel(None)
        for number, function in previous.items():
            signal.signal(number, signal.SIG_DFL if function is None else function)
    if handler.received:
        raise KeyboardInterrupt
