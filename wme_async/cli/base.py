"""Shared by all commands: clients, the event loop, options, output of records, and errors with exit codes."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TextIO, TypeVar

import click
from rich.text import Text

from wme_async._client.client import Client
from wme_async._client.paths import is_relative_hour
from wme_async._client.resources import Resource
from wme_async._query.backends import Backend
from wme_async._query.query import filter_type
from wme_async._tasks import first_cause
from wme_async._text import count_text, did_you_mean
from wme_async.cli import signals
from wme_async.cli.accounts import connect, has_account, session_pool
from wme_async.cli.messages import message_of
from wme_async.cli.tables import line, show, show_one, values_line
from wme_async.cli.terminal import LogFormatter, echo, one_line, stderr, stdout
from wme_async.errors import Forbidden, NotFound, QuotaExceeded, RateLimited, Unauthorized, WMEError
from wme_async.progress import Bar, bar

__all__ = [
    "CONTINUES",
    "EXIT_CODES",
    "AliasedOption",
    "Group",
    "PlaceCommand",
    "Reported",
    "Root",
    "all_of",
    "connect",
    "echo",
    "fields_option",
    "has_account",
    "json_option",
    "line",
    "max_rate_option",
    "merge_field",
    "message_of",
    "metered_text",
    "parse_filters",
    "parse_record_filters",
    "progress_bar",
    "raw_option",
    "run",
    "run_connected",
    "say_error",
    "session_pool",
    "show",
    "show_one",
    "skip_bad_option",
    "stderr",
    "stdout",
    "values_line",
    "values_options",
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
_STOPPED = "wme_async.cli.stopped"
CONTINUES = "the same command continues from here"

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line, also on a terminal."
)


def all_of(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Join decorators of a command into one; they stand in the order of its help."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


class AliasedOption(click.Option):
    """An option whose help shows its first name alone; the others are kept for those who know them."""

    opts: list[str]

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return name and help.

        Args:
            ctx: As for `click.Option`.
        """
        names, self.opts = self.opts, self.opts[:1]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = names


fields_option: Callable[[Any], Any] = click.option(
    "--fields",
    "--field",
    cls=AliasedOption,
    metavar="A,B.C",
    help="Only these fields, as dotted names separated by commas.",
    callback=lambda _context, _option, text: _split(text),
)
raw_option: Callable[[Any], Any] = click.option(
    "--raw", is_flag=True, help="Print only the values of --fields, separated by tabs."
)
values_options: Sequence[Callable[[Any], Any]] = (
    click.option(
        "--fields",
        metavar="A,B.C",
        help="Only these fields, as dotted names separated by commas.",
        callback=lambda _context, _option, text: _split(text),
    ),
    raw_option,
    # As it was called before: one field, and its values alone.
    click.option("--field", metavar="A.B", hidden=True),
)
"""Options of commands that print records; `merge_field` combines them."""


def merge_field(options: dict[str, Any]) -> None:
    """Replace `--field NAME` in the options of a command by what it stands for, `--fields NAME --raw`.

    Raises:
        click.UsageError: `--raw` without fields.
    """
    field = options.pop("field", None)
    if field is not None:
        options["fields"], options["raw"] = [field], True
    if options.get("raw") and not options.get("fields"):
        raise click.UsageError("--raw prints the values of --fields; give those too")


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


def max_rate_option(description: str) -> Callable[[Any], Any]:
    """Return the option of a bandwidth, whose value is in bytes per second."""
    return click.option(
        "--max-rate",
        type=click.FloatRange(min=0, min_open=True),
        metavar="MB/S",
        help=description,
        callback=lambda _context, _option, rate: rate and rate * 1e6,
    )


# Click takes an argument that begins with a dash for an option. No argument begins with this prefix.
_AGO = "ago:"


class PlaceCommand(click.Command):
    """A command whose arguments may include `-3h`, which is an hour and not an option."""

    def make_parser(self, ctx: click.Context) -> Any:
        """Return a parser that knows relative hours, as arguments and as values of options.

        Args:
            ctx: The context of the command.
        """
        parser: Any = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_args(args: list[str]) -> tuple[dict[str, Any], list[str], list[Any]]:
            values, others, order = parse(
                [f"{_AGO}{text}" if text[:1] == "-" and is_relative_hour(text) else text for text in args]
            )
            return {name: _as_typed(value) for name, value in values.items()}, _as_typed(others), order

        parser.parse_args = parse_args
        return parser


def _as_typed(value: Any) -> Any:
    """Return a value of the parser with its relative hours as they were typed."""
    if isinstance(value, str):
        return value.removeprefix(_AGO) if is_relative_hour(value.removeprefix(_AGO)) else value
    return type(value)(map(_as_typed, value)) if isinstance(value, list | tuple) else value


class Reported(Exception):
    """Failures that the command has printed: it ends with the exit code of the first.

    Args:
        error: The first.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Group(click.Group):
    """A group of commands that knows `list` for `ls`, and the names that a misspelled one may stand for."""

    aliases: ClassVar[Mapping[str, str]] = {"list": "ls"}

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command by its name or another one.

        Args:
            context: As for `click.Group`.
            name: The name.
        """
        command = super().get_command(context, name)
        return command if command is not None else super().get_command(context, self.aliases.get(name, name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of a command line.

        Args:
            ctx: As for `click.Group`.
            args: As for `click.Group`.

        Raises:
            click.UsageError: It does not exist.
        """
        name = args[0]
        if not name.startswith("-") and not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            raise click.UsageError(f"there is no command {name!r}{did_you_mean(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


class Root(Group):
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
        code = signals.EXIT_INTERRUPTED
        _say("; ".join(filter(None, ("stopped", meta.get(_STOPPED)))), style="yellow")
    except click.ClickException as error:
        code = error.exit_code
        say_error(_usage_message(error))
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
    if isinstance(cause, Reported):
        return _exit_code(cause.error) or _EXIT_UNEXPECTED
    code = _exit_code(cause)
    message = one_line(message_of(cause)) or "no further information"
    if code is None:  # an error of this program, whose class says more than its message
        hint = "" if logger.isEnabledFor(logging.DEBUG) else " (-vv shows where)"
        message = f"{type(cause).__name__}: {message}{hint}"
    say_error(message)
    for note in getattr(cause, "__notes__", ()):
        _say(f"  {one_line(note)}", style="dim")
    return _EXIT_UNEXPECTED if code is None else code


def _exit_code(error: BaseException) -> int | None:
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), None)


def _usage_message(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    message = one_line(error.format_message()).removesuffix(".")
    return message if context is None else f"{message} (see {context.command_path} --help)"


def say_error(message: str) -> None:
    """Print an error on standard error, in one line."""
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

    async def guarded(handler: signals.StopSignals) -> T:
        handler.cancel(asyncio.current_task())
        return await main

    try:
        with signals.handled() as handler, asyncio.Runner(loop_factory=_new_event_loop) as runner:
            # Without descriptors this fails, before a coroutine exists that nothing would await.
            runner.get_loop()
            return runner.run(guarded(handler))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        main.close()


def run_connected(context: click.Context, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function of a client, as `connect` makes it, to its end."""

    async def main() -> T:
        async with connect(context) as client:
            return await work(client)

    return run(main())


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


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the present standard error: a live table replaces it, to print lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record.

        Args:
            record: As for `logging.StreamHandler`.
        """
        self.stream = sys.stderr
        super().emit(record)


def configure_logging(verbosity: int) -> None:
    """Log to standard error: warnings, with `-v` what is retried, with `-vv` every request."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    handler = _StderrHandler()
    # Whoever reads a log wants to know the part of the library; whoever runs a command, what happened.
    name = " %(name)s" if verbosity else ""
    handler.setFormatter(LogFormatter(f"%(levelname)s{name}: %(message)s"))
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
    return _parsed_filters(texts, resource.model, resource.backend)


def parse_record_filters(texts: Sequence[str], model: type[Any]) -> dict[str, Any] | None:
    """Return filters of the records of archives: as `parse_filters` does."""
    return _parsed_filters(texts, model, Backend.ARCHIVE)


def _parsed_filters(texts: Sequence[str], model: type[Any], backend: Backend) -> dict[str, Any] | None:
    filters: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{text!r} is not FIELD=VALUE, such as in_language.identifier=en")
        if name in filters:
            raise click.BadParameter(
                f"{name} occurs twice, and records have one value of it: run the command for each value"
            )
        filters[name] = _convert(name, value, filter_type(model, backend, name))
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


async def metered_text(client: Client, pool: str, requests: int) -> str:
    """Return the cost of work and the allowance it is taken from: `12 metered requests (pool chunk: 1,488 left)`."""
    left = (await client.auth.quota()).of(pool).left
    allowance = "no limit" if left is None else f"{left:,} left"
    return f"{count_text(requests, 'metered request')} (pool {pool}: {allowance})"


def progress_bar(label: str, *, quiet: bool = False) -> Bar:
    """Return a progress bar on standard error, where that is a terminal."""
    return bar(one_line(label), console=stderr, shown=not quiet)
