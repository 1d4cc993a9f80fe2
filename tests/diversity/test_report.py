"""What a report is written as: JSON, Markdown, and the measures that say what each number is."""

import json

from diversity import score_captions
from diversity.measures import catalogue
from diversity.words.degenerate import REASONS

ONE = [["a red dog runs", "a dog"], ["two cats sit", "cats on a mat"]]
OTHER = [["the dog is red", "a 2 2 2 2"], ["a cat and a cat on", "some cats"]]
HUMAN = [["a red dog runs on grass", "the dog runs"], ["two cats sit on a mat", "cats"]]


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
    first = next(index for index, line in enumerate(lines) if line.startswith("| Captions | Pictures | Length |"))
    assert lines[first + 2].startswith("| one\\|two |")
    assert lines[first + 3].startswith("| human |")


def test_labels_are_short_where_they_stay_apart():
    assert list(score_captions({"syn_text_one": ONE}).labels.values()) == ["one"]
    assert list(score_captions({"syn_text_one": ONE, "one": ONE}).labels.values()) == ["syn_text_one", "one"]


def test_the_human_row_has_a_name_and_no_path():
    named = score_captions({"one": ONE}, references=HUMAN, references_name="../refs/human.json")
    assert list(named.labels.values()) == ["one", "human"]
    assert "refs" not in "".join((*named.answer, *named.notes, named.to_markdown()))
    assert list(score_captions({"human": ONE}, references=HUMAN).labels.values()) == ["human", "human captions"]


def test_every_measure_says_what_it_is_and_finds_its_number():
    row = score_captions({"one": ONE}).rows["one"]
    for measure in catalogue.ALL:
        assert measure.definition.endswith(".")
        assert measure.text(row)
    assert all(reason.meaning in catalogue.DEGENERATE.definition for reason in REASONS.values())


def test_json_has_the_answer_and_every_comparison():
    content = json.loads(score_captions({"one": ONE, "other": OTHER}, references=HUMAN).to_json())
    assert content["answer"] and content["fidelity"] == "cider_d" and content["spread"] == "self_cider"
    assert set(content["intervals"]["one"]["div_2"]) == {"mean", "low", "high"}
    assert set(content["differences"][0]) == {"measure", "first", "second", "pictures", "estimate", "p", "p_holm"}
    assert [step["columns"] for step in content["mixes"]["steps"]] == [
        [content["mixes"]["best"]],
        ["one", "other"],
    ] or content["mixes"]["steps"][1]["columns"] == ["other", "one"]


def test_every_score_belongs_to_one_measure():
    named = [measure.score for measure in catalogue.ALL if measure.score]
    assert len(named) == len(set(named))
