"""The parameter groups of the optimizer and the learning rate schedule."""

import math
import re
from collections.abc import Callable

from open_clip import CoCa
from torch import nn

from finetune.config import TrainingConfig

# The names of embeddings that are weights of their own: positional_embedding, pos_embed, cls_token, query_tokens.
EMBEDDING = re.compile(r"embedding|(pos_embed|_tokens?)$")


def parameter_groups(
    model: nn.Module, config: TrainingConfig, depth: Callable[[str], int] | None = None
) -> list[dict]:
    """Return AdamW's parameter groups; norms, biases and embeddings have no weight decay, each depth its own rate.

    Models give embeddings many names, such as `embed_tokens`, so those of nn.Embedding are recognised by their type.

    depth: gives the depth of a weight from its name, 0 at the top. Each level further down learns layer_decay times as
    fast as the one above (Clark et al. 2020, arXiv 2003.10555).
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[float, bool], list] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            rate = config.learning_rate * config.layer_decay ** (depth(name) if depth else 0)
            is_embedding = id(weight) in tables or bool(EMBEDDING.search(name))
            groups.setdefault((rate, weight.ndim > 1 and not is_embedding), []).append(weight)
    return [
        {"params": weights, "lr": rate, "weight_decay": config.weight_decay if decays else 0.0}
        for (rate, decays), weights in sorted(groups.items(), key=lambda item: item[0])
    ]


def coca_depth(model: CoCa) -> Callable[[str], int]:
    """Return a function from the name of a CoCa weight to its depth.

    The decoder's blocks are at the top. Below them are the blocks of both towers, side by side, and then the
    embeddings.
    """
    blocks = {name: len(getattr(model, name).transformer.resblocks) for name in ("visual", "text")}
    decoder = len(model.text_decoder.resblocks)
    bottom = decoder + max(blocks.values()) + 1

    def depth(name: str) -> int:
        tower, block = name.split(".")[0], re.search(r"(?:resblocks|cross_attn)\.(\d+)", name)
        if tower == "text_decoder" and block:
            return decoder - int(block[1])
        if tower not in blocks:
            return 0
        if block:
            return decoder + blocks[tower] - int(block[1])
        return bottom if re.search(r"embedding|conv1|ln_pre|cls_emb", name) else decoder + 1

    return depth


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate as a share of its peak: linear warm-up in a share of the steps, then cosine to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2
