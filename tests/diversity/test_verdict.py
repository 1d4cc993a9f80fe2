"""Who is named best: the rule on constructed evidence, and that bad columns are not, on made-up captions."""

import numpy as np
import pytest

from benchmarks import verdict as benchmark
from diversity import score_captions
from diversity.measures.catalogue import CIDER, CLIP_SCORE, DEGENERATE, DIV, FOUND_WORDS
from diversity.verdict.compare import Difference, Estimate
from diversity.verdict.suspicions import Suspicion
from diversity.verdict.winner import EVIDENCE, decide, evidence_of

from .made_up_captions import made_up_pictures

REPEATS, FILLER = (Suspicion("repeated", "…"),), (Suspicion("filler", "…"),)


def difference(measure, first, second, mean, certain=True):
    return Difference(
        measure.score,
        first,
        second,
        pictures=200,
        estimate=Estimate(mean, mean - 0.05, mean + 0.05),
        p=0.5,
        p_holm=0.001 if certain else 0.5,
    )


def verdict(levels, *differences, suspects=None, decisive=(CIDER, FOUND_WORDS), evidence="references", spread=DIV[1]):
    intervals = {name: {decisive[0].score: Estimate(level, level, level)} for name, level in levels.items()}
    return decide(
        evidence,
        decisive,
        spread,
        names=list(levels),
        intervals=intervals,
        differences=differences,
        suspects=suspects or {},
    )


@pytest.mark.parametrize(
    ("differences", "winner"),
    [
        ([difference(CIDER, "a", "b", 0.2)], "a"),
        ([difference(CIDER, "b", "a", -0.2)], "a"),  # whichever comes first
        ([difference(CIDER, "a", "b", 0.2, certain=False)], None),  # chance
        ([difference(CIDER, "a", "b", 0.01)], None),  # its interval holds 0
        ([difference(CIDER, "a", "b", 0.01), difference(FOUND_WORDS, "a", "b", 0.1)], "a"),  # better in one
        ([difference(CIDER, "a", "b", 0.2), difference(FOUND_WORDS, "a", "b", -0.1)], None),  # the measures disagree
        ([difference(CIDER, "a", "b", 0.2), difference(FOUND_WORDS, "a", "b", -0.1, certain=False)], None),
        ([difference(DIV[1], "a", "b", 0.4)], None),  # spread alone
        ([], None),
    ],
)
def test_the_best_is_clearly_better_in_one_measure_and_worse_in_none(differences, winner):
    assert verdict({"a": 0.9, "b": 0.7}, *differences).winner == winner


def test_shorter_captions_are_not_ahead_of_much_longer_ones_by_cider_alone():
    by_cider, by_words = difference(CIDER, "a", "b", 0.5), difference(FOUND_WORDS, "a", "b", 0.2)

    def decided(length, *pairs, suspects={}):
        estimates = {
            name: {"cider_d": Estimate(*[level] * 3), "length": Estimate(*[words] * 3)}
            for name, level, words in (("a", 0.9, 10), ("b", 0.4, length))
        }
        return decide(
            "references",
            [CIDER, FOUND_WORDS],
            None,
            names=["a", "b"],
            intervals=estimates,
            differences=pairs,
            suspects=suspects,
        )

    assert decided(21, by_cider).winner is None
    assert decided(21, by_cider).not_behind == decided(21, by_cider).longer == ("b",)
    for result in (
        decided(19, by_cider),
        decided(21, by_cider, by_words),
        decided(21, by_cider, suspects={"b": FILLER}),
    ):
        assert (result.winner, result.longer) == ("a", ())


def test_the_best_must_be_ahead_of_every_other_suspects_included():
    ahead = [difference(CIDER, "a", other, 0.2) for other in "bc"]
    assert verdict({"a": 0.9, "b": 0.7, "c": 0.7}, *ahead).winner == "a"
    assert verdict({"a": 0.9, "b": 0.7, "c": 0.7}, *ahead[:1]).not_behind == ("c",)
    assert verdict({"a": 0.9, "b": 0.7, "c": 0.7}, *ahead[:1], suspects={"c": FILLER}).winner is None
    in_doubt = decide(
        "references",
        [CIDER],
        None,
        names=["a", "b"],
        intervals={name: {"cider_d": Estimate(1, 1, 1)} for name in "ab"},
        differences=ahead,
        suspects={},
        doubts={"a": FILLER},
    )
    assert in_doubt.winner is None and in_doubt.not_behind == ()
    result = verdict({"a": 0.9, "b": 0.7, "c": 0.7}, *ahead, suspects={"a": FILLER})
    assert result.winner is None and result.ranking == ("b", "c") and result.not_behind == ("a", "c")


def test_one_that_repeats_itself_is_beaten_by_more_spread_at_hardly_less_fidelity():
    alike, spread = difference(CIDER, "a", "b", 0.0, certain=False), difference(DIV[1], "a", "b", 0.4)
    assert verdict({"a": 0.7, "b": 0.7}, alike, spread, suspects={"b": REPEATS}).only_repeat == ("b",)
    assert verdict({"a": 0.7, "b": 0.7}, alike, spread, suspects={"b": REPEATS}).winner == "a"
    assert verdict({"a": 0.7, "b": 0.7}, alike, spread, suspects={"b": FILLER}).winner is None
    worse = difference(CIDER, "a", "b", -0.1, certain=False)  # as much as 0.15 of 0.7
    assert verdict({"a": 0.6, "b": 0.7}, worse, spread, suspects={"b": REPEATS}).winner is None
    assert verdict({"a": 0.7, "b": 0.7}, alike, suspects={"b": REPEATS}).winner is None


def test_form_names_nobody_and_one_column_is_no_contest():
    better = difference(DEGENERATE, "a", "b", -0.5)
    assert verdict({"a": 0.0, "b": 0.5}, better, decisive=(DEGENERATE,), evidence="form").winner is None
    assert verdict({"a": 0.9}).winner is None


def test_the_best_evidence_decides_and_a_clip_model_that_sees_nothing_is_none():
    def evidence(found_clip, **scores):
        intervals = {"a": {name: Estimate(value, value - 0.01, value + 0.01) for name, value in scores.items()}}
        return evidence_of(
            ["a"], {"a": intervals["a"] | {"found_clip": Estimate(found_clip, found_clip - 0.01, found_clip + 0.01)}}
        )[0]

    everything = {"precision": 0.9, "clip_score": 0.7, "cider_d": 1, "degenerate": 0}
    assert evidence(0.9, **everything) == "facts"
    del everything["precision"]
    assert (evidence(0.9, **everything), evidence(0.5, **everything)) == ("clip", "references")
    assert (evidence(0.5, clip_score=0.7, degenerate=0), evidence(0.9, clip_score=0.7)) == ("form", "clip")
    assert [measures[0] for measures in EVIDENCE.values()][1:] == [CLIP_SCORE, CIDER, DEGENERATE]


# --- on captions -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes():
    """What `benchmarks.verdict` finds on a few sets of made-up pictures."""
    annotated, before = made_up_pictures(120), benchmark.PICTURES
    benchmark.PICTURES = (20, 60)
    try:
        return [outcome for seed in range(6) for outcome in benchmark.judge_set(annotated, seed, 6, embedder="none")]
    finally:
        benchmark.PICTURES = before


def test_bad_columns_do_not_win_and_people_are_not_suspect(outcomes):
    judged = [outcome for outcome in outcomes if outcome.field in ("pair", "three")]
    assert len(judged) > 35
    assert [outcome for outcome in judged if outcome.bad] == []
    assert not any(outcome.suspect for outcome in outcomes if outcome.kind == "people")
    assert (
        np.mean([bool(outcome.winner) for outcome in judged if outcome.pictures == 60]) > 0.5
    )  # the rule names somebody


def test_without_human_captions_and_a_model_nobody_wins():
    annotated = made_up_pictures(40)
    good, bad = (
        [picture["references"][:2] for picture in annotated],
        [["a 2 2 2 2", "xkqrtz bfghjk"] for _ in annotated],
    )
    report = score_captions({"good": good, "bad": bad})
    assert report.verdict.winner is None and report.verdict.evidence == "form"
    assert report.answer[0].startswith("No captioner is named best")


def test_the_answer_and_the_json_name_the_best_and_the_suspect():
    annotated = made_up_pictures(60)
    references = [picture["references"][:3] for picture in annotated]
    right = [picture["references"][3:4] for picture in annotated]
    tail = [
        [f"{caption.rstrip('.')} in a very nice picture that somebody took" for caption in group] for group in right
    ]
    report = score_captions({"right": right, "wrong": right[1:] + right[:1], "tail": tail}, references=references)
    assert report.answer[0].startswith("right is the best of 3 captioners by agreement with the human captions")
    assert {name: [reason.kind for reason in reasons] for name, reasons in report.verdict.suspects.items()} == {
        "wrong": ["other_pictures"],
        "tail": ["filler"],
    }
    assert '"winner": "right"' in report.to_json() and '"kind": "other_pictures"' in report.to_json()
    row, interval = report.rows["right"]["cider_d"], report.intervals["right"]["cider_d"]
    assert interval.low <= row <= interval.high and f"{row:.3f}" in report.answer[2]
