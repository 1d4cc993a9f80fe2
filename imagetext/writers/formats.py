"""What one record looks like in each format: webdataset, JSONL, Parquet. The letter of it stands in docs/architecture.md."""

import base64
import hashlib
import json
import math
import os
import shutil
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from imagetext.columns import is_caption_column, is_column, is_other_column
from imagetext.fields import FIELDS, well_formed
from imagetext.keys import encode_key
from imagetext.outputs import UNFINISHED, Output, to_disk, write_file
from imagetext.readers.row_records import is_member_name
from imagetext.sample import Record, image_size
from imagetext.stores import entry, is_remote, join, read_bytes
from imagetext.waiting import Waiting


def record_columns(
    record: Record, of_run: Collection[str] = (), *, originals: bool = False
) -> dict[str, tuple[str, ...]]:
    """The record's columns that are written: those with a caption, for readers draw one of each column.

    of_run: the columns that the run makes. originals: whether original captions are enough in any case. Raises ValueError where
    there is nothing of what they say and no error that says why: no synthetic captions, or, where the run makes none, neither
    columns that are none nor originals.
    """
    columns = {
        name: tuple(map(well_formed, texts)) for name, texts in record.columns.items() if any(map(str.strip, texts))
    }
    enough = originals and any(map(str.strip, record.captions))
    if not record.error and not enough and not has_captions(columns, record.captions, of_run):
        raise ValueError(f"{record.key}: neither captions nor an error")
    return columns


def has_captions(columns: Collection[str], originals: Collection[str], of_run: Collection[str]) -> bool:
    """Whether a record with these columns is a good one of a run that makes columns of these names, () for any.

    Where the run makes synthetic captions, a good record has some: trainers that draw them end at a record without. A run
    of negatives or tags alone adds to what there is, and a picture with its original captions is good without any.
    """
    if any(map(is_caption_column, columns)):
        return True
    if any(map(is_caption_column, of_run)):
        return False
    return any(map(is_other_column, columns)) or bool(of_run) and any(map(str.strip, originals))


def record_fields(record: Record) -> dict[str, Any]:
    """The record's `json`: FIELDS, its label if it has one, then whatever else its meta holds."""
    meta, label = record.meta, {}
    if record.label is not None:
        label = {"label": record.label}
        meta = _aside(meta, {"label": meta["label"]} if meta.get("label", record.label) != record.label else {})
    fields = {
        "uid": str(meta.get("uid", record.key)),
        **_picture_fields(record),
        "captions": record.captions,
        "error": record.error,
        "source": str(meta.get("source", "")),
        "caption_scores": record.scores,
        **label,
    }
    return _plain({**fields, **{name: value for name, value in meta.items() if name not in fields}})


def _aside(fields: Mapping[str, Any], clash: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields with those that clash with ours in `source_fields`, where none that stand there already are replaced."""
    return {**fields, "source_fields": {**clash, **fields.get("source_fields", {})}} if clash else fields


def _picture_fields(record: Record) -> dict[str, Any]:
    """`sha256`, `width` and `height` of the picture; of one that is not there, what an earlier record knew of it."""
    image, meta = record.image, record.meta
    if image is None:
        unknown = {"sha256": "", "width": 0, "height": 0}
        return {
            name: meta[name] if type(meta.get(name)) is type(value) and _fits(meta[name]) else value
            for name, value in unknown.items()
        }
    try:
        width, height = image_size(image)
    except ValueError as error:
        if not record.error:
            raise ValueError(f"{record.key}: no picture, and no error that says so: {error}") from error
        width, height = 0, 0
    return {"sha256": hashlib.sha256(image).hexdigest(), "width": width, "height": height}


def keep(waiting: Waiting, key: str, record: Record) -> None:
    """Puts a record aside, with all that the writers make anything of."""
    fields = {
        "captions": record.captions,
        "columns": record.columns,
        "scores": record.scores,
        "label": record.label,
        "meta": record.meta,
        "error": record.error,
    }
    waiting.append(
        [_plain([key, record.key, fields]), record.image is not None, [*record.members]],
        [record.image or b"", *record.members.values()],
    )


def kept(waiting: Waiting) -> Iterator[tuple[str, Record]]:
    """The keys and records that were put aside."""
    for ([key, own, fields], has_image, names), (image, *contents) in waiting:
        fields["captions"] = tuple(fields["captions"])
        fields["columns"] = {name: tuple(texts) for name, texts in fields["columns"].items()}
        yield key, Record(own, image if has_image else None, members=dict(zip(names, contents, strict=True)), **fields)


def record_members(record: Record) -> dict[str, bytes]:
    """The record's other files, sorted by name."""
    members = dict(sorted(record.members.items()))
    for name in members:
        if not is_member_name(name):
            raise ValueError(f"{record.key}: a file {name!r} cannot be carried under this name")
    return members


def _plain(value: Any) -> Any:
    """The value in JSON's own types: bytes in base64, NaN and infinities null, what has no type in JSON or Arrow as text."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {well_formed(str(name)): _plain(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int) and _fits(value):
        return value
    return well_formed(str(value))


def _fits(value: Any) -> bool:
    """Whether the value, if it is an integer, is one of 64 bits."""
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# ---- one writer for each format -------------------------------------------------------------------------------------------


class Writer(Protocol):
    """Writes the records of a shard into its file, each as it comes; `ShardWriter` gives the failed ones last.

    Of a record's columns it gives those that `record_columns` leaves.
    """

    def write(self, key: str, record: Record, text: str | None) -> None:
        """Adds a record under a key that no other of the shard has; text: its `txt`, in the format that has one.

        Raises: ValueError, naming the key, where the record breaks the contract of the format; OSError where the file cannot
        be written. The shard is then to be given up.
        """

    def close(self) -> None:
        """Writes what is left to make the file whole; the file itself stays open."""

    def commit(self) -> None:
        """Gives what was stored beside the file its place, once the file is whole."""

    def discard(self) -> None:
        """Leaves nothing of what has no place yet."""


class _Alone:
    """A shard that is one file."""

    def commit(self) -> None:
        pass

    def discard(self) -> None:
        pass


class TarShard(_Alone):
    """webdataset: members jpg, txt, syn.json, json and what else was found; failed records lack jpg and txt.

    Texts that are no true captions stand in `json`, in each record of a run that makes such.
    """

    def __init__(self, file: Output, *, columns: Iterable[str] = (), **_: Any):
        self.file, self.others = file, dict.fromkeys(filter(is_other_column, columns), ())

    def write(self, key: str, record: Record, text: str | None) -> None:
        others = {name: texts for name, texts in record.columns.items() if is_other_column(name)}
        columns = {name: texts for name, texts in record.columns.items() if name not in others}
        fields = _with_caption_fields(record_fields(record), self.others | others)
        files = {}
        if not record.error:
            files |= {"jpg": record.image} if record.image is not None else {}
            files |= {"txt": text.encode()} if text is not None else {}
        else:  # captions that an earlier run made stay readable
            fields |= {name: texts for name, texts in _plain(columns).items() if name not in fields}
            columns = {}
        files["syn.json"] = _dumps(columns).encode()
        files["json"] = _dumps(fields).encode()
        parts = []
        for suffix, data in (files | record_members(record)).items():
            parts += [
                tar_header(f"{encode_key(key)}.{suffix}", len(data)),
                data,
                bytes(-len(data) % tarfile.BLOCKSIZE),
            ]
        self.file.write(b"".join(parts))

    def close(self) -> None:
        end = 2 * tarfile.BLOCKSIZE  # and as much as fills the last record
        self.file.write(bytes(end + -(self.file.tell() + end) % tarfile.RECORDSIZE))


def tar_header(name: str, size: int) -> bytes:
    """What stands before a file in a tar, as `tarfile` writes it: owner 0, time 0, mode 0644, for bytes depend on content."""
    encoded = name.encode("utf-8", "surrogateescape")
    if not name.isascii() or len(encoded) > tarfile.LENGTH_NAME or size >= 8**11:
        member = tarfile.TarInfo(name)
        member.size = size
        return member.tobuf()
    header = b"%b%b%011o%b" % (encoded.ljust(tarfile.LENGTH_NAME, b"\0"), _HEADER[100:124], size, _HEADER[135:])
    return b"%b%06o%b" % (header[:148], sum(header) - sum(header[148:156]) + 8 * ord(" "), header[154:])


_HEADER = tarfile.TarInfo("").tobuf()  # of an empty file without a name


class JsonlShard:
    """JSONL: the picture as a path relative to the file, or as a URL.

    A picture that was found as a file stays where it is; others are stored in the folder `NAME.images`. Where an earlier shard has
    one, that stays until this shard is whole; in a store, its pictures are written over.
    """

    def __init__(self, file: Output, *, columns: Iterable[str], **_: Any):
        self.file = file
        self.folder = os.path.dirname(file.path)
        self.images = os.path.splitext(os.path.basename(file.path))[0] + ".images"
        self.columns, self.rows = dict.fromkeys(columns), 0
        self.discard()  # what a killed process has left
        self.aside = UNFINISHED if os.path.isdir(join(self.folder, self.images)) else ""

    def write(self, key: str, record: Record, text: str | None) -> None:
        columns, members = record.named_columns, record_members(record)
        self.columns |= dict.fromkeys(columns)
        fields = _with_caption_fields(record_fields(record), _unnamed(record))
        row = {
            "key": key,
            "image": None if record.error else self._image(record),
            "captions": fields.pop("captions"),
            **{name: list(columns.get(name, ())) for name in self.columns},
        }
        rest = _aside(fields, {name: value for name, value in fields.items() if name in row or name == "members"})
        rest = {name: value for name, value in rest.items() if name not in row and name != "members"}
        row |= {name: rest.pop(name) for name in ("sha256", "width", "height", "error", "caption_scores")} | rest
        if members:
            row["members"] = _plain(members)
        self.file.write(f"{_dumps(row)}\n".encode())
        self.rows += 1

    def _image(self, record: Record) -> str | None:
        data, source = record.image, record.path
        if data is None:
            return None
        if source and self._stays(source, data):
            path = source if is_remote(source) else os.path.relpath(source, self.folder).replace(os.sep, "/")
            if well_formed(path) == path:  # else its name is no text
                return path
        name = f"{self.rows:09d}{_suffix(data)}"
        self._store(join(self.folder, f"{self.images}{self.aside}/{name}"), data)
        return f"{self.images}/{name}"

    def _store(self, path: str, data: bytes) -> None:
        """Writes a picture, which counts only once the row that names it does: it needs no temporary name."""
        if is_remote(path):
            write_file(path, data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        to_disk(path)

    def _stays(self, source: str, data: bytes) -> bool:
        """Whether the row may name the file that the picture was read from: it is there still, and there for all readers."""
        if is_remote(source):
            there = entry(source)
            return there is not None and there.stamp["size"] == len(data) and read_bytes(source) == data
        return (
            not is_remote(self.folder)
            and os.path.isfile(source)
            and os.path.getsize(source) == len(data)
            and read_bytes(source) == data
        )

    def close(self) -> None:
        if os.path.isdir(images := join(self.folder, self.images + self.aside)):
            to_disk(images)  # the pictures' names, as the rows have them

    def commit(self) -> None:
        if self.aside:
            images = join(self.folder, self.images)
            shutil.rmtree(images)
            if os.path.isdir(images + UNFINISHED):
                os.replace(images + UNFINISHED, images)

    def discard(self) -> None:
        if not is_remote(self.folder):
            shutil.rmtree(join(self.folder, self.images + UNFINISHED), ignore_errors=True)


def _suffix(data: bytes) -> str:
    for start, suffix in (
        (b"\xff\xd8", ".jpg"),
        (b"\x89PNG", ".png"),
        (b"RIFF", ".webp"),
        (b"GIF8", ".gif"),
        (b"BM", ".bmp"),
        (b"II", ".tif"),
        (b"MM", ".tif"),
        (b"P", ".ppm"),
    ):
        if data.startswith(start):
            return suffix
    return ".avif" if data[4:8] == b"ftyp" else ".jp2"


class ParquetShard(_Alone):
    """Parquet: the picture as a column that `datasets` reads as Image; `json` holds the rest, so that all shards of a
    run have the same columns. Rows wait on disk until the shard is closed, since its columns are known only then."""

    ROW_GROUP = 100

    def __init__(self, file: Output, *, columns: Iterable[str], **_: Any):
        self.file, self.columns, self.rows = file, dict.fromkeys(columns), Waiting(file.path)
        self.scores: dict[str, Any] = {}  # of each kind that there is, an example

    def write(self, key: str, record: Record, text: str | None) -> None:
        columns, fields = record.named_columns, _with_caption_fields(record_fields(record), _unnamed(record))
        self.columns |= dict.fromkeys(columns)
        row = {
            "key": well_formed(key),
            **columns,
            **{name: fields.pop(name) for name in FIELDS},
            "json": _dumps(fields),
        }
        image, members = None if record.error else record.image, record_members(record)
        example = _example(row["caption_scores"])
        self.scores[_dumps(example)] = example
        self.rows.append([row, image is not None, [*members]], [image or b"", *members.values()])

    def close(self) -> None:
        schema = self._schema()
        scores, rows = schema.field("caption_scores").type, iter(self.rows)
        with pq.ParquetWriter(self.file, schema) as writer:
            while group := list(islice(rows, self.ROW_GROUP)):
                writer.write_table(pa.Table.from_pylist([self._row(*row, scores) for row in group], schema))

    def _row(
        self, kept: tuple[dict[str, Any], bool, list[str]], files: list[bytes], scores: pa.DataType
    ) -> dict[str, Any]:
        (row, has_image, members), (image, *contents) = kept, files
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


def _with_caption_fields(fields: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The fields with these columns together in one of their own, if there are any; a field of this name goes aside."""
    if not columns:
        return dict(fields)
    fields = _aside(fields, {name: fields[name] for name in ("caption_fields",) if name in fields})
    return {**fields, "caption_fields": {name: list(texts) for name, texts in columns.items()}}


def _unnamed(record: Record) -> dict[str, tuple[str, ...]]:
    """The columns whose names could be taken for others of a table."""
    return {name: texts for name, texts in record.columns.items() if not is_column(name)}


def _arrow_type(values: list[Any]) -> pa.DataType:
    """One type for values in JSON's types, objects merged field by field; text where they are of several kinds."""
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
    """The value as `_arrow_type` sees it: one of each kind in a list, and of numbers and texts their kind."""
    if isinstance(value, dict):
        return {name: _example(item) for name, item in value.items()}
    if isinstance(value, list):
        return [*{_dumps(example): example for example in map(_example, value)}.values()]
    return None if value is None else type(value)()


def _of_type(value: Any, arrow: pa.DataType) -> Any:
    """The value as one of a type that `_arrow_type` has chosen."""
    if value is None or pa.types.is_null(arrow):
        return None
    if pa.types.is_struct(arrow):
        return {field.name: _of_type(value.get(field.name), field.type) for field in arrow}
    if pa.types.is_list(arrow):
        return [_of_type(item, arrow.value_type) for item in value]
    if pa.types.is_string(arrow):
        return value if isinstance(value, str) else _dumps(value)
    return int(value) if pa.types.is_int64(arrow) else value
