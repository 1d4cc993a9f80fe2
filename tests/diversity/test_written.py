"""What a written text is refused for beside its source, and what it is not."""

import pytest

from diversity.words.degenerate import REASONS
from diversity.words.written import WRITTEN, says_the_same, written_reasons

CASES = [(name, example) for name, reason in WRITTEN.items() for example in reason.examples if name != "unparsed"]


@pytest.mark.parametrize(("reason", "example"), CASES)
def test_the_examples_of_each_reason_have_it_and_no_other(reason, example):
    assert written_reasons(example.text, example.source, **example.asked) == (reason,)
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
    assert says_the_same(one, other) is says_the_same(other, one) is same
