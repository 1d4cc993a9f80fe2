"""Captioners whose captions show every mistake, and how many captions are the same token by token."""

import torch

from captioners.coca.captioner import CoCaCaptioner
from captioners.load import load_captioner


def scrambled(architecture: str) -> CoCaCaptioner:
    """Random weights in every parameter, biases too, with logits of real spread: a term that is missing shows."""
    torch.manual_seed(0)
    captioner = load_captioner(architecture, from_scratch=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in captioner.model.named_parameters():
            if name != "logit_scale":
                weight += weight.std(unbiased=False).clamp(min=0.02) * torch.randn(weight.shape, generator=generator)
    return captioner


def compare(ours: list[list[int]], theirs: list[list[int]]) -> dict:
    """How many token lists are equal, and where those that are not first differ."""
    differing = [
        next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
        for one, other in zip(ours, theirs, strict=True)
        if one != other
    ]
    return {
        "captions": len(ours),
        "equal": round(1 - len(differing) / len(ours), 4),
        "first_difference": sorted(differing),
        "tokens": sum(map(len, ours)),
    }
