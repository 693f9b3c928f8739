"""The shell lines of the documentation, run by a real shell against `wme-async simulate` in a process of its own.

Starting Python for each `wme-async` would take most of the time, so one process imports the command line once, and a
fork of it with the descriptors, the folder and the environment of the shell runs each command.
"""

import contextlib
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

__all__ = ["Shell", "simulated", "statements"]

SERVER = r"""
import json, os, signal, socket, sys
import rich.progress
import wme_async.__main__
from wme_async.cli import archives, batch, demo, lookups, login, reading, root, stream, sync, terminal

def serve(connection):
    size, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    wanted, data = int.from_bytes(size, "big"), b""
    while len(data) < wanted:
        data += connection.recv(wanted - len(data))
    request = json.loads(data)
    command = os.fork()
    if command:
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(command.to_bytes(4, "big"))
        _, status = os.waitpid(command, 0)
        connection.sendall((os.waitstatus_to_exitcode(status) % 256).to_bytes(4, "big"))
        os._exit(0)
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["wme-async", *request["arguments"]]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
    for console in (terminal.stdout, terminal.stderr):
        console.is_interactive = console.is_terminal
    code = 0
    try:
        wme_async.__main__.main()
    except SystemExit as exit:
        code = exit.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(64)
print("ready", flush=True)
signal.signal(signal.SIGCHLD, lambda *_: None)
while True:
    connection, _ = listener.accept()
    if os.fork() == 0:
        serve(connection)
    connection.close()
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""

CLIENT = r"""#!{python} -SE
import json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
request = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
data = json.dumps(request).encode()
socket.send_fds(connection, [len(data).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(data)
command = int.from_bytes(connection.recv(4), "big")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: os.kill(command, number))
for descriptor in (0, 1):
    os.close(descriptor)
sys.exit(int.from_bytes(connection.recv(4), "big"))
"""

# Commands that go on until somebody stops them.
_ENDLESS = re.compile(r"wme-async (?:serve|simulate|sync .*--follow|stream (?!.*--limit))")


def statements(body: str) -> list[str]:
    """Return the lines of a block of shell, those that end in a backslash joined with the next."""
    lines = body.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


class Shell:
    """A shell in a folder, in which variables stay set from one line to the next.

    Args:
        folder: Where it runs; the socket and the program go there too.
        environment: Variables beside those of this process.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        programs = folder / "bin"
        programs.mkdir()
        self._address = str(folder / "s")
        program = programs / "wme-async"
        program.write_text(CLIENT.format(python=sys.executable, address=self._address))
        program.chmod(0o700)
        path = f"{programs}:{os.environ['PATH']}"
        self._environment = {
            **os.environ,
            **environment,
            "PATH": path,
            "TERM": "xterm",
            "NO_COLOR": "1",
            "HOME": str(folder),
        }
        self._preamble: list[str] = []
        self.work = folder / "work"
        self.work.mkdir()

    def __enter__(self) -> Self:
        command = [sys.executable, "-c", SERVER, self._address]
        environment = {**self._environment, "COLUMNS": "100"}
        self._server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()

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
def simulated(line: str) -> Iterator[dict[str, str]]:
    """Start a simulator by the command line of a page, and yield the variables that it prints.

    Args:
        line: Such as `wme-async simulate --rate 20`.
    """
    command = [sys.executable, "-m", "wme_async", *shlex.split(line)[1:]]
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
