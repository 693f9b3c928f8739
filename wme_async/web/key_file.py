"""The API key of `serve`: its folder keeps the hash alone, so that the key outlives a restart. All of it blocks."""

import contextlib
import secrets
from pathlib import Path

from wme_async._files import read_regular, write_atomically
from wme_async.jobs.job_files import HIDDEN
from wme_async.web.auth import HASHED, hash_key


def new_key() -> str:
    """Make an API key of 32 random bytes."""
    return "wme_" + secrets.token_urlsafe(32)


def key_path(directory: Path) -> Path:
    """Return the file of a service's folder that holds the hash of its key."""
    return directory / HIDDEN / "api-key"


def stored_key(directory: Path) -> str | None:
    """Return the hash of the key that was created for a folder, as `hash_key` makes it; None before the first one.

    Raises:
        ValueError: The file holds something else.
        OSError: The file cannot be read.
    """
    path = key_path(directory)
    text = None
    with contextlib.suppress(FileNotFoundError):
        text = read_regular(path).decode("utf-8", "replace").strip()
    if text is not None and not HASHED.fullmatch(text):
        raise ValueError(f"{path} does not hold the hash of an API key: create a new key with `serve --new-key`")
    return text


def create_key(directory: Path) -> str:
    """Create a key in place of the one that a folder had, and store its hash. Nobody can read the key afterwards.

    Returns:
        The key.

    Raises:
        OSError: The file cannot be written.
    """
    key = new_key()
    write_atomically(key_path(directory), hash_key(key).encode() + b"\n")
    return key
