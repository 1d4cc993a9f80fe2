import hashlib
import io
import json
import os
import random
from dataclasses import replace

import numpy as np
import pytest

from generate.sets.join import JoinConfig, run
from imagetext.sample import Record
from imagetext.sets.join import JoinCounts, drawn_text, join, name_of, parse_text_from
from imagetext.sets.room import ColumnClash
from imagetext.shards import SUFFIXES, ShardWriter, read_marker
from imagetext.sources import read_records, read_samples
from imagetext.stores import StoreError

X, Y = "syn_text_x", "syn_text_y"


def write(folder, records, name="00000", **options) -> str:
    with ShardWriter(folder, name, **options) as writer:
        for record in records:
            writer.write(record)
    return writer.path


def shard(tmp_path, write_tar, picture, numbers, name="00000", syn=None, **more) -> str:
    """Write a shard of pictures with keys, uids and urls made from their numbers."""
    files = []
    for number in numbers:
        members = {
            "jpg": picture(number),
            "txt": f"alt {number}".encode(),
            "url.txt": f"http://e.org/{number}\n".encode(),
            "json": json.dumps({"uid": f"u{number}"}).encode(),
            "odd.bin": b"n",
            **more,
        }
        files += [(f"k{number}.{suffix}", data) for suffix, data in members.items()]
        files += [(f"k{number}.syn.json", json.dumps(syn).encode())] if syn else []
    return write_tar(tmp_path / f"{name}.tar", files)


def captioned(path, column, text="of {}", scores=True) -> list[Record]:
    """Return the records that a captioner makes of a shard's samples; every fifth fails."""
    records = []
    for sample in read_samples(path)[0]:
        number = sample.meta["uid"][1:]
        if int(number) % 5 == 4:
            records.append(replace(sample, error="no caption passed"))
            continue
        scores_of_column = {column: {"logprob": [-float(number)]}} if scores else {}
        records.append(
            replace(sample, columns={**sample.columns, column: (text.format(number),)}, scores=scores_of_column)
        )
    return records


@pytest.mark.parametrize("format", SUFFIXES)
@pytest.mark.parametrize("on", ["key", "uid", "sha256", "url"])
def test_captions_alone_find_their_pictures(tmp_path, write_tar, picture, format, on):
    paths = [
        shard(tmp_path, write_tar, picture, numbers=numbers, name=name)
        for name, numbers in (("0", range(7)), ("1", range(7, 12)))
    ]
    records = [record for path in paths for record in captioned(path, X)]
    direct = [
        write(tmp_path / "direct", captioned(path, X), str(number), format=format) for number, path in enumerate(paths)
    ]
    random.Random(0).shuffle(records)
    for number in range(3):  # in other shards, in another order
        path = write(tmp_path / "columns", records[number::3], str(number), format=format, images=False)
        assert picture(1) not in open(path, "rb").read()
    report = join(
        read_samples(paths), f"{tmp_path}/columns/*{SUFFIXES[format]}", tmp_path / "joined", on=on, format=format
    )
    assert report == JoinCounts(matched=10, unmatched=2, duplicate=0)
    for number, path in enumerate(direct):
        expected, got = list(read_records(path)), list(read_records(f"{tmp_path}/joined/{number}{SUFFIXES[format]}"))
        assert [item for item in got if not item.error] == [item for item in expected if not item.error]
        assert [item.key for item in got] == [item.key for item in expected]
        if format == "webdataset":
            assert all(
                f"no captions of {on} " in item.error and item.error.endswith(": no caption passed")
                for item in got
                if item.error
            )


@pytest.mark.parametrize("column", ["path", "file_name"])
def test_captions_of_a_table_whose_pictures_are_elsewhere(tmp_path, images, column):
    folder = images("cat/a.jpg", "cat/b.jpg")
    table = tmp_path / "captions.csv"
    table.write_text(f"{column},{X}\ncat/a.jpg,of a\ncat/b.jpg,of b\ncat/c.jpg,of c\n")
    assert join(read_samples(str(folder)), str(table), tmp_path / "out", on="path") == JoinCounts(2, 0, 0)
    records = read_records(f"{tmp_path}/out/{folder.name}-00000.tar")
    assert [(record.key, record.syn_text) for record in records] == [
        ("cat/a", {X: ("of a",)}),
        ("cat/b", {X: ("of b",)}),
    ]


def test_numbers_name_the_same_pictures_with_a_fraction_or_without(tmp_path, images):
    """Other tools store the numbers of a column as 1.0 if one is missing."""
    folder = images("1.jpg")
    tables = {"pictures": {"uid": 1, "image": "1.jpg"}, "captions": {"uid": 1.0, X: "of one"}}
    for name, row in tables.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    shards = read_samples(f"{tmp_path}/pictures.jsonl", folder)
    assert join(shards, f"{tmp_path}/captions.jsonl", tmp_path / "out") == JoinCounts(1, 0, 0)
    (record,) = read_records(f"{tmp_path}/out/pictures-00000.tar")
    assert record.key == record.meta["uid"] == "1" and record.syn_text == {X: ("of one",)}


def test_what_captions_alone_hold(tmp_path, write_tar, picture):
    path = shard(tmp_path, write_tar, picture, numbers=range(5), syn={"syn_text_old": ["old"]})
    path = write(tmp_path / "columns", captioned(path, X), images=False, columns=[X])
    records = list(read_records(path))
    assert [record.key for record in records] == ["k0", "k1", "k2", "k3", "k4"] and records[
        4
    ].error == "no caption passed"
    assert records[0].syn_text == {X: ("of 0",)} and records[0].image is None and records[0].members == {}
    meta = records[0].meta
    assert meta["url"] == "http://e.org/0" and (meta["width"], meta["height"]) == (12, 8) and len(meta["sha256"]) == 64
    assert records[0].scores == {X: {"logprob": [0.0]}} and read_marker(tmp_path / "columns", "00000")["captions"] == {
        X: 4
    }


def test_columns_of_several_sets_and_of_the_shard_itself(tmp_path, write_tar, picture):
    path = shard(tmp_path, write_tar, picture, numbers=range(4), syn={"syn_text_old": ["old"]})
    other_spec = write(tmp_path / "x", captioned(path, X), images=False, columns=[X])
    other = write(tmp_path / "y", captioned(path, Y)[:2], images=False, columns=[Y], format="jsonl")
    assert join(read_samples(path), [other_spec, other], tmp_path / "out") == JoinCounts(4, 0, 0)
    records = list(read_records(f"{tmp_path}/out/00000.tar"))
    assert [sorted(record.syn_text) for record in records] == 2 * [["syn_text_old", X, Y]] + 2 * [["syn_text_old", X]]
    assert records[0].scores == {X: {"logprob": [0.0]}, Y: {"logprob": [0.0]}}
    assert records[0].members["odd.bin"] == b"n" and records[0].captions == ("alt 0",)


def test_an_unmatched_record_keeps_what_it_has(tmp_path, write_tar, picture):
    path = shard(tmp_path, write_tar, picture, numbers=range(2), syn={"syn_text_old": ["old"]})
    columns = write(tmp_path / "x", captioned(path, X)[:1], images=False, columns=[X])
    assert join(read_samples(path), columns, tmp_path / "out") == JoinCounts(1, 1, 0)
    first, second = read_records(f"{tmp_path}/out/00000.tar")
    assert second.error == "" and second.syn_text == {"syn_text_old": ("old",)} and second.image == picture(1)


def test_captions_that_differ_for_one_name(tmp_path, write_tar, picture):
    path = shard(tmp_path, write_tar, picture, numbers=range(4))
    records = captioned(path, X)
    twice = write(tmp_path / "twice", records[:2], images=False)  # the same captions again: no contradiction
    other = write(tmp_path / "other", captioned(path, X, "another {}")[2:3], images=False)
    first = write(tmp_path / "x", records, images=False)
    for number, order in enumerate(([first, twice, other], [other, first, twice])):
        assert join(read_samples(path), order, tmp_path / f"out{number}") == JoinCounts(3, 0, 1)
        joined = {record.key: record for record in read_records(f"{tmp_path}/out{number}/00000.tar")}
        assert joined["k2"].error == "no captions of uid 'u2' to join: several that differ"
        assert joined["k3"].syn_text == {X: ("of 3",)}
    # The same picture has different captions under two keys: those of the smallest key are used for all.
    same = [
        Record(key, picture(2), meta={"uid": key}, columns={X: (text,)})
        for key, text in (("b", "of b"), ("a", "of a"))
    ]
    for number, order in enumerate((same, same[::-1])):
        columns = write(tmp_path / f"same{number}", order, images=False)
        assert join(read_samples(path), columns, tmp_path / f"sha{number}", on="sha256") == JoinCounts(1, 3, 0)
        assert next(read_records(f"{tmp_path}/sha{number}/00000.tar")).syn_text == {X: ("of a",)}


def test_a_column_that_is_there_and_embeddings_are_refused(tmp_path, write_tar, picture):
    path = shard(tmp_path, write_tar, picture, numbers=range(2), syn={X: ["old"]})
    columns = write(tmp_path / "x", captioned(path, X), images=False, columns=[X])
    with pytest.raises(ColumnClash, match="k0: has the column syn_text_x already"):
        join(read_samples(path), columns, tmp_path / "out")
    join(read_samples(path), columns, tmp_path / "out", overwrite=True)
    assert [record.syn_text for record in read_records(f"{tmp_path}/out/00000.tar")] == [
        {X: ("of 0",)},
        {X: ("of 1",)},
    ]
    path = shard(tmp_path, write_tar, picture, numbers=range(2), name="1", **{"pth.gz": b"p"})
    with pytest.raises(ColumnClash, match="k0: has text embeddings"):
        join(read_samples(path), columns, tmp_path / "out")
    assert join(read_samples(path), columns, tmp_path / "out", drop_text_embeddings=True).matched == 2
    assert "pth.gz" not in next(read_records(f"{tmp_path}/out/1.tar")).members


def test_shards_without_pictures_are_joined_by_uid(tmp_path, write_tar, picture):
    """Published sets have no pictures: their captioner read its own copy, in other shards and under other keys."""
    members = {"url.txt": b"u", "syn.json": b'{"syn_text": ["old"]}', "paug.json": b"{}"}
    reinforced = write_tar(
        tmp_path / "r.tar",
        [
            (f"r{n}.{suffix}", data)
            for n in range(3)
            for suffix, data in {**members, "json": b'{"uid": "u%d"}' % n}.items()
        ],
    )
    columns = write(
        tmp_path / "x", captioned(shard(tmp_path, write_tar, picture, numbers=(2, 0)), X), images=False, columns=[X]
    )
    assert join(read_samples(reinforced), columns, tmp_path / "out") == JoinCounts(2, 1, 0)
    records = list(read_records(f"{tmp_path}/out/r.tar"))
    assert [record.syn_text.get(X) for record in records] == [("of 0",), None, ("of 2",)]
    assert all(record.image is None and not record.error for record in records)
    assert all(record.members["paug.json"] == b"{}" for record in records)


def test_shards_that_are_done_are_not_done_again(tmp_path, write_tar, picture, monkeypatch):
    paths = [shard(tmp_path, write_tar, picture, numbers=range(3), name=name) for name in ("0", "1")]
    columns = write(tmp_path / "x", captioned(paths[0], X), images=False, columns=[X])
    shards = read_samples(paths)
    report = join(shards, columns, tmp_path / "out", on="key")
    times = {name: os.stat(tmp_path / "out" / name).st_mtime_ns for name in os.listdir(tmp_path / "out")}
    assert join(shards, columns, tmp_path / "out", on="key") == report == JoinCounts(6, 0, 0)
    os.unlink(tmp_path / "out/1.done.json")
    assert join(shards, columns, tmp_path / "out", on="key") == report
    changed = {name for name, time in times.items() if os.stat(tmp_path / "out" / name).st_mtime_ns != time}
    assert changed == {"1.tar", "1.done.json"}
    assert join(shards, columns, tmp_path / "out", on="url") == report  # with another `on`
    assert {name for name, time in times.items() if os.stat(tmp_path / "out" / name).st_mtime_ns == time} == set()


@pytest.mark.parametrize("which", [0, 1])
def test_other_bytes_of_the_same_size_and_time_are_noticed(tmp_path, write_tar, picture, which):
    path = shard(tmp_path, write_tar, picture, numbers=range(3))
    inputs = path, write(tmp_path / "x", captioned(path, X), images=False, columns=[X])
    join(read_samples(path), inputs[1], tmp_path / "out", on="key")
    before, times = open(inputs[which], "rb").read(), os.stat(inputs[which])
    before_text, after_text = ((b"alt 0", b"alt 9"), (b"of 0", b"of 9"))[which]
    assert before_text in before
    with open(inputs[which], "wb") as file:
        file.write(before.replace(before_text, after_text))
    os.utime(inputs[which], ns=(times.st_atime_ns, times.st_mtime_ns))
    join(read_samples(path), inputs[1], tmp_path / "out", on="key")
    assert after_text.decode() in str(list(read_records(f"{tmp_path}/out/00000.tar"))[0])


def test_join_refuses_bad_arguments(tmp_path, write_tar, picture):
    path = shard(tmp_path, write_tar, picture, numbers=range(1))
    with pytest.raises(ValueError, match="output .*: holds the shards"):
        join(read_samples(path), path, f"{tmp_path}/")
    with pytest.raises(ValueError, match="--text-from: writes `txt`, which records in"):
        join(read_samples(path), path, tmp_path / "out", format="jsonl", text_from=(X, 0.5))
    with pytest.raises(ValueError, match="no such file"):
        join(read_samples(path), str(tmp_path / "gone.tar"), tmp_path / "out")
    table = tmp_path / "captions.jsonl"
    table.write_text('{"uid": "a", "captions": ["a cat"]}')  # columns of captions have other names
    with pytest.raises(ValueError, match="captions.jsonl: no record has captions to join; .* called syn_text_"):
        join(read_samples(path), str(table), tmp_path / "out")


def test_a_column_of_texts_that_no_record_has_is_told(tmp_path, write_tar, picture, capsys):
    path = shard(tmp_path, write_tar, picture, numbers=range(2), syn={X: ["of it"]})
    for column, drawable in ((X, 2), ("syn_text_y", 0)):
        for _ in range(2):  # the second time, nothing is left to do
            counts = join(read_samples(path), [], tmp_path / column, text_from=(column, 0.5))
            assert counts.drawable == drawable
        config = JoinConfig(input=[path], text_from=f"{column}:0.5", output=f"{tmp_path}/{column}-of-command")
        assert run(config) == (0 if drawable else 1)
        told = capsys.readouterr().out
        assert "2 records have captions in" in told if drawable else "no record has captions in this column" in told
        assert "joined on" not in told  # "0 pictures with captions joined" looked like a failure


def test_shards_of_two_formats_do_not_come_into_one_folder(tmp_path, write_tar, picture):
    path = shard(tmp_path, write_tar, picture, numbers=range(2), syn={X: ["old"]})
    join(read_samples(path), [], tmp_path / "out", text_from=(X, 1.0))
    files = sorted(os.listdir(tmp_path / "out"))
    columns = write(tmp_path / "y", captioned(path, Y), images=False, columns=[Y])
    with pytest.raises(ValueError, match="output .*out: holds shards in the format webdataset, .* another folder"):
        join(read_samples(path), columns, tmp_path / "out", format="jsonl")
    assert sorted(os.listdir(tmp_path / "out")) == files


@pytest.mark.parametrize(
    "sample,names",
    [
        (Record("k", None, meta={"uid": "u", "sha256": "s", "url": "w"}), ("k", "u", "s", "w")),
        (
            Record("k", b"p", members={"url.txt": b" w\n"}, meta={"uid": 7, "url": "v"}),
            ("k", "7", hashlib.sha256(b"p").hexdigest(), "w"),
        ),
        (Record("k", None, meta={"sha256": "", "url": None}), ("k", None, None, None)),
    ],
)
def test_what_names_a_picture(sample, names):
    assert tuple(name_of(sample, on) for on in ("key", "uid", "sha256", "url")) == names


# ---- txt drawn from a column ---------------------------------------------------------------------------------------


def test_text_from_a_column():
    assert parse_text_from("syn_text_x:0.25") == (X, 0.25)
    for text in ("syn_text_x", "syn_text_x:2", "syn_text_x:nan", "syn_text_x:", ":0.5", "text:0.5"):
        with pytest.raises(ValueError):
            parse_text_from(text)
    columns = {X: ("a", " ", "b", "c")}
    records = [Record(f"k{number}", None, captions=("alt",), columns=columns) for number in range(3000)]
    texts = [drawn_text(record, X, 0.3) for record in records]
    assert (
        texts
        == [drawn_text(record, X, 0.3) for record in records]
        != [drawn_text(record, X, 0.3, seed=1) for record in records]
    )
    for text, expected in ((None, 2100), ("a", 300), ("b", 300), ("c", 300), (" ", 0)):
        assert abs(texts.count(text) - expected) < 100 * bool(expected) + 1  # 4 standard deviations of the largest
    # With a higher probability, the same texts and more are drawn.
    assert all(drawn_text(record, X, 0.6) == text for record, text in zip(records, texts) if text)
    assert {drawn_text(record, X, 0.0) for record in records} == {None}
    assert {drawn_text(record, X, 1.0) for record in records} == {"a", "b", "c"}
    assert drawn_text(records[0], Y, 1.0) is None
    # A record without an original text would have none, and open_clip's trainer would skip its picture.
    assert all(drawn_text(replace(record, captions=()), X, 0.3) for record in records[:20])


def test_txt_of_the_joined_shards(tmp_path, write_tar, picture):
    path = shard(tmp_path, write_tar, picture, numbers=range(4), syn={"syn_text_old": ["old"]})
    columns = write(tmp_path / "x", captioned(path, X), images=False, columns=[X])
    for probability, texts in ((0.0, [f"alt {n}" for n in range(4)]), (1.0, [f"of {n}" for n in range(4)])):
        folder = tmp_path / str(probability)
        join(read_samples(path), columns, folder, text_from=(X, probability))
        assert [files["txt"].decode() for files in by_key(folder / "00000.tar")] == texts
        assert [record.captions for record in read_records(f"{folder}/00000.tar")] == [(f"alt {n}",) for n in range(4)]
    join(read_samples(path), [], tmp_path / "old", text_from=("syn_text_old", 1.0))  # no columns to join at all
    assert [files["txt"] for files in by_key(tmp_path / "old/00000.tar")] == 4 * [b"old"]


def test_a_drawn_txt_does_not_keep_the_embedding_of_another_text(tmp_path, write_tar, picture):
    arrays = io.BytesIO()
    np.savez(arrays, image_emb=np.ones((2, 3)), text_emb=np.ones((1, 3)), syn_text_old_emb=np.zeros((1, 3)))
    path = shard(tmp_path, write_tar, picture, numbers=range(2), syn={"syn_text_old": ["old"]}, npz=arrays.getvalue())
    text_from = ("syn_text_old", 1.0)
    with pytest.raises(ColumnClash, match="k0: has text embeddings .*npz: text_emb"):
        join(read_samples(path), [], tmp_path / "out", text_from=text_from)
    join(read_samples(path), [], tmp_path / "out", text_from=text_from, drop_text_embeddings=True)
    for files in by_key(tmp_path / "out/00000.tar"):
        assert files["txt"] == b"old" and np.load(io.BytesIO(files["npz"])).files == ["image_emb"]
    join(read_samples(path), [], tmp_path / "none", text_from=("syn_text_old", 0.0))
    assert by_key(tmp_path / "none/00000.tar")[0]["npz"] == arrays.getvalue()


def by_key(path) -> list[dict[str, bytes]]:
    from imagetext.readers.tar_members import read_members

    samples: dict[str, dict[str, bytes]] = {}
    for member in read_members(str(path)):
        samples.setdefault(member.key, {})[member.suffix] = member.data
    return list(samples.values())


def test_join_reads_and_writes_a_store(tmp_path, write_tar, picture, s3):
    s3.put("in/00000.tar", open(shard(tmp_path, write_tar, picture, numbers=range(4)), "rb").read())
    shards = read_samples(f"{s3.root}/in/*.tar")
    write(f"{s3.root}/columns", captioned(shards[0].path, X), images=False, format="parquet")
    report = join(shards, f"{s3.root}/columns/*.parquet", f"{s3.root}/out")
    assert report == JoinCounts(4, 0, 0) == join(shards, f"{s3.root}/columns/*.parquet", f"{s3.root}/out")
    assert [record.syn_text for record in read_records(f"{s3.root}/out/00000.tar")] == [
        {X: (f"of {n}",)} for n in range(4)
    ]
    with pytest.raises(ValueError, match="holds the shards"):
        join(shards, f"{s3.root}/columns/*.parquet", f"{s3.root}/in/")
    s3.fail("GET", "in/00000.tar", 503)
    with pytest.raises(StoreError):
        join(shards, f"{s3.root}/columns/*.parquet", f"{s3.root}/other")
    assert read_marker(f"{s3.root}/other", "00000") is None
