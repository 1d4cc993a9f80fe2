import base64
import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagetext.readers.table_flags import Columns
from imagetext.readers.table_pieces import ROWS_PER_SHARD
from imagetext.readers.tables import split_table
from imagetext.sources import read_samples


def read(path, **options) -> list:
    return [sample for rows in split_table(str(path), **options) for sample in rows]


def write_jsonl(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_jsonl_with_paths_and_base64(tmp_path, picture):
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/a.jpg").write_bytes(picture(1))
    text = base64.b64encode(picture(2)).decode()
    samples = read(
        write_jsonl(
            tmp_path / "t.jsonl",
            [
                {"image": "pics/a.jpg", "captions": ["one", " ", "two"], "license": "CC0"},
                {"uid": "u2", "image": text, "caption": "three"},
                {"id": 7, "image_path": str(tmp_path / "pics/a.jpg"), "text": "four"},
                {
                    "key": "k",
                    "id": 8,
                    "image": f"data:image/jpeg;base64,{text}",
                    "syn_text_x": ["s"],
                    "members": {"npz": "AAE="},
                },
            ],
        )
    )
    assert [sample.key for sample in samples] == ["t-000000000", "u2", "7", "k"]
    assert [sample.image for sample in samples] == [picture(1), picture(2), picture(1), picture(2)]
    assert [sample.captions for sample in samples] == [("one", "two"), ("three",), ("four",), ()]
    assert samples[0].meta == {"uid": "t-000000000", "source": "pics/a.jpg", "license": "CC0"}
    assert samples[1].meta == {"uid": "u2", "source": "t.jsonl:2"}
    assert samples[2].meta["id"] == 7 and samples[3].meta["id"] == 8 and samples[3].meta["uid"] == "k"
    assert samples[3].members == {"npz": b"\0\1"} and samples[3].columns == {"syn_text_x": ("s",)}


@pytest.mark.parametrize(
    "row,reason",
    [
        ("{not json", "not a line of JSON"),
        ("[1, 2]", "expected a JSON object, got list"),
        ("[" * 10**5, "not a line of JSON"),
        ({"image": "gone.jpg"}, "missing picture file.*gone.jpg"),
        ({"image": None}, "image: there is no picture"),
        ({"image": ""}, "image: there is no picture"),
        ({"image": 3}, "image: expected a path or the bytes"),
        ({"image": "."}, "not a file"),
        ({"image": "x" * 9000}, "neither a path nor"),
        ({"image": "a\0b"}, "null"),
        ({"image": "data:;base64,???"}, "data URL"),
        ({"image": "p.jpg", "syn_text_x": 5}, "syn_text_x: expected"),
    ],
)
def test_a_bad_row_is_a_row_with_its_reason(tmp_path, picture, row, reason):
    (tmp_path / "p.jpg").write_bytes(picture())
    samples = read(write_jsonl(tmp_path / "t.jsonl", [{"image": "p.jpg"}, row, {"image": "p.jpg"}]))
    assert [sample.key for sample in samples] == ["t-000000000", "t-000000001", "t-000000002"]
    assert not samples[0].error and not samples[2].error
    with pytest.raises(ValueError, match=reason):
        raise ValueError(samples[1].error)
    assert len(samples[1].error) < 400


def test_a_bad_column_costs_the_row_no_other_column(tmp_path):
    row = {"image": "data:,", "syn_text_a": 5, "syn_text_x": ["one"], "tags_x": ["dog"], "syn_text_z": [1]}
    (sample,) = read(write_jsonl(tmp_path / "t.jsonl", [row]))
    assert sample.columns == {"syn_text_x": ("one",), "tags_x": ("dog",)}
    assert sample.error.count("expected a text or a list of texts") == 2


def test_half_a_surrogate_pair_is_replaced(tmp_path, picture):
    (tmp_path / "p.jpg").write_bytes(picture())
    (sample,) = read(write_jsonl(tmp_path / "t.jsonl", [r'{"key": "k\ud800", "image": "p.jpg", "text": "a\ud83d b"}']))
    assert sample.captions == ("a? b",) and sample.key == "k\\ud800"


@pytest.mark.parametrize("suffix,dialect", [(".csv", "excel"), (".tsv", "excel-tab")])
def test_rows_of_csv_become_records(tmp_path, picture, suffix, dialect):
    (tmp_path / "a.jpg").write_bytes(picture())
    path = tmp_path / f"t{suffix}"
    rows = [
        ["filepath", "title", "captions", "price"],
        ["a.jpg", "", '["one", "two"]', "3"],
        ["a.jpg", "x", 'a long\none, "quoted"', ""],
        ["a.jpg"],
        ["a.jpg", "x", "[not json", ""],
    ]
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, dialect).writerows(rows)
        file.write("\n")
    samples = read(path)
    assert [sample.captions for sample in samples] == [("one", "two"), ('a long\none, "quoted"',), (), ("[not json",)]
    assert samples[0].meta["price"] == "3" and samples[0].image == picture()
    assert samples[2].error == "1 cells, but the header has 4"
    assert [sample.key for sample in samples] == [f"t-{row:09d}" for row in range(4)]


@pytest.mark.parametrize("packed", [False, True])
def test_empty_cells_at_the_end_of_a_row_may_be_left_out(tmp_path, picture, packed):
    """Spreadsheets leave them out. A row must have its picture and captions."""
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "b.jpg").write_bytes(picture(1))
    text = b"image,caption,source,price\na.jpg,one\na.jpg,two\nb.jpg\nb.jpg,three,web\nb.jpg,four,,,\n"
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(text) if packed else text)
    first, bad, second = read(path)
    assert (first.captions, first.meta["source_fields"], first.meta["price"]) == (("one", "two"), {"source": ""}, "")
    assert bad.error == "1 cells, but the header has 4"
    assert (second.captions, second.meta["source_fields"]) == (("three", "four"), {"source": "web"})


def test_a_giant_csv_cell_is_one_bad_row(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("path,text\na.jpg," + "x" * 200_000 + "\nb.jpg,y\n")
    first, second = read(path)
    assert "not a line of CSV" in first.error and "b.jpg" in second.error


def test_tables_with_bad_columns_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("foo,bar\n1,2\n")
    with pytest.raises(ValueError, match="a.csv: no column of pictures .* it has 'foo', 'bar'"):
        split_table(str(tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_text("path,text,path\n1,2,3\n")
    with pytest.raises(ValueError, match="b.csv: columns named twice: path"):
        split_table(str(tmp_path / "b.csv"))
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="c.parquet: not a readable Parquet"):
        split_table(str(tmp_path / "c.parquet"))


@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_parquet_holds_pictures_as_bytes_structs_or_paths(tmp_path, picture, kind):
    (tmp_path / "a.jpg").write_bytes(picture())
    cells = {
        "bytes": [picture(), b""],
        "struct": [{"bytes": picture(), "path": "x"}, {"bytes": None, "path": "gone.jpg"}],
        "path": ["a.jpg", None],
    }[kind]
    table = pa.table({"uid": ["a", "b"], "image": cells, "captions": [["one", "two"], None], "n": [1.5, None]})
    pq.write_table(table, tmp_path / "t.parquet")
    first, second = read(tmp_path / "t.parquet")
    assert (
        first.key == "a" and first.image == picture() and first.captions == ("one", "two") and first.meta["n"] == 1.5
    )
    assert second.captions == ()
    assert second.image == b"" if kind == "bytes" else second.image is None and second.error
    assert kind != "struct" or second.error == "missing picture file: 'gone.jpg' (No such file or directory)"


def test_tables_without_pictures_keep_their_captions(tmp_path):
    (tmp_path / "t.csv").write_text("id,caption\n1,one\n")
    (sample,) = read(tmp_path / "t.csv")
    assert sample.image is None and sample.captions == ("one",) and not sample.error


@pytest.mark.parametrize("column", ["key", "uid", "id"])
def test_whole_numbers_are_keys_without_a_fraction(tmp_path, column):
    """Other tools store the numbers of a column as 1.0 if one is missing."""
    rows = [{column: number, "caption": "one"} for number in (0.0, 1.0, None, 2.5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for path in (write_jsonl(tmp_path / "t.jsonl", rows), tmp_path / "t.parquet"):
        assert [sample.key for sample in read(path)] == ["0", "1", "t-000000002", "2.5"]


def test_rows_of_one_key_get_keys_of_their_own(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("id,caption\n1,one\n1,two\n")
    assert [(sample.key, sample.meta["uid"]) for sample in read(tmp_path / "t.csv")] == [("1", "1"), ("1~2", "1")]
    assert "seen twice" in caplog.text


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("count", [1, ROWS_PER_SHARD, 2 * ROWS_PER_SHARD + 345])
def test_shards_of_a_table_are_its_rows(tmp_path, suffix, count):
    texts = [f"line {row}\nsecond, line" for row in range(count)]
    path = tmp_path / f"t{suffix}"
    if suffix == ".jsonl":
        write_jsonl(
            path, [json.dumps({"text": text}) + ("\n" if row % 3 else "\r\n\r\n") for row, text in enumerate(texts)]
        )
    elif suffix == ".csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([["text"], *([text] for text in texts)])
    else:  # row groups that do not fit the shards
        pq.write_table(pa.table({"text": texts}), path, row_group_size=300)
    shards = split_table(str(path))
    assert [len(list(rows)) for rows in shards] == [
        min(ROWS_PER_SHARD, count - first) for first in range(0, count, ROWS_PER_SHARD)
    ]
    samples = read(path)
    assert [sample.captions for sample in samples] == [(text,) for text in texts]
    assert [sample.key for sample in samples] == [f"t-{row:09d}" for row in range(count)]
    assert list(shards[-1]) == list(shards[-1])  # again


# ---- compressed, and what other tools write ----------------------------------------------------------------------


def compressed(path, data: bytes):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    else:
        with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:
            stream.write(data)
    return path


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".jsonl.zstd", ".JSONL.GZ"])
def test_a_compressed_table_is_one_shard(tmp_path, picture, suffix):
    (tmp_path / "p.jpg").write_bytes(picture())
    lines = (
        "".join(json.dumps({"image": "p.jpg", "text": f"line {row}"}) + "\n\n" for row in range(ROWS_PER_SHARD + 10))
        + "{"
    )
    path = tmp_path / f"x.y{suffix}"
    compressed(path.with_suffix(path.suffix.lower()), lines.encode()).rename(path)
    (rows,) = split_table(str(path), columns=Columns(group=False))
    samples = list(rows)
    assert [sample.captions for sample in samples[:-1]] == [(f"line {row}",) for row in range(ROWS_PER_SHARD + 10)]
    assert (
        samples[0].image == picture()
        and samples[0].key == "x.y-000000000"
        and "not a line of JSON" in samples[-1].error
    )
    assert list(rows) == samples


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_table_that_is_cut(tmp_path, suffix):
    path = compressed(tmp_path / f"x.jsonl{suffix}", b"".join(b'{"text": "%d"}\n' % (row**7) for row in range(3_000)))
    data = path.read_bytes()
    assert len(read(path)) == 3_000
    path.write_bytes(data + data)  # concatenated gzip files are one file
    assert len(read(path)) == 6_000
    for length in (0, 1, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=f"x.jsonl{suffix}: "):
            read(path)
    path.write_bytes(data + b"more")
    with pytest.raises(ValueError, match=f"x.jsonl{suffix}: cut or damaged"):
        read(path)


def test_a_column_of_pictures_of_another_name(tmp_path, picture):
    pictures = [{"bytes": picture(1), "path": "x.jpg"}, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"n": [1, 2], "photo": pictures, "mask": pictures}), tmp_path / "t.parquet")
    first, second = read(tmp_path / "t.parquet")
    assert first.image == picture(1) and first.meta["mask"]["bytes"] == picture(1)
    assert second.error == "image: there is no picture"
    pq.write_table(
        pa.table({"photo": pictures, "path": ["gone", "gone"]}), tmp_path / "t.parquet"
    )  # a known name goes first
    assert "missing picture file" in read(tmp_path / "t.parquet")[0].error


def test_a_parquet_cell_that_cannot_be_read_is_one_bad_row(tmp_path, picture):
    texts = pa.array([b"a", b"\xff\xfe", b"c"] * 50).view(pa.string())
    pq.write_table(pa.table({"image": [picture()] * 150, "text": texts}), tmp_path / "t.parquet", row_group_size=40)
    (samples,) = map(list, split_table(str(tmp_path / "t.parquet"), columns=Columns(group=False)))
    assert len(samples) == 150 and [sample.key for sample in samples] == [f"t-{row:09d}" for row in range(150)]
    assert all("cell that cannot be read" in sample.error for sample in samples[1::3])
    assert all(sample.image == picture() and not sample.error for sample in samples[::3] + samples[2::3])


def test_a_damaged_parquet_file_names_itself(tmp_path, picture):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [picture(number) for number in range(20)]}), path)
    (rows,) = split_table(str(path))
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="t.parquet: damaged Parquet file"):
        list(rows)


def test_a_record_of_ours_without_a_picture_is_no_error(tmp_path):
    rows = [
        {"key": "a", "image": None, "error": "", "syn_text_x": ["one"]},
        {"key": "b", "image": None, "error": None},
    ]
    first, second = read(write_jsonl(tmp_path / "t.jsonl", rows))
    assert first.image is None and not first.error and second.error == "image: there is no picture"


def test_numbers_are_no_bytes(tmp_path):
    rows = [
        {"text": "a", "members": [{"name": "npz", "data": 10**15}]},
        {"text": "b", "members": {"npz": "not base64"}},
    ]
    assert [sample.members for sample in read(write_jsonl(tmp_path / "t.jsonl", rows))] == [{}, {}]


def test_a_json_column_cannot_say_that_a_row_failed(tmp_path):
    row = {"text": "a", "json": '{"error": [1], "n": 2, "caption_scores": 3, "uid": null}'}
    (sample,) = read(write_jsonl(tmp_path / "t.jsonl", [row]))
    assert sample.meta == {"uid": "t-000000000", "source": "t.jsonl:1", "source_fields": {"json": row["json"]}}
    assert sample.scores == {} and not sample.error


def test_json_that_is_nested_without_end(tmp_path):
    for depth, fits in ((90, True), (110, False), (900, False)):
        (sample,) = read(
            write_jsonl(tmp_path / "t.jsonl", ['{"text": "a", "deep": ' + "[" * depth + "]" * depth + "}"])
        )
        assert (not sample.error) == fits


def test_an_empty_synthetic_caption_keeps_its_place_because_scores_and_embeddings_go_by_it(tmp_path):
    (tmp_path / "set.jsonl").write_text(
        '{"key": "a", "captions": ["", "a dog"], "syn_text_x": ["", null, "a cat"], "syn_text_y": [""], '
        '"tags_x": ["cat", null]}\n'
    )
    (shard,) = read_samples([str(tmp_path / "set.jsonl")])
    (sample,) = shard
    # the second one is not written
    assert sample.columns == {"syn_text_x": ("", "", "a cat"), "syn_text_y": ("",), "tags_x": ("cat", "")}
    assert not sample.error
    assert sample.captions == ("a dog",)


def test_pictures_of_parquet_as_bytes(tmp_path, picture):
    """Parquet of img2dataset, and bytes under the usual names, plain or as `datasets` stores them."""
    struct = {"bytes": picture(), "path": None}
    for name, cell in (
        ("jpg", picture()),
        ("png", picture()),
        ("img", picture()),
        ("image", picture()),
        ("image_bytes", picture()),
        ("jpg", struct),
        ("img", struct),
    ):
        rows = [
            {
                "caption": "alt",
                "url": "http://e.org/file.jpg",
                "key": "000",
                "error_message": None,
                "width": 9,
                "sha256": "0",
                name: cell,
            },
            {
                "caption": None,
                "url": None,
                "key": "001",
                "error_message": "404",
                "width": None,
                "sha256": None,
                name: None,
            },
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
        first, second = read(tmp_path / "t.parquet")
        assert (first.key, first.image, first.captions, first.error) == ("000", picture(), ("alt",), "")
        assert first.meta["source_fields"] == {"sha256": "0", "width": 9} and first.meta["error_message"] is None
        assert second.image is None and second.error


def test_captions_in_the_json_of_webdatasets_shards_in_parquet(tmp_path, picture):
    """The Hub makes such Parquet of tars. In a tar, too, `txt` comes before captions in `json`."""
    fields = {"caption": "a dog", "long": "a dog on a lawn", "filename": "a.jpg"}
    rows = {"__key__": ["k"], "jpg": [{"bytes": picture(), "path": None}], "json": [fields]}
    for name, added, columns, expected in (
        ("a", {}, Columns(), "a dog"),
        ("b", {}, Columns(captions=("long",)), "a dog on a lawn"),
        ("c", {"txt": ["alt"]}, Columns(captions=("long",)), "a dog on a lawn"),
        ("d", {"txt": ["alt"]}, Columns(), "alt"),
        ("e", {"txt": [None]}, Columns(), "a dog"),
    ):
        pq.write_table(pa.table(rows | added), tmp_path / f"{name}.parquet")
        (record,) = read(tmp_path / f"{name}.parquet", columns=columns, needs=("pictures", "captions"))
        assert (record.key, record.image, record.captions, record.error) == ("k", picture(), (expected,), "")


def test_parquet_that_is_made_of_webdatasets_shards(tmp_path, picture):
    rows = [
        {
            "__key__": f"d/{number}",
            "__url__": "00000.tar",
            "jpg": {"bytes": picture(number), "path": f"{number}.jpg"},
            "txt": "alt",
            "json": {"uid": f"u{number}", "width": 9},
            "syn.json": {"syn_text_x": ["one", "two"]},
        }
        for number in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for number, record in enumerate(read(tmp_path / "t.parquet")):
        assert (record.key, record.image, record.captions) == (f"d/{number}", picture(number), ("alt",))
        assert (
            record.columns == {"syn_text_x": ("one", "two")}
            and record.meta["uid"] == f"u{number}"
            and not record.error
        )
        assert record.meta["source_fields"] == {"width": 9} and record.meta["__url__"] == "00000.tar"
