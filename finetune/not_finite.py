"""Finds out why a loss is not finite: because of the weights, of single pictures, or of the learning rate."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from captioners.decoding.search import evaluating
from finetune.batching import Batch
from finetune.checkpoints import non_finite

NAMED = 3  # number of weights or pictures that a message names


def check_weights(model: nn.Module, what: str) -> None:
    """Raise ValueError if the model has weights that are not finite; `what` names the model in the message."""
    if names := non_finite(dict(model.named_parameters())):
        raise ValueError(f"{what}: {len(names)} of its weights hold numbers that are not finite: {_first_few(names)}")


@torch.no_grad()
def explain_not_finite(forward: Any, parts: Sequence[Batch], *, rate: float, dtype: str) -> str:
    """Return a sentence that says why a step's loss or gradients are not finite, and what to do.

    forward: a `finetune.forward.Forward` that is whole in this process, with the weights from before the step.
    parts: the pictures of the step. rate: its learning rate.
    """
    remedy = f"lower --learning-rate (it was {rate:.2g} at this step) or raise --warmup, and start again"
    if names := non_finite(dict(forward.model.named_parameters())):
        return f"Earlier steps have left weights that are not finite ({_first_few(names)}): {remedy}."
    singles = [single for part in parts for single in part.parts(len(part.keys), part.pictures.device)]
    with evaluating(forward):
        wrong = [single.keys[0] for single in singles if non_finite(forward(single.images, single.tokens))]
    if 0 < len(wrong) < len(singles):
        pictures = _first_few(wrong)
        return f"The model's outputs are not finite for {pictures} alone: check these pictures and their captions."
    overflow = " fp16 cannot hold numbers above 65,504; bf16 and fp32 can." if dtype == "fp16" else ""
    finding = (
        "The model's outputs are not finite for any picture"
        if wrong
        else "The weights and the model's outputs are finite"
    )
    return f"{finding}: {remedy}.{overflow}"


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
