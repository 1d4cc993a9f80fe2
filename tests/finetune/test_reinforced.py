"""Reinforced records for a student: views, texts and embeddings match; unusable records are reported."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from finetune.student.config import StudentConfig
from finetune.student.records import COIN_SIDES, ReinforcedPictures
from finetune.student.teachers import Teachers, check_texts, read_teachers
from imagetext.reinforced.views import decode_stored, normalise, replay, write_views
from imagetext.sample import Record
from imagetext.shards import ShardWriter
from imagetext.sources import read_samples

from .sets import DIMENSIONS, SCALES, VIEWS, members, picture, row, views, write_config, write_set, write_tar

TEACHERS = Teachers(("one", "two"), DIMENSIONS, SCALES)
STUDENT = SimpleNamespace(
    side=16,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
    tokenizer=lambda texts: torch.tensor([[int(word) for word in text.split()] for text in texts]),
)
LAYOUTS = [("newer", "npz"), ("newer", "pth.gz"), ("older", "npz"), ("older", "pth.gz")]


def settings(spec, **changes) -> StudentConfig:
    return StudentConfig(**{"input": [spec], "student": "x", "output": "unused"} | changes)


def pictures_of(spec, teachers=TEACHERS, **changes) -> ReinforcedPictures:
    if teachers is None:
        changes = {"distill_weight": 0, "contrastive_weight": 1} | changes
    return ReinforcedPictures(read_samples(spec), STUDENT, settings(spec, **changes), teachers=teachers, quiet=True)


@pytest.mark.parametrize("layout, kind", LAYOUTS)
def test_what_is_drawn_belongs_together(layout, kind, tmp_path):
    pictures = pictures_of(write_set(tmp_path, layout=layout, kind=kind))
    assert len(pictures) == 6 and pictures.rejects == []
    counts = Counter()
    for draw in range(120):
        pixels, tokens, number, key, embeddings = pictures[draw % 6, draw * 7919]
        record, view = int(key[1:]), int(embeddings["image_emb"][2])
        assert number == draw % 6 and embeddings["image_emb"].tolist() == [9, record, view, 1, 2]
        expected = normalise(
            replay(views(record)[view], decode_stored(picture(record)), 16), STUDENT.mean, STUDENT.std
        )
        assert torch.equal(pixels, expected)
        assert tokens[:, 1].tolist() == [record, record]
        assert embeddings["text_emb"].tolist() == [[*text, 1, 2] for text in tokens.tolist()]
        (original, _, first), (column, _, column_row) = tokens.tolist()
        counts.update(
            [("view", view), ("original", original, first), ("column", column), ("text", column, column_row)]
        )
    assert {item[1] for item in counts if item[0] == "view"} == set(range(VIEWS)) and counts["original", 0, 0] == 120
    assert {item[1:] for item in counts if item[0] == "text"} == {(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}
    # Columns come equally often, whatever their number of captions. In 120 draws, a deviation of more than 36 has a
    # chance below 1e-9.
    assert abs(counts["column", 1] - 60) < 36


@pytest.mark.parametrize("size, moved", [(16, 8), (32, 4), (None, 2)])
def test_translations_are_those_that_the_teachers_saw(size, moved, tmp_path):
    """They are in pixels of the set's views, which config.json tells; those of published sets are of 224 pixels."""
    write_config(tmp_path)
    if size:
        content = json.loads((tmp_path / "config.json").read_text())
        content["reinforce"] = {"image_augmentation": {"random_resized_crop": {"size": size}}}
        (tmp_path / "config.json").write_text(json.dumps(content))
    view, seen = [[[0, 0, 30, 40], [[3, by]]] for by in (8.0 if size else 28.0, float(moved))]
    spec = write_tar(tmp_path / "0.tar", {"r001": members(1) | {"paug.json": write_views([view] * VIEWS)}})
    pixels = replay(seen, decode_stored(picture(1)), STUDENT.side)
    assert torch.equal(pictures_of(spec)[0, 0][0], normalise(pixels, STUDENT.mean, STUDENT.std))


def test_views_and_captions_come_equally_often(tmp_path):
    """In a whole cycle of draws, each view, and each caption of a column, comes equally often."""
    pictures = pictures_of(write_set(tmp_path))
    contents = pictures.contents(pictures.sample(0))
    counts = Counter()
    for draw in range(VIEWS * 2 * 6):
        view, texts, _ = pictures.select(contents, draw)
        counts.update([view, texts[1][:2]])
    assert [counts[view] for view in range(VIEWS)] == [12] * VIEWS
    assert [counts["syn_text_a_emb", row] for row in range(2)] == [12] * 2
    assert [counts["syn_text_b_emb", row] for row in range(3)] == [8] * 3


def test_empty_captions_are_not_drawn_and_the_rows_of_the_others_stay(tmp_path):
    files = members(3)
    columns = json.loads(files["syn.json"]) | {"syn_text_b": ["", "2 3 1", " "]}
    write_config(tmp_path)
    spec = write_tar(tmp_path / "0.tar", {"r003": files | {"syn.json": json.dumps(columns).encode()}})
    pictures = pictures_of(spec, columns="syn_text_b")
    for draw in range(40):
        assert pictures[0, draw][1][1].tolist() == [2, 3, 1] and pictures[0, draw][4]["text_emb"][1].tolist() == [
            2,
            3,
            1,
            1,
            2,
        ]


@pytest.mark.parametrize(
    "weights, kinds",
    [({"text_weight": 0}, [{1, 2}]), ({"synthetic_weight": 0}, [{0}]), ({"columns": ".*_b$"}, [{0}, {2}])],
)
def test_only_texts_that_have_a_weight_and_match_are_drawn(weights, kinds, tmp_path):
    pictures = pictures_of(write_set(tmp_path), **weights)
    texts = [pictures[0, draw][1][:, 0].tolist() for draw in range(100)]
    assert [set(column) for column in zip(*texts)] == kinds


@pytest.mark.parametrize("layout", ["newer", "older"])
def test_several_original_captions_are_drawn_where_text_emb_has_them(layout, tmp_path):
    captions = {"json": json.dumps({"captions": ["0 3 0", "0 3 1", "0 3 2"], "error": ""}).encode()}
    several = members(3, layout=layout, originals=torch.tensor([row(0, 3, number) for number in range(3)])) | captions
    single = members(3, layout=layout) | captions
    write_config(tmp_path)
    pictures = pictures_of(write_tar(tmp_path / "0.tar", {"several": several, "one": single}))
    for index, key, expected in ((0, "several", {0, 1, 2}), (1, "one", {0})):
        items = [pictures[index, draw] for draw in range(60)]
        assert {item[3] for item in items} == {key} and {int(item[1][0, 2]) for item in items} == expected
        assert all(item[4]["text_emb"][0].tolist() == [*item[1][0].tolist(), 1, 2] for item in items)


@pytest.mark.parametrize("captions", [["5 5 5", "6 6 6"], ["5 5 5"]])
def test_the_text_that_has_the_embedding_is_txt_not_the_first_caption(captions, tmp_path):
    """`reinforce --text-from-synthetic` writes a synthetic caption as `txt` and embeds it."""
    files = members(3, negatives={})
    files["json"] = json.dumps(json.loads(files["json"]) | {"captions": captions}).encode()
    write_config(tmp_path)
    pictures = pictures_of(write_tar(tmp_path / "0.tar", {"r003": files}))
    assert pictures[0, 0][1][0].tolist() == [0, 3, 0]


def test_without_teachers_there_are_no_embeddings_and_none_are_needed(tmp_path):
    spec = write_tar(tmp_path / "0.tar", {"r001": members(1) | {"npz": None}})
    pixels, tokens, _, _, embeddings = pictures_of(spec, None)[0, 5]
    assert embeddings == {} and tokens.shape == (2, 3) and pixels.shape == (3, 16, 16)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_other_formats_give_what_tars_give(format, tmp_path):
    spec = write_set(tmp_path / "in", count=4)
    write_config(tmp_path / "out")
    with ShardWriter(str(tmp_path / "out"), "x", format=format, input={}) as writer:
        for sample in (sample for shard in read_samples(spec) for sample in shard):
            writer.write(sample)
    tars, others = pictures_of(spec), pictures_of(str(tmp_path / "out" / f"*.{format}"))
    for index in range(4):
        for ours, theirs in zip(others[index, 11], tars[index, 11], strict=True):
            if isinstance(ours, dict):
                assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
            else:
                assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_a_text_that_is_a_synthetic_caption_is_not_taken_for_an_original_where_it_is_not_read(tmp_path):
    """Only tars have `txt` as a file; elsewhere its embedding would be used for the first original caption."""
    (tmp_path / "run.json").write_text(json.dumps({"fingerprint": {"text_from_synthetic": True}}))
    (tmp_path / "x.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="was made with --text-from-synthetic, and only tars on this machine"):
        check_texts(read_samples(str(tmp_path / "x.jsonl")))
    check_texts(read_samples(write_set(tmp_path)))
    (tmp_path / "run.json").write_text(json.dumps({"fingerprint": {"text_from_synthetic": False}}))
    check_texts(read_samples(str(tmp_path / "x.jsonl")))


def test_records_of_tars_are_not_held_in_memory(tmp_path):
    spec = write_set(tmp_path)
    pictures = pictures_of(spec)
    assert all(sample.image is None and not sample.members for sample, _ in pictures.records)
    expected = pictures[5, 3]
    path = tmp_path / "00001.tar"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="00001.tar: has become shorter"):
        pictures[5, 3]
    assert expected[3] == "r005"


FAILED = {
    "uid": "failed",
    "sha256": "",
    "width": 0,
    "height": 0,
    "captions": [],
    "error": "no picture, said the captioner",
    "source": "",
    "caption_scores": {},
}
REJECTED = {
    "failed": (
        {"json": json.dumps(FAILED).encode(), "jpg": None, "paug.json": None, "npz": None},
        "no picture, said the captioner",
    ),
    "published": ({"jpg": None, "txt": None, "json": b'{"uid": "x"}'}, "missing picture"),
    "views": ({"paug.json": None}, "there is no paug.json"),
    "resized": (
        {"paug.json": write_views([*views(0)[:3], [[0, 20, 30, 21], None]])},
        "paug.json: view 3 reaches to pixel 41 x 30, but the picture has 40 x 30: the views are of a larger one",
    ),
    "none": ({"paug.json": b'{"param_aug": []}'}, "embeddings that are not of these views"),
    "picture": ({"jpg": picture(0)[:60]}, "PNG picture is truncated"),
    "embeddings": ({"npz": None}, "no embeddings to convert"),
    "pickle": ({"npz": b"\x80\x04."}, "npz: no embeddings that can be read safely"),
    "columns": ({"syn.json": b"{}"}, "no captions in columns like '^syn_text'"),
    "text": (
        {"txt": None, "json": b'{"error": ""}'},
        "embeddings that are not of these views and texts: text_emb: 1 rows for 0",
    ),
    "count": (
        {"syn.json": b'{"syn_text_a": ["1 0 0"], "syn_text_b": ["2", "2", "2"]}'},
        "syn_text_a_emb: 2 rows for 1",
    ),
}


def test_what_cannot_be_shown_is_named_and_the_rest_is_kept(tmp_path):
    write_config(tmp_path)
    records = {name: members(0) | changes for name, (changes, _) in REJECTED.items()}
    pictures = pictures_of(write_tar(tmp_path / "0.tar", {"good": members(1), **records}))
    assert len(pictures) == 1 and pictures[0, 0][3] == "good"
    rejects = dict(pictures.rejects + pictures.failed_before)
    assert rejects.keys() == REJECTED.keys() and [key for key, _ in pictures.failed_before] == ["failed"]
    for name, (_, reason) in REJECTED.items():
        assert reason in rejects[name], name


def test_records_without_an_original_caption_are_for_those_who_do_not_ask_for_it(tmp_path):
    write_config(tmp_path)
    files = members(1, originals=torch.zeros(0, 5)) | {"txt": None, "json": b'{"error": ""}'}
    spec = write_tar(tmp_path / "0.tar", {"r001": files})
    with pytest.raises(ValueError, match="no record that .*\n  r001: no original caption; --text-weight 0 trains"):
        pictures_of(spec)
    assert pictures_of(spec, text_weight=0)[0, 0][1].shape == (1, 3)


def test_embeddings_of_other_teachers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"embeddings of 5 numbers, but the teachers have 3 \+ 4"):
        pictures_of(write_set(tmp_path), Teachers(("one", "two"), (3, 4), SCALES))


# One text of a record


def test_a_single_text_is_the_original_or_as_often_as_asked_for_a_synthetic_one(tmp_path):
    """In a whole cycle of draws it is exact to 1/10,000; columns and then captions come equally often."""
    pictures = pictures_of(write_set(tmp_path), single_text=0.3)
    contents, counts = pictures.contents(pictures.sample(0)), Counter()
    for side in range(COIN_SIDES):
        for column in (0, 1):  # the draw of the column
            view, texts, negative = pictures.select(contents, 3 + VIEWS * (side + COIN_SIDES * column))
            counts[texts[0][0]] += 1
            assert view == 3 and len(texts) == 1 and negative is None
    assert counts == {"text_emb": 14_000, "syn_text_a_emb": 3_000, "syn_text_b_emb": 3_000}
    captions = Counter(pictures.select(contents, VIEWS * COIN_SIDES * column).texts[0][:2] for column in range(2 * 6))
    assert captions == {("syn_text_a_emb", number): 3 for number in range(2)} | {
        ("syn_text_b_emb", number): 2 for number in range(3)
    }
    _, tokens, *_, embeddings = pictures[0, 3]
    assert tokens.shape == (1, 3) and embeddings["text_emb"].tolist() == [[*tokens[0].tolist(), 1, 2]]


@pytest.mark.parametrize("chance, kinds", [(0, {0}), (1, {1, 2}), (0.5, {0, 1, 2})])
def test_a_chance_of_nought_or_one_is_certain(chance, kinds, tmp_path):
    pictures = pictures_of(write_set(tmp_path), single_text=chance)
    assert {int(pictures[0, draw * 7919][1][0, 0]) for draw in range(60)} == kinds


def test_a_record_with_texts_of_one_kind_shows_these_where_one_is_drawn(tmp_path):
    write_config(tmp_path)
    records = {
        "mute": members(1, originals=torch.zeros(0, 5)) | {"txt": None, "json": b'{"error": ""}'},
        "plain": members(2) | {"syn.json": b"{}"},
        "both": members(3),
    }
    pictures = pictures_of(write_tar(tmp_path / "0.tar", records), None, single_text=0.5)
    assert [key for key, _ in pictures.rejects] == [] and len(pictures) == 3
    texts_shown = [{int(pictures[number, draw * 7919][1][0, 0]) for draw in range(60)} for number in range(3)]
    assert texts_shown == [{1, 2}, {0}, {0, 1, 2}]
    with pytest.raises(ValueError, match="--single-text 0.5: no captions in columns like 'syn_text_z', in any record"):
        pictures_of(str(tmp_path / "0.tar"), None, single_text=0.5, columns="syn_text_z")
    only = pictures_of(str(tmp_path / "0.tar"), None, single_text=1)
    assert dict(only.rejects).keys() == {"plain"}


# Hard negatives


def negatives_of(tmp_path, others, **changes) -> ReinforcedPictures:
    """Return a set of one record with these columns in addition to its own."""
    write_config(tmp_path)
    spec = write_tar(tmp_path / "0.tar", {"r001": members(1, negatives=others)})
    return pictures_of(spec, **{"negatives": "^neg_text"} | changes)


def test_one_of_several_negatives_is_drawn_evenly_and_is_no_caption(tmp_path):
    """The tokens have one more text, without an embedding; both columns come equally often."""
    pictures = negatives_of(
        tmp_path, {"neg_text_a": ["7 1 0"], "tags_a": ["9 9 9"], "neg_text_b": ["8 1 0", "", "8 1 2"]}
    )
    contents = pictures.contents(pictures.sample(0))
    counts = Counter(pictures.select(contents, VIEWS * 6 * 6 * number).negative for number in range(4 * 6))
    assert counts["7 1 0"] == 12 and counts["8 1 0"] == counts["8 1 2"] == 6
    for draw in range(30):
        _, tokens, *_, embeddings = pictures[0, draw * 7919]
        assert tokens.shape == (3, 3) and tokens[2, 0] in (7, 8) and {*tokens[:2, 0].tolist()} <= {0, 1, 2}
        assert embeddings["has_negative"].item() is True and embeddings["text_emb"].shape == (2, 5)


def test_a_record_without_a_negative_says_so(tmp_path):
    pictures = pictures_of(write_set(tmp_path, count=8, negatives=True), negatives="^neg_text")
    keys = [pictures.records[number][0].key for number in range(8)]
    assert [key for key, has in zip(keys, pictures.has_negative) if not has] == ["r000", "r004"]
    batch = pictures.collate([pictures[number, 0] for number in range(8)])
    assert batch.embeddings["has_negative"].tolist() == pictures.has_negative and batch.tokens.shape == (8, 3, 3)
    assert all(int(row[2, 0]) == 3 for row, has in zip(batch.tokens, pictures.has_negative) if has)
    pictures.leave_out({0, 1})
    assert len(pictures.has_negative) == 6


@pytest.mark.parametrize("columns", ["^syn_text", ".*", "^neg_text", "^(neg_|tags_|syn_)"])
def test_no_negative_and_no_tag_is_ever_drawn_as_a_caption(columns, tmp_path):
    """Whatever --columns matches, a column of negatives is not a column of captions."""
    write_config(tmp_path)
    others = {"neg_text_a": ["7 1 0"], "tags_a": ["9 1 0"], "neg_tags_a": ["9 1 1"]}
    spec = write_tar(tmp_path / "0.tar", {"r001": members(1, negatives=others)})
    if columns == "^neg_text":
        with pytest.raises(ValueError, match="no captions in columns like"):
            pictures_of(spec, None, columns=columns)
        return
    pictures = pictures_of(spec, None, columns=columns)
    assert {int(token) for draw in range(60) for token in pictures[0, draw * 7919][1][:, 0]} == {0, 1, 2}


def test_a_negative_that_says_what_a_caption_says_is_none(tmp_path):
    """This holds for all captions of the record; capitals and blanks do not matter."""
    same = {"neg_text_a": ["0 1 0", "1  1 0", " 2 1 2 ", "7 1 0"]}
    pictures = negatives_of(tmp_path, same)
    assert pictures.contents(pictures.sample(0)).negatives == [["7 1 0"]]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_negatives_of_records_that_are_held_are_those_of_tars(format, tmp_path):
    record = Record(
        "r001",
        picture(1),
        ("0 1 0",),
        {"syn_text_a": ("1 1 0",), "neg_text_a": ("7 1 0",)},
        members={"paug.json": members(1)["paug.json"]},
    )
    negatives = []
    for kind in ("webdataset", format):
        folder = tmp_path / kind
        folder.mkdir()
        with ShardWriter(str(folder), "x", format=kind, input={}) as writer:
            writer.write(record)
        shards = str(folder / ("*.tar" if kind == "webdataset" else f"*.{format}"))
        negatives.append(pictures_of(shards, None, negatives="^neg_text")[0, 11][1].tolist())
    assert negatives[0] == negatives[1] == [[0, 1, 0], [1, 1, 0], [7, 1, 0]]


@pytest.mark.parametrize(
    "columns, changes, why",
    [
        (
            {},
            {},
            r"--negatives '\^neg_text': no record has such a column; the set has the columns syn_text_a, syn_text_b$",
        ),
        ({"neg_text_a": ["", "0 1 0"]}, {}, "neg_text_a are empty, or only repeat captions"),
        ({}, {"negatives": "syn_text_b"}, "--negatives 'syn_text_b' and --columns '.*' both name syn_text_b"),
    ],
)
def test_negatives_that_are_none_are_one_error(columns, changes, why, tmp_path):
    with pytest.raises(ValueError, match=why):
        negatives_of(tmp_path, columns, **changes)


def test_captions_that_are_not_drawn_may_be_negatives(tmp_path):
    pictures = negatives_of(tmp_path, {}, negatives="syn_text_b", columns="syn_text_a")
    assert {int(pictures[0, draw * 7919][1][2, 0]) for draw in range(30)} == {2}


# Which teachers


def teachers_of(spec, **changes):
    return read_teachers(read_samples(spec, distinct=False), settings("x", **changes))


def test_teachers_are_those_of_the_set(tmp_path):
    spec = write_set(tmp_path)
    assert teachers_of(spec) == Teachers(["teacher_1", "teacher_2"], [3, 2], [50.0, 20.0])
    assert teachers_of(spec, logit_scale=[70, 60]) == Teachers(["teacher_1", "teacher_2"], [3, 2], [70, 60])
    assert teachers_of(spec, distill_weight=0, contrastive_weight=1) is None


def test_scales_and_dimensions_must_be_as_many_as_teachers(tmp_path):
    spec = write_set(tmp_path)
    with pytest.raises(ValueError, match=r"--logit-scale: 1 \(70\) for 2 teachers \(teacher_1, teacher_2\)"):
        teachers_of(spec, logit_scale=[70])
    with pytest.raises(ValueError, match=r"--teacher-dimension: \[2, 3\], but .*config.json says \[3, 2\]"):
        teachers_of(spec, teacher_dimension=[2, 3])


def test_sets_of_other_teachers_are_not_mixed(tmp_path):
    first, other = write_set(tmp_path / "one"), write_set(tmp_path / "other")
    write_config(tmp_path / "other", scales=(50.0, 30.0))
    with pytest.raises(ValueError, match="other/config.json and .*one/config.json name different teachers"):
        teachers_of([first, other])


def test_a_published_set_needs_to_be_told_its_teachers(tmp_path):
    spec = write_set(tmp_path)
    for config in (None, "{}", '{"num_samples": 30}'):
        (tmp_path / "config.json").unlink(missing_ok=True)
        if config:
            (tmp_path / "config.json").write_text(config)
        with pytest.raises(
            ValueError, match="config.json names no teachers: give --teacher-dimension and --logit-scale"
        ):
            teachers_of(spec, logit_scale=[70, 60])
        assert teachers_of(spec, logit_scale=[70, 60], teacher_dimension=[3, 2]).dimensions == [3, 2]
    (tmp_path / "config.json").write_text('{"teachers": [{"name": "x"}]}')
    with pytest.raises(ValueError, match="config.json: not the config.json of a reinforced set"):
        teachers_of(spec)
