"""The first pass: settles, over the whole set, which score a record needs to be kept.

judge every caption -> the best captions of each text -> the best records of each class -> the best share of all

Captions and records are ordered by (score, tie): a greater score comes first, then a smaller hash of the key. So
neither the order of the input nor the number of processes matters. The scores of the set are sorted on disk, in an
SQLite file. A million records with five captions take about 0.2 GB of temporary files and 40 MB of memory; one core
judges them in three minutes and settles the limits in 40 seconds (measured with a tenth of that). The results are a
threshold, and a limit of 24 bytes for each text and class that occurs too often.
"""

import io
import math
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ValidationError

from generate.select.config import SelectConfig
from generate.select.judge import Judge, JudgedCaption, Lacking, class_of, text_hash, tie_of
from imagetext.hashes import name_hash
from imagetext.problems import one_error
from imagetext.sample import Record, Shard
from imagetext.shown import Progress
from imagetext.stores import StoreError

BINS = 60  # bars of the histogram of scores
RECORDS_AT_ONCE = 1_000  # records that are put into the SQLite file in one transaction
KEPT, LACKING, UNUSABLE = "kept", "lacking", "unusable"
# What becomes of a record: it is kept, or the condition or limit that excludes it.
FATES = (KEPT, "top", "max-per-class", "max-per-caption", "where", LACKING, UNUSABLE)


class Limit(NamedTuple):
    """The last record or caption that is kept: its score and tie."""

    score: float
    tie: int

    def passes(self, score: float, tie: int) -> bool:
        return score > self.score or score == self.score and tie <= self.tie


class LimitTable:
    """A Limit for each name that has one, in 24 bytes.

    names: int64 hashes, rising; scores: float64; ties: int64; each (N,).
    """

    def __init__(self, names: np.ndarray, scores: np.ndarray, ties: np.ndarray):
        self.names, self.scores, self.ties = names, scores, ties

    @classmethod
    def of(cls, rows: Iterator[tuple[int, float, int]]) -> Self:
        """Return the table of rows (hash, score, tie), which are in the order of their hashes."""
        dtype = np.dtype([("name", "<i8"), ("score", "<f8"), ("tie", "<i8")])
        table = np.fromiter(rows, dtype)
        return cls(*(np.ascontiguousarray(table[name]) for name in dtype.names or ()))

    def passes(self, name: int, score: float, tie: int) -> bool:
        index = int(np.searchsorted(self.names, name))
        if index == len(self.names) or self.names[index] != name:
            return True
        return Limit(float(self.scores[index]), int(self.ties[index])).passes(score, tie)


class Selection(BaseModel):
    """What `run.json` says that a selection has settled.

    columns: names of the columns that the output may have. over: a hash of each shard's input, by the shard's name.
    threshold: of the best captions' scores, with --top. limits_sha256: of the file of limits, "" if there is none.
    """

    columns: list[str]
    over: dict[str, str]
    threshold: Limit | None
    limits_sha256: str


def read_selection(value: Any, where: str) -> Selection:
    """Return the selection in a `run.json`. Raises: ValueError that begins with `where` if we do not write such."""
    try:
        return Selection.model_validate(value)
    except ValidationError as error:
        detail = error.errors()[0]
        name = ".".join(map(str, ("select", *detail["loc"])))
        raise ValueError(f"{where}: {name}: {detail['msg']}; use --overwrite to start anew") from error


NO_LIMITS = LimitTable(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))


@dataclass(frozen=True)
class SettledLimits:
    """What the first pass has settled; by default, nothing is excluded."""

    threshold: Limit | None = None
    of_captions: LimitTable = field(default=NO_LIMITS, repr=False)
    of_classes: LimitTable = field(default=NO_LIMITS, repr=False)

    def packed(self) -> bytes:
        """Return the limits as the bytes of a file; equal limits give equal bytes."""
        file = io.BytesIO()
        np.savez(
            file,
            **{
                f"{kind}_{part}": getattr(table, part)
                for kind, table in (("captions", self.of_captions), ("classes", self.of_classes))
                for part in ("names", "scores", "ties")
            },
        )
        return file.getvalue()

    @classmethod
    def unpacked(cls, data: bytes, threshold: Limit | None) -> Self:
        """Return the limits of `packed` bytes, with the threshold."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            tables = [
                LimitTable(*(arrays[f"{kind}_{part}"] for part in ("names", "scores", "ties")))
                for kind in ("captions", "classes")
            ]
        return cls(threshold, *tables)


@dataclass(frozen=True)
class ScoreHistogram:
    """The distribution of the records' best scores; records without a score are left out.

    records: number of all records of the input. fates: how many records have each of FATES.
    edges (BINS + 1,); counts (BINS, len(FATES)).
    """

    records: int
    fates: dict[str, int]
    edges: np.ndarray
    counts: np.ndarray


def settle(shards: Sequence[Shard], config: SelectConfig) -> tuple[SettledLimits, ScoreHistogram]:
    """Read all records once, and settle threshold and limits.

    Raises: ValueError that names each shard that cannot be read; StoreError where a store fails.
    """
    with _open_tally() as tally:
        problems: list[str | Exception] = []
        for shard in Progress(shards, desc="reading scores", unit="shard", delay=2):
            try:
                tally.add(shard, config)
            except StoreError:
                raise
            except (OSError, ValueError) as error:
                problems.append(error)
        if problems:
            raise one_error(problems)
        return tally.settled(config), tally.histogram()


@contextmanager
def _open_tally() -> Iterator["_Tally"]:
    with tempfile.TemporaryDirectory() as folder:
        tally = _Tally(os.path.join(folder, "scores.sqlite"))
        try:
            yield tally
        finally:
            tally.database.close()


class _Tally:
    """The scores of all records, in an SQLite file.

    best: the best score among captions that may still be kept. fate: an index of FATES.
    shown: the best of all scores, where no caption may be kept.
    """

    def __init__(self, path: str):
        self.database, self.records = sqlite3.connect(path, isolation_level=None), 0
        self.database.executescript("""
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -32000;
            CREATE TABLE records
                (id INTEGER PRIMARY KEY, tie INTEGER, class INTEGER, best REAL, shown REAL, fate INTEGER);
            CREATE TABLE captions (record INTEGER, tie INTEGER, text INTEGER, score REAL);""")

    def add(self, shard: Shard, config: SelectConfig) -> None:
        judge, records = Judge(config), iter(shard)
        while group := list(islice(records, RECORDS_AT_ONCE)):
            self.database.execute("BEGIN")
            for record in group:
                self._add(record, shard.name, judge)
            self.database.execute("COMMIT")

    def _add(self, record: Record, shard: str, judge: Judge) -> None:
        number, tie = self.records, tie_of(record, shard)
        self.records += 1
        try:
            judged = judge.captions(record)
        except ValueError as error:
            fate = FATES.index(LACKING if isinstance(error, Lacking) else UNUSABLE)
            self._insert("records", (number, tie, None, None, None, fate))
            return
        passing = [caption for caption in judged if not caption.reason]
        scored = [caption for caption in judged if not caption.reason.startswith(("by", "is empty"))]
        best, shown = (
            max((caption.score for caption in captions if not math.isnan(caption.score)), default=None)
            for captions in (passing, scored)
        )
        fate = FATES.index(KEPT if passing else "where")
        name = class_of(record) if judge.config.max_per_class else None
        class_id = None if name is None else class_hash(name)
        self._insert("records", (number, tie, class_id, best, shown, fate))
        if judge.config.max_per_caption:
            for text, score in best_by_text(passing).items():
                self._insert("captions", (number, tie, text, score))

    def _insert(self, table: str, values: Sequence[Any]) -> None:
        self.database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)

    def settled(self, config: SelectConfig) -> SettledLimits:
        of_captions, of_classes, threshold = NO_LIMITS, NO_LIMITS, None
        if config.max_per_caption:
            of_captions = self._limits("text", "score", "captions", count=config.max_per_caption)
            self.database.execute("CREATE TABLE left (record INTEGER PRIMARY KEY, best REAL)")
            self.database.create_function("passes", 3, of_captions.passes, deterministic=True)
            self.database.execute(
                "INSERT INTO left "
                "SELECT record, MAX(score) FROM captions WHERE passes(text, score, tie) GROUP BY record"
            )
            self.database.execute("UPDATE records SET best = (SELECT best FROM left WHERE record = id) WHERE fate = 0")
            self._set_fate("max-per-caption", "best IS NULL")
        if config.max_per_class:
            of_classes = self._limits("class", "best", "records WHERE fate = 0", count=config.max_per_class)
            self.database.create_function("of_class", 3, of_classes.passes, deterministic=True)
            self._set_fate("max-per-class", "NOT of_class(class, best, tie)")
        if config.top:
            threshold = self._threshold(config.top)
        if threshold:
            self._set_fate("top", "best < ?1 OR best = ?1 AND tie > ?2", *threshold)
        return SettledLimits(threshold, of_captions, of_classes)

    def _threshold(self, top: float) -> Limit | None:
        """Return the last record among the best share of all records; None where no more than these are left.

        Raises: ValueError where the share is less than one record.
        """
        count = round(top * self.records)
        if not count:
            raise ValueError(f"--top {top:g}: keeps none of {self.records:,} records; give a larger share")
        rows = self.database.execute(
            "SELECT best, tie FROM records WHERE fate = 0 ORDER BY best DESC, tie LIMIT 2 OFFSET ?", (count - 1,)
        ).fetchall()
        return Limit(*rows[0]) if len(rows) > 1 else None

    def _limits(self, name: str, score: str, table: str, *, count: int) -> LimitTable:
        """Return the limit of each name that occurs more than `count` times: its `count`th best row."""
        rows = self.database.execute(
            f"""SELECT {name}, {score}, tie FROM
                (SELECT {name}, {score}, tie, ROW_NUMBER() OVER best AS place, LEAD(tie) OVER best AS next FROM {table}
                 WINDOW best AS (PARTITION BY {name} ORDER BY {score} DESC, tie))
                WHERE place = ? AND next IS NOT NULL ORDER BY {name}""",
            (count,),
        )
        return LimitTable.of(rows)

    def _set_fate(self, fate: str, where: str, *values: Any) -> None:
        """Set the fate of the records that are still kept and meet the SQL condition."""
        self.database.execute(f"UPDATE records SET fate = {FATES.index(fate)} WHERE fate = 0 AND ({where})", values)

    def histogram(self) -> ScoreHistogram:
        fates = dict(self.database.execute("SELECT fate, COUNT(*) FROM records GROUP BY fate"))
        self.database.execute("UPDATE records SET shown = COALESCE(best, shown)")
        low, high = self.database.execute("SELECT MIN(shown), MAX(shown) FROM records").fetchone()
        if low is None:
            low, high = 0.0, 1.0
        elif low == high:
            low, high = low - 0.5, high + 0.5
        counts = np.zeros((BINS, len(FATES)), int)
        rows = self.database.execute(
            "SELECT MIN(?3 - 1, CAST(?3 * ((shown - ?1) / (?2 - ?1)) AS INTEGER)) AS bin, fate, COUNT(*) FROM records "
            "WHERE shown IS NOT NULL GROUP BY bin, fate",
            (low, high, BINS),
        )
        for bin, fate, count in rows:
            counts[bin, fate] = count
        fate_counts = {name: fates.get(index, 0) for index, name in enumerate(FATES)}
        return ScoreHistogram(self.records, fate_counts, np.linspace(low, high, BINS + 1), counts=counts)


def best_by_text(passing: Sequence[JudgedCaption]) -> dict[int, float]:
    """Return the best score of each text among a record's captions, by `text_hash`."""
    best: dict[int, float] = {}
    for caption in passing:
        text = text_hash(caption.text)
        best[text] = max(caption.score, best.get(text, -np.inf))
    return best


def class_hash(name: str) -> int:
    """Return a 63-bit hash of a class's name."""
    return name_hash(name, "class") >> 1
