import json
import math
import re

import numpy as np
import pytest
from scipy import stats

import benchmarks.evidence.choice
from benchmarks.evidence.choice import Pair, choices, held_out_pairs
from benchmarks.evidence.page import WORDS, comparison, direction, ranked, write_page
from benchmarks.evidence.sets import BASELINES, FIGURES, OF_ONE, POINTS
from benchmarks.evidence.students import ALL, ARMS, OF_REWRITES, OF_WORDS, accuracy, result_file, truth
from benchmarks.evidence.tau import T_975, kendall_tau, mean_and_error, paired_difference, tau_with_interval
from captioners.base import Caption, Captioned
from captioners.rules.changes import KINDS
from imagetext.sample import Record


def test_tau_of_equal_and_of_reversed_rankings_is_one_and_minus_one():
    assert kendall_tau([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == -1


def test_one_swapped_pair_of_four_points_costs_a_third():
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)  # five pairs agree, one does not


def test_tau_with_ties_is_scipys():
    random = np.random.default_rng(0)
    for _ in range(20):
        figure, scores = random.integers(4, size=(2, 12))
        assert kendall_tau(figure, scores) == pytest.approx(stats.kendalltau(figure, scores).statistic)


def test_tau_of_a_constant_is_undefined():
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))


def test_mean_error_and_paired_interval_are_scipys():
    ours, theirs = [0.5, 0.7, 0.9], [0.4, 0.5, 0.9]
    assert mean_and_error(ours) == pytest.approx((0.7, stats.sem(ours)))
    difference = np.subtract(ours, theirs)
    interval = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference))
    assert paired_difference(ours, theirs) == pytest.approx((difference.mean(), *interval), rel=1e-3)


def test_quantiles_of_t_are_scipys():
    assert list(T_975.values()) == pytest.approx([stats.t.ppf(0.975, degrees) for degrees in T_975], abs=1e-3)


def test_the_interval_is_a_function_of_the_seed_and_holds_the_value():
    gains = np.random.default_rng(1).normal(size=(12, 3))
    figure = gains.mean(axis=1) + np.random.default_rng(2).normal(size=12)
    first, again, other_seed = (tau_with_interval(figure, gains, seed, resamples=200) for seed in (0, 0, 1))
    assert first == again and first[1:] != other_seed[1:]
    assert -1 <= first.low < first.value < first.high <= 1


def test_a_figure_that_ranks_points_as_every_seed_does_has_a_point_for_an_interval():
    gains = np.arange(12.0)[:, None] + np.array([0.0, 0.1, 0.2])
    assert tau_with_interval(np.arange(12.0), gains, resamples=50) == (1, 1, 1)


def test_seeds_that_rank_points_against_each_other_widen_the_interval_over_no_correlation():
    ranks = np.arange(12.0)
    agreeing, opposed = (np.stack([ranks, ranks * sign, ranks], axis=1) for sign in (1, -1))
    assert tau_with_interval(ranks, agreeing, resamples=100).low == 1
    assert (
        tau_with_interval(ranks, opposed, resamples=100).low
        < 0
        < tau_with_interval(ranks, opposed, resamples=100).value
    )


class OneHot:
    """Encodes a text as a one-hot vector: the index of its word in a list."""

    def __init__(self, *words: str):
        self.words = words

    def encode(self, texts):
        return np.array([[float(word in text.split()) for word in self.words] for text in texts])


def test_accuracy_is_the_mean_over_classes_and_leaves_out_pictures_without_a_class():
    pictures = np.eye(2)[[0, 0, 0, 1, 1, 0]]  # as the classes red and blue
    truths = ["red", "red", "red", "red", "blue", None]
    prompts = {"red": ["a red star"], "blue": ["a blue star"]}
    assert accuracy(pictures, OneHot("red", "blue"), prompts, truths) == pytest.approx((3 / 4 + 1) / 2)


def test_a_scene_has_a_class_where_its_objects_agree():
    scene = {
        "background": "mint",
        "objects": [{"colour": "red", "shape": "star"}, {"colour": "red", "shape": "heart"}],
    }
    assert [truth(scene, attribute) for attribute in ("colour", "shape", "count", "background")] == [
        "red",
        None,
        "two",
        "mint",
    ]


def test_an_arm_draws_from_its_own_columns_alone():
    pattern = ARMS["much_t15"].settings["columns"]
    assert [name for name in POINTS if re.match(pattern, f"syn_text_{name}")] == ["much_t15"]
    assert ARMS["none"].settings == {"synthetic_weight": 0, "distill_weight": 0, "contrastive_weight": 1}


def test_every_figure_that_one_caption_leaves_undefined_has_a_value_for_it_and_lower_is_better_turns_it():
    undefined = {figure for figure in (*FIGURES, *BASELINES) if figure.label in ("Self-CIDEr", "mBLEU-4", "Vendi")}
    assert undefined == set(OF_ONE)
    rows = {point: {"mbleu_4": None if kind.num_captions == 1 else 0.5} for point, kind in POINTS.items()}
    mbleu = next(figure for figure in FIGURES if figure.label == "mBLEU-4")
    assert direction(mbleu) == -1
    assert list(ranked(mbleu, rows)) == [1.0 if kind.num_captions == 1 else 0.5 for kind in POINTS.values()]


def test_a_comparison_is_paired_with_its_first_arm():
    names = ("colour", "shape", "count", "background", "classification", "retrieval", "score")
    runs = {
        arm: [dict.fromkeys(names, score) for score in scores]
        for arm, scores in {"a": (0.1, 0.3), "b": (0.2, 0.4)}.items()
    }
    table = comparison(runs, {"a": "first", "b": "second"}).splitlines()
    assert table[2].endswith("| 20.0 ± 10.0 |  |") and table[3].endswith("| 30.0 ± 10.0 | +10.0 [+10.0, +10.0] |")


# Texts from texts


class Recolours:
    """Changes the colours of a caption; gives no caption if there is no colour to change."""

    def caption(self, requests, sampling, column):
        for request in requests:
            texts = [request.instruction.replace("red", "blue")] if "red" in request.instruction else []
            yield Captioned(
                request.key,
                tuple(Caption(text, None, False, kind="colour") for text in texts),
                error="" if texts else "nothing",
            )


def test_only_negatives_that_are_false_of_the_picture_are_chosen_between(monkeypatch):
    """In the second picture the other colour is true, too; the caption "a star" has no negative."""
    monkeypatch.setattr(benchmarks.evidence.choice, "load_captioner", lambda name: Recolours())
    item = {"shape": "star", "size": "small", "texture": "plain", "x": 0.5, "y": 0.5}
    red_scene, two_colours = (
        {"background": "grey", "objects": [item | {"colour": colour} for colour in colours]}
        for colours in (["red"], ["red", "blue"])
    )
    samples = [
        Record("a", None, ("a red star", "a star"), meta={"scene": red_scene}),
        Record("b", None, ("a red star",), meta={"scene": two_colours}),
        Record("c", None, ("one red star",), meta={"scene": red_scene}),
    ]
    assert held_out_pairs(samples) == [Pair(0, 0, "a blue star", "colour"), Pair(2, 3, "one blue star", "colour")]


def test_choices_are_the_mean_of_their_kinds():
    pictures, captions = np.eye(2), np.array([[1.0, 0.0], [0.6, 0.8]])
    pairs = [Pair(0, 0, "", "colour"), Pair(0, 1, "", "colour"), Pair(1, 1, "", "swap"), Pair(1, 0, "", "colour")]
    negatives = np.array([[0.8, 0.6], [0.8, 0.6], [0.8, 0.6], [1.0, 0.0]])
    shares = choices(pictures, captions, negatives, pairs)
    assert shares == pytest.approx({"choice_colour": 1 / 3, "choice_swap": 1.0, "choice": 2 / 3})


def test_an_arm_with_negatives_trains_on_the_negatives_of_its_texts():
    assert ALL["words_negatives"].settings["negatives"] == "^neg_text_alt$"
    assert ALL["words_captions_negatives"].settings["negatives"] == "^neg_text_much_p09$"
    assert "negatives" not in ALL["words_captions"].settings and ALL["rewrites"].records == "rewritten"
    assert [*WORDS] == [*OF_WORDS, *OF_REWRITES]


def test_a_page_of_words_leaves_out_rewrites_where_there_are_none_and_leaves_other_tables_as_they_are(tmp_path):
    names = ("colour", "shape", "count", "background", "classification", "retrieval", "score")
    scores = dict.fromkeys([*names, "choice", *(f"choice_{kind}" for kind in KINDS)], 0.5)
    for arm in OF_WORDS:
        (file := result_file(tmp_path, arm, 0)).parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(scores))
    marks = [f"<!-- {name} -->\nold\n<!-- /{name} -->" for name in ("words", "choices", "words-seeds", "tau")]
    (page := tmp_path / "page.md").write_text("\n".join(marks))
    write_page(page, tmp_path)
    text = page.read_text()
    assert text.count("old") == 1 and "alt text, and hard negatives of it" in text and "rewrites" not in text
    assert "| swap |" in text and "1 seeds of each arm" in text
    with pytest.raises(ValueError, match="no seed yet that every arm has"):
        write_page(page, tmp_path / "nothing")
