"""Published synthetic captions in small, exact copies of the files, joined with their pictures by name."""

import hashlib
import json
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagetext.readers import json_values
from imagetext.reinforced.embeddings import pack
from imagetext.sets.join import JoinCounts, join, name_of
from imagetext.sources import read_records, read_samples

HQ = "#long=syn_text_hq,negative=neg_text_hq,tags.positive=tags_hq,tags.negative=neg_tags_hq"


def read(spec):
    return list(read_records(spec))


def refused(spec) -> str:
    with pytest.raises(ValueError) as caught:
        read_samples(spec)
    return str(caught.value)


# ---- LaCLIP --------------------------------------------------------------------------------------------------------


@pytest.fixture
def laclip(tmp_path):
    """The CSV and two of its texts, as released. One caption has commas, quotation marks and a line break."""
    rows = [
        ("train/0001/a.jpg", "a very typical bus station"),
        ("train/0001/b.jpg", '"sierra, looked stunning\nin this top"'),
        ("train/0002/c.png", "young confused girl"),
    ]
    (tmp_path / "cc3m_original.csv").write_text("path,caption\n" + "".join(f"{a},{b}\n" for a, b in rows))
    (tmp_path / "cc3m_chatgpt.txt").write_text("A bus station.\nSierra is stunning.\nnothing\n")
    (tmp_path / "cc3m_bard.txt").write_text("Buses wait here.\n\nA girl, confused\n")
    return f"laclip:{tmp_path}/cc3m_original.csv::{tmp_path}/cc3m_{{chatgpt,bard}}.txt"


def test_laclip_gives_line_i_to_picture_i_of_the_csv(laclip):
    records = read(laclip)
    assert [record.meta["path"] for record in records] == ["train/0001/a.jpg", "train/0001/b.jpg", "train/0002/c.png"]
    assert [record.captions[0] for record in records] == [
        "a very typical bus station",
        "sierra, looked stunning\nin this top",
        "young confused girl",
    ]
    chatgpt, bard = "syn_text_laclip_chatgpt", "syn_text_laclip_bard"
    assert [record.columns for record in records] == [
        {chatgpt: ("A bus station.",), bard: ("Buses wait here.",)},
        {chatgpt: ("Sierra is stunning.",)},
        {bard: ("A girl, confused",)},  # instead of a rewrite of one word, LaCLIP trains on the original
    ]


def test_laclips_csv_of_urls(tmp_path):
    (tmp_path / "o.csv").write_text("https://e.org/1?x=a,one\nhttps://e.org/2.webp,two\n")
    (tmp_path / "a.txt").write_text("the first\r\nthe second")
    assert [(record.meta["url"], record.columns) for record in read(f"laclip:{tmp_path}/o.csv::{tmp_path}/a.txt")] == [
        ("https://e.org/1?x=a", {"syn_text_laclip_a": ("the first",)}),
        ("https://e.org/2.webp", {"syn_text_laclip_a": ("the second",)}),
    ]


def test_laclips_counts_must_agree(laclip, tmp_path):
    (tmp_path / "cc3m_bard.txt").write_text("Buses wait here.\nA girl, confused\n")
    message = refused(laclip)
    assert "cc3m_original.csv: has 3 pictures, but " in message and "cc3m_bard.txt has 2 lines" in message
    assert "chatgpt" not in message and message.endswith("it is not known which line belongs to which picture")


def test_what_is_wrong_with_laclips_files_is_named(laclip, tmp_path):
    csv = tmp_path / "cc3m_original.csv"
    assert "expected one CSV and its texts" in refused(f"laclip:{csv}")
    assert "expected one CSV and its texts" in refused(f"laclip:{csv},{tmp_path}/cc3m_bard.txt")
    assert "no such file" in refused(f"laclip:{csv}::{tmp_path}/x.txt")
    (tmp_path / "cc12m_bard.txt").write_text("a\nb\nc\n")
    assert "would both be syn_text_laclip_bard" in refused(f"laclip:{csv}::{tmp_path}/cc*_bard.txt")
    csv.write_text("train/a.jpg\n")
    assert "cc3m_original.csv: line 1: 'train/a.jpg' has no caption" in refused(laclip)
    csv.write_text("train/a.jpg," + "x" * 200_000 + "\n")
    assert "cc3m_original.csv: line 1: field larger than" in refused(laclip)


def test_laclip_is_joined_by_path_never_by_order(laclip, tmp_path, images):
    folder = images("train/0002/c.png", "train/0001/b.jpg", "train/0001/a.jpg", "train/0001/z.jpg")
    (folder / "table.csv").write_text(
        "file_name,caption\n./train/0002/c.png,c\ntrain/0001/z.jpg,z\ntrain/0001/a.jpg,a\n"
    )
    columns = {"a": ("A bus station.", "Buses wait here."), "b": ("Sierra is stunning.",), "c": ("A girl, confused",)}
    for spec, count in ((str(folder), 3), (str(folder / "table.csv"), 2)):
        report = join(read_samples(spec), laclip, tmp_path / f"out{count}", on="path")
        assert report == JoinCounts(count, 1, 0)
        records = read(str(tmp_path / f"out{count}" / "*.tar"))
        for record in records:
            stem = record.meta["source"].rpartition("/")[2][0]
            texts_of_record = tuple(text for texts in record.columns.values() for text in sorted(texts))
            assert sorted(texts_of_record) == sorted(columns.get(stem, ()))
        assert {record.meta["source"].rpartition("/")[2] for record in records if record.error} == {"z.jpg"}


def test_names_of_pictures_by_path(images):
    (record,) = read(str(images("b/a.jpg")))
    assert name_of(record, "path") == "b/a.jpg"
    record.meta["path"] = "./c//d.jpg"
    assert name_of(record, "path") == "c/d.jpg"


# ---- VeCap ---------------------------------------------------------------------------------------------------------


def test_vecap_is_one_object_of_links_and_captions(tmp_path):
    path = tmp_path / "wit_300m-00-of-10.json"
    path.write_text(json.dumps({"https://e.org/1.jpg": "a dog, {running}", "https://e.org/2": 'é "x"', "u": None}))
    first, second, third = read(f"vecap:{path}")
    assert (first.meta["url"], first.columns) == ("https://e.org/1.jpg", {"syn_text_vecap": ("a dog, {running}",)})
    assert (second.meta["url"], second.columns) == ("https://e.org/2", {"syn_text_vecap": ('é "x"',)})
    assert third.error == "caption: expected a text, got None" and third.meta["source"] == f"{path.name}:3"
    assert f"did you mean vecap:{path}?" in refused(str(path))


@pytest.mark.parametrize("name", ["v.jsonl", "v.json", "v.csv", "v.parquet"])
def test_vecap_is_a_table_of_links_and_captions(tmp_path, name):
    rows, path = (
        [{"url": "https://e.org/1", "caption": "a dog"}, {"url": "https://e.org/2", "caption": "a cat"}],
        tmp_path / name,
    )
    if name == "v.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name == "v.csv":
        path.write_text("url,caption\n" + "".join(f"{row['url']},{row['caption']}\n" for row in rows))
    else:
        path.write_text(json.dumps(rows) if name == "v.json" else "".join(json.dumps(row) + "\n" for row in rows))
    assert [(record.meta["url"], record.columns["syn_text_vecap"]) for record in read(f"vecap:{path}")] == [
        ("https://e.org/1", ("a dog",)),
        ("https://e.org/2", ("a cat",)),
    ]


def test_an_object_larger_than_a_window_is_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(json_values, "WINDOW", 1 << 13)
    path, count = tmp_path / "v.json", 2_000
    with open(path, "w") as file:
        file.write("\ufeff{")
        file.writelines(
            f'{", " * (number > 0)}\n"https://e.org/{number}" : "é picture {number} {"x" * number}"'
            for number in range(count)
        )
        file.write("}\n")
    (shard,) = read_samples(f"vecap:{path}")
    tracemalloc.start()
    rows = [(record.meta["url"][-1], record.columns["syn_text_vecap"][0].split()[2]) for record in shard]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == [(str(number)[-1], str(number)) for number in range(count)]
    assert os.path.getsize(path) > 2_000_000 and peak < 1_500_000  # most of it is a buffer of the file


@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"https://e.org/1": "a", "https://e.org/2": "b', "line 1: not JSON"),
        ('{"https://e.org/1": "a", "https://e.org/2": "b"', "is cut: the object has no end"),
        ('{"https://e.org/1": "a",\n https}', "line 2: not JSON"),
        ('{"https://e.org/1": "a", "https://e.org/2", "b": "c"}', "line 1: not JSON: expected :, got ,"),
        ('{"https://e.org/1": "a"\n"https://e.org/2": "b"}', 'line 2: not JSON: expected , or }, got "'),
    ],
)
def test_an_object_that_is_cut_or_broken_is_told_with_its_file_and_line(tmp_path, text, expected):
    path = tmp_path / "v.json"
    path.write_text(text)
    (shard,) = read_samples(f"vecap:{path}")
    records = iter(shard)
    assert next(records).columns == {"syn_text_vecap": ("a",)}
    with pytest.raises(ValueError, match=f"v.json: {expected}"):
        list(records)


def test_a_value_that_is_no_text_is_a_row(tmp_path):
    path = tmp_path / "v.json"
    path.write_text('{"https://e.org/1": {"a": [1]}, "https://e.org/2": ["b", "c"]}')
    first, second = read(f"vecap:{path}")
    assert first.error == "caption: expected a text, got {'a': [1]}"
    assert second.columns == {"syn_text_vecap": ("b", "c")}


# ---- Recap-DataComp ------------------------------------------------------------------------------------------------


def test_recap_datacomp_is_read(tmp_path, write_tar, picture):
    rows = [
        {
            "url": f"https://e.org/{number}.jpg",
            "re_caption": f"A photograph of {number}." if number else None,
            "org_caption": f"alt {number}",
            "sha256": hashlib.sha256(picture(number)).hexdigest(),
            "key": f"{number:09d}",
            "re_clip_score": 0.3,
            "re_length": 4,
        }
        for number in range(3)
    ]
    path = tmp_path / "train-00000-of-02720.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    records = read(f"recap:{tmp_path}/train-*.parquet")
    assert records[0].error == "re_caption: expected a text, got None"
    assert records[1].captions == ("alt 1",) and records[1].columns == {"syn_text_recap": ("A photograph of 1.",)}
    assert records[1].key == "000000001" and records[1].meta["url"] == "https://e.org/1.jpg"
    tar = write_tar(
        tmp_path / "in.tar",
        [
            (f"{number}.{suffix}", data)
            for number in (2, 1, 0)
            for suffix, data in {
                "jpg": picture(number),
                "txt": b"alt",
                "json": json.dumps({"url": f"https://e.org/{number}.jpg", "key": str(number)}).encode(),
            }.items()
        ],
    )
    for on in ("url", "sha256"):
        assert join(read_samples(tar), f"recap:{path}", tmp_path / on, on=on) == JoinCounts(2, 1, 0)
        joined = read(str(tmp_path / on / "in.tar"))
        assert [record.columns.get("syn_text_recap") for record in joined] == [
            ("A photograph of 2.",),
            ("A photograph of 1.",),
            None,
        ]
    assert "expected the columns url and caption of vecap, it has url, re_caption" in refused(f"vecap:{path}")


# ---- HQ-CLIP -------------------------------------------------------------------------------------------------------


def hq_file(number: int) -> bytes:
    document = {
        "long": f"A long description of {number}.",
        "negative": f"A wrong description of {number}.",
        "tags": {"positive": ["dog", "grass"], "negative": "cat, sea,"},
    }
    return json.dumps(document).encode()


@pytest.mark.parametrize("packed", [False, True])
def test_hq_clip_is_a_file_for_each_uid(tmp_path, write_tar, picture, packed):
    uids = [f"{number:032x}" for number in range(4)]
    files = [(f"part/{uid}.json", hq_file(number)) for number, uid in enumerate(uids)]
    files[1] = (files[1][0], b'{"long": "cut')
    files[2] = (files[2][0], b'{"other": "x", "long": ""}')
    place = tmp_path / "VLM-150M"
    if packed:
        place = write_tar(tmp_path / "VLM-150M.tar", files)
    else:
        for name, data in files:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
    records = read(f"hq-clip:{place}{HQ}")
    assert [bool(record.error) for record in records] == [False, True, True, False]
    assert records[3].meta["uid"] == records[3].key == uids[3] and records[3].columns == {
        "syn_text_hq": ("A long description of 3.",),
        "neg_text_hq": ("A wrong description of 3.",),
        "tags_hq": ("dog", "grass"),
        "neg_tags_hq": ("cat", "sea"),
    }
    assert records[1].error.startswith(f"{uids[1]}.json: ")
    assert (
        records[2].error
        == f"{uids[2]}.json: no text in long, negative, tags.positive, tags.negative; it has other, long"
    )
    tar = write_tar(
        tmp_path / "in.tar",
        [
            (f"{number}.{suffix}", data)
            for number in (3, 0)
            for suffix, data in {"jpg": picture(number), "json": json.dumps({"uid": uids[number]}).encode()}.items()
        ],
    )
    assert join(read_samples(tar), f"hq-clip:{place}{HQ}", tmp_path / "out") == JoinCounts(2, 0, 0)
    assert [record.columns["neg_text_hq"] for record in read(str(tmp_path / "out/in.tar"))] == [
        ("A wrong description of 3.",),
        ("A wrong description of 0.",),
    ]


def test_the_fields_of_hq_clip_are_told_never_guessed(tmp_path):
    (tmp_path / "u1.json").write_bytes(hq_file(1))
    for fields in ("", "#long", "#long=syn_text_hq,tags=syn_text_hq", "#=syn_text_hq"):
        message = refused(f"hq-clip:{tmp_path}{fields}")
        assert "say which field is which column" in message and message.endswith(
            "u1.json has the fields long, negative, tags"
        )
    assert "column: 'text_hq' is not syn_text_" in refused(f"hq-clip:{tmp_path}#long=text_hq")
    (record,) = read(f"hq-clip:{tmp_path}#long=syn_text_hq,tags=tags_hq")
    assert record.error == (
        "u1.json: tags: expected a text or a list of texts, "
        "got {'positive': ['dog', 'grass'], 'negative': 'cat, sea,'}"
    )
    assert "neither the folder of HQ-CLIP's JSON files nor a tar" in refused(f"hq-clip:{tmp_path}/u1.json{HQ}")
    (tmp_path / "empty").mkdir()
    assert refused(f"hq-clip:{tmp_path}/empty{HQ}").endswith("empty: there is no JSON file")
    assert "takes no #long" in refused(f"recap:{tmp_path}/u1.json#long")


def test_hq_clip_reads_nothing_outside_its_folder(tmp_path):
    (tmp_path / "secret.json").write_text('{"long": "a secret text"}')
    (tmp_path / "set").mkdir()
    (tmp_path / "set/u1.json").symlink_to(tmp_path / "secret.json")
    (record,) = read(f"hq-clip:{tmp_path}/set#long=syn_text_hq")
    assert record.columns == {} and "a file outside the set" in record.error and "secret text" not in record.error


# ---- DataCompDR and DFNDR ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["syn_text", "syn_text_dfn_mscoco38k"])
@pytest.mark.parametrize("on", ["uid", "url"])
def test_reinforced_records_without_pictures_are_joined_as_they_are(tmp_path, write_tar, picture, column, on):
    """Only the columns are joined in the older layout: its views and embeddings need pictures and texts."""
    import torch

    emb = pack({"image_emb": torch.zeros(2, 4), "text_emb": torch.zeros(3, 4)}, "npz")
    files = []
    for number in range(3):
        files += [
            (f"{number:012d}.url.txt", f"https://e.org/{number}".encode()),
            (f"{number:012d}.syn.json", json.dumps({column: [f"one {number}", f"two {number}"]}).encode()),
            (f"{number:012d}.paug.json", json.dumps({"param_aug": "[[[14, 347, 370, 427], [[0, 0.0]]]]"}).encode()),
            (f"{number:012d}.npz", emb),
            (f"{number:012d}.json", json.dumps({"uid": f"u{number}", "sha256": "0" * 64}).encode()),
        ]
    published = write_tar(tmp_path / "00000000.tar", files)
    (tmp_path / "pictures").mkdir()
    pictures = write_tar(
        tmp_path / "pictures/00000000.tar",
        [
            (f"k{number}.{suffix}", data)
            for number in (2, 0)
            for suffix, data in {
                "jpg": picture(number),
                "txt": f"alt {number}".encode(),
                "json": json.dumps({"uid": f"u{number}", "url": f"https://e.org/{number}"}).encode(),
            }.items()
        ],
    )
    assert join(read_samples(pictures), published, tmp_path / "out", on=on) == JoinCounts(2, 0, 0)
    records = read(f"{tmp_path}/out/00000000.tar")
    assert [record.columns for record in records] == [
        {column: (f"one {number}", f"two {number}")} for number in (2, 0)
    ]
    assert all(record.members == {} and record.image for record in records)
