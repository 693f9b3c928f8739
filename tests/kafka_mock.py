"""The mock of Kafka inside librdkafka, which confluent-kafka brings, in a process of its own.

It speaks the protocol and stores messages as a broker does, in memory. Python has no interface to most of it, so this
process calls the C library; it reads commands from standard input, one a line, and answers each with a line.

python kafka_mock.py
"""

import contextlib
import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

__all__ = ["PRODUCE", "KafkaMock", "kafka"]

PRODUCE: Final = 0
"""The request that stores messages."""

_starter: Final = ThreadPoolExecutor(1)  # a process gets its signal when the thread that started it ends


def library() -> str | None:
    """Return the path of librdkafka; None if it is not there."""
    try:
        import confluent_kafka
    except ImportError:
        return None
    folder = Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
    return next((str(path) for path in folder.glob("librdkafka*")), None)


class KafkaMock:
    """The mock with one broker.

    Attributes:
        bootstrap: Its address.
    """

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.bootstrap = self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def _do(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert answer == "0", f"{words}: {answer}"

    def create(self, topic: str, partitions: int) -> None:
        """Create a topic."""
        self._do("create", topic, partitions)

    def fail(self, request: int, *codes: int) -> None:
        """Answer the next requests of a kind with these errors of the protocol."""
        self._do("fail", request, *codes)

    def down(self) -> None:
        """Close the connections of the broker, and accept no others; its messages stay."""
        self._do("down")

    def up(self) -> None:
        """Let the broker accept connections again."""
        self._do("up")

    def delay(self, milliseconds: int) -> None:
        """Answer requests later by so much."""
        self._do("delay", milliseconds)


@contextlib.contextmanager
def running() -> Iterator[KafkaMock]:
    """Run a mock within a block."""
    command = [sys.executable, __file__]
    if shutil.which("setpriv"):
        command = ["setpriv", "--pdeathsig", "TERM", *command]

    def start() -> "subprocess.Popen[bytes]":
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)

    with _starter.submit(start).result() as process:
        try:
            yield KafkaMock(process)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaMock]:
    """The mock; a test creates its topics, and leaves the broker up."""
    if library() is None:
        pytest.skip("needs the mock of Kafka, which is part of confluent-kafka on Linux")
    with running() as mock:
        yield mock


def serve() -> None:
    path = library()
    assert path is not None
    mock = ctypes.CDLL(path)
    for function in (mock.rd_kafka_new, mock.rd_kafka_mock_cluster_new):
        function.restype = ctypes.c_void_p
    mock.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    handle = ctypes.c_void_p(mock.rd_kafka_new(0, None, ctypes.create_string_buffer(500), 500))
    cluster = ctypes.c_void_p(mock.rd_kafka_mock_cluster_new(handle, 1))
    sys.stdout.write(mock.rd_kafka_mock_cluster_bootstraps(cluster).decode() + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        command, *words = line.split()
        if command == "create":
            result = mock.rd_kafka_mock_topic_create(cluster, words[0].encode(), int(words[1]), 1)
        elif command == "fail":
            codes = (ctypes.c_int * (len(words) - 1))(*map(int, words[1:]))
            count = ctypes.c_size_t(len(codes))
            result = 0
            mock.rd_kafka_mock_push_request_errors_array(cluster, ctypes.c_int16(int(words[0])), count, codes)
        elif command == "delay":
            result = mock.rd_kafka_mock_broker_set_rtt(cluster, ctypes.c_int32(1), int(words[0]))
        else:
            change = {"down": mock.rd_kafka_mock_broker_set_down, "up": mock.rd_kafka_mock_broker_set_up}[command]
            result = change(cluster, ctypes.c_int32(1))
        sys.stdout.write(f"{result}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
