"""The losses: caption and contrastive loss (CoCa, Yu et al. 2022, arXiv 2205.01917), distillation, and hard negatives.

B: pictures of the whole batch, K: captions of each picture, T: tokens to predict, V: vocabulary size,
E: embedding dimension, D: embedding dimension of all teachers together
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Losses = dict[str, Tensor]  # name -> scalar for a whole batch, on the batch's device

MAX_LOGIT_SCALE = 4.605170185988092  # ln 100 (Radford et al. 2021)


def caption_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the next token, summed over the tokens, for logits (T, V) and labels (T,)."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, pictures: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss over the batch (Radford et al. 2021), the mean over the K captions.

    Features (B, E) and (B, K, E) have unit length; logit_scale is not logarithmic. pictures (B,): index of each
    picture; a picture that is in the batch twice is not a negative of itself.
    """
    logits = _logits(image_features, text_features, logit_scale, pictures=pictures)
    target = torch.arange(len(pictures), device=pictures.device).repeat(len(logits))
    text_loss = F.cross_entropy(logits.flatten(0, 1), target)
    picture_loss = F.cross_entropy(logits.mT.flatten(0, 1), target)
    return (text_loss + picture_loss) / 2


def negative_loss(
    image_features: Tensor,
    text_features: Tensor,
    negative_features: Tensor,
    has_negative: Tensor,
    logit_scale: Tensor,
    pictures: Tensor,
) -> Tensor:
    """Return how much the loss of texts given pictures grows if the hard negatives of the batch are added as texts.

    It is half the mean of ln((t + n) / t), where t sums exp(scale * cosine) over the batch's texts, as in
    `contrastive_loss`, and n sums it over the batch's negatives (B, E), of unit length. has_negative (B,): whether
    each row has a negative. The loss of pictures given texts stays as it is.

    Added to `contrastive_loss`, this gives NegCLIP's loss (Yuksekgonul et al. 2022, arXiv 2210.01936). Added to
    `distillation_loss`, it gives the loss for teachers that assign probability 0 to negatives.
    """
    texts = _logits(image_features, text_features, logit_scale, pictures=pictures).logsumexp(2)  # (K, B), ln t
    negatives = logit_scale * image_features @ negative_features.T  # (B, B)
    # Not -inf, whose gradients would be NaN without any negative. The exponential of this number is 0, too.
    negatives = negatives.masked_fill(~has_negative, torch.finfo(negatives.dtype).min).logsumexp(1)  # (B,), ln n
    # ln(1 + n / t) is exactly 0 where n is; a difference of ln(t + n) and ln t would be a rounding error.
    return torch.logaddexp(negatives - texts, torch.zeros_like(texts)).mean() / 2


def _logits(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, *, pictures: Tensor) -> Tensor:
    """Return the logits (K, B, B) of texts given pictures; -inf for a text of the same picture in another row."""
    rows = torch.arange(len(pictures), device=pictures.device)
    same = (pictures[:, None] == pictures) & (rows[:, None] != rows)
    return (logit_scale * (image_features @ text_features.transpose(0, 1).mT)).masked_fill(same, float("-inf"))


def distillation_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    image_emb: Tensor,
    text_emb: Tensor,
    dimensions: Sequence[int],
    teacher_scales: Sequence[float],
) -> Tensor:
    """Return the cross-entropy between the teachers' and the student's probabilities, the mean of both directions.

    The directions are texts given pictures and pictures given texts. The teachers' probabilities are the mean over
    teachers, each at its own logit scale (Faghri et al. 2023, arXiv 2303.08983; Vasu et al. 2024, arXiv 2311.17049).
    Features (B, E) have unit length; logit_scale is not logarithmic. Embeddings (B, D) hold one teacher after another,
    with `dimensions` numbers each.
    """
    logits = logit_scale * image_features @ text_features.T  # (B, B)
    parts = zip(image_emb.split(list(dimensions), 1), text_emb.split(list(dimensions), 1), teacher_scales, strict=True)
    teacher_logits = torch.stack([scale * image @ text.T for image, text, scale in parts])  # (teachers, B, B)
    text_probabilities = teacher_logits.softmax(2).mean(0)
    picture_probabilities = teacher_logits.mT.softmax(2).mean(0)
    return (F.cross_entropy(logits, text_probabilities) + F.cross_entropy(logits.T, picture_probabilities)) / 2
