"""Why a loss is not finite, as far as it can be told: weights, single pictures, or the learning rate."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from captioners.decoding.search import evaluating
from finetune.batching import Batch
from finetune.checkpoints import non_finite

NAMED = 3  # weights, or pictures, that are named


def check_weights(model: nn.Module, what: str) -> None:
    """Raises ValueError for a model, named by `what`, that begins with weights that are not finite."""
    if names := non_finite(dict(model.named_parameters())):
        raise ValueError(f"{what}: {len(names)} of its weights hold numbers that are not finite: {_some(names)}")


@torch.no_grad()
def explain_not_finite(forward: Any, parts: Sequence[Batch], rate: float, dtype: str) -> str:
    """What to tell of a step whose loss or gradients are not finite, its weights being those before it; a sentence.

    `forward` is a `finetune.forward.Forward` that is whole in this process, `parts` are the step's pictures, `rate` is its
    learning rate.
    """
    slower = f"lower --learning-rate (it was {rate:.2g} at this step) or raise --warmup, and begin anew"
    if names := non_finite(dict(forward.model.named_parameters())):
        return f"The steps before have left weights that are not finite ({_some(names)}): {slower}."
    ones = [one for part in parts for one in part.parts(len(part.keys), part.pictures.device)]
    with evaluating(forward):
        wrong = [one.keys[0] for one in ones if non_finite(forward(one.images, one.tokens))]
    if 0 < len(wrong) < len(ones):
        return f"What the model says of {_some(wrong)} alone is not finite: look at these pictures and their captions."
    overflow = " fp16 holds no number above 65,504: bf16 and fp32 do." if dtype == "fp16" else ""
    which = (
        "What the model says of every picture is not finite"
        if wrong
        else "Weights, and what the model says, are finite"
    )
    return f"{which}: {slower}.{overflow}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
