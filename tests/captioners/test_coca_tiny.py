"""The built-in captioner: it is small, loads everywhere, looks at the picture, and has its own tokenizer."""

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from captioners.base import Request, SamplingConfig
from captioners.load import load_captioner
from captioners.resolve import SHIPPED
from imagetext.sample import decode_image
from imagetext.scenes.draw import SceneSpec, scene_sample
from imagetext.scenes.facts import facts_of, true_facts

FOLDER = SHIPPED / "coca_tiny"


@pytest.fixture(scope="module")
def captioner():
    return load_captioner("coca_tiny")


@pytest.fixture(scope="module")
def tokenizer():
    return open_clip.get_tokenizer(f"local-dir:{FOLDER}")


def test_weights_are_small_and_half_precision():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10e6
    assert {weight.dtype for weight in load_file(FOLDER / "open_clip_model.safetensors").values()} == {torch.float16}


def test_open_clip_loads_it_strictly():
    model = open_clip.create_model(f"local-dir:{FOLDER}", require_pretrained=True)
    assert model.text.vocab_size == 1024


def test_open_clip_trains_the_weights_that_we_train():
    model = open_clip.create_model(f"local-dir:{FOLDER}")
    assert all(weight.requires_grad for weight in model.parameters())


def test_ids_come_from_the_tokenizer(captioner, tokenizer):
    ids = tokenizer(["A red circle"])[0]
    inner = tokenizer.tokenizer
    assert captioner.encode_text_ids("A red circle") == ids[: (ids != inner.pad_token_id).sum()].tolist()
    assert (captioner.start_id, captioner.end_id, captioner.pad_id) == (
        inner.bos_token_id,
        inner.eos_token_id,
        inner.pad_token_id,
    )
    assert len(ids) == captioner.context_length == 76


@given(st.text(max_size=40))
def test_text_round_trips_up_to_open_clips_cleaning(captioner, tokenizer, text):
    assert captioner.decode(captioner.encode_text_ids(text)) == tokenizer.clean_fn(text).strip()


def test_a_token_a_word(captioner):
    caption = (
        "there are two objects, a large striped red circle and a small dotted white heart, on a plain grey background"
    )
    assert len(captioner.encode_text_ids(caption)) == len(caption.replace(",", " ,").split()) + 2


def test_it_looks_at_the_picture(captioner):
    spec = SceneSpec("val", level=1)
    samples = [scene_sample(spec, index) for index in range(40)]
    pictures = [Request(sample.key, captioner.preprocess(decode_image(sample.image))) for sample in samples]
    stated = true = 0
    for sample, captioned in zip(samples, captioner.caption(pictures, SamplingConfig(num_captions=5))):
        for caption in captioned.captions:
            facts = {fact for fact in facts_of(caption.text) if fact.kind in ("colour", "shape")}
            stated += len(facts)
            true += len(facts & true_facts(sample.meta["scene"]))
    assert stated > 100 and true / stated > 0.9  # 1/8 and 1/6 without looking
