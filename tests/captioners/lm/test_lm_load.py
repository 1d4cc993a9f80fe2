"""Loading language models from folders: which captioner is loaded, and what is refused."""

import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from captioners.base import SamplingConfig
from captioners.decoding.continuing import steps_wait
from captioners.lm.captioner import LMCaptioner, positions
from captioners.lm.decode import begin_rows
from captioners.lm.load import check_rows
from captioners.load import load_captioner

from ..tape import tapes  # noqa: F401
from ..vlm.models import edit, make_tokenizer, scramble
from .models import CHAT, FAMILIES, save


def spoil(path):
    """Write NaN into one of a file's weights."""
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})


def test_a_folder_is_known_by_its_config(captioner_of):
    captioner = captioner_of("llama")
    assert isinstance(captioner, LMCaptioner) and captioner.name == "tiny_llama"
    assert (captioner.looks_at_pictures, captioner.needs_instruction) == (False, True)
    of_four, of_one = (SamplingConfig(num_captions=count, max_length=16) for count in (4, 1))
    assert captioner.bytes_per_picture(of_four) > captioner.bytes_per_picture(of_one) > 0


def test_weights_in_another_dtype_are_the_same_model(tmp_path, captioner_of):
    folder = save(tmp_path / "Tiny llama", "llama").as_posix()
    half = load_captioner(folder, dtype="bf16")
    assert half.weights_sha256 == captioner_of("llama").weights_sha256
    assert half.model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights|no file"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot load its tokenizer"),
        (lambda folder: edit(folder / "config.json", lambda config: config.update(vocab_size=10**9)), "vocab_size"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{% for i in range(10**12) %}{% endfor %}"),
            "20 seconds|chat template",
        ),
        (lambda folder: (folder / "chat_template.jinja").write_text("no question"), "0 times"),
        (lambda folder: edit(folder / "config.json", lambda config: config.update(model_type="mamba")), "."),
        (lambda folder: spoil(folder / "model.safetensors"), "model: 1 of its weights hold numbers that are not"),
    ],
    ids=["weights", "tokenizer", "config", "endless template", "template", "another kind", "NaN"],
)
def test_broken_folders_are_refused(tmp_path, change, message, monkeypatch):
    monkeypatch.setattr("captioners.safe_reading.SECONDS", 1)
    folder = save(tmp_path / "model", "llama", chat=CHAT)
    change(folder)
    with pytest.raises(ValueError, match=message):
        load_captioner(folder.as_posix())


@pytest.mark.parametrize(
    "config",
    [
        hf.BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=344),
        hf.MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=344, state_size=4),
        hf.BertConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=344
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_models_that_cannot_be_decoded_side_by_side_are_refused(tmp_path, config):
    model = hf.AutoModelForCausalLM.from_config(config)
    scramble(model)
    model.save_pretrained(tmp_path)
    make_tokenizer("<image>").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", lambda config: config.setdefault("max_position_embeddings", 96))
    with pytest.raises(ValueError, match="side by side|positions"):
        load_captioner(tmp_path.as_posix())


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_can_are_loaded_on_a_gpu_too(family, captioner_of, tapes, monkeypatch):  # noqa: F811
    """The check at loading runs by CUDA graphs there, whose steps overwrite the results of those before."""

    model = captioner_of(family).model

    def begin_with_graphs(*arguments, **options):
        rows = begin_rows(*arguments, **options)
        rows.graphs = True
        return rows

    monkeypatch.setattr("captioners.lm.load.begin_rows", begin_with_graphs)
    if steps_wait(model.config):
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            check_rows(model)
    else:
        check_rows(model)
        assert [tape.replays for tape, _ in tapes] == [2]  # the first of three steps warms up


def test_layers_with_experts_run_without_graphs():
    assert not steps_wait(hf.LlamaConfig())
    for config in (hf.MixtralConfig(), hf.Qwen3MoeConfig(), hf.DeepseekV3Config(), hf.GptOssConfig()):
        assert steps_wait(config)


def test_options_of_other_captioners_are_refused(tmp_path):
    folder = save(tmp_path / "model", "llama").as_posix()
    with pytest.raises(ValueError, match="base: cannot be set for a language model"):
        load_captioner(folder, base="other")
    with pytest.raises(ValueError, match="context: cannot be set for a language model"):
        load_captioner(folder, context=20)


@pytest.mark.parametrize(
    "config, most",
    [
        (hf.LlamaConfig(max_position_embeddings=4096), 4096),
        (hf.MistralConfig(max_position_embeddings=4096, sliding_window=512), 512),
        (hf.Qwen2Config(max_position_embeddings=4096, sliding_window=512, use_sliding_window=False), 4096),
        (hf.Gemma3TextConfig(max_position_embeddings=4096, sliding_window=512), 512),
        (hf.GPT2Config(n_positions=1024), 1024),
        (
            hf.LlamaConfig(
                max_position_embeddings=4096,
                rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            ),
            4096,
        ),
    ],
)
def test_how_many_tokens_prompt_and_caption_may_have(config, most):
    assert positions(config) == most
    assert json.loads(config.to_json_string())["model_type"] == config.model_type
