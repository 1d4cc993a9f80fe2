"""Write records in shards that appear only when they are complete, with a done-marker written last."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from imagetext import limits
from imagetext.columns import can_be_written, is_other_column
from imagetext.columns import check_column as check_column  # for those who name the columns of a shard
from imagetext.fields import json_object
from imagetext.keys import SeenKeys
from imagetext.lock import check_lock
from imagetext.marker_index import MARKER as MARKER
from imagetext.marker_index import Marker, read_index, usable_marker
from imagetext.outputs import Output, abort_uploads, remove, write_file
from imagetext.read_ahead import SMALL_AHEAD, in_order
from imagetext.sample import Record
from imagetext.shown import masked, masked_values
from imagetext.stores import Entry, StoreError, entry, files_of, join, plain_path, read_bytes
from imagetext.waiting import Waiting
from imagetext.writers.jsonl import JsonlShard
from imagetext.writers.parquet import ParquetShard
from imagetext.writers.record_fields import record_columns, record_fields, records_set_aside, set_aside
from imagetext.writers.tar import TarShard
from imagetext.writers.writer import Writer

if TYPE_CHECKING:
    import datasets

Format = Literal["webdataset", "jsonl", "parquet"]
SUFFIXES = {"webdataset": ".tar", "jsonl": ".jsonl", "parquet": ".parquet"}
RUN = "run.json"


class ShardWriter:
    """Writes one shard of records, as a context manager. The file gets its name only when it is complete.

    The bytes of the shard depend only on the records and options. Good records keep their order; failed records come
    last. At the end of the block, `NAME.SUFFIX` is written, then the marker `NAME.done.json` with the counts, the
    file's size and SHA-256, `input` and everything in `info`. After an exception, an old shard of this name and its
    marker are still there.

    folder: on this machine or in a store (`s3://`, `gs://`, `hf://`). Uploads of this shard that a killed process has
        left in a store are aborted first.
    columns: the columns that the run makes (synthetic captions, negatives, tags), so that shards in which all records
        fail have them, too. The marker counts their captions. Default: all columns are taken to be of the run. If the
        run makes synthetic captions, every good record must have some.
    images: False writes columns that are joined with their pictures later (`imagetext.sets.join`): each record has the
        run's captions and the fields that identify its picture, but no picture and no other file.
    text_from_synthetic: `txt` is the first synthetic caption instead of the first original one.
    input: written into the marker; give the path and the stamp of the input shard.

    `write` raises ValueError, which names the key, for a record that breaks the format's contract, and StoreError if a
    store fails.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        name: str,
        *,
        format: Format = "webdataset",
        columns: Sequence[str] = (),
        images: bool = True,
        originals: bool = False,
        text_from_synthetic: bool = False,
        input: Mapping[str, Any] | None = None,
    ):
        if format not in SUFFIXES:
            raise ValueError(f"format: {format!r} is none of {', '.join(SUFFIXES)}")
        if wrong := [column for column in columns if not can_be_written(column)]:
            raise ValueError(
                f"columns: {', '.join(map(repr, wrong))}: not a valid name for a column of captions (see check_column)"
            )
        self.folder, self.name, self.format = plain_path(folder), name, format
        self.path = join(self.folder, name + SUFFIXES[format])
        self.info: dict[str, Any] = {}
        self._columns = tuple(columns)
        self._images, self._originals = images, originals
        self._text_from_synthetic, self._input = text_from_synthetic, dict(input or {})
        self._keys, self._failed, self._good = SeenKeys(name), Waiting(self.path), 0
        self._captions = Counter({column: 0 for column in columns})

    def __enter__(self) -> "ShardWriter":
        abort_uploads(self.path)
        self._file = Output(self.path)
        kind = {"webdataset": TarShard, "jsonl": JsonlShard, "parquet": ParquetShard}[self.format]
        self._shard: Writer = kind(self._file, columns=self._columns)
        return self

    def write(self, record: Record, text: str | None = None) -> None:
        """Add a record. A key that was used before becomes `KEY~2`, with a warning.

        text: the `txt` of a webdataset record (default: its first caption).
        """
        if not record.key:
            raise ValueError(f"{self.name}: a record without a key, from {record.meta.get('source', 'nowhere')}")
        key = self._keys.unique(record.key)
        columns = record_columns(record, self._columns, originals=self._originals)
        record = replace(record, columns=columns, error=masked(record.error))
        run_columns = {
            name: texts
            for name, texts in record.named_columns.items()
            if not record.error and (not self._columns or name in self._columns)
        }
        if not self._images:
            record, text = _columns_alone(record, run_columns), None
        if record.error:
            set_aside(self._failed, key, record)
            return
        if self._images and not text:
            text = replace(record, columns=run_columns).first_text(from_synthetic=self._text_from_synthetic)
        self._shard.write(key, record, text)
        self._good += 1
        self._captions.update({name: len(texts) for name, texts in run_columns.items()})

    def __exit__(self, kind: type | None, *_: Any) -> None:
        try:
            if kind is None:
                for key, record in records_set_aside(self._failed):
                    self._shard.write(key, record, None)
                self._shard.close()
                self._file.finish()
                check_lock(self.folder)
                remove(_marker_path(self.folder, self.name))  # the old marker is of the file that is replaced now
                self._shard.commit()
                self._file.commit()
                check_lock(self.folder)
                self._write_marker()
        finally:
            self._failed.close()
            self._shard.discard()
            self._file.discard()

    def _write_marker(self) -> None:
        marker = {
            "name": self.name,
            "file": os.path.basename(self.path),
            "format": self.format,
            "size": self._file.size,
            "sha256": self._file.sha256,
            "rows": self._good + len(self._failed),
            "failed": len(self._failed),
            "captions": dict(sorted(self._captions.items())),
            "input": masked_values(self._input),
            **self.info,
        }
        path = _marker_path(self.folder, self.name)
        try:
            write_file(path, json.dumps(marker, indent=1).encode())
        except OSError:  # the marker may have its name already, but be lost in a power failure
            remove(path)
            raise


def _columns_alone(record: Record, columns: Mapping[str, tuple[str, ...]]) -> Record:
    """The record with only these columns and the fields that identify its picture."""
    url = record.members.get("url.txt", b"").decode("utf-8", "replace").strip()
    fields = record_fields(record)
    meta = {**record.meta, **{name: fields[name] for name in ("uid", "sha256", "width", "height", "source")}}
    scores = {name: scores for name, scores in record.scores.items() if name in columns}
    return replace(
        record, image=None, columns=columns, scores=scores, members={}, meta=meta | ({"url": url} if url else {})
    )


def read_shards(folder: str | os.PathLike) -> list[str] | None:
    """The names of all shards of the run in a folder, finished or not; None if unknown, as for runs of version 0.1."""
    try:
        names = json_object(read_bytes(join(plain_path(folder), RUN), limits.DOCUMENT)).get("shards")
    except (FileNotFoundError, ValueError):
        return None
    return names if isinstance(names, list) else None


def read_marker(folder: str | os.PathLike, name: str) -> dict[str, Any] | None:
    """The done-marker of a shard; None if it has no marker, or its file is missing or has another size."""
    folder = plain_path(folder)
    marker = _marker(folder, name)
    if marker is None:
        return None
    file = entry(join(folder, marker["file"]))
    return marker if file and file.stamp["size"] == marker["size"] else None


def read_markers(
    folder: str | os.PathLike,
    files: Mapping[str, Entry] | None = None,
    indexed: Mapping[str, Marker] | None = None,
) -> dict[str, Marker]:
    """The done-markers of all finished shards, by the shard's name, as `read_marker` reads them.

    files: the entries of the folder by their names (default: it is listed, once).
    indexed: the markers that need not be read (default: those of the folder's index).
    """
    folder = plain_path(folder)
    files = files_of(folder) if files is None else files
    indexed = read_index(folder, files) if indexed is None else indexed
    sizes = {name: file.stamp["size"] for name, file in files.items()}
    names = [name.removesuffix(MARKER) for name in sizes if name.endswith(MARKER)]
    to_read = [name for name in names if name not in indexed]
    read = in_order(((True, partial(_marker, folder, name)) for name in to_read), SMALL_AHEAD)
    markers = {**indexed, **dict(zip(to_read, read, strict=True))}
    return {
        name: marker for name in names if (marker := markers[name]) and sizes.get(marker["file"]) == marker["size"]
    }


def _marker(folder: str, name: str) -> Marker | None:
    try:
        marker = json_object(read_bytes(_marker_path(folder, name), limits.DOCUMENT))
    except StoreError:
        raise
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return marker if usable_marker(marker) else None


def dataset_features(
    columns: Sequence[str], *, similarity: bool = False, embeddings: Literal["npz", "pth.gz"] | None = None
) -> "datasets.Features":
    """Return the features for `datasets.load_dataset("webdataset", ..., features=...)` of records with these columns.

    columns: all columns, including negatives and tags, which are in `json`.
    similarity: whether the captions were made with `--similarity`.
    embeddings: the member of reinforced records that holds embeddings, which is read together with `paug.json`; needs
        `datasets` 4.7. Columns of embeddings that a record lacks are None.

    Without features, `datasets` looks at the first five records of the first shard and fails if their fields differ:
    in a shard of fewer than five good records, or if some records have no original caption. It also fails on all
    reinforced records, because their views are lists of mixed depth, for which Arrow has no type.
    """
    from datasets import Features, Image, List, Value

    texts = List(Value("string"))
    scores = {"logprob": List(Value("float64")), "truncated": List(Value("bool")), "flags": texts}
    if similarity:
        scores["similarity"] = List(Value("float64"))
    captions = [column for column in columns if not is_other_column(column)]
    others = [column for column in columns if is_other_column(column)]
    features = Features(
        {
            "jpg": Image(),
            "txt": Value("string"),
            "syn.json": {column: texts for column in captions},
            "json": {
                "uid": Value("string"),
                "sha256": Value("string"),
                "width": Value("int64"),
                "height": Value("int64"),
                "captions": texts,
                "error": Value("string"),
                "source": Value("string"),
                "caption_scores": {column: scores for column in columns},
                **({"caption_fields": {column: texts for column in others}} if others else {}),
            },
            "__key__": Value("string"),
            "__url__": Value("string"),
        }
    )
    if embeddings:
        from datasets import Json

        names = ("image", "text", "captions", *captions)
        features.update(
            {"paug.json": Json(), embeddings: {f"{name}_emb": List(List(Value("float32"))) for name in names}}
        )
    return features


def _marker_path(folder: str, name: str) -> str:
    return join(folder, name + MARKER)
