"""The root of the command line: global options, and all commands."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from wme_async._version import __version__
from wme_async.cli import archives, base, lookups, signals
from wme_async.cli.accounts import check_profile_name, complete_profile

# Imported when they are called: some need an extra, all take time to import.
_LAZY = {
    "batch": ("wme_async.cli.batch", "Download many URLs as one job, here or with a service."),
    "serve": ("wme_async.cli.batch", "Run the batch service: REST API, live events, files, and a page."),
    "read": ("wme_async.cli.reading", "Write the records of an archive on the disk as JSON lines, or to Parquet."),
    "login": ("wme_async.cli.login", "Sign in, and keep the sign-in for the next commands."),
    "logout": ("wme_async.cli.login", "Revoke the tokens, and forget the account."),
    "demo": ("wme_async.cli.demo", "Show the whole job on a simulator: no account, well under a minute."),
    "stream": ("wme_async.cli.stream", "Follow the firehose as JSON lines; resumes with nothing lost."),
    "completion": ("wme_async.cli.completion", "Print the script with which a shell completes commands and options."),
    "mirror": ("wme_async.cli.mirror", "Keep an up-to-date copy of a wiki in an SQLite file or in PostgreSQL."),
    "sync": ("wme_async.cli.sync", "Make a folder equal to a listing, once or hour by hour."),
    "tasks": ("wme_async.cli.tasks", "Turn a snapshot into files, a task for each chunk: here, or on many machines."),
    "simulate": ("wme_async.cli.simulate", "Run a simulator of all WME services on this machine."),
}


_SHORT_HELP = 200  # characters; a first sentence is shorter


class _Root(base.Root):
    """A group that imports some of its commands when they are called."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return all names."""
        return sorted({*super().list_commands(context), *_LAZY})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command, and import its module if necessary."""
        if name in _LAZY:
            # In the one module with two commands each has its own name.
            module = importlib.import_module(_LAZY[name][0])
            command: click.Command | None = getattr(module, name if hasattr(module, name) else "command")
        else:
            command = super().get_command(context, name)
        if command is not None:
            _accept_globals(command, [option for option in self.params if isinstance(option, click.Option)])
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any."""
        rows = [
            (name, _LAZY[name][1] if name in _LAZY else self.commands[name].get_short_help_str(_SHORT_HELP))
            for name in self.list_commands(context)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _accept_globals(command: click.Command, options: Sequence[click.Option]) -> None:
    """Let a command, and those below it, take the options of the root too: `wme-async batches ls latest -v`.

    Their short help is shown whole in lists.
    """
    command.short_help = command.get_short_help_str(_SHORT_HELP)
    known = {name for parameter in command.params for name in parameter.opts}
    for option in options:
        if "--version" not in option.opts and not known & {*option.opts}:
            command.params.append(_GlobalOption(option))
    if isinstance(command, click.Group):
        for subcommand in command.commands.values():
            _accept_globals(subcommand, options)


class _GlobalOption(click.Option):
    """An option of the root behind the name of a command.

    Args:
        option: The option of the root.
    """

    def __init__(self, option: click.Option) -> None:
        super().__init__(
            [*option.opts, str(option.name)],
            metavar=option.metavar,
            count=option.count,
            callback=option.callback,
            hidden=True,
            expose_value=False,
            allow_from_autoenv=False,
        )

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Set the option of the root, if it is given.

        Args:
            ctx: The context of the command.
            opts: The texts of all options.
            args: The arguments that are not options.
        """
        value, args = super().handle_parse_result(ctx, opts, args)
        name = str(self.name)
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            options = ctx.find_root().params
            options[name] = options[name] + value if self.count else value
            base.configure_logging(options["verbosity"])
        return value, args


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "WME"})
@click.version_option(__version__, prog_name="wme-async")
@click.option(
    "--profile",
    metavar="NAME",
    callback=check_profile_name,
    shell_complete=complete_profile,
    help="The account of `wme-async --profile NAME login`.",
)
@click.option("--env-file", metavar="PATH", help="File of NAME=value lines with WME_USERNAME and WME_PASSWORD.")
@click.option("--token-file", metavar="PATH", help="Where the sign-in is kept; its profiles are beside it.")
@click.option(
    "--proxy",
    metavar="URL",
    help="Proxy for everything, such as http://host:3128; otherwise HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.",
)
@click.option("-v", "verbosity", count=True, help="Log retries; -vv: every request, and tracebacks.")
def root(verbosity: int, **options: str | None) -> None:
    """Wikimedia Enterprise on the command line.

    Sign in with `wme-async login`, or set WME_USERNAME and WME_PASSWORD, or WME_ACCESS_TOKEN. Options of this page may
    stand anywhere in a command. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 credentials or plan,
    5 quota or rate limit, 130 interrupted. Errors are one line; -vv shows a traceback.
    """
    del options
    base.configure_logging(verbosity)


for _command in (
    *archives.COMMANDS,
    lookups.lookup,
    lookups.structured,
    lookups.wikidata,
    lookups.files,
    lookups.quota,
    lookups.explain,
):
    root.add_command(_command)
for _command in archives.WIKIDATA:
    lookups.wikidata.add_command(_command)


def main() -> None:
    """Run the command line."""
    signals.handle_in_process()
    root.main(prog_name="wme-async")
