"""Wikidata: entities one by one and by the thousand, their labels, and its archives. A beta of the service."""

import builtins
import re
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence, Sized
from datetime import datetime
from typing import Any, Final, Generic, TypeVar, overload

import msgspec

from wme_async._client.cache import Cache, forget_unreadable
from wme_async._client.collection import decode_response
from wme_async._client.concurrent_lookups import Looked, LookupProgress, Lookups
from wme_async._client.files import ChunkedFiles, Files, hour_files
from wme_async._client.lookup import BulkHint, check_recheck, cost_of, send_lookup
from wme_async._client.quota import Cost
from wme_async._client.resources import Resource
from wme_async._query.query import Query, known_names
from wme_async._transport import Request, Response, Transport
from wme_async._transport.error_responses import bare_url, error_in_place_of, is_error_document
from wme_async.errors import ClientClosed, DecodeError, NotFound, WMEError
from wme_async.models import Archive, LabelsAnswer, Snapshot, WikidataArticle, merge_labels
from wme_async.models.decoding import decoding
from wme_async.models.wikidata import fold_entity

__all__ = ["Entities", "Labels", "Wikidata"]

T = TypeVar("T")
U = TypeVar("U")

_JSON: Final = {"Content-Type": "application/json", "Accept": "application/json"}
_ID: Final = re.compile(r"[QP][1-9][0-9]*")
# Names below these mean nothing in some of the forms that the beta leaves open.
_FOLDED: Final = ("entity.statements.", "entity.sitelinks.")
_KINDS: Final = {"Q": "item", "P": "property"}

_labels: Final = msgspec.json.Decoder(LabelsAnswer)


class _ById(Generic[T]):
    """What items, properties and labels have in common.

    Args:
        transport: Sends the requests.
        resource: The row of the table.
        letters: With which of the letters Q and P identifiers may begin.
        cache: Where answers are kept, if anywhere.
    """

    def __init__(self, transport: Transport, resource: Resource, letters: str, *, cache: Cache | None = None) -> None:
        self._transport = transport
        self._resource = resource
        self._letters = letters
        self._cache = cache
        self._hint = BulkHint("Wikidata snapshots")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._resource.path}>"

    def cost(self, identifiers: int | Sized) -> Cost:
        """Return what looking these up will be charged: one metered request each, found or not.

        Args:
            identifiers: The identifiers, or how many they are.
        """
        return cost_of(self._resource, identifiers)

    def _query(self, fields: Sequence[str] | None, type: builtins.type[Any] | None) -> Query:
        assert self._resource.backend is not None
        return Query.build(self._resource.backend, self._resource.model, fields=fields, type=type)

    async def _answer(self, identifier: str, query: Query, recheck: bool | None) -> Response:
        request = Request(
            method="POST",
            path=f"{self._resource.path}/{_check_id(identifier, self._letters)}",
            headers=_JSON,
            body=msgspec.json.encode(query.body()),
            token=True,
            pool=self._resource.pool,
            product=self._resource.product,
        )
        self._hint.count(self._transport.monotonic())
        response = await send_lookup(self._transport, request, cache=self._cache, recheck=recheck)
        if isinstance(response, NotFound):
            raise _not_found(identifier, response) from response
        return response

    def _many(
        self,
        identifiers: Iterable[str] | AsyncIterable[str],
        get: Callable[[str], Awaitable[Any]],
        *,
        concurrency: int,
        ordered: bool,
        progress: Callable[[LookupProgress], None] | None,
    ) -> Lookups[Any]:
        async def ask(identifier: str) -> Looked[Any]:
            try:
                return Looked(name=identifier, records=(await get(identifier),))
            except NotFound:
                return Looked(name=identifier)
            except ClientClosed:
                # It says nothing of this identifier, and there is no way to ask for those that follow.
                raise
            except (WMEError, ValueError, TypeError) as error:
                return Looked(name=identifier, error=error)

        return Lookups(
            identifiers,
            ask,
            concurrency=concurrency,
            ordered=ordered,
            progress=progress,
            monotonic=self._transport.monotonic,
        )


class Entities(_ById[T]):
    """Items or properties by identifier.

    Labels are embedded in every property and value, in all languages, so a whole entity can be many megabytes: ask for
    less with `fields` or `type`. Scholarly items (papers and what belongs to them) are kept apart from Wikidata's main
    graph and cannot be found.
    """

    @overload
    async def get(self, identifier: str, *, fields: Sequence[str] | None = None, recheck: bool | None = None) -> T: ...
    @overload
    async def get(
        self, identifier: str, *, fields: Sequence[str] | None = None, type: type[U], recheck: bool | None = None
    ) -> U: ...
    async def get(
        self,
        identifier: str,
        *,
        fields: Sequence[str] | None = None,
        type: type[Any] | None = None,
        recheck: bool | None = None,
    ) -> Any:
        """Return one entity. One metered request, also where there is none.

        Args:
            identifier: `"Q42"` for an item, `"P31"` for a property.
            fields: Dotted names of what to fetch, such as `["entity.labels"]`; everything where not given.
            type: A msgspec Struct of yours to decode into; `fields` then follow from it.
            recheck: Ask once more before believing that there is none, after about a second and for one more metered
                request: True always, False never, None where the API failed within the last minute.

        Raises:
            ValueError: An unknown field, or an identifier of another form; nothing was sent.
            NotFound: There is no such entity in the main graph.
            DecodeError: The answer is not what the API gives.
            WMEError: Whatever else went wrong.
        """
        check_recheck(recheck)
        return await self._one(identifier, self._query(fields, type), recheck)

    @overload
    def get_many(
        self,
        identifiers: Iterable[str] | AsyncIterable[str],
        *,
        fields: Sequence[str] | None = None,
        recheck: bool | None = None,
        concurrency: int = 10,
        ordered: bool = True,
        progress: Callable[[LookupProgress], None] | None = None,
    ) -> Lookups[T]: ...
    @overload
    def get_many(
        self,
        identifiers: Iterable[str] | AsyncIterable[str],
        *,
        fields: Sequence[str] | None = None,
        type: type[U],
        recheck: bool | None = None,
        concurrency: int = 10,
        ordered: bool = True,
        progress: Callable[[LookupProgress], None] | None = None,
    ) -> Lookups[U]: ...
    def get_many(
        self,
        identifiers: Iterable[str] | AsyncIterable[str],
        *,
        fields: Sequence[str] | None = None,
        type: type[Any] | None = None,
        recheck: bool | None = None,
        concurrency: int = 10,
        ordered: bool = True,
        progress: Callable[[LookupProgress], None] | None = None,
    ) -> Lookups[Any]:
        """Return many entities: an async iterator with one `Looked` for each, of one record or none.

        Args:
            identifiers: A list, a generator, an async iterator.
            fields: As for `get`.
            type: As for `get`.
            recheck: As for `get`.
            concurrency: Requests at a time.
            ordered: In the order of identifiers; else as answers come.
            progress: Told how far it is, at most five times a second and at the end. It must not block.

        Raises:
            TypeError: `identifiers` is one identifier.
            ValueError: An unknown field, or a concurrency below 1.
        """
        check_recheck(recheck)
        query = self._query(fields, type)
        return self._many(
            identifiers,
            lambda identifier: self._one(identifier, query, recheck),
            concurrency=concurrency,
            ordered=ordered,
            progress=progress,
        )

    async def _one(self, identifier: str, query: Query, recheck: bool | None) -> Any:
        response = await self._answer(identifier, query, recheck)
        inside = any(name.startswith(_FOLDED) for name in query.fields or ())
        with forget_unreadable(self._cache, response):
            records = decode_response(response, query, form=fold_entity if inside else None)
            if len(records) != 1:
                shown = bare_url(response.url)
                raise DecodeError(
                    f"{shown} answered with {len(records)} records instead of one", url=shown, record=response.body
                )
        return records[0]


class Labels(_ById[dict[str, str]]):
    """Labels of items and properties, by language: far less than whole entities."""

    def _query(self, fields: Sequence[str] | None, type: builtins.type[Any] | None) -> Query:
        assert self._resource.backend is not None
        return Query.build(self._resource.backend, dict[str, str], fields=fields, type=type)

    async def get(
        self, identifier: str, *, fields: Sequence[str] | None = None, recheck: bool | None = None
    ) -> dict[str, str]:
        """Return the labels of an item or property. One metered request, also where there is none.

        Args:
            identifier: `"Q42"` or `"P31"`.
            fields: Language codes, such as `["en", "fr"]`; all where not given.
            recheck: As for `Entities.get`.

        Returns:
            Language code and label; a language without a label is left out.

        Raises:
            ValueError: An identifier of another form; nothing was sent.
            NotFound: There is no such entity in the main graph.
            DecodeError: The answer is not what the API gives.
            WMEError: Whatever else went wrong.
        """
        check_recheck(recheck)
        return await self._one(identifier, self._query(fields, None), recheck)

    def get_many(
        self,
        identifiers: Iterable[str] | AsyncIterable[str],
        *,
        fields: Sequence[str] | None = None,
        recheck: bool | None = None,
        concurrency: int = 10,
        ordered: bool = True,
        progress: Callable[[LookupProgress], None] | None = None,
    ) -> Lookups[dict[str, str]]:
        """Return the labels of many: an async iterator with one `Looked` for each, of one record or none.

        Args:
            identifiers: A list, a generator, an async iterator.
            fields: Language codes.
            recheck: As for `Entities.get`.
            concurrency: Requests at a time.
            ordered: In the order of identifiers; else as answers come.
            progress: Told how far it is, at most five times a second and at the end. It must not block.
        """
        check_recheck(recheck)
        query = self._query(fields, None)
        return self._many(
            identifiers,
            lambda identifier: self._one(identifier, query, recheck),
            concurrency=concurrency,
            ordered=ordered,
            progress=progress,
        )

    async def _one(self, identifier: str, query: Query, recheck: bool | None) -> dict[str, str]:
        response = await self._answer(identifier, query, recheck)
        shown = bare_url(response.url)
        with forget_unreadable(self._cache, response):
            if is_error_document(response.body, known_names(query.model)):
                words = error_in_place_of("labels", response.body)
                raise DecodeError(f"{shown} answered with {words}", url=shown, record=response.body)
            try:
                with decoding(response.body):
                    labels = merge_labels(_labels.decode(response.body))
            except DecodeError as error:
                raise DecodeError(
                    f"{shown} did not answer with labels: {error.message}", url=shown, record=response.body
                ) from error
        if query.fields is None:
            return labels
        # The server may ignore what was asked for: of this beta little is known.
        return {language: labels[language] for language in query.fields if language in labels}


class Wikidata:
    """`wme.wikidata`: a beta of the service, whose paths and shapes may still change.

    Attributes:
        items: Items by identifier.
        properties: Properties by identifier.
        labels: Labels of both.
        snapshots: All items of the main graph and all properties, whole or in chunks. Take identifiers from the list.
    """

    def __init__(self, transport: Transport, resources: Mapping[str, Resource], *, cache: Cache | None = None) -> None:
        self._transport = transport
        self._resources = resources
        row = resources.__getitem__
        self.items: Entities[WikidataArticle] = Entities(transport, row("wikidata.items"), "Q", cache=cache)
        self.properties: Entities[WikidataArticle] = Entities(transport, row("wikidata.properties"), "P", cache=cache)
        self.labels: Labels = Labels(transport, row("wikidata.labels"), "QP", cache=cache)
        self.snapshots: ChunkedFiles[Snapshot, WikidataArticle] = ChunkedFiles(
            transport, row("wikidata.snapshots"), row("wikidata.snapshots.chunks")
        )

    def __repr__(self) -> str:
        return "<Wikidata>"

    def batches(self, hour: str | datetime) -> Files[Archive, WikidataArticle]:
        """Return the batches of an hour: all entities that changed in it.

        No reference shows the path of these; it is taken from that of the other batches. Should it be another one:
        `Client(paths={"wikidata.batches": "/v2/…/{hour}"})`.

        Args:
            hour: `"2026-07-16T05"` (UTC), an aware datetime, whose hour is taken, `"latest"` or `"-3h"`: see
                `Client.batches`.

        Raises:
            ValueError: It is not an hour, or a naive datetime.
        """
        return hour_files(self._transport, self._resources["wikidata.batches"], hour)


def _check_id(identifier: object, letters: str) -> str:
    if not isinstance(identifier, str):
        raise TypeError(f"an identifier must be text such as 'Q42', not {identifier!r}")
    wanted = " or ".join(f"'{letter}42'" for letter in letters)
    if _ID.fullmatch(identifier) is None:
        raise ValueError(f"an identifier looks like {wanted}, got {identifier!r}")
    if identifier[0] not in letters:
        kind = _KINDS[identifier[0]]
        where = "items" if kind == "item" else "properties"
        raise ValueError(f"{identifier!r} is {'an' if kind == 'item' else 'a'} {kind}: ask wme.wikidata.{where}")
    return identifier


def _not_found(identifier: str, error: NotFound) -> NotFound:
    return NotFound(
        f"there is no {identifier} in the main graph of Wikidata; scholarly items are not served",
        status=error.status,
        url=error.url,
        request_id=error.request_id,
        body=error.body,
    )
