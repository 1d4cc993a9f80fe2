"""Inputs between runs: copied and changed ones, pictures that keep their shards, and failures that are tried again."""

import errno
import json
import os
import shutil
from threading import Barrier

import pytest

from generate.captions.run import run
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.run import run as reinforce
from generate.runs import inputs, start
from generate.runs.failures import Failures
from generate.runs.inputs import Hashed
from generate.runs.manifest import clear_run, write_run
from generate.sets.join import JoinConfig
from generate.sets.join import run as join
from imagetext import shards
from imagetext.outputs import UNFINISHED
from imagetext.sample import Record
from imagetext.shards import read_marker
from imagetext.sources import read_records

RECORD = Record(
    "a",
    b"picture",
    ("one",),
    columns={"syn_text_x": ("two",)},
    scores={"syn_text_x": {"logprob": [1.0]}},
    members={"npz": b"n"},
    meta={"uid": "u", "source": "here", "licence": None, "size": float("nan")},
)


def hash_of(*records: Record) -> str:
    samples = Hashed(records)
    assert list(samples) == [*records]
    return samples.sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "b"},
        {"image": b"Picture"},
        {"image": None},
        {"captions": ("One",)},
        {"columns": {}},
        {"scores": {}},
        {"members": {"npz": b"N"}},
        {"members": {"n": b"pz"}},
        {"meta": {"uid": "v"}},
        {"error": "broken"},
    ],
)
def test_the_hash_is_of_all_that_a_record_holds_but_of_where_it_lies(changes):
    moved = {**RECORD.meta, "source": "there"}
    assert (
        hash_of(RECORD)
        == hash_of(Record(**{**vars(RECORD), "meta": moved}))
        != hash_of(Record(**{**vars(RECORD), **changes}))
    )


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
    """Set another time; the bytes stay the same."""
    os.utime(path, ns=(1, 1))


def test_a_copied_input_is_the_same_and_another_of_its_size_is_told(
    captioner, make_tar, pictures, configure, tmp_path, folder, capsys
):
    paths = [make_tar(name, pictures(2, int(name))) for name in ("00000", "00001")]
    table = tmp_path / "t.jsonl"
    table.write_text("".join(json.dumps({"image": f"p/{name}.jpg", "caption": name}) + "\n" for name in "bcd"))
    options = {"input": [*paths, str(table), str(folder)]}
    assert run(configure(**options)) == 0
    for path in (*paths, table, *folder.iterdir()):
        touch(path)
    captioner.batches.clear()
    assert run(configure(**options)) == 0 and captioner.batches == []
    data = bytearray((folder / "c.jpg").read_bytes())
    data[-3] ^= 1
    (folder / "c.jpg").write_bytes(data)
    with pytest.raises(ValueError, match="these inputs have changed") as caught:
        run(configure(**options))
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [
        str(table),
        str(folder),
    ]  # the table's picture has changed, too
    assert run(configure(**options, trust_input=True)) == 0 and captioner.batches == []
    touch(paths[0])
    with open(paths[0], "ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match=f"{paths[0]}: "):
        run(configure(**options, trust_input=True))  # of another size


def test_new_pictures_of_a_folder_form_new_shards_and_those_that_are_gone_are_named(
    captioner, configure, tmp_path, folder, pictures, monkeypatch, capsys
):
    monkeypatch.setattr("imagetext.sources.ROWS_PER_SHARD", 2)
    monkeypatch.setattr("generate.runs.in_place.ROWS_PER_SHARD", 2)
    out, options = tmp_path / "out", {"input": [str(folder)]}

    def keys(name):
        return [record.key for record in read_records(str(out / f"p-0000{name}.tar"))]

    assert run(configure(**options)) == 0
    assert [keys(0), keys(1)] == [["b", "c"], ["d"]]
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name.startswith("p-")}
    for name, data in zip("aefg", pictures(4, 7)):
        (folder / f"{name}.jpg").write_bytes(data)
    assert run(configure(**options)) == 0
    assert [keys(2), keys(3)] == [["a", "e"], ["f", "g"]]
    assert all((out / name).read_bytes() == data for name, data in before.items())
    (folder / "c.jpg").unlink()
    (out / "p-00003.done.json").unlink()
    (folder / "g.jpg").unlink()
    captioner.batches.clear()
    assert run(configure(**options)) == 0 and captioner.batches == [1]
    printed = capsys.readouterr().out
    assert "1 pictures of shard p-00000 are not there any more: c.jpg\n" in printed
    assert "1 pictures of shard p-00003 are not there any more: g.jpg\n" in printed
    assert "it is not checked whether other pictures of these shards, or their texts, have changed since\n" in printed
    assert [keys(0), keys(3)] == [["b", "c"], ["f"]]
    (folder / "c.jpg").write_bytes(pictures(2)[1])  # it is back, with another time
    captioner.batches.clear()
    assert run(configure(**options)) == 0 and captioner.batches == []
    assert "not checked" not in capsys.readouterr().out
    for path in folder.iterdir():
        path.unlink()
    (folder / "z.jpg").write_bytes(pictures(1)[0])
    assert run(configure(**options)) == 0
    assert [keys(number) for number in range(5)] == [["b", "c"], ["d"], ["a", "e"], ["f"], ["z"]]


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.json"])
def test_new_rows_at_the_end_of_a_table_form_new_shards(captioner, configure, tmp_path, pictures, monkeypatch, name):
    """Finished shards stay, with the bytes that the shorter table gives, whether or not rows repeat a picture."""
    for module in ("imagetext.readers.table_pieces", "generate.runs.in_place"):
        monkeypatch.setattr(f"{module}.ROWS_PER_SHARD", 3)
    for number, data in enumerate(pictures(12)):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    table, out = tmp_path / name, tmp_path / "out"

    def write(count, first="a"):
        rows = [
            {"image": f"{number}.jpg", "caption": text}
            for number in range(count)
            for text in (first, "b")[: 1 + number % 2]
        ]
        if name == "t.json":
            table.write_text(json.dumps(rows))
        elif name == "t.csv":
            table.write_text("image,caption\n" + "".join(f"{row['image']},{row['caption']}\n" for row in rows))
        else:
            table.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def keys():
        return [
            [int(record.meta["source"][:-4]) for record in read_records(str(path))]
            for path in sorted(out.glob("*.tar"))
        ]

    write(5)
    assert run(configure(input=[str(table)])) == 0 and keys() == [[0, 1, 2], [3, 4]]
    for count, expected in ((9, [[5, 6, 7], [8]]), (10, [[9]])):
        before, earlier_keys = {path.name: path.read_bytes() for path in out.glob("*.tar")}, keys()
        write(count)
        captioner.batches.clear()
        assert run(configure(input=[str(table)])) == 0 and sum(captioner.batches) == sum(map(len, expected))
        assert keys() == earlier_keys + expected and all(
            (out / file_name).read_bytes() == data for file_name, data in before.items()
        )
        captioner.batches.clear()
        assert run(configure(input=[str(table)])) == 0 and captioner.batches == []
    write(11, first="another")
    with pytest.raises(ValueError, match="add new rows at the end of a table, or in another file beside it"):
        run(configure(input=[str(table)]))


def test_shards_of_inputs_that_are_not_named_stay_and_are_told(
    captioner, make_tar, pictures, configure, tmp_path, capsys
):
    paths = [make_tar(name, pictures(1, int(name))) for name in ("00000", "00001", "00002")]
    assert run(configure(input=paths[:2])) == run(configure(input=paths[2:])) == 0
    assert (
        "2 shards of the run come from inputs that this command does not name, and are left as they are: 00000, 00001"
        in capsys.readouterr().out
    )
    assert json.loads((tmp_path / "out" / "run.json").read_text())["shards"] == ["00000", "00001", "00002"]
    (tmp_path / "out" / "00000.tar").unlink()
    assert run(configure(input=paths[2:])) == 1  # the set is not whole
    assert "1 of 3 shards failed: 00000" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["webdataset", "jsonl", "parquet"])
def test_shards_with_failures_that_pass_are_made_anew_and_the_old_stay_until_then(
    captioner, configure, tmp_path, pictures, format, files, caplog
):
    for name, text in {"t": ["no.jpg", "a.jpg", "b.jpg"], "u": ["broken.jpg"]}.items():
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"image": f"i/{picture}"}) + "\n" for picture in text)
        )
    (tmp_path / "i").mkdir()
    for name, data in zip(("a", "b", "no", "broken"), [*pictures(3), b"text"]):
        (tmp_path / "i" / f"{name}.jpg").write_bytes(data)
    aside = shutil.move(tmp_path / "i" / "no.jpg", tmp_path / "aside.jpg")
    options = {"input": [str(tmp_path / "t.jsonl"), str(tmp_path / "u.jsonl")], "format": format, "max_error_rate": 1}
    assert run(configure(**options)) == 0
    assert [read_marker(tmp_path / "out", name)["passing"] for name in ("t-00000", "u-00000")] == [1, 0]
    before = files(tmp_path / "out")
    captioner.batches.clear()
    assert run(configure(**options)) == 0 and captioner.batches == []
    aside2 = shutil.move(tmp_path / "i" / "a.jpg", tmp_path / "aside2.jpg")
    assert run(configure(**options, retry_failed=True)) == 0
    assert "2 records failed, 1 in the earlier shard, which stays" in caplog.text and files(tmp_path / "out") == before
    shutil.move(aside, tmp_path / "i" / "no.jpg"), shutil.move(aside2, tmp_path / "i" / "a.jpg")
    captioner.batches.clear()
    assert run(configure(**options, retry_failed=True)) == 0 and sum(captioner.batches) == 3
    run(configure(**options, output=tmp_path / "fresh"))
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_what_a_server_refuses_may_pass_and_what_the_gate_does_may_not():
    failures = Failures()
    failures.update("missing picture", before=True)
    refused = "the server refuses the picture: 403"
    for error, reasons in (
        ("", ()),
        ("not a picture: starts with b'x'", ()),
        ("syn_text_x: no caption passed: empty ''", ()),
        ("missing picture file: 'a.jpg' (No such file or directory)", ()),
        (f"syn_text_x: {refused}", [refused]),
        ("", [refused]),
        ("", ["no word that a rule can change", "instruction: the record has no text"]),
    ):
        failures.update(error, reasons)
    first = "not a picture: starts with b'x'"
    assert failures == Failures(failed=5, failed_before=1, passing=3, first_reason=first)


def test_an_input_of_the_same_size_and_time_whose_bytes_are_others_is_told(captioner, make_tar, pictures, configure):
    path = make_tar("00000", pictures(2))
    assert run(configure()) == 0
    stat, data = os.stat(path), bytearray(open(path, "rb").read())
    data[600] ^= 1
    with open(path, "wb") as file:
        file.write(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ValueError, match="these inputs have changed") as caught:
        run(configure())
    assert str(caught.value).endswith(
        f"{path}: its bytes have changed since 00000.tar was written, with the same size and time"
    )
    assert run(configure(trust_input=True)) == 0


@pytest.mark.parametrize("called", [(inputs, "sample_hash"), (shards, "_marker")])
def test_markers_and_samples_of_inputs_are_read_at_the_same_time(
    called, captioner, make_tar, pictures, configure, monkeypatch
):
    for name in ("00000", "00001", "00002"):
        make_tar(name, pictures(1))
    assert run(configure()) == 0
    read, all_at_once = getattr(*called), Barrier(3)

    def read_with_the_others(*arguments):
        all_at_once.wait(30)  # BrokenBarrierError where one is read after the other
        return read(*arguments)

    monkeypatch.setattr(*called, read_with_the_others)
    assert run(configure(dry_run=True)) == 0


def test_a_shard_is_not_looked_for_in_the_list_of_all_shards(captioner, make_tar, pictures, configure, monkeypatch):
    class Names(list):
        def __contains__(self, name):
            raise AssertionError("takes time by the square of the number of shards")

    make_tar("00000", pictures(1))
    assert run(configure()) == 0
    names = start.read_shards
    monkeypatch.setattr(start, "read_shards", lambda folder: Names(names(folder)))
    assert run(configure(dry_run=True)) == 0


# --- what is done, and what is somebody else's -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "later, options, made_again", [(True, {}, True), (False, {}, False), (False, {"verify_done": True}, True)]
)
def test_a_shard_is_believed_by_its_size_and_by_its_hash_where_it_is_newer_than_its_marker(
    captioner, make_tar, pictures, configure, tmp_path, files, capsys, later, options, made_again
):
    for name in ("00000", "00001"):
        make_tar(name, pictures(2, int(name)))
    assert run(configure()) == 0
    before, path = files(tmp_path / "out"), tmp_path / "out" / "00001.tar"
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    if not later:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.utime(tmp_path / "out" / "00000.tar")  # newer than its marker, and whole
    captioner.batches.clear()
    assert (
        run(configure(dry_run=True, **options)) == 0
        and f"{int(made_again)} of 2 shards to do" in capsys.readouterr().out
    )
    assert run(configure(**options)) == 0 and sum(captioner.batches) == 2 * made_again
    assert (files(tmp_path / "out") == before) == made_again
    assert (
        "00001: its bytes do not match the hash in its marker, so it is made again" in capsys.readouterr().out
    ) == made_again


def test_a_marker_without_a_hash_counts_by_size(captioner, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(2))
    assert run(configure()) == 0
    path = tmp_path / "out" / "00000.done.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": None}))
    captioner.batches.clear()
    assert run(configure(verify_done=True)) == 0 and captioner.batches == []


@pytest.mark.parametrize("format, suffix", [("webdataset", "tar"), ("jsonl", "jsonl"), ("parquet", "parquet")])
def test_overwrite_removes_what_run_json_and_markers_name_and_nothing_else(
    captioner, make_tar, pictures, configure, tmp_path, files, format, suffix
):
    paths = [make_tar(name, pictures(2, int(name))) for name in ("00000", "00001", "00002")]
    out = tmp_path / "out"
    assert run(configure(format=format)) == 0
    (out / "00001.done.json").unlink()  # unfinished
    (out / f"00002.{suffix}").rename(out / f"00002.{suffix}{UNFINISHED}")
    os.makedirs(out / f"00002.images{UNFINISHED}")
    theirs = {
        f"00007.{suffix}": b"t",
        "00001.csv": b"c",
        f"notes.{suffix}.tmp": b"n",
        "other.images/a.jpg": b"i",
        "x.parquet": b"p",
    }
    for name, data in theirs.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
    options = {"input": paths[:1], "format": format, "seed": 1}
    assert run(configure(**options, overwrite=True)) == 0
    assert run(configure(**options, output=tmp_path / "fresh")) == 0
    assert files(out) == {**files(tmp_path / "fresh"), **theirs} and not (out / f"00002.images{UNFINISHED}").exists()
    make_tar("00007", pictures(1))
    with pytest.raises(ValueError, match=f"00007.{suffix}: is not a file of this run and would be overwritten"):
        run(configure(format=format, seed=1))
    assert files(out) == {**files(tmp_path / "fresh"), **theirs}


def test_what_is_removed_with_a_run_is_never_behind_a_link(tmp_path):
    for folder in ("theirs", "out/0.images", "out/2.images" + UNFINISHED):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "theirs/a.jpg").write_bytes(b"a")
    (tmp_path / "out/0.images/own.jpg").write_bytes(b"o")
    for link in ("0.images/linked", "1.images", f"2.images{UNFINISHED}/linked"):
        (tmp_path / "out" / link).symlink_to(tmp_path / "theirs")
    write_run(tmp_path / "out", {"columns": {}, "format": "jsonl"}, ["0", "1", "2"])
    clear_run(tmp_path / "out")
    assert os.listdir(tmp_path / "out") == [] and os.listdir(tmp_path / "theirs") == ["a.jpg"]


def test_an_output_that_is_the_input_is_refused(captioner, make_tar, pictures, configure, tmp_path, folder, files):
    make_tar("00000", pictures(2))
    assert run(configure()) == 0
    before = files(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "linked.tar").symlink_to(tmp_path / "out" / "00000.tar")
    for input in ("out/*.tar", "link/00000.tar", "linked.tar", "in/../out/00000.tar"):
        for options in ({}, {"overwrite": True}, {"column": "syn_text_y"}, {"dry_run": True}):
            with pytest.raises(ValueError, match="holds the shards that are the input .*; give another folder"):
                run(configure(input=[str(tmp_path / input)], **options))
    with pytest.raises(ValueError, match="is not empty"):
        join(
            JoinConfig(
                input=[str(tmp_path / "in" / "*.tar")], captions=[str(tmp_path / "out")], output=tmp_path / "in"
            )
        )
    (folder / "run.json").write_text('{"fingerprint": {"columns": {}}}')  # as in a run that has no shards yet
    with pytest.raises(ValueError, match="holds the pictures"):
        run(configure(input=[str(folder)], output=folder, overwrite=True))
    assert files(tmp_path / "out") == before and len(files(folder)) == 4


def test_a_set_of_another_command_is_not_begun_anew(captioner, make_tar, pictures, configure, tmp_path, files):
    make_tar("00000", pictures(2))
    assert run(configure()) == 0
    before = files(tmp_path / "out")
    shards = [str(tmp_path / "in" / "*.tar")]
    for other in (
        lambda: reinforce(
            ReinforceConfig(input=shards, teacher=["coca_tiny"], output=tmp_path / "out", overwrite=True)
        ),
        lambda: join(JoinConfig(input=shards, captions=shards, output=tmp_path / "out")),
    ):
        with pytest.raises(
            ValueError, match="holds a run of capsmith generate, and this is capsmith .*; give another folder"
        ):
            other()
    assert files(tmp_path / "out") == before


def test_a_second_run_is_refused_and_a_full_disk_ends_the_run_at_once(
    captioner, make_tar, pictures, configure, tmp_path, files
):
    for name in ("00000", "00001"):
        make_tar(name, pictures(2, int(name)))
    original_caption = captioner.caption

    def caption(requests, sampling, **options):
        with pytest.raises(ValueError, match=f"process {os.getpid()} on .* writes here"):
            run(configure(overwrite=True))
        captioner.caption = original_caption
        raise OSError(errno.ENOSPC, "No space left on device")

    captioner.caption = caption
    with pytest.raises(OSError, match="No space left"):
        run(configure())
    assert captioner.batches == [] and list(files(tmp_path / "out")) == ["run.json"]
    assert run(configure()) == 0
