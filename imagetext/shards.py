"""Writing records in shards: temporary name, fsync, rename, and a done-marker last."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from imagetext.formats import JsonlShard, ParquetShard, TarShard
from imagetext.keys import SeenKeys
from imagetext.sample import Record

if TYPE_CHECKING:
    import datasets

Format = Literal["webdataset", "jsonl", "parquet"]
SUFFIXES = {"webdataset": ".tar", "jsonl": ".jsonl", "parquet": ".parquet"}


class ShardWriter:
    """Writes one shard of records, as a context manager: nothing stands under its name until all of it does.

    The bytes of the shard depend on the records and options alone. Good records keep their order, failed ones come
    last. Leaving the block writes `NAME.SUFFIX`, then the marker `NAME.done.json` with the counts, the file's size and
    SHA-256, `input` (give the shard's path and stamp) and whatever was put into `info`. An exception leaves neither.

    columns: the run's caption columns, so that shards in which all failed have them too (JSONL, Parquet).
    text_from_synthetic: `txt` is the first synthetic caption instead of the first original one.
    base64_images: JSONL holds the pictures themselves instead of paths.

    `write` raises ValueError for a record that breaks the format's contract, naming its key.
    """

    def __init__(self, folder: str | os.PathLike, name: str, *, format: Format = "webdataset", columns: Sequence[str] = (),
                 text_from_synthetic: bool = False, base64_images: bool = False, input: Mapping[str, Any] | None = None):
        if format not in SUFFIXES:
            raise ValueError(f"format: {format!r} is none of {', '.join(SUFFIXES)}")
        self.folder, self.name, self.format = os.fspath(folder), name, format
        self.path = os.path.join(self.folder, name + SUFFIXES[format])
        self.info: dict[str, Any] = {}
        self._options = {"name": name, "columns": tuple(columns), "base64_images": base64_images}
        self._text_from_synthetic, self._input = text_from_synthetic, dict(input or {})
        self._keys, self._failed, self._good = SeenKeys(name), [], 0
        self._captions = Counter({column: 0 for column in columns})

    def __enter__(self) -> "ShardWriter":
        os.makedirs(self.folder, exist_ok=True)
        _remove(_marker_path(self.folder, self.name))  # it vouches for the file that is about to be replaced
        kind = {"webdataset": TarShard, "jsonl": JsonlShard, "parquet": ParquetShard}[self.format]
        self._shard = kind(self.path + ".tmp", **self._options)
        return self

    def write(self, record: Record) -> None:
        """Adds a record; a key seen before becomes `KEY~2`, with a warning."""
        if not record.sample.key:
            raise ValueError(f"{self.name}: a sample without a key, from {record.sample.meta.get('source', 'nowhere')}")
        key = self._keys.unique(record.sample.key)
        if record.error:
            self._failed.append((key, record))
            return
        text = next((caption for caption in record.sample.captions if caption.strip()), None)
        if self._text_from_synthetic:
            text = next((caption for captions in record.syn_text.values() for caption in captions if caption.strip()), text)
        self._shard.write(key, record, text)
        self._good += 1
        self._captions.update({name: len(texts) for name, texts in record.syn_text.items()})

    def __exit__(self, kind: type | None, *_: Any) -> None:
        try:
            if kind is None:
                for key, record in self._failed:
                    self._shard.write(key, record, None)
            self._shard.close(complete=kind is None)
            if kind is None:
                _replace(self.path + ".tmp", self.path)
                self._write_marker()
        finally:
            _remove(self.path + ".tmp")

    def _write_marker(self) -> None:
        with open(self.path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        marker = {
            "name": self.name, "file": os.path.basename(self.path), "format": self.format,
            "size": os.path.getsize(self.path), "sha256": sha256, "rows": self._good + len(self._failed),
            "failed": len(self._failed), "captions": dict(sorted(self._captions.items())), "input": self._input, **self.info,
        }
        path = _marker_path(self.folder, self.name)
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(marker, file, indent=1)
        _replace(path + ".tmp", path)


def read_marker(folder: str | os.PathLike, name: str) -> dict[str, Any] | None:
    """The done-marker of a shard, or None where the shard is not done: no marker, or its file is missing or another size."""
    try:
        with open(_marker_path(os.fspath(folder), name), encoding="utf-8") as file:
            marker = json.load(file)
        whole = os.path.getsize(os.path.join(folder, marker["file"])) == marker["size"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return marker if whole else None


def check_column(name: str) -> str:
    """The name of a column of synthetic captions, if it is one: `syn_text_` and then `a-z 0-9 _`.

    Raises ValueError otherwise, and for names with `emb` or `_captions` in them: the reference tools take those for
    embeddings and for captions of another kind.
    """
    if not re.fullmatch(r"syn_text_[a-z0-9_]+", name):
        raise ValueError(f"column: {name!r} is not syn_text_ followed by letters a-z, digits and underscores")
    for part in ("emb", "_captions"):
        if part in name:
            raise ValueError(f"column: {name!r} contains {part!r}, which the reference tools take for something else")
    return name


def dataset_features(columns: Sequence[str], *, similarity: bool = False) -> "datasets.Features":
    """Features for `datasets.load_dataset("webdataset", ..., features=...)`, of records with these caption columns.

    similarity: the captions were made with `--similarity`.

    Without them `datasets` looks at the first five records of the first shard, and fails where these are not alike:
    in a shard of fewer than five good records, or where some records have no original caption.
    """
    from datasets import Features, Image, List, Value
    texts = List(Value("string"))
    scores = {"logprob": List(Value("float64")), "truncated": List(Value("bool"))}
    if similarity:
        scores["similarity"] = List(Value("float64"))
    return Features({
        "jpg": Image(), "txt": Value("string"), "syn.json": {column: texts for column in columns},
        "json": {
            "uid": Value("string"), "sha256": Value("string"), "width": Value("int64"), "height": Value("int64"),
            "captions": texts, "error": Value("string"), "source": Value("string"),
            "caption_scores": {column: scores for column in columns},
        },
        "__key__": Value("string"), "__url__": Value("string"),
    })


def _marker_path(folder: str, name: str) -> str:
    return os.path.join(folder, f"{name}.done.json")


def _replace(temporary: str, path: str) -> None:
    """Rename, with the data on disk before and the name after."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
