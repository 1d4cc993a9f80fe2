"""Joining rows to pictures, on arrays, gives what a loop over the rows gives."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diversity.inputs.join import join, joined_by_number, number_of
from diversity.inputs.sample import order_key

ROWS = st.integers(1, 3).flatmap(
    lambda columns: st.lists(
        st.tuples(st.integers(0, 4), st.lists(st.integers(0, 3), min_size=columns, max_size=columns)),
        min_size=1,
        max_size=12,
    )
)


def plainly(rows, references):
    """Pictures (key, occurrence) -> column -> (row, captions), as one reads on."""
    pictures, earlier = defaultdict(dict), {}
    for number, (key, counts) in enumerate(rows):
        columns = [column for column, count in enumerate(counts) if count and column != references]
        occurrence = max((earlier.get((key, column), 0) for column in columns), default=0)
        earlier |= {(key, column): occurrence + 1 for column in columns}
        for column, count in enumerate(counts):
            if count:
                pictures[key, occurrence].setdefault(column, (number, count))
    return pictures


@given(ROWS, st.booleans())
def test_joining_equals_reading_on_row_by_row(rows, with_references):
    columns = len(rows[0][1])
    references = columns - 1 if with_references and columns > 1 else None
    keys, counts = zip(*rows)
    joined = join(np.array(keys, np.uint64), np.array(counts, np.uint32).T, references)
    expected = plainly(rows, references)
    compared_counts, common = np.zeros((columns, len(rows)), int), set()
    for (key, occurrence), result in expected.items():
        if len(result) == columns:
            common.add(order_key(key, occurrence))
            least = min(count for column, (_, count) in result.items() if column != references)
            for column, (row, count) in result.items():
                compared_counts[column, row] = min(
                    count, least
                )  # of the references at most as many, and they limit nobody
    assert joined.compared_counts.tolist() == compared_counts.tolist()
    assert set(joined.order_keys[joined.common].tolist()) == common
    assert np.all(joined.order_keys[:-1] < joined.order_keys[1:])
    for (key, occurrence), result in expected.items():
        position = joined.order_keys.tolist().index(order_key(key, occurrence))
        assert joined.occurrence_of_picture[position] == occurrence
        assert joined.counts[:, position].tolist() == [result.get(column, (0, 0))[1] for column in range(columns)]
        assert all(
            joined.picture_of_row[row] == position and joined.occurrence[row] == occurrence
            for row, _ in result.values()
        )


def test_a_key_that_comes_again_with_the_same_column_is_another_picture():
    keys = np.array([7, 7, 7, 7], np.uint64)
    joined = join(keys, np.array([[1, 1, 0, 0], [0, 0, 1, 1]], np.uint32), None)
    assert (
        joined.occurrence.tolist() == [0, 1, 0, 1]
        and joined.common.all()
        and joined.compared_counts.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    )


def test_references_that_come_again_are_those_of_the_same_picture():
    joined = join(np.array([7, 7], np.uint64), np.array([[2, 0], [0, 3], [4, 5]], np.uint32), 2)
    assert joined.occurrence.tolist() == [0, 0] and joined.compared_counts.tolist() == [[2, 0], [0, 2], [2, 0]]


@pytest.mark.parametrize(
    ("key", "number"),
    [
        ("42", "42"),
        ("000042", "42"),
        ("COCO_val2014_000000000042", "42"),
        ("val/COCO_val2014_000000000042.jpg", "42"),
        ("0", "0"),
        ("000", "0"),
        ("a-7", "7"),
        ("page 3 of", None),
        ("", None),
        ("9" * 5000, "9" * 5000),
        ("v1.5", "5"),
        ("٤٢", None),
        ("captions-000000042", None),
    ],
)  # the last is of a table's row, not of a picture
def test_the_number_at_the_end_of_a_key(key, number):
    assert number_of(key) == number


def by_number(*inputs):
    def hashes(texts):
        return np.array(
            [0 if text is None else 1 + int.from_bytes(text.encode()) % 2**61 for text in texts], np.uint64
        )

    return joined_by_number(
        [hashes(keys) for keys in inputs],
        [hashes(map(number_of, keys)) for keys in inputs],
        [all(key.isdecimal() for key in keys) for keys in inputs],
    )


def test_ids_and_file_names_are_joined_by_number():
    names = ["COCO_val2014_000000000042", "COCO_val2014_000000000139"]
    assert by_number(names, ["42", "139", "285"])
    assert by_number(["42"], [*names, "readme"])
    assert by_number(["000042"], ["42"], names)


@pytest.mark.parametrize(
    "inputs",
    [
        [["42", "139"]],  # nothing to join
        [["42", "139"], ["42", "7"]],  # joined as they are
        [["a-42"], ["b-42"]],  # no ids
        [["a-42", "b-42"], ["42"]],  # the number is that of two pictures
        [["a-42"], ["43"]],  # nothing in common either way
        [["000000000", "000000001"], ["000010000"]],  # two shards
    ],
)
def test_other_keys_are_joined_as_they_are(inputs):
    assert not by_number(*inputs)
