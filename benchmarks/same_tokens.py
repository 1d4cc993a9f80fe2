"""Captioners whose captions reveal every mistake of a decoder, and a comparison of captions token by token."""

import torch

from captioners.coca.captioner import CoCaCaptioner
from captioners.load import load_captioner


def scrambled(architecture: str) -> CoCaCaptioner:
    """A captioner with random numbers in every parameter, also biases, so that a missing term changes its captions."""
    torch.manual_seed(0)
    captioner = load_captioner(architecture, from_scratch=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in captioner.model.named_parameters():
            if name != "logit_scale":
                weight += weight.std(unbiased=False).clamp(min=0.02) * torch.randn(weight.shape, generator=generator)
    return captioner


def compare(ours: list[list[int]], theirs: list[list[int]]) -> dict:
    """The share of equal token lists, and the positions where the others first differ."""
    differing = [
        next((i for i, (a, b) in enumerate(zip(tokens, their_tokens)) if a != b), min(len(tokens), len(their_tokens)))
        for tokens, their_tokens in zip(ours, theirs, strict=True)
        if tokens != their_tokens
    ]
    return {
        "captions": len(ours),
        "equal": round(1 - len(differing) / len(ours), 4),
        "first_difference": sorted(differing),
        "tokens": sum(map(len, ours)),
    }
