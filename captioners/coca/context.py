"""Extend the context of weights that were trained with a shorter one.

Dimensions: N positions of the text tower, the CLS token's included (for example 77, 128 or 256), W width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

POSITIONS = "text.positional_embedding"  # (N, W), the CLS token's is the last; context_length in configs is N - 1


def extend_context(
    model_cfg: Mapping[str, Any], state: Mapping[str, Tensor], context: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a CoCa's config and weights with a context of `context` positions, the CLS token's included.

    Old token positions keep their embeddings, new positions start with the embedding of the last token position, and
    the CLS token's embedding moves to the new end. (open_clip's loader would interpolate all of them, the CLS token's
    included.) The token logits of a caption therefore do not change. Its text feature does not change either, unless
    the caption filled the old context: there, by open_clip's shifted pad mask, the CLS token attended to itself, and
    now it attends to a pad token.
    If the state has no position embeddings, only the config changes.
    Raises ValueError if the weights have a longer context.
    """
    state = dict(state)
    if POSITIONS in state:
        positions = state[POSITIONS]
        if context < len(positions):
            raise ValueError(
                f"--context {context}: the weights have a context of {len(positions)}, which cannot be made shorter"
            )
        added_positions = positions[-2:-1].expand(context - len(positions), -1)
        state[POSITIONS] = torch.cat([positions[:-1], added_positions, positions[-1:]])
    # the decoder has no position embeddings; both towers use these lengths for their causal masks
    sections = {name: {**model_cfg[name], "context_length": context - 1} for name in ("text_cfg", "multimodal_cfg")}
    return {**model_cfg, **sections}, state
