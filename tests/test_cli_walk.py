"""Every command and every option: help that fits, wrong values, missing arguments, and a reader that goes away."""

import json
import os
import re
import subprocess
import sys
from datetime import timedelta

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import click
from click.testing import CliRunner
from command_walk import commands, leaves
from wall_clock import utc_now

from wme_async.cli import base
from wme_async.cli.root import root

WIDTH = 60


def invoke(*arguments, **options):
    # Uncaught exceptions leave the runner, and fail the test.
    return CliRunner().invoke(root, arguments, catch_exceptions=False, **options)


def name_of(path):
    return "-".join(path) or "root"


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=name_of)
def test_the_help_of_every_command_fits_a_narrow_terminal(path):
    result = invoke(*path, "--help", terminal_width=WIDTH)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")
    # Behind a name in capitals or brackets they mean that it may be repeated.
    assert not re.search(r"(?<![A-Z\]])\.\.\.", result.stdout), "a text is cut"
    for line in result.stdout.splitlines():
        # One word, such as a template or an address, may be longer than the line.
        assert len(line) <= WIDTH or len(line.split()) <= 2, line


def test_every_command_and_option_says_what_it_is_for():
    for path, command in commands():
        assert command.help, path
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{parameter.opts} of {path}"


def wrong_values(path, command):
    """Yield arguments that are wrong for one option each: nothing else of them is looked at."""
    for parameter in command.params:
        if not isinstance(parameter, click.Option) or parameter.count:
            continue
        name = parameter.opts[0]
        if isinstance(parameter.type, click.IntRange | click.FloatRange | click.Choice):
            yield (*path, name, "\x1b[31m²")
        elif isinstance(parameter.type, click.Path):
            yield (*path, name, "/dev/null/\x1b[31m")
        elif parameter.is_flag:
            yield (*path, f"{name}=1")
        if not parameter.is_flag:
            yield (*path, name)  # without its value
    yield (*path, "--\x1b[31m-nonsense")
    if any(isinstance(parameter, click.Argument) and parameter.required for parameter in command.params):
        yield path


def parsed(path, command, arguments):
    """Return the values of a command line, or the complaint about one of them."""
    try:
        return str(command.make_context(path[-1], list(arguments)).params)
    except click.UsageError as error:
        return f"{type(error).__name__}: {error.format_message()}"


def relative_hours(command):
    """Yield arguments with `-3h` in each place where text may stand: an hour, and any option, in both forms."""
    places = {"HOUR": "-3h", "[HOUR]": "-3h"}
    required = []
    for parameter in command.params:
        if isinstance(parameter, click.Argument) and (parameter.required or parameter.metavar in places):
            required.append(places.get(parameter.metavar or "", "x"))
        elif isinstance(parameter, click.Option) and parameter.required:
            required += [parameter.opts[0], "0"]
    if "-3h" in required:
        yield required
    for parameter in command.params:
        is_text = isinstance(parameter.type, click.types.StringParamType)
        if isinstance(parameter, click.Option) and is_text and not parameter.hidden:
            yield [*required, parameter.opts[0], "-3h"]
            yield [*required, f"{parameter.opts[0]}=-3h"]


@pytest.mark.parametrize(("path", "command"), [pytest.param(*leaf, id=name_of(leaf[0])) for leaf in leaves()])
def test_a_relative_hour_arrives_as_it_was_typed(path, command):
    for arguments in relative_hours(command):
        values = parsed(path, command, arguments)
        # A time is one before now, which the next test looks at.
        assert "-3h" in values or "datetime" in values, values
        assert "ago:" not in values, values
        assert not values.startswith("NoSuchOption"), values


def test_a_time_before_now_may_have_a_dash():
    for since in (["--since", "-2h"], ["--since=-2h"], ["--since", "2h"]):
        (command,) = [command for path, command in leaves() if path == ("stream",)]
        moment = command.make_context("stream", since).params["since"]
        assert timedelta(hours=1) < utc_now() - moment < timedelta(hours=3)


@pytest.mark.parametrize(("path", "command"), [pytest.param(*leaf, id=name_of(leaf[0])) for leaf in leaves()])
def test_a_wrong_value_of_any_option_is_wrong_usage_in_one_line(path, command):
    for arguments in wrong_values(path, command):
        result = invoke(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert result.stderr.startswith("Error: "), arguments
        assert result.stderr.count("\n") == 1, arguments
        assert "\x1b" not in result.output, arguments


def groups():
    """Return the groups in which a word can only be a command."""
    return [
        path
        for path, command in commands()
        if isinstance(command, base.Group) and "parse_args" not in vars(type(command))
    ]


@pytest.mark.parametrize("path", groups(), ids=name_of)
def test_a_misspelled_command_is_followed_by_the_one_that_may_be_meant(path):
    names = [other[len(path)] for other, _ in commands() if len(other) == len(path) + 1 and other[: len(path)] == path]
    name = max(names, key=len)
    for misspelled in (f"{name[:-1]}", f"{name}x"):
        if misspelled in names:
            continue
        result = invoke(*path, misspelled)
        assert result.exit_code == 2
        assert name in result.stderr
        assert result.stderr.count("\n") == 1


def test_options_of_the_root_may_stand_behind_any_command():
    for path, command in leaves():
        names = {name for parameter in command.params for name in parameter.opts}
        assert {"-v", "--profile", "--env-file", "--token-file", "--proxy"} <= names, path
        assert "is not a name" in invoke(*path, "--profile", "a b").stderr


CLOSED_PIPE = """
import json, os, sys
from wme_async.cli import base
from wme_async.cli.root import root
reader, closed = os.pipe()
os.close(reader)
codes = []
for path in json.loads(sys.argv[1]):
    os.dup2(closed, 1)
    sys.stdout = open(1, "w", closefd=False)
    try:
        root.main([*path, "--help"], prog_name="wme-async")
    except SystemExit as exit:
        codes.append(exit.code or 0)
os.write(2, json.dumps(codes).encode())
"""


def test_a_closed_pipe_ends_any_command_without_an_error():
    paths = [path for path, _ in commands()]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", CLOSED_PIPE, json.dumps(paths)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ,
    )
    assert result.stderr == json.dumps([0] * len(paths)), result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_script_for_completion(shell):
    script = invoke("completion", shell).stdout
    assert "wme-async" in script
    assert "_WME_ASYNC_COMPLETE" in script


def completions(*words):
    environment = {"COMP_WORDS": " ".join(["wme-async", *words]), "COMP_CWORD": str(len(words))}
    result = CliRunner(env={**environment, "_WME_ASYNC_COMPLETE": "bash_complete"}).invoke(root, prog_name="wme-async")
    return {line.removeprefix("plain,") for line in result.stdout.splitlines()}


def test_commands_options_and_hours_are_completed():
    assert {"snapshots", "stream"} <= completions("s")
    assert completions("batches", "do") == {"download"}
    assert "latest" in completions("batches", "ls", "la")
    assert "--where" in completions("batches", "ls", "latest", "--w")
    assert {"stream", "structured"} <= completions("explain", "st")
