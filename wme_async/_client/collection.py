"""The verbs of what can be listed: list and get, written once for every resource."""

import builtins
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeAlias, TypeVar, overload

import msgspec

from wme_async._client.cache import Cache, forget_unreadable, send_cached
from wme_async._client.paths import identifier_path
from wme_async._client.resources import Resource
from wme_async._query.query import Query, known_names
from wme_async._transport import Request, Response, Transport
from wme_async._transport.error_responses import bare_url, error_in_place_of, is_error_document, server_message
from wme_async.errors import DecodeError
from wme_async.models._tolerant import decode_record
from wme_async.models.decoding import decoding

__all__ = ["Collection", "Value", "decode_response"]

T = TypeVar("T", bound=msgspec.Struct)
U = TypeVar("U")

Value = str | int | float | bool
Form: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]

_JSON = {"Content-Type": "application/json", "Accept": "application/json"}


class Collection(Generic[T]):
    """What can be listed, and got one by one.

    Args:
        transport: Sends the requests.
        resource: Its row of the table.
        path: Its path, placeholders filled in.
        cache: Where answers are kept, if anywhere. Not for archives: what is checked against their metadata needs the
            latest.
        brief: Keep them as long as look-ups, not as long as metadata that seldom change.
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
        """Return all that there is, or what the filters let through.

        Args:
            fields: Dotted names of what to fetch, such as `["identifier", "size"]`; everything where not given.
            filters: Dotted name to the one value it must have, such as `{"in_language.identifier": "en"}`; all must
                hold. What the server would get wrong (it takes a number to mean "greater than" and drops booleans) is
                applied here instead, so that the result is always what was asked for.
            type: A msgspec Struct of yours to decode into; `fields` then follow from it.

        Returns:
            Records in the server's order: by identifier, as text.

        Raises:
            ValueError: An unknown field, or a filter that could not give a right answer; nothing was sent.
            NotFound: There is no such list, or not yet.
            DecodeError: The answer is not what the API gives.
            WMEError: Whatever else went wrong.
        """
        query = self._query(fields, filters, type)
        response = await self._send_list(query)
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
            identifier: As the list has it.
            fields: Dotted names of what to fetch.
            type: A msgspec Struct of yours to decode into.

        Raises:
            ValueError: An unknown field, or an identifier that is none; nothing was sent.
            NotFound: There is no such record.
            DecodeError: The answer is not what the API gives.
            WMEError: Whatever else went wrong.
        """
        query = self._query(fields, None, type)
        quoted = self._quote(identifier)
        await self._locate()
        response = await self._send(f"{self._path}/{quoted}", query)
        with forget_unreadable(self._cache, response):
            records = decode_response(response, query)
            if len(records) != 1:
                raise DecodeError(f"{bare_url(response.url)} answered with {len(records)} records instead of one")
        return records[0]

    def explain(
        self,
        *,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        type: type[Any] | None = None,
    ) -> str:
        """Say in words, one fact a line, what `list` would send and what it would apply here. Nothing is sent.

        Args:
            fields: As for `list`, and so the next two.
            filters: As for `list`.
            type: As for `list`.

        Raises:
            ValueError: As `list` raises it.
        """
        return self._query(fields, filters, type).explain()

    async def _locate(self) -> None:
        """Find out the path, where that takes a request."""

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
        # The server ignores a JSON body without the header that names it, and answers with everything.
        request = Request(
            method="POST",
            path=path,
            headers=_JSON,
            body=msgspec.json.encode(query.body()),
            token=True,
            product=self._resource.product,
        )
        return await send_cached(self._transport, request, cache=self._cache, ttl=self._ttl)


def decode_response(response: Response, query: Query, *, form: Form | None = None) -> list[Any]:
    """Return the records of an answer, as the query wants them: a list, or one record as a list of it.

    Args:
        response: The answer.
        query: What was asked.
        form: Brings a record into the form that the names of the query go by, where it may come in several.

    Raises:
        DecodeError: The answer is no JSON, not of the query's type, or an error under a status of success.
    """
    body = response.body
    if is_error_document(body, known_names(query.model)):
        shown = bare_url(response.url)
        raise DecodeError(f"{shown} answered with {error_in_place_of('records', body)}", url=shown, record=body)
    local = query.reshapes or query.selects or form is not None
    many = body[:64].lstrip()[:1] == b"["
    try:
        with decoding(body):
            if not local:
                decoder = _decoder(query.result, many=many)
                records = decode_record(decoder, body)
                return records if many else [records]
            document = msgspec.json.decode(body)
            rows = document if isinstance(document, list) else [document]
            selected = [row for record in rows if (row := query.apply(_object(record, form))) is not None]
            return [decode_record(_decoder(query.result, many=False), msgspec.json.encode(row)) for row in selected]
    except DecodeError as error:
        raise _not_records(response, error) from error


def _object(row: object, form: Form | None) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DecodeError("something else than records")
    return row if form is None else form(row)


def _not_records(response: Response, error: DecodeError) -> DecodeError:
    shown = bare_url(response.url)
    body = response.body
    if not body.strip():
        reason = "an empty body"
    elif body.lstrip()[:1] == b"<":
        reason = server_message(body)
    else:
        reason = error.message
    return DecodeError(f"{shown} did not answer with the JSON that was asked for: {reason}", url=shown, record=body)


@lru_cache(maxsize=256)
def _decoder(type: Any, *, many: bool) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(list[type] if many else type)
