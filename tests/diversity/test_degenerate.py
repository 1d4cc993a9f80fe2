"""What is refused, and what is not: lists of each kind, in many languages, and time in proportion to the length."""

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diversity import nonwords
from diversity.degenerate import REASONS, degenerate_reasons
from diversity.suspects import suspects
from diversity.tokens import encode, words

DATA = Path(os.environ.get("CAPSMITH_DATA", Path(__file__).parents[3] / "shared/data"))


@pytest.mark.parametrize(("reason", "caption"),
                         [(name, caption) for name, reason in REASONS.items() for caption in reason.examples])
def test_the_examples_of_each_reason_have_it(reason, caption):
    assert reason in degenerate_reasons(caption)


@pytest.mark.parametrize("caption", [
    "a red circle left of two blue squares", "St. Louis at night", "a close-up of a 4x4 on gate A",
    "A man looking on.", "a child with a dog behind her", "A large clock on top a a building", "The year 1984 in 3 pictures",
    "There is a house. The house is white. The house is old.", "a very, very large dog", "Two men and two women",
    "Flight BA2490 at 10:30:15", "a plate of 1,000,000 grains", "Louis XIII and Henry VIII", "a rhythm and blues band",
    "Ein Kind spielt mit einem Ball im Garten", "un gato negro en la mesa", "红色的圆在蓝色的方块左边", "зелёный круг на столе",
    "a sign that reads www.example.org above the door of a small shop", "Terminals A and B from above",
    "a red circle and a red square and a blue circle", "a dog ... and its ball",
])
def test_good_captions(caption):
    assert degenerate_reasons(caption) == ()


@pytest.mark.parametrize(("caption", "reasons"), [
    ("a 2 2 2 2", ("loop", "digits")),
    ("a zebra standing standing a and grass a on a round tree", ("broken",)),
    ("very very very large dog", ("loop",)),
    ("a dog and a cat and a dog and a cat and", ("loop", "cut")),
    ("the wall. the wall. is red", ("loop",)),
    ("sitting on a", ("cut",)),
    ("a man in a hat (", ("cut",)),
    ("DSC_0042.JPG", ("nonwords",)),
    ("a\x00b red dog", ("nonwords",)),
    ("zzzzz", ("short", "nonwords")),
    ("!?", ("empty",)),
    ("\ud800", ("empty",)),
])
def test_degenerate_captions(caption, reasons):
    assert degenerate_reasons(caption) == reasons


BITS = st.sampled_from([*"a the The A of and-so with dog cat x on 1 23 4567890 9a a1b2 zzz bcdfg a.jpg www.a :// www.".split(),
                        *",.(!'_", "\ufffd", "\0", "\x1c", "\x7f", "ﾠ", "红", "w" * 25, "w" * 70])
BETWEEN = st.sampled_from([" ", "  ", "", "\n", "\u00a0", "\x1f", " \0 "])
NASTY = st.lists(st.tuples(BITS, BETWEEN), max_size=9).map(lambda pairs: "".join(map("".join, pairs)))


@settings(max_examples=500, deadline=None)
@given(st.lists(NASTY, min_size=1, max_size=6))
@example(["the wall. the cat sat. sat. the wall"])
@example(["two dogs run 1", "2", "3 dogs run here"])
def test_captions_that_are_not_suspects_have_no_reason(captions):
    found = suspects(captions, encode([captions]))
    reasons = [degenerate_reasons(caption) for caption in captions]
    assert [of for of, suspect in zip(reasons, found, strict=True) if not suspect and of] == []
    alone = [suspects([caption], encode([[caption]]))[0] for caption in captions]
    assert found.tolist() == alone or any("\0" in caption for caption in captions)


def test_one_fault_is_enough_to_be_a_suspect():
    captions = [caption for reason in REASONS.values() for caption in reason.examples]
    captions += ["a red\ufffd dog runs here", "a red \x1c dog runs here", "a \0 red dog runs here", "shop 20190304221 on a road"]
    assert [caption for caption in captions if not suspects([caption], encode([[caption]]))[0]] == []
    good = ["a red dog runs here", "photo 4 17 of 20 dogs", "The dog and the cat", "a house by www.example.org in a street"]
    assert not suspects(good, encode([good])).any()


@pytest.mark.parametrize("length", [1, 2, 63, 64])
def test_loops_are_suspects_at_every_length(length):
    unit = [f"word{at}" for at in range(length)]
    captions = [" ".join(["start", *unit * 3, "end"]), " ".join(["start", *unit, "end", *unit, "x"])]
    assert suspects(captions, encode([captions])).tolist() == [True, False]


def test_a_truncated_mark_is_a_cut():
    assert degenerate_reasons("a red circle left of two blue squares", truncated=True) == ("cut",)


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("length", [2, 3, 17, 63])
def test_loops_of_every_length_are_found_when_they_close(repeats, length):
    unit = [f"word{at}" for at in range(length)]
    assert ("loop" in degenerate_reasons(" ".join(["start", *unit * repeats, "end"]))) == (repeats == 2)


def test_a_loop_that_repeats_within_its_unit():
    assert "loop" in degenerate_reasons("a b x a b y a b x a b y")


def test_long_texts_take_no_time():
    text = " ".join(f"the house {at} of the street" for at in range(5_000))
    assert degenerate_reasons(text) == ()  # would take minutes if each pair were compared with each earlier one


def test_people_hardly_ever_write_degenerate_captions():
    file = DATA / "coco1000.json"
    if not file.exists():
        pytest.skip(f"no real test data at {DATA} (see CAPSMITH_DATA)")
    pictures = json.loads(file.read_text())
    human = [caption for picture in pictures for caption in picture["references"]]
    found = Counter(bool(degenerate_reasons(caption)) for caption in human)
    assert len(human) == 5005
    assert found[True] / len(human) < 0.005  # 10 of 5,005, and those are loops and cut sentences
    suspected = suspects(human, encode([human]))
    assert {caption for caption, suspect in zip(human, suspected) if suspect} >= set(filter(degenerate_reasons, human))
    assert suspected.mean() < 0.01  # so that few are looked at one by one
    machine = [caption for picture in pictures for caption in picture["candidates"]]
    assert {caption for caption in machine if degenerate_reasons(caption)} == {
        caption for caption in machine if caption.startswith("close up of a close up of")}


@settings(max_examples=300, deadline=None)
@given(st.text("ab.:/9 \u2003ééxz\n", max_size=40), st.sampled_from(["", "zzz", "bcdfg", " ://x", "x" * 80]))
def test_what_may_hold_no_words_is_the_same_chunk_by_chunk(caption, part):
    """`_has_nonwords` looks at the chunks, each remembered, instead of at the whole caption: no pattern reaches over a space."""
    caption = (caption + part).lower()
    assert any(map(nonwords._is_suspicious, caption.split())) == (nonwords._SUSPICIOUS.search(caption) is not None)


@pytest.mark.parametrize("caption", ["", "a red dog", "A cat a cat.", "of the"])
def test_words_that_are_known_are_not_looked_for_again(caption):
    assert degenerate_reasons(caption, False, words(caption)) == degenerate_reasons(caption)
