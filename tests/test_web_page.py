"""The page, in a real Chromium that is driven by its DevTools protocol."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import aiohttp
import pytest
from jobs_server import FileServer

from wme_async.jobs import BatchManager, JobLimits
from wme_async.settings import Retry
from wme_async.web import serve

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"),
    *("--remote-debugging-port=0", "--remote-allow-origins=*", "--window-size=1000,900", "about:blank"),
]
KEY = "a-key-for-the-page"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]


class Page:
    """One tab."""

    def __init__(self, socket):
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers = {}
        self._session = None
        self.complaints = []

    async def listen(self):
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                response = self._answers.pop(said["id"])
                if not response.done():
                    response.set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.complaints.append(said["params"]["exceptionDetails"])
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] in {"error", "warning"}:
                self.complaints.append(said["params"]["entry"])
            elif said["method"] == "Runtime.consoleAPICalled" and said["params"]["type"] in {"error", "warning"}:
                self.complaints.append(said["params"])

    async def call(self, method, **parameters):
        number = next(self._numbers)
        response = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        async with asyncio.timeout(10):
            said = await response
        assert "error" not in said, said
        return said["result"]

    async def start(self):
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def run(self, script):
        message = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in message, message["exceptionDetails"]
        return message["result"].get("value")

    async def until(self, condition, seconds=9):
        """Wait inside the page, frame by frame, until a condition holds."""
        script = f"""new Promise((resolve) => {{
            const end = Date.now() + {seconds * 1000};
            const look = () => {{
                let value = null;
                try {{ value = ({condition}); }} catch (error) {{ value = null; }}
                if (value || Date.now() > end) resolve(value); else setTimeout(look, 15);
            }};
            look();
        }})"""
        value = await self.run(script)
        assert value, f"never: {condition}\\n{await self.run('document.body.innerText')}"
        return value

    async def press(self, key, text="", **more):
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, text=text if kind == "keyDown" else "", **more
            )

    async def type(self, text):
        await self.call("Input.insertText", text=text)

    async def picture(self, path):
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        with open(path, "wb") as file:  # noqa: ASYNC230, PTH123  # a picture for people, at their request
            file.write(base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def chromium(profile):
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *FLAGS[:-1],
        f"--user-data-dir={profile}",
        FLAGS[-1],
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            url = None
            while url is None:
                line = (await process.stderr.readline()).decode(errors="replace")
                assert line, "Chromium ended before it listened"
                records = re.search(r"ws://\S+", line)
                url = records and records[0]
        async with asyncio.TaskGroup() as group, aiohttp.ClientSession() as session:
            drain = group.create_task(process.stderr.read())
            async with session.ws_connect(url, max_msg_size=1 << 26) as socket:
                page = Page(socket)
                listening = group.create_task(page.listen())
                await page.start()
                try:
                    yield page
                finally:
                    listening.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await drain
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()


@contextlib.asynccontextmanager
async def service(directory, port=0, keys=(KEY,)):
    """Run the service as `wme-async serve` does, and end it as a signal would."""
    manager = BatchManager(
        directory, allow_hosts=["127.0.0.1"], limits=JobLimits(free_space=0), retry=Retry(attempts=1)
    )
    ready = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(serve(manager, port=port, api_keys=keys, on_ready=ready.set_result))
        yield await ready
        task.cancel()


def button(batch, action):
    return f"document.getElementById('{batch}').querySelector('[data-action={action}]')"


@pytest.mark.servers
async def test_people_can_submit_watch_cancel_and_retry_and_a_restart_is_mended(tmp_path):
    async with FileServer().running() as files, chromium(tmp_path / "profile") as page:
        big, bad = files.add("big.bin", 9_000_000, "slow"), files.add("bad.bin", 4000, 404)
        async with service(tmp_path / "files") as url:
            port = int(url.rpartition(":")[2])
            await page.call("Page.navigate", url=url)

            # The key is asked for once; all of it by keyboard.
            await page.until("document.activeElement && document.activeElement.id === 'key'")
            await sign_in(page)
            assert page.complaints == []
            assert await page.run("document.getElementById('empty').hidden") is False
            await page.run("document.activeElement.blur()")
            await page.press("n", "n")
            await page.until("document.activeElement.id === 'urls'")

            # What is refused is said in words.
            await page.type("http://169.254.169.254/ nonsense")
            await page.run("document.getElementById('submit').click()")
            message = await page.until("document.getElementById('form-error').textContent")
            assert "metadata service" in message
            assert "nonsense: Invalid URL" in message

            # A batch moves, and says what went wrong.
            await page.run("document.getElementById('urls').value = ''")
            await page.type(f"{big}\n{bad}")
            await page.press("Tab", code="Tab", windowsVirtualKeyCode=9)
            await page.run("document.getElementById('submit').focus()")
            await page.press("Enter", "\r", code="Enter", windowsVirtualKeyCode=13)
            batch = await page.until("document.querySelector('article')?.id")
            await page.until(f"document.querySelector('#job_{batch}_1 .error').textContent.includes('HTTP 404')")
            bar = f"document.querySelector('#{batch} progress').value"
            await page.until(f"{bar} > 0")
            first = await page.run(bar)
            await page.until(f"{bar} > {first} + 1")
            shown = await page.run(f"document.getElementById('{batch}').innerText")
            assert re.search(r"\d+ % · .+ of 9\.0 MB · .+/s · \d+ s left", shown), shown
            assert re.search(r"^[\d.]+ .?B/s · Batch downloads$", await page.run("document.title"))
            if os.environ.get("WME_PICTURES"):
                await page.picture(Path(os.environ["WME_PICTURES"]) / "light.png")

            # Cancel, and retry what failed.
            await page.run(f"{button(batch, 'cancel')}.click()")
            await page.until(f"document.querySelector('#{batch} .status').textContent === 'cancelled, 1 failed'")
            files.rules.clear()
            await page.run(f"{button(batch, 'retry')}.click()")
            await page.until("document.querySelectorAll('article').length === 2")
            second = await page.run("document.querySelector('article').id")
            assert second != batch
            await page.until(f"document.querySelector('#{second} .status').textContent === 'completed'")

            # Dark where the reader wants it.
            light = await page.run("getComputedStyle(document.body).backgroundColor")
            dark = [{"name": "prefers-color-scheme", "value": "dark"}]
            await page.call("Emulation.setEmulatedMedia", features=dark)
            assert await page.run("getComputedStyle(document.body).backgroundColor") != light
            assert page.complaints == [entry for entry in page.complaints if refused_on_purpose(entry)]
            page.complaints.clear()

            files.rules["hang.bin"] = "hang"
            hang = files.add("hang.bin", 600_000, "hang")
            await page.run(f"document.getElementById('urls').value = {hang!r}")
            await page.run("document.getElementById('submit').click()")
            third = await page.until(
                "document.querySelectorAll('article').length === 3 && document.querySelector('article').id"
            )
            async with asyncio.timeout(10):
                await files.hanging.wait()
        await page.until("document.getElementById('live').className === 'off'")
        files.rules.clear()
        # The page shows the batch as it was; the server comes back and finishes it.
        async with service(tmp_path / "files", port):
            await page.until("document.getElementById('live').textContent === 'live'")
            await page.until(f"document.querySelector('#{third} .status').textContent === 'completed'")
            assert await page.run("document.querySelectorAll('article').length") == 3
            if os.environ.get("WME_PICTURES"):
                await page.picture(Path(os.environ["WME_PICTURES"]) / "dark.png")
            assert [entry for entry in page.complaints if not connection_lost(entry)] == []


async def test_a_wrong_key_is_reported_and_the_source_of_the_key_is_named(tmp_path):
    async with chromium(tmp_path / "profile") as page, service(tmp_path / "files") as url:
        await page.call("Page.navigate", url=url)
        for key, message in (
            ("a-key-for…", "such characters"),
            ("🔑" * 8, "such characters"),
            ("a-wrong-key", "wrong"),
        ):
            await page.until("document.getElementById('ask').open && document.activeElement.id === 'key'")
            assert "wme-async serve --new-key" in await page.run("document.getElementById('ask').innerText")
            await enter_key(page, key)
            await page.until(f"document.getElementById('key-error').textContent.includes('{message}')")
        await sign_in(page)
        assert await page.run("document.getElementById('ask').open") is False


BOXES = """(() => {
    const width = document.documentElement.clientWidth, problems = [];
    if (document.documentElement.scrollWidth > width) problems.push('the page is wider than its window');
    for (const node of document.querySelectorAll('body *')) {
        const box = node.getBoundingClientRect(), name = `${node.tagName} #${node.id} .${node.className}`;
        if (!box.width || !box.height || node.closest('.hidden')) continue;
        if (box.right > width + 0.5 || box.left < -0.5) problems.push(`${name} is outside`);
        if (node.scrollWidth > node.clientWidth + 1 && node.clientWidth) problems.push(`${name} overflows`);
        const target = node.matches('button, input, select, textarea, a, summary');
        if (target && (box.width < 24 || box.height < 24)) problems.push(`${name} is ${box.width} by ${box.height}`);
        const cell = node.matches('td.url');
        if (cell && box.width < 200) problems.push(`${name} has ${box.width} pixels for a URL`);
    }
    return problems;
})()"""


@pytest.mark.servers
async def test_batches_are_named_found_retried_and_forgotten_at_any_width(tmp_path):
    async with FileServer().running() as files, chromium(tmp_path / "profile") as page:
        async with service(tmp_path / "files") as url:
            await page.call("Page.addScriptToEvaluateOnNewDocument", source=NOTIFICATIONS)
            await page.call("Page.navigate", url=url)
            await page.until("document.getElementById('ask').open")
            await sign_in(page)
            await page.run("document.getElementById('notify').click()")
            await page.until("document.getElementById('notify').getAttribute('aria-pressed') === 'true'")
            good = files.add("good.bin", 20_000)
            bad = [files.add(f"{'a-long-name-' * 9}{number}.bin", 9, 404) for number in range(3)]
            named = await submit(page, [good, *bad], "Pictures <of> an exhibition")
            other = await submit(page, [files.add("other.bin", 900), files.add("third.bin", 800)], "")
            await page.until(f"batches.get('{named}')?.status === 'completed'")
            await page.until(f"batches.get('{other}')?.status === 'completed'")

            # Which batch is which, and how it ended.
            assert await text_of(page, named, "h3") == "Pictures <of> an exhibition"
            assert await text_of(page, other, "h3") == f"{files.url}/f/other.bin and 1 more"
            assert await text_of(page, named, ".status") == "completed, 3 failed"
            assert "amber" in await page.run(f"document.querySelector('#{named} .status').className")
            assert await page.run(f"document.querySelector('#{named} progress').value") == 25
            assert await text_of(page, other, ".status") == "completed"
            await page.until("notes.length === 2")
            notes = sorted(await page.run("notes"))
            assert notes[0] == ["Batch completed", f"{files.url}/f/other.bin and 1 more"]
            assert notes[1] == ["Batch completed, 3 failed", "Pictures <of> an exhibition"]
            # The event of an end may overtake the response to an earlier request, and that the response to a later one.
            batch = f"...batches.get('{named}')"
            await page.run(f"ended.add('{named}'), take({{{batch}, status: 'running'}}, turns += 1)")
            await page.run(f"take({{{batch}, status: 'completed'}}, turns += 1)")
            assert await page.run("notes.length") == 3
            await page.run(f"take({{{batch}, status: 'running'}}, 0)")
            assert await page.run(f"batches.get('{named}').status") == "completed"

            # All of it fits, and can be touched.
            await page.until(f"document.querySelectorAll('#{named} tbody tr').length === 4")
            for scheme in ("light", "dark"):
                features = [{"name": "prefers-color-scheme", "value": scheme}]
                await page.call("Emulation.setEmulatedMedia", features=features)
                for width in (390, 800, 1280):
                    await page.call(
                        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
                    )
                    assert await page.run(BOXES) == [], (scheme, width)
                    if os.environ.get("WME_PICTURES"):
                        await page.picture(Path(os.environ["WME_PICTURES"]) / f"{scheme}-{width}.png")

            # Search, states and order.
            await page.run("set('search', 'exhibition')")
            await page.until(f"ids().join() === '{named}'")
            await page.run("set('search', 'nothing like it')")
            await page.until("!ids().length && !document.getElementById('empty').hidden")
            await page.run("set('search', '')")
            await page.run("document.querySelector('#states input[value=failures]').click()")
            await page.until(f"ids().join() === '{named}'")
            await page.run("document.querySelector('#states input[value=all]').click()")
            await page.run("set('sort', 'oldest', 'change')")
            await page.until(f"ids().join() === '{named},{other}'")
            await page.run("set('sort', 'newest', 'change')")
            await page.until(f"ids().join() === '{other},{named}'")

            # One job again; then two that are selected.
            files.rules.clear()
            await page.run(f"document.querySelector('#job_{named}_1 [data-action=retry-job]').click()")
            await page.until("ids().length === 3")
            assert await page.run("batches.get(ids()[0]).total_jobs") == 1
            await page.run(f"document.querySelector('#{named} .jobs .tick input').click()")
            assert await text_of(page, named, "[data-action=retry-selected]") == "Retry selected (3)"
            await page.run(f"document.querySelector('#job_{named}_1 .pick input').click()")
            await page.run(f"{button(named, 'retry-selected')}.click()")
            await page.until("ids().length === 4 && batches.get(ids()[0]).status === 'completed'")
            assert await page.run("batches.get(ids()[0]).completed_jobs") == 2

            # By keyboard to a batch, and to forget it; it is kept unless the reader says yes.
            await page.run("document.activeElement.blur()")
            await page.press("j", "j")
            await page.press("f", "f")
            await page.until("document.getElementById('question').open")
            await page.press("Enter", "\r", code="Enter", windowsVirtualKeyCode=13)
            await page.until("!document.getElementById('question').open")
            assert await page.run("ids().length") == 4
            # The button works again once the page has heard of the answer.
            await page.until("document.activeElement.querySelector('[data-action=forget]')?.disabled === false")
            await page.press("f", "f")
            await page.until("document.getElementById('question').open")
            await page.run("document.getElementById('question-yes').click()")
            await page.until("ids().length === 3")
            statuses = "[...document.querySelectorAll('article .status')].map(status => status.textContent)"
            await page.until(f"{statuses}.every(status => /completed|failed|cancelled/.test(status))")
            await page.run("document.getElementById('clear').click()")
            await page.until("document.getElementById('question').open")
            assert "Forget 3 finished batches?" in await page.run("document.getElementById('question').innerText")
            await page.run("document.getElementById('question-yes').click()")
            await page.until("!ids().length")
            assert (await page.run("request('GET', '/api/v1/batch')"))["batches"] == []
            assert page.complaints == []


LISTS = {
    "a table by its header": ('Title,URL\n"a, b",https://a.example/1\nc,"https://a.example/2,3"\n', "1 2,3"),
    "semicolons": ("url;x\r\nhttps://a.example/1;2\r\n;\r\n", "1"),
    "a table without a header": ("https://a.example/1,One\nhttps://a.example/2,Two\n", "1 2"),
    "plain lines": ("# mine\nhttps://a.example/1\nno URL\n  https://a.example/2,3 \nhttps://a.example/1\n", "1 2,3"),
    "prose": ("see https://a.example/1, and <https://a.example/2>;", "1 2"),
}


@pytest.mark.servers
async def test_lists_of_urls_are_dropped_and_long_ones_become_several_batches(tmp_path):
    async with FileServer().running() as files, chromium(tmp_path / "profile") as page:
        async with service(tmp_path / "files", keys=None) as url:
            await page.call("Page.addScriptToEvaluateOnNewDocument", source=NOTIFICATIONS)
            await page.call("Page.navigate", url=url)
            await page.until("document.getElementById('live').textContent === 'live'")
            for name, (text, expected) in LISTS.items():
                urls = [f"https://a.example/{end}" for end in expected.split()]
                for encoding in ("utf-8", "utf-16"):
                    content = list(text.encode(encoding))
                    await page.run(f"drop_file('list.csv', {content})")
                    await page.until("document.getElementById('urls').value")
                    assert await page.run("typedUrls()") == urls, (name, encoding)
                    await page.run("document.getElementById('urls').value = ''")
            await page.run("drop_file('none.txt', [72, 105])")
            await page.until("document.getElementById('form-error').textContent.includes('none.txt contains no URL')")
            urls = [files.add(f"{number}.bin", 10) for number in range(120)]
            await page.run(f"drop_file('many.txt', {list(chr(10).join(urls).encode())})")
            await page.until("document.getElementById('urls-count').textContent.includes('2 batches')")
            await page.run("set('name', 'Many')")
            await page.run("document.getElementById('submit').click()")
            await page.until(
                "ids().length === 2 && [...batches.values()].every((batch) => batch.status === 'completed')"
            )
            listing = (await page.run("request('GET', '/api/v1/batch')"))["batches"]
            assert [(batch["name"], batch["total_jobs"]) for batch in listing] == [
                ("Many (2 of 2)", 20),
                ("Many (1 of 2)", 100),
            ]
            assert page.complaints == []


# Helpers in the page: the ids of the batches in order, a value as if typed, a file as if dropped, and notifications.
NOTIFICATIONS = """
const notes = [];
window.Notification = class extends EventTarget {
    static permission = 'default';
    static async requestPermission() { return Notification.permission = 'granted'; }
    constructor(title, options) { super(); notes.push([title, options.body]); }
};
const ids = () => [...document.querySelectorAll('article')].map((node) => node.id);
const set = (id, value, kind = 'input') => {
    document.getElementById(id).value = value;
    document.getElementById(id).dispatchEvent(new Event(kind, { bubbles: true }));
};
const drop_file = (name, bytes) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], name));
    document.body.dispatchEvent(new DragEvent('dragover', { dataTransfer: transfer, bubbles: true, cancelable: true }));
    document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true }));
};
"""


async def enter_key(page, key):
    await page.type(key)
    await page.press("Enter", "\r", code="Enter", windowsVirtualKeyCode=13)


async def sign_in(page):
    await enter_key(page, KEY)
    await page.until("document.getElementById('live').textContent === 'live'")


async def submit(page, urls, name):
    """Submit a batch by the form, and return its id."""
    known = await page.run("ids().length")
    await page.run(f"set('urls', {json.dumps(chr(10).join(urls))}); set('name', {json.dumps(name)})")
    await page.run("document.getElementById('submit').click()")
    return await page.until(f"ids().length > {known} && ids()[0]")


async def text_of(page, batch, selector):
    return await page.run(f"document.querySelector('#{batch} {selector}').textContent")


def refused_on_purpose(entry):
    """Chromium logs every answer of 400 and above; the first without a key and the bad URLs are meant."""
    return entry.get("source") == "network" and re.search(r"status of (401|422)", entry.get("text", ""))


def connection_lost(entry):
    return entry.get("source") == "network" and re.search(r"ERR_(CONNECTION|INCOMPLETE|EMPTY)", entry.get("text", ""))
