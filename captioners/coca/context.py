"""A longer context for weights that were trained with a shorter one.

Dimensions: N positions of the text tower, the CLS token's included (a context of 77, 128 or 256), W width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

POSITIONS = "text.positional_embedding"  # (N, W), the CLS token's last; open_clip's configs count N - 1


def extend_context(
    model_cfg: Mapping[str, Any], state: Mapping[str, Tensor], context: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A CoCa's config and weights with a context of `context` positions, the CLS token's included.

    Token positions keep theirs, new ones begin as the last of them, the CLS token's moves to the new end. (open_clip's
    loader would stretch them all, the CLS token's too.) So a caption keeps its token logits, and its text feature if it
    left a place free. Where it did not, the CLS token saw itself, by open_clip's shifted pad mask, and now sees a pad
    token there: that feature moves.
    A state without these weights changes in its config alone. Raises ValueError where theirs is the longer context.
    """
    state = dict(state)
    if POSITIONS in state:
        positions = state[POSITIONS]
        if context < len(positions):
            raise ValueError(
                f"--context {context}: the weights have a context of {len(positions)}, which is never made shorter"
            )
        new = positions[-2:-1].expand(context - len(positions), -1)
        state[POSITIONS] = torch.cat([positions[:-1], new, positions[-1:]])
    # the decoder has no positions of its own; both towers make their causal masks of these lengths
    sections = {name: {**model_cfg[name], "context_length": context - 1} for name in ("text_cfg", "multimodal_cfg")}
    return {**model_cfg, **sections}, state
