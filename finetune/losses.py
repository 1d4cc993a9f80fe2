"""The two losses of CoCa (Yu et al. 2022, arXiv 2205.01917), that of reinforced sets, and what hard negatives add to either.

B: pictures of the whole batch, K: captions of each, T: tokens to predict, V: vocabulary, E: embedding, D: of all teachers joined
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Losses = dict[str, Tensor]  # by name: scalars of a whole batch, on its device

MAX_LOGIT_SCALE = 4.605170185988092  # ln 100 (Radford et al. 2021)


def caption_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the next token, summed over the tokens; logits (T, V), labels (T,)."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, pictures: Tensor) -> Tensor:
    """Symmetric InfoNCE over the batch (Radford et al. 2021), the mean of K losses over one caption per picture.

    Features (B, E) and (B, K, E) of unit length, scale not logarithmic. pictures (B,): their numbers; a picture that is in the
    batch twice is no negative of itself.
    """
    logits = _logits(image_features, text_features, logit_scale, pictures)
    target = torch.arange(len(pictures), device=pictures.device).repeat(len(logits))
    of_texts = F.cross_entropy(logits.flatten(0, 1), target)
    of_pictures = F.cross_entropy(logits.mT.flatten(0, 1), target)
    return (of_texts + of_pictures) / 2


def negative_loss(
    image_features: Tensor,
    text_features: Tensor,
    negative_features: Tensor,
    has_negative: Tensor,
    logit_scale: Tensor,
    pictures: Tensor,
) -> Tensor:
    """What a loss over texts given pictures grows by where hard negatives are further texts of every picture in the batch.

    Half the mean of ln((t + n) / t), where t sums exp(scale * cosine) over the batch's texts, as `contrastive_loss` does, and n
    over its negatives (B, E) of unit length, those of has_negative (B,) alone. Nothing is asked of pictures given negatives. With
    `contrastive_loss` this is NegCLIP's loss (Yuksekgonul et al. 2022, arXiv 2210.01936); with `distillation_loss`, it is that of
    teachers who give negatives a probability of 0.
    """
    texts = _logits(image_features, text_features, logit_scale, pictures)
    negatives = logit_scale * image_features @ negative_features.T  # (B, B)
    negatives = negatives.masked_fill(~has_negative, float("-inf")).expand_as(texts)
    both = torch.cat([texts, negatives], dim=2)  # (K, B, 2 B)
    return (both.logsumexp(2) - texts.logsumexp(2)).mean() / 2


def _logits(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, pictures: Tensor) -> Tensor:
    """Logits (K, B, B) of texts given pictures, -inf of another row's text of the same picture."""
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
    """How far the student's probabilities of texts given pictures, and of pictures given texts, are from the teachers'.

    Cross-entropy, the mean of both directions; the teachers' probabilities are the mean of each one's, at a scale of its own
    (Faghri et al. 2023, arXiv 2303.08983; Vasu et al. 2024, arXiv 2311.17049). Features (B, E) are of unit length, logit_scale is
    not logarithmic; embeddings (B, D) hold one teacher after the other, `dimensions` numbers of each.
    """
    logits = logit_scale * image_features @ text_features.T  # (B, B)
    parts = zip(image_emb.split(list(dimensions), 1), text_emb.split(list(dimensions), 1), teacher_scales, strict=True)
    teachers = torch.stack([scale * image @ text.T for image, text, scale in parts])
    of_texts, of_pictures = teachers.softmax(2).mean(0), teachers.mT.softmax(2).mean(0)
    return (F.cross_entropy(logits, of_texts) + F.cross_entropy(logits.T, of_pictures)) / 2
