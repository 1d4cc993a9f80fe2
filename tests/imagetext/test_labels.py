"""Classes of pictures: where sets of each kind have them, their names, and the error if there are none."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagetext.readers.labels import Labels, imagenet_ids, keys_of_unique_names, read_class_names
from imagetext.readers.parquet import parquet_class_names
from imagetext.sample import Record
from imagetext.shards import SUFFIXES, ShardWriter
from imagetext.sources import read_records, read_samples
from imagetext.writers.record_fields import record_fields


def labels(spec, place, names=None):
    return [
        (record.key, record.label)
        for shard in read_samples(str(spec), labels=Labels(place, names))
        for record in shard
    ]


def test_folders_are_classes_only_where_that_is_said(images):
    folder = images("cat/a.jpg", "deep/dog/b.jpg", "stray.jpg")
    assert [record.label for record in read_records(str(folder))] == [None] * 3
    assert labels(folder, "folder") == [("cat/a", "cat"), ("deep/dog/b", "dog"), ("stray", None)]
    *_, stray = [record for shard in read_samples(str(folder), labels=Labels("folder")) for record in shard]
    assert stray.error == "no label: 'stray' lies in no folder"


def test_a_set_without_what_is_asked_for_says_what_it_has(tmp_path, images, picture, write_tar):
    with pytest.raises(ValueError, match="--label folder: the first 1 records have no label: 'a' lies in no folder"):
        labels(images("a.jpg"), "folder")
    path = write_tar(tmp_path / "y.tar", [("a.jpg", picture()), ("a.cls", b"3"), ("a.json", b'{"kind": "cat"}')])
    with pytest.raises(ValueError, match="'a' lies in no folder; --label may be 'cls' or 'kind'"):
        labels(path, "folder")
    path = write_tar(
        tmp_path / "x.tar", [("a.jpg", picture()), ("a.class.txt", b"3"), ("a.json", b'{"species": "cat"}')]
    )
    missing = (
        r"x.tar: --label cls: .* no 'cls' with a text or a whole number; .* the files 'class.txt' and the fields "
        r"'uid', .*'species'"
    )
    with pytest.raises(ValueError, match=missing):
        labels(path, "cls")


def test_webdatasets_cls_fields_and_columns(tmp_path, picture, write_tar):
    was = {
        "uid": "c",
        "sha256": "",
        "width": 0,
        "height": 0,
        "captions": [],
        "error": "was broken",
        "source": "s",
        "caption_scores": {},
    }
    path = write_tar(
        tmp_path / "x.tar",
        [
            ("n01/a.jpg", picture()),
            ("n01/a.cls", b"3\n"),
            ("n01/a.json", b'{"species": "cat"}'),
            ("n01/b.jpg", picture(1)),
            ("n01/b.cls", b""),
            ("c.json", json.dumps(was).encode()),
        ],
    )
    assert labels(path, "cls") == [("n01/a", "3"), ("n01/b", None), ("c", None)]
    assert labels(path, "cls", {"3": "tench"})[0] == ("n01/a", "tench")
    assert labels(path, "species")[0] == ("n01/a", "cat") and labels(path, "folder")[1] == ("n01/b", "n01")
    assert [record.error for shard in read_samples(path, labels=Labels("cls")) for record in shard][2] == "was broken"
    rows = [{"image": "p.jpg", "kind": 1}, {"image": "p.jpg", "kind": "two"}, {"image": "p.jpg", "kind": 7}]
    (tmp_path / "p.jpg").write_bytes(picture())
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [label for _, label in labels(tmp_path / "t.jsonl", "kind")] == ["1", "two", "7"]
    (shard,) = read_samples(f"{tmp_path}/t.jsonl", labels=Labels("kind", {"1": "a", "two": "b"}))
    assert list(shard)[2].error == "no label: '7' is none of the 2 classes, which begin with '1', 'two'"


def test_a_column_of_classes_of_datasets_has_their_names(tmp_path, picture):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    rows = [{"image": {"bytes": picture(number), "path": None}, "kind": number % 2} for number in range(3)]
    folder = tmp_path / "animals"
    folder.mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "train.parquet")
    for spec in (f"datasets:{folder}", folder / "train.parquet"):
        assert [label for _, label in labels(spec, "kind")] == ["cat", "dog", "cat"]
    assert parquet_class_names(str(folder / "train.parquet"), "image") is None
    german = {"0": "Katze", "1": "Hund"}
    assert [label for _, label in labels(f"datasets:{folder}", "kind", german)] == ["Katze", "Hund", "Katze"]


def test_numbers_of_a_column_in_which_some_are_missing(tmp_path, picture):
    pictures = [{"bytes": picture(number), "path": None} for number in range(4)]
    table = pa.table({"image": pictures, "label": pa.array([1.0, None, 0.0, 0.5])})
    pq.write_table(table, tmp_path / "x.parquet")
    (shard,) = read_samples(str(tmp_path / "x.parquet"), labels=Labels("label", {"0": "cat", "1": "dog"}))
    records = list(shard)
    assert [record.label for record in records] == ["dog", None, "cat", None]
    assert all("no 'label' with a text or a whole number" in record.error for record in records[1::2])


@pytest.mark.parametrize(
    "text,names",
    [
        ("tench\ngoldfish\n", {"0": "tench", "1": "goldfish"}),
        ("tench\ngoldfish\n\n \n", {"0": "tench", "1": "goldfish"}),
        ("\n1\ttench\n\n3\tgoldfish\n", {"1": "tench", "3": "goldfish"}),
        ("\ufeffn01\ttench\nn02\tgold fish", {"n01": "tench", "n02": "gold fish"}),
        ("n01440764 tench, Tinca\nn01443537 goldfish", {"n01440764": "tench, Tinca", "n01443537": "goldfish"}),
    ],
)
def test_files_of_class_names_are_read(tmp_path, text, names):
    (tmp_path / "names.txt").write_text(text)
    assert read_class_names(tmp_path / "names.txt") == names


@pytest.mark.parametrize(
    "text,reason",
    [
        ("", "is empty"),
        ("a\tb\nc\n", "'c' is not ID<tab>NAME"),
        ("a\tb\na\tc\n", "a named twice"),
        ("tench\n\ngoldfish\n", "line 2 is blank"),
        ("\ntench\ngoldfish\n", "line 1 is blank"),
    ],
)
def test_a_file_that_names_no_classes(tmp_path, text, reason):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ValueError, match=f"--class-names .*names.txt: {reason}"):
        read_class_names(tmp_path / "names.txt")
    with pytest.raises(ValueError, match="--class-names .*gone.txt: cannot be read"):
        read_class_names(tmp_path / "gone.txt")


@pytest.mark.parametrize("moved", [None, 5])
def test_a_record_of_ours_in_which_another_tool_has_filled_source_fields(tmp_path, moved):
    ours = {"uid": "a", "sha256": "", "width": 0, "height": 0, "captions": ["a dog"], "error": "", "source": "a.jpg"}
    row = {"key": "a", "image": None, **ours, "caption_scores": {}, "source_fields": moved, "cls": "dog"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    assert labels(tmp_path / "t.jsonl", "cls") == [("a", "dog")]
    record = Record("a", None, label="dog", meta={"label": "cat", "source_fields": moved})
    assert record_fields(record)["source_fields"] == {"label": "cat"}


def test_names_of_imagenets_classes():
    names = read_class_names("imagenet")
    assert len(names) == 1000 and names["0"] == "tench" and names["999"]
    ids = imagenet_ids()
    assert list(ids) == list(names) and ids["0"] == "n01440764" and ids["999"] == "n15075141"


def test_a_name_stands_for_its_class_unless_two_have_it():
    assert keys_of_unique_names({"0": "star", "1": "heart", "2": "star"}) == {"heart": "1"}


@pytest.mark.parametrize(
    "metadata", [b"", b"{}", b"[1]", b'{"info": {"features": {"kind": {"names": 3}}}}', b"[" * 99_999]
)
def test_what_a_parquet_file_says_of_classes_is_read_where_it_is_sound(tmp_path, metadata):
    table = pa.table({"kind": [0]}).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, tmp_path / "x.parquet")
    assert parquet_class_names(str(tmp_path / "x.parquet"), "kind") is None


def test_an_alias_stands_for_a_label(write_tar, tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.txt", b"a"), ("a.cls", b"n01"), ("b.txt", b"b"), ("b.cls", b"n03")])
    (shard,) = read_samples(path, labels=Labels("cls", {"3": "tench"}, {"n01": "3"}), needs=())
    assert [(record.label, record.error[:32]) for record in shard] == [
        ("tench", ""),
        (None, "no label: 'n03' is none of the 1"),
    ]


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_label_is_written_and_can_be_asked_for_again(tmp_path, picture, write_tar, format):
    path = write_tar(
        tmp_path / "x.tar", [("a.jpg", picture()), ("a.cls", b"3"), ("a.syn.json", b'{"syn_text_x": ["one"]}')]
    )
    (shard,) = read_samples(path, labels=Labels("cls", {"3": "tench"}))
    with ShardWriter(tmp_path, "out", format=format) as writer:
        for record in shard:
            writer.write(record)
    (back,) = read_records(writer.path)
    assert back.label is None and back.meta["label"] == "tench" and back.members == {"cls": b"3"}
    assert labels(writer.path, "label") == [("a", "tench")]
