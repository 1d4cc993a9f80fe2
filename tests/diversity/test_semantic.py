"""Vendi scores and cosine distances against whole matrices of cosines, coverage against loops, and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.measures import semantic
from diversity.measures.semantic import ORDERS, HumanCaptions, VendiAccumulator, semantic_scores, within_picture

Q = list(ORDERS)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def clusters(count, dimension, seed=0):
    """Rows round a few centres: a spectrum that falls, as captions have."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(7, dimension))
    return unit(centres[random.integers(7, size=count)] + 0.5 * random.normal(size=(count, dimension)))


def accumulated(*parts):
    sums = VendiAccumulator(parts[0].shape[1])
    for part in parts:
        sums.update(part)
    return sums


def slow_vendi(rows, q):
    """By the n × n matrix of cosines, as the paper defines it."""
    rows = unit(np.asarray(rows, float))
    shares = np.linalg.eigvalsh(rows @ rows.T / len(rows))
    shares = shares[shares > 1e-14]
    if q == "1":
        return np.exp(-np.sum(shares * np.log(shares)))
    return 1 / shares.max() if q == "inf" else np.sum(shares ** float(q)) ** (1 / (1 - float(q)))


def slow_distance(rows):
    rows = unit(np.asarray(rows, float))
    return np.mean([1 - rows[i] @ rows[j] for i in range(len(rows)) for j in range(len(rows)) if i != j])


# --- sums ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", Q)
@pytest.mark.parametrize("count", [2, 20, 300])
def test_covariance_gives_what_all_cosines_give(count, q):
    rows = clusters(count, 24)
    results = accumulated(rows).result()
    np.testing.assert_allclose(results["vendi"][q], slow_vendi(rows, q), rtol=1e-9)
    np.testing.assert_allclose(results["cosine_distance"], slow_distance(rows), rtol=1e-10)
    assert results["captions"] == count and 1 < results["vendi"][q] < 24


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("q", Q)
def test_closed_forms_of_the_vendi_score(q, dtype):
    first = clusters(1, 384).astype(dtype)
    assert accumulated(np.repeat(first, 1000, axis=0)).result()["vendi"][q] == pytest.approx(1, abs=1e-12)  # all equal
    assert accumulated(-first, first).result()["vendi"][q] == pytest.approx(1, abs=1e-12)  # of one direction
    assert accumulated(np.eye(50, 384, dtype=dtype)).result()["vendi"][q] == pytest.approx(50)  # nothing in common
    assert accumulated(first).result()["vendi"][q] == pytest.approx(1)
    three_and_one = accumulated(np.eye(4, dtype=dtype)[[0, 0, 0, 1]]).result()["vendi"][q]
    expected = {
        "0.5": (np.sqrt(0.75) + np.sqrt(0.25)) ** 2,
        "1": 4 / 3**0.75,
        "2": 1 / (0.75**2 + 0.25**2),
        "inf": 4 / 3,
    }
    assert three_and_one == pytest.approx(expected[q], rel=1e-6)


def test_closed_forms_of_the_cosine_distance():
    first = clusters(1, 16)
    for rows, expected in ((np.repeat(first, 9, axis=0), 0), (np.eye(5, 16), 1), (np.concatenate([first, -first]), 2)):
        assert accumulated(rows).result()["cosine_distance"] == pytest.approx(expected, abs=1e-12)
    assert accumulated(first).result()["cosine_distance"] is None
    assert VendiAccumulator(16).result() == {"captions": 0, "vendi": dict.fromkeys(Q), "cosine_distance": None}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 29), max_size=4), st.randoms(use_true_random=False))
def test_any_split_and_order_gives_what_one_pass_gives(cuts, random):
    rows = clusters(30, 12)
    whole = accumulated(rows).result()
    order = random.sample(range(30), 30)
    parts = [accumulated(part) for part in np.split(rows[order], sorted(cuts))]
    random.shuffle(parts)
    merged = VendiAccumulator(12)
    for part in parts:
        merged.merge(part)
    assert merged.result()["captions"] == 30
    assert merged.result()["vendi"] == pytest.approx(whole["vendi"], rel=1e-12)
    assert merged.result()["cosine_distance"] == pytest.approx(whole["cosine_distance"], rel=1e-12)


def test_merged_sums_are_as_precise_as_the_less_precise():
    first, merged = clusters(1, 384).astype(np.float32), VendiAccumulator(384)
    merged.merge(accumulated(np.repeat(first, 1000, axis=0)))
    assert merged.result()["vendi"]["0.5"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_blocks_do_not_change_a_score(monkeypatch, at_once):
    rows = clusters(30, 12)
    whole = accumulated(rows).result()
    monkeypatch.setattr(semantic, "ROWS_AT_ONCE", at_once)
    assert accumulated(rows).result()["vendi"] == pytest.approx(whole["vendi"], rel=1e-12)


@pytest.mark.parametrize("count", [1, 15, 16, 100, 5000])
def test_sums_of_float32_rows_are_those_of_float64(count):
    rows = np.repeat(clusters(1, 12), count, axis=0) + 1e-3 * clusters(count, 12)
    expected = accumulated(rows).total
    np.testing.assert_allclose(accumulated(rows.astype(np.float32)).total, expected, atol=3e-7 * count)


def test_saying_all_twice_changes_no_vendi_score():
    rows = clusters(30, 12)
    assert accumulated(rows, rows).result()["vendi"] == pytest.approx(accumulated(rows).result()["vendi"], rel=1e-12)


def test_lengths_do_not_matter_and_half_precision_is_not_summed():
    rows = clusters(500, 32).astype(np.float16)
    exact = accumulated(rows.astype(np.float64)).result()["vendi"]
    assert accumulated(rows * np.float16(8)).result()["vendi"] == pytest.approx(exact, rel=1e-6)
    assert accumulated(rows.astype(np.float32)).result()["vendi"] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("bad", [0, np.nan, np.inf])
def test_a_row_without_a_direction_is_refused(bad):
    rows = clusters(5, 8)
    rows[3] = bad
    with pytest.raises(ValueError, match="length 0, or with a number that is not finite"):
        accumulated(rows)


def test_sums_of_other_dimensions_do_not_merge():
    sums = accumulated(clusters(20, 8))
    sums.merge(sums)
    assert sums.count == 40
    with pytest.raises(ValueError, match="of 8 and of 9 dimensions"):
        sums.merge(VendiAccumulator(9))


# --- within a picture ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 3, 4096])
def test_pictures_at_once_give_what_each_gives_alone(monkeypatch, at_once):
    monkeypatch.setattr(semantic, "ROWS_AT_ONCE", at_once)
    counts = np.random.default_rng(1).integers(0, 7, size=40)
    rows = clusters(counts.sum(), 16).astype(np.float32) * 3
    results = within_picture(rows, counts)
    for index, part in enumerate(np.split(rows, np.cumsum(counts))[:-1]):
        if len(part) < 2:
            assert all(np.isnan(scores[index]) for scores in (results["cosine_distance"], *results["vendi"].values()))
            continue
        np.testing.assert_allclose(results["cosine_distance"][index], slow_distance(part), atol=1e-9)
        for q in Q:
            np.testing.assert_allclose(results["vendi"][q][index], slow_vendi(part, q), rtol=1e-9)
    assert {0, 1, 6} <= set(counts.tolist())


def test_closed_forms_within_a_picture():
    rows = np.concatenate([np.repeat(clusters(1, 8), 5, axis=0), np.eye(8)[:5], np.eye(8)[[0, 0, 1, 1]]])
    results = within_picture(rows, np.array([5, 5, 4]))
    np.testing.assert_allclose(results["cosine_distance"], [0, 1, 2 / 3], atol=1e-12)
    for q in Q:
        np.testing.assert_allclose(results["vendi"][q], [1, 5, 2], rtol=1e-12)
    assert within_picture(np.zeros((0, 8)), np.zeros(0, int))["cosine_distance"].shape == (0,)


# --- coverage --------------------------------------------------------------------------------------------------------


def slow_coverage(human, captions):
    """human[p], captions[p]: rows of a picture."""
    scores = []
    for index, (of_picture, ours) in enumerate(zip(human, captions, strict=True)):
        others = np.concatenate([rows for picture, rows in enumerate(human) if picture != index])
        reached = [
            max(row @ caption for caption in ours) >= sorted(others @ row)[-5] for row in of_picture if len(ours)
        ]
        scores.append(np.mean(reached) if reached else np.nan)
    return scores


def test_coverage_equals_loops(monkeypatch):
    monkeypatch.setattr(semantic, "PAIRS_AT_ONCE", 7)
    random = np.random.default_rng(0)
    human_counts, counts = random.integers(0, 5, size=30), random.integers(0, 4, size=30)
    centres = clusters(30, 6)
    human, ours = (
        unit(np.repeat(centres, of, axis=0) + 0.3 * random.normal(size=(of.sum(), 6))) for of in (human_counts, counts)
    )
    results = HumanCaptions(human, human_counts).covered(ours, counts)
    expected = slow_coverage(np.split(human, np.cumsum(human_counts))[:-1], np.split(ours, np.cumsum(counts))[:-1])
    np.testing.assert_allclose(results, expected)
    assert 0 < np.nanmean(results) < 1 and np.isnan(results).any()


def test_only_captions_of_the_picture_itself_cover():
    human = clusters(60, 32)
    reached = HumanCaptions(human, np.full(20, 3))
    assert reached.covered(human, np.full(20, 3)).tolist() == [1] * 20  # the same ones
    assert reached.covered(human[::3], np.full(20, 1)).min() >= 1 / 3  # one of three
    assert reached.covered(np.roll(human, 3, axis=0), np.full(20, 3)).mean() < 0.3  # those of another picture


def test_human_captions_do_not_cover_themselves():
    """Two captions of a picture at right angles, or of one direction: without their own, none or all are covered."""
    apart, alike = np.eye(6), np.eye(6)[[0, 0, 1, 1, 2, 2]]
    filler = unit(np.ones((9, 6)) + np.eye(9, 6))
    counts = np.array([2, 2, 2, 9])
    for human, expected in ((apart, 0.0), (unit(alike + 0.01 * np.eye(6)), 1.0)):
        rows = np.concatenate([human, filler])
        reached = HumanCaptions(rows, counts)
        assert reached.covered(rows, counts).tolist() == [1] * 4
        assert reached.covered(rows, counts, themselves=True)[:3].tolist() == [expected] * 3
    first = HumanCaptions(rows, counts).covered(rows[[0, 2, 4, 6]], np.ones(4, int), themselves=True)
    assert first[:3].tolist() == [1, 1, 1]  # the caption itself is not counted, the other one is covered


def test_as_near_is_near_enough():
    """However rounding falls: all captions of all pictures are equal."""
    rows = np.repeat(clusters(1, 384), 40, axis=0).astype(np.float32)
    assert HumanCaptions(rows, np.full(20, 2)).covered(rows, np.full(20, 2)).tolist() == [1] * 20


def test_coverage_needs_five_captions_of_other_pictures():
    rows = clusters(9, 8)
    assert np.isnan(HumanCaptions(rows[:8], np.array([4, 4])).covered(rows[:8], np.array([4, 4]))).all()
    assert np.isnan(HumanCaptions(rows, np.array([4, 5])).covered(rows, np.array([4, 5]))).tolist() == [False, True]
    assert np.isnan(HumanCaptions(rows[:2], np.array([1, 1])).covered(rows[:2], np.array([1, 1]))).all()


# --- columns ---------------------------------------------------------------------------------------------------------


class Letters:
    """Embeds a text as the counts of its letters a to h."""

    name = "letters"

    def encode(self, texts):
        return unit(np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts], np.float32))


def test_a_column_is_scored_within_pictures_and_over_the_set():
    columns = {
        "varied": [["a", "b"], ["c", "d"], ["a", "c"]],
        "same": [["a", "aa"], ["c", "c"], ["d", "d"]],
        "near": [["a", "ab"]] * 3,
    }
    results = semantic_scores(Letters(), columns)
    np.testing.assert_allclose(results["varied"].pictures["vendi"], [2, 2, 2])
    np.testing.assert_allclose(results["same"].pictures["cosine_distance"], [0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(results["near"].pictures["vendi"], [slow_vendi([[1, 0], [1, 1]], "1")] * 3, rtol=1e-6)
    np.testing.assert_allclose(results["near"].row["vendi"]["2"], slow_vendi([[1, 0], [1, 1]], "2"), rtol=1e-6)
    row = results["varied"].row
    assert row["vendi"] == pytest.approx(dict.fromkeys(Q, 2)) and row["cosine_distance"] == pytest.approx(1)
    assert row["set_vendi"]["inf"] == pytest.approx(3) and row["set_vendi"]["2"] == pytest.approx(36 / (4 + 4 + 1 + 1))
    assert row["set_cosine_distance"] == pytest.approx(1 - 2 * 2 / 30) and row["captions"] == 6
    assert results["same"].row["set_vendi"] == pytest.approx(dict.fromkeys(Q, 3), rel=1e-6)
    assert row["coverage"] is None and "coverage" not in results["varied"].pictures


def test_a_column_is_held_against_the_references():
    """The five captions of the last picture are equally near to each of the others: cosine 1 / √8."""
    references = [["a", "b"], ["c", "d"], ["e", "f"], ["abcdefgh"] * 5]
    columns = {
        "right": [["a", "b"], ["c", "d"], ["e"], ["a"]],
        "wrong": [["c", "d"], ["e", "f"], ["a", "b"], ["a"]],
        "human": references,
    }
    results = semantic_scores(Letters(), columns, references, human="human")
    assert results["right"].pictures["coverage"][:3].tolist() == [1, 1, 1 / 2]
    assert results["wrong"].pictures["coverage"][:3].tolist() == [0] * 3
    assert results["human"].pictures["coverage"][:3].tolist() == [0] * 3  # each is alone
    for scores in results.values():
        assert scores.row["coverage"] == pytest.approx(np.nanmean(scores.pictures["coverage"]))


def test_with_one_caption_a_picture_there_is_no_spread_within_pictures():
    row = semantic_scores(Letters(), {"one": [["a"], ["b"]]})["one"].row
    assert row["vendi"] == dict.fromkeys(Q) and row["cosine_distance"] is None
    assert row["set_vendi"] == pytest.approx(dict.fromkeys(Q, 2)) and row["set_cosine_distance"] == pytest.approx(1)
