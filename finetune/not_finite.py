"""Finds out why a loss is not finite: because of the weights, of single pictures, or of the learning rate."""

from collections.abc import Sequence
from typing import Any

import torch

from captioners.decoding.search import evaluating
from captioners.weights import first_few, non_finite
from finetune.batching import Batch


@torch.no_grad()
def explain_not_finite(forward: Any, parts: Sequence[Batch], *, rate: float, dtype: str) -> str:
    """Return a sentence that says why a step's loss or gradients are not finite, and what to do.

    forward: a `finetune.forward.Forward` that is whole in this process, with the weights from before the step.
    parts: the pictures of the step. rate: its learning rate.
    """
    remedy = f"lower --learning-rate (it was {rate:.2g} at this step) or raise --warmup, and start again"
    if names := non_finite(dict(forward.model.named_parameters())):
        return f"Earlier steps have left weights that are not finite ({first_few(names)}): {remedy}."
    singles = [single for part in parts for single in part.parts(len(part.keys), part.pictures.device)]
    with evaluating(forward):
        wrong = [single.keys[0] for single in singles if non_finite(forward(single.images, single.tokens))]
    if 0 < len(wrong) < len(singles):
        pictures = first_few(wrong)
        return f"The model's outputs are not finite for {pictures} alone: check these pictures and their captions."
    overflow = " fp16 cannot hold numbers above 65,504; bf16 and fp32 can." if dtype == "fp16" else ""
    finding = (
        "The model's outputs are not finite for any picture"
        if wrong
        else "The weights and the model's outputs are finite"
    )
    return f"{finding}: {remedy}.{overflow}"
