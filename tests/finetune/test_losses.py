"""Both losses against open_clip's own."""

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, CoCaLoss

from finetune.losses import caption_loss, contrastive_loss


@pytest.fixture
def outputs():
    random = torch.Generator().manual_seed(0)
    features = [F.normalize(torch.randn(6, 16, generator=random), dim=-1) for _ in range(2)]
    logits = torch.randn(6, 9, 50, generator=random)
    labels = torch.randint(1, 50, (6, 9), generator=random)
    labels[1, 4:] = labels[3, 7:] = 0  # padding
    return *features, logits, labels, torch.tensor(14.3)


def test_equal_to_open_clips(outputs):
    image, text, logits, labels, scale = outputs
    contrastive, caption = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=0)(image, text, logits, labels, scale)
    torch.testing.assert_close(contrastive_loss(image, text, scale), contrastive)
    torch.testing.assert_close(2 * caption_loss(logits, labels, 0), caption)
    torch.testing.assert_close(contrastive_loss(image, text, scale), ClipLoss()(image, text, scale))


def test_closed_forms():
    assert caption_loss(torch.zeros(2, 3, 10), torch.ones(2, 3, dtype=torch.long), 0).item() == pytest.approx(torch.tensor(10.).log())
    eye = torch.eye(4)
    assert contrastive_loss(eye, eye, torch.tensor(100.)).item() == pytest.approx(0, abs=1e-6)
    assert contrastive_loss(eye[:1].expand(4, -1), eye[:1].expand(4, -1), torch.tensor(9.)).item() == pytest.approx(
        torch.tensor(4.).log())


def test_padding_counts_for_nothing(outputs):
    _, _, logits, labels, _ = outputs
    changed = logits.clone()
    changed[labels == 0] += torch.randn(50)
    torch.testing.assert_close(caption_loss(changed, labels, 0), caption_loss(logits, labels, 0), rtol=0, atol=0)
