"""The first pass over the inputs: count the captions of each row and column, and find the pictures in all columns.

N: rows of all inputs, in order   R: rows of one piece   C: columns, the references last   P: pictures
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from diversity.columns import HUMAN, MOST_CAPTIONS
from diversity.inputs.join import JoinedRows, join, joined_by_number, number_of
from diversity.inputs.kept import KeptPiece, Space
from diversity.inputs.records import Piece, captions_of, scene_of, truncated_of
from diversity.inputs.specs import InputSource, text_columns
from imagetext.columns import is_caption_column
from imagetext.hashes import name_hash
from imagetext.picture_files import short

NO_REFERENCES = "none"


class RequestedColumns(NamedTuple):
    """The columns that the caller wants to compare."""

    names: tuple[str, ...]  # (): every syn_text_* column and the columns in `files`
    files: tuple[str, ...]  # columns named after files
    references_option: str | None  # the value of --references; None: the original captions, where records have any

    @property
    def references(self) -> str | None:
        """The column to look for as references; None where there shall be no references."""
        if self.references_option is None:
            return None if HUMAN in (*self.names, *self.files) else HUMAN
        return None if self.references_option == NO_REFERENCES else self.references_option

    def columns_of(self, fields: Iterable[str]) -> list[str]:
        """Return the names of the requested columns that a row with these fields may have, without the references."""
        references = self.references
        if self.names:
            return [name for name in self.names if name != references]
        return [name for name in fields if name != references and (is_caption_column(name) or name in self.files)]


class Index(NamedTuple):
    """The rows of one piece, in 16 bytes per row and 4 bytes per row and column."""

    keys: np.ndarray  # (R,) uint64, hashes
    # (R,) uint64, hashes of the numbers at the end of the keys, 0 where a key has no number or there is no other input
    numbers: np.ndarray
    digits: bool  # whether all keys are digits alone, and may be joined by number
    counts: dict[str, np.ndarray]  # column -> (R,) uint32 number of captions
    failed: int  # rows that have no captions because of an error
    error: str  # the first of these errors
    problem: str  # why the file could not be read to its end; "" where it could
    kept: str  # the file with its rows, for `rows_again`; "" where they were not kept


class ComparedColumns(NamedTuple):
    """The columns that are compared, and whether their rows are joined by the numbers in their keys."""

    names: tuple[str, ...]
    references: str | None
    by_number: bool  # rows are joined by the number at the end of their keys

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, the references last."""
        return (*self.names, *([self.references] if self.references else []))


@dataclass(frozen=True)
class Comparison:
    """Which captions of which rows are compared, how many records failed, and notes on what is not compared."""

    columns: ComparedColumns
    rows: JoinedRows
    failed: int
    notes: tuple[str, ...]


def index_pieces(
    pieces: Iterable[Piece], requested: RequestedColumns, seed: int, *, joined: bool, folder: str | None
) -> list[Index]:
    """Return the index of each piece.

    joined: whether there are other inputs, with which the rows are joined. folder: where rows are kept for the second
    pass, if anywhere.
    """
    space = Space(folder)
    return [_index(piece, requested, seed, joined=joined, kept=KeptPiece(space)) for piece in pieces]


def _index(piece: Piece, requested: RequestedColumns, seed: int, *, joined: bool, kept: KeptPiece) -> Index:
    keys, numbers = array("Q"), array("Q")
    digits, failed, first_error, problem = True, 0, "", ""
    counts: dict[str, array] = {}
    references = [requested.references] if requested.references else []
    fields, names = (), references
    try:
        for index, row in enumerate(piece.read([*requested.names, *references], ())):
            number = number_of(row.key) if joined and not piece.lines else None
            keys.append(name_hash(row.key, seed=seed))
            numbers.append(name_hash(number, seed=seed) if number else 0)
            digits = digits and number is not None and row.key.isdecimal()
            has_no_captions, captions, truncated = True, {}, {}
            if (row_fields := (*row.columns, *row.meta)) != fields:  # most rows have those of the row before
                fields, names = row_fields, [*requested.columns_of(row_fields), *references]
            for name in names:
                if count := len(texts := captions_of(row, name)):
                    captions[name] = texts
                    if marks := truncated_of(row, name):
                        truncated[name] = marks
                    column = counts.setdefault(name, array("I"))
                    column.frombytes(bytes(column.itemsize * (index - len(column))))  # 0 for rows without the column
                    column.append(count)
                    has_no_captions = has_no_captions and name in references
            kept.add((row.key, captions, truncated, scene_of(row)))
            if row.error and has_no_captions:
                failed, first_error = failed + 1, first_error or f"{row.key}: {row.error}"
    except (ValueError, OSError) as error:
        problem = str(error)
    rows = len(keys)
    return Index(
        keys=np.array(keys, np.uint64),
        numbers=np.array(numbers, np.uint64),
        digits=digits,
        counts={name: np.pad(np.array(column, np.uint32), (0, rows - len(column))) for name, column in counts.items()},
        failed=failed,
        error=first_error,
        problem=problem,
        kept=kept.finish(),
    )


def compare_columns(
    sources: Sequence[InputSource], indexes: Sequence[Index], requested: RequestedColumns
) -> Comparison:
    """Join the rows of all pieces, and find the captions that are compared.

    Raises ValueError where a file cannot be read, a column is not found, or no picture has captions in all columns.
    """
    problems = dict.fromkeys(index.problem for index in indexes if index.problem)
    if problems:
        raise ValueError("\n".join(problems))
    available = dict.fromkeys(name for index in indexes for name in index.counts)
    names = requested.names or tuple(name for name in available if name != requested.references)
    failed = sum(index.failed for index in indexes)
    first_error = next((index.error for index in indexes if index.error), "")
    notes = [f"Failed records, which have no captions: {failed:,}; the first: {first_error}"] if first_error else []
    _check_columns(sources, requested, names, available=available, failure=notes)
    pieces = iter(indexes)
    of_sources = [list(islice(pieces, len(source.pieces))) for source in sources]
    keys_of_source = [np.concatenate([index.keys for index in group]) for group in of_sources]
    numbers_of_source = [np.concatenate([index.numbers for index in group]) for group in of_sources]
    by_number = joined_by_number(
        keys_of_source, numbers_of_source, [all(index.digits for index in group) for group in of_sources]
    )
    references = requested.references if requested.references in available else None
    columns = ComparedColumns(names, references, by_number)
    keys, numbers = np.concatenate(keys_of_source), np.concatenate(numbers_of_source)
    if by_number:
        keys = np.where(numbers > 0, numbers, keys)
    counts = []
    for name in columns.columns:
        of_pieces = [index.counts.get(name, np.zeros(len(index.keys), np.uint32)) for index in indexes]
        counts.append(np.concatenate(of_pieces))
    rows = join(keys, np.stack(counts), len(names) if references else None)
    if not rows.common.any():
        have = ", ".join(f"{name} has {(count > 0).sum():,}" for name, count in zip(columns.columns, rows.counts))
        raise ValueError(f"no picture has captions in all columns: {have}; {_describe_first_keys(sources)}")
    if by_number:
        notes.append(
            "The inputs are joined by the number at the end of each key, as file names are joined with COCO's ids."
        )
    return Comparison(columns, rows, failed, notes=(*notes, *_difference_notes(columns, rows)))


def _check_columns(
    sources: Sequence[InputSource],
    requested: RequestedColumns,
    names: Sequence[str],
    *,
    available: Iterable[str],
    failure: Sequence[str],
) -> None:
    """Raise ValueError with all problems of the requested columns, and with the columns that the records have."""
    problems = [] if names else ["no syn_text_* column found: name one with --column"]
    problems += [f"--column {name}: no such column" for name in names if name not in available]
    references = requested.references_option
    if references not in (None, NO_REFERENCES, *available):
        is_spec = any(source.role == "references" for source in sources)
        problems.append(f"--references {references}: {'no captions in it' if is_spec else 'no such column'}")
    if references in requested.names:
        problems.append(f"--references {references}: named with --column too")
    if problems:
        have = f"the records have {', '.join(text_columns(sources)) or 'no captions'}"
        raise ValueError("; ".join([*problems, have, *failure]))


def _describe_first_keys(sources: Sequence[InputSource]) -> str:
    """Return the first key of each source, which shows why they are not joined, and a hint."""
    keys = []
    for source in sources:
        for piece in source.pieces[:1]:
            keys += [f"{short(row.key)} in {source.spec}" for row in islice(piece.read((), ()), 1)]
    lines = any(piece.lines for source in sources for piece in source.pieces[:1])
    hint = "--key names the column of a table that names the pictures; repeat it if tables have different ones"
    if lines:
        hint = (
            "lines of a text file are joined with lines of other text files only, by their order; to join them with "
            "other inputs give a table, whose --key names the pictures"
        )
    return f"first keys: {', '.join(keys)}; {hint}"


def _difference_notes(columns: ComparedColumns, rows: JoinedRows) -> list[str]:
    """Return notes on pictures and captions that some columns have and others do not."""
    references, notes = columns.references, []
    has_captions = rows.counts > 0  # (C, P)
    in_captioners = has_captions[: len(columns.names)].any(axis=0)  # (P,) in a column that is not the references
    if repeated := int((rows.occurrence_of_picture[in_captioners] > 0).sum()):
        notes.append(
            f"Keys that occur again in the same column: {repeated:,}; each of them counts as another picture."
        )
    if references and (only := int((has_captions[-1] & ~in_captioners).sum())):
        notes.append(f"Pictures of {references} that are in no other column: {only:,}.")
    if not rows.common[in_captioners].all():
        missing = (~has_captions[:, in_captioners]).sum(axis=1)
        lacking = ", ".join(f"{name} lacks {count:,}" for name, count in zip(columns.columns, missing) if count)
        notes.append(
            f"Compared on {rows.common.sum():,} of {in_captioners.sum():,} pictures, those that have a caption in "
            f"every column: {lacking}."
        )
    counts = rows.counts[: len(columns.names), rows.common].astype(np.int64)  # (C, pictures compared)
    least = np.minimum(counts.min(axis=0), MOST_CAPTIONS)
    surplus = (counts - least).sum(axis=1)
    if surplus.any():
        notes.append(
            "Of each picture, every column counts with the same number of captions: as many as the column with the "
            f"fewest has, at most {MOST_CAPTIONS}. Captions that were left out at random: "
            + ", ".join(f"{extra:,} of {name}" for name, extra in zip(columns.columns, surplus) if extra)
            + "."
        )
    if references and (fewer := int((rows.counts[-1, rows.common] < least).sum())):
        notes.append(
            f"Pictures with fewer human captions than captions of a column: {fewer:,}; the human row counts all human "
            "captions that there are, so its spread is that of fewer captions."
        )
    return notes
