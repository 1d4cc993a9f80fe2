"""Random pictures, tokens and captions for the tiny CoCa of the tests."""

import torch

PAD, START, END = 0, 1, 2


def images_of(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def tokens_of(rows: int, length: int, lowest: int = 0) -> torch.Tensor:
    """Random tokens, pad tokens included: CLIP's pad token is also a word piece, which a caption may contain."""
    tokens = torch.randint(lowest, 290, (rows, length), generator=torch.Generator().manual_seed(rows))
    if lowest == 0:
        tokens[:, 1:][torch.rand(rows, length - 1, generator=torch.Generator().manual_seed(0)) < 0.2] = PAD
    tokens[:, 0] = START
    return tokens


def captions_of(lengths: list[int], width: int) -> torch.Tensor:
    tokens = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        tokens[row, :length] = tokens_of(len(lengths), width, lowest=3)[row, :length]
        tokens[row, [0, length - 1]] = torch.tensor([START, END])
        if length > 6:
            tokens[row, 3] = PAD
    return tokens
