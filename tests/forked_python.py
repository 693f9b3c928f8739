"""A Python for tests that starts at once: a fork of a process that has imported the package and its libraries.

To import them takes a third of a second of processor time, which is most of what a command does. The fixture is the
path of a program that stands in for the interpreter: `[python, "-m", "wme_async", ...]`, a script, or `-c` with code.
It has the descriptors, the folder, the environment, the exit status and the signals of a process of its own. What
depends on how Python starts and ends, on its other options or on its standard streams takes `sys.executable`.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
import warnings

# A fork ends as an interpreter does, except that it takes nothing down; only these two can do that.
from atexit import _run_exitfuncs as run_exit_functions
from collections.abc import Iterator
from os import _exit as leave_process
from pathlib import Path
from typing import Any

import pytest

__all__ = ["python"]

_IMPORTED = (
    *("aiohttp.web", "aiofiles", "msgspec", "multiprocessing.spawn", "sqlite3", "orjson", "uvloop", "pytest"),
    *("click", "dotenv", "platformdirs", "rich.console", "rich.live", "rich.progress", "rich.table", "rich.text"),
    *("wme_async._client", "wme_async._stream", "wme_async._download", "wme_async._archive", "wme_async.offsets"),
    *("wme_async.jobs", "wme_async.models", "wme_async.simulator", "wme_async.web"),
)
_SIZE = 4  # bytes before a request

# It runs without the standard library's site, and imports next to nothing.
_PROGRAM = r"""#!{python} -ISE
import json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
request = {{"arguments": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}}
data = json.dumps(request).encode()
socket.send_fds(connection, [len(data).to_bytes({size}, "big")], [0, 1, 2])
connection.sendall(data)
command = int.from_bytes(connection.recv(4), "big")
def forward(number, _):
    try:
        os.kill(command, number)
    except ProcessLookupError:
        pass
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, forward)
for descriptor in (0, 1, 2):
    os.close(descriptor)
status = int.from_bytes(connection.recv(4), "big", signed=True)
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run the process that is forked; yield the address that it listens at."""
    with tempfile.TemporaryDirectory(prefix="wme-python-") as folder:
        address = f"{folder}/s"
        # Without whatever a test has set: each command brings its own environment.
        with subprocess.Popen(
            [sys.executable, __file__, address], stdout=subprocess.PIPE, start_new_session=True
        ) as it:
            assert it.stdout is not None
            try:
                assert it.stdout.readline() == b"ready\n"
                yield address
            finally:
                it.kill()


@pytest.fixture(scope="session")
def python() -> Iterator[str]:
    """The path of the program; that of the real interpreter where the system has no fork."""
    if not hasattr(os, "pidfd_open"):
        yield sys.executable
        return
    with serving() as address:
        path = Path(address).parent / "python"
        path.write_text(_PROGRAM.format(python=sys.executable, address=address, size=_SIZE))
        path.chmod(0o700)
        yield str(path)


def next_request(address: str) -> dict[str, Any]:
    """Wait for requests, each in a fork of its own that this returns in."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    size, descriptors, _, _ = socket.recv_fds(connection, _SIZE, 3)
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        data += connection.recv(1 << 16)
    if command := os.fork():
        for descriptor in descriptors:
            os.close(descriptor)
        watch(connection, command)
    connection.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    request: dict[str, Any] = json.loads(data)
    return request


def watch(connection: socket.socket, command: int) -> None:
    """Tell the program the number of its process and then its exit status; kill it when the program is killed."""
    with contextlib.suppress(OSError):
        connection.sendall(command.to_bytes(4, "big"))
    ended = os.pidfd_open(command)
    if ended not in select.select([ended, connection.fileno()], [], [])[0]:
        os.kill(command, signal.SIGKILL)
    _, status = os.waitpid(command, 0)
    with contextlib.suppress(OSError):
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
    leave_process(0)


def run(request: dict[str, Any]) -> None:
    """Do in this process what the interpreter does with these arguments, folder and environment."""
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", 1 if os.environ.get("PYTHONUNBUFFERED") else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    # Processes that it starts by this name are forks as well; `multiprocessing` keeps the real one.
    sys.executable, *arguments = request["arguments"]
    while arguments[0] in {"-W", "-P"}:
        if arguments.pop(0) == "-W":
            warnings.simplefilter(arguments.pop(0))
    sys.path[0] = str(Path.cwd())  # instead of the folder of this file
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = sys.modules["__mp_main__"] = types.ModuleType("__main__")
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        code = arguments[1]
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        main.__file__ = arguments[0]
        code = compile(Path(arguments[0]).read_bytes(), arguments[0], "exec")
    exec(code, vars(main))


def end(status: int) -> None:
    """End as the interpreter does, except that what was imported is not taken down, which takes long."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    run_exit_functions()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    leave_process(status)


def main() -> None:
    for name in _IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # else the collector would look at all of it, and so copy it, in each fork
    try:
        run(next_request(sys.argv[1]))
    except SystemExit as ending:
        if isinstance(ending.code, str):
            sys.stderr.write(f"{ending.code}\n")
        end(ending.code if isinstance(ending.code, int) else int(ending.code is not None))
    except Exception:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
        end(1)
    end(0)


if __name__ == "__main__":
    main()
