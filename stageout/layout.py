"""How the fields of a task are laid out in the merged files, and bringing each image into that shape.

A field whose first axis has the same length in every event is stored fixed, any other one with its counts. Images say
the same of their own few events only, so the layout is a guess until an event contradicts it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import NoReturn

import numpy as np

from eventrange.fields import Column, Image, differ, schema_of
from stageout.finalfile import Layout


class FieldVaries(Exception):
    """Events contradict the layout: the fields `names` are not fixed after all."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(", ".join(sorted(names)))
        self.names = names


def length(column: Column) -> int | None:
    """Rows per event, -1 if they vary, None for a scalar field."""
    if column.counts is None:
        return column.values.shape[1] if column.values.ndim > 1 else None
    counts = column.counts
    return int(counts[0]) if len(counts) and (counts == counts[0]).all() else -1


def layouts_of(image: Image, jagged: Collection[str]) -> list[Layout]:
    """The layout that `image` asks for, `jagged` fields with counts in any case; fields sorted by name."""
    layouts = []
    for name, column in sorted(image.fields.items()):
        rows = length(column)
        varies = rows is not None and (rows < 0 or name in jagged)
        tail = column.values.shape[1 if column.counts is not None else 2 :]
        shape = () if rows is None else tail if varies else (rows, *tail)
        layouts.append(Layout(name, column.values.dtype, varies, shape))
    return layouts


def fit(layouts: list[Layout], schema: str, image: Image) -> dict[str, Column]:
    """The columns of `image` as `layouts` have them, which come from an image with this `schema`.

    Raises FieldsChanged, FieldVaries.
    """
    fields = image.fields
    if len(fields) != len(layouts):
        _differ(schema, image)
    out: dict[str, Column] = {}
    contradicted: list[str] = []
    for name, dtype, jagged, shape in layouts:
        column = fields.get(name)
        if column is None or column.values.dtype != dtype:
            _differ(schema, image)
        values, counts = column
        n = len(image.positions)
        if jagged:
            if counts is None:
                if values.ndim != len(shape) + 2 or values.shape[2:] != shape:
                    _differ(schema, image)
                counts = np.full(n, values.shape[1], np.int64)
                values = values.reshape(n * values.shape[1], *shape)
            elif values.shape[1:] != shape:
                _differ(schema, image)
            out[name] = Column(values, counts)
            continue
        if counts is not None:
            if values.ndim != len(shape) or values.shape[1:] != shape[1:]:
                _differ(schema, image)
            if not (counts == shape[0]).all():
                contradicted.append(name)
                continue
            values = values.reshape(n, *shape)
        elif values.shape[1:] != shape:
            if values.ndim != len(shape) + 1 or values.shape[2:] != shape[1:]:
                _differ(schema, image)
            contradicted.append(name)
            continue
        out[name] = Column(values)
    if contradicted:
        raise FieldVaries(frozenset(contradicted))
    return out


def joined_images(layouts: list[Layout], schema: str, images: list[Image]) -> Image:
    """`images` one after another as one, its fields as `layouts` have them. Raises FieldsChanged, FieldVaries."""
    fitted = [fit(layouts, schema, image) for image in images]
    if len(images) == 1:
        return Image(images[0].positions, fitted[0])
    fields = {}
    for name, _, jagged, _ in layouts:
        parts = [columns[name] for columns in fitted]
        counts = np.concatenate([part.counts for part in parts if part.counts is not None]) if jagged else None
        fields[name] = Column(np.concatenate([part.values for part in parts]), counts)
    return Image(np.concatenate([image.positions for image in images]), fields)


def _differ(schema: str, image: Image) -> NoReturn:
    raise differ(int(image.positions[0]), json.loads(schema), json.loads(schema_of(image.fields)))
