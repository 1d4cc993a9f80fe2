"""`capsmith diversity`: what it writes, what it leaves alone, what it says of bad input."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from diversity import DiversityReport
from diversity.config import DiversityConfig
from diversity.run import run
from imagetext.outputs import write_file

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
    lines = [{"key": f"k{at}", "image": "p.png", "captions": HUMAN[at], "syn_text_one": ONE[at], "syn_text_other": OTHER[at],
              "error": ""} for at in range(2)]
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


@pytest.mark.parametrize("killed_at", ["report.json", "report.html"])
def test_a_run_that_was_killed_knows_its_folder_again(records, tmp_path, monkeypatch, killed_at):
    def write(path, text):
        if path.name == killed_at:
            path.parent.mkdir(exist_ok=True)
            path.with_name(path.name + ".tmp").write_text(text[:9])
            raise KeyboardInterrupt  # and nothing is tidied up
        write_file(path, text)

    config = DiversityConfig(input=[str(records)], output=tmp_path / "out")
    with monkeypatch.context() as killing, pytest.raises(KeyboardInterrupt):
        killing.setattr("diversity.run.write_file", write)
        run(config)
    assert run(config) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"report.json", "report.md", "report.html"}


def test_columns_and_references_by_name(records, tmp_path):
    config = DiversityConfig(input=[str(records)], column=["syn_text_other"], references="syn_text_one", output=tmp_path / "out")
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


@pytest.mark.parametrize(("change", "message"), [({"column": ["syn_text_none"]}, "syn_text_none"),
                                                 ({"references": "who"}, "--references who"),
                                                 ({"input": ["nowhere.jsonl"]}, "nowhere.jsonl")])
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
    code = ("import sys, diversity.config; assert 'numpy' not in sys.modules; from diversity import score_captions; "
            "score_captions({'a': [['a dog runs']]}); assert not {'torch', 'matplotlib', 'transformers'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_package_gives_its_two_names_only():
    import diversity

    assert diversity.DiversityReport is DiversityReport
    with pytest.raises(AttributeError, match="nothing"):
        diversity.nothing  # noqa: B018
