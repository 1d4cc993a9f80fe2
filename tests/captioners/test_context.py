"""A longer context does not change captions that fitted before; compared with open_clip's own forward."""

import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from safetensors.torch import load_file

from captioners.base import SamplingConfig
from captioners.coca.context import extend_context
from captioners.load import load_captioner
from captioners.weights import state_sha256

PAD, START, END, CONTEXT = 0, 1, 2, 17  # the tiny captioner's, its CLS token included
CONFIGS = {
    "plain": {},
    "a longer decoder context": {"multimodal_cfg__context_length": 20},
    "projection with bias": {"text_cfg__proj_bias": True},
}


def captions(lengths, width):
    """Random captions of these lengths; the longer ones contain a pad token, as CLIP's "!" is one."""
    tokens = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(3, 290, (length,), generator=torch.Generator().manual_seed(length))
        row[[0, length - 1]] = torch.tensor([START, END])
        if length > 6:
            row[3] = PAD
    return tokens


@torch.no_grad()
def outputs(model, lengths):
    """open_clip's forward of captions of these lengths, padded to the whole context as by open_clip's tokenizers."""
    images = torch.randn(len(lengths), 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return model.eval()(images, captions(lengths, model.text.context_length))


def rebuilt(model_cfg, state):
    """open_clip's CoCa of a config, with exactly these weights."""
    model = CoCa(**{key: value for key, value in model_cfg.items() if key != "custom_text"})
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def of_config(request, make_captioner):
    return make_captioner(**CONFIGS[request.param])


@pytest.mark.parametrize("context", [CONTEXT + 1, 29, 128])
def test_captions_that_fitted_have_the_same_logits_and_features(of_config, context):
    longer = rebuilt(*extend_context(of_config.model_cfg, of_config.model.state_dict(), context))
    lengths = [5, 3, 9, 4, 14, 15]
    before, after = outputs(of_config.model, lengths), outputs(longer, lengths)
    assert before["logits"].std() > 0.5 and before["text_features"].std(0).max() > 0.05
    torch.testing.assert_close(after["logits"][:, :15], before["logits"], atol=1e-5, rtol=0)
    for key in ("text_features", "image_features"):
        torch.testing.assert_close(after[key], before[key], atol=1e-5, rtol=0)


def test_of_a_caption_that_filled_the_context_only_the_feature_moves(of_config):
    """open_clip's shifted pad mask showed the CLS token itself there; now it shows the first pad token."""
    longer = rebuilt(*extend_context(of_config.model_cfg, of_config.model.state_dict(), 29))
    before, after = outputs(of_config.model, [16]), outputs(longer, [16])
    torch.testing.assert_close(after["logits"][:, :15], before["logits"], atol=1e-5, rtol=0)
    assert (after["text_features"] - before["text_features"]).abs().max() > 1e-3


def test_open_clips_own_way_would_move_every_feature(captioner):
    """Shows that the tests above can fail: open_clip's loader interpolates all positions, the CLS token's included."""
    model_cfg, state = extend_context(captioner.model_cfg, captioner.model.state_dict(), 29)
    stretched = F.interpolate(captioner.model.text.positional_embedding.data.T[None], size=29, mode="linear")[0].T
    theirs = rebuilt(model_cfg, state | {"text.positional_embedding": stretched})
    before, after = outputs(captioner.model, [5, 9]), outputs(theirs, [5, 9])
    assert ((after["text_features"] - before["text_features"]).abs().amax(1) > 1e-2).all()


def test_new_positions_are_the_last_tokens_and_the_rest_is_as_it_was(captioner):
    original = captioner.model.state_dict()
    copies = {key: value.clone() for key, value in original.items()}
    model_cfg, state = extend_context(captioner.model_cfg, original, 29)
    positions, before = state.pop("text.positional_embedding"), copies["text.positional_embedding"]
    assert torch.equal(positions[:16], before[:16]) and torch.equal(positions[-1], before[-1])
    assert torch.equal(positions[16:-1], before[15].expand(12, -1))
    assert all(value is original[key] for key, value in state.items())
    assert all(torch.equal(value, original[key]) for key, value in copies.items())  # what was given is left alone
    assert (
        captioner.model_cfg["text_cfg"]["context_length"]
        == captioner.model_cfg["multimodal_cfg"]["context_length"]
        == 16
    )
    assert model_cfg["text_cfg"] == captioner.model_cfg["text_cfg"] | {"context_length": 28}
    assert model_cfg["multimodal_cfg"] == captioner.model_cfg["multimodal_cfg"] | {"context_length": 28}


def test_both_causal_masks_are_as_long_and_hide_what_comes_later(captioner):
    model = rebuilt(*extend_context(captioner.model_cfg, captioner.model.state_dict(), 29))
    assert model.text.attn_mask.shape == (29, 29) and model.text_decoder.attn_mask.shape == (28, 28)
    tokens, images = captions([28, 28], 28), torch.randn(1, 3, 32, 32).expand(2, -1, -1, -1)
    tokens[1, 24] = 7
    with torch.no_grad():
        logits, other_logits = model.eval()(images, tokens, output_labels=False)["logits"]
    assert torch.equal(logits[:24], other_logits[:24]) and not torch.allclose(
        logits[24:], other_logits[24:], atol=1e-2
    )


def test_the_same_context_is_the_same_captioner_and_a_shorter_one_is_refused(captioner):
    model_cfg, state = extend_context(captioner.model_cfg, captioner.model.state_dict(), CONTEXT)
    assert model_cfg == captioner.model_cfg and state_sha256(state) == state_sha256(captioner.model.state_dict())
    with pytest.raises(ValueError, match="--context 16: the weights have a context of 17"):
        extend_context(captioner.model_cfg, captioner.model.state_dict(), 16)


# Loading with another context


@pytest.fixture
def saved(captioner, tmp_path):
    captioner.save(tmp_path / "saved", "tiny_one")
    return tmp_path / "saved"


def test_a_captioner_is_loaded_with_a_longer_context(captioner, saved, pictures, tmp_path):
    longer = load_captioner(str(saved), context=29)
    assert longer.context_length == 28 and "context: 28 tokens + CLS" in longer.description
    assert f"{saved / 'open_clip_config.json'} with context 29" in longer.description
    _, state = extend_context(captioner.model_cfg, captioner.model.state_dict(), 29)
    assert longer.weights_sha256 == state_sha256(state) != load_captioner(str(saved)).weights_sha256
    sampling = SamplingConfig(num_captions=3, min_length=29)
    captioned = longer.caption(pictures, sampling)
    lengths = [len(longer.encode_text_ids(caption.text)) for result in captioned for caption in result.captions]
    assert len(lengths) == 12 and max(lengths) > CONTEXT


def test_what_is_saved_of_it_loads_in_open_clip_and_again(saved, tmp_path):
    longer = load_captioner(str(saved), context=29)
    longer.save(tmp_path / "longer", "tiny_two")
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'longer'}", require_pretrained=True)
    for key, value in outputs(longer.model, [5, 9, 28]).items():
        assert torch.equal(outputs(theirs, [5, 9, 28])[key], value)
    assert open_clip.get_tokenizer(f"local-dir:{tmp_path / 'longer'}")(["a red circle " * 20]).shape == (1, 28)
    again = load_captioner(str(tmp_path / "longer"))
    assert again.weights_sha256 == longer.weights_sha256 and again.context_length == 28
    assert load_captioner(str(tmp_path / "longer"), context=29).weights_sha256 == longer.weights_sha256


@pytest.mark.parametrize("configured, advised", [(28, 29), (11, CONTEXT)])
def test_another_context_than_the_weights_not_asked_for_is_an_error_that_says_what_to_do(saved, configured, advised):
    path = saved / "open_clip_config.json"
    config = json.loads(path.read_text())
    for section in ("text_cfg", "multimodal_cfg"):
        config["model_cfg"][section]["context_length"] = configured
    path.write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=f"a context of 17, but the config has {configured + 1}:.*--context {advised}"
    ):
        load_captioner(str(saved))
    assert load_captioner(str(saved), context=advised).context_length == advised - 1
    with pytest.raises(ValueError, match="--context 16"):
        load_captioner(str(saved), context=16)


def test_from_scratch_any_context_goes(saved):
    for context in (9, 40):
        model = load_captioner(str(saved), from_scratch=True, context=context).model
        assert model.text.positional_embedding.shape == (context, 32)


def test_half_precision_weights_are_extended_too(captioner, tmp_path):
    captioner.save(tmp_path, "half", dtype="fp16")
    positions = load_file(tmp_path / "open_clip_model.safetensors")["text.positional_embedding"].float()
    longer = load_captioner(str(tmp_path), context=29).model.text.positional_embedding
    assert torch.equal(longer[:16], positions[:16]) and torch.equal(longer[-1], positions[-1])
