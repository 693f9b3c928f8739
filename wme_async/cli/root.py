"""The root of the command line: global options, `login` and `logout`, and the groups of all other commands."""

import importlib
from typing import Any

import click

from wme_async._version import __version__
from wme_async.cli import archives, base, lookups

__all__ = ["main"]

# Imported when they are called: some need an extra, all take time to import.
_LAZY = {
    "batch": ("wme_async.cli.batch", "Download many URLs as one job, here or with a service."),
    "serve": ("wme_async.cli.batch", "Run the batch service: REST API, live events, files, and a page."),
    "demo": ("wme_async.cli.demo", "Show the whole job on a simulator: no account, well under a minute."),
    "stream": ("wme_async.cli.stream", "Follow the firehose as JSON lines; resumes with nothing lost."),
    "sync": ("wme_async.cli.sync", "Make a folder equal to a listing, once or hour by hour."),
    "simulate": ("wme_async.cli.simulate", "Run a simulator of all WME services on this machine."),
}


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
            command: click.Command = getattr(module, name if hasattr(module, name) else "command")
            return command
        return super().get_command(context, name)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any."""
        rows = [
            (name, _LAZY[name][1] if name in _LAZY else self.commands[name].get_short_help_str(80))
            for name in self.list_commands(context)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "WME"})
@click.version_option(__version__, prog_name="wme-async")
@click.option("--env-file", metavar="PATH", help="File of NAME=value lines with WME_USERNAME and WME_PASSWORD.")
@click.option("--token-file", metavar="PATH", help="Where tokens are shared between runs.")
@click.option(
    "--proxy",
    metavar="URL",
    help="Proxy for everything, such as http://host:3128; otherwise HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.",
)
@click.option("-v", "verbosity", count=True, help="Log retries; -vv: every request, and tracebacks.")
def root(env_file: str | None, token_file: str | None, proxy: str | None, verbosity: int) -> None:
    """Wikimedia Enterprise on the command line.

    Credentials come from WME_USERNAME and WME_PASSWORD, or WME_ACCESS_TOKEN. Exit codes: 0 done, 1 failed, 2 wrong
    usage, 3 not found, 4 credentials or plan, 5 quota or rate limit, 130 interrupted. Errors are one line; -vv shows a
    traceback.
    """
    del env_file, token_file, proxy
    base.configure_logging(verbosity)


@root.command()
@click.pass_context
def login(context: click.Context) -> None:
    """Sign in, store the tokens for the next commands, and show the groups and allowances of the account."""

    async def sign_in() -> Any:
        async with base.connect(context) as client:
            await client.auth.login()
            return await client.auth.user(), await client.auth.quota()

    user, quota = base.run(sign_in())
    base.echo(f"signed in as {user.username}, groups: {', '.join(user.groups) or 'none'}")
    for pool in (quota.snapshot, quota.chunk, quota.ondemand):
        limit = "without limit" if pool.limit is None else f"of {pool.limit}"
        base.echo(f"  {pool.pool}: {pool.used} used {limit} in {quota.month}")


@root.command()
@click.pass_context
def logout(context: click.Context) -> None:
    """Revoke the tokens, for every process that shares them."""

    async def sign_out() -> None:
        async with base.connect(context) as client:
            await client.auth.revoke()

    base.run(sign_out())
    base.echo("signed out")


_LOOKUPS = (
    lookups.lookup,
    lookups.structured,
    lookups.wikidata,
    lookups.files,
    lookups.quota,
    lookups.explain,
)
for _command in (*archives.COMMANDS, *_LOOKUPS):
    root.add_command(_command)


def main() -> None:
    """Run the command line."""
    root.main(prog_name="wme-async")
