"""The trimmed forward, compared with open_clip's own forward on padded captions, one per picture."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from captioners.coca.forward import _encode_plainly, encode_images, forward_trimmed

from .coca_inputs import PAD, captions_of, images_of


@pytest.mark.parametrize("lengths", [[5, 3, 9, 4], [5, 16, 9, 4], [15, 3, 3, 3]], ids=str)
@pytest.mark.parametrize("captions", [1, 2])
@pytest.mark.parametrize("trim", [True, False])
def test_trimmed_forward_equals_open_clips(model, lengths, captions, trim):
    """Four pictures with one caption each, or two with two; without trimming, at any width of the tokens."""
    pictures = 4 // captions
    images, full = images_of(pictures), captions_of(lengths, 16)
    expected = model(images.repeat_interleave(captions, 0), full)
    real = expected["labels"] != PAD
    for width in (max(lengths), 16, 17, 24):  # a GPU gets multiples of eight, which may exceed the context
        tokens = F.pad(full, (0, width - 16), value=PAD).view(pictures, captions, width)
        ours = forward_trimmed(model, images, tokens, trim=trim)
        assert torch.equal(ours["labels"], expected["labels"][real])
        torch.testing.assert_close(ours["image_features"], expected["image_features"][::captions], atol=1e-5, rtol=0)
        torch.testing.assert_close(ours["text_features"].flatten(0, 1), expected["text_features"], atol=1e-5, rtol=0)
        torch.testing.assert_close(ours["logits"], expected["logits"][real], atol=1e-4, rtol=0)


def test_the_gpus_image_tower_is_open_clips(model):
    images = images_of(3)
    with torch.no_grad():
        for ours, theirs in zip(_encode_plainly(model.visual, images), model._encode_image(images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def loss_of(image_features, text_features, logits, labels) -> torch.Tensor:
    similarity = image_features @ text_features.T
    return F.cross_entropy(logits, labels) + F.cross_entropy(10 * similarity, torch.arange(len(similarity)))


@pytest.mark.parametrize("way", ["plain", "encoded before", "checkpointed"])
def test_trimmed_forward_has_open_clips_gradients(model, way):
    """Also with gradient checkpointing and, except for the image tower, with pictures encoded before."""
    images, full, pictures = images_of(2), captions_of([5, 3, 9, 4], 16), torch.tensor([0, 0, 1, 1])
    model.zero_grad()
    theirs = model(images[pictures], full)
    real = theirs["labels"] != PAD
    loss_of(
        theirs["image_features"], theirs["text_features"], theirs["logits"][real], labels=theirs["labels"][real]
    ).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    if way == "encoded before":
        with torch.no_grad():
            images = model._encode_image(images)
        expected = {name: gradient for name, gradient in expected.items() if not name.startswith("visual.")}
    model.set_grad_checkpointing(way == "checkpointed")
    ours = forward_trimmed(model.train(), images, full.view(2, 2, -1))
    text_features = ours["text_features"].flatten(0, 1)
    loss_of(ours["image_features"][pictures], text_features, ours["logits"], labels=ours["labels"]).backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            scale = expected[name].abs().max().clamp(min=1)
            torch.testing.assert_close(parameter.grad / scale, expected[name] / scale, atol=1e-5, rtol=0)
        else:
            assert parameter.grad is None
    model.set_grad_checkpointing(False)
    model.eval().zero_grad()


def test_naive_trimming_would_move_the_text_features(captioner):
    """Shows that the tests above can fail: by the CLS token's position, and the pad column that it attends to."""
    model, full = captioner.model, captions_of([5, 3, 9, 4], 16)
    expected = model.encode_text(full)
    for width in (9, 10):
        assert (model.encode_text(full[:, :width]) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("trim, looks", [(True, 3), (False, 1)])
def test_how_often_a_gpu_would_be_waited_for(model, trim, looks):
    """How often the host waits to know which tokens are not padding; it must know the number of labels."""
    with Looks() as counter, torch.no_grad():
        forward_trimmed(model, images_of(2), captions_of([5, 3], 16).view(2, 1, 16), trim=trim)
    assert counter.count == looks


class Looks(TorchDispatchMode):
    """Counts the operations whose result the host has to know."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device, inside", [("cpu", True), ("meta", False)])
def test_products_by_onednn_are_for_a_cpu(monkeypatch, device, inside):
    entered = []
    monkeypatch.setattr("captioners.coca.forward.fast_products", lambda: nullcontext(entered.append(device)))
    tower = SimpleNamespace(visual=torch.nn.Identity(), _encode_image=lambda images: (images, images))
    encode_images(tower, torch.zeros(1, 3, 4, 4, device=device))
    assert bool(entered) == inside
