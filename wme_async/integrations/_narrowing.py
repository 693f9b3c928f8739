"""Some columns of a table, and of the objects in it, by dotted names."""

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from wme_async._arguments import texts_of

__all__ = ["Narrowing"]

Make = Callable[[Any], Any]

_Tree = dict[str, Any]
"""Names to keep, each with those below it; an empty tree keeps everything."""


class Narrowing:
    """Reduces batches to some fields, in the order of their names. No value is copied.

    Args:
        schema: The schema of the batches.
        names: Dotted names; an object has the parts that are named, and so have the objects of a list. A column whose
            parts Arrow does not know, such as a mapping, stays whole.

    Attributes:
        schema: The schema of the narrowed batches.

    Raises:
        TypeError: The names are not texts.
        ValueError: There is no such field, or no name.
    """

    def __init__(self, schema: "pa.Schema", names: Iterable[str]) -> None:
        texts = texts_of("fields", names, "dotted names")
        if not texts:
            raise ValueError("fields must be dotted names of columns, and there are none; leave it out for all of them")
        fields, self._makes = _parts(schema, _tree(texts), "")
        self.schema: pa.Schema = pa.schema(fields)
        self._indices = [schema.get_field_index(name) for name in self.schema.names]

    def __call__(self, batch: "pa.RecordBatch") -> "pa.RecordBatch":
        """Return a batch with the narrowed columns.

        Args:
            batch: A batch of the schema.
        """
        arrays = [make(batch.column(index)) for index, make in zip(self._indices, self._makes, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def _tree(names: Iterable[str]) -> _Tree:
    whole = {name.removesuffix(".*") for name in names}
    tree: _Tree = {}
    for name in names:
        segments = name.removesuffix(".*").split(".")
        inner = tree
        for count, segment in enumerate(segments, 1):
            inner = inner.setdefault(segment, {})
            if ".".join(segments[:count]) in whole:
                inner.clear()
                break
    return tree


def _parts(fields: Any, tree: _Tree, above: str) -> tuple[list["pa.Field"], list[Make]]:
    """Return the narrowed fields of a schema or a struct, and what makes the column of each."""
    by_name = {field.name: field for field in fields}
    parts: list[pa.Field] = []
    makes: list[Make] = []
    for name, below in tree.items():
        if name not in by_name:
            raise ValueError(f"there is no field {above + name!r}; there are {', '.join(by_name)}")
        kind, make = _part(by_name[name].type, below, f"{above}{name}.")
        parts.append(pa.field(name, kind))
        makes.append(make)
    return parts, makes


def _part(kind: "pa.DataType", tree: _Tree, above: str) -> tuple["pa.DataType", Make]:
    if tree and pa.types.is_struct(kind):
        return _struct(kind, tree, above)
    if tree and pa.types.is_list(kind):
        item, make = _part(kind.value_type, tree, above)
        return pa.list_(item), lambda column: pa.ListArray.from_arrays(
            column.offsets, make(column.values), mask=_mask(column)
        )
    return kind, lambda column: column


def _struct(kind: "pa.DataType", tree: _Tree, above: str) -> tuple["pa.DataType", Make]:
    fields, makes = _parts(kind, tree, above)
    indices = [kind.get_field_index(name) for name in tree]

    def make(column: Any) -> Any:
        children = [make_child(column.field(index)) for index, make_child in zip(indices, makes, strict=True)]
        return pa.StructArray.from_arrays(children, fields=fields, mask=_mask(column))

    return pa.struct(fields), make


def _mask(column: Any) -> Any:
    return column.is_null() if column.null_count else None
