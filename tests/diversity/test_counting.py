"""Columns of captions counted over inputs: what is compared of which pictures, the same by any number of processes."""

import io
import json
import os
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diversity.inputs import count as counting
from diversity.inputs import kept
from diversity.inputs import records as input_rows
from diversity.inputs.count import choose, count_captions, count_columns
from imagetext.readers.table_flags import Columns

WORDS = "a the dog cat runs sits on red blue grass".split()


def picture(shade=0):
    buffer = io.BytesIO()
    Image.new("L", (4, 4), shade).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path):
    """Files of JSON lines, of JSON or of plain lines, by their suffix."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        elif name.endswith(".json"):
            path.write_text(json.dumps(content))
        else:
            path.write_text("".join(f"{line}\n" for line in content))
        return str(path)

    return write


def compared(counted):
    """Key and captions of each picture of the sample, by key."""
    by_key = sorted(counted.sample.pictures, key=lambda picture: (picture.key, picture.occurrence))
    return [(picture.key, picture.captions) for picture in by_key]


def results(counted):
    return {name: accumulator.result() for name, accumulator in counted.accumulators.items()}


def assert_same(single, other):
    assert replace(single, accumulators={}, sample=None) == replace(other, accumulators={}, sample=None)
    assert single.sample.pictures == other.sample.pictures
    assert results(single) == results(other)


# --- which columns, which pictures
# ----------------------------------------------------------------------------------------


def test_blanks_around_captions_are_left_out(write):
    rows = [{"key": "a", "captions": [" a dog\n"], "syn_text_a": ["a dog  "], "other": "\ta cat"}]
    counted = count_columns([write("r.jsonl", rows)], ["syn_text_a", "other"])
    assert compared(counted) == [("a", {"syn_text_a": ("a dog",), "other": ("a cat",), "captions": ("a dog",)})]


def test_all_synthetic_columns_beside_the_originals(write):
    measured = count_columns(
        [
            write(
                "r.jsonl",
                [
                    {"key": "1", "captions": ["human"], "syn_text_x": ["a"], "syn_text_y": ["b"], "alt": "no"},
                    {
                        "key": "2",
                        "captions": ["other"],
                        "syn_text_x": ["c"],
                        "syn_text_y": ["d"],
                        "syn_text_x_emb": ["e"],
                    },
                ],
            )
        ]
    )
    assert measured.names == ("syn_text_x", "syn_text_y") and measured.references == "captions"
    assert list(measured.accumulators) == ["syn_text_x", "syn_text_y", "captions"]
    assert compared(measured) == [
        ("1", {"syn_text_x": ("a",), "syn_text_y": ("b",), "captions": ("human",)}),
        ("2", {"syn_text_x": ("c",), "syn_text_y": ("d",), "captions": ("other",)}),
    ]
    assert (measured.pictures, measured.failed, measured.notes) == (2, 0, ())
    assert results(measured)["syn_text_x"]["captions"] == 2


def test_columns_and_references_by_name(write):
    path = write(
        "r.jsonl", [{"key": "1", "captions": ["h"], "alt": "alt text", "long": ["l", "m"], "syn_text_x": ["a"]}]
    )
    measured = count_columns([path], ["alt"], "long")
    assert (measured.names, measured.references) == (("alt",), "long")
    (picture,) = measured.sample.pictures
    assert picture.captions["alt"] == ("alt text",) and len(picture.captions["long"]) == 1
    assert picture.references == ("l", "m")  # all of them
    assert count_columns([path], ["captions"]).references is None
    assert count_columns([path], references="none").references is None
    assert count_columns([path], references="syn_text_x", columns=["long"]).names == ("long",)


def test_two_runs_on_the_same_pictures_are_joined_by_key(write):
    before = [
        {"key": "1", "captions": ["h1"], "syn_text_a": ["a1"]},
        {"key": "2", "captions": ["h2"], "syn_text_a": ["a2"]},
    ]
    after = [{"key": "2", "captions": ["h2"], "syn_text_b": ["b2"]}, {"key": "1", "syn_text_b": ["b1"]}]
    measured = count_columns([write("before.jsonl", before), write("after.jsonl", after)])
    assert compared(measured) == [
        (key, {"captions": (f"h{key}",), "syn_text_a": (f"a{key}",), "syn_text_b": (f"b{key}",)}) for key in "12"
    ]
    assert measured.notes == ()


def test_a_key_that_comes_again_with_the_same_column_is_another_picture(write):
    rows = [{"key": "1", name: [f"{name}{number}"]} for name in ("syn_text_x", "syn_text_y") for number in range(2)]
    measured = count_columns([write("r.jsonl", rows)])
    assert compared(measured) == [
        ("1", {"syn_text_x": ("syn_text_x0",), "syn_text_y": ("syn_text_y0",)}),
        ("1", {"syn_text_x": ("syn_text_x1",), "syn_text_y": ("syn_text_y1",)}),
    ]
    assert measured.notes == ("Keys that occur again in the same column: 1; each of them counts as another picture.",)


def test_only_what_all_have_is_compared_and_the_rest_is_named(write):
    rows = [
        {"key": "1", "syn_text_x": ["a", "b", "c"], "syn_text_y": ["d"], "captions": ["h"]},
        {"key": "2", "syn_text_x": ["a"], "captions": ["h"]},
        {"key": "3", "captions": ["h"], "error": "does not decode"},
        {"key": "4", "syn_text_y": ["a"], "syn_text_x": ["b"], "error": "lost later"},
        {"key": "5", "captions": ["h"]},
    ]
    measured = count_columns([write("r.jsonl", rows)])
    assert (measured.pictures, measured.failed) == (1, 1)
    assert measured.notes == (
        "Failed records, which have no captions: 1; the first: 3: does not decode",
        "Pictures of captions that are in no other column: 2.",
        "Compared on 1 of 3 pictures, those that have a caption in every column: syn_text_y lacks 1, captions lacks "
        "1.",
        "Of each picture, every column counts with the same number of captions: as many as the column with the fewest "
        "has, at most 100. Captions that were left out at random: 2 of syn_text_x.",
    )
    assert {row["captions"] for row in results(measured).values()} == {1}


def test_a_picture_of_very_many_captions_counts_with_a_hundred(write):
    """Some measures compare each two captions of a picture."""
    rows = [
        {"key": "1", "syn_text_x": [f"a dog {number}" for number in range(5000)]},
        {"key": "2", "syn_text_x": ["a"]},
    ]
    measured = count_columns([write("r.jsonl", rows)])
    assert results(measured)["syn_text_x"]["captions"] == 101
    assert [len(picture.captions["syn_text_x"]) for picture in measured.sample.pictures] in ([100, 1], [1, 100])
    assert "at most 100. Captions that were left out at random: 4,900 of syn_text_x." in measured.notes[-1]


def test_failures_of_several_files_are_one_note(write):
    measured = count_columns(
        [
            write(f"{name}.jsonl", [{"key": name, "syn_text_x": ["a"]}, {"key": "bad", "error": f"of {name}"}])
            for name in "ab"
        ]
    )
    assert measured.notes == ("Failed records, which have no captions: 2; the first: bad: of a",)


def test_references_limit_no_column_and_pictures_with_fewer_are_counted(write):
    measured = count_columns([write("r.jsonl", [{"key": "1", "captions": ["h"], "syn_text_x": ["a", "b"]}])])
    (picture,) = measured.sample.pictures
    assert picture.captions == {"syn_text_x": ("a", "b"), "captions": ("h",)}
    assert "Pictures with fewer human captions than captions of a column: 1" in measured.notes[-1]


def test_lines_of_two_files_are_compared_line_by_line(write):
    measured = count_columns([write("a.txt", ["a dog", "a cat"]), write("b.txt", ["the dog", "the cat", "more"])])
    assert compared(measured) == [
        ("000000000", {"a": ("a dog",), "b": ("the dog",)}),
        ("000000001", {"a": ("a cat",), "b": ("the cat",)}),
    ]


def test_coco_results_references_and_pictures_are_joined_by_number(write, tmp_path):
    results = write(
        "mine.json", [{"image_id": number, "caption": text} for number, text in ((42, "a"), (42, "b"), (7, "c"))]
    )
    annotations = write(
        "captions_val.json",
        {
            "images": [],
            "annotations": [
                {"image_id": number, "caption": f"human {number} {position}"}
                for number in (7, 42, 43)
                for position in range(5)
            ],
        },
    )
    (tmp_path / "val").mkdir()
    (tmp_path / "val/COCO_val2014_000000000042.png").write_bytes(picture(42))
    measured = count_columns([results], references=annotations, images=str(tmp_path / "val"))
    assert (measured.names, measured.references, measured.pictures) == (("mine",), annotations, 2)
    by_key = {picture.key: picture for picture in measured.sample.pictures}
    assert by_key["42"].image == picture(42) and by_key["7"].image is None
    assert by_key["42"].captions["mine"] == ("a", "b") and by_key["42"].references == tuple(
        f"human 42 {position}" for position in range(5)
    )
    assert len(by_key["42"].captions[annotations]) == 2
    assert "joined by the number" in measured.notes[0]
    assert measured.notes[1] == f"Pictures of {annotations} that are in no other column: 1."
    assert (
        measured.notes[-1]
        == f"Pictures that are not in {tmp_path}/val: 1 of the 2 that were looked for, for example '7'."
    )


def test_pictures_of_the_inputs_and_of_their_own(write, tmp_path):
    (tmp_path / "given").mkdir()
    for name, shade in (("own1.png", 1), ("own2.png", 2), ("given/1.png", 2), ("given/2.png", 1)):
        (tmp_path / name).write_bytes(picture(shade))
    path = write("r.jsonl", [{"key": number, "image": f"own{number}.png", "syn_text_x": ["a"]} for number in "12"])

    def images(**options):
        return {each.key: each.image for each in count_columns([path], **options).sample.pictures}

    assert images() == {"1": picture(1), "2": picture(2)}
    assert images(images=str(tmp_path / "given")) == {"1": picture(2), "2": picture(1)}
    assert images(keep_images=0) == {"1": None, "2": None}


def test_pictures_that_tables_name_lie_beside_them_or_in_folders_that_are_named(write, tmp_path):
    for name in ("set", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "out/1.png").write_bytes(picture(1))
    path = write("set/r.jsonl", [{"key": key, "image": "../out/1.png", "syn_text_x": ["a"]} for key in ("a", "1")])

    def images(given):
        return {each.key: each.image for each in count_columns([path], images=given).sample.pictures}

    with pytest.raises(ValueError, match=f"2 of its rows lead outside {tmp_path}/set; .*--images {tmp_path}/out"):
        images([])
    assert images([f"{tmp_path}/out"]) == {"a": picture(1), "1": picture(1)}  # by its path, and by its key too
    assert images(["none"]) == {"a": None, "1": None}
    references = write(
        "set/h.jsonl", [{"key": "a", "image": "../out/1.png", "caption": "human"}]
    )  # their pictures are not read
    assert count_columns([write("in.jsonl", [{"key": "a", "syn_text_x": ["a"]}])], references=references).pictures == 1


def test_pictures_are_kept_of_the_first_of_the_sample_only(tmp_path):
    pq.write_table(
        pa.table(
            {
                "key": [str(number) for number in range(40)],
                "syn_text_x": [["a"]] * 40,
                "image": [picture(number) for number in range(40)],
            }
        ),
        tmp_path / "r.parquet",
        row_group_size=7,
    )
    measured = count_columns([str(tmp_path / "r.parquet")], size=20, keep_images=5, seed=3)
    assert [each.image for each in measured.sample.pictures] == [
        picture(int(each.key)) if number < 5 else None for number, each in enumerate(measured.sample.pictures)
    ]
    assert len(measured.sample.pictures) == 20 and measured.pictures == 40


def test_marks_and_scenes_go_with_their_captions(write):
    scene = {
        "background": "sand",
        "objects": [
            {
                "shape": "circle",
                "colour": "red",
                "size": "small",
                "texture": "plain",
                "x": 0.2,
                "y": 0.5,
                "radius": 0.1,
            }
        ],
    }
    row = {
        "key": "1",
        "syn_text_x": ["a red circle", "a cut caption"],
        "syn_text_y": ["a blue circle"],
        "scene": scene,
        "caption_scores": {"syn_text_x": {"truncated": [False, True]}, "syn_text_y": {"truncated": []}},
    }
    chosen = {}
    for seed in range(20):
        measured = count_columns([write("r.jsonl", [row])], seed=seed)
        (picture,) = measured.sample.pictures
        chosen[picture.captions["syn_text_x"]] = picture.truncated
        assert results(measured)["syn_text_x"]["degenerate_reasons"]["cut"] == picture.truncated["syn_text_x"][0]
        assert results(measured)["syn_text_y"]["facts"]["precision"] == 0.5 and picture.scene == scene
    assert chosen == {("a red circle",): {"syn_text_x": (False,)}, ("a cut caption",): {"syn_text_x": (True,)}}


# --- bad input
# ------------------------------------------------------------------------------------------------------------


def test_missing_columns_are_named_all_at_once(write):
    path = write("r.jsonl", [{"key": "1", "captions": ["h"], "syn_text_x": ["a"], "n": 3, "sha256": "abc"}])
    with pytest.raises(
        ValueError, match="--column syn_text_a: .*--column n: .*--references who: .*have captions, syn_text_x$"
    ):
        count_columns([path], ["syn_text_a", "n"], "who")
    with pytest.raises(ValueError, match="--references syn_text_x: named with --column too"):
        count_columns([path], ["syn_text_x"], "syn_text_x")
    with pytest.raises(ValueError, match="no syn_text_.*--column; the records have caption, captions$"):
        count_columns([write("h.jsonl", [{"key": "1", "caption": "h"}])])
    with pytest.raises(ValueError, match="the records have no captions; Failed records.* 1; the first: 1: no picture"):
        count_columns([write("f.jsonl", [{"key": "1", "error": "no picture"}])])
    with pytest.raises(ValueError, match=r"--references .*h\.jsonl: no captions in it"):
        count_columns([path], references=write("h.jsonl", [{"key": "1", "syn_text_z": "h"}]))


def test_files_that_cannot_be_read_are_named_all_at_once(write, tmp_path):
    (tmp_path / "t.tar").write_bytes(b"no tar at all")
    with pytest.raises(ValueError, match=r"(?s)a\.json.*t\.tar.*b\.json"):
        count_columns([write("a.json", []), str(tmp_path / "t.tar")], references=write("b.json", {}))


def test_nothing_in_common_says_what_each_has(write):
    single, other = (
        write("a.jsonl", [{"key": "p/1", "syn_text_x": "a"}]),
        write("b.jsonl", [{"key": "q/2", "syn_text_y": "b"}]),
    )
    with pytest.raises(
        ValueError, match="_x has 1, syn_text_y has 1; first keys: 'p/1' in .*a.jsonl, 'q/2' in .*b.jsonl"
    ):
        count_columns([single, other])
    with pytest.raises(ValueError, match=r"'x{116}\.\.\. in .*c.jsonl; --key .*; repeat it if tables have different"):
        count_columns([single, write("c.jsonl", [{"key": "x" * 5000, "syn_text_y": "b"}])])


def test_a_file_that_changes_on_the_way_is_an_error(write, monkeypatch):
    path, index = write("a.txt", ["one", "two"]), counting.index_pieces

    def then_cut(*arguments, **options):
        measured = index(*arguments, **options)
        write("a.txt", ["one"])
        return measured

    monkeypatch.setattr(counting, "index_pieces", then_cut)
    with pytest.raises(ValueError, match=r"a\.txt: changed while it was read"):
        count_columns([path])


# --- order, pieces, processes
# -----------------------------------------------------------------------------------------------


def rows(count, seed=0):
    return [
        {
            "key": f"k{number}",
            "captions": [f"a {WORDS[number % 7]}", "the cat sits"],
            "syn_text_x": [
                f"{WORDS[(number + position) % 10]} {WORDS[number % 3]} {number}" for position in range(1 + number % 3)
            ],
            "syn_text_y": [f"a red {WORDS[number * position % 10]}" for position in range(number % 4)],
        }
        for number in range(count)
    ]


def test_the_same_whatever_order_the_rows_come_in_and_however_they_are_split(write, monkeypatch):
    whole = count_columns([write("r.jsonl", rows(60))], size=10, keep_images=0)
    monkeypatch.setattr(counting, "ROWS_AT_ONCE", 7)
    for parts in (1, 4):
        paths = [write(f"p{part}.jsonl", rows(60)[::-1][part::parts]) for part in range(parts)]
        assert_same(count_columns(paths, size=10, keep_images=0), whole)


@pytest.mark.parametrize("limit", [0, 1700, 1 << 28])
def test_rows_that_are_kept_give_what_reading_them_again_gives(write, monkeypatch, tmp_path, limit):
    """With 1,700 bytes some pieces are kept and others are not; one of four has no picture with every column."""
    (tmp_path / "p").mkdir()
    for number in range(20):
        (tmp_path / f"p/k{number}.png").write_bytes(picture(number))
    lines = [
        row
        | {
            "caption_scores": {"syn_text_x": {"truncated": [True] * len(row["syn_text_x"])}},
            "image": f"{row['key']}.png",
        }
        for row in rows(20)
    ]
    paths = [write(f"p/r{part}.jsonl", lines[part::4]) for part in range(4)]
    reads = []
    monkeypatch.setattr(kept, "_kept_rows", lambda path, read=kept._kept_rows: reads.append(path) or read(path))
    monkeypatch.setattr(kept, "LIMIT", limit)
    counted = count_columns(paths, size=10, keep_images=3)
    monkeypatch.setattr(kept, "LIMIT", 0)
    again = count_columns(paths, size=10, keep_images=3)
    assert len(reads) in {0: [0], 1700: [1, 2], 1 << 28: [3]}[limit] and not any(map(os.path.exists, reads))
    assert_same(counted, again)
    assert [each.truncated for each in counted.sample.pictures] == [each.truncated for each in again.sample.pictures]
    assert [bool(each.image) for each in counted.sample.pictures] == [True] * 3 + [False] * 7


def test_a_piece_that_fills_the_disk_is_read_again(tmp_path):
    piece = kept.KeptPiece(kept.Space(str(tmp_path)))
    piece._file = open("/dev/full", "wb")  # a file on which nothing has room
    for number in range(3 * kept.ROWS_AT_ONCE):
        piece.add((str(number), {"a": ("x",)}, {}, None))
    assert piece.finish() == ""


def test_a_piece_with_a_value_that_cannot_be_kept_is_read_again(tmp_path):
    piece = kept.KeptPiece(kept.Space(str(tmp_path)))
    piece.add(("k", {"syn_text_x": ("a dog",)}, {}, {"background": object()}))
    assert piece.finish() == ""


def test_two_processes_count_what_one_does(write, monkeypatch, tmp_path):
    paths = [
        write("x.jsonl", [{"key": row["key"], "syn_text_x": row["syn_text_x"]} for row in rows(50)]),
        write("y.jsonl", [{"key": row["key"], "syn_text_y": row["syn_text_y"]} for row in rows(40)]),
    ]
    references = write("refs.jsonl", [{"key": row["key"], "captions": row["captions"]} for row in rows(45)])
    (tmp_path / "p").mkdir()
    for number in range(50):
        (tmp_path / f"p/k{number}.png").write_bytes(picture(number))
    single, two = (
        count_columns(
            paths, references=references, images=str(tmp_path / "p"), workers=workers, size=12, keep_images=4
        )
        for workers in (1, 2)
    )
    assert_same(two, single)
    assert [each.image == picture(int(each.key[1:])) for each in two.sample.pictures] == [True] * 4 + [False] * 8


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**64 - 1), st.text(max_size=3))
def test_chosen_captions_are_some_in_order(captions, count, position, column):
    count = min(captions, count)
    chosen = list(choose(captions, count, position, column))
    assert chosen == sorted(set(chosen)) and len(chosen) == count and set(chosen) <= set(range(captions))
    assert set(choose(captions, max(1, count - 1), position, column)) <= set(chosen)


def test_captions_of_any_place_are_chosen_alike():
    draws = [number for position in range(2000) for number in choose(5, 2, position, "x")]
    assert all(
        abs(draws.count(number) - 800) < 5 * (2000 * 0.4 * 0.6) ** 0.5 for number in range(5)
    )  # standard deviations
    assert [*choose(5, 2, 1, "x")] != [*choose(5, 2, 2, "x")] or [*choose(5, 2, 1, "y")] != [*choose(5, 2, 2, "y")]


# --- captions that are here
# -------------------------------------------------------------------------------------------------


def test_captions_given_as_groups(monkeypatch):
    monkeypatch.setattr(counting, "ROWS", 2)
    captions = {"a": [["x"], ["y", "\ud800"], []], "human": [["h"], ["i", "j", "k"], ["l"]]}
    scene = {"background": "sand", "objects": []}
    measured = count_captions(
        captions,
        "human",
        keys=["1", "1", "2"],
        images=[b"1", None, b"3"],
        truncated={"a": [[True], [False, True], []]},
        scenes=[scene, None, None],
    )
    assert (measured.names, measured.references, measured.pictures) == (("a",), "human", 2)
    first, second = sorted(measured.sample.pictures, key=lambda picture: picture.occurrence)
    assert (first.key, first.occurrence, first.image, first.truncated) == ("1", 0, b"1", {"a": (True,)})
    assert (second.key, second.occurrence, second.references) == ("1", 1, ("i", "j", "k"))
    assert second.captions["a"] == ("y", "?") and len(second.captions["human"]) == 2
    assert first.scene == scene and second.scene is None


def test_groups_equal_the_same_in_a_file(write):
    captions = {name: [row[name] for row in rows(30)] for name in ("syn_text_x", "syn_text_y", "captions")}
    given = count_captions(captions, "captions", keys=[row["key"] for row in rows(30)], seed=5)
    assert_same(given, count_columns([write("r.jsonl", rows(30))], seed=5))


def test_empty_columns_of_groups_are_an_error():
    with pytest.raises(ValueError, match="no captions in 'b', 'c'"):
        count_captions({"a": [["x"]], "b": [[]], "c": []})
    with pytest.raises(ValueError, match="no picture has captions in all columns: a has 1, b has 1"):
        count_captions({"a": [["x"], []], "b": [[], ["y"]]})


def test_large_inputs_are_read_in_pieces(write):
    path = write("a.txt", [f"a line {number}" for number in range(input_rows.ROWS + 5)])
    assert count_columns([path]).pictures == input_rows.ROWS + 5


# ---- what joins what
# -----------------------------------------------------------------------------------------------------


def test_lines_of_text_are_never_joined_with_ids_by_number(write):
    """Line 7 is not picture 7."""
    lines = write("mine.txt", [f"a line {number}" for number in range(10)])
    ids = write("captions.json", [{"image_id": number, "caption": "human"} for number in range(10)])
    with pytest.raises(ValueError, match="lines of a text file are joined with lines of other text files only"):
        count_columns([lines], references=ids)
    table = write("t.jsonl", [{"syn_text_x": ["a"]} for _ in range(10)])  # nor are numbers of rows
    with pytest.raises(ValueError, match="no picture has captions in all columns.*--key names the column"):
        count_columns([table], references=ids)


def test_a_named_column_joins_tables(write):
    mine = write("mine.csv", ["file,n,syn_text_x", "000000000007,1,a", "000000000042,2,b"])
    human = write(
        "human.csv", ["image_name| comment", "000000000042.jpg| x", "000000000042.jpg| y", "000000000007.jpg| z"]
    )
    with pytest.raises(ValueError, match="no picture has captions in all columns"):
        count_columns([mine], references=human)
    with pytest.raises(
        ValueError, match="human.csv: --key n: there is no such column; it has 'image_name', 'comment'"
    ):
        count_columns([mine], references=human, table=Columns(keys=("n",)))
    measured = count_columns([mine], references=human, table=Columns(keys=("file", "image_name")))
    assert {picture.key: picture.references for picture in measured.sample.pictures} == {
        "000000000007": ("z",),
        "000000000042": ("x", "y"),
    }


def test_rows_of_one_picture_are_its_captions(write):
    rows = [{"image": f"{number % 3}.jpg", "caption": f"{number}"} for number in range(6)]
    cells = ["image,caption", *(f"{each['image']},{each['caption']}" for each in rows)]
    for name, content in (("a.jsonl", rows), ("b.json", rows), ("c.csv", cells)):
        measured = count_columns([write(name, content)], ["captions"], "none", table=Columns(keys=("image",)))
        assert compared(measured) == [
            (str(number), {"captions": (str(number), str(number + 3))}) for number in range(3)
        ]
    one_each = count_columns([write("a.jsonl", rows)], ["captions"], "none", table=Columns(group=False))
    assert one_each.pictures == 6


def test_flags_for_tables_are_noted_where_no_input_is_one(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\na dog\n")
    table = Columns("photo", (), ("id",))
    assert count_columns([str(tmp_path / "a.txt")], table=table).notes == (
        "A flag has no effect: --image-column photo: there is no table in --input.",
        "A flag has no effect: --key id: there is no table in --input.",
    )
    (tmp_path / "b.csv").write_text("id,text\n1,a cat\n2,a dog\n")
    assert count_columns([str(tmp_path / "b.csv")], ["text"], table=Columns(keys=("id",))).notes == ()
