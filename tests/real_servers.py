"""PostgreSQL, PgBouncer, Redis and NATS in processes of their own, on free ports of loopback and in a temporary folder.

Each starts when a test first needs it, one for each session of pytest, and its tests are skipped where it is not
installed. A test shares the server with others: it takes a database of its own from `postgres_dsn`, `pgbouncer_dsn` or
`redis_url`. It may stop a server, or restart it, if it starts it again before it ends:

```python
async def test_it_survives_a_restart(postgres, postgres_dsn):
    await asyncio.to_thread(postgres.restart)
```

After a restart a server has its old port and its old data.
"""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

__all__ = [
    "Postgres",
    "Server",
    "nats_server",
    "nats_url",
    "pgbouncer",
    "pgbouncer_dsn",
    "postgres",
    "postgres_dsn",
    "redis_server",
    "redis_url",
]

_PATIENCE: Final = 60.0  # seconds; a start takes one, on a machine with nothing else to do
_ATTEMPTS: Final = 50
_AS_POSTGRES: Final = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
_numbers = itertools.count(1)  # of databases
_starter: Final = ThreadPoolExecutor(1)  # a process gets its signal when the thread that started it ends


def find_program(name: str) -> str:
    """Return the path of a program; skip the test where it is not installed."""
    folders = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    path = shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/sbin"]))
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def answers(port: int, send: bytes, begin: bytes) -> bool:
    """Return whether a server on this port answers some bytes with an answer that begins with others."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(send)
        return connection.recv(100).startswith(begin)
    return False


class Server:
    """One server process, which can be stopped and started again.

    Attributes:
        port: Its port on 127.0.0.1, always the same.
        folder: Its data and its log, `log`.

    Args:
        command: Starts it, from the port.
        is_ready: Returns whether it answers, from the port.
        folder: Its folder.
        stop_signal: Lets it end in an orderly way, without waiting for its clients.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        is_ready: Callable[[int], bool],
        folder: Path,
        stop_signal: int = signal.SIGTERM,
    ) -> None:
        self.port = free_port()
        self.folder = folder
        self._command = command
        self._is_ready = is_ready
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        deadline = time.monotonic() + _PATIENCE
        attempts = 1
        self._process = self._spawn()
        while not self._is_ready(self.port):
            if self._process.poll() is not None and attempts < _ATTEMPTS:
                # The processes of one that was killed may not have ended yet.
                attempts += 1
                self._process = self._spawn()
            elif self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"a server did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        command = list(self._command(self.port))
        if shutil.which("setpriv"):
            # It ends with the tests, even if these are killed. A change of the user would undo an earlier setting.
            command = ["setpriv", "--pdeathsig", "TERM", *command[command[0] == "setpriv" :]]
        with (self.folder / "log").open("ab") as log:
            return _starter.submit(subprocess.Popen, command, stdout=log, stderr=log, stdin=subprocess.DEVNULL).result()

    def stop(self) -> None:
        """End it in an orderly way, and wait for that."""
        self._end(self._stop_signal)

    def kill(self) -> None:
        """End it at once, as the failure of its machine would."""
        self._end(signal.SIGKILL)

    def discard(self) -> None:
        """End it at once; its data is not needed any more."""
        self._end(signal.SIGKILL)

    def restart(self, *, kill: bool = False) -> None:
        """Stop or kill it, and start it again on the same port with the same data."""
        self._end(signal.SIGKILL if kill else self._stop_signal)
        self.start()

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Postgres(Server):
    """A PostgreSQL server without passwords, whose user is `postgres`."""

    def __init__(self, folder: Path) -> None:
        self._postgres, self._ready, self._psql = map(find_program, ("postgres", "pg_isready", "psql"))
        super().__init__(self._options, self._check, folder, signal.SIGINT)

    def _options(self, port: int) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "max_connections": 200,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [*as_postgres(), self._postgres, "-D", str(self.folder / "data"), *options]

    def _check(self, port: int) -> bool:
        command = [self._ready, "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
        return subprocess.run(command, check=False).returncode == 0

    def prepare(self) -> None:
        """Create the data folder."""
        command = [find_program("initdb"), "-D", str(self.folder / "data"), "-U", "postgres", "-A", "trust"]
        command += ["--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C"]
        subprocess.run([*as_postgres(), *command], check=True, capture_output=True, cwd=self.folder)

    def discard(self) -> None:
        """End it at once; its data is not needed any more."""
        self._end(signal.SIGQUIT)  # killed, it would leave shared memory behind

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement."""
        command = [self._psql, "-q", "-X", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", database]
        subprocess.run([*command, "-c", statement], check=True, capture_output=True)

    def new_database(self) -> str:
        """Create an empty database and return its name."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return name


def as_postgres() -> tuple[str, ...]:
    """Return what to put before a command so that it does not run as root, which PostgreSQL does not accept."""
    return _AS_POSTGRES if os.geteuid() == 0 else ()


def has_postgres_user() -> bool:
    import pwd

    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam("postgres"))
    return False


@contextlib.contextmanager
def private_folder(name: str, *, of_postgres: bool = False) -> Iterator[Path]:
    """Make a temporary folder, if asked one of the user that PostgreSQL runs as."""
    as_other = of_postgres and os.geteuid() == 0
    if as_other and (shutil.which("setpriv") is None or not has_postgres_user()):
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres to run it as")
    with tempfile.TemporaryDirectory(prefix=f"wme-{name}-", ignore_cleanup_errors=True) as folder:
        if as_other:
            shutil.chown(folder, "postgres")
        yield Path(folder)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Run a server within a block."""
    server.start()
    try:
        yield server
    finally:
        server.discard()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL; its databases are lost at the end, and nothing waits for a disk."""
    find_program("postgres")
    with private_folder("postgres", of_postgres=True) as folder:
        server = Postgres(folder)
        server.prepare()
        with running(server):
            yield server


@pytest.fixture
def postgres_dsn(postgres: Postgres) -> str:
    """The address of an empty database."""
    return f"postgresql://postgres@127.0.0.1:{postgres.port}/{postgres.new_database()}"


@pytest.fixture(scope="session")
def pgbouncer(postgres: Postgres) -> Iterator[Server]:
    """PgBouncer in transaction mode before PostgreSQL: each transaction may get another connection."""
    program = find_program("pgbouncer")
    with private_folder("pgbouncer", of_postgres=True) as folder:
        configuration = folder / "pgbouncer.ini"

        def command(port: int) -> list[str]:
            configuration.write_text(
                f"[databases]\n* = host=127.0.0.1 port={postgres.port} user=postgres\n"
                f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {folder}\n"
                "auth_type = any\npool_mode = transaction\nmax_client_conn = 500\ndefault_pool_size = 8\n"
                "server_login_retry = 0.1\nserver_round_robin = 1\n"
            )
            return [*as_postgres(), program, str(configuration)]

        # The message that ends a connection, which has no answer, after the request for TLS, which has "N".
        with running(Server(command, lambda port: answers(port, b"\0\0\0\x08\x04\xd2\x16/", b"N"), folder)) as server:
            yield server


@pytest.fixture
def pgbouncer_dsn(pgbouncer: Server, postgres: Postgres) -> str:
    """The address of an empty database behind PgBouncer."""
    return f"postgresql://postgres@127.0.0.1:{pgbouncer.port}/{postgres.new_database()}"


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """Redis, which writes each command to its log before it answers."""
    program = find_program("redis-server")
    with private_folder("redis") as folder:

        def command(port: int) -> list[str]:
            options = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes"}
            options["databases"] = 10_000
            return [program, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]

        with running(Server(command, lambda port: answers(port, b"PING\r\n", b"+PONG"), folder)) as server:
            yield server


@pytest.fixture
def redis_url(redis_server: Server) -> str:
    """The address of an empty database."""
    return f"redis://127.0.0.1:{redis_server.port}/{next(_numbers)}"


@pytest.fixture(scope="session")
def nats_server() -> Iterator[Server]:
    """NATS with JetStream."""
    program = find_program("nats-server")
    with private_folder("nats") as folder:

        def command(port: int) -> list[str]:
            return [program, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)]

        with running(Server(command, lambda port: answers(port, b"", b"INFO"), folder)) as server:
            yield server


@pytest.fixture
def nats_url(nats_server: Server) -> str:
    """The address of NATS; a test names its streams and subjects by itself."""
    return f"nats://127.0.0.1:{nats_server.port}"
