"""Writing records in shards: whole under their name or not there, and a done-marker last."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from imagetext.columns import TAKEN, is_caption_column, is_column, is_other_column
from imagetext.columns import check_column as check_column  # who names the columns of a shard needs it
from imagetext.fields import json_object
from imagetext.keys import SeenKeys
from imagetext.lock import check_lock
from imagetext.outputs import Output, abort_uploads, remove, write_file
from imagetext.read_ahead import in_order
from imagetext.sample import Record
from imagetext.shown import masked, masked_values
from imagetext.stores import StoreError, entry, is_remote, join, listing, plain_path, read_bytes
from imagetext.waiting import Waiting
from imagetext.writers.jsonl import JsonlShard
from imagetext.writers.parquet import ParquetShard
from imagetext.writers.record_fields import keep, kept, record_columns, record_fields
from imagetext.writers.tar import TarShard
from imagetext.writers.writer import Writer

if TYPE_CHECKING:
    import datasets

Format = Literal["webdataset", "jsonl", "parquet"]
SUFFIXES = {"webdataset": ".tar", "jsonl": ".jsonl", "parquet": ".parquet"}
MARKER = ".done.json"
RUN = "run.json"


class ShardWriter:
    """Writes one shard of records, as a context manager: nothing stands under its name until all of it does.

    The bytes of the shard depend on the records and options alone. Good records keep their order, failed ones come
    last. Leaving the block writes `NAME.SUFFIX`, then the marker `NAME.done.json` with the counts, the file's size and
    SHA-256, `input` (give the shard's path and stamp) and whatever was put into `info`. An exception leaves what was there
    before: an old shard and its marker stay until the new one is whole.

    folder: on this machine, or in a store (`s3://`, `gs://`, `hf://`), where an upload of this shard that a killed process
    has left is aborted first.
    columns: the run's own columns, of synthetic captions and of texts that are none, so that shards in which all failed have
    them too. They are what the marker counts; unless given, all are the run's. A run that makes synthetic captions has no good
    record without any.
    images: False writes columns to be joined with their pictures later (`imagetext.sets.join`): of each record the run's own
    captions and what tells whose they are, but no picture and no other file.
    text_from_synthetic: `txt` is the first synthetic caption instead of the first original one.

    `write` raises ValueError for a record that breaks the format's contract, naming its key; StoreError where a store fails.
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
        if wrong := [column for column in columns if not is_column(column) or any(part in column for part in TAKEN)]:
            raise ValueError(
                f"columns: {', '.join(map(repr, wrong))}: no name for a column of captions (see check_column)"
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
        """Adds a record; a key seen before becomes `KEY~2`, with a warning.

        text: the `txt` of a webdataset record, where it is not to be the first caption.
        """
        if not record.key:
            raise ValueError(f"{self.name}: a record without a key, from {record.meta.get('source', 'nowhere')}")
        key = self._keys.unique(record.key)
        columns = record_columns(record, self._columns, originals=self._originals)
        record = replace(record, columns=columns, error=masked(record.error))
        own = {
            name: texts
            for name, texts in record.named_columns.items()
            if not record.error and (not self._columns or name in self._columns)
        }
        if not self._images:
            record, text = _columns_alone(record, own), None
        if record.error:
            keep(self._failed, key, record)
            return
        if self._images and not text:
            synthetic = [texts for name, texts in own.items() if is_caption_column(name) and self._text_from_synthetic]
            text = next((text for texts in (*synthetic, record.captions) for text in texts if text.strip()), None)
        self._shard.write(key, record, text)
        self._good += 1
        self._captions.update({name: len(texts) for name, texts in own.items()})

    def __exit__(self, kind: type | None, *_: Any) -> None:
        try:
            if kind is None:
                for key, record in kept(self._failed):
                    self._shard.write(key, record, None)
                self._shard.close()
                self._file.finish()
                check_lock(self.folder)
                remove(_marker_path(self.folder, self.name))  # it vouches for the file that is replaced now
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
        except OSError:  # it may have its name, and not outlast a power failure
            remove(path)
            raise


def _columns_alone(record: Record, columns: Mapping[str, tuple[str, ...]]) -> Record:
    """The record with these columns, and of the rest only what tells which it is."""
    url = record.members.get("url.txt", b"").decode("utf-8", "replace").strip()
    fields = record_fields(record)
    meta = {**record.meta, **{name: fields[name] for name in ("uid", "sha256", "width", "height", "source")}}
    scores = {name: scores for name, scores in record.scores.items() if name in columns}
    return replace(
        record, image=None, columns=columns, scores=scores, members={}, meta=meta | ({"url": url} if url else {})
    )


def read_shards(folder: str | os.PathLike) -> list[str] | None:
    """The names of the shards that the run in the folder is to have; None where it does not say, as runs of 0.1 did not."""
    try:
        names = json_object(read_bytes(join(plain_path(folder), RUN))).get("shards")
    except (FileNotFoundError, ValueError):
        return None
    return names if isinstance(names, list) else None


def read_marker(folder: str | os.PathLike, name: str) -> dict[str, Any] | None:
    """The done-marker of a shard, or None where the shard is not done: no marker, or its file is missing or another size."""
    folder = plain_path(folder)
    marker = _marker(folder, name)
    if marker is None:
        return None
    there = entry(join(folder, marker["file"]))
    return marker if there and there.stamp["size"] == marker["size"] else None


def read_markers(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The done-markers of all shards that are done, by the shard's name: as `read_marker`, with one listing of the folder."""
    folder = plain_path(folder)
    sizes = {os.path.basename(file.path): file.stamp["size"] for file in listing(folder)}
    names = [name.removesuffix(MARKER) for name in sizes if name.endswith(MARKER)]
    read = in_order((is_remote(folder), partial(_marker, folder, name)) for name in names)
    return {
        name: marker for name, marker in zip(names, read) if marker and sizes.get(marker["file"]) == marker["size"]
    }


def _marker(folder: str, name: str) -> dict[str, Any] | None:
    try:
        marker = json.loads(read_bytes(_marker_path(folder, name)))
        return marker if isinstance(marker["file"], str) and isinstance(marker["size"], int) else None
    except StoreError:
        raise
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def dataset_features(
    columns: Sequence[str], *, similarity: bool = False, embeddings: Literal["npz", "pth.gz"] | None = None
) -> "datasets.Features":
    """Features for `datasets.load_dataset("webdataset", ..., features=...)`, of records with these columns.

    columns: all of them, negatives and tags, which stand in `json`, included.
    similarity: the captions were made with `--similarity`.
    embeddings: the member of reinforced records that is to be read, with `paug.json`; from `datasets` 4.7 on. Columns of
    embeddings that a record lacks are None.

    Without them `datasets` looks at the first five records of the first shard, and fails where these are not alike:
    in a shard of fewer than five good records, or where some records have no original caption. It also fails on all
    reinforced records, for views are lists of mixed depth, which Arrow has no type for.
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
