"""The two losses of CoCa (Yu et al. 2022, arXiv 2205.01917).

B: pictures of the whole batch, K: captions of each, T: tokens to predict, V: vocabulary, E: embedding
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    logits = logits.masked_fill(same, float("-inf")).flatten(0, 1), logits.mT.masked_fill(same, float("-inf")).flatten(0, 1)
    target = rows.repeat(text_features.shape[1])
    return sum(F.cross_entropy(one, target) for one in logits) / 2
