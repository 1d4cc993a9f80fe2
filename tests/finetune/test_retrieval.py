"""Recall in closed form, and of a model with known features on captioned pictures."""

import pytest
import torch
import torch.nn.functional as F

from finetune.student.classes import HeldOutClasses
from finetune.student.config import StudentConfig
from finetune.student.model import load_student
from finetune.student.retrieval import choice, recall, retrieval, usable_records
from imagetext.sample import Record, decode_image
from imagetext.sources import read_samples

from .sets import picture, write_student


def slow_recall(image, text, right, first):
    """Return the share of pictures with a right caption among the first, by a slow count."""
    hits = 0
    for row, its in zip(image @ text.T, right):
        best = sorted(range(len(row)), key=lambda index: -row[index])[:first]
        hits += any(its[index] for index in best)
    return hits / len(image)


def test_recall_is_the_slow_count():
    random = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(count, 4, generator=random), dim=-1) for count in (9, 23))
    right = torch.rand(9, 23, generator=random) < 0.15
    scores = recall(image, text, right)
    for first in (1, 5):
        assert scores[f"image_to_text_r{first}"] == pytest.approx(slow_recall(image, text, right, first))
        assert scores[f"text_to_image_r{first}"] == pytest.approx(slow_recall(text, image, right.T, first))


def test_all_is_found_where_features_are_alike_and_nothing_where_they_are_shifted():
    features = torch.eye(8)
    assert set(recall(features, features, features.bool()).values()) == {1.0}
    shifted = recall(features, features.roll(1, 0), features.bool())
    assert shifted["image_to_text_r1"] == shifted["text_to_image_r1"] == 0


def test_choices_are_counted_pair_by_pair_and_picture_by_picture():
    """One picture has no negative, one wins both of its pairs, one wins two of six; equal is not nearer."""
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.6, 0.8]])
    scores = choice(image, text, [([0], [1, 2]), ([1], []), ([3, 2], [0, 2, 1])])
    assert scores == {"with_negative": pytest.approx(2 / 3), "choice": pytest.approx((1 + 2 / 6) / 2)}
    assert choice(image, text, [([0], []), ([1], []), ([2], [])]) == {}


def test_negatives_are_no_captions_to_be_found(tmp_path):
    """Recall is as without negatives. Texts of other columns, and those that are captions, are not negatives."""
    negatives = {"neg_text_a": ("a bus", "A  dog"), "tags_a": ("a tram",), "syn_text_a": ("a train",)}
    samples = [Record("a", picture(0), ("a dog",), negatives), Record("b", picture(1), ("a cat",))]
    student, asked = load_student(write_student(tmp_path)), []
    tokenizer = student.tokenizer
    student.tokenizer = lambda texts: asked.extend(texts) or tokenizer(texts)
    plain = retrieval(student, samples)
    scores = retrieval(student, samples, "^neg_text")
    assert asked == ["a dog", "a cat", "a dog", "a cat", "a bus"]
    assert scores == plain | {"with_negative": 0.5, "choice": scores["choice"]} and scores["choice"] in (0, 1)


def test_captions_of_the_same_words_are_one(tmp_path):
    samples = [
        Record(name, picture(number), captions)
        for number, (name, captions) in enumerate({"a": ("a dog", "a cat"), "b": ("a dog",), "c": ("a bird",)}.items())
    ]
    student, asked = load_student(write_student(tmp_path)), []
    tokenizer = student.tokenizer
    student.tokenizer = lambda texts: asked.extend(texts) or tokenizer(texts)
    scores = retrieval(student, samples)
    assert asked == ["a dog", "a cat", "a bird"] and scores["image_to_text_r5"] == scores["text_to_image_r5"] == 1
    student.model.train()
    assert retrieval(student, samples) == scores and student.model.training


def test_in_half_precision_features_are_still_compared_in_full(tmp_path):
    """The cosines 0.9988 and 0.9999 are one number in bfloat16, in which a student may embed."""
    for number, label in enumerate(("far", "near", "near", "near")):
        (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / label / f"{number}.png").write_bytes(picture(number))
    texts = torch.tensor([0.05, 0.01])[:, None]
    texts = torch.cat([texts.cos(), texts.sin()], dim=1)  # of far and near
    student = load_student(write_student(tmp_path / "student"))
    student.model.encode_image = lambda images, normalize: torch.tensor([[1.0, 0.0]]).expand(len(images), 2)
    classes = HeldOutClasses(
        StudentConfig(input=["x"], student="x", output="x", eval_classes=[str(tmp_path / "set")], templates="name"),
        quiet=True,
    )
    with torch.autocast("cpu", torch.bfloat16):
        student.model.encode_text = lambda tokens, normalize: texts
        assert classes.scores(student)["zero_shot_top1"] == 0.75
        student.model.encode_text = lambda tokens, normalize: texts.flip(0)
        samples = [Record("a", picture(0), ("near",), {"neg_text_a": ("far",)})]
        assert retrieval(student, samples, "^neg_text")["choice"] == 1


def test_pictures_are_seen_as_open_clip_shows_them(tmp_path):
    samples = [sample for shard in read_samples("scenes:test,n=3,size=40") for sample in shard]
    student, batches = load_student(write_student(tmp_path)), []
    encode = student.model.encode_image
    student.model.encode_image = lambda images, normalize: (
        batches.append(images) or encode(images, normalize=normalize)
    )
    retrieval(student, samples)
    import open_clip

    *_, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}", load_weights=False)
    assert torch.equal(batches[0], torch.stack([preprocess(decode_image(sample.image)) for sample in samples]))


def test_what_has_no_caption_or_picture_is_left_out():
    good = Record("good", picture(0), ("a dog",))
    mute, broken = Record("mute", picture(0), (" ",)), Record("broken", b"x", ("a dog",))
    failed = Record("failed", None, ("a dog",), failed_before=True)
    usable, rejects = usable_records([good, mute, broken, failed], quiet=True)
    assert usable == [good] and [key for key, _ in rejects] == ["mute", "broken"]
    assert rejects[0][1] == "no caption" and "not a picture" in rejects[1][1]
    with pytest.raises(ValueError, match="--eval-input: no usable captioned picture:\n  none: "):
        usable_records([Record("none", None)], quiet=True)
