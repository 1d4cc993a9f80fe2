"""Facts: those that captions state are found exactly, and every caption that we write is true."""

from collections import Counter

import pytest

from imagetext.scenes.draw import SceneSpec, scene_sample
from imagetext.scenes.facts import KINDS, Fact, facts_of, key_facts, true_facts

LEFT = {"shape": "circle", "colour": "red", "size": "large", "texture": "striped", "x": 0.2, "y": 0.45, "radius": 0.2}
RIGHT = {"shape": "square", "colour": "blue", "size": "small", "texture": "plain", "x": 0.8, "y": 0.5, "radius": 0.15}
SCENE = {"background": "mint", "objects": [LEFT, RIGHT]}


@pytest.mark.parametrize(
    "caption, stated",
    [
        ("a red circle", {("shape", "circle"), ("colour", "red", "circle")}),
        ("A Large RED Circle!", {("shape", "circle"), ("colour", "red", "circle"), ("size", "large", "red circle")}),
        (
            "two blue crosses on a mint background",
            {("shape", "cross"), ("colour", "blue", "cross"), ("count", "2", "blue cross"), ("background", "mint")},
        ),
        ("a pair of stars", {("shape", "star"), ("count", "2", "star")}),
        ("three objects against a plain sky backdrop", {("count", "3", "object"), ("background", "sky")}),
        (
            "a circle to the right of a heart",
            {("shape", "circle"), ("shape", "heart"), ("relation", "left of", "heart", "circle")},
        ),
        (
            "a circle to the left of a heart below a star",
            {
                ("shape", "circle"),
                ("shape", "heart"),
                ("shape", "star"),
                ("relation", "left of", "circle", "heart"),
                ("relation", "above", "star", "heart"),
            },
        ),
        (
            "the star is small and dotted, at the upper left",
            {
                ("shape", "star"),
                ("size", "small", "star"),
                ("texture", "dotted", "star"),
                ("place", "upper left", "star"),
            },
        ),
        ("a red and a blue thing", {("colour", "blue", "object")}),  # "a red" names nothing
        ("IMG_2043.JPG", set()),
        ("ein roter kreis", set()),
        ("", set()),
    ],
)
def test_facts_are_read_from_captions(caption, stated):
    assert facts_of(caption) == {Fact(*fact) for fact in stated}


def test_true_and_key_facts_of_a_scene():
    true = true_facts(SCENE)
    assert facts_of("a large striped red circle to the left of a small blue square on a mint background") <= true
    assert facts_of("two shapes: a circle and a square. the blue square is at the right") <= true
    assert key_facts(SCENE) == {
        Fact("shape", "circle"),
        Fact("shape", "square"),
        Fact("colour", "red", "circle"),
        Fact("colour", "blue", "square"),
        Fact("count", "2", "object"),
        Fact("relation", "left of", "red circle", other="blue square"),
    }


@pytest.mark.parametrize(
    "lie",
    [
        "a blue circle",
        "a red star",
        "two red circles",
        "three shapes",
        "a red circle to the right of a blue square",
        "a red circle above a blue square",
        "a small red circle",
        "the square is dotted",
        "on a sky background",
        "the square is at the bottom",
    ],
)
def test_a_false_caption_states_a_fact_that_is_not_true(lie):
    assert facts_of(lie) - true_facts(SCENE)


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_every_caption_we_write_is_true_and_five_tell_nearly_everything(level):
    statements, key = Counter(), Counter()
    for index in range(200):
        sample = scene_sample(SceneSpec("train", level=level, size=16), index)
        scene = sample.meta["scene"]
        true = true_facts(scene)
        assert key_facts(scene) <= true
        for caption in (*sample.captions, sample.meta["long_caption"]):
            assert facts_of(caption), caption
            assert facts_of(caption) <= true, (caption, facts_of(caption) - true)
        stated = frozenset().union(*map(facts_of, sample.captions))
        statements.update(fact.kind for fact in key_facts(scene) & stated)
        key.update(fact.kind for fact in key_facts(scene))
    for kind in key:
        assert statements[kind] / key[kind] > 0.95, kind


def test_long_captions_state_every_kind():
    sample = scene_sample(SceneSpec("train", level=2, size=16), 0)
    assert {fact.kind for fact in facts_of(sample.meta["long_caption"])} == set(KINDS)


def test_alt_text_mostly_names_something_true_and_seldom_everything():
    right = wrong = nothing = everything = 0
    for index in range(1000):
        sample = scene_sample(SceneSpec("train", level=2, size=16), index)
        stated, true = facts_of(sample.meta["alt_text"]), true_facts(sample.meta["scene"])
        right += bool(stated) and stated <= true
        wrong += bool(stated - true)
        nothing += not stated
        everything += key_facts(sample.meta["scene"]) <= stated
    assert right > 600 and wrong > 30 and nothing > 100 and everything < 100
