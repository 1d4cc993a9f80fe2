"""CLIPScore, RefCLIPScore and the search for pictures, against loops over a real model and over chosen vectors."""

import io
import json
import os
from itertools import combinations
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import captioners
from diversity.measures import clip_score
from diversity.measures.clip_score import clip_scores, search
from diversity.measures.embedders import OpenClip
from imagetext.sample import decode_image
from imagetext.scenes.draw import SceneSpec, scene_sample

COCA_TINY = Path(captioners.__file__).parent / "models" / "coca_tiny"
PAIRS = Path(os.environ.get("CAPSMITH_DATA", Path(__file__).parents[3] / "shared" / "data")) / "clipscore_pairs"


@pytest.fixture(scope="module")
def scenes():
    """Forty built-in pictures with their captions."""
    spec = SceneSpec.parse("scenes:val,n=40")
    return [scene_sample(spec, index) for index in range(40)]


@pytest.fixture(scope="module")
def clip():
    return OpenClip(str(COCA_TINY))


# --- against loops ---------------------------------------------------------------------------------------------------


def slow_scores(images, groups, references, pool_size, human):
    """One picture and one text at a time, by open_clip alone."""
    name = f"local-dir:{COCA_TINY}"
    model, transform = open_clip.create_model_from_pretrained(name)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()

    def embed(encode, inputs):
        with torch.no_grad():
            vector = encode(inputs)[0].double().numpy()
        return vector / np.sqrt((vector**2).sum())

    def text(caption):
        return embed(model.encode_text, tokenizer(["A photo depicts " + caption]))

    pictures = {}
    for number, image in enumerate(images):
        try:
            pictures[number] = embed(model.encode_image, transform(decode_image(image))[None])
        except ValueError:
            continue
    pool = list(pictures)[:pool_size]
    texts = [[text(caption) for caption in group] for group in groups]

    def nearest_of(vector):
        return max(pool, key=lambda other: vector @ pictures[other])

    names = ("clip_score", "ref_clip_score", "r_at_1", "r_at_5", "image_coverage", "found_clip", "consistency")
    result = {name: np.full(len(images), np.nan) for name in names}
    for number, group in enumerate(texts):
        scores, with_references, ranks = [], [], []
        for caption, vector in zip(groups[number], group):
            if number in pictures:
                scores.append(2.5 * max(vector @ pictures[number], 0))
                others = [reference for reference in references[number] if not (human and reference == caption)]
                nearest = max((max(vector @ text(reference), 0) for reference in others), default=np.nan)
                with_references.append(2 / (1 / scores[-1] + 1 / nearest) if scores[-1] * nearest else 0)
            if number in pool:
                ranks.append(
                    sum(
                        vector @ pictures[other] >= vector @ pictures[number] - 1e-6
                        for other in pool
                        if other != number
                    )
                )
        if scores:
            result["clip_score"][number], result["ref_clip_score"][number] = np.mean(scores), np.mean(with_references)
        if ranks:
            for n in (1, 5):
                result[f"r_at_{n}"][number] = np.mean([rank < n for rank in ranks])
            others = [vector @ pictures[number] for other in pool if other != number for vector in texts[other]]
            result["found_clip"][number] = 1 - np.mean(ranks) / (len(pool) - 1)
            pairs = [nearest_of(first) == nearest_of(other) for first, other in combinations(group, 2)]
            result["consistency"][number] = np.mean(pairs) if pairs else np.nan
            result["image_coverage"][number] = max(vector @ pictures[number] for vector in group) > max(others)
    return result


@pytest.mark.parametrize("human", [False, True])
def test_scores_equal_loops(monkeypatch, clip, scenes, human):
    monkeypatch.setattr(clip_score, "POOL", 9)
    monkeypatch.setattr(clip_score, "AT_ONCE", 4)
    images = [sample.image for sample in scenes[:12]]
    images[2], images[7] = b"no picture", None
    references = [list(sample.captions[: number % 4 + 1]) for number, sample in enumerate(scenes[:12])]
    if human:
        groups = [group[:3] for group in references]
    else:  # of the picture, and of another one
        groups = [
            [*sample.captions[: number % 3], *scenes[number - 1].captions[: number % 2]]
            for number, sample in enumerate(scenes[:12])
        ]
    result, _ = clip_scores(
        clip,
        images,
        {"other": [["a"]] * 12, "column": groups},
        references=references,
        human="column" if human else None,
    )
    expected = slow_scores(images, groups, references, 9, human)
    assert result["column"].pictures.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(result["column"].pictures[name], values, atol=1e-5, err_msg=name)
        assert np.isfinite(values).any() and np.isnan(values).any()
        assert result["column"].row[name] == pytest.approx(np.nanmean(values), abs=1e-5)
    assert [len(scores) for scores in result["column"].captions] == [len(group) for group in groups]
    for number, scores in enumerate(result["column"].captions):
        if len(scores):
            np.testing.assert_allclose(scores.mean(), expected["clip_score"][number], atol=1e-5)
    assert result["column"].row["pool"] == 9


def test_true_captions_beat_those_of_another_picture(clip, scenes):
    """A real model, if a small one: coca_tiny and its pictures."""
    true = [list(sample.captions[:2]) for sample in scenes]
    result, _ = clip_scores(clip, [sample.image for sample in scenes], {"true": true, "wrong": true[1:] + true[:1]})
    true, wrong = result["true"].row, result["wrong"].row
    assert true["clip_score"] > 1.2 * wrong["clip_score"]
    assert true["r_at_1"] > 0.3 and true["r_at_5"] > 0.6 and true["image_coverage"] > 0.4
    assert wrong["r_at_1"] < 0.1 and wrong["r_at_5"] < 0.3 and wrong["image_coverage"] < 0.1


@pytest.mark.skipif("CAPSMITH_CLIP" not in os.environ, reason="CAPSMITH_CLIP: names no open_clip model")
@pytest.mark.skipif(not PAIRS.is_dir(), reason=f"CAPSMITH_DATA: no {PAIRS}")
def test_good_captions_of_photographs_beat_bad_ones():
    """The model is what CAPSMITH_CLIP names, e.g. ViT-B-32:openai."""
    captions = {
        name: json.loads((PAIRS / f"{name}.json").read_text()) for name in ("good_captions", "bad_captions", "refs")
    }
    keys = sorted(captions["refs"])
    result, _ = clip_scores(
        OpenClip(os.environ["CAPSMITH_CLIP"]),
        [(PAIRS / f"{key}.jpg").read_bytes() for key in keys],
        {name: [[captions[name][key]] for key in keys] for name in ("good_captions", "bad_captions")},
        references=[captions["refs"][key] for key in keys],
    )
    good, bad = result["good_captions"].pictures, result["bad_captions"].pictures
    for score in ("clip_score", "ref_clip_score"):
        assert (good[score] > bad[score]).all()


# --- closed forms ----------------------------------------------------------------------------------------------------


class Chosen:
    """Stands for a model: texts and pictures have the vectors that are chosen for them."""

    name, context_length = "chosen", 5

    def __init__(self, texts, pictures):
        self.texts, self.pictures, self.embedded = texts, pictures, []

    def transform(self, picture):
        return torch.tensor(picture.size[0])

    def embed_pictures(self, widths):
        self.embedded += widths.tolist()
        return torch.tensor([self.pictures[width] for width in widths.tolist()], dtype=torch.float32)

    def embed_texts(self, texts):
        return torch.tensor([self.texts[text.removeprefix("A photo depicts ")] for text in texts], dtype=torch.float32)

    def count_cut(self, texts):
        return sum(len(text.split()) > self.context_length for text in texts)


def png(width):
    buffer = io.BytesIO()
    Image.new("RGB", (width, 1)).save(buffer, "PNG")
    return buffer.getvalue()


EYE = np.eye(8).tolist()
HALF = (np.array(EYE[0]) + EYE[1]) / 2**0.5  # between the first two pictures


def chosen(count=7):
    texts = {f"of {number}": EYE[number] for number in range(count)}
    texts |= {"opposite": [-1.0, *[0.0] * 7], "none": EYE[7], "half": HALF.tolist(), "all": [1.0] * 8}
    return Chosen(texts, {number + 1: EYE[number] for number in range(count)}), [
        png(number + 1) for number in range(count)
    ]


def test_clip_score_is_a_scaled_cosine_and_refclipscore_its_harmonic_mean():
    clip, images = chosen()
    groups = [["of 0", "none"], ["of 1"], ["half"], [], ["of 4"], ["of 5"], ["of 6"]]
    references = [["of 0"], ["of 1", "none"], ["half"], ["of 3"], ["none"], [], ["half", "all"]]
    result, _ = clip_scores(clip, images, {"a": groups}, references=references)
    cosine = 1 / 8**0.5
    np.testing.assert_allclose(result["a"].captions[0], [2.5, 0], atol=1e-6)
    np.testing.assert_allclose(result["a"].pictures["clip_score"], [1.25, 2.5, 0, np.nan, 2.5, 2.5, 2.5], atol=1e-6)
    np.testing.assert_allclose(
        result["a"].pictures["ref_clip_score"],  # harmonic means of 2.5 and 1, 0 and 0, 0 and 1, 2.5 and 0
        [5 / 3.5 / 2, 5 / 3.5, 0, np.nan, 0, np.nan, 5 * cosine / (2.5 + cosine)],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        result["a"].pictures["r_at_1"], [0.5, 1, 0, np.nan, 1, 1, 1]
    )  # "none" is as near to all
    np.testing.assert_allclose(
        result["a"].pictures["r_at_5"], [0.5, 1, 0, np.nan, 1, 1, 1]
    )  # "half" to five others at least
    np.testing.assert_allclose(result["a"].pictures["image_coverage"], [1, 1, 0, np.nan, 1, 1, 1])


def test_captions_agree_that_find_the_same_picture_right_or_wrong():
    clip, images = chosen()
    groups = [["of 0"] * 2, ["of 0", "of 0", "of 1"], ["of 2", "of 3"], ["none", "none"], ["of 4"], [], ["of 5"] * 4]
    result, _ = clip_scores(clip, images, {"a": groups})
    np.testing.assert_allclose(result["a"].pictures["consistency"], [1, 1 / 3, 0, 0, np.nan, np.nan, 1])
    assert result["a"].row["consistency"] == pytest.approx((1 + 1 / 3 + 1) / 5)
    alone, _ = clip_scores(clip, images[:1], {"a": [["of 0", "of 0"]]})
    assert alone["a"].row["consistency"] is None


def test_negative_cosines_count_as_zero():
    clip, images = chosen()
    result, _ = clip_scores(clip, images, {"a": [["opposite"]] * 7}, references=[["of 0"]] * 7)
    assert result["a"].row["clip_score"] == 0 and result["a"].row["ref_clip_score"] == 0
    result, _ = clip_scores(clip, images[:1], {"a": [["of 0"]]}, references=[["opposite"]])
    assert result["a"].row["clip_score"] == pytest.approx(2.5) and result["a"].row["ref_clip_score"] == 0


def test_ties_count_against():
    """Beside two equally near pictures a caption finds none first; one caption for all pictures finds none of them."""
    pictures = np.array(EYE)[:7]
    for caption, r_at_1, r_at_5 in ((HALF, [0, 0], [1, 1]), (np.ones(8), [0, 0], [0, 0])):
        result = search(np.stack([caption, caption]), np.array([0, 1]), pictures, pool=np.arange(7))
        assert result["r_at_1"][:2].tolist() == r_at_1 and result["r_at_5"][:2].tolist() == r_at_5
        assert result["image_coverage"][:2].tolist() == [0, 0] and np.isnan(result["image_coverage"][2:]).all()


def test_a_pool_that_no_caption_can_miss_gives_no_score():
    clip, images = chosen()
    for count, defined in (
        (1, []),
        (2, ["r_at_1", "image_coverage"]),
        (5, ["r_at_1", "image_coverage"]),
        (6, ["r_at_1", "r_at_5", "image_coverage"]),
    ):
        row = clip_scores(clip, images[:count], {"a": [[f"of {number}"] for number in range(count)]})[0]["a"].row
        assert [name for name in ("r_at_1", "r_at_5", "image_coverage") if row[name] is not None] == defined
        assert row["clip_score"] == pytest.approx(2.5) and row["pool"] == count


def test_a_human_caption_is_no_reference_of_itself():
    clip, images = chosen()
    groups, references = [["of 0"], ["of 1"]], [["of 0", "half"], ["of 1"]]
    alone, _ = clip_scores(clip, images[:2], {"a": groups}, references=references)
    human, _ = clip_scores(clip, images[:2], {"a": groups}, references=references, human="a")
    np.testing.assert_allclose(alone["a"].pictures["ref_clip_score"], [5 / 3.5] * 2, rtol=1e-6)
    np.testing.assert_allclose(
        human["a"].pictures["ref_clip_score"], [5 * HALF[0] / (2.5 + HALF[0]), np.nan], rtol=1e-6
    )


# --- what is said of it ----------------------------------------------------------------------------------------------


def test_pictures_are_embedded_once_for_all_columns_and_those_that_do_not_decode_are_told():
    clip, images = chosen()
    images[1:3] = b"", None
    columns = {"a": [["none"]] * 7, "b": [["half"]] * 7}
    result, notes = clip_scores(clip, images, columns)
    assert clip.embedded == [1, 4, 5, 6, 7]
    for scores in result.values():
        assert np.isnan(scores.pictures["clip_score"]).tolist() == [False, True, True, False, False, False, False]
        assert np.isnan(scores.captions[1]).all() and scores.row["pool"] == 5
    assert notes == (
        "2 pictures do not decode and have no CLIPScore, e.g.: empty picture file",
        "Captions search their picture among 5 pictures, not 1,000, so they find it more easily.",
    )
    assert clip_scores(clip, [None] * 7, columns) == (
        {},
        ("None of the 7 pictures decodes, so there is no CLIPScore, e.g.: missing picture",),
    )


def test_cut_captions_and_ones_own_are_told(monkeypatch):
    monkeypatch.setattr(clip_score, "POOL", 7)
    clip, images = chosen()
    clip.texts["one two three"] = EYE[0]
    columns = {
        "syn_text_a": [["one two three"]] * 3 + [["of 1", "of 2"]] * 4,
        "syn_text_chosen": [["of 1"]] * 7,
        "b": [["of 1"]] * 7,
    }
    result, notes = clip_scores(clip, images, columns)
    assert [scores.row["cut"] for scores in result.values()] == [3, 0, 0]
    assert notes == (
        "a: the text tower of chosen reads 5 tokens and cut 3 of 11 captions.",
        "chosen: chosen wrote these captions and scores them, which favours them.",
    )
