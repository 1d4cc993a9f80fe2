import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagetext.readers.suffixes import TABLE_SUFFIXES, TAR_SUFFIXES
from imagetext.readers.table_flags import Columns
from imagetext.sample import Record
from imagetext.shards import SUFFIXES, ShardWriter
from imagetext.sources import Shard, check_table_flags, read_records, read_samples


def test_every_kind_of_spec(tmp_path, picture, write_tar, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write_tar(f"0000{number}.tar", [("a.jpg", picture(number))])
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/x.jpg").write_bytes(picture(7))
    (tmp_path / "t.csv").write_text("path\npics/x.jpg\n")
    (tmp_path / "u.jsonl").write_text('{"image": "pics/x.jpg"}\n')

    def names(spec):
        return [shard.name for shard in read_samples(spec)]

    assert names("{00000..00002}.tar") == names("*.tar") == names("0000{0,1,2}.tar") == ["00000", "00001", "00002"]
    assert names("{00001..00002}.tar") == ["00001", "00002"]
    assert names(["pics/", "t.csv", "u.jsonl"]) == ["pics-00000", "t-00000", "u-00000"]
    assert names("./pics") == names(str(tmp_path / "pics")) == ["pics-00000"]
    assert [sample.image for shard in read_samples(["00001.tar", "pics", "t.csv"]) for sample in shard] == [
        picture(1),
        picture(7),
        picture(7),
    ]
    (shard,) = read_samples("00001.tar")
    status = (tmp_path / "00001.tar").stat()
    assert shard.path == "00001.tar" and shard.stamp == {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def test_metadata_is_found_however_the_folder_is_spelled(tmp_path, picture, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/a.jpg").write_bytes(picture())
    (tmp_path / "pics/metadata.jsonl").write_text('{"file_name": "./a.jpg", "text": "one"}')
    for spec in ("pics", "./pics/", "pics/../pics", str(tmp_path / "pics")):
        assert [sample.captions for shard in read_samples(spec) for sample in shard] == [("one",)]


def test_a_path_that_exists_stands_for_itself(tmp_path, picture, write_tar):
    write_tar(tmp_path / "a[1]{x,y}.tar", [("a.jpg", picture())])
    (shard,) = read_samples(str(tmp_path / "a[1]{x,y}.tar"))
    assert shard.name == "a[1]{x,y}"


def test_every_problem_in_one_message(tmp_path, write_tar):
    write_tar(tmp_path / "00000.tar", [])
    (tmp_path / "empty").mkdir()
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards/00000.tar", [])
    (tmp_path / "set/data").mkdir(parents=True)
    (tmp_path / "set/data/train.parquet").write_bytes(b"")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/data-00000-of-00001.arrow").write_bytes(b"")
    (tmp_path / "keyed.json").write_text('{"a.jpg": "a dog"}')
    (tmp_path / "x.zip").write_bytes(b"")
    (tmp_path / "x.csv").write_text("")
    (tmp_path / "y.csv").write_text("text\n")
    (tmp_path / "z.jsonl").write_text("\n\n")
    specs = [
        "{00000..00002}.tar",
        "*.none",
        "empty",
        "shards",
        "set",
        "saved",
        "keyed.json",
        "x.zip",
        "x.csv",
        "y.csv",
        "z.jsonl",
        "gone",
        "{3..1}.tar",
        "{a}.tar",
        "00000.tar",
        "shards/*.tar",
    ]
    with pytest.raises(ValueError) as caught:
        read_samples([str(tmp_path / spec) for spec in specs])
    lines = str(caught.value).replace(f"{tmp_path}/", "").split("\n")
    suffixes = ", ".join((*TAR_SUFFIXES, *TABLE_SUFFIXES))
    assert lines[:-2] == [
        "00001.tar: no such file",
        "00002.tar: no such file",
        "*.none: nothing matches *.none",
        "empty: no pictures in this folder",
        "shards: no pictures in this folder; for its .tar files give shards/*.tar",
        "set: no pictures in this folder; for its .parquet files give set/data/*.parquet",
        "saved: no pictures in this folder; if `datasets` saved it, give datasets:saved",
        'keyed.json: is no list of rows, and lists no shards: "lengths" is not an object of shards; a table has a row '
        'for each picture, [{"image": "a.jpg", "caption": "a dog"}]',
        f"x.zip: not a {suffixes} file, an info.json or a folder of pictures",
        "x.csv: no column of pictures (image, image_path, filepath, file_name, path) or captions "
        "(captions, caption, text, texts, title); it has none",
        "y.csv: no rows",
        "z.jsonl: no rows",
        f"gone: no such folder, and not a {suffixes} file, an info.json or a folder of pictures",
        "{3..1}.tar: {3..1} counts downwards",
        "{a}.tar: {a} is neither {00000..00009} nor {a,b}",
    ]
    assert lines[-2:] == [
        "two inputs would both be written as '00000': 00000.tar and 00000.tar",
        "two inputs would both be written as '00000': 00000.tar and shards/00000.tar",
    ]
    with pytest.raises(ValueError, match="no input given"):
        read_samples([])


def test_pictures_given_one_by_one_are_one_error_that_names_their_folder(images):
    folder = images(*(f"{number}.jpg" for number in range(20)), "a/0.PNG")
    with pytest.raises(ValueError) as caught:
        read_samples([f"{folder}/*.jpg", f"{folder}/a/0.PNG"])
    assert str(caught.value).split("\n") == [
        f"{place}: pictures are not given one by one; give this folder" for place in (folder, folder / "a")
    ]


def test_pictures_are_read_when_the_shard_is(tmp_path, picture):
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/a.jpg").write_bytes(picture(1))
    (shard,) = read_samples(str(tmp_path / "pics"))
    (tmp_path / "pics/a.jpg").write_bytes(picture(2))
    assert [sample.image for sample in shard] == [picture(2)]
    (tmp_path / "pics/a.jpg").unlink()
    assert "missing" in list(shard)[0].error


def test_shards_travel_to_workers(tmp_path, picture, write_tar):
    (tmp_path / "t.csv").write_text("path\na.jpg\n")
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/a.jpg").write_bytes(picture(1))
    specs = [write_tar(tmp_path / "0.tar", [("a.jpg", picture())]), str(tmp_path / "t.csv"), str(tmp_path / "pics")]
    for shard in read_samples(specs):
        assert list(pickle.loads(pickle.dumps(shard))) == list(shard)


def test_an_info_json_lists_shards(tmp_path, picture, write_tar, monkeypatch):
    (tmp_path / "set/sub").mkdir(parents=True)
    paths = [
        write_tar(tmp_path / name, [("a.jpg", picture(number))])
        for number, name in enumerate(("set/1.tar", "set/sub/0.tar", "2.tar"))
    ]
    info = tmp_path / "set/info.json"
    info.write_text(json.dumps({"lengths": {"1.tar": 1, "sub/0.tar": "0", "../2.tar": 9}, "totalLength": "10"}))
    shards = read_samples(str(info))
    assert [shard.name for shard in shards] == ["1", "0", "2"]
    assert [next(iter(shard)).image for shard in shards] == [*map(picture, range(3))]
    assert [shard.stamp for shard in shards] == [read_samples(path)[0].stamp for path in paths]
    info.write_text(json.dumps({"lengths": {"1.tar": 1, "gone.tar": 1, "info.json": 1, "sub": 1, "a\0b.tar": 1}}))
    with pytest.raises(ValueError) as caught:
        read_samples(str(info))
    assert [line.partition("lists ")[2].replace(f"{tmp_path}/set/", "") for line in str(caught.value).split("\n")] == [
        "gone.tar: no such file",
        "info.json: not a shard",
        "sub: not a shard",
        "a\0b.tar: no such file",
    ]
    for text in ("[]", "{", '{"lengths": []}', '{"lengths": {}}', "lengths\ntotalLength\n"):
        info.write_text(text)
        with pytest.raises(ValueError, match="info.json: lists no shards"):
            read_samples(str(info))


def test_records_of_several_sets_whose_shards_have_one_name(tmp_path, picture, write_tar):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    paths = [write_tar(tmp_path / name / "0.tar", [(f"{name}.jpg", picture())]) for name in ("a", "b")]
    with pytest.raises(ValueError, match="two inputs would both be written as '0'"):
        read_samples(paths)
    assert [record.key for record in read_records(paths)] == ["a", "b"]


def test_drawn_pictures_come_from_scenes(monkeypatch):
    import imagetext.sources

    shards = [Shard("scenes-val-00000", "scenes:val", {}, samples=())]
    monkeypatch.setattr(imagetext.sources, "scene_shards", lambda spec: shards if spec == "scenes:val" else [])
    assert read_samples("scenes:val") == shards


def test_records_of_another_tool(tmp_path, picture, write_tar):
    path = write_tar(
        tmp_path / "0.tar",
        [
            ("a.jpg", picture()),
            ("a.syn.json", b'{"syn_text": ["s1", "s2"]}'),
            ("a.npz", b"n"),
            ("a.json", b'{"uid": "u"}'),
            ("b.jpg", picture()),
            ("b.syn.json", b"[]"),
        ],
    )
    first, second = read_records(path)
    assert first.syn_text == {"syn_text": ("s1", "s2")} and first.members == {"npz": b"n"} and first.error == ""
    assert second.syn_text == {} and "syn.json" in second.error


def test_no_torch_at_import():
    code = "import imagetext, sys; sys.exit(bool({'torch', 'datasets'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_gbc_graphs_are_a_table(wiki):
    path = wiki.parents[1] / "gbc/wiki/wiki_gbc_graphs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    (shard,) = read_samples(str(path))
    assert len(list(shard)) == len(rows) == 19


def test_several_files_with_colons_between_them(tmp_path, picture, write_tar):
    paths = [write_tar(tmp_path / f"{number}.tar", [("a.jpg", picture(number))]) for number in range(3)]
    assert [shard.name for shard in read_samples(f"{paths[0]}::{tmp_path}/{{1..2}}.tar")] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="gone.tar: no such file"):
        read_samples(f"{paths[0]}::{tmp_path}/gone.tar")
    odd = write_tar(tmp_path / "a::b.tar", [("a.jpg", picture(9))])  # a path that exists stands for itself
    assert [shard.name for shard in read_samples(odd)] == ["a::b"]


def test_brackets_of_a_folder_that_exists_are_no_pattern(tmp_path, picture, write_tar):
    (tmp_path / "set [v2]").mkdir()
    for number in range(3):
        write_tar(tmp_path / f"set [v2]/{number}.TAR", [("a.jpg", picture(number))])
    with pytest.raises(ValueError, match="no pictures in this folder; for its .TAR files give ") as caught:
        read_samples(str(tmp_path / "set [v2]"))
    advised = str(caught.value).rpartition(" give ")[2]
    assert [shard.name for shard in read_samples(advised)] == ["0", "1", "2"]
    for pattern in ("set [v2]/[12].TAR", "set [[]v2]/[12].TAR"):
        assert [shard.name for shard in read_samples(f"{tmp_path}/{pattern}")] == ["1", "2"]


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_folder_that_a_run_of_ours_wrote_is_its_shards(tmp_path, picture, format):
    for name in ("0", "1"):
        with ShardWriter(tmp_path / "run", name, format=format) as writer:
            writer.write(Record(f"{name}a", picture(int(name)), ("alt",), columns={"syn_text_x": ("one",)}))
    (tmp_path / "run/run.json").write_text('{"shards": ["0", "1"]}')
    (tmp_path / "run/unfinished.tar").write_bytes(b"x")  # it has no marker
    for spec in (tmp_path / "run", f"{tmp_path}/r*n"):
        assert [(record.key, record.captions, dict(record.columns)) for record in read_records(str(spec))] == [
            ("0a", ("alt",), {"syn_text_x": ("one",)}),
            ("1a", ("alt",), {"syn_text_x": ("one",)}),
        ]
    for lost in (f"0{SUFFIXES[format]}", "0.done.json"):
        os.remove(tmp_path / "run" / lost)
        with pytest.raises(ValueError, match=r"run: 1 of its shards are not there \(0\); finish it"):
            read_samples(f"{tmp_path}/run")
    (tmp_path / "run/run.json").write_text("no run of ours")
    assert [shard.path for shard in read_samples(f"{tmp_path}/run")] == [f"{tmp_path}/run/1{SUFFIXES[format]}"]


def test_the_same_shards_elsewhere_give_the_same_records(tmp_path, picture, write_tar):
    for place in ("a", "b/c"):
        (tmp_path / place / "pics").mkdir(parents=True)
        (tmp_path / place / "pics/p.jpg").write_bytes(picture())
        write_tar(tmp_path / place / "0.tar", [("d/x.jpg", picture()), ("d/x.txt", b"one")])
        (tmp_path / place / "t.jsonl").write_text(
            '{"image": "pics/p.jpg", "text": "a"}\n{"text": "b"}\n{"image": "gone"}\n{'
        )
        (tmp_path / place / "pics/metadata.jsonl").write_text('{"file_name": "gone.jpg"}\n{')
    for name, sources in (
        ("0.tar", ["0.tar/d/x.jpg"]),
        ("pics", ["gone.jpg", "metadata.jsonl:2", "p.jpg"]),
        ("t.jsonl", ["pics/p.jpg", "t.jsonl:2", "gone", "t.jsonl:4"]),
    ):
        first, second = (list(read_records(str(tmp_path / place / name))) for place in ("a", "b/c"))
        assert first == second and [record.meta["source"] for record in first] == sources


@pytest.mark.parametrize("name", ["p.tar", "p.tgz", "p.csv", "p.csv.gz", "p.jsonl", "p.parquet", "p.json"])
def test_a_pipe_is_refused_at_once(tmp_path, name):
    """A pipe without a writer would be waited for without end, and a pipe cannot be read a second time."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: is a pipe or a device"):
        read_samples(str(tmp_path / name))


def test_flags_for_tables_are_refused_where_no_input_is_one(tmp_path, picture, write_tar):
    tar = write_tar(tmp_path / "a.tar", [("1.jpg", picture()), ("1.txt", b"a cat")])
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.jpg").write_bytes(picture())
    (tmp_path / "rows.csv").write_text("image,words,id\npictures/1.jpg,a cat,1\n")
    named = Columns("image", ("words",), ("id",))
    inputs = [str(tar), str(tmp_path / "pictures"), "scenes:train,n=3"]
    with pytest.raises(ValueError) as error:
        check_table_flags(read_samples(inputs), named)
    assert [line.split(":")[0] for line in str(error.value).split("\n")] == [
        "--image-column image",
        "--caption-column words",
        "--key id",
    ]
    check_table_flags(read_samples(inputs), Columns())
    check_table_flags(read_samples([*inputs, str(tmp_path / "rows.csv")], columns=named), named)
    (tmp_path / "pictures" / "metadata.csv").write_text("file_name,words\n1.jpg,a cat\n")
    captions = Columns(captions=("words",))
    check_table_flags(read_samples(inputs, columns=captions), captions)


def test_the_answer_of_a_conversation_is_a_caption_in_tars_folders_and_parquet_too(tmp_path, picture, write_tar):
    """Megatron's tools write LLaVA's sets as tars whose `json` is the list of turns."""
    turns = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": "a disc"}]
    asked = json.dumps({"conversations": turns}).encode()
    files = [("0.json", json.dumps(turns).encode()), ("1.json", asked), ("2.json", asked), ("2.txt", b"a text")]
    files.append(("3.json", json.dumps({"conversations": turns, "caption": "a caption"}).encode()))
    files.append(("4.json", json.dumps({"conversations": 2 * turns}).encode()))
    files = sorted([*files, *((f"{number}.jpg", picture(number)) for number in range(5))])
    (tmp_path / "folder").mkdir()
    for name, data in files:
        (tmp_path / "folder" / name).write_bytes(data)
    expected = [("a disc",), ("a disc",), ("a text",), ("a caption",), ()]
    for spec in (write_tar(tmp_path / "t.tar", files), str(tmp_path / "folder")):
        assert [record.captions for record in read_records(spec)] == expected
    (tmp_path / "with metadata").mkdir()
    (tmp_path / "with metadata" / "0.jpg").write_bytes(picture())
    row = json.dumps({"file_name": "0.jpg", "conversations": turns})
    (tmp_path / "with metadata" / "metadata.jsonl").write_text(row)
    pq.write_table(pa.table({"jpg": [picture()], "json": [{"conversations": turns}]}), tmp_path / "t.parquet")
    for name in ("with metadata", "t.parquet"):
        (shard,) = read_samples(str(tmp_path / name), needs=("pictures", "captions"))
        assert [record.captions for record in shard] == [("a disc",)]
