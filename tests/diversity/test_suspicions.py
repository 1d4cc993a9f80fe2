"""Which columns are suspect, and why: bad columns of each kind are, and neither people nor a machine that errs."""

import random

import numpy as np
import pytest

from benchmarks.verdict import CaptionChanges, bad_columns
from diversity import score_captions
from diversity.measures.signs import Language, alike, copying
from imagetext.scenes.draw import SceneSpec, draw_scene
from imagetext.scenes.words import short_captions

from .made_up_captions import made_up_pictures

PICTURES = made_up_pictures(80)
SEVERAL = {"one said again": "repeated"}
ONE = {
    "other pictures": "other_pictures",
    "shuffled": "word_order",
    "sorted": "word_order",
    "reversed": "word_order",
    "another language": "other_words",
    "tail": "filler",
    "varied tails": "filler",
    "head": "filler",
    "template": "filler",
    "one for all": "repeated",
    "copied": "copied",
    "one word changed": "word_order",
}


def report(columns, human, **others):
    return score_captions(columns, references=human, **others).verdict.suspects


@pytest.fixture(scope="module")
def result():
    """The kinds of reasons of each column, one caption a picture, and of three captions a picture."""
    of = {}
    for count, kinds in ((1, ONE), (3, SEVERAL)):
        good = [picture["references"][:count] for picture in PICTURES]
        human = [picture["references"][count:] for picture in PICTURES]
        made = bad_columns(good, CaptionChanges(human, random.Random(0)))
        columns = {**{kind: made[kind] for kind in kinds}, f"people {count}": good}
        if count == 1:
            columns["machine"] = [picture["candidates"] for picture in PICTURES]
        of |= dict.fromkeys(columns, ())
        of |= {name: [reason.kind for reason in reasons] for name, reasons in report(columns, human).items()}
    return of


@pytest.mark.parametrize(("kind", "reason"), [*ONE.items(), *SEVERAL.items()])
def test_each_kind_is_suspect_for_its_reason(result, kind, reason):
    assert reason in result[kind]


@pytest.mark.parametrize("name", ["people 1", "people 3", "machine"])
def test_neither_people_nor_an_honest_machine_are_suspect(result, name):
    assert result[name] == ()


def test_copies_are_seen_with_one_reference_too():
    human = [picture["references"][:1] for picture in PICTURES]
    assert [
        reason.kind
        for reason in report({"copy": human, "other": [picture["references"][1:2] for picture in PICTURES]}, human)[
            "copy"
        ]
    ] == ["copied"]


def test_an_honest_captioner_of_templated_captions_is_no_copier():
    """Drawn shapes are described by few kinds of sentences, so references often say what a captioner says of them."""
    scenes = [draw_scene(SceneSpec("train"), index) for index in range(40)]
    human, honest, other = (
        [list(short_captions(scene, random.Random(f"{index}/{seed}"))) for index, scene in enumerate(scenes)]
        for seed in ("human", "honest", "other")
    )
    human, columns = (
        [group[:2] for group in human],
        {"honest": [group[:1] for group in honest], "wrong": [group[:1] for group in other[1:] + other[:1]]},
    )
    result = report({**columns, "copy": [group[1:2] for group in human]}, human)
    assert {name: [reason.kind for reason in reasons] for name, reasons in result.items()} == {
        "copy": ["copied"],
        "wrong": ["other_pictures"],
    }
    single = [
        [f"there is a {scene['objects'][0]['colour']} {scene['objects'][0]['shape']} in the picture"]
        for scene in scenes
    ]
    assert report({"honest": single, "wrong": columns["wrong"]}, single).keys() == {"wrong"}


def test_a_habit_that_people_have_too_is_not_suspect():
    """All human captions end alike, and so do the column's."""

    def ended(captions):
        return [f"{caption.rstrip('.')} in this old photo" for caption in captions]

    human = [ended(picture["references"][:3]) for picture in PICTURES]
    assert report({"same": [ended(picture["references"][3:4]) for picture in PICTURES]}, human) == {}


def test_human_captions_that_are_file_names_make_no_honest_column_suspect():
    """As in web pages, every third picture has a file name instead of a description."""
    human = [
        picture["references"][:3] if number % 3 else [f"IMG_{number}.jpg"] for number, picture in enumerate(PICTURES)
    ]
    people = [picture["references"][3:4] for picture in PICTURES]
    suspects = report({"people": people, "wrong": people[1:] + people[:1]}, human)
    assert suspects.keys() == {"wrong"} and report({"people": people}, human) == {}


def test_one_longer_caption_gives_a_column_of_short_ones_no_filler():
    """A phrase must be at an end of half of all captions, not of half of those that are longer than a phrase."""
    short = [["a red dog"], *([f"two cats {number}"] for number in range(78)), ["a man is riding a big wave"]]
    suspects = report({"short": short}, [picture["references"][:3] for picture in PICTURES])
    assert "filler" not in [reason.kind for reason in suspects.get("short", ())]


def test_shuffled_words_are_seen_without_references():
    draw = random.Random(0)
    good = [picture["references"][:2] for picture in PICTURES]
    shuffled = [[" ".join(draw.sample(words := caption.split(), len(words))) for caption in group] for group in good]
    result = report({"good": good, "shuffled": shuffled}, None)
    assert "word_order" in [reason.kind for reason in result["shuffled"]] and "good" not in result


def test_few_pictures_make_nobody_suspect():
    human = [picture["references"][:3] for picture in PICTURES[:9]]
    assert report({"wrong": human[1:] + human[:1]}, human) == {}


# --- signs -----------------------------------------------------------------------------------------------------------

TEXTS = [["a red dog runs".split()], ["a red cat sits".split(), "a dog".split()], ["the dog runs".split()]]


def test_order_counts_pairs_of_other_pictures():
    """Pairs of "a red dog" at the first picture: the second has "a red", only the first "red dog", others "a dog"."""
    language = Language(TEXTS)
    assert language.order("a red dog".split(), 0) == (1 / 2, 2 / 6)
    assert np.isnan(language.order(["a", "dog"], 0)).all()
    assert language.known("a red bird".split()) == pytest.approx(2 / 3)


def test_strangers_are_common_words_that_stand_together_here_alone():
    """9 "a", 9 "b" and 27 "c" in 45 words: chance gives "a b" 81 / 45 times, and "c a" 243 / 45 times."""
    language = Language([["a c".split(), "b c".split(), "c".split()]] * 9)
    assert language.strangers("a c b".split(), 0) == (2, 1)  # "a c" stands under others, "c b" under none
    assert language.strangers("a b".split(), 0) == (0, 0)
    assert np.isnan(language.strangers([], 0)).all()
    once = Language([["a c".split(), "c a".split()], ["a".split(), "c".split()] * 2])
    assert once.strangers("c a".split(), 1) == (1, 0) and once.strangers("c a".split(), 0) == (
        1,
        1,
    )  # the own picture tells nothing


def test_captions_are_alike_that_have_half_of_their_words_in_common():
    texts = [["a red dog".split()], ["a dog that runs".split(), "a blue cat".split()], [], ["no other word".split()]]
    assert alike(texts).tolist()[:2] == [0, 0] and np.isnan(alike(texts)[2]) and alike(texts)[3] == 0
    assert alike([["a red dog".split()], ["a dog".split()], ["red".split()]]).tolist() == [1, 1, 0]


def test_grounding_is_what_a_picture_s_captions_have_and_others_lack():
    language = Language(TEXTS)
    first, last, whole = language.grounded_thirds("cat dog zebra".split(), 1, TEXTS[1])
    assert (first, last, whole) == (1 - 0, 0, pytest.approx((1 + (1 - 2 / 2) + 0) / 3))
    assert (
        language.grounded_thirds("the bird sits".split(), 0, TEXTS[0])[0] == -1 / 2
    )  # "the" stands under one of two others


def test_copying_is_nearness_to_one_alone():
    human = ["a b c d".split(), "a x y z".split()]
    assert copying("a b c d".split(), human) == (1, 1 - 1 / 7)
    assert copying("d c b a".split(), human)[0] == 0
    assert copying("a b c q".split(), human[:1])[0] == 1 and np.isnan(copying("a b c q".split(), human[:1])[1])
