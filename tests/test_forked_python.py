"""The stand-in for the interpreter that other tests use behaves as a process of its own."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.posix


def test_arguments_streams_folder_and_environment_are_those_of_the_caller(python: str, tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['A'], input()); print('e', file=sys.stderr)"
    for interpreter in (python, sys.executable):
        result = subprocess.run(
            [interpreter, "-c", code, "-x", "y"],
            input="line\n",
            cwd=tmp_path,
            env={"A": "b"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout == f"['-x', 'y'] {tmp_path} b line\n"
        assert result.stderr == "e\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('words')", 1),
        ("1 / 0", 1),
        ("import warnings; warnings.warn('words')", 1),
        ("import os; os.kill(os.getpid(), 15)", -15),
        ("import os; os.kill(os.getpid(), 9)", -9),
    ],
)
def test_exit_statuses_are_those_of_an_interpreter(python: str, code: str, status: int) -> None:
    result = subprocess.run([python, "-W", "error", "-c", code], check=False, stderr=subprocess.PIPE)
    assert result.returncode == status
    assert bool(result.stderr) == (status == 1)


WAIT = "import signal; print(flush=True); signal.pause()"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_it_and_a_kill_ends_it(python: str, number: int) -> None:
    with subprocess.Popen([python, "-c", WAIT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        process.send_signal(number)
        assert process.stdout.read() == b""  # nobody has the other end of the pipe any more
    assert process.returncode == -number
