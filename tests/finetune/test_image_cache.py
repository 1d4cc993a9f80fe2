"""The cached outputs of a frozen image tower: right, reused, refused if too large, and used in training."""

import shutil

import pytest
import torch
from accelerate import Accelerator

import finetune.captioner.image_cache
from captioners.coca.forward import encode_images
from captioners.load import load_captioner
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.image_cache import cache_images
from finetune.captioner.pictures import CaptionedPictures
from finetune.captioner.run import run
from imagetext.scenes.draw import SceneSpec, scene_sample
from imagetext.sources import read_samples

SCENES = "scenes:train,n=13,size=48"


@pytest.fixture(scope="module")
def pictures():
    return CaptionedPictures(read_samples([SCENES]), load_captioner("coca_tiny"), quiet=True)


def cached(pictures, folder):
    return cache_images(pictures, folder, Accelerator(cpu=True), batch_size=4, num_workers=0)


def test_they_are_the_image_towers_and_kept(pictures, tmp_path, monkeypatch, capsys):
    image = cached(pictures, tmp_path / "cache")
    assert "0.00 GB" in capsys.readouterr().out
    model = pictures.captioner.model
    for index in (0, 7, 12):
        with torch.no_grad():
            features, tokens = model._encode_image(pictures.captioner.normalise(pictures.image(index)[None]))
        for ours, theirs in zip(image(index), (features[0], tokens[0]), strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours, theirs, rtol=2**-8, atol=1e-4)  # bfloat16 has 8 bits
    monkeypatch.setattr(finetune.captioner.image_cache, "_encode", None)
    assert torch.equal(cached(pictures, tmp_path / "cache")(5)[1], image(5)[1])


def test_those_of_other_weights_or_pictures_and_damaged_ones_are_made_anew(pictures, tmp_path):
    before = cached(pictures, tmp_path / "cache")(3)[0].clone()
    (tmp_path / "cache" / "done.json").write_bytes(b"\0")
    assert torch.equal(cached(pictures, tmp_path / "cache")(3)[0], before)
    other = CaptionedPictures(read_samples([SCENES]), load_captioner("coca_tiny", from_scratch=True), quiet=True)
    assert not torch.allclose(cached(other, tmp_path / "cache")(3)[0], before, atol=0.01)


def test_a_picture_of_the_same_key_and_other_bytes_is_another_one(tmp_path):
    """A picture file may have been replaced since."""
    for index in (0, 1):
        sample = scene_sample(SceneSpec("train", size=48), index)
        (tmp_path / "picture.png").write_bytes(sample.image)
        (tmp_path / "picture.txt").write_text("a circle")
        pictures = CaptionedPictures(read_samples(str(tmp_path)), load_captioner("coca_tiny"), quiet=True)
        features, model = cached(pictures, tmp_path / "cache")(0)[0], pictures.captioner.model
        with torch.no_grad():
            expected = model._encode_image(pictures.captioner.normalise(pictures.image(0)[None]))[0][0]
        torch.testing.assert_close(features, expected, rtol=2**-8, atol=1e-4)


def test_a_full_disk_is_said_before_anything_is_encoded(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match=r"cache: 0\.00 GB of image tower outputs do not fit"):
        cached(pictures, tmp_path / "cache")


def test_what_memory_does_not_hold_is_encoded_in_halves(pictures, tmp_path, monkeypatch):
    expected, sizes = [tensor.clone() for tensor in cached(pictures, tmp_path / "whole")(6)], []

    def encode(model, images, products):
        if len(images) > 3:
            raise torch.OutOfMemoryError
        sizes.append(len(images))
        return encode_images(model, images, products=products)

    monkeypatch.setattr(finetune.captioner.image_cache, "encode_images", encode)
    image = cache_images(pictures, tmp_path / "halves", Accelerator(cpu=True), batch_size=13, num_workers=0)
    assert max(sizes) <= 3 and sum(sizes) == 1 + 13  # the first is encoded for its shape
    for ours, theirs in zip(image(6), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=1e-4)


def test_what_is_frozen_stays_and_the_rest_learns(tmp_path):
    run(
        FinetuneConfig(
            input=[SCENES],
            model="coca_tiny",
            output=tmp_path / "run",
            samples_seen=64,
            batch_size=8,
            learning_rate=1e-3,
            num_workers=0,
            device="cpu",
            freeze_image=True,
            hold_out=0,
        )
    )
    before, after = (load_captioner(name).model.state_dict() for name in ("coca_tiny", str(tmp_path / "run")))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith("visual.") for name in changed)
    assert "text_decoder.text_projection" in changed
    assert not (tmp_path / "run" / "image_cache").exists()  # removed at the end of the run
