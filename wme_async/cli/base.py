"""Shared by all commands: clients, the event loop, options, output of records, and errors with exit codes."""

import asyncio
import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, TextIO, TypeVar

import click
import msgspec
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from wme_async import _platform
from wme_async._client.paths import is_relative_hour
from wme_async._client.resources import Resource
from wme_async._download import Progress
from wme_async._query.query import filter_type
from wme_async._tasks import first_cause
from wme_async.cli.accounts import connect, has_account, session_pool
from wme_async.cli.messages import message_of
from wme_async.cli.terminal import LogFormatter, echo, json_line, one_line, stderr, stdout
from wme_async.errors import Forbidden, NotFound, QuotaExceeded, RateLimited, Unauthorized, WMEError

__all__ = [
    "CONTINUES",
    "EXIT_CODES",
    "PlaceCommand",
    "Root",
    "connect",
    "download_bar",
    "echo",
    "fields_option",
    "has_account",
    "json_option",
    "line",
    "parse_filters",
    "place_text",
    "progress_bar",
    "run",
    "session_pool",
    "show",
    "show_one",
    "skip_bad_option",
    "stderr",
    "stdout",
    "when_stopped",
    "where_option",
]

logger: logging.Logger = logging.getLogger("wme_async.cli")

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

# For shell scripts, documented in docs/cli.md. click itself uses 2 for wrong usage.
EXIT_CODES: Sequence[tuple[type[BaseException], int]] = (
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
# An event loop of libuv opens fewer.
_LOOP_DESCRIPTORS = 12
_EXIT_INTERRUPTED = 130
_STOPPED = "wme_async.cli.stopped"
CONTINUES = "the same command continues from here"

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line, also on a terminal."
)
fields_option: Callable[[Any], Any] = click.option(
    "--fields",
    metavar="A,B.C",
    help="Only these fields, as dotted names separated by commas.",
    callback=lambda _context, _option, text: _split(text),
)
where_option: Callable[[Any], Any] = click.option(
    "--where",
    "filters",
    metavar="FIELD=VALUE",
    multiple=True,
    help="Only records with this value; repeatable.",
)
skip_bad_option: Callable[[Any], Any] = click.option(
    "--skip-bad",
    "on_bad_record",
    is_flag=True,
    help="Skip and count records that do not decode, rather than fail.",
    callback=lambda _context, _option, skip: "skip" if skip else "raise",
)


# Click takes an argument that begins with a dash for an option. No argument begins with this prefix.
_AGO = "ago:"


class PlaceCommand(click.Command):
    """A command whose arguments may include `-3h`, which is an hour and not an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, relative hours included.

        Args:
            ctx: The context of the command.
            args: The arguments of the command line.
        """
        return super().parse_args(
            ctx, [f"{_AGO}{text}" if text[:1] == "-" and is_relative_hour(text) else text for text in args]
        )


def place_text(argument: str) -> str:
    """Return an hour or a snapshot as it was typed, from an argument of a `PlaceCommand`."""
    return argument.removeprefix(_AGO)


class Root(click.Group):
    """The root of the command line: every exception becomes one line and an exit code.

    `-vv` shows the traceback.
    """

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """Parse the arguments; `--help` shows help.

        Args:
            *arguments: As for `click.Command`.
            **extra: As for `click.Command`.
        """
        with _exits({}):
            return super().make_context(*arguments, **extra)

    def invoke(self, context: click.Context) -> Any:
        """Run the command.

        Args:
            context: As for `click.Command`.
        """
        with _exits(context.meta):
            result = super().invoke(context)
            # A full disk is an error of the command, not of the interpreter's exit.
            sys.stdout.flush()
            return result


def when_stopped(message: str | None) -> None:
    """Set what the current command says when it is stopped by Ctrl-C or another signal, such as how to go on.

    Args:
        message: Follows "stopped; "; None to say no more than that.
    """
    click.get_current_context().meta[_STOPPED] = message


@contextlib.contextmanager
def _exits(meta: dict[str, Any]) -> Iterator[None]:
    """Turn every exception into a message and `click.exceptions.Exit`.

    Args:
        meta: The shared data of the contexts, with the message of `when_stopped`.
    """
    try:
        yield
    except click.exceptions.Exit as error:
        code = error.exit_code
        if _flush(sys.stdout) is not None:
            code = code or 1
    except BrokenPipeError:
        # The reader of the output has closed the pipe.
        code = 0
    except (KeyboardInterrupt, click.Abort):
        code = _EXIT_INTERRUPTED
        _say("; ".join(filter(None, ("stopped", meta.get(_STOPPED)))), style="yellow")
    except click.ClickException as error:
        code = error.exit_code
        _say_error(_usage_message(error))
    except Exception as error:  # noqa: BLE001  # the outermost handler
        code = _fail(error)
    else:
        return
    _flush(sys.stdout)
    _flush(sys.stderr)
    raise click.exceptions.Exit(code) from None


def _fail(error: Exception) -> int:
    """Print an exception in one line and return its exit code."""
    logger.debug("the command failed", exc_info=error)
    cause = first_cause(error)
    code = next((code for kind, code in EXIT_CODES if isinstance(cause, kind)), None)
    message = one_line(message_of(cause)) or "no further information"
    if code is None:  # an error of this program, whose class says more than its message
        hint = "" if logger.isEnabledFor(logging.DEBUG) else " (-vv shows where)"
        message = f"{type(cause).__name__}: {message}{hint}"
    _say_error(message)
    for note in getattr(cause, "__notes__", ()):
        _say(f"  {one_line(note)}", style="dim")
    return _EXIT_UNEXPECTED if code is None else code


def _usage_message(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    message = one_line(error.format_message())
    return message if context is None else f"{message} (see {context.command_path} --help)"


def _say_error(message: str) -> None:
    _say(Text.assemble(("Error", "bold red"), f": {message}"))


def _say(message: str | Text, *, style: str | None = None) -> None:
    # Standard error may be full or closed; the exit code still shows the failure.
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
        KeyboardInterrupt: A signal cancelled it.
    """

    async def guarded() -> T:
        task = asyncio.current_task()
        assert task is not None
        _platform.on_signals(asyncio.get_running_loop(), ("SIGTERM", "SIGHUP"), task.cancel)
        return await main

    try:
        with asyncio.Runner(loop_factory=_new_event_loop) as runner:
            # Without descriptors this fails, before a coroutine exists that nothing would await.
            runner.get_loop()
            return runner.run(guarded())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        main.close()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    # Without descriptors libuv aborts the process, and asyncio leaves half a loop behind.
    with contextlib.ExitStack() as stack:
        for _ in range(_LOOP_DESCRIPTORS):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
    try:
        import uvloop  # noqa: PLC0415  # an extra
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def configure_logging(verbosity: int) -> None:
    """Log to standard error: warnings, with `-v` what is retried, with `-vv` every request."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger().setLevel(level)


def parse_filters(texts: Sequence[str], resource: Resource) -> dict[str, Any] | None:
    """Return filters by field, each value of its field's type; None without filters.

    Args:
        texts: `FIELD=VALUE` each.
        resource: The resource of the query.

    Raises:
        click.BadParameter: No `=`, the same field twice, or a value that is not of the field's type.
    """
    assert resource.backend is not None
    filters: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{text!r} is not FIELD=VALUE, such as in_language.identifier=en")
        if name in filters:
            raise click.BadParameter(f"{name} occurs twice")
        filters[name] = _convert(name, value, filter_type(resource.model, resource.backend, name))
    return filters or None


def _convert(name: str, text: str, kind: type) -> Any:
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
        # The console writes the other control characters as JSON does.
        stdout.print_json(msgspec.json.encode(record).decode())


def line(record: Any) -> None:
    """Write a record as one line of JSON."""
    json_line(msgspec.json.encode(record))


def _cell(record: Any, column: str) -> str:
    name = column.removesuffix("*").removesuffix(".")
    value = _lookup(record, name.split(".") if name else [])
    # The console does the same, but only after it has measured the column.
    return one_line(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def _lookup(value: Any, names: Sequence[str]) -> Any:
    if not names:
        return value
    if isinstance(value, list | tuple):
        return [_lookup(item, names) for item in value]
    return _lookup(value.get(names[0], ""), names[1:]) if isinstance(value, dict) else ""


@contextlib.contextmanager
def progress_bar(label: str, *, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error; without a terminal nothing.

    Args:
        label: Text before the bar.
        shown: Whether to show it.

    Yields:
        A function that moves the bar: `completed` and `total` bytes, and `description`.
    """
    if not shown or not stderr.is_terminal:
        yield lambda **_: None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars(TextColumn("{task.description}", markup=False), *columns, console=stderr) as bars:
        task = bars.add_task(one_line(label), total=None)
        yield functools.partial(bars.update, task)


@contextlib.contextmanager
def download_bar(label: str, *, quiet: bool = False) -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar while a download runs; yield its progress hook."""
    with progress_bar(label, shown=not quiet) as move:
        yield lambda progress: move(completed=progress.done, total=progress.total)
