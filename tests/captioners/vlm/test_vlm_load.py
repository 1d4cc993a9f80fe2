"""Loading from folders, adapters and the hub: no code is run, and errors name what is wrong."""

import importlib.util
import json
import math
import shutil

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from captioners import safe_reading
from captioners.base import SamplingConfig
from captioners.vlm.load import load_vlm

from .models import FAMILIES, edit, pictures_for


def test_without_a_dtype_weights_are_as_their_file_has_them_and_are_merged_so(copy_of, tmp_path):
    folder = copy_of("llava")
    save_file(
        {name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    edit(folder / "config.json", lambda config: config.update(dtype="bfloat16"))
    captioner = load_vlm(folder, dtype=None)
    captioner.add_lora(r=2, alpha=3, dropout=0.25, target_modules=["q_proj", "v_proj"])
    dtypes = {name: weight.dtype for name, weight in captioner.model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "lora_" not in name} == {torch.bfloat16}
    config = captioner.adapter.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (
        2,
        3,
        0.25,
        {"q_proj", "v_proj"},
    )
    with torch.no_grad():
        for name, weight in captioner.model.named_parameters():
            if "lora_B" in name:
                weight += torch.randn_like(weight)
    captioner.merges = True
    before = {name: weight.clone() for name, weight in captioner.model.state_dict().items()}
    captioner.save(tmp_path / "merged", "mine")
    assert all(torch.equal(weight, before[name]) for name, weight in captioner.model.state_dict().items())
    weights, original = load_file(tmp_path / "merged" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert weights.keys() == original.keys() and {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    different = {name for name in weights if not torch.equal(weights[name], original[name])}
    assert different and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in different)
    merged = load_vlm(tmp_path / "merged")
    assert (
        merged.adapter is None and merged.name == "mine" and not (tmp_path / "merged" / "adapter_config.json").exists()
    )
    name = next(
        name
        for name in merged.model.state_dict()
        if name.endswith("layers.0.self_attn.q_proj.weight") and "language" in name
    )
    layer = captioner.model.get_submodule(name.removesuffix(".weight"))
    expected = layer.base_layer.weight.float() + 1.5 * (
        layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    )
    assert torch.equal(merged.model.state_dict()[name], expected.bfloat16().float())


def test_half_precision_keeps_rotary_embeddings_and_the_weights_hash(folder_of):
    half, full = load_vlm(folder_of("llava"), dtype="bf16"), load_vlm(folder_of("llava"))
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    rotary = [buffer for name, buffer in half.model.named_buffers() if "inv_freq" in name]
    assert rotary and all(buffer.dtype == torch.float32 for buffer in rotary)
    assert half.weights_sha256 == full.weights_sha256 != load_vlm(folder_of("git")).weights_sha256
    assert len(list(half.caption(pictures_for(half), SamplingConfig(num_captions=2)))) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_captions_in_half_precision(family, folder_of):
    """It is the default on a GPU."""
    half = load_vlm(folder_of(family), dtype="bf16")
    sampling = SamplingConfig(num_captions=2, max_length=6)
    assert [len(captioned.captions) for captioned in half.caption(pictures_for(half, 2), sampling)] == [2, 2]


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="weights in 4 bits need bitsandbytes")
def test_in_four_bits_the_large_matrices_are_small_and_the_rest_is_precise(copy_of):
    folder = copy_of("llava")
    weights = {name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", lambda config: config.update(dtype="bfloat16"))
    captioner, full_precision = load_vlm(folder, four_bit=True), load_vlm(folder)
    parameters = dict(captioner.model.named_parameters())
    small = {name for name, parameter in parameters.items() if parameter.dtype == torch.uint8}
    assert small and all(
        name.endswith(("_proj.weight", "fc1.weight", "fc2.weight", "linear_1.weight", "linear_2.weight"))
        for name in small
    )
    assert {parameters[name].dtype for name in parameters.keys() - small} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in parameters.values())
    assert (
        "in 4 bits" in captioner.description
        and captioner.description.splitlines()[0] == full_precision.description.splitlines()[0]
    )
    assert len(list(captioner.caption(pictures_for(captioner), SamplingConfig(num_captions=2)))) == 4


def test_the_description_says_what_was_loaded(folder_of):
    captioner = load_vlm(folder_of("llava"))
    lines = captioner.description.splitlines()
    assert [line.split(":")[0] for line in lines] == ["architecture", "context", "pictures", "weights"]
    assert "tiny_llava, LlavaForConditionalGeneration" in lines[0] and captioner.name == "tiny_llava"
    assert "'Describe this picture in one sentence.'" in lines[1] and "32 x 32 px" in lines[2]
    assert str(folder_of("llava")) in lines[3]


def test_all_problems_of_the_arguments_are_told_at_once(folder_of, monkeypatch):
    monkeypatch.setattr("captioners.vlm.load.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match="dtype 'int8' is none of fp32.*; four_bit needs bitsandbytes"):
        load_vlm(folder_of("llava"), dtype="int8", four_bit=True)


def test_a_model_of_another_family_is_refused(copy_of):
    folder = copy_of("llava")
    edit(folder / "config.json", lambda config: config.update(model_type="bert"))
    with pytest.raises(ValueError, match=f"{folder}: model_type 'bert' is none of blip, blip-2, git, llava"):
        load_vlm(folder)


def test_a_blip_2_with_an_encoder_decoder_is_refused(tmp_path):
    hf.Blip2Config(text_config={"model_type": "t5"}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: text_config.model_type 't5' is not a decoder"):
        load_vlm(tmp_path)


def test_a_weight_that_is_missing_is_named(copy_of):
    folder = copy_of("llava")
    weights = load_file(folder / "model.safetensors")
    gone = [next(name for name in weights if part in name) for part in ("mlp.up_proj", "v_proj")]
    for name in gone:
        del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError) as caught:
        load_vlm(folder)
    assert str(folder) in str(caught.value) and all(
        name.removeprefix("language_model.") in str(caught.value) for name in gone
    )


def test_weights_that_are_not_finite_are_named(copy_of):
    folder = copy_of("blip")
    weights = load_file(folder / "model.safetensors")
    weights["vision_model.post_layernorm.bias"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{folder}: 1 of its weights hold numbers that are not finite: vision_model"):
        load_vlm(folder)


class Harmful:
    def __reduce__(self):
        return (open, ("harm", "w"))


@pytest.mark.parametrize("where", ["model", "adapter_model", "fitting model"])
def test_weights_that_could_run_code_are_refused_and_run_nothing(copy_of, tmp_path, monkeypatch, where):
    """Pickles are not even opened: harmless ones are refused as harmful ones are."""
    monkeypatch.chdir(tmp_path)
    folder = copy_of("llava")
    if "model" in where.split():
        weights = load_file(folder / "model.safetensors") if where.startswith("fitting") else Harmful()
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        base = shutil.copytree(folder, tmp_path / "base")
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base)})
        )
        torch.save(Harmful(), folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=str(folder)):
        load_vlm(folder, base=str(base) if where == "adapter_model" else None)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("config, problem", [
    (
        {"peft_type": "IA3", "base_model_name_or_path": 3},
        "peft_type is 'IA3', not 'LORA'; base_model_name_or_path is 3",
    ),
    ({"peft_type": "LORA", "base_model_name_or_path": "/nowhere/base"}, "/nowhere/base: cannot read its config"),
])  # fmt: skip
def test_an_adapters_config_that_will_not_do_is_named(tmp_path, config, problem):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=problem):
        load_vlm(tmp_path)


def test_an_adapter_that_lacks_weights_is_refused(folder_of, tmp_path):
    captioner = load_vlm(folder_of("git"))
    captioner.add_lora(r=2)
    captioner.save(tmp_path, "tuned")
    weights = load_file(tmp_path / "adapter_model.safetensors")
    weights["extra.lora_A.weight"] = weights.pop(gone := sorted(weights)[0])
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError) as caught:
        load_vlm(tmp_path)
    assert f"missing {gone}" in str(caught.value) and "unexpected extra.lora_A.weight" in str(caught.value)


def test_a_local_base_is_read_where_we_wrote_it_or_it_is_said(copy_of, tmp_path, monkeypatch):
    """An adapter that is not trusted may name any local folder; that folder is not loaded."""
    base = copy_of("git")
    captioner = load_vlm(base)
    captioner.add_lora(r=2)
    captioner.save(tmp_path / "ours", "tuned")
    assert load_vlm(tmp_path / "ours").weights_sha256
    strangers = shutil.copytree(tmp_path / "ours", tmp_path / "strangers")
    (strangers / "capsmith.json").unlink()
    with pytest.raises(ValueError, match=f"base_model_name_or_path is {base}, a local folder.*say --base {base}"):
        load_vlm(strangers)
    monkeypatch.chdir(tmp_path)
    for name in (str(base), base.name, f"local-dir:{base}"):
        loaded = load_vlm(strangers, base=name)
        assert loaded.adapter.peft_config["default"].base_model_name_or_path == str(base)
    assert loaded.weights_sha256 == load_vlm(tmp_path / "ours").weights_sha256
    edit(base / "config.json", lambda config: config.update(note="another"))
    with pytest.raises(ValueError, match="not as it was when the adapter was trained"):
        load_vlm(tmp_path / "ours")


HOSTILE = {  # what a folder's file holds, and what is said of it in one line
    "deep": ("config.json", "[" * 100_000, "not JSON"),
    "endless": (
        "config.json",
        {"text_config": {"num_hidden_layers": 10**9}},
        "num_hidden_layers is 1000000000, at most 1,000",
    ),
    "huge": (
        "config.json",
        {"vision_config": {"hidden_size": 10**15}},
        "vision_config.hidden_size is 1000000000000000",
    ),
    "code": (
        "config.json",
        {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}},
        "which is never done",
    ),
    "kinds": ("config.json", {"text_config": {"hidden_size": "many"}}, "cannot read its config"),
    "template": ("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot make a prompt"),
    "vocabulary": ("config.json", {"text_config": {"vocab_size": 10**6}}, "its config asks for 64,039,488 weights"),
    "crop": (
        "processor_config.json",
        {"image_processor": {"crop_size": {"height": 16000, "width": 16000}}},
        "image_processor.crop_size.width is 16000, at most 4,096",
    ),
    "tokens": (
        "processor_config.json",
        {"num_additional_image_tokens": 10**6},
        "num_additional_image_tokens is 1000000",
    ),
    "raises": ("chat_template.jinja", "{{ raise_exception('\x1b[2J\n' ~ 'x' * 5000) }}", "cannot make a prompt of"),
    "loops": (
        "chat_template.jinja",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "more than 1 sec",
    ),
    "memory": ("chat_template.jinja", "{{ ('x' * 10**10)|length }}", "512 MiB of memory"),
    "text": ("chat_template.jinja", "{{ 'x' * 10**5 }}", "64 KiB of text"),
    "pictures": ("chat_template.jinja", "{{ '<image>' * 1000 }}", "its chat template turns one picture into 1000"),
    "patches": (
        "processor_config.json",
        {"patch_size": 1, "image_processor": {"size": {"shortest_edge": 4000}}},
        "makes 16,000,000 patches of a picture",
    ),
    "pinpoints": (
        "processor_config.json",
        {"image_processor": {"image_grid_pinpoints": [[32, 32]] * 1001}},
        "image_grid_pinpoints has 1,001 entries",
    ),
    "large": ("tokenizer_config.json", " " * (2**23 + 1), "tokenizer_config.json has 8,388,609 bytes"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_or_broken_config_is_one_line_that_advises_nothing_unsafe(copy_of, monkeypatch, what):
    monkeypatch.setattr(safe_reading, "SECONDS", 1)
    folder, (name, content, message) = copy_of("llava"), HOSTILE[what]
    if isinstance(content, dict):
        edit(
            folder / name,
            lambda config: [
                config[key].update(value) if isinstance(config.get(key), dict) else config.update({key: value})
                for key, value in content.items()
            ],
        )
    else:
        (folder / name).write_text(content)
    with pytest.raises(ValueError) as caught:
        load_vlm(folder)
    assert str(folder) in str(caught.value) and message in str(caught.value) and str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000 and not any(
        word in str(caught.value) for word in ("trust_remote_code=True", "pip install")
    )


@pytest.mark.parametrize("content, problem", [
    ("{", "capsmith.json: not JSON"),
    ("[]", "capsmith.json: not a JSON object"),
    ("{}", "capsmith.json: name is None, which is not a text; instruction is None, which is not a text"),
    ('{"name": "Bad", "prompt": ""}', "capsmith.json: name 'Bad'"),
])  # fmt: skip
def test_a_broken_file_of_ours_is_named(copy_of, content, problem):
    folder = copy_of("llava")
    (folder / "capsmith.json").write_text(content)
    with pytest.raises(ValueError, match=problem):
        load_vlm(folder)


def test_a_model_that_names_no_end_and_a_prompt_that_is_too_long_are_refused(copy_of):
    folder = copy_of("llava")
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(ValueError) as caught:
        load_vlm(folder, instruction="red circle " * 60)
    assert f"{folder}: no eos_token_id" in str(caught.value) and "max_position_embeddings" in str(caught.value)


def test_a_processor_without_a_chat_template_is_named(copy_of):
    folder = copy_of("llava")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=f"{folder}: its processor cannot make a prompt of 'Describe this picture"):
        load_vlm(folder)


def test_a_hub_repository_is_read_from_the_cache(copy_of, tmp_path, monkeypatch, fill_hub_cache):
    import huggingface_hub.constants
    import transformers.utils.hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers.utils.hub, "_is_offline_mode", True, raising=False)
    fill_hub_cache(tmp_path / "hub", "some/Tiny-VLM", folder := copy_of("git"))
    captioner = load_vlm("some/Tiny-VLM")
    assert captioner.name == "tiny_vlm"
    captioner.add_lora(r=2)
    captioner.save(tmp_path / "tuned", "tuned")
    assert (
        json.loads((tmp_path / "tuned" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "some/Tiny-VLM"
    )
    fill_hub_cache(tmp_path / "hub", "some/Adapters", tmp_path / "tuned")
    loaded = load_vlm("some/Adapters")
    assert loaded.name == "tuned"
    assert loaded.weights_sha256 == load_vlm(tmp_path / "tuned").weights_sha256 != captioner.weights_sha256
    edit(folder / "config.json", lambda config: config.update(vocab_size=10**6))
    fill_hub_cache(tmp_path / "hub", "some/Large-VLM", folder)
    with pytest.raises(ValueError, match="some/Large-VLM: its config asks for "):
        load_vlm("some/Large-VLM")


def test_a_processor_that_keeps_the_shapes_of_pictures_is_refused(copy_of):
    folder = copy_of("llava")
    edit(folder / "processor_config.json", lambda config: config["image_processor"].update(do_center_crop=False))
    with pytest.raises(ValueError, match=r"keeps the aspect of pictures.*makes \(32, 64\) and \(64, 32\)"):
        load_vlm(folder)


def test_a_processor_that_fails_at_pictures_is_named(copy_of):
    folder = copy_of("git")
    edit(folder / "processor_config.json", lambda config: config["image_processor"].update(image_mean="grey"))
    with pytest.raises(ValueError, match=f"{folder}: its processor cannot process a picture: "):
        load_vlm(folder)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"image_mean": [math.nan] * 3}, "image_mean is nan"),
        ({"image_std": [0.0] * 3}, "makes pixels that are not fini"),
    ],
)
def test_a_processor_whose_pixels_are_no_numbers_is_refused(copy_of, change, problem):
    folder = copy_of("llava")
    edit(folder / "processor_config.json", lambda config: config["image_processor"].update(change))
    with pytest.raises(ValueError, match=f"{folder}: .*{problem}"):
        load_vlm(folder)


@pytest.mark.parametrize("name", ["Bad", "a-b", "embed", "x_captions", ""])
def test_names_that_can_name_no_column_are_refused(captioner_of, tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        captioner_of("llava").save(tmp_path / "new", name)
    assert not (tmp_path / "new").exists()
