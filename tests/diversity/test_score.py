"""Columns of captions to a report: what is compared, what is said of it, what does not fit."""

import numpy as np
import pytest

from diversity import score_captions
from diversity.columns import ComparedPicture
from diversity.measures import catalogue
from diversity.page.page import render
from diversity.sampled import _degenerate
from diversity.words.degenerate import REASONS, degenerate_reasons

ONE = [["a red dog runs", "a dog"], ["two cats sit", "cats on a mat"]]
OTHER = [["the dog is red", "a 2 2 2 2"], ["a cat and a cat on", "some cats"]]
HUMAN = [["a red dog runs on grass", "the dog runs"], ["two cats sit on a mat", "cats"]]


def test_a_row_for_each_column_and_the_human_one_last():
    report = score_captions({"one": ONE, "other": OTHER}, references=HUMAN)
    assert list(report.rows) == ["one", "other", "captions"]
    assert report.references == "captions"
    assert report.rows["other"]["degenerate"] > 0
    assert report.degenerate_examples["other"]["loop"] == ["a 2 2 2 2"]
    assert all(row["captions"] == 4 for row in report.rows.values())


def test_columns_are_compared_on_the_pictures_all_have_with_equal_counts():
    first = [["a dog runs by"] * 3, ["a cat sits here"] * 2, ["a cow sits here"]]
    other = [["the dog runs by"], ["the cat sits by", "a cat here too"], []]
    report = score_captions(
        {"one": first, "other": other}, references=[["a dog on a mat"] * 5, ["a cat on a mat"] * 5, ["a cow"]]
    )
    assert {(row["pictures"], row["captions"]) for row in report.rows.values()} == {(2, 3)}
    assert any("2 of 3 pictures" in note for note in report.notes)


def test_equal_columns_need_no_notes_and_the_answer_says_what_fidelity_is():
    report = score_captions({"one": ONE}, references=HUMAN)
    assert not any("pictures" in note for note in report.notes)
    assert any("CIDEr-D is a stand-in" in sentence for sentence in report.answer)
    assert report.fidelity == "cider_d"
    alone = score_captions({"one": ONE})
    assert alone.fidelity == "degenerate" and any("whether they are true" in sentence for sentence in alone.answer)


def test_no_human_captions_is_said():
    assert any("Noise looks diverse" in note for note in score_captions({"one": ONE}).notes)


def test_a_headline_has_at_most_eight_columns_and_never_spread_without_the_degenerate_rate():
    report = score_captions({"one": ONE}, references=HUMAN)
    assert len(report.headline) <= 8
    everything = dict.fromkeys(("length_mean", "div_2", "self_cider", "mbleu_4", "degenerate", "pictures"), 1)
    everything |= {
        "semantic": {"vendi": {"1": 2}},
        "clip": {"clip_score": 1, "r_at_1": 1},
        "facts": {"precision": 1, "recall": 1},
    }
    for row in (
        everything,
        {**everything, "facts": None},
        {**everything, "clip": None, "semantic": None},
        {"degenerate": 0},
    ):
        headline = catalogue.headline([row])
        assert len(headline) <= 8 and catalogue.DEGENERATE in headline and headline[0] == catalogue.PICTURES


def test_columns_with_the_same_captions_are_not_compared_as_if_they_differed():
    captions = [[f"a {thing} on a {place}"] for thing in ("cat", "dog", "cow") for place in ("mat", "hill", "road")]
    others = [[text.replace("a ", "one ", 1)] for (text,) in captions]
    people = [[f"{text} at night", f"{text} by day"] for (text,) in captions]
    upper = [[text.upper()] for (text,) in captions]
    for references in (None, people):
        answer = score_captions({"a": captions, "b": upper}, references=references).answer
        assert answer[0] == "No captioner is named best: a and b have the same captions, word for word."
    answer = score_captions({"a": captions, "b": upper, "c": others}, references=people).answer
    assert "ahead of b (the same captions)" in answer[0]
    assert any("a and b in CIDEr-D, where both have the same captions" in sentence for sentence in answer)


def test_one_caption_for_many_pictures_is_said():
    report = score_captions({"mute": [["A dog <b>."]] * 12 + [[f"cat number {index} here"] for index in range(12)]})
    assert any("mute: one caption stands for 50 % of the pictures: “A dog <b>.”" in note for note in report.notes)


def test_marks_of_cut_captions_count():
    report = score_captions({"one": ONE}, truncated={"one": [[True, False], [False, False]]})
    assert report.rows["one"]["degenerate_reasons"]["cut"] == 0.25


def test_facts_where_the_truth_is_known():
    from imagetext.scenes.draw import SceneSpec, scene_sample

    samples = [scene_sample(SceneSpec.parse("scenes:test,n=4"), index) for index in range(4)]
    wrong = [["a black star"] * 5 for _ in samples]
    report = score_captions(
        {"wrong": wrong},
        references=[sample.captions for sample in samples],
        scenes=[sample.meta["scene"] for sample in samples],
        images=[sample.image for sample in samples],
    )
    assert report.rows["captions"]["facts"]["precision"] == 1
    assert report.rows["wrong"]["facts"]["precision"] < 1
    assert report.fidelity == "precision"
    assert report.intervals["captions"]["precision"] == (1, 1, 1)
    assert report.intervals["wrong"]["precision"].high < 1
    assert report.verdict.ranking == ("wrong",)  # the references are no captioner
    assert render(report).count("data:image/jpeg;base64,") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"captions": {}}, "no column of captions"),
        ({"captions": {"a": ONE, "b": ONE[:1]}}, "unequal numbers of pictures: column 'a' 2, column 'b' 1"),
        ({"captions": {"a": ["a string"]}}, "column 'a', picture 0: 'a string' is not a list of strings"),
        ({"captions": {"a": [["fine"], [None]]}}, r"column 'a', picture 1: \[None\]"),
        ({"captions": {"a": ONE}, "keys": ["x"]}, "column 'a' 2, keys 1"),
        (
            {"captions": {"a": ONE}, "truncated": {"a": [[True]], "b": []}},
            "truncated 'a': not one mark.*truncated 'b': no such",
        ),
        ({"captions": {"a": [["x"], []], "b": [[], ["y"]]}}, "no picture"),
        (
            {"captions": {"a": ONE}, "references": ONE, "references_name": "a"},
            "'a' is the name of a column and of the references",
        ),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        score_captions(**arguments)


def test_intervals_are_of_the_scores_by_picture_and_distributions_their_quantiles():
    report = score_captions({"one": ONE * 20, "other": OTHER * 20}, references=HUMAN * 20)
    low, middle, high = (
        report.intervals["one"]["div_2"].low,
        report.rows["one"]["div_2"],
        report.intervals["one"]["div_2"].high,
    )
    assert low < middle < high
    assert len(report.distributions["one"]["div_2"]) == 41
    assert np.isclose(report.distributions["one"]["length"][0], 3)  # words of "a red dog runs" and "a dog"
    assert {difference.measure for difference in report.differences} >= {"degenerate", "self_cider"}


@pytest.mark.parametrize("references", [None, HUMAN * 10])
def test_a_sample_may_have_more_pictures_than_agreement_and_meaning_are_measured_on(references):
    report = score_captions({"one": ONE * 10}, references=references, semantic_pictures=12)
    assert report.rows["one"]["pictures"] == 20
    assert report.intervals["one"].keys() >= {"div_2", "self_cider"} | ({"cider_d"} if references else set())


def test_the_sample_s_degenerate_captions_are_those_that_have_a_reason():
    bad = [example for reason in REASONS.values() for example in reason.examples]
    groups = [(), *((f"a dog on a mat {number}", caption, "a red cat") for number, caption in enumerate(bad))]
    pictures = [
        ComparedPicture(str(number), {"x": group}, {"x": (number == 3,) * 3} if number else {})
        for number, group in enumerate(groups)
    ]
    expected = [[bool(degenerate_reasons(text, number == 3)) for text in group] for number, group in enumerate(groups)]
    assert [marks.tolist() for marks in _degenerate(pictures, "x")] == expected


def test_a_faithful_column_beats_a_noisy_one_where_the_truth_is_known():
    from imagetext.scenes.draw import SceneSpec, scene_sample

    samples = [scene_sample(SceneSpec.parse("scenes:test,n=24"), index) for index in range(24)]
    human = [sample.captions for sample in samples]
    wrong = [["a black star", "two black stars", "one black star here"]] * 24
    report = score_captions({"good": human, "wrong": wrong}, scenes=[sample.meta["scene"] for sample in samples])
    assert report.verdict.winner == "good" and report.verdict.evidence == "facts"
    assert any("good" in sentence for sentence in report.answer)
    assert report.mixes.best == "good" and not report.mixes.steps[1].adds
    nearly = score_captions({"nearly": wrong[:1] + human[1:]}, scenes=[sample.meta["scene"] for sample in samples])
    precision = nearly.intervals["nearly"]["precision"]
    assert 0 < precision.low < precision.mean < precision.high <= 1  # a share is never more than 100 %


def test_captions_as_people_write_them_are_suspect_where_agreement_with_people_is_all_that_is_known():
    from imagetext.scenes.draw import SceneSpec, scene_sample

    samples = [scene_sample(SceneSpec.parse("scenes:test,n=24"), index) for index in range(24)]
    captions = {
        "alike": [sample.captions[:2] for sample in samples],
        "poor": [["a black star", "two black stars"]] * 24,
    }
    human = [sample.captions for sample in samples]
    known = score_captions(captions, references=human, scenes=[sample.meta["scene"] for sample in samples])
    assert (
        known.verdict.evidence == "facts" and known.verdict.winner == "alike" and "alike" not in known.verdict.suspects
    )
    unknown = score_captions(captions, references=human)
    assert unknown.verdict.evidence == "references" and unknown.verdict.winner is None
    assert [reason.kind for reason in unknown.verdict.suspects["alike"]] == ["copied"]


def test_novelty_and_words_covered_are_against_the_references():
    rows = score_captions(
        {"same": HUMAN, "new": [["purple trains", "a quiet lake"], ["seven moons", "rain at night"]]}, references=HUMAN
    ).rows
    assert (rows["same"]["novelty"]["captions"], rows["new"]["novelty"]["captions"]) == (0, 1)
    assert (rows["same"]["word_coverage"], rows["new"]["word_coverage"]) == (1, 0)
    assert rows["captions"]["novelty"] is None and rows["captions"]["cider_d"] > 0  # each against the picture's others


def test_the_browser_shows_the_best_the_worst_and_others_once():
    groups = [["a cat on a mat"]] * 30 + [["a 2 2 2 2"]] * 4
    examples = score_captions({"a": groups}, keys=[str(index) for index in range(34)]).examples
    assert len({example.key for example in examples}) == len(examples)
    worst = [example for example in examples if example.why == "worst"]
    assert {"30", "31", "32", "33"} <= {example.key for example in worst}
    assert {example.why for example in examples} == {"best", "worst", "random"}
