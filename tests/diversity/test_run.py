"""`capsmith diversity`: what it writes, what it leaves alone, what it says of bad input."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from diversity import DiversityReport
from diversity.config import DiversityConfig
from diversity.measures.measure import PERCENT
from diversity.run import run
from imagetext import lock
from imagetext.lock import FolderLock
from imagetext.outputs import UNFINISHED, write_file

ONE = [["a red dog runs", "a dog"], ["two cats sit", "cats on a mat"]]
OTHER = [["the dog is red", "a 2 2 2 2"], ["a cat and a cat on", "some cats"]]
HUMAN = [["a red dog runs on grass", "the dog runs"], ["two cats sit on a mat", "cats"]]


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "p.png").write_bytes(picture())
    lines = [
        {
            "key": f"k{index}",
            "image": "p.png",
            "captions": HUMAN[index],
            "syn_text_one": ONE[index],
            "syn_text_other": OTHER[index],
            "error": "",
        }
        for index in range(2)
    ]
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_the_command_writes_a_report_and_does_so_again(records, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    config = DiversityConfig(input=[str(records)], output=tmp_path / "out")
    assert run(config) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"report.json", "report.md", "report.html"}
    content = json.loads((tmp_path / "out/report.json").read_text())
    assert list(content["columns"]) == ["syn_text_one", "syn_text_other", "captions"]
    printed = capsys.readouterr().out
    assert "other" in printed and "Degenerate" in printed and "human" in printed
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert run(config) == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert "data:image/jpeg" in before["report.html"].decode()


def test_a_compared_column_called_captions_is_not_called_human(records, tmp_path, capsys):
    """In a table of another captioner, `captions` may hold what a machine wrote; only references are human."""
    assert run(DiversityConfig(input=[str(records)], column=["captions"], output=tmp_path / "out")) == 0
    text = capsys.readouterr().out
    assert text.startswith("captions has ") and "human " not in text.replace("human captions", "")


@pytest.mark.parametrize("columns", ["40", "80"])
def test_the_printed_table_keeps_every_number_in_a_narrow_terminal(records, tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert run(DiversityConfig(input=[str(records)], output=tmp_path / "out")) == 0
    rows = json.loads((tmp_path / "out/report.json").read_text())["columns"]
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    # the last column of the table is that of degenerate captions, and its name stands above it
    assert sum(line.endswith(PERCENT) for line in printed) == len(rows)
    assert any(line.endswith("Degenerate") for line in printed)


@pytest.mark.parametrize("killed_at", ["report.json", "report.html"])
def test_a_run_that_was_killed_knows_its_folder_again(records, tmp_path, monkeypatch, killed_at):
    def write(path, text):
        if path.name == killed_at:
            path.parent.mkdir(exist_ok=True)
            path.with_name(path.name + UNFINISHED).write_text(text[:9])
            raise KeyboardInterrupt  # and nothing is tidied up
        write_file(path, text)

    config = DiversityConfig(input=[str(records)], output=tmp_path / "out")
    with monkeypatch.context() as killing, pytest.raises(KeyboardInterrupt):
        killing.setattr("diversity.run.write_file", write)
        run(config)
    assert run(config) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"report.json", "report.md", "report.html"}


def test_columns_and_references_by_name(records, tmp_path):
    config = DiversityConfig(
        input=[str(records)], column=["syn_text_other"], references="syn_text_one", output=tmp_path / "out"
    )
    assert run(config) == 0
    content = json.loads((tmp_path / "out/report.json").read_text())
    assert list(content["columns"]) == ["syn_text_other", "syn_text_one"]


def test_a_folder_of_something_else_is_left_alone(records, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text('{"kind": "a thesis"}')
    assert run(DiversityConfig(input=[str(records)], output=out)) == 2
    assert "not empty" in capsys.readouterr().err
    assert (out / "report.json").read_text() == '{"kind": "a thesis"}'


def test_a_report_goes_on_where_a_killed_one_stopped_and_leaves_foreign_files(records, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "DEAD", 0.1)
    out = tmp_path / "out"
    out.mkdir()
    for left in (".lock", "report.json" + UNFINISHED):
        (out / left).write_text("half")
    assert run(DiversityConfig(input=[str(records)], output=out)) == 0
    (out / "report.html").unlink()
    (out / "notes.txt").write_text("mine")
    assert run(DiversityConfig(input=[str(records)], output=out)) == 0
    assert {file.name for file in out.iterdir()} == {"report.json", "report.md", "report.html", "notes.txt"}


def test_two_reports_at_once_and_an_output_that_is_the_input_are_refused(records, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report.json").write_text(json.dumps({"kind": "capsmith diversity report"}))
    with FolderLock(tmp_path / "out"):
        assert run(DiversityConfig(input=[str(records)], output=tmp_path / "out")) == 2
    assert "writes here; wait for it to end" in capsys.readouterr().err
    shutil.copy(records, tmp_path / "out")
    (tmp_path / "link").symlink_to("out")
    for input in ("out/*.jsonl", "x=link/records.jsonl"):
        assert (
            run(
                DiversityConfig(
                    input=[input.replace("out", f"{tmp_path}/out").replace("link", f"{tmp_path}/link")],
                    output=tmp_path / "out",
                )
            )
            == 2
        )
        assert "that are the input" in capsys.readouterr().err
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"report.json", "records.jsonl"}


def test_a_full_disk_is_told_and_leaves_nothing_half_written(records, tmp_path, monkeypatch):
    def full(self, data):
        if self.name.startswith("report.md"):
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return Path.open(self, "wb").write(data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device: .*report.md"):
        run(DiversityConfig(input=[str(records)], output=tmp_path / "out"))
    assert os.listdir(tmp_path / "out") == ["report.json"]
    monkeypatch.undo()
    assert run(DiversityConfig(input=[str(records)], output=tmp_path / "out")) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"column": ["syn_text_none"]}, "syn_text_none"),
        ({"references": "who"}, "--references who"),
        ({"input": ["nowhere.jsonl"]}, "nowhere.jsonl"),
    ],
)
def test_bad_input_is_a_message_and_two(records, tmp_path, capsys, change, message):
    assert run(DiversityConfig(**{"input": [str(records)], "output": tmp_path / "out", **change})) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_configuration_problems_come_all_at_once():
    with pytest.raises(ValidationError) as error:
        DiversityConfig(input=[], column=["a", "a"], outptu="x")
    assert {problem["loc"][0] for problem in error.value.errors()} == {"input", "column", "output", "outptu"}
    assert all(field.description for field in DiversityConfig.model_fields.values())


def test_no_torch_and_a_light_config():
    code = (
        "import sys, diversity.config; assert 'numpy' not in sys.modules; from diversity import score_captions; "
        "score_captions({'a': [['a dog runs']]}); assert not {'torch', 'matplotlib', 'transformers'} & "
        "set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_package_gives_its_two_names_only():
    import diversity

    assert diversity.DiversityReport is DiversityReport
    with pytest.raises(AttributeError, match="nothing"):
        diversity.nothing  # noqa: B018
