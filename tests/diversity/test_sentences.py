"""Where sentences end: whole sentences are kept in captions that are drawn, and in captions that are cut."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diversity.words.sentences import is_finished, joined, sentences


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a dog on grass", ["a dog on grass"]),
        ("A dog. It runs!  Does it? yes", ["A dog.", "It runs!", "Does it?", "yes"]),
        ("The arch of St. Louis at dusk. A river.", ["The arch of St. Louis at dusk.", "A river."]),
        ("a u.s. flag and a U.S. Navy ship. blue sky", ["a u.s. flag and a U.S. Navy ship.", "blue sky"]),
        ("a 3.5 inch disk, no. 4 of 9. grey", ["a 3.5 inch disk, no. 4 of 9.", "grey"]),
        ("Mr. J. R. Smith and Dr. Lee shake hands.", ["Mr. J. R. Smith and Dr. Lee shake hands."]),
        (
            "Fruit, nuts, etc. on a table. At 9 a.m. it rains.",
            ["Fruit, nuts, etc. on a table.", "At 9 a.m. it rains."],
        ),
        ("It rains at 9 a.m. The sun comes later.", ["It rains at 9 a.m.", "The sun comes later."]),
        ('A sign reads "Stop!" in red. It is old.', ['A sign reads "Stop!" in red.', "It is old."]),
        ("She asks “Why?” and he leaves.", ["She asks “Why?” and he leaves."]),
        ('She says "stop." He does.', ['She says "stop."', "He does."]),
        ("wait... what", ["wait...", "what"]),
        ("A sign with the letter A. A cat.", ["A sign with the letter A.", "A cat."]),
        ("they live on Main St.", ["they live on Main St."]),
        ("The U.S. flag flies.", ["The U.S. flag flies."]),
        (
            "Two cats sit. One is red! It looks up? The other, which is much larger and older than the red one, "
            "sleeps on.",
            [
                "Two cats sit.",
                "One is red!",
                "It looks up?",
                "The other, which is much larger and older than the red one, sleeps on.",
            ],
        ),
        ("a dog. a cat.", ["a dog.", "a cat."]),
        (
            "A plaza in St. Louis by Dr. J. Smith, e.g. at noon. It rains.",
            ["A plaza in St. Louis by Dr. J. Smith, e.g. at noon.", "It rains."],
        ),
        ('A sign says "Stop." It is 3.5 m tall.', ['A sign says "Stop."', "It is 3.5 m tall."]),
        ("no end", ["no end"]),
        ("Really?!  Yes.", ["Really?!", "Yes."]),
        ("", []),
        ("  ", []),
        (".", ["."]),
        ("一只狗。一只猫在睡觉！真的吗？是", ["一只狗。", "一只猫在睡觉！", "真的吗？", "是"]),
        ("他说：“停下。”然后走了。", ["他说：“停下。”", "然后走了。"]),
        ("这是什么?一只狗", ["这是什么?", "一只狗"]),
        ("犬がいる。「待て。」と言う。", ["犬がいる。", "「待て。」", "と言う。"]),
        ("एक लड़का है। एक लड़की है।", ["एक लड़का है।", "एक लड़की है।"]),
        ("کیا؟ ہاں۔ نہیں", ["کیا؟", "ہاں۔", "نہیں"]),
        ("Ein Hund z.B. auf dem Feld. Ca. 5 Hunde.", ["Ein Hund z.B. auf dem Feld.", "Ca. 5 Hunde."]),
        ("Wait...what", ["Wait...what"]),
    ],
)
def test_a_text_is_split_where_its_sentences_end(text, expected):
    assert sentences(text) == expected


@given(st.text(alphabet="aSt. !?。”红\"'\n", max_size=40))
def test_sentences_lose_nothing_but_space(text):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_a_sentence_is_finished_by_its_mark():
    assert all(map(is_finished, ["A dog.", 'She says "stop."', "wait...", "really?!", "一只狗。", "है।", "“是。”"]))
    assert not any(map(is_finished, ["A dog", "St. Louis", ""]))


def test_sentences_are_joined_as_their_script_has_it():
    for text in ("A dog. It runs! Really?", "一只狗。一只猫！", "他说：“停。”然后走了。", "एक लड़का है। एक लड़की है।"):
        assert joined(sentences(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "." * 50_000 + "x",
        "st. " * 20_000,
        "A. b " * 20_000,
        "." + "'" * 50_000 + "x",
        "a." + " " * 50_000 + "b",
        "一。" * 20_000,
    ],
)
def test_no_text_takes_long_to_split_into_sentences(text):
    start = time.process_time()
    sentences(text), is_finished(text)
    assert time.process_time() - start < 1
