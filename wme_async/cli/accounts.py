"""The account of a command: the profiles that `login` keeps, the environment, and the client that follows from them."""

import contextlib
import logging
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import platformdirs

from wme_async._client.client import HOST_VARIABLES, Client, environment
from wme_async._files import read_regular, write_atomically
from wme_async._transport import SessionPool
from wme_async.cli.terminal import echo, one_line
from wme_async.errors import DecodeError, Unauthorized
from wme_async.models.decoding import decode_json

logger: logging.Logger = logging.getLogger("wme_async.cli")

DEFAULT_PROFILE: Final = "default"
_NAME: Final = re.compile(r"[A-Za-z0-9_@+-][A-Za-z0-9_@.+-]{0,63}")


class NoAccount(click.ClickException):
    """There is no account for the command."""

    exit_code = 2


class Profile(msgspec.Struct, frozen=True, omit_defaults=True):
    """The account of one sign-in; its tokens are in the token file, and its password nowhere.

    Attributes:
        username: Of the account.
        hosts: The addresses of its services that differ from the usual ones, by role.
    """

    username: str
    hosts: dict[str, str] = {}


_PROFILE: Final = msgspec.json.Decoder(Profile)


class Profiles:
    """The profiles beside a token file: a folder with a file of mode 0600 for each.

    Args:
        token_file: The token file.
    """

    def __init__(self, token_file: Path) -> None:
        self._folder = token_file.with_name(f"{token_file.stem}.profiles")

    def names(self) -> list[str]:
        """Return the names of all profiles, in order."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def find(self, name: str) -> Profile | None:
        """Return a profile; None if it does not exist or its file is damaged, which is logged."""
        path = self._path(name)
        try:
            return decode_json(read_regular(path), _PROFILE)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except DecodeError:
            logger.warning("%s is damaged; sign in again", path)
            return None

    def save(self, name: str, profile: Profile) -> None:
        """Write a profile.

        Raises:
            OSError: It cannot be written.
        """
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, msgspec.json.encode(profile))

    def forget(self, username: str | None, auth_host: str | None) -> None:
        """Remove all profiles of a user at an address."""
        for name in self.names():
            profile = self.find(name)
            if profile is None or username is None:
                continue
            if (profile.username.lower(), profile.hosts.get("auth")) == (username.lower(), auth_host):
                self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The account of a command.

    Attributes:
        options: What `Client.from_env` needs beside the environment.
        hosts: The addresses of its services that differ from the usual ones.
        username: Its user name; None if there is only an access token.
        stored: Whether there is no password, so that the stored sign-in must do.
        profile: The profile it comes from; None for the environment.
    """

    options: dict[str, Any]
    hosts: dict[str, str]
    username: str | None = None
    stored: bool = False
    profile: str | None = None

    def ended(self) -> Unauthorized:
        """Return the error of a stored sign-in that has ended."""
        command = login_command(self.profile)
        return Unauthorized(f"the sign-in of {self.username} has ended; sign in again with: {command}", status=401)


def check_profile_name(_context: click.Context, _option: click.Parameter, name: str | None) -> str | None:
    """Return the name of a profile, or raise if it cannot be one."""
    if name is not None and _NAME.fullmatch(name) is None:
        raise click.BadParameter(f"{name!r} is not a name of letters, digits and . _ @ + -")
    return name


def complete_profile(context: click.Context, _option: click.Parameter, text: str) -> list[str]:
    """Return the profiles whose names begin with a text, for the completion of a shell."""
    profiles = profiles_of(context)
    return [name for name in profiles.names() if name.startswith(text)] if profiles is not None else []


def login_command(profile: str | None) -> str:
    """Return the command line that signs in to a profile."""
    option = "" if profile in {None, DEFAULT_PROFILE} else f" --profile {shlex.quote(str(profile))}"
    return f"wme-async{option} login"


def find_account(context: click.Context) -> Account | None:
    """Return the account of the command line: the named profile, else the environment, else the profile `default`.

    Raises:
        NoAccount: The named profile does not exist.
    """
    options = context.find_root().params
    variables = environment(options.get("env_file"))
    name = options.get("profile")
    hosts = hosts_of(variables)
    username = variables.get("WME_USERNAME", "").strip()
    if name is None and username and not (variables.get("WME_PASSWORD") or variables.get("WME_ACCESS_TOKEN")):
        return Account(options={"username": username}, hosts=hosts, username=username, stored=True)
    if name is None and (username or variables.get("WME_ACCESS_TOKEN")):
        return Account(options={}, hosts=hosts, username=username or None)
    profiles = profiles_of(context)
    profile = None if profiles is None else profiles.find(name or DEFAULT_PROFILE)
    if profile is None:
        if name is None:
            return None
        names = ", ".join(profiles.names()) if profiles is not None else ""
        existing = f"; profiles are {names}" if names else ""
        raise NoAccount(f"there is no profile {name!r}{existing}; sign in with: {login_command(name)}")
    hosts = {**profile.hosts, **hosts}
    return Account(
        options={"username": profile.username, "hosts": hosts},
        hosts=hosts,
        username=profile.username,
        stored=True,
        profile=name or DEFAULT_PROFILE,
    )


def has_account(context: click.Context) -> bool:
    """Return whether there is an account: a profile, the environment, or a file of the command line."""
    return bool(context.find_root().params.get("env_file")) or find_account(context) is not None


def hosts_of(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the addresses of services in the environment, by role."""
    return {role: variables[name] for role, name in HOST_VARIABLES.items() if variables.get(name)}


def profiles_of(context: click.Context) -> Profiles | None:
    """Return the profiles of the command line; None if there is no folder to keep them in."""
    token_file = token_file_of(context)
    return None if token_file is None else Profiles(token_file)


def new_client(context: click.Context, options: Mapping[str, Any], pool: SessionPool) -> Client:
    """Make a client with the files of the command line."""
    env_file = context.find_root().params.get("env_file")
    return Client.from_env(env_file, **{"token_file": token_file_of(context), "pool": pool, **options})


@contextlib.asynccontextmanager
async def connect(context: click.Context) -> AsyncIterator[Client]:
    """Open a client for the account of the command line.

    Where the stored sign-in has ended, it asks for the password on a terminal.

    Raises:
        NoAccount: There is no account.
        Unauthorized: The stored sign-in has ended, and there is no terminal to ask on.
    """
    account = find_account(context)
    if account is None:
        raise NoAccount(
            f"no credentials: sign in with `{login_command(None)}`, or set WME_USERNAME and WME_PASSWORD, or "
            "WME_ACCESS_TOKEN, also in a file with --env-file; `wme-async simulate` and `demo` need no account"
        )
    if account.stored and token_file_of(context) is None:
        raise NoAccount("without a password there must be a file of tokens: set WME_PASSWORD, or --token-file")
    async with session_pool(context) as pool, new_client(context, account.options, pool) as client:
        if not account.stored:
            yield client
            return
        try:
            await client.auth.token()
        except Unauthorized as error:
            if not on_a_terminal():
                raise account.ended() from error
            echo(f"the sign-in of {account.username} has ended; sign in again to go on", err=True)
            await _sign_in_again(context, account, pool)
        try:
            yield client
        except Unauthorized as error:
            raise account.ended() from error


async def _sign_in_again(context: click.Context, account: Account, pool: SessionPool) -> None:
    """Sign in with a password of the terminal, and store the tokens where the client looks for them.

    Raises:
        Unauthorized: The password is wrong.
    """
    assert account.username is not None
    password = ask_password(account.username)
    async with new_client(context, {**account.options, "password": password}, pool) as client:
        await client.auth.login()


def ask_password(username: str) -> str:
    """Ask for a password on the terminal, without an echo.

    Raises:
        click.Abort: The answer was Ctrl-C or Ctrl-D.
    """
    with _default_signals():
        password: str = click.prompt(f"Password of {one_line(username)}", hide_input=True, err=True)
    return password


def on_a_terminal() -> bool:
    """Return whether somebody is there to answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


@contextlib.contextmanager
def _default_signals() -> Iterator[None]:
    """Let Ctrl-C interrupt a call that blocks the event loop; the loop would only note the signal."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.signal(number, interrupt) for number in (getattr(signal, name) for name in names)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def session_pool(context: click.Context) -> SessionPool:
    """Make a pool with the proxy of the command line, or else those of the environment."""
    proxy = context.find_root().params.get("proxy")
    return SessionPool(proxy=proxy, trust_env=proxy is None)


def token_file_of(context: click.Context) -> Path | None:
    """Return the file of tokens for the next command; None where the default one cannot be written."""
    option = context.find_root().params.get("token_file")
    try:
        # RuntimeError and KeyError: without HOME, and without an entry of this user in the system's list.
        path = Path(option) if option else _state_folder() / "tokens.json"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError, KeyError) as error:
        if option:
            raise
        if not context.find_root().meta.setdefault(__name__, False):
            logger.warning("tokens are not kept for the next command: %s", error)
            context.find_root().meta[__name__] = True
        return None
    return path


def _state_folder() -> Path:
    folder = platformdirs.user_state_path("wme-async")
    if not folder.is_absolute():  # without a home, some releases of platformdirs leave "~" as it is
        raise RuntimeError("the home folder is not known")
    return folder
