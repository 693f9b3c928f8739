"""One archive of the API for the downloader: its size, its signed URL, its checksum."""

import re
from collections.abc import Awaitable, Callable

import msgspec

from wme_async._client.resources import Resource
from wme_async._download import Checksum, FileInfo, SignedUrl
from wme_async._download.etags import plain_md5
from wme_async._download.first_range import file_info_of
from wme_async._download.range_responses import content_length
from wme_async._transport import Request, Transport
from wme_async._transport.error_responses import REDIRECTS, bare_url, redirect_target
from wme_async.errors import NotFound, Replaced, TransportError

_EXPIRES = re.compile(r"[?&]X-Amz-Expires=([0-9]{1,9})(?:[&#]|$)")

# The lifetime of a signature, if the URL does not state it.
_SIGNATURE_SECONDS = 60.0

# A signed URL counts as expired this long before its end, since the request still has to reach the store.
_SIGNATURE_MARGIN = 5.0


class ArchiveSource:
    """One archive of the API, for the downloader.

    Args:
        transport: Sends the requests.
        resource: Its row of the table.
        path: Returns the path of its record; `/download` below it is the archive.
        checksum: Returns the checksum of its metadata, or None.
        locate: Resolves the path if that takes a request; awaited before the path is used.
        advise: Adds to the error of an archive that does not exist what may help.
    """

    def __init__(
        self,
        transport: Transport,
        resource: Resource,
        path: Callable[[], str],
        checksum: Callable[[], Awaitable[Checksum | None]],
        locate: Callable[[], Awaitable[None]] | None = None,
        advise: Callable[[NotFound], Awaitable[None]] | None = None,
    ) -> None:
        self._transport = transport
        self._resource = resource
        self._record_path = path
        self._checksum = checksum
        self._locate = locate
        self._advise = advise

    def __repr__(self) -> str:
        return f"<ArchiveSource {self._path}>"

    @property
    def _path(self) -> str:
        return f"{self._record_path()}/download"

    @property
    def identity(self) -> str:
        """Host and path."""
        return f"{self._transport.hosts.api}{self._path}"

    @property
    def metered(self) -> bool:
        """Whether each signature counts against the month's allowance."""
        return self._resource.pool is not None

    async def head(self) -> FileInfo:
        """Request size and version; free of charge.

        Raises:
            NotFound: The archive does not exist, or the object store of the server is in trouble.
            WMEError: The request failed in another way.
        """
        if self._locate is not None:
            await self._locate()
        request = Request(method="HEAD", path=self._path, token=True, product=self._resource.product)
        try:
            headers = (await self._transport.request(request)).headers
        except NotFound as error:
            await self._add_advice(error)
            raise
        return file_info_of(headers, size=content_length(headers))

    async def sign(self) -> SignedUrl:
        """Request a signed URL of the bytes; one metered request if the archive is metered.

        Raises:
            WMEError: The server did not return a signed URL.
        """
        if self._locate is not None:
            await self._locate()
        request = Request(
            path=self._path,
            token=True,
            pool=self._resource.pool,
            product=self._resource.product,
            accepts="redirect",
        )
        # Only the headers matter: if a server sends the archive at once, its body is not read here.
        try:
            async with self._transport.open(request) as body:
                location = body.headers.get("Location")
                if body.status not in REDIRECTS or not location:
                    raise TransportError(
                        f"{bare_url(body.url)} answered {body.status} instead of redirecting to the object store",
                        url=bare_url(body.url),
                    )
                url = redirect_target(body.url, location)
        except NotFound as error:
            await self._add_advice(error)
            raise
        match = _EXPIRES.search(url)
        seconds = float(match[1]) if match else _SIGNATURE_SECONDS
        return SignedUrl(url=url, expires_at=self._transport.monotonic() + max(1.0, seconds - _SIGNATURE_MARGIN))

    async def _add_advice(self, error: NotFound) -> None:
        if self._advise is not None:
            await self._advise(error)

    async def checksum(self) -> Checksum | None:
        """Return MD5 and date of the metadata, or None without metadata."""
        try:
            return await self._checksum()
        except NotFound:
            # The Commons archive has no record, and one is written after its archive.
            return None


class ListedSource(ArchiveSource):
    """An archive whose version is known from the list."""

    promised: Checksum | None = None
    signed: SignedUrl | None = None

    async def sign(self) -> SignedUrl:
        """Return the unused signed URL, or request one."""
        signed, self.signed = self.signed, None
        return signed if signed is not None else await super().sign()

    async def checksum(self) -> Checksum | None:
        """Return the checksum of the list once, and that of the metadata afterwards."""
        promised, self.promised = self.promised, None
        return promised if promised is not None else await super().checksum()


class PinnedSource(ArchiveSource):
    """An archive of which one version alone is accepted.

    An archive is replaced in place, and its metadata follows later. So both are compared, before a signature is
    requested: the MD5 in the metadata, and the ETag, which is the MD5 of an object that was not uploaded in parts.
    """

    md5: str = ""
    _checked = False

    async def head(self) -> FileInfo:
        """Request size and version.

        Raises:
            Replaced: The ETag is the MD5 of another version.
        """
        info = await super().head()
        md5 = plain_md5(info.etag)
        if md5 is not None:
            self._compare(md5)
        self._checked = True
        return info

    async def sign(self) -> SignedUrl:
        """Request a signed URL, once the version is known."""
        if not self._checked:
            await self.head()
        return await super().sign()

    async def checksum(self) -> Checksum:
        """Return the pinned checksum.

        Raises:
            Replaced: The metadata has another one.
        """
        promised = await super().checksum()
        if promised is None:
            return Checksum(md5=self.md5, exact=True)
        self._compare(promised.md5.lower())
        return msgspec.structs.replace(promised, exact=True)

    def _compare(self, md5: str) -> None:
        if md5 != self.md5:
            raise Replaced(
                f"{self.identity} has version {md5} now, not {self.md5}, which was asked for; read its metadata again",
                expected=self.md5,
                got=md5,
                url=self.identity,
            )
