"""Losses on the tokens of captions only, with and without adapters; trained models load again."""

import re

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

from captioners.vlm.captioner import VLMCaptioner
from captioners.vlm.load import load_vlm

from .models import FAMILIES, all_captions, pictures_for

LIKE_OTHERS = (
    "llava_next",
    "llava_onevision",
    "internvl",
    "qwen3_vl",
    "gemma3",
    "paligemma",
)  # in training, as llava and qwen2_vl are
CAPTIONS = ["a red circle left of a blue square", "two green stars", "a blue square", "stars on a dotted background"]


def batch_of(captioner: VLMCaptioner, captions=CAPTIONS) -> tuple[list[torch.Tensor], torch.Tensor]:
    pictures = [request.picture for request in pictures_for(captioner, len(captions))]
    ids = [captioner.encode_text_ids(caption) for caption in captions]
    tokens = torch.full((len(ids), max(map(len, ids)) + 1), captioner.pad_id)
    for row, caption_ids in zip(tokens, ids, strict=True):
        row[: len(caption_ids)] = torch.tensor(caption_ids)
    return pictures, tokens


def caption_loss(captioner: VLMCaptioner, pictures: list[torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of the captions' tokens."""
    return F.cross_entropy(*captioner.caption_logits(pictures, tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_transformers_own_on_the_captions_tokens_alone(family, captioner_of):
    captioner = captioner_of(family)
    pictures, tokens = batch_of(captioner)
    with torch.no_grad():
        logits, labels = captioner.caption_logits(pictures, tokens)
        loss = caption_loss(captioner, pictures, tokens)
    ids = [captioner.encode_text_ids(caption)[1:] for caption in CAPTIONS]
    assert (
        labels.tolist() == [token for caption in ids for token in caption]
        and labels.tolist().count(captioner.answer_end) == 4
    )
    assert logits.shape == (len(labels), captioner.vocabulary)
    expected = 0.0
    for picture, caption in zip(pictures, ids, strict=True):
        prompt = captioner.family.fit(captioner.prompt, picture)
        sequence = torch.tensor([[*prompt.ids, *caption]])
        inputs = captioner.family.inputs(picture[None], [prompt], sequence, mask=torch.ones_like(sequence))
        marked = sequence.clone()
        marked[:, : len(prompt.ids)] = -100
        if family == "florence2":  # whose labels are what follows, and not what is fed
            marked = torch.cat([marked[:, 1:], torch.tensor([[-100]])], dim=1)
        with torch.no_grad():
            expected += captioner.model(**inputs, labels=marked).loss.item() * len(caption) / len(labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_of_one_picture_train_together_and_it_is_encoded_once(family, folder_of):
    """Loss and gradients equal those of pictures that are repeated for each caption."""
    captioner = load_vlm(folder_of(family))
    pictures, tokens = batch_of(captioner)
    sizes_encoded, gradients, losses = [], [], []
    tower = captioner.model.get_submodule(captioner.family.vision)
    tower.register_forward_hook(
        lambda module, args, output: sizes_encoded.append(output.last_hidden_state.shape.numel())
    )
    for repeated_pictures, captions in (
        ([pictures[i] for i in (0, 0, 1, 1)], tokens),
        (pictures[:2], tokens.view(2, 2, -1)),
    ):
        captioner.model.zero_grad()
        losses.append(caption_loss(captioner, repeated_pictures, captions))
        losses[-1].backward()
        gradients.append(
            {name: weight.grad for name, weight in captioner.model.named_parameters() if weight.grad is not None}
        )
    assert sizes_encoded[0] == 2 * sizes_encoded[1] and losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
    assert losses[0] != caption_loss(captioner, pictures, tokens)
    assert gradients[0].keys() == gradients[1].keys() and any(
        name.startswith(captioner.family.vision) for name in gradients[0]
    )
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", ["idefics3", "git", "blip", "qwen2_vl"])
def test_the_head_gets_the_captions_tokens_alone(family, captioner_of):
    captioner = captioner_of(family)
    head = captioner.model.get_submodule(captioner.family.decoder).get_output_embeddings()
    shapes = []
    hook = head.register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    with torch.no_grad():
        _, labels = captioner.caption_logits(*batch_of(captioner))
    hook.remove()
    assert [shape[:-1] for shape in shapes] == [labels.shape]


def test_a_caption_that_was_cut_trains_no_end(captioner_of):
    captioner = captioner_of("llava")
    pictures, tokens = batch_of(captioner)
    tokens[tokens == captioner.answer_end] = captioner.pad_id
    with torch.no_grad():
        _, labels = captioner.caption_logits(pictures, tokens)
    assert captioner.answer_end not in labels.tolist() and len(labels) == sum(
        len(captioner.encode_text_ids(caption)) - 2 for caption in CAPTIONS
    )


def train(captioner: VLMCaptioner, steps: int = 6) -> tuple[float, float]:
    """The loss before and after this many steps on four captions, without dropout."""
    pictures, tokens = batch_of(captioner)
    trained = [parameter for parameter in captioner.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-2)
    losses = []
    for _ in range(steps):
        loss = caption_loss(captioner, pictures, tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        return losses[0], caption_loss(captioner, pictures, tokens).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_for_linear_layers_of_the_language_model_alone(family, captioner_of):
    captioner = captioner_of(family)
    modules = dict(captioner.model.named_modules())
    chosen = {name for name in modules if re.fullmatch(captioner.language_layers(), name)}
    assert chosen and all(
        isinstance(modules[name], torch.nn.Linear) and name.startswith(captioner.family.language) for name in chosen
    )
    assert not any(last in name for name in chosen for last in ("lm_head", "predictions.decoder"))
    some = sorted(name.rpartition(".")[2] for name in chosen)[0]
    assert {name for name in modules if re.fullmatch(captioner.language_layers([some]), name)} < chosen


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in LIKE_OTHERS])
def test_a_few_steps_with_lora_lower_the_loss_and_load_again(family, folder_of, captioner_of, tmp_path):
    captioner = load_vlm(folder_of(family))
    before, captions = (
        {name: value.clone() for name, value in captioner.model.state_dict().items()},
        all_captions(captioner),
    )
    captioner.add_lora(r=4, alpha=8, dropout=0.0)
    assert all_captions(captioner) == captions  # fresh adapters change nothing
    first, last = train(captioner)
    assert last < 0.8 * first
    after = captioner.model.state_dict()
    assert all(
        torch.equal(
            after[
                name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
                if name not in after
                else name
            ],
            value,
        )
        for name, value in before.items()
    )
    adapted = {name for name in after if "lora_A" in name}
    assert adapted and all(name.startswith(captioner.family.language) for name in adapted)
    assert not any(last in name for name in adapted for last in ("lm_head", "predictions.decoder"))
    captioner.save(tmp_path, "tuned")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "capsmith.json", "tokenizer.json"} <= names
    assert not names & {"model.safetensors", "config.json", "README.md"} and not any(
        name.startswith(".saving") for name in names
    )
    loaded = load_vlm(tmp_path)
    assert loaded.name == "tuned" and "LoRA adapters" in loaded.description
    assert all_captions(loaded) == all_captions(captioner) != captions
    assert {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad} == {
        name for name, parameter in captioner.model.named_parameters() if parameter.requires_grad
    }
    assert loaded.weights_sha256 != captioner.weights_sha256 == captioner_of(family).weights_sha256


@pytest.mark.parametrize("family", ["blip", "llava"])
def test_full_training_lowers_the_loss_and_loads_again(family, folder_of, tmp_path):
    captioner = load_vlm(folder_of(family), instruction="a dotted background")
    first, last = train(captioner)
    assert last < 0.8 * first
    captioner.save(tmp_path, "tuned")
    loaded = load_vlm(tmp_path)
    assert (loaded.name, loaded.instruction) == ("tuned", "a dotted background")
    assert all_captions(loaded) == all_captions(captioner)
    assert load_vlm(tmp_path, instruction="stars").instruction == "stars"


def test_adapters_go_where_they_are_told_and_only_once(folder_of):
    captioner = load_vlm(folder_of("llava"))
    captioner.add_lora(target_modules=["q_proj"])
    names = {name for name in captioner.model.state_dict() if "lora_A" in name}
    assert names and all("q_proj" in name for name in names)
    with pytest.raises(ValueError, match="tiny_llava: has adapters already"):
        captioner.add_lora()


@pytest.mark.parametrize(
    "kind", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}]
)
def test_adapters_of_every_kind_that_peft_writes_are_merged_as_they_compute(kind, folder_of, captioner_of, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(folder_of("qwen2_vl"))
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], **kind))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter")
    captioner = load_vlm(tmp_path / "adapter", base=folder_of("qwen2_vl"))
    captioner.merges = True
    captioner.save(tmp_path / "merged", "mine")
    merged, batch = load_vlm(tmp_path / "merged"), batch_of(captioner)
    assert merged.model.state_dict().keys() == captioner_of("qwen2_vl").model.state_dict().keys()
    with torch.no_grad():
        (logits, _), (expected, _) = merged.caption_logits(*batch), captioner.caption_logits(*batch)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
