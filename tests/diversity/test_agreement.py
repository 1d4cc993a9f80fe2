"""Agreement with human captions: CIDEr-D, the search for the own picture, and people among themselves."""

import numpy as np
import pytest

from diversity import score_captions
from diversity.measures.agreement import Agreement, WordSearch, share_behind, strange
from diversity.measures.references import CiderD, cider_d
from diversity.measures.semantic import HumanCaptions
from diversity.words.tokens import words

from .made_up_captions import made_up_pictures

HUMAN = [picture["references"][:3] for picture in made_up_pictures(12)]
CAPTIONS = [picture["references"][3:] for picture in made_up_pictures(12)]


def slow_share(caption, picture, human, left_out=None):
    """Mean cosines of tf-idf vectors, word by word."""
    vocabulary = sorted({word for group in human for text in group for word in words(text)})
    weight = {
        word: np.log(len(human) / sum(any(word in words(text) for text in group) for group in human))
        for word in vocabulary
    }

    def vector(text):
        result = np.array([words(text).count(word) * weight[word] for word in vocabulary])
        return result / (np.linalg.norm(result) or 1)

    likeness = [
        np.mean([vector(caption) @ vector(text) for text in group if (index, text) != (picture, left_out)])
        for index, group in enumerate(human)
    ]
    others = np.delete(likeness, picture)
    return np.mean(others < likeness[picture] - 1e-9) + np.mean(np.abs(others - likeness[picture]) <= 1e-9) / 2


def test_the_search_for_the_own_picture_equals_a_slow_one():
    human, captions = HUMAN[:5], [group[:1] for group in CAPTIONS[:5]]
    result = Agreement(human).score(captions).pictures["found_words"]
    np.testing.assert_allclose(
        result,
        [np.mean([slow_share(caption, index, human) for caption in group]) for index, group in enumerate(captions)],
        atol=1e-6,
    )
    themselves = Agreement(human).score(human, themselves=True).pictures["found_words"]
    np.testing.assert_allclose(
        themselves,
        [
            np.mean([slow_share(caption, index, human, caption) for caption in group])
            for index, group in enumerate(human)
        ],
        atol=1e-6,
    )


def test_captions_without_a_known_word_are_as_near_to_all():
    search = WordSearch([[words(text) for text in group] for group in HUMAN])
    assert search.share_behind(["xyzzy"], 3) == 0.5 and strange(0.5) == 1
    assert share_behind(np.array([0.5, 0.2, 0.9]), 0) == 0.5 and np.isnan(share_behind(np.ones(1), 0))


def test_the_share_that_may_be_of_other_pictures():
    groups = [HUMAN[(index + 1) % 12][:1] if index % 2 else CAPTIONS[index][:1] for index in range(12)]
    signs = Agreement(HUMAN).score(groups).signs["strange_words"]
    assert signs[::2].mean() < 0.2 < 0.5 < signs[1::2].mean()


def test_a_caption_s_cider_does_not_depend_on_how_many_captions_others_have():
    scores = Agreement(HUMAN).score([group[:2] for group in CAPTIONS]).captions
    ragged = Agreement(HUMAN).score([group[: 1 + index % 2] for index, group in enumerate(CAPTIONS)]).captions
    plain = cider_d([words(group[0]) for group in CAPTIONS], [[words(text) for text in group] for group in HUMAN])
    for index, of_picture in enumerate(ragged):
        np.testing.assert_array_equal(of_picture, scores[index][: 1 + index % 2])
        assert of_picture[0] == pytest.approx(plain[index], rel=1e-12)


def test_human_captions_are_held_against_the_others_of_their_picture():
    result = Agreement(HUMAN).score([group[:1] for group in HUMAN], themselves=True)
    texts = [[words(text) for text in group] for group in HUMAN]
    world = CiderD(texts)
    np.testing.assert_allclose(result.pictures["cider_d"], [world.score(group[0], group[1:]) for group in texts])
    assert np.isnan(
        Agreement([["a cat"], ["a dog"]]).score([["a cat"], ["a dog"]], themselves=True).pictures["cider_d"]
    ).all()


def test_meaning_searches_as_words_do():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(9, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    counts, captions = np.array([2, 3, 4]), vectors[[0, 3, 8]]
    means = [vectors[:2].mean(0), vectors[2:5].mean(0), vectors[5:].mean(0)]
    expected = [
        share_behind(np.array([caption @ of for of in means]), index) for index, caption in enumerate(captions)
    ]
    assert HumanCaptions(vectors, counts).shares_behind(captions, np.ones(3, int)).tolist() == expected
    alone = [share_behind(np.array([captions[0] @ vectors[1], captions[0] @ means[1], captions[0] @ means[2]]), 0)]
    assert (
        HumanCaptions(vectors, counts).shares_behind(captions[:1], np.array([1, 0, 0]), themselves=True).tolist()
        == alone
    )


def test_a_report_has_every_measure_against_people():
    report = score_captions({"mine": [group[:1] for group in CAPTIONS]}, references=HUMAN)
    for column in ("mine", "captions"):
        row, intervals = report.rows[column], report.intervals[column]
        assert all(0 < row[name] for name in ("cider_d", "rouge_l", "meteor", "found_words"))
        for name in ("cider_d", "rouge_l", "meteor", "found_words"):
            assert intervals[name].low <= row[name] <= intervals[name].high
    assert report.rows["mine"]["bleu_4"] >= 0


def test_ragged_counts_are_one_mean_over_pictures():
    """Nine broken captions of every other picture, one good one of the others: half on average, not 90 %."""
    groups = [["a 2 2 2 2"] * 9 if index % 2 else CAPTIONS[0][:1] for index in range(40)]
    report = score_captions({"mine": groups})
    row, interval = report.rows["mine"], report.intervals["mine"]
    assert (row["degenerate"], row["degenerate_reasons"]["loop"]) == pytest.approx((0.5, 0.5))
    for name, score in (("degenerate", "degenerate"), ("length_mean", "length"), ("duplicates", "duplicates")):
        assert interval[score].low <= row[name] <= interval[score].high and interval[score].mean == pytest.approx(
            row[name]
        )
    assert any("50.0" in sentence for sentence in report.answer)


def test_the_interval_of_a_sample_is_about_the_number_of_all(monkeypatch):
    from diversity import score
    from diversity.inputs.count import count_captions

    groups = [["a dog runs"] if index % 3 else ["a 2 2 2 2"] for index in range(90)]
    report = score.report(count_captions({"mine": groups}, size=10))
    assert report.rows["mine"]["degenerate"] == pytest.approx(1 / 3)
    assert report.intervals["mine"]["degenerate"].mean == pytest.approx(1 / 3)
