"""What sampling and beam search ask of a model, so that they know nothing else of it.

Dimensions: N pictures, R rows (captions in flight, of one picture after the other), n new tokens, V vocabulary, E embedding.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, Self

from torch import Tensor

from captioners.base import SamplingConfig


class Rows(Protocol):
    """Captions in flight, with all that their next tokens need; begun, there is one row for each picture."""

    def extend(self, tokens: Tensor) -> Tensor:
        """Feeds tokens (R, n) and returns the logits (R, n, V) of what follows each."""

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows, in this order; rows of a picture stay together, and may be repeated."""

    def join(self, other: Self) -> None:
        """Adds the rows of other pictures, after its own."""


# Encodes N pictures (3, H, W) and begins their rows: normalised image features (N, E), and the rows
Begin = Callable[[Sequence[Tensor]], tuple[Tensor, Rows]]


class Rules(NamedTuple):
    """What holds for every caption of a run.

    Captions start with the tokens `prefix` (P,), never hold the tokens `never`, and have at most max_length tokens; where the
    limit comes, the last one is the end token, not looked for. The last token is never fed back.
    """

    sampling: SamplingConfig
    prefix: Tensor
    never: Tensor
    end_id: int
    max_length: int


class Decoded(NamedTuple):
    """A caption's tokens from start to end, its log-probability, and whether the limit ended it (see Caption)."""

    tokens: list[int]
    logprob: float
    truncated: bool


class DecodedPicture(NamedTuple):
    """A picture's captions, and its normalised features (E,) in float32."""

    key: str
    features: Tensor
    captions: list[Decoded]
