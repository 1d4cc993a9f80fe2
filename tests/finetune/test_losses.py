"""Caption and contrastive loss against open_clip's; hard negatives against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, CoCaLoss

from finetune.losses import caption_loss, contrastive_loss, negative_loss


@pytest.fixture
def outputs():
    random = torch.Generator().manual_seed(0)
    features = [F.normalize(torch.randn(6, 16, generator=random), dim=-1) for _ in range(2)]
    logits = torch.randn(6, 9, 50, generator=random)
    labels = torch.randint(1, 50, (6, 9), generator=random)
    labels[1, 4:] = labels[3, 7:] = 0  # padding
    return *features, logits, labels, torch.tensor(14.3)


def packed(logits, labels):
    return logits[labels != 0], labels[labels != 0]


def test_equal_to_open_clips(outputs):
    image, text, logits, labels, scale = outputs
    contrastive, caption = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=0)(
        image, text, logits, labels, scale
    )
    ours = contrastive_loss(image, text[:, None], scale, pictures=torch.arange(6))
    torch.testing.assert_close(ours, contrastive, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours, ClipLoss()(image, text, scale), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        2 * caption_loss(*packed(logits, labels)) / (labels != 0).sum(), caption, rtol=0, atol=1e-6
    )


def test_losses_of_uniform_logits_and_of_pairs_that_fit_or_do_not():
    assert caption_loss(torch.zeros(6, 10), torch.ones(6, dtype=torch.long)).item() == pytest.approx(6 * math.log(10))
    eye, all_apart = torch.eye(4), torch.arange(4)
    assert contrastive_loss(eye, eye[:, None], torch.tensor(100.0), pictures=all_apart).item() == pytest.approx(
        0, abs=1e-6
    )
    alike = eye[:1].expand(4, -1)
    assert contrastive_loss(alike, alike[:, None], torch.tensor(9.0), pictures=all_apart).item() == pytest.approx(
        math.log(4)
    )


def test_several_captions_are_the_mean_of_a_caption_each(outputs):
    image, text, _, _, scale = outputs
    several = torch.stack([text, text.flip(0), -text], dim=1)
    each = [contrastive_loss(image, several[:, k, None], scale, pictures=torch.arange(6)) for k in range(3)]
    torch.testing.assert_close(contrastive_loss(image, several, scale, pictures=torch.arange(6)), sum(each) / 3)


def test_a_picture_that_comes_twice_is_no_negative_of_itself(outputs):
    """All features are alike, and two of four pictures are the same: softmaxes over three or four texts."""
    alike = torch.eye(4)[:1].expand(4, -1)
    loss = contrastive_loss(alike, alike[:, None], torch.tensor(9.0), pictures=torch.tensor([5, 1, 5, 2]))
    assert loss.item() == pytest.approx((2 * math.log(3) + 2 * math.log(4)) / 4)


def test_negatives_of_like_pictures_in_closed_form():
    """All features are alike: with three negatives, the softmax over four texts becomes one over seven."""
    alike, scale = torch.eye(4)[:1].expand(4, -1), torch.tensor(9.0)
    has = torch.tensor([True, False, True, True])
    loss = negative_loss(alike, alike[:, None], alike, has_negative=has, logit_scale=scale, pictures=torch.arange(4))
    assert loss.item() == pytest.approx(math.log(7 / 4) / 2)
    twice = negative_loss(  # for two pictures the softmax is over three texts
        alike, alike[:, None], alike, has_negative=has, logit_scale=scale, pictures=torch.tensor([5, 1, 5, 2])
    )
    assert twice.item() == pytest.approx((math.log(6 / 3) + math.log(7 / 4)) / 4)


def test_without_a_negative_nothing_is_added_and_gradients_are_nought(outputs):
    image, text, _, _, scale = outputs
    negatives = text.flip(0).clone().requires_grad_()
    image = image.clone().requires_grad_()
    loss = negative_loss(
        image,
        text[:, None],
        negatives,
        has_negative=torch.zeros(6, dtype=torch.bool),
        logit_scale=scale,
        pictures=torch.arange(6),
    )
    loss.backward()
    assert loss.item() == 0 and not image.grad.any() and not negatives.grad.any()
