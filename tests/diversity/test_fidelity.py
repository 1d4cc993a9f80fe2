import pytest

from diversity.measures.fidelity import FactCounts, count_true

SCENE = {
    "background": "sand",
    "objects": [
        {"shape": "circle", "colour": "red", "size": "small", "texture": "plain", "x": 0.2, "y": 0.5, "radius": 0.1},
        {"shape": "square", "colour": "blue", "size": "large", "texture": "plain", "x": 0.7, "y": 0.5, "radius": 0.2},
    ],
}


def test_facts_of_a_known_picture():
    facts = FactCounts()
    facts.update(["a red circle left of a blue square", "a green circle"], SCENE)
    result = facts.result()
    kinds = result["kinds"]
    assert (
        kinds["shape"] | {"precision": 1, "recall": 1, "stated": 3, "true": 3, "key": 2, "found": 2} == kinds["shape"]
    )
    assert kinds["colour"]["precision"] == pytest.approx(2 / 3)
    assert kinds["colour"]["recall"] == 1
    assert kinds["relation"] | {"precision": 1, "recall": 1} == kinds["relation"]
    assert result["precision"] == pytest.approx(result["true"] / result["stated"])
    assert result["stated"] == sum(kind["stated"] for kind in kinds.values())
    assert result["stated_per_caption"] == result["stated"] / 2
    assert result["recall"] < 1  # neither says that there are two objects


def test_silence_is_neither_right_nor_wrong_but_finds_nothing():
    facts = FactCounts()
    facts.update(["a nice picture"], SCENE)
    result = facts.result()
    assert (result["precision"], result["recall"], result["stated"]) == (None, 0, 0)
    assert FactCounts().result() is None


def test_count_true():
    true, stated = count_true("a red circle left of a green square", SCENE)
    assert 0 < true < stated
    assert count_true("a nice picture", SCENE) == (0, 0)


def test_the_words_of_a_picture_s_own_captions_are_all_true():
    from imagetext.scenes.draw import SceneSpec, scene_sample

    facts = FactCounts()
    for index in range(50):
        sample = scene_sample(SceneSpec.parse("scenes:test,n=50,level=3"), index)
        facts.update(sample.captions, sample.meta["scene"])
    assert facts.result()["precision"] == 1
    assert facts.result()["recall"] > 0.9
