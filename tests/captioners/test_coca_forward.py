"""open_clip's own forward, on padded captions of a picture each, is the reference for the trimmed one."""

import pytest
import torch
import torch.nn.functional as F

from captioners.coca_forward import forward_trimmed

PAD, START, END = 0, 1, 2
CONFIGS = {
    "plain": {},
    "layer scale": {"text_cfg__ls_init_value": 0.5, "multimodal_cfg__ls_init_value": 0.5, "vision_cfg__ls_init_value": 0.5},
    "quick gelu": {"quick_gelu": True},
    "no attentional pool": {"vision_cfg__attentional_pool": None, "vision_cfg__width": 32},
    "a longer decoder context": {"multimodal_cfg__context_length": 20},
    "projection with bias": {"text_cfg__proj_bias": True},
}


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def model(request, make_captioner):
    return make_captioner(**CONFIGS[request.param]).model


def images_of(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def tokens_of(rows: int, length: int, lowest: int = 0) -> torch.Tensor:
    """Random tokens, pad tokens among them: a caption may hold CLIP's, which is a word piece."""
    tokens = torch.randint(lowest, 290, (rows, length), generator=torch.Generator().manual_seed(rows))
    if lowest == 0:
        tokens[:, 1:][torch.rand(rows, length - 1, generator=torch.Generator().manual_seed(0)) < 0.2] = PAD
    tokens[:, 0] = START
    return tokens


def captions_of(lengths: list[int], width: int) -> torch.Tensor:
    tokens = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        tokens[row, :length] = tokens_of(len(lengths), width, lowest=3)[row, :length]
        tokens[row, [0, length - 1]] = torch.tensor([START, END])
        if length > 6:
            tokens[row, 3] = PAD
    return tokens


@pytest.mark.parametrize("lengths", [[5, 3, 9, 4], [5, 16, 9, 4], [15, 3, 3, 3]], ids=str)
@pytest.mark.parametrize("captions", [1, 2])
def test_trimmed_forward_equals_open_clips(model, lengths, captions):
    """Of four pictures with a caption each, or two with two."""
    pictures = 4 // captions
    images, full = images_of(pictures), captions_of(lengths, 16)
    expected = model(images.repeat_interleave(captions, 0), full)
    real = expected["labels"] != PAD
    for width in (max(lengths), 16):
        ours = forward_trimmed(model, images, full[:, :width].view(pictures, captions, width))
        assert torch.equal(ours["labels"], expected["labels"][real])
        torch.testing.assert_close(ours["image_features"], expected["image_features"][::captions], atol=1e-5, rtol=0)
        torch.testing.assert_close(ours["text_features"].flatten(0, 1), expected["text_features"], atol=1e-5, rtol=0)
        torch.testing.assert_close(ours["logits"], expected["logits"][real], atol=1e-4, rtol=0)


def loss_of(image_features, text_features, logits, labels) -> torch.Tensor:
    similarity = image_features @ text_features.T
    return F.cross_entropy(logits, labels) + F.cross_entropy(10 * similarity, torch.arange(len(similarity)))


@pytest.mark.parametrize("way", ["plain", "encoded before", "checkpointed"])
def test_trimmed_forward_has_open_clips_gradients(model, way):
    """Also where activations are computed twice, and for all but the image tower where the pictures were encoded before."""
    images, full, pictures = images_of(2), captions_of([5, 3, 9, 4], 16), torch.tensor([0, 0, 1, 1])
    model.zero_grad()
    theirs = model(images[pictures], full)
    real = theirs["labels"] != PAD
    loss_of(theirs["image_features"], theirs["text_features"], theirs["logits"][real], theirs["labels"][real]).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    if way == "encoded before":
        with torch.no_grad():
            images = model._encode_image(images)
        expected = {name: gradient for name, gradient in expected.items() if not name.startswith("visual.")}
    model.set_grad_checkpointing(way == "checkpointed")
    ours = forward_trimmed(model.train(), images, full.view(2, 2, -1))
    text_features = ours["text_features"].flatten(0, 1)
    loss_of(ours["image_features"][pictures], text_features, ours["logits"], ours["labels"]).backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            scale = expected[name].abs().max().clamp(min=1)
            torch.testing.assert_close(parameter.grad / scale, expected[name] / scale, atol=1e-5, rtol=0)
        else:
            assert parameter.grad is None
    model.set_grad_checkpointing(False)
    model.eval().zero_grad()


def test_naive_trimming_would_move_the_text_features(captioner):
    """What makes the tests above able to fail: the CLS token's position, and the pad column that it sees."""
    model, full = captioner.model, captions_of([5, 3, 9, 4], 16)
    expected = model.encode_text(full)
    for width in (9, 10):
        assert (model.encode_text(full[:, :width]) - expected).abs().max() > 1e-2
