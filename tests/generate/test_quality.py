"""The gate: where sentences end, what is refused, and what a redraw replaces."""

import pytest

from captioners.base import Caption
from diversity.words.degenerate import REASONS, degenerate_reasons
from generate.captions.gate import Gate, cut_sentences, judge, judge_all, replace_failing


def caption(text, truncated=False, similarity=None):
    return Caption(text, -1.0, truncated, similarity)


@pytest.mark.parametrize(
    "text, truncated, keep, expected",
    [
        ("A red dog. It runs over the", True, "all", ("A red dog.", False)),
        ("A red dog. It runs.", True, "all", ("A red dog. It runs.", False)),
        ("A red dog runs over the", True, "all", ("A red dog runs over the", True)),
        ("a red dog. it runs over grass", False, "all", ("a red dog. it runs over grass", False)),
        ("A red dog. It runs.", False, "first", ("A red dog.", False)),
        ("The arch of St. Louis", True, "first", ("The arch of St. Louis", True)),
        ("A red dog. It runs over the", True, "first", ("A red dog.", False)),
        ("一只狗。一只猫在\ufffd", True, "all", ("一只狗。", False)),
        ("一只狗在草\ufffd", True, "all", ("一只狗在草", True)),  # what the limit left of a character
        ("一只狗。一只猫。", False, "all", ("一只狗。一只猫。", False)),
        ("एक लड़का। एक लड़की", True, "all", ("एक लड़का।", False)),
    ],
)
def test_an_unfinished_last_sentence_goes_unless_it_stands_alone(text, truncated, keep, expected):
    assert cut_sentences(caption(text, truncated), keep) == expected


def test_every_reason_of_fidelity_is_a_flag_here():
    for name, reason in REASONS.items():
        for example in reason.examples:
            assert name in judge(caption(example), (), Gate()).flags


def test_a_caption_that_the_limit_cut_is_flagged_only_if_no_whole_sentence_is_left():
    assert "cut" in judge(caption("a red dog runs over grass", truncated=True), (), Gate()).flags
    assert judge(caption("A red dog runs. It", truncated=True), (), Gate()).flags == ()


def test_duplicates_are_judged_by_words_against_those_before():
    judged = judge_all([caption("A red dog runs."), caption("a red dog runs"), caption("two cats sit here")], Gate())
    assert [one.flags for one in judged] == [(), ("duplicate",), ()]
    judged = judge_all([caption("एक लड़का पानी में खेल रहा है"), caption("एक लड़की पानी में खेल रही है")], Gate())
    assert [one.flags for one in judged] == [(), ()]  # a boy, a girl: marks tell them apart


def test_a_caption_below_the_least_similarity_is_unlike():
    gate = Gate(min_similarity=0.2)
    assert judge(caption("a red dog runs", similarity=0.19), (), gate).flags == ("unlike",)
    assert judge(caption("a red dog runs", similarity=0.2), (), gate).flags == ()


def test_redraws_replace_failing_captions_only_and_only_by_passing_ones():
    gate = Gate()
    first = judge_all(
        [caption("a 2 2 2 2"), caption("a red dog runs"), caption("a red dog runs"), caption("of the")], gate
    )
    drawn = [caption("two cats sit here"), caption("never looked at"), caption("two cats sit here"), caption("a tree")]
    judged = replace_failing(first, drawn, gate)
    assert [one.text for one in judged] == ["two cats sit here", "a red dog runs", "a red dog runs", "of the"]
    assert [bool(one.flags) for one in judged] == [False, False, True, True]
    assert judged[3].flags == degenerate_reasons("of the")  # the first draw stays where no redraw passes
