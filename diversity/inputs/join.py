"""Which captions of which rows are compared, from the rows' keys and counts alone.

N: rows of all inputs, in order   C: columns   P: pictures
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diversity.inputs.sample import places

_ROW = re.compile(r"-[0-9]{9}\Z")
_NUMBER = re.compile(r"0*([0-9]+)(?:\.[A-Za-z]\w*)?\Z")


@dataclass(frozen=True)
class Joined:
    """Rows as pictures; what is compared are the `common` ones, those with captions in every column."""

    again: np.ndarray  # (N,) pictures of the row's key before its own
    picture_of_row: np.ndarray  # (N,)
    again_of_picture: np.ndarray  # (P,)
    places: np.ndarray  # (P,) uint64, ascending
    counts: np.ndarray  # (C, P) captions of each column
    common: np.ndarray  # (P,) bool
    # (C, N) captions of the row that are compared: equally many of each column, and of the references no more;
    # 0 where another row of the picture has the column
    take: np.ndarray


def join(keys: np.ndarray, counts: np.ndarray, references: int | None) -> Joined:
    """Rows (N,) of one key hash are one picture, of counts (C, N) captions.

    A key that comes again with the same column is another picture, as between shards; not so with the column `references`,
    whose first row with captions counts, since every input may carry the same ones.
    """
    given = counts > 0
    columns = [column for column in range(len(counts)) if column != references]
    again = _again(keys, given[columns])
    at, first, picture_of_row = np.unique(places(keys, again), return_index=True, return_inverse=True)
    of_picture = np.zeros((len(counts), len(at)), counts.dtype)
    row_of = np.full((len(counts), len(at)), -1)
    for column in range(len(counts)):
        rows = np.flatnonzero(given[column])[::-1]  # of several the first is written last, and stays
        of_picture[column, picture_of_row[rows]] = counts[column, rows]
        row_of[column, picture_of_row[rows]] = rows
    common = np.all(of_picture > 0, axis=0)
    take = np.zeros_like(counts)
    least = of_picture[columns][:, common].min(axis=0, initial=np.iinfo(counts.dtype).max)
    for column in range(len(counts)):
        take[column, row_of[column, common]] = np.minimum(of_picture[column, common], least)
    return Joined(again, picture_of_row, again[first], at, of_picture, common, take)


def _again(keys: np.ndarray, given: np.ndarray) -> np.ndarray:
    """How many pictures of a row's key (N,) came before its own: as many as any of its columns (C, N) was given for the key."""
    again = np.zeros(len(keys), np.int64)
    if not len(keys) or not len(given):
        return again
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], keys[order][1:] != keys[order][:-1]]))
    repeated = (np.add.reduceat(given[:, order], starts, axis=1, dtype=np.int64) > 1).any(axis=0)
    ends = np.append(starts[1:], len(keys))
    for start, end in zip(starts[repeated].tolist(), ends[repeated].tolist()):  # few, as a rule
        seen = np.zeros(len(given), np.int64)
        for row in order[start:end]:
            again[row] = seen[given[:, row]].max(initial=0)
            seen[given[:, row]] = again[row] + 1
    return again


def number_of(key: str) -> str | None:
    """The number at the end of a key, without leading zeros: 42 of 42, of COCO_val2014_000000000042 and of that with .jpg.

    None where there is none, or the key says which row of a table a picture was.
    """
    found = None if _ROW.search(key) else _NUMBER.search(key)
    return found and found[1]


def joined_by_number(keys: Sequence[np.ndarray], numbers: Sequence[np.ndarray], digits: Sequence[bool]) -> bool:
    """Whether inputs are joined by the numbers at the end of their keys, as COCO's image_id and file names must be.

    They are where an input has no key in common with the others, the keys of one are digits alone (`digits`), and by numbers
    (hashes of them, 0 for none), which are unique in each, every input has one in common with the others.
    """

    def alone(each: Sequence[np.ndarray]) -> bool:
        return any(
            not np.isin(one, np.concatenate([*each[:at], *each[at + 1 :]])).any() for at, one in enumerate(each)
        )

    if len(keys) < 2 or not any(digits) or not alone(keys):
        return False
    known = [number[number != 0] for number in numbers]
    unique = all(
        len(np.unique(number[number != 0])) == len(np.unique(key[number != 0])) for number, key in zip(numbers, keys)
    )
    return unique and not alone(known)
