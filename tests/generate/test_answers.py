"""How answers are read: what is cut off and reported, JSON in all its forms, and that no answer takes long."""

import json
import time

import pytest

from captioners.replies import CUTS
from generate.captions.answers import read_answer
from imagetext import limits
from imagetext.columns import is_tags

FIELDS = {"positive": "syn_text_hq", "negative": "neg_text_hq", "tags": "tags_hq", "neg_tags": "neg_tags_hq"}
GIVEN = {"positive": "A dog.", "negative": "A cat.", "tags": ["dog", "grass"], "neg_tags": []}
READ = {"syn_text_hq": ("A dog.",), "neg_text_hq": ("A cat.",), "tags_hq": ("dog", "grass"), "neg_tags_hq": ()}
WHOLE = json.dumps(GIVEN)


@pytest.mark.parametrize(
    "text, answer, expected, cut",
    [
        ("A dog runs.", "text", "A dog runs.", ()),
        ("A dog runs.\nIt is wet.", "text", "A dog runs. It is wet.", ()),
        ("A dog runs.\nImage: a cat", "line", "A dog runs.", ("rest",)),
        ("\n  A dog runs.\n", "line", "A dog runs.", ()),
        ("Sure! Here is a caption:\n\nA dog runs.", "line", "A dog runs.", ("preamble",)),
        ("Sure! A dog runs.", "text", "A dog runs.", ("preamble",)),
        ("Here is a rewritten version of the caption: “A dog runs.”", "text", "A dog runs.", ("preamble", "quotes")),
        ("The rewritten caption is:\n\nA dog runs.", "text", "A dog runs.", ("preamble",)),
        ("Paraphrase: A dog runs.", "text", "A dog runs.", ("preamble",)),
        ("Here you go:\n**A dog runs.**", "text", "A dog runs.", ("markdown", "preamble")),
        ("=> A dog runs.", "line", "A dog runs.", ("list",)),
        ("1. A dog runs.", "line", "A dog runs.", ("list",)),
        ("(1) A dog runs.", "line", "A dog runs.", ("list",)),
        ("1. Dogs run.\n2. Cats sit.", "line", "Dogs run.", ("list", "rest")),
        ("Here are two captions:\n\n1. A dog runs.\n2. A cat.", "text", "A dog runs.", ("list", "preamble", "rest")),
        ("A dog runs.\n\n(Note: I kept the meaning.)", "text", "A dog runs.", ("rest",)),
        ("A dog runs.\n\nI replaced “sprints” with “runs”.", "text", "A dog runs.", ("rest",)),
        ("<think>a cat?</think>A dog runs.<|im_end|>\nA cat.", "text", "A dog runs.", ("thinking", "tokens")),
        ("<think>a cat?", "text", "", ("thinking",)),
        ("```\nA dog runs.\n```", "text", "A dog runs.", ("fence",)),
        ('{"caption": "A dog runs."}', "text", "A dog runs.", ("json",)),
        ("A dog runs.\nNote the red collar.", "text", "A dog runs. Note the red collar.", ()),
        ("1. FC Köln gegen Bayern", "text", "1. FC Köln gegen Bayern", ()),
        ("1. Mai in Berlin", "line", "1. Mai in Berlin", ()),
        ("Sure! deodorant on a shelf", "line", "Sure! deodorant on a shelf", ()),
        ("A sign says this caption", "text", "A sign says this caption", ()),
        ("", "line", "", ()),
    ],
)
def test_a_text_is_what_is_left_and_it_is_told_what_is_not(text, answer, expected, cut):
    result = read_answer(text, answer, {})
    assert result.texts == {"": (expected,)}
    assert result.cut == cut
    assert set(cut) <= CUTS.keys()
    assert result.finished == ("rest" in cut)


@pytest.mark.parametrize(
    "text, cut",
    [
        (WHOLE, ()),
        (json.dumps(GIVEN, indent=2), ()),
        (f"```json\n{WHOLE}\n```", ("fence",)),
        (f"Sure! Here it is:\n```\n{WHOLE}\n```\nI hope this helps!", ("fence", "preamble", "rest")),
        (f"<think>{WHOLE.replace('dog', 'cow')}</think>{WHOLE}<|im_end|>", ("thinking", "tokens")),
        (f"Of {{what}} is asked: {WHOLE}", ("preamble",)),
        (f"{WHOLE}\n{WHOLE}", ("rest",)),
        (json.dumps([GIVEN]), ()),
        (WHOLE[:-1] + ",}", ()),
        (json.dumps(GIVEN | {"tags": "dog, grass, Dog"}), ()),
        (json.dumps(GIVEN | {"tags": ["1. dog", "", "grass."]}), ()),
        (json.dumps(GIVEN | {"positive": ["A dog."], "more": {"positive": 1}}), ()),
        (json.dumps(GIVEN | {"positive": "A\0\ud83d dog."}), ()),
        (WHOLE.replace("A dog.", "A\n dog."), ()),
        (WHOLE.replace("positive", "Positive").replace("neg_tags", "Neg tags"), ()),
        (json.dumps(GIVEN | {"positive": 'Caption: "A dog."'}), ("preamble", "quotes")),
    ],
)
def test_json_is_read_in_what_a_model_puts_round_it(text, cut):
    result = read_answer(text, "json", FIELDS)
    assert result.texts == READ
    assert result.cut == cut and result.finished


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "no finished JSON"),
        ("A dog.", "no finished JSON"),
        (WHOLE[:-2], "no finished JSON"),
        (f"<think>{WHOLE}", "no finished JSON"),
        ("[" * 1000 + "{" * 1000, "no finished JSON"),
        ('{"a":' * 500 + "1" + "}" * 500, "no finished JSON"),
        (WHOLE.replace('"', "'"), "no finished JSON"),
        (json.dumps({"positive": "A dog."}), "missing: negative, tags, neg_tags"),
        (json.dumps({"answer": GIVEN}), "missing"),
        (f"{WHOLE}{WHOLE.replace('dog', 'cow')}", "2 JSON objects that differ"),
        (WHOLE.replace("{", '{"positive": "A cow.", ', 1), "twice: positive"),
        (json.dumps(GIVEN | {"positive": None}), "positive: expected texts, got null"),
        (json.dumps(GIVEN | {"positive": {"text": "A dog."}}), "positive: expected texts"),
        (json.dumps(GIVEN | {"positive": []}), "positive: an empty list"),
        (json.dumps(GIVEN | {"tags": ["dog", 1]}), "tags: expected texts"),
        ("x" * (limits.TEXT + 1), "more than 1,048,576 characters"),
    ],
)
def test_what_is_not_clear_is_not_read(text, why):
    with pytest.raises(ValueError, match=why):
        read_answer(text, "json", FIELDS)


def test_a_column_of_tags_is_known_by_its_name():
    assert [
        is_tags(name) for name in ("tags_hq", "neg_tags_hq", "tags", "neg_text_hq", "syn_text_tags", "tagset")
    ] == [
        *[True] * 3,
        *[False] * 3,
    ]


PARTS = (
    "{",
    '"',
    '{"a":',
    '\\"',
    "{}",
    '{"positive": ',
    ", ]",
    "```",
    "{ ,",
    "{a}",
    "\n\n Note",
    "1. A\n",
    "here is ",
    "[",
)


@pytest.mark.parametrize("part", PARTS)
def test_no_answer_takes_long(part):
    start = time.process_time()
    for text in (part * 20_000, "{" + part * 20_000, '{"' + part * 20_000 + "}"):
        read_answer(text, "line", {})
        with pytest.raises(ValueError):
            read_answer(text, "json", FIELDS)
    assert time.process_time() - start < 2
