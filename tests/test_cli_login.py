"""Signing in on the command line: prompts, profiles, where the sign-in is kept, and what happens when it ends."""

import os
import pty
import stat
import subprocess
from pathlib import Path

import pytest

from wme_async import Client, Unauthorized
from wme_async.simulator import Simulator

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from wme_async.cli.root import root

ACCOUNT = ("WME_USERNAME", "WME_PASSWORD")


@pytest.fixture(scope="module")
def world():
    with Simulator.run_in_thread(articles=1) as simulator:
        simulator.call(simulator.add_user, "second", "other password", ["group_3"])
        yield simulator


@pytest.fixture
def hosts(world, tmp_path, monkeypatch):
    """The addresses of the services in the environment, and a home; no account."""
    values = {name: value for name, value in world.environment().items() if name not in ACCOUNT}
    values["XDG_STATE_HOME"] = str(tmp_path / "state")
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


@pytest.fixture
def run(hosts):
    def call(*arguments, code=0, **options):
        result = CliRunner().invoke(root, arguments, catch_exceptions=False, **options)
        assert result.exit_code == code, result.output
        return result

    return call


def sign_in(run, world, *options):
    return run(*options, "login", "--username", "simulated", "--password-stdin", input=password(world) + "\n")


def password(world):
    return world.environment()["WME_PASSWORD"]


def files_below(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def test_a_sign_in_is_kept_for_the_next_commands_and_the_password_is_not(run, world, hosts, monkeypatch):
    result = sign_in(run, world)
    assert "signed in as simulated" in result.stdout
    assert "snapshot: " in result.stdout
    # Not even the addresses have to be in the environment.
    for name in hosts:
        if name != "XDG_STATE_HOME":
            monkeypatch.delenv(name)
    before = sum(request.path == "/v1/login" for request in world.requests)
    assert run("codes", "ls").stdout
    assert sum(request.path == "/v1/login" for request in world.requests) == before
    files = files_below(hosts["XDG_STATE_HOME"])
    assert files
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert password(world) not in path.read_text()


def test_without_a_terminal_an_account_must_be_given(run, world):
    assert "--username" in run("login", code=2).stderr
    assert "--password-stdin" in run("login", "--username", "simulated", code=2).stderr
    empty = run("login", "--username", "simulated", "--password-stdin", code=2, input="\n").stderr
    assert "--password-stdin takes one line" in empty
    assert run("login", "--username", "simulated", "--password-stdin", input="wrong", code=4).stderr.startswith("Error")
    assert "wme-async login" in run("codes", "ls", code=2).stderr
    assert "wme-async login" in run("logout", code=2).stderr


def test_signing_out_forgets_the_account_and_revokes_its_tokens(run, world):
    sign_in(run, world)
    before = sum("token-revoke" in request.path for request in world.requests)
    assert run("logout").stdout == "signed out\n"
    assert sum("token-revoke" in request.path for request in world.requests) == before + 1
    assert "no credentials" in run("codes", "ls", code=2).stderr


def test_profiles_keep_several_accounts_apart(run, world, monkeypatch):
    sign_in(run, world)
    second = ("--username", "second", "--password-stdin")
    assert "profile work" in run("login", *second, "--profile", "work", input="other password").stdout
    before = len(world.requests)
    assert run("codes", "ls", "--profile", "work").stdout
    assert run("--profile", "work", "codes", "ls").stdout
    with monkeypatch.context() as patch:
        patch.setenv("WME_PROFILE", "work")
        assert run("codes", "ls").stdout
    assert len(world.requests) == before + 3
    missing = run("codes", "ls", "--profile", "home", code=2).stderr
    assert "default, work" in missing
    assert "wme-async --profile home login" in missing
    assert "'a/b'" in run("codes", "ls", "--profile", "a/b", code=2).stderr
    run("logout", "--profile", "work")
    run("codes", "ls", "--profile", "work", code=2)
    assert run("codes", "ls").stdout


def test_a_named_profile_comes_before_the_environment_and_that_before_the_default_one(run, world, monkeypatch):
    sign_in(run, world)
    run("login", "--username", "second", "--password-stdin", "--profile", "work", input="other password")
    monkeypatch.setenv("WME_USERNAME", "third")
    monkeypatch.setenv("WME_PASSWORD", "wrong")
    run("codes", "ls", code=4)
    assert run("codes", "ls", "--profile", "work").stdout


def test_a_user_name_of_the_environment_uses_the_stored_sign_in(run, world, monkeypatch):
    sign_in(run, world)
    monkeypatch.setenv("WME_USERNAME", "simulated")
    assert run("codes", "ls").stdout
    monkeypatch.setenv("WME_USERNAME", "second")
    assert "the sign-in of second has ended" in run("codes", "ls", code=4).stderr


def test_commands_that_need_no_account_do_not_ask_for_one(run, world, tmp_path):
    sign_in(run, world)
    (tmp_path / "state" / "wme-async" / "tokens.json").unlink()  # the sign-in has ended
    before = len(world.requests)
    folder = ("batch", "--directory", str(tmp_path / "jobs"))
    run(*folder, "status")
    run(*folder, "watch", "nothing", code=4)
    run("explain", "projects")
    assert [request.path for request in list(world.requests)[before:]] == []


@pytest.mark.parametrize("reason", ["time", "refreshes"])
def test_when_the_sign_in_has_ended_the_next_command_says_how_to_renew_it(tmp_path, monkeypatch, stopped_clock, reason):
    with Simulator.run_in_thread(articles=1, start=stopped_clock.seconds, frozen=True, expires_in=86_400) as simulator:
        for name, value in simulator.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

        def run(*arguments):
            return CliRunner().invoke(root, arguments, catch_exceptions=False)

        def pass_time(days):
            stopped_clock.seconds += 86_400 * days
            simulator.call(simulator.clock.advance, 86_400 * days)

        assert run("--profile", "work", "login").exit_code == 0
        for name in ACCOUNT:
            monkeypatch.delenv(name)
        pass_time(2)
        assert run("--profile", "work", "codes", "ls").exit_code == 0
        if reason == "time":
            pass_time(89)
        else:
            simulator.accounts.max_access_tokens = 1
            pass_time(2)
        before = len(simulator.requests)
        result = run("--profile", "work", "codes", "ls")
        assert result.exit_code == 4
        assert result.stderr.count("\n") == 1
        assert "the sign-in of simulated has ended; sign in again with: wme-async --profile work login" in result.stderr
        assert "codes" not in "".join(request.path for request in list(simulator.requests)[before:])


async def test_a_client_without_a_password_lives_on_the_tokens_of_its_file(sim, tmp_path):
    options = sim.client_options()
    file = tmp_path / "tokens.json"
    async with Client(**options, token_file=file) as client:
        await client.auth.login()
    del options["password"]
    async with Client(**options, token_file=file) as client:
        assert await client.auth.token()
        assert await client.codes.list()
        await client.auth.revoke()
        with pytest.raises(Unauthorized, match="has ended or is missing"):
            await client.codes.list()
    with pytest.raises(ValueError, match="a username alone with a token_file"):
        Client(**options)


# The prompt of a password uses the terminal that controls the process.
OWN_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv[0] = "wme-async"
from wme_async.__main__ import main
main()
"""


def on_a_terminal(python, *arguments, answers, environment):
    """Run a command on a pseudo-terminal of its own, answer its prompts, and return its exit code and its screen.

    Args:
        python: The path of the interpreter.
        *arguments: The command line.
        answers: Each prompt, and the answer to it.
        environment: Its variables.
    """
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [python, "-c", OWN_TERMINAL, *arguments],
        env={**os.environ, **environment, "TERM": "dumb"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    screen = b""
    waiting = list(answers)
    try:
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # the terminal was closed by its last user
                break
            if not data:
                break
            screen += data
            # The space comes last, when nothing is echoed any more and no earlier input is dropped.
            if waiting and screen.endswith(waiting[0][0] + b" "):
                os.write(leader, waiting.pop(0)[1])
        return process.wait(timeout=30), screen.decode()
    finally:
        process.kill()
        process.wait()
        os.close(leader)


@pytest.mark.posix
def test_a_terminal_is_asked_and_shows_no_password(python, world, hosts, tmp_path):
    secret = password(world).encode() + b"\n"
    login = [(b"User name:", b"simulated\n"), (b"Password of simulated:", secret)]
    code, screen = on_a_terminal(python, "login", answers=login, environment=hosts)
    assert code == 0, screen
    assert "signed in as simulated" in screen
    assert password(world) not in screen
    # The sign-in ends: the next command asks, and goes on.
    (tmp_path / "state" / "wme-async" / "tokens.json").unlink()
    again = [(b"Password of simulated:", secret)]
    code, screen = on_a_terminal(python, "codes", "get", "wiki", answers=again, environment=hosts)
    assert code == 0, screen
    assert "the sign-in of simulated has ended" in screen
    assert '"identifier": "wiki"' in screen
    assert password(world) not in screen


@pytest.mark.posix
def test_ctrl_c_at_the_prompt_ends_the_command(python, world, hosts, tmp_path):
    CliRunner().invoke(root, ["login", "--username", "simulated", "--password-stdin"], input=password(world))
    (tmp_path / "state" / "wme-async" / "tokens.json").unlink()
    code, screen = on_a_terminal(python, "codes", "ls", answers=[(b"simulated:", b"\x03")], environment=hosts)
    assert code == 130, screen
    assert "Traceback" not in screen
