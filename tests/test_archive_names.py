"""What the file of a downloaded archive is called: pure rules, and versions that are never replaced unasked."""

import asyncio
import copy
import hashlib
import os
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async import Client, DataError, Download, IntegrityError, NotFound, Retry, VersionConflict
from wme_async._client.archive_names import FIELDS, ArchiveName  # private: pure
from wme_async.simulator import Simulator

ARCHIVE = "enwiki_namespace_0"
NAMES = {
    "batches": ArchiveName(kind="batches", identifier=ARCHIVE, place="2025-07-16/05"),
    "snapshots": ArchiveName(kind="snapshots", identifier=ARCHIVE),
    "chunks": ArchiveName(kind="snapshots.chunks", identifier=f"{ARCHIVE}_chunk_3", place=ARCHIVE),
    "structured": ArchiveName(kind="structured_snapshots", identifier=ARCHIVE),
    "wikidata snapshots": ArchiveName(kind="wikidata.snapshots", identifier="wikidata"),
    "wikidata chunks": ArchiveName(kind="wikidata.snapshots.chunks", identifier="3", place="wikidata"),
    "wikidata batches": ArchiveName(kind="wikidata.batches", identifier="wikidata", place="2025-07-16/05"),
}


@pytest.fixture
async def wme(sim: Simulator) -> AsyncIterator[Client]:
    async with Client(**sim.client_options(), retry=Retry(base=0, cap=0)) as client:
        yield client


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def folders_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir())


def downloads(sim: Simulator) -> int:
    return sim.requests.count("api", method="GET", path="/download")


# --- names


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("batches", f"batches/2025-07-16/05/{ARCHIVE}.tar.gz"),
        ("snapshots", f"snapshots/{ARCHIVE}.tar.gz"),
        ("chunks", f"snapshots/{ARCHIVE}/chunk_3.tar.gz"),
        ("structured", f"structured_snapshots/{ARCHIVE}.tar.gz"),
        ("wikidata snapshots", "wikidata/snapshots/wikidata.tar.gz"),
        ("wikidata chunks", "wikidata/snapshots/wikidata/chunk_3.tar.gz"),
        ("wikidata batches", "wikidata/batches/2025-07-16/05/wikidata.tar.gz"),
    ],
)
def test_the_path_below_a_folder_identifies_the_content(kind: str, path: str) -> None:
    assert str(NAMES[kind].path()) == path


@pytest.mark.parametrize(
    ("kind", "template", "path"),
    [
        ("batches", "{identifier}", f"{ARCHIVE}.tar.gz"),
        ("batches", "{date}T{hour}-{identifier}.{ext}", f"2025-07-16T05-{ARCHIVE}.tar.gz"),
        ("batches", "x.gz", "x.gz.tar.gz"),
        ("batches", "a {{b}}", "a {b}.tar.gz"),
        ("snapshots", "{snapshot}/{version}", f"{ARCHIVE}/0123abcd.tar.gz"),
        ("chunks", "{snapshot}-{chunk}", f"{ARCHIVE}-chunk_3.tar.gz"),
        ("wikidata batches", "{kind}-{date}", "wikidata/batches-2025-07-16.tar.gz"),
    ],
)
def test_a_template_gives_another_path(kind: str, template: str, path: str) -> None:
    assert str(NAMES[kind].path(template, version="0123abcd")) == path


@pytest.mark.parametrize(
    "template",
    [
        "", "/x", "../x", "a/../x", "a//x", "./x", "a/", "..", "{identifier}/", "a\\b", "a\0b", "a\nb", "{", "}", "{}",
        "{0}", "{title}", "{identifier!r}", "{identifier:>9}", "{identifier.__class__}", "{identifier[0]}", "{chunk}",
        "{snapshot}", "x/.tar.gz",
    ],
)  # fmt: skip
async def test_a_template_that_names_no_path_below_the_folder_is_an_error_before_any_request(
    sim: Simulator, wme: Client, tmp_path: Path, template: str
) -> None:
    with pytest.raises(ValueError, match="name"):
        await wme.batches(sim.hours[-2]).download(ARCHIVE, tmp_path, name=template)
    assert len(sim.requests) == 0
    assert files_below(tmp_path) == []


async def test_a_template_that_is_not_text_is_an_error_before_any_request(sim: Simulator, wme: Client) -> None:
    wrong: Any = 5
    with pytest.raises(TypeError, match="name must be a template"):
        await wme.snapshots.download(ARCHIVE, name=wrong)
    assert len(sim.requests) == 0


@given(st.sampled_from(sorted(NAMES)), st.text(max_size=20) | st.lists(st.sampled_from(
    [*(f"{{{field}}}" for field in FIELDS), "/", ".", "..", "a", "-"]), max_size=6).map("".join))  # fmt: skip
def test_no_template_leads_out_of_the_folder(kind: str, template: str) -> None:
    try:
        path = NAMES[kind].path(template)
    except ValueError:
        return
    assert not path.is_absolute()
    assert ".." not in path.parts
    assert path.name.endswith(".tar.gz")
    folder = os.path.normpath("/folder")
    assert os.path.normpath(f"{folder}/{path}").startswith(f"{folder}/")


async def test_two_hours_and_all_kinds_have_room_in_one_folder(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    chunks = wme.snapshots.chunks(ARCHIVE)
    [chunk, *_] = await chunks.list()
    sources: list[tuple[Any, str]] = [
        (wme.batches(sim.hours[-2]), ARCHIVE),
        (wme.batches(sim.hours[-3]), ARCHIVE),
        (wme.snapshots, ARCHIVE),
        (wme.structured_snapshots, ARCHIVE),
        (chunks, chunk.identifier),
    ]
    paths = [(await files.download(identifier, tmp_path)).path for files, identifier in sources]
    assert len(set(paths)) == 5
    assert sorted(str(path.relative_to(tmp_path)) for path in paths) == files_below(tmp_path)
    assert (await chunks.download(0, tmp_path)).unchanged


async def test_a_name_makes_its_folder_and_can_hold_the_version(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    done = await wme.snapshots.download(ARCHIVE, tmp_path / "new", name="{identifier}-{version}")
    assert done.path == tmp_path / "new" / f"{ARCHIVE}-{done.version}.tar.gz"
    assert done.verified


async def test_a_download_that_fails_leaves_no_empty_folders(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    sim.faults.inject("status", role="api", path=f"{ARCHIVE}/download", method="GET", status=403, times=None)
    for files in (wme.snapshots, wme.batches(sim.hours[-2])):
        with pytest.raises(Exception, match="403"):
            await files.download(ARCHIVE, tmp_path)
        with pytest.raises(NotFound):
            await files.download("nowiki_namespace_99", f"{tmp_path}/new/")
    assert folders_below(tmp_path) == ["snapshots"]


# --- versions


async def changed(sim: Simulator, wme: Client, path: Path) -> tuple[str, str]:
    """Download a snapshot, and replace it on the server; returns both versions."""
    done = await wme.snapshots.download(ARCHIVE, path)
    sim.put_object(f"snapshots/{ARCHIVE}.tar.gz", os.urandom(50_000))
    new = (await wme.snapshots.get(ARCHIVE)).version
    assert done.version is not None
    assert new is not None
    assert new != done.version
    return done.version, new


async def test_a_file_of_another_version_is_not_replaced_unasked(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    old, new = await changed(sim, wme, path)
    content, asked = path.read_bytes(), downloads(sim)
    with pytest.raises(VersionConflict) as caught:
        await wme.snapshots.download(ARCHIVE, path)
    error = caught.value
    assert isinstance(error, DataError)
    assert isinstance(error, FileExistsError)
    assert (error.local, error.remote, error.filename) == (old, new, str(path))
    assert old in str(error)
    assert new in str(error)
    for clone in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(clone), str(clone), clone.filename, clone.errno, clone.local) == (
            VersionConflict, str(error), str(path), error.errno, old,
        )  # fmt: skip
    assert path.read_bytes() == content
    assert downloads(sim) == asked
    assert files_below(tmp_path) == ["x.tar.gz"]


@pytest.mark.parametrize("options", [{"overwrite": True}, {"if_changed": True}])
async def test_a_file_of_another_version_is_replaced_on_request(
    sim: Simulator, wme: Client, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "x.tar.gz"
    _, new = await changed(sim, wme, path)
    done = await wme.snapshots.download(ARCHIVE, path, **options)
    assert (done.version, done.verified, done.unchanged) == (new, True, False)
    assert hashlib.md5(path.read_bytes()).hexdigest() == new


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("options", [{}, {"if_changed": True}, {"verify": False}])
async def test_a_file_of_the_same_version_costs_nothing(
    sim: Simulator, wme: Client, tmp_path: Path, noted: bool, options: dict[str, Any]
) -> None:
    path = tmp_path / "x.tar.gz"
    await wme.snapshots.download(ARCHIVE, path)
    if not noted:  # as after a copy, or on a file system without extended attributes
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    asked = downloads(sim)
    done = await wme.snapshots.download(ARCHIVE, path, **options)
    assert (done.unchanged, done.verified, done.api_requests) == (True, True, 0)
    assert downloads(sim) == asked
    assert not (await wme.snapshots.download(ARCHIVE, path, overwrite=True)).unchanged
    assert downloads(sim) == asked + 1


@pytest.mark.parametrize("content", [b"", b"mine", None])
async def test_a_file_of_somebody_else_is_told_by_its_md5(
    sim: Simulator, wme: Client, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "x.tar.gz"
    if content is None:  # of the same size
        content = bytes((await wme.snapshots.head(ARCHIVE)).size or 0)
    path.write_bytes(content)
    with pytest.raises(VersionConflict) as caught:
        await wme.snapshots.download(ARCHIVE, path)
    assert caught.value.local == hashlib.md5(content).hexdigest()
    assert caught.value.remote == (await wme.snapshots.get(ARCHIVE)).version
    assert path.read_bytes() == content


async def test_an_old_flat_file_that_still_fits_is_not_paid_for_twice(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    flat = await wme.snapshots.download(ARCHIVE, tmp_path, name="{identifier}")
    assert flat.path == tmp_path / f"{ARCHIVE}.tar.gz"
    asked = downloads(sim)
    again = await wme.snapshots.download(ARCHIVE, tmp_path, if_changed=True)
    assert (again.unchanged, again.path) == (True, flat.path)
    assert downloads(sim) == asked
    # A batch of the same name is another content, and so is a newer snapshot.
    assert not (await wme.batches(sim.hours[-2]).download(ARCHIVE, tmp_path, if_changed=True)).unchanged
    sim.put_object(f"snapshots/{ARCHIVE}.tar.gz", os.urandom(50_000))
    newer = await wme.snapshots.download(ARCHIVE, tmp_path, if_changed=True)
    assert newer.path == tmp_path / "snapshots" / f"{ARCHIVE}.tar.gz"
    assert hashlib.md5(flat.path.read_bytes()).hexdigest() == flat.version


async def test_of_two_hours_to_one_path_at_once_one_is_an_error(sim: Simulator, wme: Client, tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    hours = [wme.batches(sim.hours[-2]), wme.batches(sim.hours[-3])]
    results = await asyncio.gather(*(hour.download(ARCHIVE, path) for hour in hours), return_exceptions=True)
    [done] = [result for result in results if isinstance(result, Download)]
    [error] = [result for result in results if isinstance(result, OSError)]
    assert isinstance(error, BlockingIOError | VersionConflict)
    assert hashlib.md5(path.read_bytes()).hexdigest() == done.version


async def test_a_copy_of_what_is_read_does_not_replace_another_version(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    path = tmp_path / "x.tar.gz"
    _, new = await changed(sim, wme, path)
    content, asked = path.read_bytes(), downloads(sim)
    with pytest.raises(VersionConflict):
        async with wme.snapshots.content(ARCHIVE, tee=path) as reader:
            [data async for data in reader]
    assert path.read_bytes() == content
    assert downloads(sim) == asked
    async with wme.snapshots.content(ARCHIVE, tee=path, overwrite=True) as reader:
        [data async for data in reader]
    assert hashlib.md5(path.read_bytes()).hexdigest() == new


async def test_an_upload_that_is_replaced_on_the_server_is_not_replaced_here_unasked(
    sim: Simulator, wme: Client, tmp_path: Path
) -> None:
    name = "Ottawa 0757.jpg"
    done = await wme.files.download(name, tmp_path)
    assert (await wme.files.download(name, tmp_path)).unchanged
    done.path.write_bytes(b"mine")
    with pytest.raises(VersionConflict) as caught:
        await wme.files.download(name, tmp_path)
    assert caught.value.local == hashlib.sha1(b"mine").hexdigest()
    assert done.path.read_bytes() == b"mine"
    assert not (await wme.files.download(name, tmp_path, overwrite=True)).unchanged


async def test_a_conflict_is_not_an_integrity_error() -> None:
    assert not issubclass(VersionConflict, IntegrityError)
