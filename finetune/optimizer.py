"""Which weights learn, how fast, and which decay."""

import math
import re

from torch import nn

from finetune.config import FinetuneConfig


def parameter_groups(model: nn.Module, config: FinetuneConfig) -> list[dict]:
    """AdamW's groups of a CoCa's trained weights: norms, biases and embeddings without decay; each depth at its own rate.

    A block's learning rate is layer_decay times that of the block above it (Clark et al. 2020, arXiv 2003.10555): the
    towers' blocks lie below the decoder's, embeddings lowest.
    """
    groups: dict[tuple[float, bool], list] = {}
    towers = max(len(model.visual.transformer.resblocks), len(model.text.transformer.resblocks))
    top = towers + len(model.text_decoder.resblocks) + 1
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            rate = config.learning_rate * config.layer_decay ** (top - _depth(name, model, towers, top))
            groups.setdefault((rate, weight.ndim > 1 and "embedding" not in name), []).append(weight)
    return [{"params": weights, "lr": rate, "weight_decay": config.weight_decay if decays else 0.0}
            for (rate, decays), weights in sorted(groups.items(), key=lambda item: item[0])]


def _depth(name: str, model: nn.Module, towers: int, top: int) -> int:
    """0 for embeddings, then the blocks from below; both towers end where the decoder begins."""
    tower, block = name.split(".")[0], re.search(r"(?:resblocks|cross_attn)\.(\d+)", name)
    if tower == "text_decoder":
        return towers + 1 + int(block[1]) if block else top
    if tower not in ("visual", "text"):
        return top
    if block:
        return towers - len(getattr(model, tower).transformer.resblocks) + 1 + int(block[1])
    return 0 if re.search(r"embedding|conv1|ln_pre|cls_emb", name) else towers


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then cosine to zero, as a share of the peak."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2
