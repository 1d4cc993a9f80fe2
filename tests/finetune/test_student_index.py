"""The index of a student's records: it gives what reading gives, for the same tar only, and goes at the end."""

import json
import os
from types import SimpleNamespace

import pytest

import finetune.student.index
import finetune.student.records
from finetune.folder import RECORD_INDEX, check_output, run_folder, write_finished
from finetune.student.config import StudentConfig
from finetune.student.records import ReinforcedPictures
from finetune.student.run import run, train
from finetune.student.teachers import Teachers
from finetune.trainer import Trainer
from imagetext.shards import ShardWriter
from imagetext.sources import read_samples

from .sets import DIMENSIONS, SCALES, members, picture, write_config, write_set, write_student, write_tar

FAILED = {name: "" for name in ("uid", "sha256", "source")} | {"width": 0, "height": 0, "captions": []}
FAILED |= {"error": "no picture, said the captioner", "caption_scores": {}}
FOUND = ("records", "identities", "has_negative", "rejects", "failed_before", "input_hashes")
MAIN = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)


@pytest.fixture
def decoded(monkeypatch):
    """Return the list of pictures that are decoded from now on."""
    pictures, decode = [], finetune.student.records.decode_stored
    monkeypatch.setattr(finetune.student.records, "decode_stored", lambda data: pictures.append(data) or decode(data))
    return pictures


def settings(tmp_path, **changes) -> StudentConfig:
    spec = str(tmp_path / "set" / "*.tar")
    return StudentConfig(**{"input": [spec], "student": "x", "output": tmp_path / "run", "device": "cpu"} | changes)


def pictures_of(config: StudentConfig, dimensions=DIMENSIONS) -> ReinforcedPictures:
    """Read the set at the start of a run, which writes the index."""
    student = SimpleNamespace(side=16, mean=(0.5,) * 3, std=(0.2,) * 3, tokenizer=lambda texts: texts)
    teachers = Teachers(("one", "two"), dimensions, SCALES) if config.distill_weight else None
    pictures = ReinforcedPictures(read_samples(config.input), student, config, teachers=teachers, quiet=True)
    pictures.index.write()
    return pictures


def write_mixed_set(folder) -> list[str]:
    """Write two tars with rejected and failed records and texts of many kinds, and a JSONL file; return the inputs."""
    write_config(folder)
    bad = {
        "failed": members(0) | {"json": json.dumps(FAILED).encode(), "jpg": None, "paug.json": None, "npz": None},
        "broken": members(3) | {"jpg": picture(3)[:60]},
    }
    odd = members(4, negatives={"neg_text_a": ["7 4 0", "Ünlike \U0001f600\0"], "tags_a": ["x"]})
    for number in range(2):
        good = {f"ä{number}": members(number), "odd": odd, "again": odd | {"txt": b"0 4 0\n\r"}}
        write_tar(folder / f"{number}.tar", {**bad, **good} if number else {**good, **bad})
    write_tar(folder / "rejected.tar", bad)
    with ShardWriter(str(folder), "table", format="jsonl", input={}) as writer:
        for sample in read_samples(str(folder / "0.tar"))[0]:
            if sample.key != "broken":  # what has no picture and no error is not written
                writer.write(sample)
    return [str(folder / name) for name in ("0.tar", "table.jsonl", "rejected.tar", "1.tar")]


def test_a_second_start_finds_what_the_first_one_found_and_decodes_only_what_is_not_in_tars(tmp_path, decoded):
    config = settings(tmp_path, input=write_mixed_set(tmp_path / "set"), negatives="^neg_text")
    first = pictures_of(config)
    assert (len(first), len(first.rejects), len(first.failed_before)) == (9, 3, 4)
    assert sorted(first.input_hashes) == sorted(path for path in config.input if "rejected" not in path)
    decoded.clear()
    second = pictures_of(config)
    assert len(decoded) == 3  # those of the table
    assert all(getattr(second, name) == getattr(first, name) for name in FOUND)
    assert list(second.input_hashes) == list(first.input_hashes) and second.weights.tolist() == first.weights.tolist()
    assert [second.sample(index) for index in range(9)] == [first.sample(index) for index in range(9)]
    assert len(list((tmp_path / "run" / RECORD_INDEX).iterdir())) == 3


def rewritten(path, old: bytes, new: bytes) -> None:
    """Replace bytes of a file and keep its size and time."""
    stat, data = path.stat(), path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


CHANGES = {  # what happens between two starts, and how many of the two tars with three records each are read again
    "nothing": (lambda folder, index: None, 0),
    "a tar is touched": (lambda folder, index: os.utime(folder / "00001.tar", (1, 1)), 1),
    "a tar is another one": (lambda folder, index: write_tar(folder / "00001.tar", {"new": members(9)}), 1),
    "a tar has other bytes": (lambda folder, index: rewritten(folder / "00001.tar", b"0 1 0", b"0 1 7"), 1),
    "a file is damaged": (lambda folder, index: rewritten(index, b'"r00', b'"x00'), 1),
    "a file is cut": (lambda folder, index: index.write_bytes(index.read_bytes()[:-9]), 1),
    "a file is empty": (lambda folder, index: index.write_bytes(b""), 1),
    "a file is of another tar": (lambda folder, index: index.write_bytes(min(index.parent.iterdir()).read_bytes()), 1),
    "the index is gone": (lambda folder, index: [file.unlink() for file in index.parent.iterdir()], 2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_read_again(change, tmp_path, decoded):
    write_set(tmp_path / "set")
    pictures_of(settings(tmp_path))
    act, read_again = CHANGES[change]
    act(tmp_path / "set", max((tmp_path / "run" / RECORD_INDEX).iterdir()))
    decoded.clear()
    second = pictures_of(settings(tmp_path))
    fresh = pictures_of(settings(tmp_path, output=tmp_path / "other"))
    assert len(decoded) == (3 * read_again if "another one" not in change else 1) + len(fresh)
    assert all(getattr(second, name) == getattr(fresh, name) for name in FOUND)
    decoded.clear()
    pictures_of(settings(tmp_path))
    assert decoded == []  # what was read again is in the index


@pytest.mark.parametrize(
    "changes, dimensions",
    [
        ({"columns": "syn_text_a"}, DIMENSIONS),
        ({"text_weight": 0}, DIMENSIONS),
        ({"single_text": 0.5}, DIMENSIONS),
        ({"negatives": "^neg_text"}, DIMENSIONS),
        ({"distill_weight": 0, "contrastive_weight": 1}, DIMENSIONS),
        ({}, (4, 1)),
        ({"overwrite": True}, DIMENSIONS),
    ],
)
def test_with_other_settings_all_is_read_again(changes, dimensions, tmp_path, decoded):
    write_set(tmp_path / "set", negatives=True)
    pictures_of(settings(tmp_path))
    decoded.clear()
    second = pictures_of(settings(tmp_path, **changes), dimensions)
    assert len(decoded) == 6
    fresh = pictures_of(settings(tmp_path, output=tmp_path / "other", **changes), dimensions)
    assert all(getattr(second, name) == getattr(fresh, name) for name in FOUND)


def test_settings_that_decide_nothing_leave_the_index_as_it_is(tmp_path, decoded):
    write_set(tmp_path / "set")
    pictures_of(settings(tmp_path))
    decoded.clear()
    pictures_of(settings(tmp_path, text_weight=0.5, batch_size=8, seed=3, num_workers=0, logit_scale=[3, 4]))
    assert decoded == []


@pytest.mark.parametrize("other", ["FORMAT", "version"])
def test_what_another_version_found_is_read_again(other, tmp_path, decoded, monkeypatch):
    write_set(tmp_path / "set")
    pictures_of(settings(tmp_path))
    decoded.clear()
    monkeypatch.setattr(finetune.student.index, other, 0 if other == "FORMAT" else lambda library: "0.0.1")
    pictures_of(settings(tmp_path))
    assert len(decoded) == 6


def test_no_file_of_an_index_can_run_code(tmp_path):
    write_set(tmp_path / "set")
    pictures_of(settings(tmp_path))
    for file in (tmp_path / "run" / RECORD_INDEX).iterdir():
        hash, content = file.read_bytes().splitlines()
        assert len(bytes.fromhex(hash.decode())) == 16 and isinstance(json.loads(content), dict)


# In the folder of a run


class Model:
    """A model that is one file."""

    def save(self, folder):
        (folder / "open_clip_config.json").write_text("{}")


def test_the_index_is_a_part_of_its_run_and_goes_when_the_student_is_finished(tmp_path):
    write_set(tmp_path / "set")
    config, other = settings(tmp_path), settings(tmp_path, seed=1, overwrite=True)
    with run_folder(config, {}, MAIN):
        pictures_of(config)
        write_finished(config, Model())
    names = {path.name for path in config.output.iterdir()}
    assert names == {"train-student.json", "open_clip_config.json"}
    with pytest.raises(KeyboardInterrupt), run_folder(other, {}, MAIN):
        pictures_of(other)
        assert (config.output / RECORD_INDEX).exists()
        raise KeyboardInterrupt
    assert {path.name for path in config.output.iterdir()} == names  # the finished student is back


def test_a_run_that_is_stopped_before_its_first_step_finds_its_index_whatever_was_stopped(
    tmp_path, decoded, monkeypatch
):
    """The index moves aside with a run that has no checkpoint, and is back at the next start."""

    def stops(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", stops)
    write_set(tmp_path / "set")
    config = settings(tmp_path, student=write_student(tmp_path / "student"), batch_size=4)
    for decoded_now in (6, 0, 0, 0):
        decoded.clear()
        with pytest.raises(KeyboardInterrupt):
            run(config)
        assert len(decoded) == decoded_now
    (config.output / "checkpoints").mkdir()
    (config.output / "checkpoints" / "000000001.pt").write_bytes(b"a checkpoint")
    write_tar(tmp_path / "set" / "00001.tar", {f"r{number}": members(number) for number in range(3)})
    with pytest.raises(ValueError, match=r"these inputs have changed since the run began.*\n.*00001.tar$"):
        run(config)


def test_only_the_main_process_writes_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda trainer: {})
    write_set(tmp_path / "set")
    config = settings(tmp_path, student=write_student(tmp_path / "student"), batch_size=4)
    check_output(config)
    train(config, SimpleNamespace(is_main_process=False, is_local_main_process=False, wait_for_everyone=lambda: None))
    assert not (config.output / RECORD_INDEX).exists()
