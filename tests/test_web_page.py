"""The page, in a real Chromium that is driven by its DevTools protocol."""

import asyncio
import base64
import contextlib
import itertools
import os
import re
import shutil
import time
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

    async def until(self, condition, seconds=10):
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
async def service(directory, port=0):
    """Run the service as `wme-async serve` does, and end it as a signal would."""
    manager = BatchManager(
        directory, allow_hosts=["127.0.0.1"], limits=JobLimits(free_space=0), retry=Retry(attempts=1)
    )
    ready = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(serve(manager, port=port, api_keys=[KEY], on_ready=ready.set_result))
        yield await ready
        task.cancel()


def button(batch, action):
    return f"document.getElementById('{batch}').querySelector('[data-action={action}]')"


async def test_people_can_submit_watch_cancel_and_retry_and_a_restart_is_mended(tmp_path):
    began = time.monotonic()
    async with FileServer().running() as files, chromium(tmp_path / "profile") as page:
        big, bad = files.add("big.bin", 900_000, "slow"), files.add("bad.bin", 4000, 404)
        async with service(tmp_path / "files") as url:
            port = int(url.rpartition(":")[2])
            await page.call("Page.navigate", url=url)

            # The key is asked for once; all of it by keyboard.
            await page.until("document.activeElement && document.activeElement.id === 'key'")
            await page.type(KEY)
            await page.press("Enter", "\r", code="Enter", windowsVirtualKeyCode=13)
            await page.until("document.getElementById('live').textContent === 'live'")
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
            await page.until(f"{bar} > {first} + 5")
            shown = await page.run(f"document.getElementById('{batch}').innerText")
            assert re.search(r"\d+ kB of 900 kB, .+/s, \d+ s left", shown), shown
            if os.environ.get("WME_PICTURES"):
                await page.picture(Path(os.environ["WME_PICTURES"]) / "light.png")

            # Cancel, and retry what failed.
            await page.run(f"{button(batch, 'cancel')}.click()")
            await page.until(f"document.querySelector('#{batch} .status').textContent === 'cancelled'")
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
    assert time.monotonic() - began < 60


async def test_the_page_rejects_a_key_that_no_header_can_carry(tmp_path):
    async with chromium(tmp_path / "profile") as page, service(tmp_path / "files") as url:
        await page.call("Page.navigate", url=url)
        for key in ("a-key-for…", "🔑" * 8, KEY):
            await page.until("document.getElementById('ask').open && document.activeElement.id === 'key'")
            await page.type(key)
            await page.press("Enter", "\r", code="Enter", windowsVirtualKeyCode=13)
        await page.until("document.getElementById('live').textContent === 'live'")


def refused_on_purpose(entry):
    """Chromium logs every answer of 400 and above; the first without a key and the bad URLs are meant."""
    return entry.get("source") == "network" and re.search(r"status of (401|422)", entry.get("text", ""))


def connection_lost(entry):
    return entry.get("source") == "network" and re.search(r"ERR_(CONNECTION|INCOMPLETE|EMPTY)", entry.get("text", ""))
