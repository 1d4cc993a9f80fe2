"""Pictures and prompts equal those of the families' own processors."""

import pickle

import pytest
import torch
from PIL import Image

from captioners.vlm.load import load_vlm
from captioners.vlm.pictures import original_size

from .models import FAMILIES, OWN_ASPECT, edit


@pytest.mark.parametrize("family", OWN_ASPECT)
def test_pictures_keep_their_aspect_and_take_no_more_tokens_than_the_captioner_counts_with(family, captioner_of):
    captioner = captioner_of(family)
    preprocess = pickle.loads(pickle.dumps(captioner.preprocess))
    lengths = set()
    for size in ((32, 32), (100, 40), (40, 100), (7, 90), (1, 1)):
        picture = preprocess(Image.effect_noise(size, 60).convert("RGB"))
        prompt = captioner.family.fit(captioner.prompt, picture)
        assert len(prompt.ids) <= len(captioner.prompt.ids) and picture.dtype == torch.float32
        lengths.add(len(prompt.ids))
    assert len(lengths) > 1


def test_the_size_of_a_picture_comes_through_half_precision(captioner_of):
    picture = captioner_of("llava_next").preprocess(Image.new("RGB", (1023, 2047)))
    assert original_size(picture) == original_size(picture.bfloat16()) == (2047, 1023)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in OWN_ASPECT])
def test_pictures_of_any_shape_become_tensors_of_one_without_the_model(family, captioner_of):
    preprocess = captioner_of(family).preprocess
    assert len(pickle.dumps(preprocess)) < 20_000  # so that it can go to workers; the model alone is more
    same = pickle.loads(pickle.dumps(preprocess))
    for size in ((32, 32), (100, 40), (7, 90)):
        image = Image.effect_noise(size, 60).convert("RGB")
        assert preprocess(image).shape == (3, 32, 32) and preprocess(image).dtype == torch.float32
        assert torch.equal(preprocess(image), same(image))


@pytest.mark.parametrize("family", ["blip", "blip-2", "git", "llava"])
def test_pictures_are_prepared_as_transformers_prepares_them(family, captioner_of):
    captioner, image = captioner_of(family), Image.effect_noise((100, 40), 60).convert("RGB")
    expected = captioner.processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(captioner.preprocess(image), expected)


def test_qwens_patches_are_those_of_its_processor(captioner_of):
    captioner, photo = captioner_of("qwen2_vl"), Image.effect_noise((31, 20), 60).convert("RGB")
    ids = torch.tensor([captioner.prompt.ids])
    ours = captioner.family.inputs(
        captioner.preprocess(photo)[None], [captioner.prompt], ids, mask=torch.ones_like(ids)
    )
    expected = captioner.processor.image_processor(images=photo, return_tensors="pt")
    torch.testing.assert_close(ours["pixel_values"], expected["pixel_values"])
    assert torch.equal(ours["image_grid_thw"], expected["image_grid_thw"])


def test_after_the_template_a_caption_is_what_the_template_would_make_it(copy_of):
    """This template has a blank before a message's text, but none before the text to generate."""
    captioner = load_vlm(copy_of("llava"))
    assert captioner.prompt.lead == " "
    ids = [*captioner.prompt.ids, *captioner.encode_text_ids("a red circle")[1:]]
    answer = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": captioner.instruction}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a red circle"}]},
    ]
    text = captioner.tokenizer.decode(ids).replace("<image>" * 16, "<image>")
    expected = captioner.processor.apply_chat_template(answer)
    assert text.removeprefix("<s>") + "\n" == expected and expected.endswith("<|im_end|>\n")


def test_thoughts_that_a_template_begins_are_closed_before_the_caption(copy_of):
    folder = copy_of("qwen3_vl")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if add_generation_prompt %}<think>\n{% endif %}")
    captioner = load_vlm(folder)
    assert captioner.tokenizer.decode(captioner.prompt.ids).endswith("<think>\n\n</think>\n\n")


def test_a_caption_has_the_templates_tokens_where_the_tokenizer_begins_every_text_with_a_blank(copy_of):
    """As LLaMA's tokenizers do, those of LLaVA 1.5: the template's own blank must not become a second one."""
    folder = copy_of("llava")
    edit(folder / "tokenizer.json", lambda content: content.update(normalizer={"type": "Prepend", "prepend": " "}))
    captioner = load_vlm(folder)
    answer = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": captioner.instruction}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a red circle"}]},
    ]
    chat = captioner.processor.apply_chat_template(answer).replace("<image>", "<image>" * 16)
    expected = captioner.tokenizer(chat)["input_ids"]
    ids = [*captioner.prompt.ids, *captioner.encode_text_ids("a red circle")[1:]]
    assert ids == expected[: len(ids)] and captioner.tokenizer.decode(expected[len(ids) :]).strip() == ""


@pytest.mark.parametrize("tail, end", [(" </s>", "</s>"), ("!", "</s>"), ("<end_of_utterance>", "</s>")])
def test_without_an_end_in_the_template_a_caption_ends_with_the_tokenizers(tail, end, copy_of):
    """The last tail is a special token that ends no caption of this model."""
    folder = copy_of("llava")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>\n", tail))
    captioner = load_vlm(folder)
    assert captioner.prompt.tail == tail
    assert captioner.tokenizer.convert_ids_to_tokens(captioner.encode_text_ids("a red circle")[-1]) == end
