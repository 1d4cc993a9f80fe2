"""Intervals and tests against enumeration, simulation and examples worked by hand."""

from itertools import product

import numpy as np
import pytest

from diversity.verdict import compare
from diversity.verdict.compare import Difference, Estimate, differences, estimates, holm


def slow_estimate(values, seed, resamples):
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        draws = values[rng.integers(len(values), size=len(values))]
        if not np.isnan(draws).all():
            means.append(np.nanmean(draws))
    return np.nanmean(values), *np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("block", [2**22, 70, 1])
def test_estimates_equal_a_plain_bootstrap_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(compare, "AT_ONCE", block)
    rng = np.random.default_rng(1)
    scores = {
        "normal": rng.normal(3, 1, 30),
        "skewed": rng.exponential(1, 30),
        "gaps": rng.normal(0, 1, 30),
        "rare": np.full(30, np.nan),
    }
    scores["gaps"][rng.random(30) < 0.4] = np.nan
    scores["rare"][7:9] = 1, 2
    result = estimates(scores, 5, resamples=200)
    for name, values in scores.items():
        np.testing.assert_allclose(result[name], slow_estimate(values, 5, 200), rtol=1e-12)


def test_a_constant_has_no_width_and_a_score_that_is_nowhere_no_estimate():
    result = estimates({"constant": np.full(1000, 0.1), "nowhere": np.full(1000, np.nan)}, 0)
    assert result == {"constant": Estimate(0.1, 0.1, 0.1)}
    assert estimates({"nothing": np.zeros(0)}, 0) == estimates({}, 0) == {}


def test_a_score_s_interval_does_not_depend_on_its_neighbours():
    rng = np.random.default_rng(2)
    single, other = rng.normal(size=(2, 40))
    beside, alone = estimates({"one": single, "other": other}, 0)["other"], estimates({"other": other}, 0)["other"]
    np.testing.assert_allclose(beside, alone, rtol=1e-12)


@pytest.mark.parametrize(
    "draw", [lambda rng, size: rng.normal(1, 1, size), lambda rng, size: rng.exponential(1, size)]
)
def test_intervals_hold_the_true_mean_as_often_as_they_say(draw):
    """Of 400 intervals 95 % should contain the mean, and of skewed scores some 93 %.

    At 95 %, a share outside these bounds has a chance of 0.02 %.
    """
    rng = np.random.default_rng(3)
    columns = draw(rng, (400, 120))
    covered = [interval.low <= 1 <= interval.high for interval in estimates(dict(enumerate(columns)), 0).values()]
    assert 0.90 < np.mean(covered) < 0.985


# --- differences ---------------------------------------------------------------------------------------------------


def exact_p(values):
    sums = np.array([np.dot(signs, values) for signs in product((-1, 1), repeat=len(values))])
    return np.mean(np.abs(sums) >= abs(np.sum(values)) - 1e-9)


@pytest.mark.parametrize(
    "values",
    [
        [0.3, 0.1, -0.2, 0.5, 0.4, 0.9, 0.2, -0.1, 0.3],
        [0.1] * 8,  # all one way: 2 of 256 signs
        [1, 1, -1, 0, 1, 0, 1, 1, -1, 1],  # ties
        [0, 0, 0, 0],
        [2.5],  # one picture tells nothing
    ],
)
def test_p_is_the_share_of_all_signs(values):
    (result,) = differences({"a": {"s": np.array(values, float)}, "b": {"s": np.zeros(len(values))}}, ["s"], 0)
    exact = exact_p(values)
    assert result.p == pytest.approx(
        exact, abs=5 * np.sqrt(exact * (1 - exact) / 2000) + 1 / 2000
    )  # 5 sd of 1,999 flips
    assert result.p_holm == result.p


def test_p_is_never_zero_and_does_not_depend_on_the_block(monkeypatch):
    scores = {"a": {"s": np.ones(60)}, "b": {"s": np.zeros(60)}}
    (result,) = differences(scores, ["s"], 0)
    assert result.p == 1 / 2000
    rng = np.random.default_rng(4)
    scores = {name: {"s": rng.normal(size=50), "t": rng.normal(size=50)} for name in "abc"}
    expected = differences(scores, ["s", "t"], 0)
    monkeypatch.setattr(compare, "AT_ONCE", 64)
    assert [(d.p, d.p_holm) for d in differences(scores, ["s", "t"], 0)] == [(d.p, d.p_holm) for d in expected]


def test_p_is_uniform_where_nothing_differs():
    """300 pairs of columns alike: the Kolmogorov distance to the uniform passes 0.113 with a chance of 1 in 1,000."""
    rng = np.random.default_rng(5)
    p = np.sort(compare._sign_flip_p(rng.exponential(1, (40, 300)) - rng.exponential(1, (40, 300)), 0))
    assert np.abs(p - (np.arange(300) + 0.5) / 300).max() < 0.113


def test_false_alarms_among_columns_alike_are_rare():
    """12 differences each, none of them real: 5 % of 100 families may raise an alarm, more than 12 with 0.1 %."""
    rng = np.random.default_rng(6)
    alarms = 0
    for family in range(100):
        shared = rng.normal(size=(2, 30))  # pictures are hard or easy for all
        scores = {
            name: {"s": shared[0] + rng.normal(size=30), "t": shared[1] + rng.normal(size=30)} for name in "abcd"
        }
        alarms += any(difference.p_holm < 0.05 for difference in differences(scores, ["s", "t"], family))
    assert alarms <= 12


def test_a_real_difference_is_found_though_pictures_differ_more():
    rng = np.random.default_rng(7)
    pictures = rng.normal(0, 5, 200)
    scores = {"a": {"s": pictures + rng.normal(0.5, 1, 200)}, "b": {"s": pictures + rng.normal(0, 1, 200)}}
    (result,) = differences(scores, ["s"], 0)
    assert result.sign == 1
    assert result.estimate.low < 0.5 < result.estimate.high
    (turned,) = differences({"b": scores["b"], "a": scores["a"]}, ["s"], 0)
    assert turned.sign == -1
    np.testing.assert_allclose(turned.estimate, -result.estimate, rtol=1e-12)
    assert turned.p == result.p


def test_enough_flips_that_holm_can_be_passed_in_a_large_family():
    scores = {
        f"c{index}": {"s": np.full(60, float(index)), "t": np.full(60, float(index))} for index in range(12)
    }  # 132 pairs
    assert all(difference.sign == -1 for difference in differences(scores, ["s", "t"], 0))


def test_all_pairs_where_both_are_defined():
    nan = np.nan
    scores = {
        "a": {"s": np.array([1, 2, nan]), "t": np.array([1.0, 1, 1])},
        "b": {"s": np.array([0, nan, 4.0])},
        "c": {"s": np.array([nan, 1, nan]), "t": np.full(3, nan)},
    }
    result = differences(scores, ["s", "t"], 0)
    assert [(d.measure, d.first, d.second, d.pictures, d.estimate.mean) for d in result] == [
        ("s", "a", "b", 1, 1),
        ("s", "a", "c", 1, 1),
    ]
    assert differences({"a": scores["a"]}, ["s"], 0) == ()


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.9, 0.4, 0.5])), [1, 1, 1])
    assert holm(np.array([0.02])).tolist() == [0.02]


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "sign"),
    [(0.1, 0.2, 0.01, 1), (-0.2, -0.1, 0.01, -1), (0.1, 0.2, 0.05, 0), (-0.1, 0.2, 0.01, 0), (0, 0, 1, 0)],
)
def test_a_difference_is_certain_by_test_and_interval(low, high, p_holm, sign):
    assert (
        Difference(
            "s", "a", "b", pictures=9, estimate=Estimate((low + high) / 2, low, high), p=p_holm, p_holm=p_holm
        ).sign
        == sign
    )
