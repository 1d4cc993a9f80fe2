import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diversity.measures.frames import FUNCTION_WORDS, frames
from diversity.words.tokens import words


@pytest.mark.parametrize(
    ("caption", "template"),
    [
        ("a red cat on the mat", "a … on the …"),
        ("Two big dogs, running.", "…"),
        ("A man is riding a horse in front of a house!", "a … is … a … in front of a …"),
        ("it is on top of the", "it is on top of the"),
    ],
)
def test_templates_keep_the_function_words(caption, template):
    assert frames([caption]) == {
        "templates": [[template, 1, caption]],
        "openings": [[" ".join(words(caption)[:3]), 1]],
    }


def test_the_commonest_come_first_then_by_alphabet_and_shares_are_of_all_captions():
    captions = [
        "A cat on a mat",
        "a dog on a rug",
        "the end",
        "a cat on a wall",
        "",
        "big red cat",
        "the house ends",
        "...",
    ]
    result = frames(captions, most=3)
    assert [[text, share] for text, share, _ in result["templates"]] == [
        ["a … on a …", 3 / 8],
        ["the …", 2 / 8],
        ["…", 1 / 8],
    ]
    assert result["templates"][0][2] in (captions[0], captions[1], captions[3])
    assert result["openings"] == [["a cat on", 2 / 8], ["a dog on", 1 / 8], ["big red cat", 1 / 8]]


@given(st.permutations(["a cat on a mat", "a dog on a rug", "the dog", "a bird", "a fox", "a bird", "the cat", ""]))
def test_order_does_not_matter(captions):
    assert frames(captions) == frames(sorted(captions))


@given(st.lists(st.lists(st.sampled_from("a the on of dog cat red".split()), max_size=6).map(" ".join), max_size=12))
def test_templates_and_openings_are_counted(captions):
    templates = [re.sub("(?:dog|cat|red)(?: (?:dog|cat|red))*", "…", caption) for caption in captions]
    openings = Counter(" ".join(caption.split()[:3]) for caption in captions if caption)
    result = frames(captions, most=1000)
    assert {text: share for text, share, _ in result["templates"]} == {
        text: count / len(captions) for text, count in Counter(filter(None, templates)).items()
    }
    assert dict(result["openings"]) == {text: count / len(captions) for text, count in openings.items()}
    assert all((template, example) in zip(templates, captions) for template, _, example in result["templates"])


def test_other_scripts_and_broken_text_do_no_harm():
    assert frames(["红色的圆", "a \ud800b"])["templates"] == [["a …", 1 / 2, "a \ud800b"], ["…", 1 / 2, "红色的圆"]]
    assert frames([]) == {"templates": [], "openings": []}


def test_function_words_are_words():
    assert all(words(word) == [word] for word in FUNCTION_WORDS)
