"""What a written text is refused for beside its source, and what it is not."""

import time

import pytest

from captioners.clip import is_longer_than
from diversity.words.degenerate import REASONS
from diversity.words.written import WRITTEN, Source, additions, is_among, written_reasons

CASES = [(name, example) for name, reason in WRITTEN.items() for example in reason.examples if name != "unparsed"]


@pytest.mark.parametrize(("reason", "example"), CASES)
def test_the_examples_of_each_reason_have_it_and_no_other(reason, example):
    assert written_reasons(example.text, example.source, **example.requirements) == (reason,)
    assert not WRITTEN.keys() & REASONS.keys()


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("the dog chases the cat", "the cat chases the dog", False),
        ("a dog on a mat and a cat", "a dog on a cat and a mat", False),
        ("a dog left of a cat", "a cat left of a dog", False),
        ("a black dog and a white cat", "a white dog and a black cat", False),
        ("two dogs", "a dog", False),
        ("a dog is not on grass", "a dog on grass", False),
        ("a boy hits a ball and a girl catches it", "a girl hits a ball and a boy catches it", False),
        ("a dog, and a cat", "a cat and the dog", True),
        ("there are two gray cats", "2 grey cats", True),
        ("A dog, running on grass.", "a dog is running on the grass", True),
        ("a photo of a dog", "a picture of the dog", True),
    ],
)
def test_what_says_the_same(one, other, same):
    for text, positive in ((one, other), (other, one)):
        assert ("same" in written_reasons(text, Source("", positive=positive))) is same


PROMPT = "Rewrite image captions in other words, and add nothing that is not in them.\nAlt text: {}\nCaption:"


@pytest.mark.parametrize(
    "text, source, echo",
    [
        ("A dog sleeps on a sofa.", "dog on couch", False),
        ("Rewrite image captions in other words.", "dog on couch", True),
        ("A dog. Add nothing that is not in them, please and thank you.", "dog on couch", False),
        ("A dog, in other words, and add nothing that is not in them", "dog on couch", True),
        ("A dog on a couch. Alt text: a cat", "dog on couch", True),
        ("A sign reads Caption: dogs", "sign: Caption: dogs", False),
        ("A dog asleep.\n=> A cat", "dog on couch", True),
        ("dog => couch", "dog => couch", False),
        ("Caption", "dog on couch", False),  # too short for this reason
        ("a man riding a wave on top of a surfboard", "surfer", True),  # an example
        ("a man riding a wave on top of a surfboard", "a man riding a wave on top of a surfboard", False),
        ("a man riding a wave", "surfer", False),  # a part of one, which anybody may write
        ("把这句话改写成别的说法", "一只狗在沙发上", False),
    ],
)
def test_what_is_an_echo(text, source, echo):
    examples = ("a man riding a wave on top of a surfboard", "surfer on a big wave")
    given = Source(source, PROMPT.format(source) + "\n" + " => ".join(examples), examples)
    assert written_reasons(text, given) == (("echo",) if echo else ())


@pytest.mark.parametrize(
    "text, source, added",
    [
        ("Two dogs on grass", "2 dogs on grass", []),
        ("a pair of dogs", "two dogs", []),
        ("two dogs", "a pair of dogs", []),
        ("Two people walk.", "a man and a woman walk", []),
        ("Three people walk.", "two men and a woman walk", []),
        ("One of them is a dog", "dogs", []),
        ("Twenty-one dogs, 1,200 cats", "dogs and cats", ["21", "1200"]),
        ("21 dogs", "twenty one dogs", []),
        ("At 10:30 in 1984", "clock, 10:30, 1984", []),
        ("a crimson car", "a red car", []),
        ("a grey and white cat", "a gray cat, white paws", []),
        ("a black and white photo", "monochrome photo", []),
        ("an orange cat", "a cat", ["orange"]),
        ("a slice of an orange", "oranges", ["orange"]),
        ("The Eiffel Tower in Paris", "eiffel tower, paris", []),
        ("A view of New York City", "NYC view", []),
        ("Italian food on a table", "food from Italy", []),
        ("A man plays Frisbee by the TV", "man with disc, television", []),
        ("A Dog Runs On Green Grass", "a dog runs on green grass", []),
        ("A statue in Rome", "a statue", ["Rome"]),
        ("She is in Rome. Rome is old.", "she is in a town", ["Rome"]),
        ("A man's dog", "a dog of a man", []),
        ("Zwei rote Autos", "autos", []),  # not known
        ("a red car", "ein rotes Auto steht auf der Straße", []),
        ("9 red cars", "ein rotes Auto steht auf der Straße", ["9"]),
    ],
)
def test_which_facts_are_added(text, source, added):
    assert additions(text, source) == added


def test_tags_are_compared_in_the_singular():
    assert [is_among(tag, ["Dogs", "glass", "red car"]) for tag in ("dog", "glasses", "glass", "Red cars", "car")] == [
        True,
        False,
        True,
        True,
        False,
    ]


def test_negatives_are_judged_beside_each_true_caption():
    source = Source(positive="a dog on grass\n\na brown dog runs")
    assert written_reasons("The brown dog is running", source, min_overlap=0.5) == ()
    assert written_reasons("A dog is on the grass.", source, min_overlap=0.5) == ("same",)
    assert written_reasons("three boats", source, min_overlap=0.5) == ("far",)
    assert written_reasons("three boats", Source("a dog"), min_overlap=0.5) == ()  # no negative


def test_nothing_is_judged_beside_no_source():
    assert written_reasons("dog => couch ```", None, must_change=True, keep_facts=True) == ()
    assert written_reasons("", Source("a", positive="b"), max_words=1) == ()


@pytest.mark.parametrize("limit, longer", [(7, True), (8, False)])
def test_tokens_of_clip_are_counted_with_start_and_end(limit, longer):
    assert is_longer_than("a dog runs on grass.", limit) is longer  # five words, a mark, and two
    assert is_longer_than("w" * 100_000, 77)


N = 20_000


@pytest.mark.parametrize(
    "part", ["a dog and ", ", ", "Rome ", "two ", "1,", "a: ", "=> ", "x", "红", "on ", "Caption:\n"]
)
def test_no_text_takes_long(part):
    text = part * (N // len(part))
    start = time.process_time()
    for other in (text, "a dog"):
        source = Source(other, other, (other,), positive=other)
        written_reasons(text, source, must_change=True, keep_facts=True, min_overlap=0.5, max_clip_tokens=77)
        written_reasons(other, source, must_change=True, keep_facts=True, min_overlap=0.5)
    assert time.process_time() - start < 2
