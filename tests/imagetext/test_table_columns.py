"""Which columns of tables hold pictures, captions and keys, and how rows of one picture are joined."""

import csv
import gzip
import io
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagetext import limits
from imagetext.readers import grouping, parquet, table_columns, table_pieces, tables
from imagetext.readers.grouping import PictureCounter, side_by_side
from imagetext.readers.parquet import scattered_rows
from imagetext.readers.row_records import RowSelection
from imagetext.readers.table_columns import parse_list
from imagetext.readers.table_flags import Columns
from imagetext.sources import read_samples


@pytest.fixture
def table(tmp_path, picture):
    """Write a table's text beside nine pictures, `0.jpg` to `8.jpg`."""
    for number in range(9):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))

    def write(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def read(path, columns=Columns(), **options):
    return [sample for shard in read_samples(path, columns=columns, **options) for sample in shard]


def captions(path, columns=Columns()):
    return [sample.captions for sample in read(path, columns)]


# ---- columns by name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["image,caption\n{},{}\n", "image_name| comment_number| comment\n{}| 0| {}\n"])
def test_a_text_file_with_a_header_is_a_table(table, text):
    """Flickr8k's captions.txt on Kaggle is one."""
    header, row = text.split("\n")[:2]
    rows = [row.format(f"{number}.jpg", caption) for number in (0, 1) for caption in ("a dog .", "a lawn .")]
    path = table("captions.txt", "\n".join([header, *rows]))
    assert [(bool(record.image), record.captions) for record in read(path)] == [(True, ("a dog .", "a lawn ."))] * 2


def test_a_text_file_without_a_header_is_no_table(table):
    with pytest.raises(ValueError, match=r"t\.txt: its first line names no columns .* a table needs such a line"):
        read(table("t.txt", "an image, a caption\n"))
    with pytest.raises(ValueError, match=r"did you mean flickr:.*t\.txt"):
        read(table("t.txt", "0.jpg#0\ta dog\n"))


@pytest.mark.parametrize(
    "header",
    [
        "image,caption",
        "filepath,title",
        "filename,caption",
        "img,text",
        "image_name,comment",
        "Image,Caption",
        "File Name,description",
        " image , caption",
        "images,texts",
    ],
)
def test_columns_of_usual_names_are_found(table, picture, header):
    (sample,) = read(table("t.csv", f"{header}\n0.jpg,a dog\n"), needs=("pictures", "captions"))
    assert sample.image == picture(0) and sample.captions == ("a dog",) and set(sample.meta) == {"uid", "source"}


def test_columns_that_are_named(table, picture):
    path = table("t.csv", "n,foto,alt,text,also\n7,0.jpg,one,other,two\n")
    (sample,) = read(path, Columns("foto", ("alt", "also"), ("none", "n")))
    assert sample.key == "7" and sample.image == picture(0) and sample.captions == ("one", "two")
    assert sample.meta["text"] == "other" and not {"foto", "alt", "also"} & set(sample.meta)


def test_captions_in_place_of_which_others_are_named_stay(table):
    (sample,) = read(
        table("t.jsonl", '{"image": "0.jpg", "alt": "one", "captions": ["two"]}\n'), Columns(captions=("alt",))
    )
    assert sample.captions == ("one",) and sample.meta["other_captions"] == ["two"]


@pytest.mark.parametrize(
    "rows, columns, expected",
    [
        ([{"photo": "0.jpg", "text": "a"}, {"path": "1.jpg", "text": "b"}], Columns("photo"), [0, None]),
        (
            [{"image": "0.jpg", "text": "a"}, {"Image": "1.jpg", "text": "b"}, {"File Name": "2.jpg", "text": "c"}],
            Columns(),
            [0, 1, 2],
        ),
    ],
)
def test_a_row_that_lacks_the_column_of_pictures(table, picture, rows, columns, expected):
    records = read(table("t.jsonl", "".join(json.dumps(row) + "\n" for row in rows)), columns)
    assert [sample.image for sample in records] == [None if number is None else picture(number) for number in expected]
    assert ["there is no picture" in sample.error for sample in records] == [number is None for number in expected]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_named_column_may_be_first_seen_in_a_late_row(table, pack):
    lines = '{"image": "0.jpg"}\n' * 300 + '{"image": "0.jpg", "alt": "a", "id2": "x"}\n'
    path = table("t.jsonl.gz" if pack is not bytes else "t.jsonl", pack(lines.encode()))
    last = read(path, Columns("image", ("alt",), ("id1", "id2")))[-1]
    assert last.captions == ("a",) and last.key == "x"
    with pytest.raises(ValueError, match="--caption-column al: there is no such column"):
        read(path, Columns(captions=("al",)))


def test_a_key_that_is_a_pictures_path_loses_its_suffix_as_in_a_folder(table):
    assert [sample.key for sample in read(table("t.csv", "image,text\n0.jpg,a\n"), Columns(keys=("image",)))] == ["0"]


def test_of_several_columns_of_pictures_none_is_guessed(table, caplog):
    with pytest.raises(
        ValueError, match="pictures may be in 'filepath' or 'path': --image-column names the column; it has"
    ):
        read_samples(table("t.csv", "path,filepath,text\n0.jpg,1.jpg,a\n"))
    (sample,) = read(table("u.csv", "path,image,text\nx.jpg,1.jpg,a\n"))  # `image` is ours, and said
    assert not sample.error and "'image' is used" in caplog.text


def test_of_several_columns_of_captions_none_is_guessed(table, caplog):
    path = table("t.jsonl", '{"image": "0.jpg", "title": "a", "text": "b"}\n')
    with pytest.raises(ValueError, match="captions may be in 'text' or 'title': --caption-column names the column"):
        read_samples(path, needs=("captions",))
    assert captions(path) == [("b",)] and "'text' is used" in caplog.text
    assert captions(path, Columns(captions=("title",))) == [("a",)]


@pytest.mark.parametrize(
    "name, text, needs, message",
    [
        ("t.csv", "image,n\n0.jpg,1\n", ("captions",), "no column of captions.*it has 'image', 'n'"),
        ("t.csv", "image,url\n0.jpg,http://x/y.jpg\n", ("captions",), "it has 'image', 'url'$"),
        ("t.jsonl", '{"caption": "a", "n": 1}\n', ("pictures",), "no column of pictures.*it has 'caption', 'n'"),
        (
            "00000.csv",
            "caption,url,key,status\na,http://x/y.jpg,000000000,success\n",
            ("pictures",),
            "img2dataset.*00000.tar",
        ),
        (
            "t.jsonl",
            '{"caption": "a", "image_id": 1, "annotator_id": 2}\n',
            ("pictures",),
            "did you mean localized-narratives:",
        ),
        ("cc.tsv", "a bus\thttp://x/y.jpg\na cat\thttp://x/z.jpg\n", ("pictures",), "the first line is not a header"),
        (
            "t.csv",
            "image,text\n0.jpg,a\n",
            ("either",),
            "--image-column foto: there is no such column; it has 'image', 'text'",
        ),
        (
            "c.json",
            '{"info": {}, "images": [{"file_name": "0.jpg", "id": 1}], "annotations": []}',
            (),
            "did you mean coco:",
        ),
        (
            "dataset_info.json",
            '{"mine": {"file_name": "mine.json", "columns": {"messages": "messages", "images": "images"}}}',
            (),
            '"lengths" is not an object of shards; a table has a row for each picture',
        ),
        ("k.json", '{"images": [{"filename": "0.jpg", "sentences": []}]}', (), "did you mean karpathy:"),
        ("t.json", '{"data": [{"image_id": "0", "caption_str": "a"}]}', (), "did you mean textcaps:"),
    ],
)
def test_what_a_table_lacks_is_one_error_before_any_work(table, name, text, needs, message):
    with pytest.raises(ValueError, match=message):
        read_samples(table(name, text), columns=Columns("foto" if needs == ("either",) else None), needs=needs)


@pytest.mark.parametrize("images", [["0.jpg", "1.jpg", "0.jpg"], ["0.jpg", "0.jpg", "1.jpg"]])
@pytest.mark.parametrize("name", ["caption", "alt"])
def test_texts_in_parquet_may_be_bytes(table, tmp_path, picture, images, name):
    """Programs that do not mark texts as such write them so, and webdataset without a decoder yields them so."""
    table("t.csv", "")
    keys = [image.encode() for image in images]
    pq.write_table(pa.table({"image": images, "key": keys, name: [b"one", b"two", b"three"]}), tmp_path / "t.parquet")
    records = read(str(tmp_path / "t.parquet"), Columns(captions=() if name == "caption" else (name,)))
    texts = {
        image: tuple(text for text, of in zip(("one", "two", "three"), images) if of == image) for image in images
    }
    assert {record.key: record.captions for record in records} == texts


# ---- lists, chats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell, texts",
    [
        ('["a dog", "it\'s"]', ["a dog", "it's"]),
        ("['a dog', \"it's\"]", ["a dog", "it's"]),
        ("['a dog'\n 'a cat']", ["a dog", "a cat"]),
        (r"['a \'big\' dog']", ["a 'big' dog"]),
        ("[a dog]", None),
        ("[1, 2]", None),
        ("[]", []),
        ("['a' + 'b']", None),
        ("[None]", []),
        ("[null, NaN]", []),
        ("['a', nan]", ["a"]),
        ("['None' None]", ["None"]),
        ("[" * 9000, None),
        ("['" + "\\" * 90_001, None),
        ("[__import__('os')]", None),
        ("['a', 3]", None),
    ],
)
def test_a_list_in_a_cell(cell, texts):
    assert parse_list(cell) == texts


def test_lists_are_read_wherever_captions_stand(table):
    rows = [{"image": "0.jpg", "caption": "['a', 'b']"}, {"image": "1.jpg", "caption": "[sign] a dog"}]
    rows += [{"image": "2.jpg", "caption": "[]"}]
    assert captions(table("t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))) == [
        ("a", "b"),
        ("[sign] a dog",),
        (),
    ]


def chat(*turns):
    return [{"from": who, "value": text} for who, text in turns]


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"image": "0.jpg", "conversations": chat(("human", "<image>\nDescribe."), ("gpt", "a disc"))}, ("a disc",)),
        ({"image": ["0.jpg"], "conversations": chat(("human", "<image>"), ("gpt", "<image>\na disc"))}, ("a disc",)),
        (
            {
                "image": "0.jpg",
                "conversations": chat(("human", "colour?"), ("gpt", "red"), ("human", "?"), ("gpt", "round")),
            },
            (),
        ),
        (
            {
                "images": ["0.jpg"],
                "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "a disc"}],
            },
            ("a disc",),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "image": "0.jpg"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "a disc"}]},
                ]
            },
            ("a disc",),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "path": "0.jpg"}, {"type": "video", "path": "v"}]},
                    {"role": "assistant", "content": "a disc"},
                ]
            },
            ("a disc",),
        ),
        ({"images": [{"path": "0.jpg", "bytes": None}], "text": "<__dj__image> a disc <|__dj__eoc|>"}, ("a disc",)),
        ({"image": "0.jpg", "caption": "a disc", "conversations": []}, ("a disc",)),
        ({"images": ["0.jpg"], "texts": [{"user": "?", "assistant": "a disc", "source": "s"}]}, ("a disc",)),
        ({"images": ["0.jpg"], "texts": [{"user": "?", "assistant": text} for text in ("red", "round")]}, ()),
        ({"images": ["0.jpg"], "prompt": "?", "completion": "a disc"}, ("a disc",)),
        ({"image": "0.jpg", "conversations": json.dumps(chat(("human", "?"), ("gpt", "a disc")))}, ("a disc",)),
        ({"image": "0.jpg", "conversations": '[{"from": "gpt", "value": "a'}, ()),
        ({"image": "0.jpg", "conversations": str(chat(("human", "?"), ("gpt", "it's a disc")))}, ("it's a disc",)),
        (
            {"image": "0.jpg", "conversations": str(np.array(chat(("human", "?" * 70), ("gpt", "a\ndisc"))))},
            ("a\ndisc",),
        ),
        ({"image": "0.jpg", "conversations": "[{" + "-" * 60_000}, ()),
        (
            {
                "images": ["0.jpg"],
                "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}],
                "completion": [{"role": "assistant", "content": [{"type": "text", "text": "a disc"}]}],
            },
            ("a disc",),
        ),
    ],
)
def test_a_conversation_becomes_a_picture_and_its_caption(table, picture, row, expected):
    (sample,) = read(table("t.jsonl", json.dumps(row) + "\n"), needs=("pictures", "captions"))
    assert sample.image == picture(0) and sample.captions == expected and not sample.error


@pytest.mark.parametrize("name", ["completion", "texts", "messages", "chosen"])
def test_a_named_column_of_conversations_has_their_answers(table, name):
    row = {"image": "0.jpg", name: [{"role": "assistant", "content": "a disc"}]}
    (sample,) = read(table("t.jsonl", json.dumps(row) + "\n"), Columns(captions=(name,)))
    assert sample.captions == ("a disc",) and sample.meta[name] == row[name]


def test_several_pictures_in_a_row_are_no_picture(table):
    good, bad, none = read(table("t.jsonl", '{"images": ["0.jpg"]}\n{"images": ["0.jpg", "1.jpg"]}\n{"images": []}\n'))
    assert (
        not good.error
        and bad.error == "images: 2 pictures in one row, but captions are of a single picture"
        and "there is no picture" in none.error
    )


def test_a_picture_as_a_list_of_numbers_is_not_several_pictures(tmp_path, picture):
    pq.write_table(pa.table({"image": [[*picture(0)]], "caption": ["a disc"]}), tmp_path / "t.parquet")
    (record,) = read(str(tmp_path / "t.parquet"))
    assert record.error.startswith("image: expected a path or the bytes of a picture, got [255, 216,")
    assert record.captions == ("a disc",)


def test_a_map_of_parquet_holds_captions_by_language(tmp_path, picture):
    captions = pa.array([{"en": "a disc", "fr": "un disque"}, {"first": "a disc"}], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"image": [picture(0), picture(1)], "captions": captions}), tmp_path / "t.parquet")
    assert [record.captions for record in read(str(tmp_path / "t.parquet"))] == [("a disc", "un disque"), ()]


def test_a_column_of_parquet_may_be_called_like_a_file(tmp_path, picture):
    pq.write_table(pa.table({"img.jpg": [picture(0)], "caption": ["a disc"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="--image-column names it; it has 'img.jpg', 'caption'$"):
        read(str(tmp_path / "t.parquet"), needs=("pictures",))


# ---- rows of one picture -------------------------------------------------------------------------------------------

ROWS = [(picture, f"caption {picture} {number}") for picture in range(8) for number in range(3)]


def plainly(rows):
    """Return pictures in the order of their first rows, each with its captions in order: the slow reference."""
    captions_of_key = {}
    for picture, caption in rows:
        captions_of_key.setdefault(picture, []).append(caption)
    return [tuple(texts) for texts in captions_of_key.values()]


def write(path, rows):
    rows = [{"image": f"{picture}.jpg", "caption": caption} for picture, caption in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "caption"], quoting=csv.QUOTE_NONNUMERIC)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json", "t.parquet", "t.jsonl.gz"])
def test_rows_of_a_picture_are_its_captions(tmp_path, table, monkeypatch, caplog, name, shuffled):
    for module in (table_pieces, tables):
        monkeypatch.setattr(module, "ROWS_PER_SHARD", 3)
    rows = random.Random(3).sample(ROWS, len(ROWS)) if shuffled else ROWS
    path = write(tmp_path / name, rows)
    shards = read_samples(path)
    samples = [sample for shard in shards for sample in shard]
    assert [sample.captions for sample in samples] == plainly(rows)
    assert [sample.key for sample in samples] == [
        f"t-{[row[0] for row in rows].index(picture):09d}" for picture in dict.fromkeys(picture for picture, _ in rows)
    ]
    if not name.endswith(".gz"):
        assert [len(shard.samples) for shard in shards] == [3, 3, 2] and "24 rows are 8 pictures" in caplog.text
    assert captions(path, Columns(group=False)) == [(caption,) for _, caption in rows]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.parquet"])
def test_columns_that_are_asked_for_keep_the_captions_of_all_rows(tmp_path, name):
    rows = [
        {"image": f"{index % 2}.jpg", "caption": f"c{index}", "syn": f"s{index}" if index else "", "same": "one"}
        for index in range(4)
    ]
    if name == "t.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    (piece,) = tables.split_table(str(tmp_path / name))
    records = table_pieces.table_records(piece, RowSelection(("syn", "same")))
    assert [(row.captions, row.columns["syn"], row.columns["same"]) for row in records] == [
        (("c0", "c2"), ("s2",), ("one",)),
        (("c1", "c3"), ("s1", "s3"), ("one",)),
    ]


def test_a_compressed_table_is_unpacked_on_disk_only_where_rows_of_a_picture_stand_apart(tmp_path, table, monkeypatch):
    monkeypatch.setattr(limits, "UNPACKED", 100)
    for name, rows in (("together.jsonl.gz", ROWS), ("alone.jsonl.gz", ROWS[::3])):
        assert captions(write(tmp_path / name, rows)) == plainly(rows)
    with pytest.raises(
        ValueError, match="apart.jsonl.gz: rows of one picture are not adjacent.* more than the 100 that are"
    ):
        captions(write(tmp_path / "apart.jsonl.gz", ROWS + ROWS))
    monkeypatch.setattr(limits, "UNPACKED", 10_000)
    assert captions(str(tmp_path / "apart.jsonl.gz")) == plainly(ROWS + ROWS)


def test_numbers_that_name_pictures_group_rows(tmp_path):
    """Zero is a number as others; a missing one names no picture."""
    rows = [{"image_id": number, "caption": text} for number, text in zip([0, 0, 1, 1, None, None], "abcdef")]
    schema = pa.schema({"image_id": pa.float64(), "caption": pa.string()})
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("t.jsonl", "t.parquet"):
        assert captions(str(tmp_path / name)) == [("a", "b"), ("c", "d"), ("e",), ("f",)]


def test_parquet_is_grouped_as_the_same_rows_in_lines_are(tmp_path):
    numbers = pa.table({"image_id": [7, 0, 7], "caption": ["a", "b", "c"], "json": ['{"n": 1}'] * 3})
    floats = pa.table({"image_id": [7.0, 0.0, 7.0], "caption": ["a", "b", "c"]})
    names = pa.table({"image": pa.array(["7.jpg", "8.jpg", "7.jpg"]).dictionary_encode(), "caption": ["a", "b", "c"]})
    nested = pa.table({"image": ["7.jpg", "8.jpg", "7.jpg"], "caption": ["a", "b", "c"], "json": [{"n": 1}] * 3})
    for table in (numbers, floats, names, nested):
        pq.write_table(table, tmp_path / "t.parquet")
        assert captions(str(tmp_path / "t.parquet")) == [("a", "c"), ("b",)]
    assert [row["n"] for piece in tables.split_table(str(tmp_path / "t.parquet")) for _, row in piece.numbered()] == [
        1,
        1,
    ]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("kind", ["bytes", "struct", "asked"])
def test_rows_of_parquet_with_the_bytes_of_one_picture_are_its_captions(tmp_path, monkeypatch, kind, apart):
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 2)
    pictures = (
        [name * 40 for name in (b"a", b"b", b"b", b"a", b"c")]
        if apart
        else [n * 40 for n in (b"a", b"a", b"b", b"b", b"c")]
    )
    cells = [{"bytes": data, "path": None} for data in pictures] if kind == "struct" else pictures
    name = {"bytes": "jpg", "struct": "photo", "asked": "thumb"}[kind]
    path, columns = str(tmp_path / "t.parquet"), Columns(image="thumb" if kind == "asked" else None)
    table = {
        name: [*cells, None, None, cells[4]],
        "caption": pa.array([b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"\xff"]).view(pa.string()),
    }
    pq.write_table(pa.table(table), path, row_group_size=3)
    pieces = tables.split_table(path, columns=columns)
    records = [record for piece in pieces for record in piece]
    groups = [("0", "3"), ("1", "2")] if apart else [("0", "1"), ("2", "3")]
    # Rows without a picture, or with a caption that is not a text, are records by themselves.
    assert [record.captions for record in records] == [*groups, ("4",), ("5",), ("6",), ()]
    assert [record.image and record.image[:1] for record in records] == [b"a", b"b", b"c", None, None, None]
    assert [bool(record.error) for record in records] == [False, False, False, True, True, True]
    assert [len(piece) for piece in pieces] == [2, 2, 2]
    # Reading only captions joins the same rows, and reads bytes of selected pictures only.
    pieces = tables.split_rows(path, columns, groups_of=2)
    columns_read = []
    batches = parquet._batches
    monkeypatch.setattr(
        parquet, "_batches", lambda *args, **options: columns_read.append(args[2]) or batches(*args, **options)
    )
    found_records = [record for piece in pieces for record in table_pieces.table_records(piece, RowSelection())]
    assert [record.captions for record in found_records] == [*groups, ("4",), ("5",), ("6",), ("\ufffd",)]
    assert not any(name in columns for columns in columns_read) and not any(record.image for record in found_records)
    found_records = [
        record.image for piece in pieces for record in table_pieces.table_records(piece, RowSelection(pictures={1}))
    ]
    assert found_records == [None, b"b" * 40, None, None, None, b"c" * 40]
    assert sum(name in columns for columns in columns_read) == len(pieces)  # one row group for each piece
    assert captions(path, columns._replace(group=False))[:3] == [("0",), ("1",), ("2",)]


def test_bytes_of_parquet_that_do_not_come_again_at_first_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BYTES_LOOKED_AT", 4)
    pictures = [bytes([65 + number]) * 40 for number in (0, 1, 2, 3, 3)]
    pq.write_table(pa.table({"image": pictures, "caption": [*"abcde"]}), tmp_path / "t.parquet")
    assert captions(str(tmp_path / "t.parquet")) == [(letter,) for letter in "abcde"]


@pytest.mark.parametrize("column", ["captions", "caption", "comment"])
def test_captions_that_are_selected_by_their_name_are_joined_once(tmp_path, column):
    (tmp_path / "t.csv").write_text(f"image,{column}\na.jpg,one\na.jpg,two\na.jpg,three\n")
    (piece,) = tables.split_rows(str(tmp_path / "t.csv"), Columns())
    (record,) = table_pieces.table_records(piece, RowSelection((column,)))
    assert record.captions == record.columns[column] == ("one", "two", "three")


@pytest.mark.parametrize("selection", [None, RowSelection()])
def test_scattered_rows_of_parquet_are_those_of_their_numbers(tmp_path, selection):
    pq.write_table(
        pa.table({"text": [str(number) for number in range(400)]}), tmp_path / "t.parquet", row_group_size=150
    )
    numbers = [399, 0, 151, 149, 150, 299, 63, 64]
    assert [row["text"] for row in scattered_rows(str(tmp_path / "t.parquet"), numbers, selection=selection)] == list(
        map(str, numbers)
    )


@pytest.mark.parametrize(
    "rows, columns",
    [
        (['{"image": "0.jpg", "text": "a"}', '{"image": "0.jpg", "text": "b", "n": 1}'], Columns(keys=("image",))),
        (['{"image": "0.jpg", "text": "a"}', '\ufeff{"image": "0.jpg", "text": "b"}'], Columns()),
    ],
)
def test_rows_of_few_columns_are_grouped_as_others_are(table, rows, columns):
    shards = read_samples(table("t.jsonl", "\n".join(rows)), columns=columns)
    assert [sample.captions for shard in shards for sample in shard] == [("a", "b")] and len(shards[0].samples) == 1


def test_what_is_no_row_of_one_caption_stays_a_row(table):
    lines = [
        '{"image": "0.jpg", "text": "a"}',
        "{broken",
        '{"image": "0.jpg", "text": "b"}',
        '{"image": "0.jpg"}',
        '{"image": "0.jpg", "text": "c", "key": "own"}',
        '{"image": "0.jpg", "text": "d", "key": "own"}',
    ]
    records = read(table("t.jsonl", "\n".join(lines)))
    assert [sample.captions for sample in records] == [
        ("a", "b"),
        (),
        (),
        ("c", "d"),
    ]  # 6 lines are 4 records and 2 that joined them
    assert [sample.key for sample in records] == [
        "t-000000000",
        "t-000000001",
        "t-000000003",
        "own",
    ] and "JSON" in records[1].error


def test_a_further_row_of_a_picture_that_cannot_be_read_is_named(caplog):
    reading = table_columns.TableReading(image="image", captions=(), text="text", key=None, lists=())
    rows = [(0, {"image": b"a", "text": "x"}), (3, ValueError("a row of 9 bytes")), (4, {"text": "y"})]
    (record,) = grouping.grouped(rows, reading, path="t.parquet", firsts={0: 0, 3: 0, 4: 0})
    assert record == (0, {"image": b"a", "text": ["x", "y"]})
    assert caplog.messages == ["t.parquet: row 4 is left out of its picture's captions: a row of 9 bytes"]


def test_records_of_ours_and_lists_of_captions_are_not_grouped(table):
    assert captions(
        table("t.jsonl", '{"image": "0.jpg", "captions": ["a"]}\n{"image": "0.jpg", "captions": ["b"]}\n')
    ) == [("a",), ("b",)]
    assert len(captions(table("u.jsonl", '{"image": "0.jpg", "text": "a", "syn_text_x": ["b"]}\n' * 2))) == 2


def test_repeats_are_told_in_flat_memory(monkeypatch):
    monkeypatch.setattr("imagetext.readers.grouping.HELD", 10)
    for names, count, again in (
        ([f"n{n // 3}" for n in range(99)], 33, False),
        ([f"n{n % 40}" for n in range(99)], 99, True),
        ([None] * 30, 30, False),
        (["a", None, "a"], 3, True),
        ([], 0, False),
    ):
        repeats = PictureCounter()
        assert [repeats.is_new(name) for name in names].count(True) == repeats.count == count
        assert repeats.are_scattered() == again


def test_rows_are_put_side_by_side_on_disk():
    names = [random.Random(5).choice([*"abc", None]) for _ in range(50)]
    ordered = list(side_by_side((name, number, 10 * number) for number, name in enumerate(names)))
    expected = sorted(range(50), key=lambda n: (n if names[n] is None else names.index(names[n]), n))
    assert [(number, place) for number, place, _ in ordered] == [(n, 10 * n) for n in expected]
    begins = [
        n == 0 or names[b] is None or names[a] != names[b] for n, (a, b) in enumerate(zip([0, *expected], expected))
    ]
    assert [begin for _, _, begin in ordered] == begins


@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_rows_that_stand_apart_are_read_without_what_stands_between_them(tmp_path, monkeypatch, name):
    rows = [{"image": f"{number % 20}.jpg", "text": "x" * 50_000} for number in range(40)]
    (tmp_path / name).write_text(
        json.dumps(rows) if name == "t.json" else "".join(json.dumps(row) + "\n" for row in rows)
    )
    read_bytes = []

    class Counted(io.FileIO):
        def readinto(self, buffer):
            read_bytes.append(super().readinto(buffer))
            return read_bytes[-1]

    (piece,) = tables.split_table(str(tmp_path / name))
    monkeypatch.setattr(table_pieces, "open_file", lambda path, block: io.BufferedReader(Counted(path), block))
    assert [len(row["text"]) for _, row in piece.numbered()] == [2] * 20
    assert 20 * 50_000 < sum(read_bytes) < 40 * 200_000


def test_names_of_any_length_take_little_room_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = side_by_side((str(number % 2) * 200_000, number, number) for number in range(20))
    next(rows)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.sqlite")) < 100_000
