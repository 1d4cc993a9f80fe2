"""The two losses of CoCa (Yu et al. 2022, arXiv 2205.01917).

B: batch, L: tokens of the batch's longest caption, V: vocabulary, E: embedding
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def caption_loss(logits: Tensor, labels: Tensor, pad_id: int) -> Tensor:
    """Mean cross-entropy of the next token over all tokens that are not padding; logits (B, L-1, V), labels (B, L-1)."""
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=pad_id)


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over the batch (Radford et al. 2021); features (B, E) of unit length, scale not logarithmic."""
    logits = logit_scale * image_features @ text_features.T  # (B, B)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
