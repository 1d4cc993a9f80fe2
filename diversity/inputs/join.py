"""Decide which captions of which rows are compared, from the keys and the caption counts of the rows.

N: rows of all inputs, in order   C: columns   P: pictures
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diversity.columns import MOST_CAPTIONS
from diversity.inputs.sample import order_keys

_ROW = re.compile(r"-[0-9]{9}\Z")  # the end of a key that says which row of a table a picture was
_NUMBER = re.compile(r"0*([0-9]+)(?:\.[A-Za-z]\w*)?\Z")


@dataclass(frozen=True)
class JoinedRows:
    """Rows joined to pictures; the pictures in `common`, those with captions in every column, are compared."""

    occurrence: np.ndarray  # (N,) how many pictures with the row's key came before the row's picture
    picture_of_row: np.ndarray  # (N,)
    occurrence_of_picture: np.ndarray  # (P,)
    order_keys: np.ndarray  # (P,) uint64, ascending
    counts: np.ndarray  # (C, P) captions of each column
    common: np.ndarray  # (P,) bool
    # (C, N) how many captions of the row are compared: equally many of each column, and of the references no more;
    # 0 where another row of the same picture provides the column
    compared_counts: np.ndarray


def join(keys: np.ndarray, counts: np.ndarray, references: int | None) -> JoinedRows:
    """Join rows (N,) with equal key hashes to pictures; `counts` (C, N) are the numbers of captions in each row.

    A key that comes again with the same column is another picture, as it is between shards. The column `references` is
    an exception: the first row with references counts, because every input may contain the same references.
    """
    has_captions = counts > 0
    columns = [column for column in range(len(counts)) if column != references]
    occurrence = _occurrences(keys, has_captions[columns])
    sorted_keys, first_row, picture_of_row = np.unique(
        order_keys(keys, occurrence), return_index=True, return_inverse=True
    )
    counts_of_picture = np.zeros((len(counts), len(sorted_keys)), counts.dtype)
    row_of_picture = np.full((len(counts), len(sorted_keys)), -1)
    for column in range(len(counts)):
        # reversed, so that the first row of a picture is written last
        rows = np.flatnonzero(has_captions[column])[::-1]
        counts_of_picture[column, picture_of_row[rows]] = counts[column, rows]
        row_of_picture[column, picture_of_row[rows]] = rows
    common = np.all(counts_of_picture > 0, axis=0)
    compared_counts = np.zeros_like(counts)
    least = counts_of_picture[columns][:, common].min(axis=0, initial=MOST_CAPTIONS)
    for column in range(len(counts)):
        compared_counts[column, row_of_picture[column, common]] = np.minimum(counts_of_picture[column, common], least)
    return JoinedRows(
        occurrence=occurrence,
        picture_of_row=picture_of_row,
        occurrence_of_picture=occurrence[first_row],
        order_keys=sorted_keys,
        counts=counts_of_picture,
        common=common,
        compared_counts=compared_counts,
    )


def _occurrences(keys: np.ndarray, has_captions: np.ndarray) -> np.ndarray:
    """Return for each row (N,) how many pictures with its key came before the row's own picture.

    `has_captions` (C, N) says which columns a row has. A row begins another picture where an earlier row with its key
    has one of its columns already.
    """
    occurrence = np.zeros(len(keys), np.int64)
    if not len(keys) or not len(has_captions):
        return occurrence
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], keys[order][1:] != keys[order][:-1]]))
    repeated = (np.add.reduceat(has_captions[:, order], starts, axis=1, dtype=np.int64) > 1).any(axis=0)
    ends = np.append(starts[1:], len(keys))
    for start, end in zip(starts[repeated].tolist(), ends[repeated].tolist()):  # few keys, as a rule
        pictures_with_column = np.zeros(len(has_captions), np.int64)
        for row in order[start:end]:
            row_columns = has_captions[:, row]
            occurrence[row] = pictures_with_column[row_columns].max(initial=0)
            pictures_with_column[row_columns] = occurrence[row] + 1
    return occurrence


def number_of(key: str) -> str | None:
    """Return the number at the end of a key, without leading zeros; None where there is no number.

    The number is 42 for the keys "42", "COCO_val2014_000000000042" and "COCO_val2014_000000000042.jpg". Keys that say
    which row of a table a picture was have no number.
    """
    match = None if _ROW.search(key) else _NUMBER.search(key)
    return match and match[1]


def joined_by_number(keys: Sequence[np.ndarray], numbers: Sequence[np.ndarray], digits: Sequence[bool]) -> bool:
    """Return whether inputs are joined by the numbers at the end of their keys, as COCO's ids and file names must be.

    keys, numbers: for each input the hashes of its keys and of their numbers (0: no number). digits: whether all keys
    of the input are digits alone. Inputs are joined by number if some input shares no key with the others, the keys of
    some input are digits alone, the numbers are unique in each input, and each input shares a number with the others.
    """

    def any_apart(inputs: Sequence[np.ndarray]) -> bool:
        """Return whether some input has no value in common with the others."""
        for index, values in enumerate(inputs):
            others = np.concatenate([*inputs[:index], *inputs[index + 1 :]])
            if not np.isin(values, others).any():
                return True
        return False

    if len(keys) < 2 or not any(digits) or not any_apart(keys):
        return False
    for key, number in zip(keys, numbers):
        if len(np.unique(number[number != 0])) != len(np.unique(key[number != 0])):
            return False
    return not any_apart([number[number != 0] for number in numbers])
