"""Parquet files that are damaged, have unusual types of columns, or claim more than they hold."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagetext import limits
from imagetext.readers.parquet import parquet_rows
from imagetext.readers.row_records import RowSelection, size_of
from imagetext.readers.tables import _good_rows, split_table

LONG = "x" * 1000
OFFSETS = pa.array([0, 2], pa.int32())


def test_a_name_that_is_damaged_in_the_schema_alone_is_read_as_the_schema_has_it(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a dog"], "more": [["b"]]}), path, store_schema=False)
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    path.write_bytes(data[: -8 - size] + data[-8 - size :].replace(b"list", b"lis`", 1))
    (row,) = parquet_rows(str(path), 0, 1)
    assert row["text"] == "a dog"


def test_pages_are_checked_whatever_a_row_group_calls_its_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PAGE", 1000)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["x" * 2000]}), path, store_schema=False)
    start, name, end = path.read_bytes().rpartition(b"text")
    path.write_bytes(start + b"tex_" + end)
    with pytest.raises(ValueError, match="t.parquet: damaged Parquet file: pages that are read together take "):
        list(parquet_rows(str(path), 0, 1))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[("k", LONG)]], pa.map_(pa.string(), pa.string())),
        pa.array([LONG], pa.string_view()),
        pa.array([LONG.encode()], pa.binary_view()),
        pa.array([LONG.encode()], pa.binary(1000)),
        pa.array([[LONG, "y"]], pa.list_(pa.string(), 2)),
        pa.array([[LONG]], pa.list_view(pa.string())),
        pa.array([[{"a": [LONG]}]]),
        pa.array([[LONG]], pa.large_list(pa.large_string())),
        pa.ListArray.from_arrays(OFFSETS, pa.array([LONG, LONG]).dictionary_encode()),
        pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array([LONG])),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("dictionary", [True, False])
def test_a_row_too_large_is_its_own_error_in_every_kind_of_column(tmp_path, monkeypatch, column, dictionary):
    monkeypatch.setattr(limits, "FILE", 900)
    path = str(tmp_path / "t.parquet")
    try:
        pq.write_table(pa.table({"text": column}), path, use_dictionary=dictionary)
    except pa.ArrowNotImplementedError:  # old versions cannot write list views
        pytest.skip("this version of pyarrow cannot write such a column")
    (row,) = parquet_rows(path, 0, 1)
    assert isinstance(row, ValueError) and "a row of " in str(row)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"a\xff"]).view(pa.string()).cast(pa.string_view()),
        pa.LargeListArray.from_arrays(pa.array([0, 1]), pa.array([b"a\xff"]).view(pa.string())),
        pa.FixedSizeListArray.from_arrays(pa.array([b"a\xff"]).view(pa.string()), 1),
    ],
    ids=lambda column: str(column.type),
)
def test_what_is_no_utf_8_is_marked_in_every_kind_of_text(tmp_path, column):
    path = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"text": column}), path)
    (row,) = parquet_rows(path, 0, 1, selection=RowSelection(None))
    assert row["text"] in ("a\ufffd", ["a\ufffd"])


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())])
def test_rows_of_one_picture_are_one_whatever_holds_its_bytes(tmp_path, picture, kind):
    column = pa.array([picture()] * 2).cast(kind) if pa.types.is_dictionary(kind) else pa.array([picture()] * 2, kind)
    pq.write_table(pa.table({"image": column, "text": ["a dog", "a cat"]}), tmp_path / "t.parquet")
    ((record,),) = split_table(str(tmp_path / "t.parquet"))
    assert record.captions == ("a dog", "a cat") and record.image == picture()


@pytest.mark.parametrize(
    "images, reason", [("aaaa", "captions of 1,800 bytes"), ("abab", "rows of one picture are not adjacent")]
)
def test_texts_that_wait_for_others_have_a_largest_size(tmp_path, monkeypatch, images, reason):
    for limit in ("BATCH", "SAMPLE"):
        monkeypatch.setattr(limits, limit, 1250)
    table = pa.table({"image": [f"{image}.jpg" for image in images], "text": pa.array(["x" * 600] * 4)})
    pq.write_table(table, tmp_path / "t.parquet")
    (records,) = split_table(str(tmp_path / "t.parquet"))
    try:
        (record,) = records
        assert reason in record.error
    except ValueError as error:
        assert images == "abab" and reason in str(error) and "t.parquet" in str(error) and "damaged" not in str(error)


def test_few_large_rows_show_what_columns_there_are(monkeypatch):
    monkeypatch.setattr(limits, "BATCH", 1000)
    rows = iter([ValueError("bad"), *[{"text": ["x" * 600]}] * 5])
    assert len(_good_rows(rows)) == 2 and len([*rows]) == 3


def test_the_size_of_a_row_is_what_it_takes_in_memory():
    row = {"text": ["a" * 1000, "🐕" + "a" * 999], "image": b"b" * 1000, "width": 7}
    assert 6000 == size_of(row) >= sum(map(sys.getsizeof, [*row["text"], row["image"]])) - 3 * 100
