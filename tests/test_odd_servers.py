"""Files from web servers that serve few connections, know no versions, or send other bytes than were asked for."""

import asyncio
import gzip
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest
from download_store import Checksum, SignedUrl, Transport, download
from raw_server import Handler, RawRequest, RawServer, data_of, head, partial, reset

from wme_async import FileInfo, Retry
from wme_async.errors import StatusError
from wme_async.jobs import BatchManager, Job, JobLimits

MIB = 1 << 20
DATA = data_of(8 * MIB)
SMALL = DATA[:300_000]
QUICK = Retry(attempts=3, base=0.01, cap=0.02)


async def run_job(handler: Handler, folder: Path, *, retry: Retry = QUICK) -> tuple[Job, bytes | None, RawServer]:
    """Fetch one URL by a batch; return its job, the finished file and the server."""
    async with (
        RawServer(handler) as server,
        BatchManager(folder, allow_hosts=["127.0.0.1"], retry=retry, limits=JobLimits(free_space=0)) as manager,
    ):
        batch = await manager.submit([f"{server.url}/x.bin"])
        (job,) = (await manager.wait(batch.batch_id, timeout=20)).jobs
        return job, (folder / job.file_info.filepath).read_bytes() if job.file_info else None, server


def serves(data: bytes, **headers: object) -> Handler:
    """Return a proper server of one file."""

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        top, body = partial(request, data, **headers)
        writer.write(top + body)
        await writer.drain()

    return answer


class Limited:
    """Serves so many transfers at a time, and refuses the rest.

    The first transfer stands still in its middle until enough others have been refused, so that nothing depends on how
    fast anybody is.
    """

    def __init__(self, how: int | str, *, at_once: int = 1, refusals: int = 4) -> None:
        self.how, self.at_once, self.refusals = how, at_once, refusals
        self.busy = self.refused = 0
        self.most = 0
        self.enough = asyncio.Event()

    async def __call__(self, request: RawRequest, writer: asyncio.StreamWriter) -> bool:
        if self.busy >= self.at_once:
            self.refused += 1
            if self.refused >= self.refusals:
                self.enough.set()
            if isinstance(self.how, int):
                writer.write(head(self.how, {"Content-Length": 0}))
                return True
            if self.how == "reset":
                reset(writer)
            return False
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            top, body = partial(request, DATA, ETag='"v1"')
            writer.write(top + body[: MIB // 2])
            await writer.drain()
            if len(body) > MIB:
                await self.enough.wait()
            writer.write(body[MIB // 2 :])
            await writer.drain()
        finally:
            self.busy -= 1
        return True


@pytest.mark.parametrize("how", [403, 404, 410, 429, 500, 503, "reset", "close"])
async def test_a_server_of_one_transfer_at_a_time_serves_the_whole_file(tmp_path: Path, how: int | str) -> None:
    async with asyncio.timeout(20):
        server = Limited(how)
        job, body, _ = await run_job(server, tmp_path)
        assert (job.status, job.error) == ("completed", None)
        assert body == DATA
        assert server.refused < 20


async def test_a_server_that_serves_some_transfers_and_then_none_is_given_up(tmp_path: Path) -> None:
    served = 0

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        if served > 1:
            writer.write(head(404, {"Content-Length": 0}))
            return
        served += 1
        top, body = partial(request, DATA, ETag='"v1"')
        writer.write(top + body)
        await writer.drain()

    job, _, server = await run_job(answer, tmp_path)
    assert job.status == "failed"
    assert job.error is not None
    assert "404" in job.error
    assert len(server.requests) < 40


class Signed:
    """A source whose addresses run out and cost something."""

    identity = "signed"

    def __init__(self, url: str) -> None:
        self.url = url
        self.signed = 0

    async def head(self) -> FileInfo:
        return FileInfo(size=len(DATA), etag='"v1"', accept_ranges=True)

    async def sign(self) -> SignedUrl:
        self.signed += 1
        return SignedUrl(url=self.url, expires_at=asyncio.get_running_loop().time() + 1e6)

    async def checksum(self) -> Checksum | None:
        return None


async def test_refused_connections_cost_at_most_one_further_signature(tmp_path: Path) -> None:
    handler = Limited(403, refusals=3)
    async with asyncio.timeout(20), RawServer(handler) as server:
        transport = Transport(None, retry=QUICK)
        try:
            source = Signed(f"{server.url}/x")
            done = await download(source, tmp_path / "x", transport=transport, connections=8, verify=False)
        finally:
            await transport.aclose()
    assert (tmp_path / "x").read_bytes() == DATA
    assert done.api_requests == source.signed <= 2


async def test_an_address_that_a_served_file_no_longer_has_is_renewed_a_bounded_number_of_times(tmp_path: Path) -> None:
    """Nobody is served after the first range: each 403 of an address that runs out costs a signature."""
    served = 0

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        if served:
            writer.write(head(403, {"Content-Length": 0}))
            return
        served += 1
        top, body = partial(request, DATA, ETag='"v1"')
        writer.write(top + body)
        await writer.drain()

    async with asyncio.timeout(20), RawServer(answer) as server:
        transport = Transport(None, retry=QUICK)
        source = Signed(f"{server.url}/x")
        try:
            with pytest.raises(StatusError) as caught:
                await download(source, tmp_path / "x", transport=transport, connections=8, verify=False)
        finally:
            await transport.aclose()
    assert caught.value.status == 403
    assert source.signed <= 5


def etag_of_connection(number: int) -> str:
    return f'"backend{number % 2}"'


@pytest.mark.parametrize("obeys", [True, False])
@pytest.mark.parametrize("each", ["connection", "answer"])
async def test_back_ends_with_versions_of_their_own_serve_one_file(tmp_path: Path, each: str, obeys: bool) -> None:
    answers = 0

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> bool:
        nonlocal answers
        answers += 1
        etag = etag_of_connection(request.connection) if each == "connection" else f'"{answers}"'
        if obeys and request.headers.get("if-match", etag) != etag:
            writer.write(head(412, {"ETag": etag, "Content-Length": 0}))
        else:
            top, body = partial(request, DATA, ETag=etag)
            writer.write(top + body)
            await writer.drain()
        # Whoever comes next gets another back end.
        return False

    job, body, server = await run_job(answer, tmp_path)
    assert (job.status, job.error) == ("completed", None)
    assert body == DATA
    assert len(server.requests) < 40


@pytest.mark.parametrize("status", [400, 403, 412, 500, 501])
async def test_a_server_that_refuses_conditions_is_asked_without_them(tmp_path: Path, status: int) -> None:
    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        if "if-match" in request.headers:
            writer.write(head(status, {"Content-Length": 0}))
            return
        top, body = partial(request, SMALL, ETag='"v1"')
        writer.write(top + body)
        await writer.drain()

    job, body, server = await run_job(answer, tmp_path)
    assert (job.status, job.error) == ("completed", None)
    assert body == SMALL
    # After a 403 the address is resolved anew, since it may have expired.
    assert len(server.requests) < (12 if status == 403 else 8)


@pytest.mark.parametrize("status", [400, 403, 416, 501])
async def test_a_server_that_refuses_ranges_is_asked_for_the_whole_file(tmp_path: Path, status: int) -> None:
    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        if "range" in request.headers:
            writer.write(head(status, {"Content-Length": 0}))
            return
        writer.write(head(200, {"Content-Length": len(SMALL)}) + SMALL)
        await writer.drain()

    job, body, _ = await run_job(answer, tmp_path)
    assert (job.status, job.error) == ("completed", None)
    assert body == SMALL


@pytest.mark.parametrize(
    "line", ["Content-Length: -1", ": nameless", "Content-Length: 3\r\nTransfer-Encoding: chunked"]
)
async def test_the_error_of_a_malformed_head_is_one_line(tmp_path: Path, line: str) -> None:
    async def answer(_: RawRequest, writer: asyncio.StreamWriter) -> bool:
        writer.write(f"HTTP/1.1 200 OK\r\n{line}\r\n\r\nabc".encode())
        await writer.drain()
        return False

    job, _, _ = await run_job(answer, tmp_path)
    assert job.status == "failed"
    assert job.error
    assert job.error == " ".join(job.error.split())
    assert "not proper HTTP" in job.error


OLD = "Wed, 16 Jul 2025 06:00:00 GMT"


@pytest.mark.parametrize("etag", [None, 'W/"x"'])
@pytest.mark.parametrize("later", ["Wed, 16 Jul 2025 06:01:00 GMT", None])
async def test_a_date_that_is_old_enough_resumes_a_file(tmp_path: Path, etag: str | None, later: str | None) -> None:
    data, sent = DATA[: 3 * MIB], 0

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> bool:
        nonlocal sent
        top, body = partial(request, data, ETag=etag, Last_Modified=OLD, Date=later)
        if len(body) > 1:
            assert request.headers.get("if-range") == OLD
        piece = body[: MIB // 2]
        sent += len(piece)
        writer.write(top + piece)
        await writer.drain()
        return len(piece) == len(body)

    job, body, _ = await run_job(answer, tmp_path)
    assert (job.status, job.error) == ("completed", None)
    assert body == data
    assert sent < len(data) + 10


@pytest.mark.parametrize("seconds", [0, 30])
async def test_a_date_that_may_have_two_versions_proves_nothing(tmp_path: Path, seconds: int) -> None:
    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        now = datetime(2025, 7, 16, 6, 0, seconds, tzinfo=UTC)
        top, body = partial(request, SMALL, Last_Modified=OLD, Date=format_datetime(now, usegmt=True))
        writer.write(top + body)
        await writer.drain()

    job, body, server = await run_job(answer, tmp_path)
    assert (job.status, body) == ("completed", SMALL)
    assert not any("if-range" in request.headers for request in server.requests)


async def test_a_file_that_changed_under_a_date_is_begun_again(tmp_path: Path) -> None:
    versions = [data_of(3 * MIB, seed=1), data_of(3 * MIB, seed=2)]
    dates = [format_datetime(datetime(2025, 7, day, tzinfo=UTC), usegmt=True) for day in (1, 2)]
    current = 0

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> bool:
        nonlocal current
        now = format_datetime(datetime(2025, 7, 3, tzinfo=UTC), usegmt=True)
        data, date = versions[current], dates[current]
        if request.headers.get("if-range", date) != date:
            del request.headers["range"]
        top, body = partial(request, data, Last_Modified=date, Date=now)
        if current == 0 and len(body) > 1:
            current = 1
            writer.write(top + body[: len(body) // 2])
            return False
        writer.write(top + body)
        await writer.drain()
        return True

    job, body, _ = await run_job(answer, tmp_path)
    assert (job.status, job.error) == ("completed", None)
    assert body == versions[1]


NO_CODINGS = ["aws-chunked", "utf-8", "UTF-8", "none", "binary", "null", "application/gzip", "identity", "", "7bit"]


@pytest.mark.parametrize("coding", NO_CODINGS)
async def test_what_is_no_content_coding_is_ignored(tmp_path: Path, coding: str) -> None:
    job, body, server = await run_job(serves(SMALL, ETag='"v1"', Content_Encoding=coding), tmp_path)
    assert (job.status, job.error, body) == ("completed", None, SMALL)
    assert len(server.requests) == 2
    assert "range" in server.requests[1].headers


@pytest.mark.parametrize("coding", ["x-gzip", "gzip", "GZIP", "br", "zstd", "deflate", "gzip, br", "aws-chunked, gzip"])
async def test_an_encoded_file_is_taken_whole_as_it_comes(tmp_path: Path, coding: str) -> None:
    encoded = gzip.compress(SMALL[:1000]) + SMALL
    job, body, server = await run_job(serves(encoded, ETag='"v1"', Content_Encoding=coding), tmp_path)
    assert (job.status, job.error, body) == ("completed", None, encoded)
    assert len(server.requests) == 2
    assert "range" not in server.requests[1].headers


Change = Callable[[int, int, int], tuple[int, int]]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda start, stop, size: (start, min(stop, start + 700_001)), id="shorter"),
        pytest.param(lambda start, stop, size: (start, (start // MIB + 1) * MIB), id="to the end of its block"),
        pytest.param(
            lambda start, stop, size: (start // MIB * MIB, min(size, -(-stop // MIB) * MIB)), id="whole blocks"
        ),
        pytest.param(lambda start, stop, size: (start, min(size, stop + 1)), id="one byte more"),
        pytest.param(lambda start, stop, size: (max(0, start - 1), stop), id="one byte earlier"),
        pytest.param(lambda start, stop, size: (start, size), id="to the end of the file"),
        pytest.param(
            lambda start, stop, size: (start, start + 1) if stop - start < 3 else (start, stop - 2), id="less"
        ),
    ],
)
async def test_another_range_is_taken_as_far_as_it_covers(tmp_path: Path, change: Change) -> None:
    data = DATA[: 4 * MIB + 12_345]

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        span = request.range(len(data))
        assert span is not None
        start, stop = change(*span, len(data))
        stop = min(stop, len(data))
        facts = {"ETag": '"v1"', "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        writer.write(head(206, {**facts, "Content-Length": stop - start}) + data[start:stop])
        await writer.drain()

    job, body, _ = await run_job(answer, tmp_path)
    assert (job.status, job.error) == ("completed", None)
    assert body == data


async def test_a_body_longer_than_its_range_is_cut(tmp_path: Path) -> None:
    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> bool:
        span = request.range(len(DATA))
        assert span is not None
        start, stop = span[0], min(span[1], span[0] + MIB)
        facts = {"ETag": '"v1"', "Content-Range": f"bytes {start}-{stop - 1}/{len(DATA)}"}
        writer.write(head(206, {**facts, "Content-Length": stop - start + 3}) + DATA[start:stop] + b"???")
        await writer.drain()
        return False

    job, body, _ = await run_job(answer, tmp_path)
    assert (job.status, job.error) == ("completed", None)
    assert body == DATA


async def test_a_range_far_from_the_one_that_was_asked_for_is_not_waited_for(tmp_path: Path) -> None:
    """A 206 that always holds the whole file would be sent once for every part."""

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> bool:
        size = 64 * MIB
        span = request.range(size)
        if span is None or span == (0, 1):
            facts = {"Content-Range": f"bytes 0-0/{size}", "Content-Length": 1, "ETag": '"v1"'}
            writer.write(head(206, facts) + b"x" if span else head(500, {"Content-Length": 0}))
        else:
            facts = {"Content-Range": f"bytes 0-{size - 1}/{size}", "Content-Length": size, "ETag": '"v1"'}
            writer.write(head(206, facts))
        return False

    job, _, server = await run_job(answer, tmp_path)
    assert job.status == "failed"
    assert len(server.requests) < 40


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {"Content-Length": 0}),
        (206, {"Content-Range": "bytes 0-0/0", "Content-Length": 0}),
        (206, {"Content-Range": "bytes */0", "Content-Length": 0}),
        (204, {}),
    ],
)
async def test_an_empty_file_is_a_file(tmp_path: Path, status: int, headers: Mapping[str, object]) -> None:
    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(head(status, headers))

    job, body, server = await run_job(answer, tmp_path)
    assert (job.status, job.error, body) == ("completed", None, b"")
    assert len(server.requests) < 4


async def test_a_size_that_cannot_be_true_is_told_as_the_servers(tmp_path: Path) -> None:
    size = 10**17

    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        facts = {"Content-Range": f"bytes 0-0/{size}", "Content-Length": 1, "ETag": '"v1"'}
        writer.write(head(206, facts) + b"x")

    job, _, _ = await run_job(answer, tmp_path)
    assert job.status == "failed"
    assert job.error is not None
    assert f"the server says that the file has {size:,} bytes" in job.error


async def test_a_size_that_is_too_large_is_found_by_asking_for_the_file_at_once(tmp_path: Path) -> None:
    async def answer(request: RawRequest, writer: asyncio.StreamWriter) -> None:
        span = request.range(2 * len(SMALL))
        if span is None:
            writer.write(head(200, {"ETag": '"v1"', "Content-Length": len(SMALL)}) + SMALL)
        elif span[1] > len(SMALL):
            writer.write(head(416, {"Content-Range": f"bytes */{len(SMALL)}", "Content-Length": 0}))
        else:
            facts = {"Content-Range": f"bytes {span[0]}-{span[1] - 1}/{2 * len(SMALL)}", "ETag": '"v1"'}
            body = SMALL[slice(*span)]
            writer.write(head(206, {**facts, "Content-Length": len(body)}) + body)
        await writer.drain()

    job, body, _ = await run_job(answer, tmp_path)
    assert (job.status, job.error, body) == ("completed", None, SMALL)
