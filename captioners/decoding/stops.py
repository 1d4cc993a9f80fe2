"""Texts that end a caption.

Dimensions: R rows (captions in flight), T tokens so far, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captioners.base import up_to_stop


class Stops:
    """Texts of which the first that a caption holds, once it has said something, ends it (see `captioners.base.up_to_stop`).

    say: the text of token ids, blanks round it included. begun: the ids that every caption starts with, which hold no stop.
    `may` (V,): tokens that can be the last of such a text, so that the others need no look; see `closing_tokens`.
    """

    def __init__(self, texts: Sequence[str], say: Callable[[Sequence[int]], str], may: Tensor, begun: Sequence[int]):
        self.texts, self.say, self.may, self.begun = texts, say, may, len(say(begun))

    def within(self, ids: Sequence[int]) -> bool:
        """Whether there is a stop in the text of ids."""
        text = self.say(ids)
        return up_to_stop(text, self.texts, self.begun) != text

    def ended(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Which rows (R,) hold a stop since their last token, by tokens (R, T), `lengths` (R,) of them real, at the right."""
        ended = self.may[tokens[:, -1]]
        for row in ended.nonzero()[:, 0].tolist():
            ended[row] = self.within(tokens[row, len(tokens[row]) - int(lengths[row]) :].tolist())
        return ended


def closing_tokens(texts: Sequence[str], words: Sequence[str]) -> Tensor:
    """Which of the vocabulary's words (V,) can be the last of one of the texts: bool (V,).

    A word is a token decoded by itself: with no blank before it, so where a text ends in one all can, and parts of a character
    are no text yet.
    """
    lasts = {text[-1] for text in texts}
    return torch.tensor([" " in lasts or "\ufffd" in word or not lasts.isdisjoint(word) for word in words])
