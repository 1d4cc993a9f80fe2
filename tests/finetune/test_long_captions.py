"""Captions longer than the context: what is kept, and an end token only where a sentence ends."""

from itertools import accumulate

import pytest
import regex

from captioners.coca.tokenizer import CaptionTokenizer
from captioners.load import load_captioner
from finetune.long_captions import CaptionFitter, length_warning

TEXT = "Two cats sit. One is red! It looks up? The other, which is much larger and older than the red one, sleeps on."


def encode(text):
    """Return a token for each word: 1, then word lengths + 10, then 2."""
    return [1, *(len(word) + 10 for word in text.split()), 2]


def decode(ids):
    """Return as many words of the text as there are word tokens."""
    return " ".join(TEXT.split()[: words(ids)])


def words(ids):
    return len([token for token in ids if token > 2])


def test_what_fits_is_left_as_it_is():
    for mode in ("sentence", "word", "token"):
        assert CaptionFitter(encode, decode, 99, mode=mode)(TEXT, 5) == encode(TEXT)


def test_runs_of_whole_sentences_are_drawn():
    fit = CaptionFitter(encode, decode, 9, mode="sentence")  # room for seven words
    runs = [fit(TEXT, draw) for draw in range(4)]
    assert runs[0] == runs[3] == encode("Two cats sit. One is red!")
    assert runs[1] == encode("One is red! It looks up?") and runs[2] == encode(
        "It looks up?"
    )  # the last sentence is too long


def test_where_no_sentence_fits_words_do_and_nothing_ends():
    fit = CaptionFitter(encode, decode, 3, mode="sentence")
    assert fit(TEXT, 0) == encode("Two cats")[:-1]


def test_words_have_no_end_token_and_tokens_have_one():
    assert CaptionFitter(encode, decode, 7, mode="word")(TEXT, 0) == encode("Two cats sit. One is red!")[:-1]
    assert CaptionFitter(encode, decode, 7, mode="token")(TEXT, 0) == [*encode("Two cats sit. One is")[:6], 2]


@pytest.mark.parametrize("mode", ["sentence", "word", "token"])
@pytest.mark.parametrize("limit", [4, 9, 20, 40])
def test_nothing_is_over_the_limit_with_a_real_tokenizer(mode, limit):
    captioner = load_captioner("coca_tiny", from_scratch=True)
    text = (
        "A red circle and a blue square on a plain grey background. The zygomorphic pareidolia is small. "
        "Antidisestablishment."
    )
    fit = CaptionFitter(captioner.encode_text_ids, captioner.decode, limit, mode=mode)
    for draw in range(3):
        ids = fit(text, draw)
        assert 1 < len(ids) <= limit and ids[0] == captioner.start_id
        if mode != "token" and ids[-1] == captioner.end_id:
            assert captioner.decode(ids).endswith(".")


def test_a_word_longer_than_the_context_is_cut_within():
    assert CaptionFitter(lambda text: [1, *text.encode(), 2], decode, 4, mode="word")("abcdefgh", 0) == [1, 97, 98, 99]


def test_a_text_without_blanks_is_cut_at_sentences_and_never_inside_a_character():
    def encode(text):
        return [1, *text.encode(), 2]  # three tokens for each Chinese character

    text = "红色的圆。蓝色的圆！一个很大很大的绿色的方块"
    fit = CaptionFitter(encode, decode, 35, mode="sentence")
    assert [bytes(fit(text, draw)[1:-1]).decode() for draw in range(2)] == ["红色的圆。蓝色的圆！", "蓝色的圆！"]
    assert bytes(CaptionFitter(encode, decode, 12, mode="sentence")(text, 0)[1:]).decode() == "红色的"
    assert (
        bytes(CaptionFitter(encode, decode, 9, mode="word")("लड़की", 0)[1:]).decode() == "ल"
    )  # the next character has a mark


@pytest.fixture(scope="module", params=["of bytes", "CLIP's"])
def tokenizer(request):
    """Two tokenizers in which one character may take several tokens."""
    if request.param == "CLIP's":
        return CaptionTokenizer({"text_cfg": {}}, None)
    return load_captioner("coca_tiny", from_scratch=True).tokenizer


@pytest.mark.parametrize("mode", ["sentence", "word", "token"])
@pytest.mark.parametrize(
    "text",
    [
        "红色的圆形在浅色背景上" * 9,
        "👩🏽\u200d🚀🇨🇿👨\u200d👩\u200d👧" * 9,
        "लड़की खड़ी है " * 9,
        "a dog 🐕" * 30,
        "e" + "\u0301" * 300,
        "a cafe\u0301 in town " * 20,
    ],
)
def test_no_mode_cuts_inside_a_character(tokenizer, mode, text):
    text = tokenizer.decode(tokenizer.encode(text))  # as the tokenizer writes it
    ends = {len(text[:end].strip()) for end in accumulate(map(len, regex.findall(r"\X", text)))}
    for limit in range(20, 45):
        ids = CaptionFitter(tokenizer.encode, tokenizer.decode, limit, mode=mode)(text, 0)
        text_left = tokenizer.decode(ids)
        assert len(ids) <= limit and text_left and text.startswith(text_left)
        assert len(text_left) in ends if len(ends) > 1 else "\ufffd" not in text_left
        assert (ids[-1] == tokenizer.end_id) is (mode == "token")


def test_tokens_of_words_are_cut_as_open_clip_cuts_them(tokenizer):
    text = "Antidisestablishmentarianism and a zygomorphic pareidolia of cats and dogs " * 4
    ids = tokenizer.encode(text)
    for limit in range(4, 30):
        fit = CaptionFitter(tokenizer.encode, tokenizer.decode, limit, mode="token")
        assert fit(text, 0) == [*ids[: limit - 1], tokenizer.end_id]


def test_each_sentence_is_tokenised_once():
    encoded = []
    text = " ".join(f"Dog {number} runs." for number in range(1_000))
    fit = CaptionFitter(lambda text: encoded.append(text) or encode(text), decode, 20, mode="sentence")
    for draw in range(3):
        assert fit(text, draw) == encode(" ".join(f"Dog {number} runs." for number in range(draw, draw + 6)))
    assert len(encoded) == 3 + 1_000 + 3  # three times the caption and its run, once each sentence


def test_a_run_that_needs_more_tokens_than_its_sentences_is_made_shorter():
    fit = CaptionFitter(lambda text: encode(text + " x" * text.count(". ")), decode, 9, mode="sentence")
    assert fit(TEXT, 0) == encode("Two cats sit. One is red! x")


def test_the_warning_says_how_many_how_long_and_what_would_fit():
    assert length_warning([10] * 80 + [77] * 20, 76) == ""
    warning = length_warning([10] * 50 + [100] * 49 + [127], 76)
    assert warning.splitlines()[0] == "50% of the captions have more than the context's 76 tokens:"
    assert "1 to   76 tokens  50% " + "█" * 20 in warning and "77 to  127 tokens  50%" in warning
    assert warning.endswith("a context of 128 would hold 99% of them")
    assert length_warning([300] * 9, 76).endswith("no context up to 256 would hold 99% of them")
