"""Send prepared HTTP responses on machines without a compiler for `streamserver.c`, which does the same.

    python benchmarks/streamserver.py FOLDER

Prints the port that it chose on 127.0.0.1. One thread for each connection, which the kernel does the work of.
"""

import contextlib
import socket
import sys
import threading
from pathlib import Path


def answer(peer: socket.socket, folder: Path) -> None:
    """Send the requested file unchanged."""
    with peer, contextlib.suppress(OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            piece = peer.recv(65536)
            if not piece:
                return
            head += piece
        name = head.split(b" ", 2)[1].partition(b"?")[0].decode().lstrip("/")
        path = (folder / name).resolve()
        if not path.is_file() or not path.is_relative_to(folder.resolve()):
            peer.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        with path.open("rb") as file:
            peer.sendfile(file)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(65536):
            pass


def main() -> None:
    """Serve until ended."""
    folder = Path(sys.argv[1])
    with socket.create_server(("127.0.0.1", 0)) as door:
        print(door.getsockname()[1], flush=True)
        while True:
            peer, _ = door.accept()
            threading.Thread(target=answer, args=(peer, folder), daemon=True).start()


if __name__ == "__main__":
    main()
