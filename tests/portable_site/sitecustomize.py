"""Hide from the product what only POSIX systems have, in every process of `nox -s portable`.

Python imports a module of this name when it starts, from a folder on PYTHONPATH. The one module that knows the systems
is loaded here while the calls are hidden, and keeps its second way for the rest of the process. Python itself and the
other libraries keep everything. In place of the locks of Windows there is a stand-in that keeps their rules.
"""

import asyncio  # noqa: F401 - loaded before anything is hidden, as the next ones
import errno
import importlib.util
import os
import shutil  # noqa: F401
import signal  # noqa: F401
import struct
import sys
import threading  # noqa: F401
import types
from pathlib import Path
from typing import Any

PLATFORM = Path(__file__).resolve().parents[2] / "wme_async" / "_platform.py"

CALLS = (
    *("pread", "pwrite", "preadv", "readv", "getxattr", "setxattr", "fstatvfs", "statvfs", "pathconf", "fchmod"),
    *("register_at_fork", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY"),
)


def stand_in() -> Any:
    """Return a module with the locks of Windows: of byte ranges, for one open file each, refused by EACCES."""
    import fcntl

    def locking(descriptor: int, mode: int, count: int) -> None:
        kind = fcntl.F_UNLCK if mode == msvcrt.LK_UNLCK else fcntl.F_WRLCK
        lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, os.lseek(descriptor, 0, os.SEEK_CUR), count, 0)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
        except OSError as error:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from error

    msvcrt: Any = types.ModuleType("msvcrt")
    msvcrt.LK_NBLCK, msvcrt.LK_UNLCK, msvcrt.locking = 2, 0, locking
    return msvcrt


def hide() -> None:
    """Load the module with the calls hidden."""
    hidden = {name: getattr(os, name) for name in CALLS if hasattr(os, name)}
    modules = {"fcntl": None, "resource": None, "msvcrt": stand_in()}
    before = {name: sys.modules.get(name) for name in modules}
    for name in hidden:
        delattr(os, name)
    sys.modules.update(modules)  # None is how Python marks a module that is not there
    try:
        spec = importlib.util.spec_from_file_location("wme_async._platform", PLATFORM)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["wme_async._platform"] = module
        spec.loader.exec_module(module)
    finally:
        for name, value in hidden.items():
            setattr(os, name, value)
        for name, known in before.items():
            if known is None:
                del sys.modules[name]
            else:
                sys.modules[name] = known


hide()
