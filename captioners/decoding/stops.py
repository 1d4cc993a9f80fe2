"""Texts that end a caption.

Dimensions: R rows (captions in flight), T tokens so far, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captioners.base import up_to_stop


class Stops:
    """Finds the texts that end a caption (see `captioners.base.up_to_stop`).

    decode: turns token ids into text, outer blanks included.
    closing: which tokens (V,) can complete a stop text; captions that end with another token need no search (see
        `closing_tokens`).
    prefix: the token ids that every caption starts with, in which no stop is searched.
    """

    def __init__(
        self, texts: Sequence[str], decode: Callable[[Sequence[int]], str], closing: Tensor, prefix: Sequence[int]
    ):
        self.texts, self.decode, self.closing = texts, decode, closing
        self.prefix_length = len(decode(prefix))  # characters

    def within(self, ids: Sequence[int]) -> bool:
        """Whether the text of token ids contains a stop."""
        text = self.decode(ids)
        return up_to_stop(text, self.texts, self.prefix_length) != text

    def ended(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Which rows (R,) contain a stop that their last token completed.

        tokens: (R, T), of which the last `lengths` (R,) are the caption's.
        """
        ended = self.closing[tokens[:, -1]]
        for row in ended.nonzero()[:, 0].tolist():
            ended[row] = self.within(tokens[row, len(tokens[row]) - int(lengths[row]) :].tolist())
        return ended


def closing_tokens(texts: Sequence[str], words: Sequence[str]) -> Tensor:
    """Which of the vocabulary's words can complete one of the texts: bool (V,).

    words: every token, decoded by itself. A token loses a leading blank this way, so if a text ends in a blank, every
    token may complete it. A token that is part of a character decodes to U+FFFD and may complete any text.
    """
    last_characters = {text[-1] for text in texts}
    return torch.tensor(
        [" " in last_characters or "\ufffd" in word or not last_characters.isdisjoint(word) for word in words]
    )
