import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from diversity import DiversityReport, measures, score_captions
from diversity.config import DiversityConfig
from diversity.fidelity import REASONS
from diversity.report import run

ONE = [["a red dog runs", "a dog"], ["two cats sit", "cats on a mat"]]
OTHER = [["the dog is red", "a 2 2 2 2"], ["a cat and a cat on", "some cats"]]
HUMAN = [["a red dog runs on grass", "the dog runs"], ["two cats sit on a mat", "cats"]]


# --- score_captions ------------------------------------------------------------------------------------------------


def test_a_row_for_each_column_and_the_human_one_last():
    report = score_captions({"one": ONE, "other": OTHER}, references=HUMAN)
    assert list(report.rows) == ["one", "other", "captions (human)"]
    assert report.references == "captions (human)"
    assert report.rows["other"]["degenerate"] > 0
    assert report.degenerate_examples["other"]["loop"] == ["a 2 2 2 2"]
    assert all(row["captions"] == 4 for row in report.rows.values())


def test_columns_are_compared_on_the_pictures_all_have_with_equal_counts():
    one = [["a dog runs by"] * 3, ["a cat sits here"] * 2, ["a cow sits here"]]
    other = [["the dog runs by"], ["the cat sits by", "a cat here too"], []]
    report = score_captions({"one": one, "other": other}, references=[["a dog on a mat"] * 5, ["a cat on a mat"] * 5, ["a cow"]])
    assert {(row["pictures"], row["captions"]) for row in report.rows.values()} == {(2, 3)}
    assert any("2 of 3 pictures" in note for note in report.notes)
    assert any("one, captions (human) had more" in note for note in report.notes)


def test_equal_columns_need_no_notes_but_what_fidelity_is():
    notes = score_captions({"one": ONE}, references=HUMAN).notes
    assert len(notes) == 1
    assert "degenerate captions only" in notes[0]


def test_no_human_captions_is_said():
    assert any("Noise looks diverse" in note for note in score_captions({"one": ONE}).notes)


def test_spread_never_stands_without_fidelity():
    for facts_known in (False, True):
        assert measures.DEGENERATE in measures.headline(facts_known)
        assert len(measures.headline(facts_known)) == 7  # and the name: eight columns


def test_one_caption_for_many_pictures_is_said():
    report = score_captions({"mute": [["A dog <b>."]] * 12 + [[f"cat number {at} here"] for at in range(12)]})
    assert any("mute: one caption stands for 50 % of the pictures: “A dog <b>.”" in note for note in report.notes)


def test_marks_of_cut_captions_count():
    report = score_captions({"one": ONE}, truncated={"one": [[True, False], [False, False]]})
    assert report.rows["one"]["degenerate_reasons"]["cut"] == 0.25


def test_facts_where_the_truth_is_known():
    from imagetext.scenes import SceneSpec, scene_sample

    samples = [scene_sample(SceneSpec.parse("scenes:test,n=4"), at) for at in range(4)]
    wrong = [["a black star"] * 5 for _ in samples]
    report = score_captions({"wrong": wrong}, references=[sample.captions for sample in samples],
                            scenes=[sample.meta["scene"] for sample in samples], images=[sample.image for sample in samples])
    assert report.rows["captions (human)"]["facts"]["precision"] == 1
    assert report.rows["wrong"]["facts"]["precision"] < 1
    assert report.facts_known
    assert not any("degenerate captions only" in note for note in report.notes)
    page = report.to_html()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "Facts by kind" in page


@pytest.mark.parametrize(("arguments", "message"), [
    ({"captions": {}}, "no column of captions"),
    ({"captions": {"a": ONE, "b": ONE[:1]}}, "unequal numbers of pictures: column 'a' 2, column 'b' 1"),
    ({"captions": {"a": ["a string"]}}, "column 'a', picture 0: 'a string' is not a list of strings"),
    ({"captions": {"a": [["fine"], [None]]}}, r"column 'a', picture 1: \[None\]"),
    ({"captions": {"a": ONE}, "keys": ["x"]}, "column 'a' 2, keys 1"),
    ({"captions": {"a": ONE}, "truncated": {"a": [[True]], "b": []}}, "truncated 'a': not one mark.*truncated 'b': no such"),
    ({"captions": {"a": [["x"], []], "b": [[], ["y"]]}}, "no picture has captions in all of a, b"),
    ({"captions": {"a": ONE}, "references": ONE, "references_name": "a"}, "'a' is a column and the references' name"),
])
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        score_captions(**arguments)


# --- what a report is written as -----------------------------------------------------------------------------------


def test_json_has_full_precision_and_says_how_it_was_measured():
    report = score_captions({"one": ONE}, references=HUMAN)
    content = json.loads(report.to_json())
    assert content["columns"]["one"]["div_2"] == report.rows["one"]["div_2"]
    assert content["settings"]["tokenizer"] and content["settings"]["versions"]["numpy"]
    assert content["columns"]["one"]["pictures"] == 2


def test_json_of_undefined_measures_is_null():
    assert json.loads(score_captions({"one": [["a dog runs"]]}).to_json())["columns"]["one"]["mbleu_4"] is None


def test_markdown_has_a_row_for_each_column():
    lines = score_captions({"one|two": ONE}, references=HUMAN).to_markdown().splitlines()
    assert lines[0].startswith("| Captions | Length |")
    assert lines[2].startswith("| one\\|two |")
    assert lines[3].startswith("| captions (human) |")


def test_labels_are_short_where_they_stay_apart():
    assert list(score_captions({"syn_text_one": ONE}).labels.values()) == ["one"]
    assert list(score_captions({"syn_text_one": ONE, "one": ONE}).labels.values()) == ["syn_text_one", "one"]


def test_every_measure_says_what_it_is_and_finds_its_number():
    row = score_captions({"one": ONE}).rows["one"]
    for measure in measures.ALL:
        assert measure.definition.endswith(".")
        assert measure.text(row)
    assert all(reason.meaning in measures.DEGENERATE.definition for reason in REASONS.values())


# --- the command ---------------------------------------------------------------------------------------------------


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
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"report.json", "report.html"}
    content = json.loads((tmp_path / "out/report.json").read_text())
    assert list(content["columns"]) == ["syn_text_one", "syn_text_other", "captions (human)"]
    printed = capsys.readouterr().out
    assert "other" in printed and "Degenerate" in printed and "captions (human)" in printed
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert run(config) == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert "data:image/jpeg" in before["report.html"].decode()


def test_columns_and_references_by_name(records, tmp_path):
    config = DiversityConfig(input=[str(records)], column=["syn_text_other"], references="syn_text_one", output=tmp_path / "out")
    assert run(config) == 0
    content = json.loads((tmp_path / "out/report.json").read_text())
    assert list(content["columns"]) == ["syn_text_other", "syn_text_one (reference)"]


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
