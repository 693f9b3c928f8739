"""Progress bars for terminals and notebooks (extra `cli`: `pip install 'wme-async[cli]'`).

    from wme_async.progress import bar

    with bar("enwiki_namespace_0") as progress:
        await hour.download("enwiki_namespace_0", "data/", progress=progress)

A bar is the `progress` argument of downloads, syncs, look-ups and jobs. In a terminal it is drawn by rich on standard
error; in a notebook it is an element of the page; elsewhere, such as in a log file, nothing is drawn.
"""

import html
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, Union

from wme_async._client.sync_report import SyncFile, SyncProgress
from wme_async._download import Progress
from wme_async._text import size_text

if TYPE_CHECKING:
    from rich.console import Console

    import wme_async.jobs
    from wme_async._client.concurrent_lookups import LookupProgress
    from wme_async.tasks import PlanProgress

__all__ = ["Bar", "ProgressReport", "bar"]

ProgressReport: TypeAlias = Union[  # names in quotes, of modules that are not imported for them
    Progress, SyncProgress, "LookupProgress", "wme_async.jobs.Batch", "PlanProgress"
]
"""What a bar can show: the progress of a download, a sync, look-ups, a batch of jobs, or a plan of bulk work."""


class _Line(NamedTuple):
    """One line of progress.

    Attributes:
        text: What it is, and counts.
        done: Bytes or names.
        total: The same at the end; None if unknown.
        amount: `done` of `total` in words.
        rate: Speed and the remaining time in words.
        failed: The files that failed so far.
    """

    text: str
    done: int
    total: int | None
    amount: str
    rate: str
    failed: Sequence[SyncFile] = ()


class _Screen:
    """Where lines of progress are drawn; this one draws nothing, since the output is a file or a pipe."""

    def start(self) -> None:
        """Begin to draw."""

    def stop(self) -> None:
        """Draw the final state."""

    def add(self, line: _Line) -> Any:
        """Draw another line, and return its key."""

    def update(self, key: Any, line: _Line) -> None:
        """Draw a line anew."""

    def remove(self, key: Any) -> None:
        """Remove a line."""

    def message(self, text: str) -> None:
        """Draw a message above or below the lines."""


class Bar:
    """A progress bar: a context manager, also an async one, and the `progress` argument of the calls inside it.

    `add` makes more bars below it, for several downloads at once. Made by `bar`.
    """

    def __init__(self, label: str, screen: _Screen, *, parent: "Bar | None" = None) -> None:
        self._label = label
        self._screen = screen
        self._parent = parent
        self._key: Any = None
        self._has_progress = False
        self._reported_failures = 0

    def __enter__(self) -> Self:
        if self._parent is None:
            self._screen.start()
        if self._label:
            self._key = self._screen.add(_Line(self._label, 0, None, "connecting", ""))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Without any progress there was nothing to do, or an error says why.
        if self._key is not None and (self._parent is not None or not self._has_progress):
            self._screen.remove(self._key)
        if self._parent is None:
            self._screen.stop()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, progress: ProgressReport) -> None:
        """Show progress.

        Args:
            progress: From a download, a sync, look-ups, a batch of jobs or a plan.
        """
        self._has_progress = True
        line = _line_of(self._label, progress)
        if self._key is None:
            self._key = self._screen.add(line)
        else:
            self._screen.update(self._key, line)
        for file in line.failed[self._reported_failures :]:
            self._screen.message(f"{file.identifier}: {file.error}")
        self._reported_failures = len(line.failed)

    def add(self, label: str) -> "Bar":
        """Return another bar on the same screen, which disappears when its block ends.

        Args:
            label: Text before the bar.
        """
        return Bar(label, self._screen, parent=self)


def bar(label: str = "", *, console: "Console | None" = None, shown: bool = True) -> Bar:
    """Make a progress bar for a terminal or a notebook.

    Example:
        >>> async with bar("English batches") as progress:  # doctest: +SKIP
        ...     await hour.sync("data/", filters={"in_language.identifier": "en"}, progress=progress)

    Args:
        label: Text before the bar.
        console: A console of rich to draw on; by default standard error.
        shown: False draws nothing.

    Returns:
        A context manager, to be passed as `progress` inside its block.

    Raises:
        ImportError: Standard error is a terminal, and rich is not installed.
    """
    return Bar(label, _screen(console) if shown else _Screen())


def _screen(console: "Console | None") -> _Screen:
    if console is None and _in_notebook():
        return _Notebook()
    if console.is_terminal if console is not None else sys.stderr.isatty():
        return _Terminal(console)
    return _Screen()


def _in_notebook() -> bool:
    """Return whether the code runs in a kernel of Jupyter."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


class _Terminal(_Screen):
    """Bars on a terminal."""

    def __init__(self, console: "Console | None") -> None:
        try:
            from rich.console import Console  # noqa: PLC0415  # an extra
            from rich.progress import BarColumn, TextColumn  # noqa: PLC0415  # same
            from rich.progress import Progress as Bars  # noqa: PLC0415  # same
        except ImportError as error:
            raise ImportError("progress bars on a terminal need rich: pip install 'wme-async[cli]'") from error
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            TextColumn("{task.fields[amount]}", markup=False),
            TextColumn("{task.fields[rate]}", markup=False, style="dim"),
            console=console if console is not None else Console(stderr=True, markup=False, emoji=False),
            # What is printed to a terminal appears above the bars; a pipe gets it as it is.
            redirect_stdout=sys.stdout.isatty(),
        )

    def start(self) -> None:
        self._bars.start()

    def stop(self) -> None:
        self._bars.stop()

    def add(self, line: _Line) -> Any:
        return self._bars.add_task(line.text, completed=line.done, total=line.total, amount=line.amount, rate=line.rate)

    def update(self, key: Any, line: _Line) -> None:
        self._bars.update(
            key,
            description=line.text,
            completed=line.done,
            total=line.total,
            amount=line.amount,
            rate=line.rate,
        )

    def remove(self, key: Any) -> None:
        self._bars.remove_task(key)

    def message(self, text: str) -> None:
        self._bars.console.print(text, style="red", highlight=False, markup=False, soft_wrap=True)


class _Notebook(_Screen):
    """Bars as one element of a notebook's page, which appears with the first line."""

    def __init__(self) -> None:
        self._lines: dict[int, _Line] = {}
        self._messages: list[str] = []
        self._count = 0
        self._handle: Any = None

    def stop(self) -> None:
        self._draw()

    def add(self, line: _Line) -> int:
        self._count += 1
        self.update(self._count, line)
        return self._count

    def update(self, key: int, line: _Line) -> None:
        self._lines[key] = line
        self._draw()

    def remove(self, key: int) -> None:
        del self._lines[key]
        self._draw()

    def message(self, text: str) -> None:
        self._messages.append(text)
        self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML, display  # type: ignore[import-not-found]  # noqa: PLC0415  # in a notebook

        messages = (f'<div style="color: #b00020">{html.escape(text)}</div>' for text in self._messages)
        element = HTML("".join([*map(_progress_element, self._lines.values()), *messages]))
        if self._handle is None:
            self._handle = display(element, display_id=True)
        else:
            self._handle.update(element)


def _progress_element(line: _Line) -> str:
    value = f' value="{line.done}" max="{line.total}"' if line.total else ""
    words = " ".join(map(html.escape, filter(None, (line.amount, line.rate))))
    return f"<div>{html.escape(line.text)} <progress{value}></progress> {words}</div>"


def _line_of(label: str, progress: Any) -> _Line:
    """Return the line of any kind of progress."""
    words = [label] if label else []
    failed: Sequence[SyncFile] = ()
    if isinstance(progress, SyncProgress):
        failed = progress.failed
        words.append(f"{progress.files_total - progress.files:,} of {progress.files_total:,} files left")
        if failed:
            words.append(f"{len(failed):,} failed")
    elif hasattr(progress, "tasks_total"):
        words.append(f"{progress.tasks_total - progress.tasks:,} of {progress.tasks_total:,} tasks left")
        if progress.restarts:
            words.append(f"restarted {progress.restarts} times")
    elif hasattr(progress, "batch_id"):
        ended = progress.completed_jobs + progress.failed_jobs + progress.cancelled_jobs
        words = [*(words or [progress.batch_id]), f"{ended}/{progress.total_jobs} {progress.status}"]
        progress = progress.progress
    elif hasattr(progress, "missing"):
        words += [f"{count:,} {word}" for word in ("missing", "failed") if (count := getattr(progress, word))]
        amount = f"{progress.done:,}" + ("" if progress.total is None else f" of {progress.total:,}")
        rate = _rate(f"{progress.rate:.1f}/s", progress.eta)
        return _Line(", ".join(words), progress.done, progress.total, amount, rate)
    total = "" if progress.total is None else f" of {size_text(progress.total)}"
    speed = progress.rate
    return _Line(
        ", ".join(words),
        progress.done,
        progress.total,
        f"{size_text(progress.done)}{total}",
        "" if not speed else _rate(f"{size_text(speed)}/s", progress.eta),
        failed,
    )


def _rate(rate: str, eta: float | None) -> str:
    if eta is None:
        return rate
    minutes, seconds = divmod(round(eta), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{rate} {hours}:{minutes:02}:{seconds:02}"
