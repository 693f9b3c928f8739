"""Wikidata: entities one by one and by the thousand, their labels, and its archives. A beta of the service."""

import builtins
import re
from abc import abstractmethod
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence, Sized
from datetime import datetime
from typing import Any, Final, Generic, TypedDict, TypeVar, Unpack, overload

import msgspec

from wme_async._arguments import check_type
from wme_async._client.cache import Cache, forget_unreadable
from wme_async._client.chunked_files import ChunkedFiles
from wme_async._client.collection import JSON_HEADERS, decode_one
from wme_async._client.concurrent_lookups import ConcurrencyOptions, Looked, Lookups
from wme_async._client.files import Files
from wme_async._client.hours import hour_files
from wme_async._client.lookup import BulkHint, check_recheck, cost_of, not_found, send_lookup
from wme_async._client.quota import Cost
from wme_async._client.resources import Resource
from wme_async._query.query import Query, known_names
from wme_async._transport import Request, Response, Transport
from wme_async._transport.error_responses import bare_url, error_in_place_of, is_error_document
from wme_async.errors import DecodeError, NotFound
from wme_async.models import Archive, LabelsAnswer, Snapshot, WikidataArticle, merge_labels
from wme_async.models.decoding import decoding
from wme_async.models.wikidata import fold_entity

T = TypeVar("T")
U = TypeVar("U")

_ID: Final = re.compile(r"[QP][1-9][0-9]*")
# Field names below these are ambiguous in some of the JSON forms that the beta allows.
_FOLDED: Final = ("entity.statements.", "entity.sitelinks.")
_KINDS: Final = {"Q": ("an item", "items"), "P": ("a property", "properties")}

_labels_decoder: Final = msgspec.json.Decoder(LabelsAnswer)


class _EntityOptions(TypedDict, total=False):
    """The options of `Entities.get`, except `type`, on which the type of the result depends."""

    fields: Sequence[str] | None
    recheck: bool | None


class _ManyOptions(_EntityOptions, ConcurrencyOptions, total=False):
    """The options of `Entities.get_many`, except `type`."""


class _ById(Generic[T]):
    """The common part of items, properties and labels.

    Args:
        transport: Sends the requests.
        resource: The row of the table.
        letters: The first letters that identifiers may have: Q, P or both.
        cache: The cache for responses, if any.
    """

    def __init__(self, transport: Transport, resource: Resource, letters: str, *, cache: Cache | None = None) -> None:
        self._transport = transport
        self._resource = resource
        self._letters = letters
        self._cache = cache
        self._hint = BulkHint("Wikidata snapshots")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._resource.path}>"

    def check(self, *identifiers: str) -> None:
        """Raise if an identifier is malformed or of another kind, before any is requested. Nothing is sent.

        Args:
            *identifiers: The identifiers.

        Raises:
            TypeError: One is not text.
            ValueError: One is malformed, or of another kind.
        """
        for identifier in identifiers:
            _check_id(identifier, self._letters)

    def cost(self, identifiers: int | Sized) -> Cost:
        """Return the cost of looking these up: one metered request each, whether they exist or not.

        Args:
            identifiers: The identifiers, or their number.
        """
        return cost_of(self._resource, identifiers)

    def _query(self, fields: Sequence[str] | None, type: builtins.type[Any] | None = None) -> Query:
        assert self._resource.backend is not None
        return Query.build(self._resource.backend, self._resource.model, fields=fields, type=type)

    @abstractmethod
    def _decode(self, response: Response, query: Query) -> Any:
        """Return the result of one response.

        Raises:
            DecodeError: The response is malformed.
        """

    async def _get(self, identifier: str, query: Query, recheck: bool | None) -> Any:
        check_recheck(recheck)
        request = Request(
            method="POST",
            path=f"{self._resource.path}/{_check_id(identifier, self._letters)}",
            headers=JSON_HEADERS,
            body=msgspec.json.encode(query.body()),
            token=True,
            pool=self._resource.pool,
            product=self._resource.product,
        )
        self._hint.count(self._transport.monotonic())
        response = await send_lookup(self._transport, request, cache=self._cache, recheck=recheck)
        if isinstance(response, NotFound):
            raise not_found(
                f"{identifier} is not in the main graph of Wikidata; scholarly items are not served", response
            )
        with forget_unreadable(self._cache, response):
            return self._decode(response, query)

    def _get_many(
        self,
        identifiers: Iterable[str] | AsyncIterable[str],
        query: Query,
        recheck: bool | None,
        concurrency: ConcurrencyOptions,
    ) -> Lookups[Any]:
        check_recheck(recheck)

        async def find(identifier: str) -> Looked[Any]:
            try:
                return Looked(name=identifier, records=(await self._get(identifier, query, recheck),))
            except NotFound:
                return Looked(name=identifier)

        return Lookups(identifiers, find, monotonic=self._transport.monotonic, **concurrency)


class Entities(_ById[T]):
    """Items or properties by identifier.

    Labels are embedded in every property and value, in all languages, so a whole entity can be many megabytes: ask for
    less with `fields` or `type`. Scholarly items (papers and related items) are in a graph of their own, apart from
    Wikidata's main graph, and cannot be looked up.
    """

    @overload
    async def get(self, identifier: str, **options: Unpack[_EntityOptions]) -> T: ...
    @overload
    async def get(self, identifier: str, *, type: type[U], **options: Unpack[_EntityOptions]) -> U: ...
    async def get(
        self,
        identifier: str,
        *,
        fields: Sequence[str] | None = None,
        type: type[Any] | None = None,
        recheck: bool | None = None,
    ) -> Any:
        """Return one entity. One metered request, even if it does not exist.

        Args:
            identifier: `"Q42"` for an item, `"P31"` for a property.
            fields: Dotted names of the fields to fetch, such as `["entity.labels"]`; all by default.
            type: A msgspec Struct of yours to decode into; `fields` then follow from it.
            recheck: Whether to repeat the request before believing a "not found", after about a second and for one more
                metered request: True always, False never, None if the API failed within the last minute.

        Raises:
            ValueError: A field is unknown, or the identifier has another form; nothing was sent.
            NotFound: The entity is not in the main graph.
            DecodeError: The response is malformed.
            WMEError: The request failed in another way.
        """
        return await self._get(identifier, self._query(fields, type), recheck)

    @overload
    def get_many(
        self, identifiers: Iterable[str] | AsyncIterable[str], **options: Unpack[_ManyOptions]
    ) -> Lookups[T]: ...
    @overload
    def get_many(
        self, identifiers: Iterable[str] | AsyncIterable[str], *, type: type[U], **options: Unpack[_ManyOptions]
    ) -> Lookups[U]: ...
    def get_many(
        self,
        identifiers: Iterable[str] | AsyncIterable[str],
        *,
        fields: Sequence[str] | None = None,
        type: type[Any] | None = None,
        recheck: bool | None = None,
        **concurrency: Unpack[ConcurrencyOptions],
    ) -> Lookups[Any]:
        """Return many entities: an async iterator with one `Looked` for each, of one record or none.

        Args:
            identifiers: A list, a generator, an async iterator.
            fields: As for `get`.
            type: As for `get`.
            recheck: As for `get`.
            **concurrency: `concurrency`: requests at a time (10). `ordered`: whether results come in the order of
                identifiers (True), or as requests complete. `progress`: called with `LookupProgress` at most five times
                a second and at the end; it must not block.

        Raises:
            TypeError: `identifiers` is one identifier.
            ValueError: A field is unknown, or `concurrency` is below 1.
        """
        return self._get_many(identifiers, self._query(fields, type), recheck, concurrency)

    def _decode(self, response: Response, query: Query) -> Any:
        inside = any(name.startswith(_FOLDED) for name in query.fields or ())
        return decode_one(response, query, form=fold_entity if inside else None)


class Labels(_ById[dict[str, str]]):
    """Labels of items and properties by language, which are much smaller than whole entities."""

    async def get(
        self, identifier: str, *, fields: Sequence[str] | None = None, recheck: bool | None = None
    ) -> dict[str, str]:
        """Return the labels of an item or property. One metered request, even if it does not exist.

        Args:
            identifier: `"Q42"` or `"P31"`.
            fields: Language codes, such as `["en", "fr"]`; all by default.
            recheck: As for `Entities.get`.

        Returns:
            Language code and label; languages without a label are absent.

        Raises:
            ValueError: The identifier has another form; nothing was sent.
            NotFound: The entity is not in the main graph.
            DecodeError: The response is malformed.
            WMEError: The request failed in another way.
        """
        labels: dict[str, str] = await self._get(identifier, self._query(fields), recheck)
        return labels

    def get_many(
        self,
        identifiers: Iterable[str] | AsyncIterable[str],
        *,
        fields: Sequence[str] | None = None,
        recheck: bool | None = None,
        **concurrency: Unpack[ConcurrencyOptions],
    ) -> Lookups[dict[str, str]]:
        """Return the labels of many: an async iterator with one `Looked` for each, of one record or none.

        Args:
            identifiers: A list, a generator, an async iterator.
            fields: Language codes.
            recheck: As for `Entities.get`.
            **concurrency: As for `Entities.get_many`.
        """
        return self._get_many(identifiers, self._query(fields), recheck, concurrency)

    def _query(self, fields: Sequence[str] | None, type: builtins.type[Any] | None = None) -> Query:
        assert self._resource.backend is not None
        return Query.build(self._resource.backend, dict[str, str], fields=fields, type=type)

    def _decode(self, response: Response, query: Query) -> dict[str, str]:
        url, body = bare_url(response.url), response.body
        if is_error_document(body, known_names(query.model)):
            raise DecodeError(f"{url} responded with {error_in_place_of('labels', body)}", url=url, record=body)
        try:
            with decoding(body):
                labels = merge_labels(_labels_decoder.decode(body))
        except DecodeError as error:
            raise DecodeError(f"{url} did not respond with labels: {error.message}", url=url, record=body) from error
        if query.fields is None:
            return labels
        # The beta may ignore the fields of the request.
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

        Their path is not documented and assumed to be like that of the other batches. To change it:
        `Client(paths={"wikidata.batches": "/v2/…/{hour}"})`.

        Args:
            hour: `"2026-07-16T05"` (UTC), any aware datetime within the hour, `"latest"` or `"-3h"`: see
                `Client.batches`.

        Raises:
            ValueError: It is not an hour, or a naive datetime.
        """
        return hour_files(self._transport, self._resources["wikidata.batches"], hour)


def _check_id(identifier: str, letters: str) -> str:
    check_type("an identifier", identifier, str, "text such as 'Q42'")
    if _ID.fullmatch(identifier) is None:
        examples = " or ".join(f"'{letter}42'" for letter in letters)
        raise ValueError(f"an identifier looks like {examples}, not {identifier!r}")
    if identifier[0] not in letters:
        kind, attribute = _KINDS[identifier[0]]
        raise ValueError(f"{identifier!r} is {kind}: use wme.wikidata.{attribute}")
    return identifier
