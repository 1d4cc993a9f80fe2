"""Rows of every kind of input, by small exact files."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diversity.inputs import records as input_rows
from diversity.inputs.records import captions_of, scene_of, truncated_of
from diversity.inputs.specs import open_inputs, open_sources, text_columns
from imagetext import limits
from imagetext.sample import Record
from imagetext.shards import ShardWriter


def picture(shade=0):
    buffer = io.BytesIO()
    Image.new("L", (4, 4), shade).save(buffer, "PNG")
    return buffer.getvalue()


def opened(*specs):
    problems = []
    sources, files = open_inputs(list(map(str, specs)), problems)
    assert problems == []
    return sources, files


def read(spec, columns=(), images=()):
    """All rows of an input; `images`: their numbers in the whole input."""
    (source,), _ = opened(spec)
    result = []
    for piece in source.pieces:
        result += piece.read(columns, {number - len(result) for number in images})
    return result


def captions(rows, *columns):
    return [(row.key, *(captions_of(row, column) for column in columns)) for row in rows]


def problems_of(*specs):
    problems = []
    open_inputs(list(map(str, specs)), problems)
    return list(map(str, problems))


# --- plain text and JSON
# ------------------------------------------------------------------------------------------------


def test_a_line_of_text_is_the_caption_of_a_picture_and_a_blank_one_is_empty(tmp_path):
    (tmp_path / "t.txt").write_bytes("\ufeffa dog\r\n\nnul \0 in \u2028it\n".encode() + b"caf\xe9\nlast")
    _, files = opened(tmp_path / "t.txt")
    assert files == ("t",)
    assert captions(read(tmp_path / "t.txt"), "t") == [
        ("000000000", ("a dog",)),
        ("000000001", ("",)),
        ("000000002", ("nul \0 in \u2028it",)),
        ("000000003", ("caf\ufffd",)),
        ("000000004", ("last",)),
    ]


def test_text_whose_first_line_names_columns_is_a_table(tmp_path):
    (tmp_path / "captions.txt").write_text('image,caption\na.jpg,a dog\na.jpg,"a cat, asleep"\n')
    sources, files = opened(tmp_path / "captions.txt")
    assert files == ()
    (row,) = captions(read(tmp_path / "captions.txt"), "captions")
    assert row == ("captions-000000000", ("a dog", "a cat, asleep"))
    (tmp_path / "captions.txt").write_text("a dog, an image\n")
    assert captions(read(tmp_path / "captions.txt"), "captions.txt") == [("000000000", ("a dog, an image",))]


def test_text_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(input_rows, "ROWS", 3)
    (tmp_path / "t.txt").write_text("".join(f"line {number}\n" for number in range(8)))
    (source,), _ = opened(tmp_path / "t.txt")
    assert len(source.pieces) == 3
    assert captions(read(tmp_path / "t.txt"), "t") == [(f"{number:09d}", (f"line {number}",)) for number in range(8)]


@pytest.mark.parametrize("wrap", [list, lambda rows: {"images": [{"id": 7, "file_name": "x"}], "annotations": rows}])
def test_captions_of_one_image_id_are_one_picture(tmp_path, wrap):
    rows = [
        {"image_id": 7, "caption": "a"},
        {"image_id": "COCO_8.jpg", "caption": "b"},
        {"image_id": 7, "caption": "c\ud800"},
        {"image_id": 9},
        "x",
    ]
    (tmp_path / "r.json").write_text(json.dumps(wrap(rows)))
    result = read(tmp_path / "r.json")
    assert captions(result[2:], "r") == [("7", ("a", "c?")), ("COCO_8.jpg", ("b",))]
    assert ["entry 4" in result[0].error, "entry 5" in result[1].error] == [True, True]


def test_a_json_object_of_keys(tmp_path):
    (tmp_path / "r.json").write_text(
        json.dumps({"image1": "a cat", "image2": ["x", "y"], "image3": [], "image4": " "})
    )
    assert captions(read(tmp_path / "r.json"), "r") == [
        ("image1", ("a cat",)),
        ("image2", ("x", "y")),
        ("image3", ()),
        ("image4", ()),
    ]


def test_a_json_list_of_rows_is_a_table(tmp_path):
    (tmp_path / "p.png").write_bytes(picture())
    rows = [
        {"_id": 4, "candidates": ["a"], "references": ["x", "y"], "image": "p.png"},
        {"caption": "b", "syn_text_x": ["c", ""]},
    ]
    (tmp_path / "v.json").write_text(json.dumps(rows))
    result = read(tmp_path / "v.json", images={0})
    assert captions(result, "candidates", "references", "captions", "syn_text_x") == [
        ("4", ("a",), ("x", "y"), (), ()),
        ("v-000000001", (), (), ("b",), ("c", "")),
    ]
    assert [row.image for row in result] == [picture(), None]


def test_a_row_of_a_json_list_that_is_too_long_is_a_row_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "LINE", 200)
    rows = [{"key": "a", "caption": "x" * 300}, {"key": "b", "caption": "a dog"}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    long, short = read(tmp_path / "t.json")
    assert "more than 200" in long.error
    assert captions([short], "captions") == [("b", ("a dog",))]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "[1]",
        "3",
        "[" * 10**5,
        '{"annotations": [{"image_id": 1, "bbox": []}]}',
        '{"images": [{"sentences": []}], "dataset": "coco"}',
    ],
)
def test_other_json_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"r\.json"):
        read(tmp_path / "r.json")


def test_captions_of_a_form_are_no_captions(tmp_path):
    rows = [
        {"image_id": 7, "caption": "a"},
        {"image_id": 7, "caption": "Quality issues are too severe to recognize visual content."},
    ]
    (tmp_path / "r.json").write_text(json.dumps({"images": [], "annotations": rows}))
    assert captions(read(tmp_path / "r.json"), "r") == [("7", ("a",))]
    (tmp_path / "r.json").write_text(json.dumps(rows))  # results of a model, which said so itself
    assert captions(read(tmp_path / "r.json"), "r") == [("7", ("a", rows[1]["caption"]))]


def test_an_info_json_lists_shards(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"key": "k", "syn_text_x": ["a"]}\n')
    (tmp_path / "info.json").write_text('{"lengths": {"a.jsonl": 1}}')
    assert captions(read(tmp_path / "info.json"), "syn_text_x") == [("k", ("a",))]


def test_columns_are_named_after_files_with_as_much_as_tells_them_apart(tmp_path):
    for name in ("a/one.json", "b/one.json", "b/two.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"k": "v"}')
    assert opened(tmp_path / "a/one.json", tmp_path / "b/two.txt")[1] == ("one", "two")
    assert opened(tmp_path / "a/one.json", tmp_path / "b/*")[1] == ("a/one", "b/one", "b/two")
    (tmp_path / "b/one.txt").write_text("x")
    assert opened(tmp_path / "b/one.json", tmp_path / "b/one.txt")[1] == ("one.json", "one.txt")
    (tmp_path / "captions.txt").write_text("x")  # is not mistaken for the originals of records
    assert opened(tmp_path / "captions.txt")[1] == ("captions.txt",)


# --- tables
# ---------------------------------------------------------------------------------------------------------------


def test_jsonl_rows_and_lines_that_are_none(tmp_path):
    (tmp_path / "p.png").write_bytes(picture())
    lines = [
        b'{"key": "k", "image": "p.png", "text": "human", "syn_text_x": ["a", ""], "alt": "alt\\ud800", "n": 3}',
        b"",
        b"{broken",
        b"\xff",
        b'{"uid": 5, "syn_text_x": [], "alt": null, "error": "was broken"}',
        b'{"image": "gone.png", "syn_text_x": "one", "alt": [null, "z"]}',
    ]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    result = read(tmp_path / "t.jsonl", images={0, 4})
    assert captions(result, "captions", "syn_text_x", "alt", "n") == [
        ("k", ("human",), ("a", ""), ("alt?",), ()),
        ("t-000000001", (), (), (), ()),
        ("t-000000002", (), (), (), ()),
        ("5", (), (), (), ()),
        ("t-000000004", (), ("one",), ("z",), ()),
    ]
    assert [row.image for row in result] == [picture(), None, None, None, None]
    assert ["t.jsonl:2: not a line of JSON" in result[1].error, result[2].error != "", result[3].error] == [
        True,
        True,
        "was broken",
    ]
    assert result[4].error == ""  # its captions are as good without a picture


def test_csv_cells_hold_a_text_or_a_list(tmp_path):
    (tmp_path / "t.csv").write_text('id,caption,mine,other\n1,human,"[""a"", ""b""]",[not json\n2,,"[1]",\n')
    assert captions(read(tmp_path / "t.csv", ("mine", "other")), "captions", "mine", "other") == [
        ("1", ("human",), ("a", "b"), ("[not json",)),
        ("2", (), ("[1]",), ()),
    ]


def test_columns_named_twice_are_an_error(tmp_path):
    (tmp_path / "t.csv").write_text("id,a,a\n1,x,y\n")
    assert problems_of(tmp_path / "t.csv") == [f"{tmp_path}/t.csv: columns named twice: a"]


def parquet(path):
    """Seven rows in groups of two, the last one alone."""
    pq.write_table(
        pa.Table.from_pylist(
            [
                {
                    "key": f"k{number}",
                    "image": {"bytes": picture(number), "path": None},
                    "caption": f"human {number}",
                    "mine": [f"a{number}", "b"],
                    "syn_text_x": [f"x{number}"] if number else None,
                    "n": number,
                }
                for number in range(7)
            ]
        ),
        path,
        row_group_size=2,
    )


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_parquet_rows_with_the_pictures_that_are_asked_for(tmp_path, monkeypatch, pieces):
    monkeypatch.setattr(input_rows, "ROWS", {1: 100, 2: 4, 4: 2}[pieces])
    parquet(tmp_path / "t.parquet")
    (source,), _ = opened(tmp_path / "t.parquet")
    assert len(source.pieces) == pieces
    result = read(tmp_path / "t.parquet", ("mine",), images={1, 4, 5})
    assert captions(result, "captions", "mine", "n")[3] == ("k3", ("human 3",), ("a3", "b"), ())
    assert [captions_of(row, "syn_text_x") for row in result[:2]] == [(), ("x1",)]
    assert [row.image for row in result] == [None, picture(1), None, None, picture(4), picture(5), None]


def test_only_columns_of_captions_are_read_from_parquet(tmp_path):
    parquet(tmp_path / "t.parquet")
    first, second = read(tmp_path / "t.parquet")[:2]
    assert (
        first.captions == ("human 0",)
        and second.columns == {"syn_text_x": ("x1",)}
        and set(second.meta) == {"uid", "source"}
    )
    assert "mine" in read(tmp_path / "t.parquet", None)[0].meta


def test_parquet_text_that_is_not_utf8(tmp_path):
    bad = pa.array([b"caf\xe9", b"ok"]).view(pa.string())
    lists = pa.ListArray.from_arrays([0, 1, 2], bad)
    pq.write_table(pa.table({"caption": bad, "syn_text_x": lists, "n": [1, 2]}), tmp_path / "t.parquet")
    assert captions(read(tmp_path / "t.parquet"), "captions", "syn_text_x") == [
        ("t-000000000", ("caf\ufffd",), ("caf\ufffd",)),
        ("t-000000001", ("ok",), ("ok",)),
    ]


def test_conversations_in_parquet_have_captions(tmp_path):
    chat = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a dog"}]
    pq.write_table(pa.table({"id": ["k"], "image": ["k.jpg"], "conversations": [chat]}), tmp_path / "t.parquet")
    assert captions(read(tmp_path / "t.parquet"), "captions") == [("k", ("a dog",))]


def test_damaged_parquet_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    assert "t.parquet: not a readable Parquet file" in problems_of(tmp_path / "t.parquet")[0]


# --- records
# --------------------------------------------------------------------------------------------------------------

SCENE = {"background": "sand", "objects": []}


@pytest.mark.parametrize("format", ["webdataset", "jsonl", "parquet"])
def test_records_are_read_alike_from_every_format(tmp_path, format):
    scores = {"syn_text_x": {"truncated": [True, False]}, "syn_text_y": {"truncated": [True]}}
    with ShardWriter(tmp_path, "s", format=format) as writer:
        columns = {"syn_text_x": ("a", ""), "syn_text_y": ("b", "c")}
        writer.write(Record("a/1", picture(), ("human", "second"), columns, scores, meta={"scene": SCENE}))
        writer.write(Record("2", None, ("left",), error="does not decode"))
    (path,) = (each for each in tmp_path.iterdir() if each.suffix in (".tar", ".jsonl", ".parquet"))
    first, second = read(path, images={0, 1})
    assert first.key == "a/1" and first.image == picture() and first.error == "" and scene_of(first) == SCENE
    assert captions([first], "captions", "syn_text_x", "syn_text_y") == [
        ("a/1", ("human", "second"), ("a", ""), ("b", "c"))
    ]
    assert [truncated_of(first, name) for name in ("syn_text_x", "syn_text_y", "captions")] == [(True, False), (), ()]
    assert captions_of(second, "captions") == ("left",) and second.error == "does not decode" and second.image is None
    assert [row.image for row in read(path)] == [None, None]


def test_a_tar_that_is_cut_is_an_error_on_the_way(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        member = tarfile.TarInfo("k.txt")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes()[:514])
    with pytest.raises(ValueError, match=r"t\.tar"):
        read(tmp_path / "t.tar")


def test_a_folder_gives_captions_without_reading_its_pictures(tmp_path):
    for name in ("a.png", "sub/b.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "c.png", "text": "three"}\n{"file_name": "gone.png", "text": "four"}\n'
    )
    result = read(tmp_path, images={1, 2})
    assert captions(result, "captions") == [
        ("a", ("one", "two")),
        ("c", ("three",)),
        ("gone", ("four",)),
        ("sub/b", ()),
    ]
    assert [row.image for row in result] == [None, picture(), None, None]
    assert [bool(row.error) for row in result] == [False, False, True, False]


def test_sets_and_drawn_scenes(tmp_path):
    (tmp_path / "c.json").write_text(
        json.dumps({"images": [{"id": 7, "file_name": "x.png"}], "annotations": [{"image_id": 7, "caption": "a"}]})
    )
    assert captions(read(f"coco:{tmp_path}/c.json"), "captions") == [("7", ("a",))]
    result = read("scenes:test,n=2", images={1})
    assert [len(captions_of(row, "captions")) for row in result] == [5, 5]
    assert [row.image is None for row in result] == [True, False] and scene_of(result[0])["objects"]


def test_a_scene_of_another_kind_is_none():
    drawn = scene_of(next(iter(read("scenes:test,n=1"))))
    others = [
        {"background": "sand", "objects": value}
        for value in (2, "dog", ["dog"], [{}], [{**drawn["objects"][0], "x": "left"}])
    ]
    for scene in ("indoor", {"objects": []}, {"background": "a beach", "objects": []}, *others):
        assert scene_of(Record("k", None, meta={"scene": scene})) is None
    assert truncated_of(Record("k", None, columns={"a": ("x",)}, scores={"a": {"truncated": "x"}}), "a") == ()


# --- sources
# --------------------------------------------------------------------------------------------------------------


def test_references_and_images_of_their_own(tmp_path):
    (tmp_path / "a.txt").write_text("x\n")
    (tmp_path / "refs.json").write_text('{"000000000": ["r1", "r2"]}')
    (tmp_path / "refs.jsonl").write_text('{"key": "k", "caption": "human", "syn_text_x": ["no"]}\n')
    (tmp_path / "p").mkdir()
    (tmp_path / "p/000000000.png").write_bytes(picture())
    for spec, expected in (("refs.json", ("r1", "r2")), ("refs.jsonl", ("human",))):
        spec = f"{tmp_path}/{spec}"
        sources, files, references = open_sources([f"{tmp_path}/a.txt"], spec, f"{tmp_path}/p")
        assert [source.role for source in sources] == ["input", "references", "images"]
        assert files == ("a",) and references == spec
        (row,) = sources[1].pieces[0].read((), ())
        assert row.columns == {spec: expected}
        (row,) = sources[2].pieces[0].read((), {0})
        assert (row.key, row.columns, row.image) == ("000000000", {}, picture())


def test_references_by_a_plain_name_are_a_column(tmp_path):
    (tmp_path / "a.txt").write_text("x\n")
    sources, _, references = open_sources([f"{tmp_path}/a.txt"], "alt_text", None)
    assert len(sources) == 1 and references == "alt_text"


def test_all_problems_of_the_inputs_are_told_at_once(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "x.doc").touch()
    with pytest.raises(ValueError) as error:
        open_sources(
            [f"{tmp_path}/{name}" for name in ("gone.json", "x.doc", "empty.txt", "*.tar")],
            f"{tmp_path}/r.jsonl",
            "gone/",
        )
    lines = str(error.value).split("\n")
    assert [line.split(": ")[-1] for line in lines[:2]] == [f"nothing matches {tmp_path}/*.tar", "no such file"]
    assert "x.doc: not a .tar" in lines[2] and lines[3].endswith("empty.txt: no rows")
    assert (
        lines[4].startswith("--references ")
        and lines[5].startswith("--images gone/: no such folder")
        and len(lines) == 6
    )


@pytest.mark.parametrize("format", ["webdataset", "jsonl", "parquet"])
def test_a_shard_of_a_run_without_records_is_read(tmp_path, format):
    with ShardWriter(tmp_path, "a", format=format):
        pass
    with ShardWriter(tmp_path, "b", format=format) as writer:
        writer.write(Record("k", picture(), columns={"syn_text_x": ("one",)}))
    assert captions(read(tmp_path, ["syn_text_x"]), "syn_text_x") == [("k", ("one",))]


def test_what_there_is_instead(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"key": "k", "caption": "x", "alt": "y", "n": 3, "l": ["z"]}\n')
    parquet(tmp_path / "b.parquet")
    sources, _ = opened(tmp_path / "a.jsonl", tmp_path / "b.parquet")
    assert text_columns(sources) == ["alt", "caption", "captions", "l", "mine", "syn_text_x"]


# --- names
# ----------------------------------------------------------------------------------------------------------------


def test_a_name_is_given_to_an_inputs_captions_whatever_they_are_called_there(tmp_path):
    rows = {
        "a.jsonl": {"key": "1", "caption": "a dog"},
        "b.csv": "key,text\n1,a cat\n",
        "c.jsonl": {
            "key": "1",
            "caption": "alt",
            "syn_text_x": ["one", "two"],
            "caption_scores": {"syn_text_x": {"truncated": [True, False]}},
        },
    }
    for name, row in rows.items():
        (tmp_path / name).write_text(row if isinstance(row, str) else json.dumps(row) + "\n")
    (tmp_path / "d.txt").write_text("a line\n")
    sources, names = opened(*(f"{name[0]}=" + str(tmp_path / name) for name in (*rows, "d.txt")))
    assert names == ("a", "b", "c", "d")
    a, b, c, d = (next(source.pieces[0].read((), ())) for source in sources)
    assert (captions_of(a, "a"), captions_of(b, "b"), captions_of(c, "c"), captions_of(d, "d")) == (
        ("a dog",),
        ("a cat",),
        ("one", "two"),
        ("a line",),
    )
    assert (
        captions_of(c, "captions") == ("alt",)
        and captions_of(c, "syn_text_x") == ()
        and truncated_of(c, "c") == (True, False)
    )
    assert captions_of(a, "captions") == captions_of(a, "caption") == ()  # else they would be compared with themselves


def test_a_name_for_several_columns_or_two_names_for_an_input_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"key": "1", "syn_text_x": ["one"], "syn_text_y": ["two"]}) + "\n")
    (source,), _ = opened(f"mine={path}")
    with pytest.raises(ValueError, match=r"--input mine=.*a\.jsonl has several columns, syn_text_x, syn_text_y"):
        list(source.pieces[0].read((), ()))
    assert problems_of(f"mine={path}", f"other={path}") == [
        f"--input mine={path}: the same input has the name other, too"
    ]


def test_synthetic_captions_are_not_named_as_the_human_ones_are(tmp_path):
    """Both would stand in the report under one name."""
    row = {"key": "k", "captions": ["a dog on a lawn"], "syn_text_x": ["a cat on a sofa"]}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    (source,), _ = opened(f"captions={path}")
    with pytest.raises(
        ValueError, match=r"--input captions=.*a\.jsonl has synthetic captions, in syn_text_x, and captions is"
    ):
        list(source.pieces[0].read((), ()))
    del row["syn_text_x"]
    path.write_text(json.dumps(row))
    (source,), _ = opened(f"captions={path}")
    assert len(list(source.pieces[0].read((), ()))) == 1


def test_a_spec_with_an_equals_sign_of_its_own_has_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.txt").write_text("a dog\n")
    sources, names = opened("a=b.txt", "scenes:val,n=2")
    assert names == ("a=b",) and [source.spec for source in sources] == ["a=b.txt", "scenes:val,n=2"]
