"""The two losses of CoCa (Yu et al. 2022, arXiv 2205.01917), and that of reinforced sets.

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
    rows = torch.arange(len(pictures), device=pictures.device)
    same = (pictures[:, None] == pictures) & (rows[:, None] != rows)
    logits = logit_scale * (image_features @ text_features.transpose(0, 1).mT)  # (K, B, B)
    logits = (
        logits.masked_fill(same, float("-inf")).flatten(0, 1),
        logits.mT.masked_fill(same, float("-inf")).flatten(0, 1),
    )
    target = rows.repeat(text_features.shape[1])
    return sum(F.cross_entropy(one, target) for one in logits) / 2


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
