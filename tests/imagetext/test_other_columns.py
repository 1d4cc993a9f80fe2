"""Columns of negatives and tags are written, read and joined, and never used for training."""

import json
import re
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from imagetext.columns import is_caption_column, is_other_column
from imagetext.reinforced.embeddings import pack
from imagetext.sample import Record
from imagetext.sets.join import JoinCounts, join, parse_text_from
from imagetext.sets.room import ColumnClash, room_for
from imagetext.shards import SUFFIXES, ShardWriter, dataset_features, read_marker
from imagetext.sources import read_records, read_samples

X, NEG, TAGS, NOT = "syn_text_x", "neg_text_x", "tags_x", "neg_tags_x"
COLUMNS = {X: ("a dog", "the dog"), NEG: ("a cat",), TAGS: ("dog", "grass"), NOT: ("cat", "sea")}
SCORES = {
    name: {"logprob": [-1.5] * len(texts), "truncated": [False] * len(texts), "flags": [""] * len(texts)}
    for name, texts in COLUMNS.items()
}


def record(picture, number=0, **more) -> Record:
    return replace(Record(f"k{number}", picture(number), (f"alt {number}",), columns=COLUMNS, scores=SCORES), **more)


def write(folder, records, name="00000", **options) -> str:
    with ShardWriter(folder, name, **options) as writer:
        for item in records:
            writer.write(item)
    return writer.path


def tar_files(path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def test_names_tell_other_columns_from_captions():
    for name in (NEG, TAGS, NOT):
        assert is_other_column(name) and not is_caption_column(name) and not re.match("^syn_text.*$", name)
    for name in (X, "syn_text_neg_text_x", "syn_text", "neg_text", "tags", "captions", "hashtags_x", "neg_text_x_emb"):
        assert not is_other_column(name)


# ---- written and read ----------------------------------------------------------------------------------------------


def test_the_letter_of_a_tar(tmp_path, picture):
    failed = record(picture, 2, columns={}, scores={}, error="broken")
    before = record(picture, 3, columns={X: ("old",), NEG: ("older",)}, scores={}, error="broken, too")
    bare = record(picture, 1, columns={X: ("a dog",)}, scores={})
    path = write(tmp_path, [failed, record(picture), bare, before], columns=[X, NEG, TAGS])
    files = tar_files(path)
    json_of = {name: json.loads(data) for name, data in files.items() if name.endswith("json")}
    assert json_of["k0.syn.json"] == {X: ["a dog", "the dog"]} and json_of["k0.json"]["caption_scores"] == SCORES
    assert json_of["k0.json"]["caption_fields"] == {NEG: ["a cat"], TAGS: ["dog", "grass"], NOT: ["cat", "sea"]}
    assert json_of["k1.json"]["caption_fields"] == {NEG: [], TAGS: []} == json_of["k2.json"]["caption_fields"]
    assert json_of["k3.json"]["caption_fields"] == {NEG: ["older"], TAGS: []} and json_of["k3.json"][X] == ["old"]
    assert [json_of[f"k{number}.syn.json"] for number in (2, 3)] == [{}, {}]
    assert read_marker(tmp_path, "00000")["captions"] == {NEG: 1, TAGS: 2, X: 3}
    assert [item.columns for item in read_records(path)] == [
        COLUMNS,
        {X: ("a dog",)},
        {},
        {X: ("old",), NEG: ("older",)},
    ]
    plain = tar_files(write(tmp_path / "plain", [bare], columns=[X]))  # a run without such columns
    assert "caption_fields" not in json.loads(plain["k1.json"])


def test_tables_have_columns_of_their_own(tmp_path, picture):
    records = [record(picture), record(picture, 1, columns={}, scores={}, error="broken")]
    for line in open(write(tmp_path, records, format="jsonl", columns=[X, NEG, TAGS, NOT])):
        row = json.loads(line)
        assert "caption_fields" not in row and row[NEG] == ([] if row["error"] else ["a cat"])
    table = pq.read_table(write(tmp_path, records, format="parquet", columns=[X, NEG, TAGS, NOT])).to_pylist()
    assert [row[TAGS] for row in table] == [["dog", "grass"], []]
    assert all("caption_fields" not in json.loads(row["json"]) for row in table)


@pytest.mark.parametrize("format", SUFFIXES)
def test_they_come_back_with_their_scores_from_each_format_and_from_an_unpacked_tar(tmp_path, picture, format):
    theirs = {"source_fields": {"caption_fields": 3}}  # a foreign field of that name
    path = write(tmp_path, [record(picture, meta=theirs)], format=format)
    (back,) = read_records(path)
    assert back.columns == COLUMNS and back.scores == SCORES and back.meta["source_fields"] == theirs["source_fields"]
    again = write(tmp_path / "again", [back], format=format)
    assert list(read_records(again)) == [back]
    if format == "webdataset":
        (tmp_path / "unpacked").mkdir()
        for name, data in tar_files(path).items():
            (tmp_path / "unpacked" / name).write_bytes(data)
        (unpacked,) = read_records(str(tmp_path / "unpacked"))
        assert {NEG, TAGS, NOT} == unpacked.columns.keys() and unpacked.columns[NEG] == ("a cat",)


def test_rows_that_were_written_before_stay_readable(tmp_path, picture):
    path = write(tmp_path, [record(picture, columns={X: ("a dog",)}, scores={})], format="jsonl")
    row = json.loads(open(path).read()) | {"caption_fields": {NEG: ["a cat"], "other": ["c"], TAGS: []}}
    open(path, "w").write(json.dumps(row) + "\n")
    (back,) = read_records(path)
    assert back.columns == {X: ("a dog",), NEG: ("a cat",), "other": ("c",)} and "caption_fields" not in back.meta


def test_rows_of_others_have_such_columns_where_they_hold_texts(tmp_path, write_tar, picture):
    table = tmp_path / "t.csv"
    table.write_text("uid,neg_text_mine,tags_en\nu1,a cat,\"['dog', 'sea']\"\nu2,,\n")
    first, second = read_records(str(table))
    assert first.columns == {"neg_text_mine": ("a cat",), "tags_en": ("dog", "sea")} and not first.captions
    assert second.columns == {}
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps({"uid": "u", "caption": "a", "tags_x": [1, 2], "neg_tags_x": {"a": 1}}) + "\n")
    (row,) = read_records(str(table))
    assert row.columns == {} and (row.meta["tags_x"], row.meta["neg_tags_x"]) == ([1, 2], {"a": 1}) and not row.error
    tar = write_tar(
        tmp_path / "t.tar", [("a.jpg", picture()), ("a.json", b'{"caption_fields": {"neg_text_x": ["b"]}}')]
    )
    (row,) = read_records(tar)  # not a record that we wrote
    assert row.columns == {} and row.meta["source_fields"] == {"caption_fields": {NEG: ["b"]}}


def test_what_a_good_record_has(tmp_path, picture):
    """Synthetic captions if the run makes some, because trainers stop at a record without; otherwise any captions."""
    bare, negatives = ({}, {NEG: ("a cat",)})
    for columns, of_run, captions, good in (
        (negatives, [X, NEG], ("alt",), False),
        (negatives, [NEG], ("alt",), True),
        (negatives, [], ("alt",), True),
        ({TAGS: ("dog",)}, [TAGS], (), True),
        (bare, [NEG], ("alt",), True),  # a caption without a negative is still used for training
        (bare, [NEG], (" ",), False),
        (bare, [NEG], (), False),
        (bare, [], ("alt",), False),
        ({NEG: (" ",)}, [], ("alt",), False),
    ):
        good_record = record(picture, columns=columns, scores={}, captions=captions)
        if good:
            files = tar_files(write(tmp_path, [good_record], columns=of_run))
            assert json.loads(files["k0.syn.json"]) == {} and ("k0.txt" in files) == bool(captions)
            assert [back.columns for back in read_records(str(tmp_path / "00000.tar"))] == [columns]
        else:
            with pytest.raises(ValueError, match="k0: neither captions nor an error"):
                write(tmp_path, [good_record], columns=of_run)


def test_no_text_to_train_on_is_made_of_them(tmp_path, picture):
    path = write(tmp_path, [record(picture, columns={NEG: ("a cat",), X: ("a dog",)})], text_from_synthetic=True)
    assert tar_files(path)["k0.txt"] == b"a dog"
    with pytest.raises(ValueError, match="text_from: neg_text_x holds no true captions"):
        parse_text_from(f"{NEG}:0.5")


# ---- the official trainer, by its reader's rule --------------------------------------------------------------------


def official_texts(path: str, seed: int, pattern: str = "^syn_text.*$", draws: int = 40) -> list[tuple[str, str]]:
    """Return the original and the synthetic text that the official trainer of reinforced sets draws, repeatedly.

    It skips a record without picture or text. It draws a matching key of `syn.json`, then one of its captions.
    """
    samples: dict[str, dict[str, bytes]] = {}
    for name, data in tar_files(path).items():
        key, suffix = name.split(".", 1)
        samples.setdefault(key, {})[suffix] = data
    random, drawn_texts = np.random.RandomState(seed), []
    for files in [files for files in samples.values() if {"jpg", "txt"} <= files.keys()] * draws:
        columns = json.loads(files["syn.json"])
        keys = [name for name in columns if re.match(pattern, name)]
        texts = columns[keys[random.randint(0, len(keys))]]
        drawn_texts.append((files["txt"].decode(), texts[random.randint(0, len(texts))]))
    return drawn_texts


def test_the_official_trainer_draws_the_same_texts_with_and_without_them(tmp_path, picture):
    def written(name, others):
        records = [
            record(picture, number, columns={X: (f"x {number}", f"the x {number}"), "syn_text_y": ("y",), **others})
            for number in range(4)
        ]
        failed = record(picture, 4, columns=others, scores={}, error="broken")
        return write(tmp_path / name, [failed, *records], columns=[X, "syn_text_y", *others])

    others = {name: COLUMNS[name] for name in (NEG, TAGS, NOT)}
    without, beside = written("without", {}), written("with", others)
    texts = official_texts(without, 7)
    assert texts == official_texts(beside, 7) and {"y", "x 0", "the x 3"} <= {synthetic for _, synthetic in texts}
    with pytest.raises(ValueError, match="high <= 0"):  # a set of only negatives has nothing to draw
        official_texts(write(tmp_path / "alone", [record(picture, columns={NEG: ("a cat",)})], columns=[NEG]), 7)


# ---- datasets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("columns", [[X, NEG, TAGS], [NEG]])
def test_datasets_reads_other_columns(tmp_path, picture, monkeypatch, streaming, columns):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    chosen = {name: COLUMNS[name] for name in columns}
    scores = {name: SCORES[name] for name in columns}
    good = [record(picture, number, columns=chosen, scores=scores) for number in range(6)]
    failed = [record(picture, 6, columns={}, scores={}, error="broken")]
    path = write(tmp_path, [*failed, *good], columns=columns)
    spec = write(
        tmp_path, [*failed, *good[:1], replace(good[1], columns={X: ("a dog",)})][: 3 - (X not in columns)], "few"
    )
    for files, features in ((path, None), (path, dataset_features(columns)), (spec, dataset_features(columns))):
        rows = list(
            datasets.load_dataset(
                "webdataset",
                data_files=files,
                split="train",
                streaming=streaming,
                features=features,
                cache_dir=None if streaming else str(tmp_path / "cache"),
            )
        )
        fields = rows[0]["json"]["caption_fields"]
        assert fields == {name: list(COLUMNS[name]) for name in columns if name != X}
        assert rows[0]["json"]["caption_scores"][NEG]["logprob"] == [-1.5]
        assert (rows[0]["syn.json"] or {}) == {name: list(COLUMNS[name]) for name in columns if name == X}
        assert rows[-1]["json"]["error"] == "broken" and not any((rows[-1]["json"]["caption_fields"] or {}).values())


# ---- joined --------------------------------------------------------------------------------------------------------


def pictures_shard(tmp_path, write_tar, picture, count=4, **members) -> str:
    files = [
        (f"k{number}.{suffix}", data)
        for number in range(count)
        for suffix, data in {
            "jpg": picture(number),
            "txt": f"alt {number}".encode(),
            "json": json.dumps({"uid": f"u{number}"}).encode(),
            **members,
        }.items()
    ]
    return write_tar(tmp_path / "in.tar", files)


@pytest.mark.parametrize("format", SUFFIXES)
def test_negatives_apart_are_joined_with_their_pictures(tmp_path, write_tar, picture, format):
    path = pictures_shard(tmp_path, write_tar, picture)
    (tmp_path / "negatives.jsonl").write_text(
        "".join(
            json.dumps({"uid": f"u{number}", NEG: [f"not {number}"], TAGS: ["dog"]}) + "\n" for number in (0, 2, 9)
        )
    )
    report = join(read_samples(path), str(tmp_path / "negatives.jsonl"), tmp_path / "out", format=format)
    assert report == JoinCounts(2, 2, 0)
    records = list(read_records(f"{tmp_path}/out/in{SUFFIXES[format]}"))
    assert [record.columns.get(NEG) for record in records] == [("not 0",), None, ("not 2",), None]
    assert all(not record.error and record.image and record.captions for record in records)  # originals are enough
    (tmp_path / "captions.jsonl").write_text(json.dumps({"uid": "u0", X: ["a dog"]}) + "\n")
    both = [str(tmp_path / "negatives.jsonl"), str(tmp_path / "captions.jsonl")]
    assert join(read_samples(path), both, tmp_path / "both", format=format) == JoinCounts(2, 2, 0)
    first, *others = read_records(f"{tmp_path}/both/in{SUFFIXES[format]}")
    assert first.columns == {X: ("a dog",), NEG: ("not 0",), TAGS: ("dog",)}
    assert {record.key: bool(record.error) for record in others} == {f"k{number}": True for number in (1, 2, 3)}
    assert all("no captions of uid" in record.error for record in others)


def test_they_go_beside_text_embeddings_and_clash_with_themselves_alone(picture):
    stored = pack({"image_emb": torch.zeros(1, 4), "text_emb": torch.zeros(1, 4)}, "npz")
    with_embeddings = record(picture, columns={X: ("a dog",), NEG: ("a cat",)}, members={"npz": stored})
    assert room_for(with_embeddings, [TAGS]).members == {"npz": stored}
    with pytest.raises(ColumnClash, match="has text embeddings"):
        room_for(with_embeddings, ["syn_text_y", TAGS])
    with pytest.raises(ColumnClash, match="has the column neg_text_x already"):
        room_for(with_embeddings, [NEG])
    assert room_for(with_embeddings, [NEG], overwrite=True).columns == {X: ("a dog",)}
