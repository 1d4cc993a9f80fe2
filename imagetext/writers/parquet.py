"""Shards as Parquet, which `datasets` reads with their pictures, and Arrow types for JSON values."""

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imagetext.fields import FIELDS, well_formed
from imagetext.outputs import Output
from imagetext.sample import Record
from imagetext.waiting import Waiting
from imagetext.writers.record_fields import (
    json_text,
    record_fields,
    record_members,
    unnamed_columns,
    with_caption_fields,
)
from imagetext.writers.writer import OneFile


class ParquetShard(OneFile):
    """Parquet: the picture is in a column that `datasets` reads as Image.

    The column `json` holds all other fields, so that all shards of a run have the same columns. Rows wait on disk
    until the shard is closed, because its columns and their types are known only then.
    """

    ROW_GROUP = 100

    def __init__(self, file: Output, *, columns: Iterable[str], **_: Any):
        self.file, self.columns, self.rows = file, dict.fromkeys(columns), Waiting(file.path)
        self.scores: dict[str, Any] = {}  # one example of each structure of scores

    def write(self, key: str, record: Record, text: str | None) -> None:
        columns, fields = record.named_columns, with_caption_fields(record_fields(record), unnamed_columns(record))
        self.columns |= dict.fromkeys(columns)
        row = {
            "key": well_formed(key),
            **columns,
            **{name: fields.pop(name) for name in FIELDS},
            "json": json_text(fields),
        }
        image, members = None if record.error else record.image, record_members(record)
        example = _example(row["caption_scores"])
        self.scores[json_text(example)] = example
        self.rows.append([row, image is not None, [*members]], [image or b"", *members.values()])

    def close(self) -> None:
        schema = self._schema()
        scores, rows = schema.field("caption_scores").type, iter(self.rows)
        with pq.ParquetWriter(self.file, schema) as writer:
            while group := list(islice(rows, self.ROW_GROUP)):
                writer.write_table(pa.Table.from_pylist([self._row(*row, scores) for row in group], schema))

    def _row(
        self, waiting: tuple[dict[str, Any], bool, list[str]], files: list[bytes], scores: pa.DataType
    ) -> dict[str, Any]:
        (row, has_image, members), (image, *contents) = waiting, files
        return {
            **dict.fromkeys(self.columns, ()),
            **row,
            "image": {"bytes": image, "path": None} if has_image else None,
            "members": [{"name": name, "data": data} for name, data in zip(members, contents, strict=True)],
            "caption_scores": _of_type(row["caption_scores"] or None, scores),
        }

    def discard(self) -> None:
        self.rows.close()

    def _schema(self) -> pa.Schema:
        usual = {
            name: {"logprob": [0.0], "truncated": [False], "flags": [""], "similarity": [0.0]} for name in self.columns
        }
        scores = _arrow_type([usual, *self.scores.values()])
        texts = pa.list_(pa.string())
        return pa.schema(
            [
                ("key", pa.string()),
                ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                ("captions", texts),
                *((name, texts) for name in sorted(self.columns)),
                ("sha256", pa.string()),
                ("width", pa.int64()),
                ("height", pa.int64()),
                ("error", pa.string()),
                ("caption_scores", scores),
                ("uid", pa.string()),
                ("source", pa.string()),
                ("json", pa.string()),
                ("members", pa.list_(pa.struct([("name", pa.string()), ("data", pa.binary())]))),
            ],
            metadata={"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})},
        )


def _arrow_type(values: list[Any]) -> pa.DataType:
    """An Arrow type for JSON values. Objects are merged field by field; values of different types become text."""
    values = [value for value in values if value is not None]
    if values and all(isinstance(value, dict) for value in values):
        names = sorted({name for value in values for name in value})
        if not names:
            return pa.null()
        return pa.struct([(name, _arrow_type([value.get(name) for value in values])) for name in names])
    if values and all(isinstance(value, list) for value in values):
        return pa.list_(_arrow_type([item for value in values for item in value]))
    for kind, arrow in ((bool, pa.bool_()), (int, pa.int64()), (str, pa.string()), (int | float, pa.float64())):
        if all(isinstance(value, kind) for value in values) and values:
            return arrow
    return pa.string() if values else pa.float64()


def _example(value: Any) -> Any:
    """A small value of the same `_arrow_type`: one item of each structure in lists, 0 and "" for numbers and texts."""
    if isinstance(value, dict):
        return {name: _example(item) for name, item in value.items()}
    if isinstance(value, list):
        return [*{json_text(example): example for example in map(_example, value)}.values()]
    return None if value is None else type(value)()


def _of_type(value: Any, arrow: pa.DataType) -> Any:
    """The value converted to a type that `_arrow_type` has chosen."""
    if value is None or pa.types.is_null(arrow):
        return None
    if pa.types.is_struct(arrow):
        return {field.name: _of_type(value.get(field.name), field.type) for field in arrow}
    if pa.types.is_list(arrow):
        return [_of_type(item, arrow.value_type) for item in value]
    if pa.types.is_string(arrow):
        return value if isinstance(value, str) else json_text(value)
    return int(value) if pa.types.is_int64(arrow) else value
