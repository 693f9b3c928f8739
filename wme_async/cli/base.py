"""What all commands share: making a client, running a coroutine, showing records, and saying what went wrong."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import platformdirs
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from wme_async._client import Client
from wme_async._download import Progress
from wme_async._protocol.query import kind_of
from wme_async._protocol.resources import Resource
from wme_async.errors import Forbidden, NotFound, QuotaExceeded, RateLimited, Unauthorized, WMEError

__all__ = [
    "Group",
    "bar",
    "connect",
    "fields_option",
    "has_account",
    "json_option",
    "run",
    "show",
    "show_one",
    "stderr",
    "stdout",
    "where_option",
]

logger: logging.Logger = logging.getLogger("wme_async.cli")

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

# Titles, paths and what servers say may look like markup, and are printed as they are.
stdout: Console = Console(markup=False, emoji=False)
stderr: Console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)

# What a shell script can tell apart. click itself uses 2 for wrong usage.
_EXIT_CODES: Sequence[tuple[type[BaseException], int]] = (
    (NotFound, 3),
    (Unauthorized, 4),
    (Forbidden, 4),
    (QuotaExceeded, 5),
    (RateLimited, 5),
    (WMEError, 1),
    (OSError, 1),
    (ValueError, 2),
)

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line, also on a terminal."
)
fields_option: Callable[[Any], Any] = click.option(
    "--fields",
    metavar="A,B.C",
    help="Only these fields, as dotted names separated by commas.",
    callback=lambda *a: _split(a[2]),
)
where_option: Callable[[Any], Any] = click.option(
    "--where",
    "filters",
    metavar="FIELD=VALUE",
    multiple=True,
    help="Only records with this value; may be given several times.",
)


class Group(click.Group):
    """Commands that fail with one line and an exit code, never with a traceback."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command and say in one line what stopped it."""
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            # Whoever read our output has had enough. Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            context.exit(0)
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
                stderr.print("stopped; the same command continues from what there is so far", style="yellow")
            context.exit(130)
        except (WMEError, OSError, ValueError) as error:
            fail(error, context)


def fail(error: BaseException, context: click.Context) -> None:
    """Print an error in one line and leave with its exit code."""
    stderr.print(Text.assemble((type(error).__name__, "bold red"), f": {error}"), highlight=False)
    for note in getattr(error, "__notes__", ()):
        stderr.print(f"  {note}", style="dim", highlight=False)
    context.exit(next(code for kind, code in _EXIT_CODES if isinstance(error, kind)))


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; SIGINT (Ctrl-C), SIGTERM and SIGHUP cancel it, so that it can save its state.

    Raises:
        KeyboardInterrupt: It was interrupted.
    """

    async def guarded() -> T:
        task = asyncio.current_task()
        assert task is not None
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # Under `nohup` SIGHUP is ignored already, and stays so.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                with contextlib.suppress(NotImplementedError):
                    asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await main

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(guarded())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  # an extra
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


@contextlib.asynccontextmanager
async def connect(context: click.Context) -> AsyncIterator[Client]:
    """Open a client with the options of the command line."""
    options = context.find_root().params
    token_file = _token_file(options.get("token_file"))
    async with Client.from_env(options.get("env_file"), token_file=token_file) as client:
        yield client


def has_account(context: click.Context) -> bool:
    """Say whether there are credentials: in the environment, or in a file that is named."""
    named = context.find_root().params.get("env_file")
    return bool(named or os.environ.get("WME_ACCESS_TOKEN") or os.environ.get("WME_USERNAME"))


def _token_file(named: str | None) -> Path | None:
    """Return where tokens are kept for the next command; None where the usual place cannot be written to."""
    path = Path(named) if named else platformdirs.user_state_path("wme-async") / "tokens.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        if named:
            raise
        logger.warning("tokens are not kept for the next command: %s", error)
        return None
    return path


def configure_logging(verbosity: int) -> None:
    """Log to standard error: warnings, with `-v` what is retried, with `-vv` every request."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def conditions(filters: Sequence[str], row: Resource) -> dict[str, Any]:
    """Make filters of `FIELD=VALUE`, each value of its field's type.

    Args:
        filters: As given.
        row: What they are to filter.

    Raises:
        click.BadParameter: No `=`, the same field twice, or a value that is not of the field's type.
    """
    assert row.backend is not None
    made: dict[str, Any] = {}
    for each in filters:
        name, sign, text = each.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{each!r} is not FIELD=VALUE, such as in_language.identifier=en")
        if name in made:
            raise click.BadParameter(f"{name} is given twice")
        made[name] = _typed(name, text, kind_of(row.model, row.backend, name))
    return made


def _typed(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in {"true", "false"}:
            raise click.BadParameter(f"{name} is true or false, not {text!r}")
        return text.lower() == "true"
    if kind in {int, float}:
        try:
            return kind(text)
        except ValueError:
            raise click.BadParameter(f"{name} is a {'whole ' * (kind is int)}number, not {text!r}") from None
    return text


def _split(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()] if text else None


def show(records: Iterable[Any], *, as_json: bool, columns: Sequence[str], title: str) -> None:
    """Show records: a table on a terminal, JSON lines into a pipe."""
    if as_json or not stdout.is_terminal:
        for record in records:
            line(record)
        return
    table = Table(title=title, header_style="bold", title_justify="left")
    for column in columns:
        table.add_column(column)
    count = 0
    for record in records:
        plain = msgspec.to_builtins(record)
        table.add_row(*(_cell(plain, column) for column in columns))
        count += 1
    stdout.print(table)
    stdout.print(f"{count} in all", style="dim")


def show_one(record: Any, *, as_json: bool) -> None:
    """Show one record: indented on a terminal, one JSON line into a pipe."""
    if as_json or not stdout.is_terminal:
        line(record)
    else:
        stdout.print_json(msgspec.json.encode(record).decode())


def line(record: Any) -> None:
    """Write a record as one line of JSON, in the bytes that the encoder made."""
    sys.stdout.buffer.write(msgspec.json.encode(record) + b"\n")
    sys.stdout.buffer.flush()


def _cell(record: Any, column: str) -> str:
    bare = column.removesuffix("*").removesuffix(".")
    value = _inside(record, bare.split(".") if bare else [])
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _inside(value: Any, keys: Sequence[str]) -> Any:
    if not keys:
        return value
    if isinstance(value, list | tuple):
        return [_inside(each, keys) for each in value]
    return _inside(value.get(keys[0], ""), keys[1:]) if isinstance(value, dict) else ""


@contextlib.contextmanager
def bar(label: str, *, shown: bool = True) -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar on standard error while a download runs."""
    if not shown or not stderr.is_terminal:
        yield lambda _: None
        return
    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=stderr,
    )
    with bars:
        task = bars.add_task(label, total=None)

        def move(progress: Progress) -> None:
            bars.update(task, completed=progress.done, total=progress.total)

        yield move
