"""The first pass over the inputs: which row has how many captions of which column, and what all columns have in common.

N: rows of all inputs, in order   R: rows of one piece   C: columns, the references last
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from diversity.columns import HUMAN
from diversity.inputs.join import Joined, join, joined_by_number, number_of
from diversity.inputs.records import Piece, captions_of
from diversity.inputs.specs import Source, text_columns
from imagetext.columns import is_caption_column
from imagetext.hashes import name_hash
from imagetext.sample import Record

NO_REFERENCES = "none"


class Asked(NamedTuple):
    """The columns that are asked for."""

    names: tuple[str, ...]  # (): every syn_text_* column and those in `files`
    files: tuple[str, ...]  # columns named after files
    given: str | None  # references; None: the originals, where there are any

    @property
    def references(self) -> str | None:
        """The column to look for as references."""
        if self.given is None:
            return None if HUMAN in (*self.names, *self.files) else HUMAN
        return None if self.given == NO_REFERENCES else self.given

    def of(self, row: Record) -> list[str]:
        """The columns of a row, without the references'."""
        references = self.references
        return [
            name
            for name in self.names or (*row.columns, *row.meta)
            if name != references and (self.names or is_caption_column(name) or name in self.files)
        ]


class Index(NamedTuple):
    """The rows of one piece: 16 bytes of each, and 4 for each column."""

    keys: np.ndarray  # (R,) uint64, hashes
    numbers: np.ndarray  # (R,) uint64, hashes of the numbers at the end of keys, 0 where there is none
    digits: bool  # whether all keys are digits alone
    counts: dict[str, np.ndarray]  # column -> (R,) uint32 captions
    failed: int  # rows without captions because of an error
    error: str  # the first of these
    problem: str  # why the file could not be read to its end


class Compared(NamedTuple):
    """The columns that are compared, by which keys."""

    names: tuple[str, ...]
    references: str | None
    by_number: bool  # keys are the numbers at their end

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them, the references last."""
        return (*self.names, *([self.references] if self.references else []))


@dataclass(frozen=True)
class Common:
    """What is compared of which rows, how many records failed, and what is not compared."""

    compared: Compared
    joined: Joined
    failed: int
    notes: tuple[str, ...]


def index_pieces(pieces: Iterable[Piece], asked: Asked, seed: int) -> list[Index]:
    """The index of each piece."""
    return [_index(piece, asked, seed) for piece in pieces]


def _index(piece: Piece, asked: Asked, seed: int) -> Index:
    keys, numbers, digits, failed, first_error, problem = array("Q"), array("Q"), True, 0, "", ""
    counts: dict[str, array] = {}
    references = [asked.references] if asked.references else []
    try:
        for at, row in enumerate(piece.read([*asked.names, *references], ())):
            number = None if piece.lines else number_of(row.key)
            keys.append(name_hash(row.key, seed=seed))
            numbers.append(name_hash(number, seed=seed) if number else 0)
            digits = digits and number is not None and row.key.isdecimal()
            columns, bare = asked.of(row), True
            for name in [*columns, *references]:
                if count := len(captions_of(row, name)):
                    column = counts.setdefault(name, array("I"))
                    column.frombytes(bytes(column.itemsize * (at - len(column))))  # the rows without
                    column.append(count)
                    bare = bare and name in references
            if row.error and bare:
                failed, first_error = failed + 1, first_error or f"{row.key}: {row.error}"
    except (ValueError, OSError) as error:
        problem = str(error)
    rows = len(keys)
    return Index(
        np.array(keys, np.uint64),
        np.array(numbers, np.uint64),
        digits,
        {name: np.pad(np.array(column, np.uint32), (0, rows - len(column))) for name, column in counts.items()},
        failed,
        first_error,
        problem,
    )


def common(sources: Sequence[Source], index: Sequence[Index], asked: Asked) -> Common:
    """Joins the rows of all pieces; ValueError where a file cannot be read, a column is not found or nothing is in common."""
    problems = dict.fromkeys(each.problem for each in index if each.problem)
    if problems:
        raise ValueError("\n".join(problems))
    found = dict.fromkeys(name for each in index for name in each.counts)
    names = asked.names or tuple(name for name in found if name != asked.references)
    failed = sum(each.failed for each in index)
    notes = [
        f"Failed records, which have no captions: {failed:,}; the first: {each.error}" for each in index if each.error
    ][:1]
    _check(sources, found, names, asked, notes)
    parts = _by_source(sources, index)
    keys, numbers = (
        [np.concatenate([getattr(each, name) for each in part]) for part in parts] for name in ("keys", "numbers")
    )
    by_number = joined_by_number(keys, numbers, [all(each.digits for each in part) for part in parts])
    compared = Compared(names, asked.references if asked.references in found else None, by_number)
    keys, numbers = np.concatenate(keys), np.concatenate(numbers)
    if by_number:
        keys = np.where(numbers > 0, numbers, keys)
    counts = np.stack(
        [
            np.concatenate([each.counts.get(name, np.zeros(len(each.keys), np.uint32)) for each in index])
            for name in compared.columns
        ]
    )
    joined = join(keys, counts, len(names) if compared.references else None)
    if not joined.common.any():
        have = ", ".join(f"{name} has {(counts > 0).sum():,}" for name, counts in zip(compared.columns, joined.counts))
        raise ValueError(f"no picture has captions in all columns: {have}; {_first_keys(sources)}")
    if by_number:
        notes.append("The inputs are joined by the number at the end of each key, as file names are with COCO's ids.")
    return Common(compared, joined, failed, (*notes, *_differences(compared, joined)))


def _by_source(sources: Sequence[Source], index: Sequence[Index]) -> list[list[Index]]:
    pieces = iter(index)
    return [list(islice(pieces, len(source.pieces))) for source in sources]


def _check(
    sources: Sequence[Source], found: Iterable[str], names: Sequence[str], asked: Asked, failure: Sequence[str]
) -> None:
    problems = [] if names else ["no syn_text_* column found: name one with --column"]
    problems += [f"--column {name}: no such column" for name in names if name not in found]
    if asked.given not in (None, NO_REFERENCES, *found):
        spec = any(source.role == "references" for source in sources)
        problems.append(f"--references {asked.given}: {'no captions in it' if spec else 'no such column'}")
    if asked.given in asked.names:
        problems.append(f"--references {asked.given}: named with --column too")
    if problems:
        have = f"the records have {', '.join(text_columns(sources)) or 'no captions'}"
        raise ValueError("; ".join([*problems, have, *failure]))


def _first_keys(sources: Sequence[Source]) -> str:
    """A key of each source, to see why they are not joined."""
    keys = [
        (source.spec, row.key)
        for source in sources
        for piece in source.pieces[:1]
        for row in islice(piece.read((), ()), 1)
    ]
    lines = any(piece.lines for source in sources for piece in source.pieces[:1])
    return (
        "first keys: "
        + ", ".join(f"{key!r} in {spec}" for spec, key in keys)
        + (
            "; lines of text are joined with other lines alone, by their order: for others give a table, whose --key names the pictures"
            if lines
            else "; --key names the column of a table that names the pictures"
        )
    )


def _differences(compared: Compared, joined: Joined) -> list[str]:
    """What the columns do not have in common."""
    columns, references = compared.columns, compared.references
    has, notes = joined.counts > 0, []  # (C, P)
    known = has[: len(compared.names)].any(axis=0)  # (P,) in some column but the references
    if again := int((joined.again_of_picture[known] > 0).sum()):
        notes.append(f"Keys that come again with the same column: {again:,}; each time they count as another picture.")
    if references and (only := int((has[-1] & ~known).sum())):
        notes.append(f"Pictures of {references} that are in no other column: {only:,}.")
    if not joined.common[known].all():
        lacking = ", ".join(
            f"{name} lacks {lacks:,}" for name, lacks in zip(columns, (~has[:, known]).sum(axis=1)) if lacks
        )
        notes.append(
            f"Compared on {joined.common.sum():,} of {known.sum():,} pictures, those that have a caption in every "
            f"column: {lacking}."
        )
    counts = joined.counts[: len(compared.names), joined.common].astype(np.int64)  # (C, pictures compared)
    least = counts.min(axis=0)
    more = (counts - least).sum(axis=1)
    if more.any():
        notes.append(
            "Each picture counts with as many captions as its shortest column has, drawn with the seed: "
            + ", ".join(f"{name} has {extra:,} more" for name, extra in zip(columns, more) if extra)
            + "."
        )
    if references and (fewer := int((joined.counts[-1, joined.common] < least).sum())):
        notes.append(
            f"Pictures with fewer human captions than captions of a column: {fewer:,}; the human row counts all that it "
            "has, so its spread is that of fewer captions."
        )
    return notes
