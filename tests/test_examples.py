"""Every file of examples/ runs on a small set."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import capsmith
from finetune.captioner.config import FinetuneConfig
from generate.captions.config import GenerateConfig
from imagetext.scenes.draw import SceneSpec, scene_sample
from imagetext.shards import ShardWriter
from imagetext.sources import read_records

EXAMPLES = Path(__file__).parents[1] / "examples"
RUN_HERE = (
    "caption_folder.sh",
    "two_captioners.yaml",
    "finetune_coca.yaml",
    "is_it_better.py",
    "keep_alike.py",
    "self_training.py",
)


def load(name: str):
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [name for name in RUN_HERE if not name.endswith(".yaml")])
def test_without_arguments_a_script_says_how_it_is_used(name):
    program = sys.executable if name.endswith(".py") else "bash"
    done = subprocess.run([program, EXAMPLES / name, "too few"], capture_output=True, text=True)
    assert done.returncode == 1 and f"{name} " in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("is_it_better.py", ("scenes:train,n=4", "syn_text_a", "syn_text_b"), "no captions in 'syn_text_a'"),
        ("self_training.py", ("scenes:train,n=4", "nowhere/*.tar", "coca_tiny", "out"), "nothing matches nowhere"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(name, arguments, message, tmp_path):
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.fixture
def pictures() -> list:
    return [scene_sample(SceneSpec("train", 60), number) for number in range(60)]


def write(folder, records, **columns) -> str:
    """Write a set with these columns; each is a function of a record's number and the record."""
    with ShardWriter(folder, "00000", columns=list(columns)) as writer:
        for number, record in enumerate(records):
            texts = {name: tuple(make_texts(number, record)) for name, make_texts in columns.items()}
            alike = {"similarity": [0.1, 0.9], "logprob": [-1.0, -2.0]}
            writer.write(replace(record, columns=texts, scores={name: alike for name in texts}))
    return f"{folder}/*.tar"


def test_every_example_is_run_and_listed():
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert files == {*RUN_HERE, "README.md"}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"]({name})" in listed for name in RUN_HERE)


def test_a_folder_is_captioned_and_reported(tmp_path, pictures):
    (tmp_path / "pictures").mkdir()
    for number, record in enumerate(pictures[:12]):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(record.image)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", EXAMPLES / "caption_folder.sh", "pictures", "coca_tiny", "captioned", "--num-workers", "0"],
        cwd=tmp_path,
        env={"PATH": path, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(read_records(str(tmp_path / "captioned")))) == 12
    assert (tmp_path / "captioned-look" / "gallery.html").is_file()
    assert (tmp_path / "captioned-report" / "report.html").is_file()


@pytest.mark.parametrize(
    "command, config_type, name",
    [("generate", GenerateConfig, "two_captioners.yaml"), ("finetune", FinetuneConfig, "finetune_coca.yaml")],
)
def test_a_configuration_is_accepted(command, config_type, name):
    config = capsmith.parse(command, config_type, ["--config", str(EXAMPLES / name), "--input", "a", "--output", "b"])
    assert config.input == ["a"]
    if command == "generate":
        assert [column.temperature for column in config.columns] == [1.0, 0.7, 1.0]


def test_a_worse_captioner_fails_and_a_better_one_does_not(tmp_path, pictures):
    with_references = [replace(record, captions=record.captions[:-2]) for record in pictures]
    pattern = write(
        tmp_path,
        with_references,
        syn_text_true=lambda number, record: pictures[number].captions[-2:],
        syn_text_wrong=lambda number, record: pictures[(number + 7) % len(pictures)].captions[-2:],
    )
    judge = load("is_it_better.py").main
    assert judge(pattern, "syn_text_wrong", "syn_text_true") == 0
    assert judge(pattern, "syn_text_true", "syn_text_wrong") == 1


def test_captions_that_are_unlike_their_picture_go_and_rows_stay(tmp_path, pictures, capsys):
    pattern = write(tmp_path / "before", pictures[:3], syn_text_a=lambda number, record: record.captions[:2])
    load("keep_alike.py").main(pattern, "syn_text_a", "0.5", str(tmp_path / "after"))
    after = list(read_records(f"{tmp_path}/after/*.tar"))
    assert [record.columns["syn_text_a"] for record in after] == [record.captions[1:2] for record in pictures[:3]]
    assert [record.scores["syn_text_a"]["similarity"] for record in after] == [[0.9]] * 3
    assert "3 of 3 pictures have captions of syn_text_a left" in capsys.readouterr().out
    for column, threshold in (("syn_text_a", "0.95"), ("syn_text_not_there", "0.5")):
        load("keep_alike.py").main(pattern, column, threshold, str(tmp_path / column))
        assert [bool(record.error) for record in read_records(f"{tmp_path}/{column}/*.tar")] == [True] * 3
        assert f"0 of 3 pictures have captions of {column} left" in capsys.readouterr().out


def test_a_captioner_teaches_itself(tmp_path, pictures, monkeypatch):
    (tmp_path / "pictures").mkdir()
    for number, record in enumerate(pictures[:6]):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(record.image)
    example = load("self_training.py")
    for settings, changes in (
        (example.CAPTIONING, {"num_workers": 0}),
        (example.CHOICE, {"where": "true"}),
        (example.TRAINING, {"samples_seen": 8, "batch_size": 4, "num_workers": 0}),
    ):
        for name, value in changes.items():
            monkeypatch.setitem(settings, name, value)
    arguments = ("scenes:train,n=4", str(tmp_path / "pictures"), "coca_tiny", str(tmp_path / "out"))
    assert list(example.self_train(*arguments, rounds=1)) == [f"{tmp_path}/out/1/captioner"]
    chosen = list(read_records(f"{tmp_path}/out/1/chosen"))
    assert len(chosen) == 3 and all(record.columns[example.COLUMN] and not record.captions for record in chosen)
    inputs_read = json.loads((tmp_path / "out/1/captioner/finetune.json").read_text())["read"]
    assert [arguments[0], f"{tmp_path}/out/1/chosen/pictures-00000.parquet"] == list(inputs_read)
    monkeypatch.setattr(example, "generate", lambda config: 3)
    with pytest.raises(SystemExit):
        next(example.self_train(*arguments))
