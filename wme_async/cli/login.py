"""`wme-async login` and `logout`."""

import asyncio
import sys

import click

from wme_async._client.client import Client, environment
from wme_async._text import decode_text
from wme_async.cli import accounts, base
from wme_async.errors import WMEError


@click.command()
@click.option("--username", metavar="NAME", help="Of the account; otherwise WME_USERNAME, or it is asked for.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.pass_context
def login(context: click.Context, /, username: str | None, password_stdin: bool) -> None:
    """Sign in, and keep the sign-in for the next commands; show the groups and allowances of the account.

    Asks for user name and password on a terminal. The user name, the addresses of WME_AUTH_URL and the like, and the
    tokens are kept in files that only you can read, the password nowhere. Use --profile NAME for several accounts.
    """
    profiles = accounts.profiles_of(context)
    token_file = accounts.token_file_of(context)
    if profiles is None or token_file is None:
        raise click.ClickException("there is no folder to keep the sign-in in; name a file with --token-file")
    root_options = context.find_root().params
    name = root_options.get("profile") or accounts.DEFAULT_PROFILE
    variables = environment(root_options.get("env_file"))
    username, password = _credentials(username, variables, password_stdin=password_stdin)
    hosts = accounts.hosts_of(variables)

    async def sign_in() -> None:
        options = {"username": username, "password": password, "hosts": hosts}
        async with accounts.session_pool(context) as pool, accounts.new_client(context, options, pool) as client:
            await client.auth.login()
            profile = accounts.Profile(username=username, hosts=hosts)
            await asyncio.to_thread(profiles.save, name, profile)
            base.echo(f"signed in as {username}{'' if name == accounts.DEFAULT_PROFILE else f', profile {name}'}")
            await _show_account(client)

    base.run(sign_in())


def _credentials(username: str | None, variables: dict[str, str], *, password_stdin: bool) -> tuple[str, str]:
    """Return user name and password: of the command line, else of the environment, else of the terminal."""
    asking = accounts.on_a_terminal() and not password_stdin
    same_user = username is None or username == variables.get("WME_USERNAME", "").strip()
    username = username or variables.get("WME_USERNAME", "").strip()
    if not username and asking:
        username = click.prompt("User name", err=True).strip()
    if not username:
        raise click.UsageError("no user name: give --username, or set WME_USERNAME")
    if password_stdin:
        return username, _password_of_stdin()
    if same_user and variables.get("WME_PASSWORD"):
        return username, variables["WME_PASSWORD"].rstrip("\r\n")
    if not asking:
        raise click.UsageError("no password, and no terminal to ask on: give --password-stdin, or set WME_PASSWORD")
    return username, accounts.ask_password(username)


def _password_of_stdin() -> str:
    if sys.stdin.isatty():
        raise click.UsageError("--password-stdin reads a pipe, such as `pass show wme |`; leave it out to be asked")
    password = decode_text(sys.stdin.buffer.read(), "standard input").rstrip("\r\n")
    if not password or "\n" in password:
        raise click.UsageError("--password-stdin takes one line, the password, from standard input")
    return password


async def _show_account(client: Client) -> None:
    user, quota = await client.auth.user(), await client.auth.quota()
    base.echo(f"groups: {', '.join(user.groups) or 'none'}")
    for pool in (quota.snapshot, quota.chunk, quota.ondemand):
        used = f"unlimited, {pool.used:,}" if pool.limit is None else f"{pool.used:,} of {pool.limit:,}"
        base.echo(f"  {pool.pool}: {used} used in {quota.month}")


@click.command()
@click.pass_context
def logout(context: click.Context) -> None:
    """Revoke the tokens, for every process that shares them, and forget the account."""
    account = accounts.find_account(context)
    if account is None:
        raise accounts.NoAccount(f"nobody is signed in; `{accounts.login_command(None)}` signs in")
    profiles = accounts.profiles_of(context)

    async def sign_out() -> None:
        async with (
            accounts.session_pool(context) as pool,
            accounts.new_client(context, account.options, pool) as client,
        ):
            await client.auth.revoke()

    try:
        base.run(sign_out())
    except WMEError as error:
        error.add_note("The sign-in is forgotten on this machine all the same.")
        raise
    finally:
        if profiles is not None:
            profiles.forget(account.username, account.hosts.get("auth"))
    base.echo("signed out")
