"""Mixes against a slow, obvious reference and cases whose answer is known."""

import hashlib

import numpy as np
import pytest

from diversity.measures.catalogue import OF_SCORE
from diversity.verdict.compare import estimates
from diversity.verdict.mixes import mixes, word_coverage
from diversity.words.tokens import words

CLIP, DEGENERATE = OF_SCORE["clip_score"], OF_SCORE["degenerate"]
THINGS = (
    "dog cat horse bird tree house river boat child ball street lamp clock door window grass cloud hill bridge fence "
    "truck wheel chair table plate fruit bread knife spoon cup"
).split()


def captioner(rng, pictures, captions, things, fidelity):
    """Captions that name three of some of each picture's things, and their scores."""
    groups = [
        [" ".join(["a photo of", *rng.permutation(of_picture[things])[:3]]) for _ in range(captions)]
        for of_picture in pictures
    ]
    return groups, [rng.normal(fidelity, 0.05, captions) for _ in pictures]


@pytest.fixture(scope="module")
def world():
    """80 pictures of twelve things each, which five people name; `left` and `right` know half of the things each."""
    rng = np.random.default_rng(0)
    pictures = [rng.permutation(THINGS)[:12] for _ in range(80)]
    references = [
        [" ".join(["the", *rng.permutation(of_picture)[:5], "in the sun"]) for _ in range(5)]
        for of_picture in pictures
    ]
    columns, fidelity = {}, {}
    for name, things, score in (
        ("left", slice(0, 6), 0.7),
        ("right", slice(6, 12), 0.7),
        ("both", slice(2, 9), 0.7),
        ("noise", slice(0, 0), 0.2),
    ):
        columns[name], fidelity[name] = captioner(rng, pictures, 5, things, score)
    letters = [f"x{index}" for index in range(60)]
    columns["noise"] = [[" ".join(["a", *rng.permutation(letters)[:6]]) for _ in range(5)] for _ in pictures]
    return columns, fidelity, [f"picture {index}" for index in range(80)], references


def mix(world, names, *, with_references=True, measure=CLIP, seed=3):
    columns, fidelity, keys, references = world
    return mixes(
        {name: columns[name] for name in names},
        fidelity,
        measure,
        keys=keys,
        seed=seed,
        references=references if with_references else None,
    )


# --- the slow reference --------------------------------------------------------------------------------------------


def slow_draw(world, names, seed):
    """Captions and scores of a mix, picture by picture."""
    columns, fidelity, keys, _ = world
    draws = []
    for index, key in enumerate(keys):
        start = int.from_bytes(hashlib.blake2b(f"{seed} {key}".encode(), digest_size=4).digest(), "little")
        chosen = [names[(start + i) % len(names)] for i in range(len(columns[names[0]][index]))]
        draws.append(
            (
                [columns[name][index][i] for i, name in enumerate(chosen)],
                [fidelity[name][index][i] for i, name in enumerate(chosen)],
            )
        )
    return draws


def slow_div_2(group):
    result = [words(caption) for caption in group]
    return len({pair for each in result for pair in zip(each, each[1:])}) / sum(map(len, result))


def slow_scores(world, names, seed):
    """Div-2 and fidelity of each picture, (P,) each."""
    draws = slow_draw(world, names, seed)
    return np.array([slow_div_2(group) for group, _ in draws]), np.array([np.mean(scores) for _, scores in draws])


def test_greedy_order_and_figures_equal_the_slow_reference(world):
    names, seed = ["left", "both", "noise", "right"], 3
    alone = {name: slow_scores(world, [name], seed) for name in names}
    best = max(names[:2] + names[3:], key=lambda name: alone[name][0].mean())  # noise is clearly less faithful
    expected, chosen = [], [best]
    while len(chosen) < 4:
        tried = {
            name: slow_scores(world, [*chosen, name], seed) for name in names if name not in chosen and name != "noise"
        }
        tried = tried or {"noise": slow_scores(world, [*chosen, "noise"], seed)}  # last, for what it costs
        chosen.append(max(tried, key=lambda name: tried[name][0].mean()))
        expected.append(tried[chosen[-1]])
    result = mix(world, names, with_references=False, seed=seed)
    assert result.best == best
    assert [step.columns for step in result.steps] == [tuple(chosen[:count]) for count in (1, 2, 3, 4)]
    assert (result.spread_measure, result.coverage_measure, result.fidelity_measure) == ("div_2", None, "clip_score")
    for step, (spread, faithful) in zip(result.steps[1:], expected, strict=True):
        assert step.captions == 5
        assert step.coverage is step.alone_coverage is step.coverage_gain is None
        assert step.spread == pytest.approx(spread.mean(), rel=1e-12)
        assert step.alone_spread == pytest.approx(alone[best][0].mean(), rel=1e-12)
        assert step.fidelity == pytest.approx(faithful.mean(), rel=1e-12)
        assert step.alone_fidelity == pytest.approx(alone[best][1].mean(), rel=1e-12)
        gains = estimates({"spread": spread - alone[best][0], "fidelity": faithful - alone[best][1]}, seed)
        np.testing.assert_allclose(step.spread_gain, gains["spread"], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(step.fidelity_gain, gains["fidelity"], rtol=1e-9, atol=1e-12)


def test_coverage_is_the_share_of_the_references_words():
    references = [["A dog on the grass.", "the dog runs"], ["two cats"], ["it is on the"], []]
    captions = [["a DOG", "a cat on grass"], ["dogs"], ["a dog"], ["a dog"]]
    np.testing.assert_allclose(word_coverage(captions, references), [2 / 3, 0, np.nan, np.nan])


def test_coverage_in_a_step_is_that_of_the_drawn_captions(world):
    result = mix(world, ["left", "right"])
    for step in result.steps:
        draws = [group for group, _ in slow_draw(world, step.columns, 3)]
        assert step.coverage == pytest.approx(word_coverage(draws, world[3]).mean(), rel=1e-12)


# --- known answers -------------------------------------------------------------------------------------------------


def test_equal_columns_gain_nothing(world):
    columns, fidelity, keys, references = world
    result = mixes(
        {"one": columns["left"], "same": columns["left"]},
        {"one": fidelity["left"], "same": fidelity["left"]},
        CLIP,
        keys=keys,
        seed=0,
        references=references,
    )
    assert result.steps[1].spread_gain == result.steps[1].coverage_gain == result.steps[1].fidelity_gain == (0, 0, 0)
    assert not result.steps[1].adds


def test_a_captioner_that_knows_other_things_adds_coverage_at_equal_fidelity(world):
    result = mix(world, ["left", "right"])
    step = result.steps[1]
    assert result.coverage_measure == "word_coverage"
    assert step.adds
    assert step.gain == step.coverage_gain
    assert step.coverage_gain.low > 0.05
    assert step.fidelity_gain.low < 0 < step.fidelity_gain.high
    assert not result.steps[0].adds


@pytest.mark.parametrize("with_references", [True, False])
def test_noise_adds_spread_but_no_gain(world, with_references):
    result = mix(world, ["left", "noise"], with_references=with_references)
    assert result.best == "left"
    step = result.steps[1]
    assert step.spread_gain.low > 0.1
    assert step.fidelity_gain.high < -0.1
    assert not step.adds


def test_noise_that_covers_most_does_not_stand_before_a_mix_that_adds(world):
    columns, fidelity, keys, references = world
    rng = np.random.default_rng(2)
    shuffled = [[" ".join(rng.permutation(" ".join(group).split())[:12]) for _ in range(5)] for group in references]
    result = mixes(
        {"left": columns["left"], "right": columns["right"], "shuffled": shuffled},
        {**fidelity, "shuffled": fidelity["noise"]},
        CLIP,
        keys=keys,
        seed=0,
        references=references,
    )
    assert word_coverage(shuffled, references).mean() > result.steps[1].coverage
    assert [step.adds for step in result.steps] == [False, True, False]
    assert result.steps[2].columns[2] == "shuffled"


def test_the_best_alone_is_not_the_noise_nor_the_most_faithful_by_chance(world):
    columns, fidelity, keys, references = world
    result = mixes({name: columns[name] for name in ("noise", "left")}, fidelity, CLIP, keys=keys, seed=0)
    assert result.best == "left"
    dull = [[group[0]] * 5 for group in columns["left"]]
    by_chance = [
        scores + 0.001 for scores in np.random.default_rng(1).permutation(fidelity["left"])
    ]  # no clear difference
    result = mixes(
        {"dull": dull, "left": columns["left"]},
        {"dull": by_chance, "left": fidelity["left"]},
        CLIP,
        keys=keys,
        seed=0,
        references=references,
    )
    assert result.best == "left"


def test_where_lower_is_better_a_loss_is_a_gain_turned_round(world):
    columns, _, keys, _ = world
    degenerate = {"left": [np.zeros(5)] * 80, "noise": [np.ones(5)] * 80}
    result = mixes({name: columns[name] for name in degenerate}, degenerate, DEGENERATE, keys=keys, seed=0)
    assert result.best == "left"
    step = result.steps[1]
    assert step.fidelity == pytest.approx(0.5, abs=0.1)
    assert step.alone_fidelity == 0
    assert step.fidelity_gain.mean == pytest.approx(-step.fidelity)
    assert not step.adds


def test_each_column_gives_its_share_even_with_more_columns_than_captions():
    columns = {name: [[f"{name} dog here", f"{name} cat there"]] * 900 for name in "abc"}
    degenerate = {name: [np.full(2, score)] * 900 for name, score in zip("abc", (0.0, 0.3, 0.6))}
    result = mixes(columns, degenerate, CLIP, keys=[str(index) for index in range(900)], seed=0)
    assert len(result.steps[-1].columns) == 3
    assert result.steps[-1].fidelity == pytest.approx(0.3, abs=0.03)  # 3.6 sd of which third is missing


def test_figures_follow_from_seed_and_keys_not_from_order(world):
    columns, fidelity, keys, references = world
    result = mix(world, ["left", "right", "noise"])
    order = np.random.default_rng(1).permutation(80)
    turned = mixes(
        {name: [columns[name][index] for index in order] for name in ("noise", "right", "left")},
        {name: [fidelity[name][index] for index in order] for name in fidelity},
        CLIP,
        keys=[keys[index] for index in order],
        seed=3,
        references=[references[index] for index in order],
    )
    assert [step.columns for step in turned.steps] == [step.columns for step in result.steps]
    for first, other in zip(result.steps, turned.steps, strict=True):
        for name in ("spread", "coverage", "fidelity"):
            assert getattr(first, name) == pytest.approx(getattr(other, name), rel=1e-12)
    assert mix(world, ["left", "right", "noise"]) == result
    assert mix(world, ["left", "right", "noise"], seed=4).steps[1].spread != result.steps[1].spread


def test_captioners_alike_seldom_seem_to_add_to_each_other():
    """Nothing to gain: the chance of 9 false alarms of 60, where 5 % may be, is 0.3 %."""
    rng = np.random.default_rng(8)
    alarms = 0
    for seed in range(60):
        pictures = [rng.permutation(THINGS)[:12] for _ in range(30)]
        draws = {name: captioner(rng, pictures, 3, slice(0, 8), 0.7) for name in "abc"}
        result = mixes(
            {name: groups for name, (groups, _) in draws.items()},
            {name: scores for name, (_, scores) in draws.items()},
            CLIP,
            keys=[str(index) for index in range(30)],
            seed=seed,
            references=[[" ".join(of_picture[:10])] for of_picture in pictures],
        )
        alarms += any(step.adds for step in result.steps)
    assert alarms < 9


# --- what is missing -----------------------------------------------------------------------------------------------


def test_one_column_or_one_caption_a_picture_is_no_mix(world):
    assert mix(world, ["left"]) is None
    assert (
        mixes({"a": [["a dog"]], "b": [["a cat"]]}, {"a": [np.ones(1)], "b": [np.ones(1)]}, CLIP, keys=["k"], seed=0)
        is None
    )
    assert mixes({"a": [], "b": []}, {"a": [], "b": []}, CLIP, keys=[], seed=0) is None


def test_columns_without_fidelity_or_words_take_no_part(world):
    columns, fidelity, keys, _ = world
    silent = {**columns, "silent": [[""] * 5] * 80, "unknown": columns["both"]}
    scores = {**fidelity, "silent": fidelity["left"], "unknown": [np.full(5, np.nan)] * 80}
    result = mixes(
        {name: silent[name] for name in ("silent", "unknown", "left", "right")}, scores, CLIP, keys=keys, seed=0
    )
    assert {name for step in result.steps for name in step.columns} == {"left", "right"}
    assert mixes({name: silent[name] for name in ("silent", "left")}, scores, CLIP, keys=keys, seed=0) is None


def test_unknown_scores_and_uneven_pictures_are_left_out_of_the_means():
    nan = np.nan
    columns = {
        "a": [["a dog runs", "a dog sits"], ["a cat"], []],
        "b": [["the dog runs", "a red dog"], ["one cat"], []],
    }
    fidelity = {
        "a": [np.array([0.5, nan]), np.array([nan]), np.zeros(0)],
        "b": [np.array([0.7, 0.9]), np.array([0.1]), np.zeros(0)],
    }
    result = mixes(columns, fidelity, CLIP, keys=["k", "l", "m"], seed=0, references=[["it is"], [], []])
    assert result.coverage_measure is None  # the references have no content
    step = result.steps[1]
    assert (result.best, step.captions) == ("b", 2)  # clearly more faithful in the one picture that tells
    draws = slow_draw((columns, fidelity, ["k", "l", "m"], None), step.columns, 0)[:2]
    assert step.spread == pytest.approx(slow_div_2(draws[0][0]), rel=1e-12)  # one caption has no spread
    both = [
        (np.nanmean(scores), alone)
        for (_, scores), alone in zip(draws, (0.8, 0.1), strict=True)
        if not np.isnan(scores).all()
    ]
    assert (step.fidelity, step.alone_fidelity) == pytest.approx(tuple(np.mean(both, axis=0)), rel=1e-12)


def test_a_mix_whose_fidelity_is_nowhere_known_is_no_step():
    steps = []
    for key in "abcdefgh":  # some keys draw a's first and b's second caption, both known, others the unknown ones
        fidelity = {"a": [np.array([0.5, np.nan])], "b": [np.array([np.nan, 0.4])]}
        result = mixes(
            {"a": [["a dog runs", "a dog sits"]], "b": [["the dog runs", "a red dog"]]},
            fidelity,
            CLIP,
            keys=[key],
            seed=0,
        )
        assert result.best == "a"
        steps.append(len(result.steps))
    assert set(steps) == {1, 2}


def test_uneven_columns_are_all_named():
    with pytest.raises(ValueError, match="b, picture k: 1 captions.*c: 2 pictures.*1 keys"):
        mixes(
            {"a": [["x", "y"]], "b": [["x"]], "c": [["x", "y"], ["z"]]},
            {"a": [np.ones(2)], "b": [np.ones(1)], "c": [np.ones(2), np.ones(1)]},
            CLIP,
            keys=["k"],
            seed=0,
        )
