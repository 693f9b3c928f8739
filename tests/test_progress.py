"""Progress bars: what they show of each kind of progress, on a terminal, in a notebook, and elsewhere."""

import io
import re
import sys
import types

import pytest

from wme_async import Client, LookupProgress, Progress, SyncFile, SyncProgress
from wme_async.jobs import BatchManager
from wme_async.progress import bar
from wme_async.simulator import Simulator

ARCHIVE = "enwiki_namespace_0"


@pytest.fixture
def console():
    rich = pytest.importorskip("rich.console")
    return rich.Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100)


def text_of(console):
    return console.file.getvalue()


async def test_a_download_a_sync_look_ups_and_jobs_show_their_progress(console, tmp_path):
    async with Simulator(articles=2) as simulator, Client(**simulator.client_options()) as client:
        hour = client.batches("latest")
        async with bar("one file", console=console) as progress:
            await hour.download(ARCHIVE, f"{tmp_path}/a/", progress=progress)
        assert "one file" in text_of(console)
        assert re.search(r"\d B of \d+ B", text_of(console))
        async with bar("a folder", console=console) as progress:
            await hour.sync(tmp_path / "b", filters={"in_language.identifier": "de"}, progress=progress)
        assert "a folder, 0 of " in text_of(console)
        with bar("pages", console=console) as progress:
            async with client.articles.lookup_many(["Squirrel"], limit=1, progress=progress) as results:
                async for _ in results:
                    pass
        assert "1 of 1" in text_of(console)
        async with BatchManager(tmp_path / "jobs", client=client) as manager:
            place = simulator.hours[-1].replace("T", "/")
            batch = await manager.submit([f"wme:batches/{place}/{ARCHIVE}"])
            async with bar(console=console) as progress:
                await manager.wait(batch.batch_id, progress=progress)
        assert f"{batch.batch_id}, 1/1 completed" in text_of(console)


def test_failures_of_a_sync_are_printed_once_above_the_bar(console, tmp_path):
    failed = (SyncFile(identifier="x", path=tmp_path, error=OSError("is broken")),)
    with bar(console=console) as progress:
        for _ in range(3):
            progress(SyncProgress(files=1, files_total=2, done=1, total=2_000_000, rate=5e5, eta=3725.0, failed=failed))
    assert text_of(console).count("x: is broken") == 1
    assert "1 failed" in text_of(console)
    assert "500 kB/s 1:02:05" in text_of(console)


def test_more_bars_stand_below_the_first_and_disappear(console):
    with bar("all", console=console) as bars:
        bars(Progress(done=1, total=None, rate=0.0, eta=None))
        with bars.add("first") as first, bars.add("second") as second:
            first(Progress(done=1, total=2, rate=0.0, eta=None))
            second(Progress(done=1, total=2, rate=0.0, eta=None))
    assert "first" in text_of(console)
    assert "all" in text_of(console).rpartition("second")[2]


def test_a_bar_with_a_label_is_there_before_the_first_progress(console):
    with bar("all", console=console) as bars:
        with bars.add("first"):
            pass
        bars(Progress(done=1, total=2, rate=0.0, eta=None))
    with bar("nothing to do", console=console):
        pass
    text = text_of(console)
    for label in ("all", "first", "nothing to do"):
        assert re.search(f"{label} .*connecting", text)
    assert "connecting" not in text.rpartition("1 B of 2 B")[2].partition("nothing to do")[0]
    assert "nothing to do" not in text.splitlines()[-1].rpartition("\r")[2].replace("connecting", "")


def test_in_a_notebook_a_bar_without_progress_disappears(page):
    with bar("enwiki"):
        assert "enwiki <progress></progress> connecting" in page[-1]
    assert "enwiki" not in page[-1]


def test_without_a_terminal_nothing_is_drawn(capsys):
    with bar("silent") as progress:
        progress(Progress(done=1, total=2, rate=3.0, eta=4.0))
    with bar("hidden", shown=False) as progress:
        progress(LookupProgress(done=1, found=1, missing=0, failed=0, total=None, rate=1.0, eta=None))
    assert capsys.readouterr() == ("", "")


class ZMQInteractiveShell:
    """What IPython calls the shell of a notebook."""


class Shell(ZMQInteractiveShell):
    """As hosts of notebooks extend it."""


@pytest.fixture
def page(monkeypatch):
    """Stand in for IPython in the kernel of a notebook, and return the elements that it displays."""
    page = []

    class Handle:
        def update(self, element):
            page.append(element)

    def display(element, *, display_id):
        assert display_id
        page.append(element)
        return Handle()

    ipython = types.ModuleType("IPython")
    vars(ipython).update(get_ipython=Shell)
    module = types.ModuleType("IPython.display")
    vars(module).update(HTML=str, display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return page


def test_in_a_notebook_the_bar_is_an_element_of_the_page(page, tmp_path):
    with bar("<b>enwiki</b>") as progress:
        progress(Progress(done=1_000_000, total=4_000_000, rate=2e6, eta=2.0))
        progress(Progress(done=4_000_000, total=4_000_000, rate=2e6, eta=0.0))
        with progress.add("second") as second:
            second(Progress(done=1, total=None, rate=0.0, eta=None))
    assert '<progress value="1000000" max="4000000"></progress> 1.00 MB of 4.00 MB 2.00 MB/s 0:00:02' in page[1]
    assert "&lt;b&gt;enwiki&lt;/b&gt;" in page[1]
    assert "second" in page[3]
    assert "second" not in page[-1]
    failed = (SyncFile(identifier="x", path=tmp_path, error=OSError("a < b")),)
    with bar() as progress:
        progress(SyncProgress(files=0, files_total=1, done=0, total=1, rate=0.0, eta=None, failed=failed))
    assert "x: a &lt; b" in page[-1]


def test_a_terminal_without_rich_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(ImportError, match=r"wme-async\[cli\]"):
        bar()
