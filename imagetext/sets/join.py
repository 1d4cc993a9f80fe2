"""Captions that were written apart (`ShardWriter(images=False)`) -> the shards of their pictures, matched by what names them."""

import hashlib
import json
import os
import posixpath
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from imagetext.apart import ANOTHER, check_apart
from imagetext.columns import check_column, is_other_column
from imagetext.hashes import sample_hash
from imagetext.readers.row_records import well_formed
from imagetext.sample import Record, Shard
from imagetext.sets.room import room_for
from imagetext.shards import Format, ShardWriter, read_marker
from imagetext.shown import Progress
from imagetext.sources import read_samples
from imagetext.stores import plain_path
from imagetext.writers.record_fields import has_captions

On = Literal["key", "uid", "sha256", "url", "path"]


@dataclass(frozen=True)
class Joined:
    """How many records got captions; how many got none, for there are none; and how many, for there are different ones.

    unlike: what names the first picture without captions, and the first captions of all, as they were read to be joined.
    """

    matched: int
    unmatched: int
    duplicate: int
    unlike: tuple[str | None, str | None] = field(default=(None, None), compare=False)


def join(
    shards: Sequence[Shard],
    columns: str | Sequence[str],
    output: str | os.PathLike,
    *,
    on: On = "uid",
    format: Format = "webdataset",
    overwrite: bool = False,
    drop_text_embeddings: bool = False,
    text_from: tuple[str, float] | None = None,
    seed: int = 0,
    begin: Callable[[], None] = lambda: None,
) -> Joined:
    """Writes the shards anew with the columns that other records have for their pictures, never by order.

    A record that is left without any becomes a failed one, with the reason; so does one without synthetic captions where some of
    those columns hold such, for trainers that draw them end at it. Where none does, original captions are enough. Shards that are done are not done again.

    columns: the SPEC or SPECs of those records; none to draw texts only.
    on: what names a picture. `uid` is the key unless a record says otherwise; a `key` is unique in its shard only; `sha256` is
        that of the picture's bytes, or as recorded where there is none; `url` stands in `url.txt` or `json`; `path` is that of
        the picture's file, as a field says it, or as it was found in its table or folder. Captions of one
        name that differ are taken for none, save on `sha256`, where all are the same picture's: those of the least key are.
    overwrite, drop_text_embeddings: see `imagetext.sets.room.room_for`.
    text_from: (column, p): `txt` is a caption of this column with probability p, else the first original (webdataset).
    begin: is called before anything is written, once the arguments are found good.

    Raises ValueError for bad arguments and shards, ColumnClash as `room_for` does, StoreError where a store fails.
    """
    output, specs = plain_path(output), [columns] if isinstance(columns, str) else list(columns)
    if text_from and (format != "webdataset" or not 0 <= text_from[1] <= 1):
        raise ValueError(f"text_from: {text_from}: a probability, and only webdataset has a `txt`")
    sources = read_samples(specs, distinct=False, check=False) if specs else []
    check_apart(
        output,
        [shard.path for shard in (*shards, *sources)],
        f"{ANOTHER}: all that the pictures' shards hold goes there, too",
    )
    stamps = [[shard.name, dict(shard.stamp), sample_hash(shard.path)] for shard in sources]
    settings = {
        "columns": hashlib.sha256(json.dumps(stamps, sort_keys=True).encode()).hexdigest(),
        "on": on,
        "format": format,
        "overwrite": overwrite,
        "drop_text_embeddings": drop_text_embeddings,
        "text_from": list(text_from or ()),
        "seed": seed,
    }
    counts: Counter[str] = Counter()
    to_do, lonely, first = [], None, None
    begin()
    for shard in shards:
        marker = read_marker(output, shard.name)
        if (
            marker
            and marker.get("input") == _input(shard, settings)
            and marker.get("input_sample") == sample_hash(shard.path)
        ):
            counts.update(marker["joined"])
        else:
            to_do.append(shard)
    with tempfile.TemporaryDirectory() as folder:
        index = _Index(os.path.join(folder, "columns.sqlite"), on)
        if to_do:
            index.add(sources)
            first = index.first()
        for shard in Progress(to_do, desc="joining", unit="shard", disable=not to_do):
            sample = sample_hash(shard.path)  # before it is read: what comes meanwhile is noticed the next time
            with ShardWriter(
                output, shard.name, format=format, columns=index.names, input=_input(shard, settings)
            ) as writer:
                outcomes: Counter[str] = Counter(matched=0, unmatched=0, duplicate=0)
                for apart in shard:
                    record, outcome = index.joined(apart, overwrite, drop_text_embeddings, expected=bool(specs))
                    writer.write(record, drawn_text(record, *text_from, seed=seed) if text_from else None)
                    outcomes[outcome] += 1
                    if outcome == "unmatched":
                        lonely = lonely or name_of(apart, on)
                writer.info |= {"joined": dict(outcomes), "input_sample": sample}
            counts.update(outcomes)
        index.close()
    return Joined(counts["matched"], counts["unmatched"], counts["duplicate"], (lonely, first))


def parse_text_from(text: str) -> tuple[str, float]:
    """COLUMN:p, as `join` takes it; ValueError where it is not that, or its texts are no true captions."""
    column, _, number = text.rpartition(":")
    try:
        probability = float(number)
    except ValueError:
        probability = -1.0
    if not 0 <= probability <= 1:
        raise ValueError(f"text_from: {text!r} is not COLUMN:p, with p from 0 to 1")
    if is_other_column(check_column(column)):
        raise ValueError(f"text_from: {column} holds no true captions, and `txt` is what trainers learn")
    return column, probability


def drawn_text(record: Record, column: str, probability: float, *, seed: int = 0) -> str | None:
    """A caption of the column, each as likely, with this probability, else None; a function of the seed and the key alone."""
    digest = hashlib.sha256(f"{seed}\0{record.key}".encode()).digest()
    texts = [text for text in record.columns.get(column, ()) if text.strip()]
    if not texts or int.from_bytes(digest[:8]) >= probability * 2**64:
        return None
    return texts[int.from_bytes(digest[8:16]) % len(texts)]


def name_of(record: Record, on: On) -> str | None:
    """The name of a record's picture in the field that sets are joined on; None where the record has none."""
    if on == "key":
        return well_formed(record.key)
    if on == "sha256" and record.image is not None:
        return hashlib.sha256(record.image).hexdigest()
    value = record.meta.get(on)
    if on == "url" and "url.txt" in record.members:
        value = record.members["url.txt"].decode("utf-8", "replace").strip()
    if on == "path":
        value = record.meta.get("path") or record.meta.get("source")
        value = posixpath.normpath(value) if isinstance(value, str) else None
    return well_formed(str(value)) if value not in (None, "") else None


class _Index:
    """The columns of many records by what names a picture, in a file that goes when all is done."""

    def __init__(self, path: str, on: On):
        self.on: On = on
        self.names: list[str] = []
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.executescript("""
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
            CREATE TABLE captions (picture TEXT, name TEXT, key TEXT, texts TEXT, scores TEXT, differ INTEGER,
                                   PRIMARY KEY (picture, name)) WITHOUT ROWID;""")

    def add(self, shards: Sequence[Shard]) -> None:
        """Adds the columns of records; one that failed is a column without a name, whose text is the reason."""
        self.database.execute("BEGIN")
        for shard in Progress(shards, desc="reading captions", unit="shard"):
            for record in shard:
                if (picture := name_of(record, self.on)) is None:
                    continue
                columns = {} if record.error else _columns(record)
                rows = [
                    (name, json.dumps(texts), json.dumps(record.scores.get(name))) for name, texts in columns.items()
                ]
                for row in rows or [("", record.error or "no captions", "null")]:
                    self._insert(picture, record.key, *row)
        self.database.execute("COMMIT")
        names = self.database.execute("SELECT DISTINCT name FROM captions WHERE name > '' ORDER BY name")
        self.names = [name for (name,) in names]

    def _insert(self, picture: str, key: str, name: str, texts: str, scores: str) -> None:
        self.database.execute(
            """
            INSERT INTO captions VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT DO UPDATE SET
                differ = differ OR texts != excluded.texts,
                (key, texts, scores) = (SELECT * FROM (VALUES (key, texts, scores), (excluded.key, excluded.texts, excluded.scores))
                                        ORDER BY 1, 2, 3 LIMIT 1)""",
            (picture, name, well_formed(key), texts, scores),
        )

    def joined(
        self, record: Record, overwrite: bool, drop_text_embeddings: bool, expected: bool
    ) -> tuple[Record, str]:
        """The record with its captions, and whether it is matched, unmatched or duplicate."""
        if record.error:
            return record, "unmatched"
        picture = name_of(record, self.on)
        rows = self.database.execute(
            "SELECT name, texts, scores, differ FROM captions WHERE picture = ?", (picture,)
        ).fetchall()
        usable = [row for row in rows if row[0] and not (row[3] and self.on != "sha256")]
        columns = {name: tuple(json.loads(texts)) for name, texts, _, _ in usable}
        scores = {name: values for name, _, text, _ in usable if (values := json.loads(text))}
        outcome = (
            "duplicate" if any(row[0] and row not in usable for row in rows) else "matched" if columns else "unmatched"
        )
        if columns:
            record = room_for(record, columns, overwrite=overwrite, drop_text_embeddings=drop_text_embeddings)
            record = replace(record, columns={**record.columns, **columns}, scores={**record.scores, **scores})
        if not has_captions(_columns(record), record.captions, self.names):
            why = (
                next((texts for name, texts, _, _ in rows if not name), "")
                if outcome == "unmatched"
                else "several that differ"
            )
            reason = f"no captions of {self.on} {picture!r} to join" if expected else "no captions"
            return replace(record, error=f"{reason}: {why}" if why else reason), outcome
        return record, outcome

    def first(self) -> str | None:
        """The first, in the order of names, of the pictures that have captions here."""
        row = self.database.execute("SELECT picture FROM captions LIMIT 1").fetchone()
        return row and row[0]

    def close(self) -> None:
        self.database.close()


def _columns(record: Record) -> dict[str, Sequence[str]]:
    """The columns, negatives and tags included, that have a text which is not empty."""
    return {name: texts for name, texts in record.named_columns.items() if any(map(str.strip, texts))}


def _input(shard: Shard, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"path": shard.path, **shard.stamp, "join": dict(settings)}
