"""The token file: private, shared through links, and never wrong in silence."""

import json
import logging
import os
import random
import stat
from pathlib import Path
from typing import Any

import pytest
from transports import TokenFile, token_policy

from wme_async import Client
from wme_async.simulator import Simulator


async def signed_in(sim: Simulator, path: Path) -> None:
    """Use a token file once, and say how often the server was asked to sign in."""
    async with Client(**sim.client_options(), token_file=path) as wme:
        await wme.projects.list()


def logins(sim: Simulator) -> int:
    return len(sim.requests.select(path="/v1/login"))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def changed(data: bytes, rng: random.Random) -> bytes:
    """Return a file with one bit flipped, or cut short."""
    at = rng.randrange(len(data))
    if rng.random() < 0.2:
        return data[:at]
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document))


@pytest.fixture
async def written(sim: Simulator, tmp_path: Path) -> Path:
    """A token file that a client has written."""
    path = tmp_path / "tokens.json"
    await signed_in(sim, path)
    assert logins(sim) == 1
    return path


def test_no_damage_gives_other_tokens_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tokens.json"
    tokens = token_policy.Tokens(access_token="a" * 200, access_expires=1.5e9, refresh_token="b" * 200, refreshes=7)
    TokenFile(path, "host|user").save(tokens)
    TokenFile(path, "host|user").count("2026-11", {"chunk": 5})
    good = path.read_bytes()
    rng = random.Random(20261129)
    silent = 0
    for _ in range(300):
        path.write_bytes(changed(good, rng))
        caplog.clear()
        file = TokenFile(path, "host|user")
        loaded, usage = file.load(), file.usage()
        if loaded is not None or usage:
            # The damage is where nothing is said, such as in the name of a member that no release has.
            assert (loaded, usage, warnings(caplog)) == (tokens, {"chunk/2026-11": 5}, [])
            silent += 1
        else:
            (message,) = warnings(caplog)
            assert str(path) in message
    assert silent < 10


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"entries":' + b"[" * 5_000, b'{"entries":5}', b"\xff", b'{"version":0}', b"[]", b"null"]
)
async def test_a_file_that_is_not_one_of_ours_is_named_once_and_replaced(
    sim: Simulator, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens.json"
    path.write_bytes(content)
    path.chmod(0o600)
    await signed_in(sim, path)
    assert [str(path) in message for message in warnings(caplog)] == [True]
    await signed_in(sim, path)
    assert logins(sim) == 1


async def test_a_file_of_a_later_release_is_named_with_its_version_and_left_as_it_is(
    sim: Simulator, written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = read(written) | {"version": 99, "check": "of another kind", "sessions": [1]}
    write(written, content)
    caplog.clear()
    async with Client(**sim.client_options(), token_file=written) as wme:
        await wme.projects.list()
        await wme.articles.lookup("NATO")
        await wme.auth.revoke()
    assert logins(sim) == 2
    (message,) = warnings(caplog)
    assert str(written) in message
    assert "version 99" in message
    assert read(written) == content


async def test_a_file_of_an_earlier_release_is_read(sim: Simulator, written: Path) -> None:
    write(written, {"entries": read(written)["entries"]})
    await signed_in(sim, written)
    assert logins(sim) == 1


async def test_a_symbolic_link_stays_one_and_its_target_is_written(sim: Simulator, tmp_path: Path) -> None:
    target, link = tmp_path / "elsewhere" / "tokens.json", tmp_path / "link.json"
    target.parent.mkdir()
    link.symlink_to(target)
    await signed_in(sim, link)
    assert link.is_symlink()
    assert target.is_file()
    await signed_in(sim, target)
    assert logins(sim) == 1


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
async def test_the_file_is_its_owners_alone_whatever_the_umask(sim: Simulator, tmp_path: Path, umask: int) -> None:
    path = tmp_path / "tokens.json"
    old = os.umask(umask)
    try:
        await signed_in(sim, path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_the_value_of_a_variable_in_an_env_file_is_taken_as_it_stands(
    sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dotenv", reason="the extra `cli` is not installed")
    monkeypatch.setenv("HOME_PAGE", "expanded")
    password = "a${HOME_PAGE}$b"
    sim.add_user("somebody", password)
    path = tmp_path / ".env"
    path.write_text(f"WME_USERNAME=somebody\nWME_PASSWORD='{password}'\n")
    async with Client.from_env(path, hosts=sim.client_options()["hosts"]) as wme:
        await wme.auth.login()


def test_a_new_month_begins_at_nothing_and_late_counts_of_the_old_one_do_not_end_it(tmp_path):
    one, two = TokenFile(tmp_path / "tokens", "a"), TokenFile(tmp_path / "tokens", "a")
    other = TokenFile(tmp_path / "tokens", "b")
    assert one.count("2026-11", {"chunk": 5}) == {"chunk/2026-11": 5}
    assert other.count("2026-11", {"chunk": 1}) == {"chunk/2026-11": 1}
    assert one.count("2026-12", {"chunk": 1}) == {"chunk/2026-12": 1}
    # A process that has counted since before the month's end writes after it.
    two.count("2026-11", {"chunk": 2, "ondemand": 3})
    assert two.usage()["chunk/2026-12"] == 1
    assert one.count("2027-01", {}) == {}
    assert other.usage() == {"chunk/2026-11": 1}


async def test_the_tokens_are_free_again_though_another_process_has_inherited_the_lock(tmp_path, monkeypatch):
    file = TokenFile(tmp_path / "tokens", "a")
    inherited = []
    real = os.open

    def forked(path, *rest):
        descriptor = real(path, *rest)
        # A process that is forked meanwhile has the same.
        inherited.append(os.dup(descriptor))
        return descriptor

    async def sleep(_seconds):
        raise AssertionError("nobody holds it")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", forked)
        async with file.locked(sleep):
            pass
    try:
        async with file.locked(sleep):
            pass
    finally:
        for descriptor in inherited:
            os.close(descriptor)
