"""The shell lines of the documentation, run by a real shell against `wme-async simulate` in a process of its own.

Starting Python for each `wme-async` would take most of the time, so each is a fork (`forked_python`).
"""

import contextlib
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Shell", "simulated", "statements"]

# Commands that go on until somebody stops them.
_ENDLESS = re.compile(r"wme-async (?:serve|simulate|sync .*--follow|stream (?!.*--limit))")


def statements(body: str) -> list[str]:
    """Return the lines of a block of shell, those that end in a backslash joined with the next."""
    lines = body.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


class Shell:
    """A shell in a folder, in which variables stay set from one line to the next.

    Args:
        folder: Where it runs; the program goes there too.
        python: The path of a Python that runs `wme-async`.
        environment: Variables beside those of this process.
    """

    def __init__(self, folder: Path, python: str, environment: dict[str, str]) -> None:
        programs = folder / "bin"
        programs.mkdir()
        program = programs / "wme-async"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(python)} -m wme_async "$@"\n')
        program.chmod(0o700)
        path = f"{programs}:{os.environ['PATH']}"
        self._environment = {
            **os.environ,
            **environment,
            "PATH": path,
            "TERM": "xterm",
            "NO_COLOR": "1",
            "COLUMNS": "100",
            "HOME": str(folder),
        }
        self._preamble: list[str] = []
        self.work = folder / "work"
        self.work.mkdir()

    def run(self, line: str) -> str:
        """Run a line on a terminal and return what it shows.

        Raises:
            AssertionError: It failed.
        """
        if re.match(r"(export|unset|cd) ", line):
            self._preamble.append(line)
        script = "\n".join(["set -e -o pipefail", *self._preamble, line])
        leader, follower = pty.openpty()
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=self.work,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
        )
        os.close(follower)
        endless = _ENDLESS.search(line) is not None
        try:
            screen = _watch(process, leader, stop_at_output=endless)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(leader)
        assert process.returncode in ({130} if endless else {0}), f"{line}\n{screen}"
        return screen


def _watch(process: "subprocess.Popen[bytes]", leader: int, *, stop_at_output: bool) -> str:
    """Read a terminal until the process has ended; interrupt it when it shows something, if it would go on for ever."""
    screen = b""
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        if select.select([leader], [], [], 0.05)[0]:
            try:
                screen += os.read(leader, 65536)
            except OSError:  # nobody uses the terminal any more
                break
            if stop_at_output and b"\n" in screen:
                os.killpg(process.pid, signal.SIGINT)
                stop_at_output = False
        elif process.poll() is not None:
            break
    process.wait(timeout=20)
    # Of what a line showed in turn, the last stays.
    lines = [line.rpartition("\x1b[2K")[2] for line in screen.decode().replace("\r\n", "\n").split("\n")]
    return "\n".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line).rstrip() for line in lines)


@contextlib.contextmanager
def simulated(python: str, line: str) -> Iterator[dict[str, str]]:
    """Start a simulator by the command line of a page, and yield the variables that it prints.

    Args:
        python: The path of a Python that runs it.
        line: Such as `wme-async simulate --rate 20`.
    """
    command = [python, "-m", "wme_async", *shlex.split(line)[1:]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        variables: dict[str, str] = {}
        while "WME_REALTIME_URL" not in variables:
            text = process.stdout.readline()
            assert text, "the simulator has ended"
            for name, value in re.findall(r"^export (\w+)=(\S+)", text):
                variables[name] = shlex.split(value)[0]
        yield variables
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
