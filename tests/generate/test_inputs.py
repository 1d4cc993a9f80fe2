"""Inputs between runs: copied ones are the same, changed ones are told, pictures keep their shards, and failures that pass are retried."""

import json
import os
import shutil

import pytest

from generate.engine import run
from generate.inputs import Failures, Hashed
from imagetext.sample import Record
from imagetext.shards import read_marker
from imagetext.sources import read_records

RECORD = Record("a", b"picture", ("one",), {"syn_text_x": ("two",)}, {"syn_text_x": {"logprob": [1.0]}}, {"npz": b"n"},
                meta={"uid": "u", "source": "here", "licence": None, "size": float("nan")})


def hash_of(*records: Record) -> str:
    samples = Hashed(records)
    assert list(samples) == [*records]
    return samples.sha256


@pytest.mark.parametrize("changes", [
    {"key": "b"}, {"image": b"Picture"}, {"image": None}, {"captions": ("One",)}, {"columns": {}}, {"scores": {}}, {"members": {"npz": b"N"}},
    {"members": {"n": b"pz"}}, {"meta": {"uid": "v"}}, {"error": "broken"}])
def test_the_hash_is_of_all_that_a_record_holds_but_of_where_it_lies(changes):
    moved = {**RECORD.meta, "source": "there"}
    assert hash_of(RECORD) == hash_of(Record(**{**vars(RECORD), "meta": moved})) != hash_of(Record(**{**vars(RECORD), **changes}))


def test_the_hash_is_of_the_order_and_there_once_all_is_read():
    other = Record("b", None)
    assert len({hash_of(RECORD, other), hash_of(other, RECORD), hash_of(RECORD), hash_of()}) == 4
    samples = Hashed([RECORD, other])
    next(reading := iter(samples))
    assert samples.sha256 == "" and list(reading) == [other] and samples.sha256 == hash_of(RECORD, other)


@pytest.fixture
def folder(tmp_path, pictures):
    """A folder of three pictures."""
    (tmp_path / "p").mkdir()
    for name, data in zip("bcd", pictures(3)):
        (tmp_path / "p" / f"{name}.jpg").write_bytes(data)
    return tmp_path / "p"


def touch(path) -> None:
    """Another time, and the same bytes."""
    os.utime(path, ns=(1, 1))


def test_a_copied_input_is_the_same_and_another_of_its_size_is_told(captioner, make_tar, pictures, configure, tmp_path, folder, capsys):
    paths = [make_tar(name, pictures(2, int(name))) for name in ("00000", "00001")]
    table = tmp_path / "t.jsonl"
    table.write_text("".join(json.dumps({"image": f"p/{name}.jpg", "caption": name}) + "\n" for name in "bcd"))
    asked = {"input": [*paths, str(table), str(folder)]}
    assert run(configure(**asked)) == 0
    for path in (*paths, table, *folder.iterdir()):
        touch(path)
    captioner.batches.clear()
    assert run(configure(**asked)) == 0 and captioner.batches == []
    data = bytearray((folder / "c.jpg").read_bytes())
    data[-3] ^= 1
    (folder / "c.jpg").write_bytes(data)
    with pytest.raises(ValueError, match="these inputs have changed") as caught:
        run(configure(**asked))
    told = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in told] == [str(table), str(folder)]  # the table's picture is another, too
    assert run(configure(**asked, trust_input=True)) == 0 and captioner.batches == []
    touch(paths[0])
    with open(paths[0], "ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match=f"{paths[0]}: "):
        run(configure(**asked, trust_input=True))  # of another size


def test_new_pictures_of_a_folder_form_new_shards_and_those_that_are_gone_are_named(captioner, configure, tmp_path, folder, pictures,
                                                                                    monkeypatch, capsys):
    monkeypatch.setattr("imagetext.sources.ROWS_PER_SHARD", 2)
    monkeypatch.setattr("generate.inputs.ROWS_PER_SHARD", 2)
    out, asked = tmp_path / "out", {"input": [str(folder)]}

    def keys(name):
        return [record.key for record in read_records(str(out / f"p-0000{name}.tar"))]
    assert run(configure(**asked)) == 0
    assert [keys(0), keys(1)] == [["b", "c"], ["d"]]
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name.startswith("p-")}
    for name, data in zip("aefg", pictures(4, 7)):
        (folder / f"{name}.jpg").write_bytes(data)
    assert run(configure(**asked)) == 0
    assert [keys(2), keys(3)] == [["a", "e"], ["f", "g"]]
    assert all((out / name).read_bytes() == data for name, data in before.items())
    (folder / "c.jpg").unlink()
    (out / "p-00003.done.json").unlink()
    (folder / "g.jpg").unlink()
    captioner.batches.clear()
    assert run(configure(**asked)) == 0 and captioner.batches == [1]
    told = capsys.readouterr().out
    assert "not there any more: 1 of the pictures of shard p-00000: c.jpg\n" in told
    assert "not there any more: 1 of the pictures of shard p-00003: g.jpg\n" in told
    assert [keys(0), keys(3)] == [["b", "c"], ["f"]]
    (folder / "c.jpg").write_bytes(pictures(2)[1])  # it is back, at another time
    captioner.batches.clear()
    assert run(configure(**asked)) == 0 and captioner.batches == []
    for path in folder.iterdir():
        path.unlink()
    (folder / "z.jpg").write_bytes(pictures(1)[0])
    assert run(configure(**asked)) == 0
    assert [keys(number) for number in range(5)] == [["b", "c"], ["d"], ["a", "e"], ["f"], ["z"]]


def test_shards_of_inputs_that_are_not_named_stay_and_are_told(captioner, make_tar, pictures, configure, tmp_path, capsys):
    paths = [make_tar(name, pictures(1, int(name))) for name in ("00000", "00001", "00002")]
    assert run(configure(input=paths[:2])) == run(configure(input=paths[2:])) == 0
    assert "of inputs that are not named now, and left as they are: 2 of the run's shards: 00000, 00001" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "run.json").read_text())["shards"] == ["00000", "00001", "00002"]
    (tmp_path / "out" / "00000.tar").unlink()
    assert run(configure(input=paths[2:])) == 1  # the set is not whole
    assert "1 of 3 shards failed: 00000" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["webdataset", "jsonl", "parquet"])
def test_shards_with_failures_that_pass_are_made_anew_and_the_old_stay_until_then(captioner, configure, tmp_path, pictures, format,
                                                                                  files, caplog):
    for name, text in {"t": ["no.jpg", "a.jpg", "b.jpg"], "u": ["broken.jpg"]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"image": f"i/{one}"}) + "\n" for one in text))
    (tmp_path / "i").mkdir()
    for name, data in zip(("a", "b", "no", "broken"), [*pictures(3), b"text"]):
        (tmp_path / "i" / f"{name}.jpg").write_bytes(data)
    aside = shutil.move(tmp_path / "i" / "no.jpg", tmp_path / "aside.jpg")
    asked = {"input": [str(tmp_path / "t.jsonl"), str(tmp_path / "u.jsonl")], "format": format, "max_error_rate": 1}
    assert run(configure(**asked)) == 0
    assert [read_marker(tmp_path / "out", name)["passing"] for name in ("t-00000", "u-00000")] == [1, 0]
    before = files(tmp_path / "out")
    captioner.batches.clear()
    assert run(configure(**asked)) == 0 and captioner.batches == []
    aside2 = shutil.move(tmp_path / "i" / "a.jpg", tmp_path / "aside2.jpg")
    assert run(configure(**asked, retry_failed=True)) == 0
    assert "2 records failed, 1 in the earlier shard, which stays" in caplog.text and files(tmp_path / "out") == before
    shutil.move(aside, tmp_path / "i" / "no.jpg"), shutil.move(aside2, tmp_path / "i" / "a.jpg")
    captioner.batches.clear()
    assert run(configure(**asked, retry_failed=True)) == 0 and sum(captioner.batches) == 3
    run(configure(**asked, output=tmp_path / "fresh"))
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_what_a_server_refuses_may_pass_and_what_the_gate_does_may_not():
    failures = Failures()
    for error, passing in (("", False), ("not a picture: starts with b'x'", False), ("syn_text_x: no caption passed: empty ''", False),
                           ("missing picture file: 'a.jpg' (No such file or directory)", False),
                           ("syn_text_x: the server refuses the picture: 403", True), ("", True)):
        failures.update(error, passing)
    assert failures == Failures(failed=4, passing=3)
