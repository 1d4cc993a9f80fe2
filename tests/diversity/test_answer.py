"""What the sentences decide, on constructed evidence; their wording is free."""

import numpy as np
import pytest

from diversity.measures.catalogue import OF_SCORE
from diversity.measures.measure import PERCENT, Measure
from diversity.verdict.answer import STUDENT, answer
from diversity.verdict.compare import Difference, Estimate, differences, estimates
from diversity.verdict.mixes import Mixes, MixStep
from diversity.verdict.suspicions import Suspicion
from diversity.verdict.winner import Verdict, decide

COVERED = Measure(("word_coverage",), "Human words", "…", unit="percent", better="higher", score="word_coverage")
MEASURES = {**OF_SCORE, "word_coverage": COVERED}


def scores(rng, pictures, **levels):
    """CLIPScore and Div-2 of each column, (P,) each, about the given levels."""
    return {
        name: {"clip_score": rng.normal(clip, 0.05, pictures), "div_2": rng.normal(spread, 0.05, pictures)}
        for name, (clip, spread) in levels.items()
    }


EVIDENCE = {"clip_score": "clip", "precision": "facts", "cider_d": "references", "degenerate": "form"}


def sentences(
    column_scores, *, references=None, fidelity="clip_score", spread="div_2", mixes=None, labels=None, suspects=None
):
    """The answer from scores[column][measure], by the real intervals, tests and rule."""
    flat = estimates({(name, score): values for name, of in column_scores.items() for score, values in of.items()}, 0)
    intervals = {
        name: {score: flat[name, score] for score in of if (name, score) in flat} for name, of in column_scores.items()
    }
    decisive = (fidelity,) if isinstance(fidelity, str) else fidelity
    measured = [score for score in (*decisive, spread) if score]
    pairs = differences(column_scores, measured, 0)
    captioners = [name for name in column_scores if name != references]
    verdict = decide(
        EVIDENCE[decisive[0]],
        [MEASURES[score] for score in decisive],
        spread and MEASURES[spread],
        names=captioners,
        intervals=intervals,
        differences=pairs,
        suspects=suspects or {},
    )
    pictures = len(next(iter(next(iter(column_scores.values())).values())))
    result = answer(
        labels=labels or {name: name for name in column_scores},
        references=references,
        pictures=pictures,
        intervals=intervals,
        differences=pairs,
        verdict=verdict,
        spread=spread,
        mixes=mixes,
        measures=MEASURES,
    )
    assert 3 <= len(result) <= 8
    assert result[-1] == STUDENT == "No figure here is shown to predict a student's accuracy."
    assert all(sentence.endswith(".") and "nan" not in sentence for sentence in result)
    return result


def only_sentence(result, start):
    """Return the only sentence that begins so."""
    (match,) = [sentence for sentence in result if sentence.startswith(start)]
    return match


@pytest.fixture(scope="module")
def three():
    """`good` beats `poor` in both; `wild` has more spread than `good` and much lower fidelity; people stand above."""
    return scores(np.random.default_rng(0), 200, good=(0.7, 0.6), poor=(0.65, 0.5), wild=(0.4, 0.9), human=(0.72, 0.7))


def step(*columns, gain, fidelity, spread=None, low_high=0.01):
    around = Estimate(gain, gain - low_high, gain + low_high)
    return MixStep(
        columns,
        5,
        0.6,
        alone_spread=0.6,
        spread_gain=spread or around,
        coverage=0.5 + gain,
        alone_coverage=0.5,
        coverage_gain=around,
        fidelity=0.7 + fidelity,
        alone_fidelity=0.7,
        fidelity_gain=Estimate(fidelity, fidelity - 0.01, fidelity + 0.01),
    )


def mixes(*steps, coverage="word_coverage", fidelity="clip_score"):
    return Mixes(
        "good", "div_2", coverage, fidelity_measure=fidelity, steps=(step("good", gain=0, fidelity=0), *steps)
    )


# --- the verdict and the noise -------------------------------------------------------------------------------------


def test_the_best_is_named_first_and_figures_follow_in_its_order(three):
    result = sentences(three, references="human")
    assert (
        result[0]
        == "good is the best of 3 captioners by how well CLIP matches their captions to the pictures: it is clearly "
        "ahead of every other in CLIPScore."
    )
    mean = three["good"]["clip_score"].mean()
    assert (
        result[1].startswith(f"good has CLIPScore {mean:.3f} (0.69")
        and "; poor has" in result[1]
        and "; wild has" in result[1]
    )
    assert "over 200 pictures" in result[1] and "human" not in result[1]


def test_the_first_sentence_names_measures_that_show_it_for_all_others_else_for_some():
    first, second = MEASURES["cider_d"], MEASURES["found_words"]

    def named_measures(**ahead):
        pairs = [
            Difference(score, "best", other, pictures=99, estimate=Estimate(0.2, 0.1, 0.3), p=0.5, p_holm=0.001)
            for other, of in ahead.items()
            for score in of
        ]
        verdict = decide(
            "references",
            [first, second],
            None,
            names=["best", *ahead],
            intervals={
                name: {"cider_d": Estimate(level, level, level)} for name, level in zip(["best", *ahead], (3, 2, 1))
            },
            differences=pairs,
            suspects={},
        )
        return answer(
            labels={name: name for name in ("best", *ahead)},
            references=None,
            pictures=99,
            intervals={name: {"cider_d": Estimate(1, 1, 1)} for name in ("best", *ahead)},
            differences=pairs,
            verdict=verdict,
            spread=None,
            mixes=None,
            measures=MEASURES,
        )[0].rpartition(" in ")[2]

    assert named_measures(a=["cider_d", "found_words"], b=["cider_d"]) == f"{first.label}."
    assert (
        named_measures(a=["cider_d", "found_words"], b=["cider_d", "found_words"])
        == f"{first.label} and {second.label}."
    )
    assert named_measures(a=["cider_d"], b=["found_words"]) == f"{first.label} or {second.label}."


def test_nobody_is_best_where_the_first_two_may_be_alike():
    column_scores = scores(np.random.default_rng(1), 100, a=(0.701, 0.6), b=(0.7, 0.7), c=(0.5, 0.7))
    assert sentences(column_scores)[0].startswith("No captioner is clearly best by how well CLIP matches")
    assert sentences(column_scores)[0].endswith(("but is not clearly ahead of a.", "but is not clearly ahead of b."))


def test_nobody_is_best_where_another_is_better_in_another_figure():
    column_scores = scores(np.random.default_rng(1), 100, short=(0.7, 0.6), long=(0.5, 0.6), other=(0.7, 0.6))
    for name, level in (("short", 0.4), ("long", 0.6), ("other", 0.4)):
        column_scores[name]["found_clip"] = np.random.default_rng(2).normal(level, 0.05, 100)
    first = sentences(column_scores, fidelity=("clip_score", "found_clip"))[0]
    leader, undecided = ("short", "other") if " short has" in first else ("other", "short")
    assert first.endswith(
        f": {leader} has the highest CLIPScore, but is not clearly ahead of {undecided}, and long is clearly better "
        f"in {MEASURES['found_clip'].label}."
    )


def test_suspects_with_one_reason_are_named_together_with_their_shares(three):
    def degenerate(share):
        return (Suspicion("degenerate", f"{share}{PERCENT} of its captions are degenerate"),)

    suspects = {"good": degenerate(100), "wild": (Suspicion("filler", "it ends so"),), "poor": degenerate(63)}
    result = sentences(three, references="human", suspects=suspects)
    assert result[1] == (
        f"Suspect, and therefore never named best: good and poor, each because 63 to 100{PERCENT} of its captions are "
        "degenerate; wild, because it ends so."
    )


def test_nobody_is_best_where_only_form_is_known_and_what_to_add_is_said():
    column_scores = {name: {"degenerate": np.full(60, share)} for name, share in (("clean", 0.0), ("noisy", 0.9))}
    first = sentences(column_scores, fidelity="degenerate", spread=None)[0]
    assert first.startswith("No captioner is named best") and "--references" in first and "--clip" in first


def test_suspects_are_named_with_reasons_and_never_best(three):
    result = sentences(
        three, references="human", suspects={"good": (Suspicion("filler", "it ends with the same words"),)}
    )
    assert (
        "poor has the highest CLIPScore of those that are not suspect, but good (suspect) is clearly better in "
        "CLIPScore." in result[0]
    )
    assert result[1] == "Suspect, and therefore never named best: good, because it ends with the same words."
    everybody = dict.fromkeys(("good", "poor", "wild"), (Suspicion("filler", "it ends with the same words"),))
    assert (
        sentences(three, references="human", suspects=everybody)[0] == "No captioner is named best: all are suspect."
    )


def test_if_all_captions_seem_to_be_of_other_pictures_the_human_captions_may_be(three):
    by_words = {name: {"cider_d": of_column["clip_score"]} for name, of_column in three.items()}
    suspects = dict.fromkeys(("good", "poor", "wild"), (Suspicion("other_pictures", "its captions fit others"),))
    first = sentences(by_words, fidelity="cider_d", spread=None, references="human", suspects=suspects)[0]
    assert first.endswith("all are suspect, or the human captions do not describe these pictures.")


def test_one_that_repeats_itself_is_beaten_by_spread():
    column_scores = scores(np.random.default_rng(1), 200, varied=(0.7, 0.7), parrot=(0.7, 0.2))
    first = sentences(
        column_scores, suspects={"parrot": (Suspicion("repeated", "it says one caption again and again"),)}
    )[0]
    assert first == (
        "varied is the best of 2 captioners by how well CLIP matches their captions to the pictures: it is as good as "
        "parrot and more varied."
    )


def test_spread_that_costs_fidelity_is_called_possible_noise(three):
    warning = only_sentence(sentences(three, references="human"), "The spread of wild comes")
    assert "can be noise" in warning
    assert "wild against human" in warning  # the most faithful of those that it is compared with
    assert "higher" in warning
    assert "lower" in warning
    assert not any("wild" in text for text in sentences(three, references="human") if text.startswith("Against the"))
    calm = {name: three[name] for name in ("good", "poor", "human")}
    assert not any("noise" in sentence for sentence in sentences(calm, references="human"))


def test_one_noisy_column_is_compared_with_people_once():
    """Its figures against the human captions stand in the warning, and were given once more behind it."""
    column_scores = scores(np.random.default_rng(3), 100, only=(0.4, 0.95), human=(0.8, 0.7))
    result = sentences(column_scores, references="human")
    assert only_sentence(result, "The spread of only comes")
    assert not any(sentence.startswith("Against the human captions") for sentence in result)


def test_where_lower_is_better_more_degenerate_captions_are_the_noise():
    rng = np.random.default_rng(2)
    column_scores = {
        name: {"degenerate": np.clip(rng.normal(share, 0.1, 200), 0, 1), "div_2": rng.normal(spread, 0.05, 200)}
        for name, share, spread in (("clean", 0.1, 0.6), ("noisy", 0.6, 0.9))
    }
    result = sentences(column_scores, fidelity="degenerate")
    warning = only_sentence(result, "The spread of noisy comes")
    assert "but Degenerate captions 48" in warning
    assert "points higher" in warning
    assert any("well formed" in sentence for sentence in result)  # says what is not measured


# --- what cannot be told apart -------------------------------------------------------------------------------------


def test_pairs_within_their_intervals_are_named():
    column_scores = scores(np.random.default_rng(3), 200, a=(0.7, 0.6), b=(0.7, 0.5))
    apart = only_sentence(sentences(column_scores), "These cannot be told apart")
    assert "a and b in CLIPScore, where a is 0.00" in apart
    assert "lower to" in apart
    assert "higher)" in apart
    assert "Div-2" not in apart


def test_clear_differences_are_said_to_be_clear(three):
    assert only_sentence(sentences(three), "The captioners can all be told apart in CLIPScore and Div-2")


def test_people_are_not_among_the_captioners_that_cannot_be_told_apart():
    column_scores = scores(np.random.default_rng(4), 200, a=(0.7, 0.6), human=(0.7, 0.6))
    assert not any("told apart" in sentence for sentence in sentences(column_scores, references="human"))


def test_many_open_pairs_are_counted():
    column_scores = scores(np.random.default_rng(10), 100, **{name: (0.7, 0.6) for name in "abcde"})
    assert "; and 17 more of 20 pairs." in only_sentence(sentences(column_scores), "These cannot be told apart")


def test_an_interval_without_zero_that_is_not_enough_among_many_says_so():
    pair = Difference("clip_score", "a", "b", pictures=60, estimate=Estimate(0.02, 0.001, 0.039), p=0.04, p_holm=0.4)
    intervals = {name: {"clip_score": Estimate(0.7, 0.69, 0.71)} for name in "ab"}
    result = answer(
        labels={"a": "a", "b": "b"},
        references=None,
        pictures=100,
        intervals=intervals,
        differences=(pair,) * 10,
        verdict=Verdict(
            "clip", ("clip_score",), None, ranking=("a", "b"), not_behind=("b",), only_repeat=(), suspects={}
        ),
        spread=None,
        mixes=None,
        measures=MEASURES,
    )
    assert "where a is 0.020 higher (0.001 to 0.039), which is not enough where 10 pairs are tested" in only_sentence(
        result, "These cannot"
    )


# --- mixes ---------------------------------------------------------------------------------------------------------


def test_the_smallest_mix_as_good_as_any_is_the_one_to_take(three):
    mixed = mixes(
        step("good", "poor", gain=0.05, fidelity=0.001), step("good", "poor", "wild", gain=0.052, fidelity=0)
    )
    assert "Mixing good and poor, 5 captions a picture in turn, adds" in only_sentence(
        sentences(three, mixes=mixed), "Mixing"
    )
    mixed = mixes(
        step("good", "poor", gain=0.02, fidelity=0.001), step("good", "poor", "wild", gain=0.052, fidelity=0)
    )
    mixing = only_sentence(sentences(three, mixes=mixed), "Mixing")
    assert "Mixing good, poor and wild, 5 captions" in mixing
    assert "as many of good alone" in mixing
    assert "Human words 5.2 points higher (4.2 to 6.2 points)" in mixing
    assert "CLIPScore the same (0.010 lower to 0.010 higher)" in mixing


def test_a_mix_that_loses_fidelity_is_no_gain(three):
    mixed = mixes(
        step("good", "poor", gain=0.03, fidelity=-0.001), step("good", "poor", "wild", gain=0.09, fidelity=-0.2)
    )
    assert "Mixing good and poor, 5 captions a picture in turn, adds" in only_sentence(
        sentences(three, mixes=mixed), "Mixing"
    )
    mixed = mixes(step("good", "wild", gain=0.09, fidelity=-0.2))
    none = only_sentence(sentences(three, mixes=mixed), "No mix clearly adds Human words")
    assert "good and wild" in none
    assert "CLIPScore 0.200 lower (0.190 to 0.210)" in none


def test_no_mix_adds_where_every_gain_may_be_chance(three):
    none = only_sentence(
        sentences(three, mixes=mixes(step("good", "poor", gain=0.005, fidelity=0))), "No mix clearly adds"
    )
    assert "0.5 points higher (0.5 points lower to 1.5 points higher)" in none


def test_without_references_a_mix_is_judged_by_spread(three):
    gain = Estimate(0.04, 0.03, 0.05)
    by_spread = step("good", "poor", gain=0, fidelity=0)._replace(coverage_gain=None, coverage=None, spread_gain=gain)
    mixed = mixes(by_spread, coverage=None)
    assert "Div-2 0.040 higher" in only_sentence(sentences(three, mixes=mixed), "Mixing")


def test_a_worse_degenerate_share_is_written_as_higher(three):
    mixed = mixes(step("good", "wild", gain=0.09, fidelity=-0.2), fidelity="degenerate")
    assert "Degenerate captions 20.0 points higher (19.0 to 21.0 points)" in only_sentence(
        sentences(three, mixes=mixed), "No mix clearly adds"
    )


# --- people, and what is not known ---------------------------------------------------------------------------------


def test_the_distance_to_people_is_given_for_the_front(three):
    human = only_sentence(sentences(three, references="human"), "Against the human captions")
    assert "good CLIPScore 0.0" in human
    assert "Div-2 0.1" in human
    assert only_sentence(sentences(three), "No human captions")


def test_the_longest_answer_has_seven_sentences(three):
    column_scores = {**three, "twin": {score: values[::-1] for score, values in three["good"].items()}}
    result = sentences(column_scores, references="human", mixes=mixes(step("good", "poor", gain=0.03, fidelity=0)))
    assert len(result) == 8


@pytest.mark.parametrize("pictures", [1, 12])
def test_one_column_without_references_on_few_pictures(pictures):
    result = sentences(scores(np.random.default_rng(6), pictures, only=(0.7, 0.6)))
    assert result[0].startswith("only has CLIPScore ")
    assert ("95 % interval" in result[0]) == (pictures > 1)
    assert f"over {pictures} picture{'s; 95' if pictures > 1 else '.'}" in result[0]
    assert any("says nothing of others" in sentence for sentence in result) == (pictures == 1)
    assert any("12 pictures are few" in sentence for sentence in result) == (pictures == 12)
    assert not any("told apart" in sentence or "mix" in sentence for sentence in result)


def test_one_picture_decides_nothing():
    result = sentences(scores(np.random.default_rng(7), 1, a=(0.7, 0.9), b=(0.2, 0.1)))
    assert result[0].startswith("No captioner is clearly best")
    assert only_sentence(result, "These cannot be told apart")


def test_one_caption_a_picture_has_no_spread():
    column_scores = {
        name: {"clip_score": of_column["clip_score"]}
        for name, of_column in scores(np.random.default_rng(8), 100, a=(0.7, 0), b=(0.5, 0)).items()
    }
    result = sentences(column_scores, spread=None)
    assert result[0].startswith("a is the best of 2") and "Div-2" not in " ".join(result)


def test_known_truth_needs_no_warning_and_unknown_truth_has_one(three):
    assert any("What is true" in sentence for sentence in sentences(three))
    known = {
        name: {"precision": of_column["clip_score"], "div_2": of_column["div_2"]} for name, of_column in three.items()
    }
    result = sentences(known, fidelity="precision")
    assert not any("What is true" in sentence for sentence in result)
    assert "has Facts true 72" in result[1]
    assert PERCENT in result[1]


def test_labels_are_what_is_printed(three):
    result = sentences(three, references="human", labels={name: f"the {name} one" for name in three})
    assert result[0].startswith("the good one is the best")
    assert "the good one has" in result[1]


def test_undefined_fidelity_is_left_out_of_the_figures():
    column_scores = scores(np.random.default_rng(9), 60, a=(0.7, 0.6), human=(0.7, 0.8))
    column_scores["human"]["clip_score"] = np.full(60, np.nan)
    human = only_sentence(sentences(column_scores, references="human"), "Against the human captions")
    assert "Div-2" in human
    assert "CLIPScore" not in human
    column_scores["human"]["div_2"] = column_scores["human"]["clip_score"]
    assert only_sentence(sentences(column_scores, references="human"), "No picture can tell how far")


@pytest.mark.parametrize(("of_people", "is_compared"), [(1, False), (29, False), (30, True)])
def test_few_pictures_do_not_tell_the_distance_to_people(of_people, is_compared):
    column_scores = scores(np.random.default_rng(9), 60, a=(0.7, 0.6), human=(0.7, 0.8))
    for values in column_scores["human"].values():
        values[of_people:] = np.nan
    result = sentences(column_scores, references="human")
    if is_compared:
        assert only_sentence(result, "Against the human captions")
    else:
        assert only_sentence(result, f"Only {of_people} of 60 pictures can tell how far")
