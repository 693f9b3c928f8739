"""What all commands share: making a client, running a coroutine, showing records, and saying what went wrong."""

import asyncio
import contextlib
import io
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click
import msgspec
import platformdirs
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from wme_async import _platform
from wme_async._client import Client
from wme_async._client.resources import Resource
from wme_async._download import Progress
from wme_async._query.query import filter_type
from wme_async._transport import SessionPool
from wme_async.cli.terminal import LogFormatter, echo, json_line, one_line, stderr, stdout, visible
from wme_async.errors import Forbidden, NotFound, QuotaExceeded, RateLimited, Unauthorized, WMEError

__all__ = [
    "Root",
    "bar",
    "connect",
    "echo",
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

# What a shell script can tell apart, documented in docs/cli.md. click itself uses 2 for wrong usage.
_EXIT_CODES: Sequence[tuple[type[BaseException], int]] = (
    (NotFound, 3),
    (Unauthorized, 4),
    (Forbidden, 4),
    (QuotaExceeded, 5),
    (RateLimited, 5),
    (WMEError, 1),
    (OSError, 1),
    (ValueError, 2),
    (ImportError, 1),
)
_EXIT_UNEXPECTED = 1
# More than an event loop of libuv has been seen to open.
_LOOP_DESCRIPTORS = 12
_EXIT_INTERRUPTED = 130

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


class Root(click.Group):
    """The door of the command line: every exception becomes one line and an exit code.

    `-vv` shows the traceback.
    """

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """Parse the arguments, and show help if it is asked for.

        Args:
            *arguments: As for `click.Command`.
            **extra: As for `click.Command`.
        """
        with _exits():
            return super().make_context(*arguments, **extra)

    def invoke(self, context: click.Context) -> Any:
        """Run the command.

        Args:
            context: As for `click.Command`.
        """
        with _exits():
            result = super().invoke(context)
            # A full disk must not be noticed only at the end of the interpreter.
            sys.stdout.flush()
            return result


@contextlib.contextmanager
def _exits() -> Iterator[None]:
    """Turn every exception into a message and `click.exceptions.Exit`."""
    try:
        yield
    except click.exceptions.Exit as error:
        code = error.exit_code
        if _flush(sys.stdout) is not None:
            code = code or 1
    except BrokenPipeError:
        # The reader of the output has had enough.
        code = 0
    except (KeyboardInterrupt, click.Abort):
        code = _EXIT_INTERRUPTED
        _say("stopped; the same command continues from what there is so far", style="yellow")
    except click.ClickException as error:
        code = error.exit_code
        message = io.StringIO()
        error.show(message)
        with contextlib.suppress(OSError, ValueError):
            click.echo(visible(message.getvalue()), err=True, nl=False)
    except Exception as error:  # noqa: BLE001  # the door
        code = _fail(error)
    else:
        return
    _flush(sys.stdout)
    _flush(sys.stderr)
    raise click.exceptions.Exit(code) from None


def _fail(error: Exception) -> int:
    """Print an exception in one line and return its exit code."""
    logger.debug("the command failed", exc_info=error)
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    code = next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), None)
    hint = "" if code is not None or logger.isEnabledFor(logging.DEBUG) else " (-vv shows where)"
    message = one_line(str(error)) or "no further information"
    _say(Text.assemble((type(error).__name__, "bold red"), f": {message}{hint}"))
    for note in getattr(error, "__notes__", ()):
        _say(f"  {one_line(note)}", style="dim")
    return _EXIT_UNEXPECTED if code is None else code


def _say(message: str | Text, *, style: str | None = None) -> None:
    # Standard error may be full or closed; the exit code is left.
    with contextlib.suppress(OSError, ValueError):
        stderr.print(message, style=style, highlight=False)


def _flush(stream: TextIO) -> OSError | None:
    """Flush a standard stream, and discard its output from now on if that fails.

    Python would complain once more when it flushes at exit.
    """
    try:
        stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
        return error
    except ValueError:
        pass
    return None


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; SIGINT (Ctrl-C), SIGTERM and SIGHUP cancel it, so that it can save its state.

    Raises:
        KeyboardInterrupt: It was interrupted.
    """

    async def guarded() -> T:
        task = asyncio.current_task()
        assert task is not None
        _platform.on_signals(asyncio.get_running_loop(), ("SIGTERM", "SIGHUP"), task.cancel)
        return await main

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            # Without descriptors no event loop can be made, and nothing would await a coroutine made before it.
            runner.get_loop()
            return runner.run(guarded())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        main.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  # an extra
    except ImportError:
        return None

    def make() -> asyncio.AbstractEventLoop:
        # libuv aborts the process if it cannot open the descriptors of a loop.
        with contextlib.ExitStack() as stack:
            for _ in range(_LOOP_DESCRIPTORS):
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop

    return make


@contextlib.asynccontextmanager
async def connect(context: click.Context) -> AsyncIterator[Client]:
    """Open a client with the options of the command line."""
    options = context.find_root().params
    token_file = _token_file(options.get("token_file"))
    async with (
        session_pool(context) as pool,
        Client.from_env(options.get("env_file"), token_file=token_file, pool=pool) as client,
    ):
        yield client


def session_pool(context: click.Context) -> SessionPool:
    """Make a pool with the proxy of the command line, or else those of the environment."""
    proxy = context.find_root().params.get("proxy")
    return SessionPool(proxy=proxy, trust_env=proxy is None)


def has_account(context: click.Context) -> bool:
    """Say whether there are credentials: in the environment, or in a file that is named."""
    named = context.find_root().params.get("env_file")
    return bool(named or os.environ.get("WME_ACCESS_TOKEN") or os.environ.get("WME_USERNAME"))


def _token_file(named: str | None) -> Path | None:
    """Return where tokens are kept for the next command; None where the usual place cannot be written to."""
    try:
        # RuntimeError and KeyError: there is no HOME, and no entry of this user in the system's list.
        path = Path(named) if named else platformdirs.user_state_path("wme-async") / "tokens.json"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError, KeyError) as error:
        if named:
            raise
        logger.warning("tokens are not kept for the next command: %s", error)
        return None
    return path


def configure_logging(verbosity: int) -> None:
    """Log to standard error: warnings, with `-v` what is retried, with `-vv` every request."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


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
        made[name] = _typed(name, text, filter_type(row.model, row.backend, name))
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
        # The door of the console writes the other control characters as JSON does.
        stdout.print_json(msgspec.json.encode(record).decode())


def line(record: Any) -> None:
    """Write a record as one line of JSON."""
    json_line(msgspec.json.encode(record))


def _cell(record: Any, column: str) -> str:
    bare = column.removesuffix("*").removesuffix(".")
    value = _inside(record, bare.split(".") if bare else [])
    # Here too, so that the width of the column is right.
    return one_line(value if isinstance(value, str) else msgspec.json.encode(value).decode())


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
        task = bars.add_task(one_line(label), total=None)

        def move(progress: Progress) -> None:
            bars.update(task, completed=progress.done, total=progress.total)

        yield move
