"""The gate: where sentences end, which captions are refused, and which ones a redraw replaces."""

import json

import pytest

from captioners.base import Caption
from diversity.words.degenerate import REASONS, degenerate_reasons
from diversity.words.written import WRITTEN, Source
from generate.captions.gate import Gate, Judged, cut_sentences, judge, unparsed
from generate.captions.judged_answers import AnswerReader, JudgedAnswer
from generate.captions.refused import Refused
from generate.captions.tasks import Instructed


def caption(text, truncated=False, similarity=None):
    return Caption(text, -1.0, truncated, similarity=similarity)


NO_INSTRUCTION = Instructed(None)


def answer_reader(gate: Gate) -> AnswerReader:
    return AnswerReader(("syn_text_a",), "text", {}, gate=gate)


def judge_all(captions, gate: Gate, instructed: Instructed = NO_INSTRUCTION) -> list[Judged]:
    """Return the answers to one request, as judged in their only column."""
    return texts_of(answer_reader(gate).judge_all(captions, instructed))


def texts_of(answers: list[JudgedAnswer]) -> list[Judged]:
    return [text for answer in answers for text in answer.texts["syn_text_a"]]


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
        ("一只狗在草\ufffd", True, "all", ("一只狗在草", True)),  # a part of a character at the cut
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
    assert [judged_caption.flags for judged_caption in judged] == [(), ("duplicate",), ()]
    judged = judge_all([caption("एक लड़का पानी में खेल रहा है"), caption("एक लड़की पानी में खेल रही है")], Gate())
    assert [judged_caption.flags for judged_caption in judged] == [
        (),
        (),
    ]  # a boy and a girl: only combining marks differ


def test_a_tag_of_several_answers_stays_once_when_one_of_them_is_redrawn():
    def answer(words: str, *tags: str) -> Caption:
        return caption(json.dumps({"seen": words, "tags": tags}))

    reader = AnswerReader(
        ("syn_text_a", "tags_a"), "json", {"seen": "syn_text_a", "tags": "tags_a"}, gate=Gate(), from_words_alone=True
    )
    dog, cat = "A dog runs over the grass.", "A cat sleeps on the sofa."
    first = reader.judge_all([answer("the of", "dog"), answer(cat, "dog", "cat")], NO_INSTRUCTION)
    assert [judged.failing for judged in first] == [["syn_text_a"], []]
    for tags in (["dog"], ["bird"]):  # the redraw has the tag of the answer that it replaces, or lacks it
        answers = reader.replace_failing(first, [answer(dog, *tags), answer(cat)], NO_INSTRUCTION)
        assert [judged.failing for judged in answers] == [[], []]
        kept = [text.text for judged in answers for text in judged.texts["tags_a"] if not text.flags]
        assert sorted(kept) == sorted({"dog", "cat", *tags})


def test_a_caption_below_the_least_similarity_is_unlike():
    gate = Gate(min_similarity=0.2)
    assert judge(caption("a red dog runs", similarity=0.19), (), gate).flags == ("unlike",)
    assert judge(caption("a red dog runs", similarity=0.2), (), gate).flags == ()


def test_redraws_replace_failing_captions_only_and_only_by_passing_ones():
    gate = Gate()
    first = answer_reader(gate).judge_all(
        [caption("a 2 2 2 2"), caption("a red dog runs"), caption("a red dog runs"), caption("of the")], NO_INSTRUCTION
    )
    redrawn = [
        caption("two cats sit here"),
        caption("never looked at"),
        caption("two cats sit here"),
        caption("a tree"),
    ]
    answers = answer_reader(gate).replace_failing(first, redrawn, NO_INSTRUCTION)
    judged = texts_of(answers)
    assert [judged_caption.text for judged_caption in judged] == [
        "two cats sit here",
        "a red dog runs",
        "a red dog runs",
        "of the",
    ]
    assert [bool(judged_caption.flags) for judged_caption in judged] == [False, False, True, True]
    assert judged[3].flags == degenerate_reasons("of the")  # the first draw stays where no redraw passes

    refused = Refused()
    refused.update("syn_text_a", answers)
    refused.add_missing("syn_text_b", "k: it has no text")
    refused.add(refused.state())  # the counts of a second shard
    assert refused.lines()[-1] == "  syn_text_b: no answer for 2 of the records, such as k: it has no text"
    of_a = refused.state()["syn_text_a"]
    assert (of_a["answers"], of_a["refused"]) == (2 * 7, 2 * 5)  # three redraws; two answers are kept
    assert of_a["reasons"]["duplicate"] == 2 * 2
    assert refused.lines()[0].startswith("  syn_text_a: 10 of 14 answers were refused (")


def test_every_reason_of_written_text_is_a_flag_here():
    for name, reason in WRITTEN.items():
        for text, source, settings in reason.examples:
            judged = (
                unparsed(caption(text))
                if name == "unparsed"
                else judge(caption(text), (), Gate(**settings), source=source)
            )
            assert name in judged.flags
            assert judged.text == text and judged.drawn == caption(text)


def test_a_tag_may_be_short_and_is_no_sentence():
    source = Source(positive="grass", tag=True)
    assert [judge(caption(text), (), Gate(), source=source).flags for text in ("dog", "a dog,", "")] == [
        (),
        (),
        ("empty",),
    ]
    assert judge(caption("Grass"), (), Gate(), source=source).flags == ("both_lists",)
    assert judge(caption("dog.jpg"), (), Gate(), source=source).flags == ("nonwords",)


def test_a_negative_of_a_short_caption_may_be_as_short():
    def flags(text, positive):
        return judge(Caption(text, None, False), [], Gate(), source=Source(positive, positive=positive)).flags

    assert flags("blue heart", "red heart") == flags("blue heart", "a red heart\nred heart") == ()
    assert flags("blue heart", "a red heart") == ("short",)
    judged_caption = judge(Caption("blue heart", None, False), [], Gate(), source=Source("red heart"))  # no negative
    assert judged_caption.flags == ("short",)


def test_captions_that_were_made_of_nothing_are_judged_as_before():
    assert judge(caption("a red dog => a sign ```"), (), Gate(must_change=True, keep_facts=True)).flags == ()


def test_a_redraw_is_judged_beside_the_source_of_what_it_replaces():
    gate, instructed = Gate(must_change=True), Instructed("Say it in other words.", "a red dog runs")
    first = answer_reader(gate).judge_all([caption("A red dog runs."), caption("cats sit in a row")], instructed)
    assert [judged_caption.flags for judged_caption in texts_of(first)] == [("unchanged",), ()]
    answers = answer_reader(gate).replace_failing(first, [caption("a red dog runs"), caption("")], instructed)
    assert texts_of(answers)[0].flags == ("unchanged",)
    answers = answer_reader(gate).replace_failing(first, [caption("red dog running fast"), caption("")], instructed)
    assert texts_of(answers)[0].flags == ()
