"""The servers that are measured against: nginx for files, and one that sends ready-made answers for streams."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Missing", "Nginx", "StreamServer"]

RATE = 20_000_000

_CONFIG = """
{user}worker_processes 1; master_process off; daemon off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; keepalive_timeout 300;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  default_type application/octet-stream;
  root {root};
  ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem; ssl_protocols TLSv1.2 TLSv1.3;
  server {{ listen 127.0.0.1:{plain}; }}
  server {{ listen 127.0.0.1:{secure} ssl; }}
  server {{ listen 127.0.0.1:{slow} ssl; limit_rate {rate}; sendfile_max_chunk 64k; }}
}}
"""


class Missing(Exception):
    """A program that is needed is not installed."""


class Nginx:
    """nginx on three free ports of loopback: plain, TLS, and TLS with 20 MB/s for each connection.

    Attributes:
        pid: Its process.
        plain: Base URL.
        secure: Base URL.
        slow: Base URL.
        certificate: Path of the certificate that it made for itself.
    """

    def __init__(self, pid: int, ports: list[int], certificate: Path) -> None:
        self.pid = pid
        self.plain = f"http://127.0.0.1:{ports[0]}"
        self.secure = f"https://127.0.0.1:{ports[1]}"
        self.slow = f"https://127.0.0.1:{ports[2]}"
        self.certificate = certificate

    @classmethod
    @contextlib.contextmanager
    def serving(cls, root: Path, folder: Path) -> Iterator["Nginx"]:
        """Serve a folder until the end of the block.

        Args:
            root: The files.
            folder: For its own files; it must exist.

        Raises:
            Missing: nginx or openssl is not installed.
        """
        program, openssl = shutil.which("nginx"), shutil.which("openssl")
        if program is None or openssl is None:
            raise Missing("nginx and openssl are needed to serve files")
        certificate = folder / "cert.pem"
        subprocess.run(  # fixed arguments
            [
                openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-days", "7", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
                "-keyout", str(folder / "key.pem"), "-out", str(certificate),
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
        ports = _free_ports(3)
        config = folder / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                # Started by root it would read as nobody, who may not look into folders of root.
                user="user root; " if os.geteuid() == 0 else "",
                folder=folder, root=root, plain=ports[0], secure=ports[1], slow=ports[2], rate=RATE,
            )
        )  # fmt: skip
        with _running([program, "-c", str(config), "-p", str(folder)], ports) as process:
            yield cls(process.pid, ports, certificate)


class StreamServer:
    """Sends files as whole HTTP answers.

    Attributes:
        pid: Its process.
        url: Base URL.
        kind: "C" or "Python", for the report.
    """

    def __init__(self, pid: int, port: int, kind: str) -> None:
        self.pid = pid
        self.url = f"http://127.0.0.1:{port}"
        self.kind = kind

    @classmethod
    @contextlib.contextmanager
    def serving(cls, root: Path, folder: Path) -> Iterator["StreamServer"]:
        """Serve a folder until the end of the block: by a program in C where a compiler is found, else by Python.

        Args:
            root: The answers.
            folder: For the program; it must exist.
        """
        compiler = shutil.which("gcc") or shutil.which("cc")
        here = Path(__file__).parent
        if compiler is not None:
            program = folder / "streamserver"
            subprocess.run(  # our own source
                [compiler, "-O2", "-pthread", "-o", str(program), str(here / "streamserver.c")],
                check=True,
                capture_output=True,
            )
            command, kind = [str(program), str(root)], "a server in C"
        else:
            command, kind = [sys.executable, str(here / "streamserver.py"), str(root)], "a server in Python"
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # as above
        try:
            assert process.stdout is not None
            yield cls(process.pid, int(process.stdout.readline()), kind)
        finally:
            process.terminate()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def _running(command: list[str], ports: list[int]) -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen(command)  # our own configuration
    try:
        for port in ports:
            _wait_for(process, port)
        yield process
    finally:
        process.terminate()
        process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", port: int) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise Missing(f"{process.args!r} ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
            return
        time.sleep(0.05)
    raise Missing(f"nothing listens on port {port}")
