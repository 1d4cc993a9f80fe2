"""Join captions that were written without pictures (`ShardWriter(images=False)`) into the shards of their pictures."""

import hashlib
import json
import os
import posixpath
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from imagetext.apart import ANOTHER, check_apart
from imagetext.columns import check_column, is_other_column
from imagetext.fields import well_formed
from imagetext.hashes import sample_hash
from imagetext.keys import text_of
from imagetext.sample import Record, Shard
from imagetext.sets.room import room_for
from imagetext.shards import Format, ShardWriter, read_marker, read_markers
from imagetext.shown import Progress
from imagetext.sources import read_samples
from imagetext.stores import plain_path
from imagetext.writers.record_fields import has_captions

On = Literal["key", "uid", "sha256", "url", "path"]


@dataclass(frozen=True)
class JoinCounts:
    """How many records got captions, and how many did not.

    unlike: two names that do not match, as an example: that of the first picture without captions, and that of the
        first picture that there are captions for, in alphabetical order.
    """

    matched: int
    unmatched: int  # there are no captions for these
    duplicate: int  # there are several different captions for these
    drawable: int = field(default=0, compare=False)  # these have the column that texts are drawn from
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
) -> JoinCounts:
    """Write the shards again, with the columns that other records hold for their pictures.

    Records are matched by a name of the picture, never by their order. A record that has no captions afterwards
    becomes a failed record, with the reason. If a joined column holds synthetic captions, a record without synthetic
    captions fails, too, because trainers that draw them stop with an error at such a record; otherwise original
    captions are enough. Finished shards are not written again.

    columns: the SPEC or SPECs of the records that hold the columns; an empty list to only draw texts.
    on: the field that identifies a picture:
        `uid`: the key, unless a record has another uid;
        `key`: unique only within a shard;
        `sha256`: of the picture's bytes, or as recorded if there is no picture;
        `url`: in `url.txt` or `json`;
        `path`: the path of the picture's file, from a field, or as it was found in its table or folder.
        If several records with the same name have different captions, none of them is used. With `sha256` they are all
        of the same picture, and those of the smallest key are used.
    overwrite, drop_text_embeddings: see `imagetext.sets.room.room_for`.
    text_from: (column, p): `txt` is a caption of this column with probability p, otherwise the first original caption
        (webdataset only).
    begin: called once all arguments are checked, before anything is written.

    Raises ValueError for bad arguments and shards, ColumnClash as `room_for` does, StoreError if a store fails.
    """
    output, specs = plain_path(output), [columns] if isinstance(columns, str) else list(columns)
    if text_from and format != "webdataset":
        raise ValueError(f"--text-from: writes `txt`, which records in {format} do not have")
    if text_from and not 0 <= text_from[1] <= 1:
        raise ValueError(f"text_from: {text_from[1]} is no probability from 0 to 1")
    sources = read_samples(specs, distinct=False, check=False) if specs else []
    _check_output(output, format, [shard.path for shard in (*shards, *sources)])
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
    begin()
    to_do, counts = _shards_to_do(shards, output, settings)
    if not to_do:
        return JoinCounts(**counts, unlike=(None, None))
    room = partial(room_for, overwrite=overwrite, drop_text_embeddings=drop_text_embeddings)
    with tempfile.TemporaryDirectory() as folder, closing(_Index(folder, on, room, expected=bool(specs))) as index:
        index.add(sources)
        if specs and not index.names:
            raise ValueError(
                f"{', '.join(specs)}: no record has captions to join; their columns are called syn_text_… (or "
                "neg_text_…, tags_… or neg_tags_…, for texts that are no true captions), so rename yours"
            )
        for shard in Progress(to_do, desc="joining", unit="shard"):
            sample = sample_hash(shard.path)  # before reading, so that the next run notices a change during it
            with ShardWriter(
                output, shard.name, format=format, columns=index.names, input=_input(shard, settings)
            ) as writer:
                outcomes = _write_joined(shard, writer, index, text_from, seed)
                writer.info |= {"joined": dict(outcomes), "input_sample": sample}
            counts.update(outcomes)
        return JoinCounts(**counts, unlike=(index.first_unmatched, index.first_picture()))


def _check_output(output: str, format: Format, inputs: Sequence[str]) -> None:
    """Raise ValueError if the output folder is among the inputs, or holds shards in another format."""
    check_apart(output, inputs, f"{ANOTHER}: everything in the pictures' shards is copied there, too")
    formats = {marker.get("format", format) for marker in read_markers(output).values()}
    if others := sorted(formats - {format}):
        raise ValueError(
            f"output {output}: holds shards in the format {', '.join(others)}, which would stay beside those in "
            f"{format}; give another folder"
        )


def _write_joined(
    records: Iterable[Record], writer: ShardWriter, index: "_Index", text_from: tuple[str, float] | None, seed: int
) -> Counter[str]:
    """Write the records of a shard with their captions; return the counts for `JoinCounts`."""
    counts = _no_counts()
    for record in records:
        joined, outcome = index.joined(record)
        text = drawn_text(joined, *text_from, seed=seed) if text_from else None
        if text not in (None, joined.first_text()):
            joined = index.room(joined, (), new_text=True)
        writer.write(joined, text)
        counts[outcome] += 1
        if outcome == "unmatched":
            index.first_unmatched = index.first_unmatched or name_of(record, index.on)
        counts["drawable"] += text_from is not None and bool(joined.columns.get(text_from[0]))
    return counts


def _no_counts() -> Counter[str]:
    return Counter(matched=0, unmatched=0, duplicate=0, drawable=0)


def _shards_to_do(
    shards: Sequence[Shard], output: str, settings: Mapping[str, Any]
) -> tuple[list[Shard], Counter[str]]:
    """The shards that are not joined yet, and the counts of all finished shards together."""
    to_do, counts = [], _no_counts()
    for shard in shards:
        marker = read_marker(output, shard.name) or {}
        is_same_input = marker.get("input") == _input(shard, settings)
        if is_same_input and marker.get("input_sample") == sample_hash(shard.path):
            counts.update(marker["joined"])
        else:
            to_do.append(shard)
    return to_do, counts


def parse_text_from(text: str) -> tuple[str, float]:
    """Parse COLUMN:p for `join`. Raises ValueError for another form, and for a column of negatives or tags."""
    column, _, number = text.rpartition(":")
    try:
        probability = float(number)
    except ValueError:
        probability = -1.0
    if not 0 <= probability <= 1:
        raise ValueError(f"text_from: {text!r} is not COLUMN:p, with p from 0 to 1")
    if is_other_column(check_column(column)):
        raise ValueError(f"text_from: {column} holds no true captions, but trainers learn the text in `txt`")
    return column, probability


def drawn_text(record: Record, column: str, probability: float, *, seed: int = 0) -> str | None:
    """Draw a caption of the column (uniformly) with this probability, otherwise None. Depends on seed and key only.

    A record without an original text always gets one: a trainer that reads `txt` would skip its picture.
    """
    digest = hashlib.sha256(f"{seed}\0{record.key}".encode()).digest()
    texts = [text for text in record.columns.get(column, ()) if text.strip()]
    if not texts or (record.first_text() and int.from_bytes(digest[:8]) >= probability * 2**64):
        return None
    return texts[int.from_bytes(digest[8:16]) % len(texts)]


def name_of(record: Record, on: On) -> str | None:
    """The name of a record's picture in the field `on`; None if the record has none."""
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
    return well_formed(text_of(value)) if value not in (None, "") else None


class _Index:
    """The columns of many records, by the name of the picture, in a temporary SQLite file.

    room: `room_for` with its flags. expected: whether columns are joined at all.
    first_unmatched: the name of the first picture without captions.
    """

    def __init__(self, folder: str, on: On, room: Callable[..., Record], *, expected: bool):
        self.on: On = on
        self.room, self.expected = room, expected
        self.names: list[str] = []
        self.first_unmatched: str | None = None
        self.database = sqlite3.connect(os.path.join(folder, "columns.sqlite"), isolation_level=None)
        self.database.executescript("""
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
            CREATE TABLE captions (picture TEXT, name TEXT, key TEXT, texts TEXT, scores TEXT, differ INTEGER,
                                   PRIMARY KEY (picture, name)) WITHOUT ROWID;""")

    def add(self, shards: Sequence[Shard]) -> None:
        """Add the columns of records.

        A failed record is stored as a column without a name, whose text is the reason. A record that fails only
        because its picture cannot be read has its captions, which is all that is joined.
        """
        self.database.execute("BEGIN")
        for shard in Progress(shards, desc="reading captions", unit="shard"):
            for record in shard:
                if (picture := name_of(record, self.on)) is None:
                    continue
                columns = {} if record.error and not record.lacks_picture else _columns(record)
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
                (key, texts, scores) = (
                    SELECT * FROM (VALUES (key, texts, scores), (excluded.key, excluded.texts, excluded.scores))
                    ORDER BY 1, 2, 3 LIMIT 1)""",
            (picture, name, well_formed(key), texts, scores),
        )

    def joined(self, record: Record) -> tuple[Record, str]:
        """Return the record with its captions, and whether it is "matched", "unmatched" or "duplicate"."""
        if record.error:
            return record, "unmatched"
        picture = name_of(record, self.on)
        rows = self.database.execute(
            "SELECT name, texts, scores, differ FROM captions WHERE picture = ?", (picture,)
        ).fetchall()
        usable = [row for row in rows if row[0] and not (row[3] and self.on != "sha256")]
        columns = {name: tuple(json.loads(texts)) for name, texts, _, _ in usable}
        scores = {name: values for name, _, text, _ in usable if (values := json.loads(text))}
        if any(row[0] and row not in usable for row in rows):
            outcome = "duplicate"
        else:
            outcome = "matched" if columns else "unmatched"
        if columns:
            record = self.room(record, columns)
            record = replace(record, columns={**record.columns, **columns}, scores={**record.scores, **scores})
        if not has_captions(_columns(record), record.captions, self.names):
            cause = "several that differ"
            if outcome == "unmatched":
                cause = next((texts for name, texts, _, _ in rows if not name), "")
            reason = f"no captions of {self.on} {picture!r} to join" if self.expected else "no captions"
            return replace(record, error=f"{reason}: {cause}" if cause else reason), outcome
        return record, outcome

    def first_picture(self) -> str | None:
        """The name of the first picture that has captions, in alphabetical order."""
        row = self.database.execute("SELECT picture FROM captions WHERE name > '' LIMIT 1").fetchone()
        return row and row[0]

    def close(self) -> None:
        self.database.close()


def _columns(record: Record) -> dict[str, Sequence[str]]:
    """The columns, including negatives and tags, that have a text which is not blank."""
    return {name: texts for name, texts in record.named_columns.items() if any(map(str.strip, texts))}


def _input(shard: Shard, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"path": shard.path, **shard.stamp, "join": dict(settings)}
