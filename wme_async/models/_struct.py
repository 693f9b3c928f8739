"""The base class of all models, and the type of timestamps."""

from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias, dataclass_transform

from msgspec import Meta, Struct, convert, field, json

Timestamp: TypeAlias = Annotated[datetime, Meta(tz=True)]
"""An aware datetime. The server writes UTC, with 0 to 9 digits of fraction: rounded to the nearest microsecond.

The year 1 (`0001-01-01T00:00:00Z`) is the server's way to say "unknown" and stays as it is: subtracting from it
underflows, comparing works.
"""


# The decorator tells type checkers what subclasses inherit at run time: they would otherwise look for `frozen` and
# `kw_only` on each class.
@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
class Model(Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True, gc=False):
    """The private base of every model.

    - `frozen`, with tuples for lists: one empty instance can then be the default of a nested object for all records,
      which costs nothing to decode (a factory doubles the time of a small record) and is not encoded; and a
      record handed to several consumers cannot be changed by one of them. `msgspec.structs.replace` makes a changed
      copy.
    - `gc=False`: the collector never looks at these objects, which matters when many exist. It is safe because they
      hold plain data alone (strings, numbers, datetimes, tuples and dicts of those, other models) and, once built,
      cannot refer to themselves unless a dict gets a value that its type forbids. For the same reason a
      model that holds a dict is never a shared default: it has a factory.
    - `omit_defaults`: the server omits values that are false, zero or empty; so does encoding. The few keys that it
      always writes have a factory as default, which msgspec never omits.
    - Unknown keys pass: the server adds fields without notice.
    - A field whose attribute starts with an underscore is another spelling of a public field that some payloads use.
      It is folded into the public one when decoded, is never encoded, and cannot be requested.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain dicts, lists, text and numbers, under the names of the wire.

        Times are ISO 8601 text. Values that are false, zero or empty are omitted, as on the wire.
        """
        plain: dict[str, Any] = json.decode(json.encode(self))  # lists, where `to_builtins` keeps tuples
        return plain

    def to_json(self) -> str:
        """Return the record as JSON, under the names of the wire; the content is that of `to_dict`."""
        return json.encode(self).decode()

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]  # records have slots, and no other `__dict__`
        """What `vars` returns, and with it libraries that take any object apart, such as FastAPI: `to_dict()`."""
        return self.to_dict()

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        """Let pydantic, and so FastAPI, take and return records: as JSON they are what `to_dict` returns."""
        from pydantic_core import core_schema  # noqa: PLC0415  # only pydantic calls this

        def validate(value: Any) -> Any:
            return value if isinstance(value, cls) else convert(value, cls)

        return core_schema.no_info_plain_validator_function(
            validate,
            json_schema_input_schema=core_schema.dict_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(cls.to_dict),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, _handler: Any) -> dict[str, Any]:
        return {"type": "object", "title": cls.__name__, "description": f"`wme_async.models.{cls.__name__}`"}

    def __repr__(self) -> str:
        """Return the fields that are set, shortened so that a record fits a screen: `to_dict` has all of it."""
        fields = ", ".join(f"{name}={_short(value)}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"


_TEXT: Final = 80  # characters
_ITEMS: Final = 10


def _short(value: Any) -> str:
    if isinstance(value, str):
        return repr(value) if len(value) <= _TEXT else f"{value[:_TEXT]!r}…"
    if isinstance(value, tuple | list):
        suffix = f", … {len(value) - _ITEMS} more" if len(value) > _ITEMS else "," if len(value) == 1 else ""
        return f"({', '.join(map(_short, value[:_ITEMS]))}{suffix})"
    if isinstance(value, dict):
        items = [f"{key!r}: {_short(item)}" for key, item in list(value.items())[:_ITEMS]]
        suffix = f", … {len(value) - _ITEMS} more" if len(value) > _ITEMS else ""
        return f"{{{', '.join(items)}{suffix}}}"
    return repr(value)
