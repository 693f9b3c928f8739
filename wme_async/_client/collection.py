"""The verbs of lists, `list` and `get`, written once for every resource."""

import builtins
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeAlias, TypeVar, overload

import msgspec

from wme_async._client.cache import Cache, forget_unreadable, send_cached
from wme_async._client.paths import identifier_path
from wme_async._client.resources import Resource
from wme_async._query.query import Query, known_names
from wme_async._text import ShownText, did_you_mean
from wme_async._transport import Request, Response, Transport
from wme_async._transport.error_responses import bare_url, error_in_place_of, is_error_document, server_message
from wme_async.errors import DecodeError, NotFound, WMEError
from wme_async.models._tolerant import decode_record
from wme_async.models.decoding import decoding

logger: logging.Logger = logging.getLogger("wme_async.client")

T = TypeVar("T", bound=msgspec.Struct)
U = TypeVar("U")

Value = str | int | float | bool
Form: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]

JSON_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


class Collection(Generic[T]):
    """Records that can be listed, and fetched one by one.

    Args:
        transport: Sends the requests.
        resource: The row of the table.
        path: The path, without placeholders.
        cache: The cache for responses, if any. Archives have none: the check of a file needs the latest metadata.
        brief: Keep responses as long as look-ups, rather than as long as metadata that seldom change.
    """

    def __init__(
        self, transport: Transport, resource: Resource, path: str, *, cache: Cache | None = None, brief: bool = False
    ) -> None:
        self._transport = transport
        self._resource = resource
        self._path = path
        self._cache = cache
        self._ttl = None if cache is None else cache.ttl if brief else cache.metadata_ttl

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._path}>"

    @overload
    async def list(
        self, *, fields: Sequence[str] | None = None, filters: Mapping[str, Value] | None = None
    ) -> builtins.list[T]: ...
    @overload
    async def list(
        self, *, fields: Sequence[str] | None = None, filters: Mapping[str, Value] | None = None, type: type[U]
    ) -> builtins.list[U]: ...
    async def list(
        self,
        *,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        type: type[Any] | None = None,
    ) -> builtins.list[Any]:
        """Return all records, or those that match the filters.

        Args:
            fields: Dotted names of the fields to fetch, such as `["identifier", "size"]`; all by default.
            filters: Dotted name to the one value it must have, such as `{"in_language.identifier": "en"}`; a record
                must match all. Filters that the server applies wrongly (it takes a number to mean "greater than" and
                drops booleans) are applied locally instead, so that the result is always right.
            type: A msgspec Struct of yours to decode into; `fields` then follow from it.

        Returns:
            Records in the server's order: by identifier, as text.

        Raises:
            ValueError: A field is unknown, or a filter could not give a right result; nothing was sent.
            NotFound: The list does not exist, or not yet.
            DecodeError: The response is malformed.
            WMEError: The request failed in another way.
        """
        query = self._query(fields, filters, type)
        try:
            response = await self._send_list(query)
        except NotFound as error:
            _add(error, self._list_advice())
            raise
        with forget_unreadable(self._cache, response):
            return decode_response(response, query)

    @overload
    async def get(self, identifier: str | int, *, fields: Sequence[str] | None = None) -> T: ...
    @overload
    async def get(self, identifier: str | int, *, fields: Sequence[str] | None = None, type: type[U]) -> U: ...
    async def get(
        self, identifier: str | int, *, fields: Sequence[str] | None = None, type: type[Any] | None = None
    ) -> Any:
        """Return one record.

        Args:
            identifier: From the list.
            fields: Dotted names of the fields to fetch.
            type: A msgspec Struct of yours to decode into.

        Raises:
            ValueError: A field is unknown, or the identifier is malformed; nothing was sent.
            NotFound: The record does not exist.
            DecodeError: The response is malformed.
            WMEError: The request failed in another way.
        """
        try:
            return await self._get(identifier, self._query(fields, None, type))
        except NotFound as error:
            await self._advise(error, identifier)
            raise

    async def _get(self, identifier: str | int, query: Query) -> Any:
        segment = self._quote(identifier)
        await self._locate()
        response = await self._send(f"{self._path}/{segment}", query)
        with forget_unreadable(self._cache, response):
            return decode_one(response, query)

    def explain(
        self,
        *,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        type: type[Any] | None = None,
    ) -> str:
        """Describe, one fact a line, the request of `list` and the filters that apply locally. Nothing is sent.

        Args:
            fields: As for `list`, and so the next two.
            filters: As for `list`.
            type: As for `list`.

        Raises:
            ValueError: As for `list`.
        """
        return ShownText(self._query(fields, filters, type).explain())

    def _list_advice(self) -> str:
        """Return what may help if the list does not exist."""
        return ""

    async def _advise(self, error: NotFound, identifier: str | int) -> None:
        """Add to an error the identifiers that may be meant, from the list, which is not metered."""
        if "list" not in self._resource.verbs:
            return
        try:
            response = await self._send_list(self._query(["identifier"], None, None))
            names = [str(record.identifier) for record in decode_response(response, self._query(None, None, None))]
        except NotFound:
            _add(error, self._list_advice())
        except WMEError:
            logger.debug("no list to find similar identifiers in", exc_info=True)
        else:
            _add(error, did_you_mean(str(identifier), names).removeprefix("; "))

    async def _locate(self) -> None:
        """Resolve the path, if that takes a request."""

    async def _send_list(self, query: Query) -> Response:
        return await self._send(self._path, query)

    def _quote(self, identifier: str | int) -> str:
        return identifier_path(identifier, reserved=self._resource.reserved)

    def _query(
        self, fields: Sequence[str] | None, filters: Mapping[str, Value] | None, type: type[Any] | None
    ) -> Query:
        assert self._resource.backend is not None
        return Query.build(self._resource.backend, self._resource.model, fields=fields, filters=filters, type=type)

    async def _send(self, path: str, query: Query) -> Response:
        # Without the Content-Type header, the server ignores a JSON body and responds with everything.
        return await send_cached(
            self._transport,
            Request(
                method="POST",
                path=path,
                headers=JSON_HEADERS,
                body=msgspec.json.encode(query.body()),
                token=True,
                product=self._resource.product,
            ),
            cache=self._cache,
            ttl=self._ttl,
        )


def _add(error: NotFound, advice: str) -> None:
    if advice:
        error.message = f"{error.message}; {advice}"
        error.args = (error.message,)


def decode_response(response: Response, query: Query, *, form: Form | None = None) -> list[Any]:
    """Return the records of a response, decoded and filtered by a query; a single record gives a list of one.

    Args:
        response: The response.
        query: The query.
        form: Converts a record to the form to which the names of the query apply, if it may come in several forms.

    Raises:
        DecodeError: The response is not JSON, not of the query's type, or an error with a successful status.
    """
    body = response.body
    if is_error_document(body, known_names(query.model)):
        url = bare_url(response.url)
        raise DecodeError(f"{url} responded with {error_in_place_of('records', body)}", url=url, record=body)
    local = query.reshapes or query.selects or form is not None
    is_list = body[:64].lstrip()[:1] == b"["
    try:
        with decoding(body):
            if not local:
                records = decode_record(_decoder(query.result, is_list=is_list), body)
                return records if is_list else [records]
            document = msgspec.json.decode(body)
            rows = document if isinstance(document, list) else [document]
            selected = [row for record in rows if (row := query.apply(_object(record, form))) is not None]
            return [decode_record(_decoder(query.result, is_list=False), msgspec.json.encode(row)) for row in selected]
    except DecodeError as error:
        raise _not_records(response, error) from error


def decode_one(response: Response, query: Query, *, form: Form | None = None) -> Any:
    """Return the only record of a response, decoded as by `decode_response`.

    Raises:
        DecodeError: The response is malformed, or has another number of records.
    """
    records = decode_response(response, query, form=form)
    if len(records) != 1:
        url = bare_url(response.url)
        raise DecodeError(f"{url} responded with {len(records)} records instead of one", url=url, record=response.body)
    return records[0]


def _object(row: object, form: Form | None) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DecodeError("it is not a record")
    return row if form is None else form(row)


def _not_records(response: Response, error: DecodeError) -> DecodeError:
    url = bare_url(response.url)
    body = response.body
    if not body.strip():
        reason = "an empty body"
    elif body.lstrip()[:1] == b"<":
        reason = server_message(body)
    else:
        reason = error.message
    return DecodeError(f"{url} did not respond with JSON records: {reason}", url=url, record=body)


@lru_cache(maxsize=256)
def _decoder(type: Any, *, is_list: bool) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(list[type] if is_list else type)
