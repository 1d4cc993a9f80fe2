"""The first pass: how high a record must stand, settled over the whole set.

every caption judged -> the best so many of each text -> the best so many records of each class -> the best share of all

All goes by (worth, tie): the greater worth first, then the smaller hash of the key, so that order and number of processes do not
matter. The set's numbers stand in an SQLite file that sorts on disk: a million records of five captions take about 0.2 GB where
temporary files are and 40 MB of memory, three minutes of one core to judge and 40 seconds to settle (a tenth of them was measured). What
is settled is a threshold, and a limit of 24 bytes for each text and class of which there are too many.
"""

import io
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, Self

import numpy as np

from generate.select.config import SelectConfig
from generate.select.judge import Judge, Lacking, class_of, same_text, tie_of
from imagetext.hashes import name_hash
from imagetext.picture_files import one_error
from imagetext.sample import Record, Shard
from imagetext.shown import Progress
from imagetext.stores import StoreError

BINS = 60  # of the picture of how worth is spread
CAPTIONS_AT_ONCE = 10_000  # rows that are put into the file together
KEPT, LACKING, UNUSABLE = "kept", "lacking", "unusable"
FATES = (
    KEPT,
    "top",
    "max-per-class",
    "max-per-caption",
    "where",
    LACKING,
    UNUSABLE,
)  # a record stays, or what it falls by


class Limit(NamedTuple):
    """The least of what stays: its worth, and its tie."""

    score: float
    tie: int

    def passes(self, score: float, tie: int) -> bool:
        return score > self.score or score == self.score and tie <= self.tie


class Limits:
    """Limits by a name's hash, of those names that have one; 24 bytes each. Arrays (N,): int64 hashes, which rise, float64, int64."""

    def __init__(self, names: np.ndarray, scores: np.ndarray, ties: np.ndarray):
        self.names, self.scores, self.ties = names, scores, ties

    @classmethod
    def of(cls, rows: Iterator[tuple[int, float, int]]) -> Self:
        """Those of rows (hash, score, tie), in the order of their hashes."""
        kind = np.dtype([("name", "<i8"), ("score", "<f8"), ("tie", "<i8")])
        found = np.fromiter(rows, kind)
        return cls(*(np.ascontiguousarray(found[name]) for name in kind.names or ()))

    def passes(self, name: int, score: float, tie: int) -> bool:
        at = int(np.searchsorted(self.names, name))
        if at == len(self.names) or self.names[at] != name:
            return True
        return Limit(float(self.scores[at]), int(self.ties[at])).passes(score, tie)


NONE = Limits(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Settled:
    """What the first pass has settled; by default, that all may stay."""

    threshold: Limit | None = None
    of_captions: Limits = field(default=NONE, repr=False)
    of_classes: Limits = field(default=NONE, repr=False)

    def packed(self) -> bytes:
        """The limits as a file; the same bytes for the same limits."""
        file = io.BytesIO()
        np.savez(
            file,
            **{
                f"{kind}_{part}": getattr(limits, part)
                for kind, limits in (("captions", self.of_captions), ("classes", self.of_classes))
                for part in ("names", "scores", "ties")
            },
        )
        return file.getvalue()

    @classmethod
    def unpacked(cls, data: bytes, threshold: Sequence[Any] | None) -> Self:
        """What `packed` gave, and the threshold."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            limits = [
                Limits(*(arrays[f"{kind}_{part}"] for part in ("names", "scores", "ties")))
                for kind in ("captions", "classes")
            ]
        return cls(Limit(*threshold) if threshold else None, *limits)


@dataclass(frozen=True)
class Spread:
    """How the records' worth is spread, those that no caption gives any left out.

    records: of the whole input. fates: how many records have which of FATES. edges (BINS + 1,); counts (BINS, len(FATES)).
    """

    records: int
    fates: dict[str, int]
    edges: np.ndarray
    counts: np.ndarray


def settle(shards: Sequence[Shard], config: SelectConfig) -> tuple[Settled, Spread]:
    """Reads all records once. Raises: ValueError, naming each shard that cannot be read; StoreError where a store fails."""
    with _tally() as tally:
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
        return tally.settled(config), tally.spread()


@contextmanager
def _tally() -> Iterator["_Tally"]:
    with tempfile.TemporaryDirectory() as folder:
        tally = _Tally(os.path.join(folder, "scores.sqlite"))
        try:
            yield tally
        finally:
            tally.database.close()


class _Tally:
    """What the records are worth: `best` of the captions that still may stay, `shown` where none may; `fate` is a place in FATES."""

    def __init__(self, path: str):
        self.database, self.records = sqlite3.connect(path, isolation_level=None), 0
        self.database.executescript("""
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -32000;
            CREATE TABLE records (id INTEGER PRIMARY KEY, tie INTEGER, class INTEGER, best REAL, shown REAL, fate INTEGER);
            CREATE TABLE captions (record INTEGER, tie INTEGER, text INTEGER, score REAL);""")

    def add(self, shard: Shard, config: SelectConfig) -> None:
        judge, records = Judge(config), iter(shard)
        while some := list(islice(records, CAPTIONS_AT_ONCE // 10)):
            self.database.execute("BEGIN")
            for record in some:
                self._add(record, shard.name, judge)
            self.database.execute("COMMIT")

    def _add(self, record: Record, shard: str, judge: Judge) -> None:
        number, tie = self.records, tie_of(record, shard)
        self.records += 1
        try:
            judged = judge.captions(record)
        except ValueError as error:
            fate = LACKING if isinstance(error, Lacking) else UNUSABLE
            self._insert("records", number, tie, None, None, None, FATES.index(fate))
            return
        passing = [one for one in judged if not one.reason]
        scored = [one.score for one in judged if not one.reason.startswith(("by", "is empty"))]
        best = max((one.score for one in passing), default=None)
        shown = max(scored, default=None) if best is None else best
        fate = FATES.index(KEPT if passing else "where")
        name = class_of(record) if judge.config.max_per_class else None
        of_class = None if name is None else class_hash(name)
        self._insert("records", number, tie, of_class, best, shown, fate)
        if judge.config.max_per_caption:
            for text, score in best_by_text(passing).items():
                self._insert("captions", number, tie, text, score)

    def _insert(self, table: str, *values: Any) -> None:
        self.database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)

    def settled(self, config: SelectConfig) -> Settled:
        of_captions, of_classes, threshold = NONE, NONE, None
        if config.max_per_caption:
            of_captions = self._limits("text", "score", "captions", config.max_per_caption)
            self.database.execute("CREATE TABLE left (record INTEGER PRIMARY KEY, best REAL)")
            self.database.create_function("passes", 3, of_captions.passes, deterministic=True)
            self.database.execute(
                "INSERT INTO left SELECT record, MAX(score) FROM captions WHERE passes(text, score, tie) GROUP BY record"
            )
            self.database.execute("UPDATE records SET best = (SELECT best FROM left WHERE record = id) WHERE fate = 0")
            self._fate("max-per-caption", "best IS NULL")
        if config.max_per_class:
            of_classes = self._limits("class", "best", "records WHERE fate = 0", config.max_per_class)
            self.database.create_function("of_class", 3, of_classes.passes, deterministic=True)
            self._fate("max-per-class", "NOT of_class(class, best, tie)")
        if config.top:
            threshold = self._threshold(config.top)
        if threshold:
            self._fate("top", "best < ?1 OR best = ?1 AND tie > ?2", *threshold)
        return Settled(threshold, of_captions, of_classes)

    def _threshold(self, top: float) -> Limit | None:
        """The last of the best records that may stay; None where no more than these are left. ValueError where none may."""
        count = round(top * self.records)
        if not count:
            raise ValueError(f"--top {top:g}: of {self.records:,} records that is none")
        rows = self.database.execute(
            "SELECT best, tie FROM records WHERE fate = 0 ORDER BY best DESC, tie LIMIT 2 OFFSET ?", (count - 1,)
        ).fetchall()
        return Limit(*rows[0]) if len(rows) > 1 else None

    def _limits(self, name: str, score: str, table: str, count: int) -> Limits:
        """The `count`th best of each name that stands more often."""
        rows = self.database.execute(
            f"""SELECT {name}, {score}, tie FROM
                (SELECT {name}, {score}, tie, ROW_NUMBER() OVER best AS place, LEAD(tie) OVER best AS next FROM {table}
                 WINDOW best AS (PARTITION BY {name} ORDER BY {score} DESC, tie))
                WHERE place = ? AND next IS NOT NULL ORDER BY {name}""",
            (count,),
        )
        return Limits.of(rows)

    def _fate(self, fate: str, where: str, *values: Any) -> None:
        self.database.execute(f"UPDATE records SET fate = {FATES.index(fate)} WHERE fate = 0 AND ({where})", values)

    def spread(self) -> Spread:
        fates = dict(self.database.execute("SELECT fate, COUNT(*) FROM records GROUP BY fate"))
        self.database.execute("UPDATE records SET shown = COALESCE(best, shown)")
        low, high = self.database.execute("SELECT MIN(shown), MAX(shown) FROM records").fetchone()
        low, high = (0.0, 1.0) if low is None else (low, high) if low < high else (low - 0.5, low + 0.5)
        counts = np.zeros((BINS, len(FATES)), int)
        rows = self.database.execute(
            "SELECT MIN(?3 - 1, CAST(?3 * ((shown - ?1) / (?2 - ?1)) AS INTEGER)) AS bin, fate, COUNT(*) FROM records "
            "WHERE shown IS NOT NULL GROUP BY bin, fate",
            (low, high, BINS),
        )
        for bin, fate, count in rows:
            counts[bin, fate] = count
        named = {name: fates.get(at, 0) for at, name in enumerate(FATES)}
        return Spread(self.records, named, np.linspace(low, high, BINS + 1), counts)


def best_by_text(passing: Sequence[Any]) -> dict[int, float]:
    """Of a record's captions, the worth of the best of each text."""
    best: dict[int, float] = {}
    for one in passing:
        text = same_text(one.text)
        best[text] = max(one.score, best.get(text, -np.inf))
    return best


def class_hash(name: str) -> int:
    """63 bits of a class's name."""
    return name_hash(name, "class") >> 1
