"""A simulator in a process of its own that publishes events and cuts streams, as `stream_child.py` says."""

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["CHILD", "Server", "server"]

CHILD = Path(__file__).with_name("stream_child.py")


class Server:
    """The process that publishes."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.client: dict[str, Any] = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 60)
        assert ready, "the server does not answer"
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def ask(self, question: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question}\n".encode())
        self._process.stdin.flush()
        return self._answer()


@contextmanager
def server(**options: Any) -> Iterator[Server]:
    options = {"seed": 1, "rate": 1e9, "cuts": [], "bytes": 1, **options}
    with subprocess.Popen(
        [sys.executable, str(CHILD), "serve", json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Server(process)
        finally:
            process.kill()
