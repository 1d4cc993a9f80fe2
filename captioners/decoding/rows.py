"""The interface between a model and the search for captions: sampling and beam search know nothing else of a model.

Dimensions: N pictures, R rows (captions in flight, of one picture after the other), n new tokens, V vocabulary, E embedding.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from captioners.base import Request, SamplingConfig
from captioners.decoding.stops import Stops


class Speaker(Protocol):
    """A captioner that chooses its tokens in this process, as the rules need it."""

    name: str
    context_length: int  # tokens, start and end included
    start_id: int
    end_id: int

    def encode_text_ids(self, text: str) -> list[int]:
        """Token ids of a text, from start to end token."""
        ...


class Rows(Protocol):
    """Captions in flight, with all that their next tokens need; begun, there is one row for each picture."""

    def extend(self, tokens: Tensor) -> Tensor:
        """Feeds tokens (R, n) and returns the logits (R, n, V) of what follows each."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows, in this order; rows of a picture stay together, and may be repeated."""

    def join(self, other: Self) -> None:
        """Adds the rows of other pictures, after its own."""


# Encodes the pictures and prompts of N requests and begins their rows: normalised image features (N, E), if any, and the rows
Begin = Callable[[Sequence[Request]], tuple[Tensor | None, Rows]]


class Rules(NamedTuple):
    """The rules that hold for every caption of a run.

    Captions start with the tokens `prefix` (P,), never hold the tokens `never`, and have at most max_length tokens; where the
    limit comes, the last one is the end token, not looked for. The last token is never fed back. `stops` end them, too; `masked`
    makes of captions in flight and logits (R, V) those of the tokens that may come next, which the rest then is about.
    """

    sampling: SamplingConfig
    prefix: Tensor
    never: Tensor
    end_id: int
    max_length: int
    stops: Stops | None = None
    masked: Callable[[Any, Tensor], Tensor] | None = None

    @classmethod
    def of(cls, captioner: Speaker, sampling: SamplingConfig, never: Sequence[int], device: torch.device) -> Self:
        """The rules of a captioner with token ids; raises ValueError with everything in which the sampling does not fit it."""
        longest = captioner.context_length + 1  # the last token is not fed back
        max_length = sampling.max_length or longest
        prefix = captioner.encode_text_ids(sampling.prefix)[:-1] if sampling.prefix else [captioner.start_id]
        problems = []
        if max_length > longest:
            problems.append(f"max_length {max_length} exceeds {longest}, the context of {captioner.name} + 1")
        if sampling.min_length > max_length:
            problems.append(f"min_length {sampling.min_length} exceeds {max_length}, the longest caption")
        if len(prefix) > max_length - 2:
            problems.append(f"prefix takes {len(prefix)} of {max_length} tokens: no room for a caption")
        if problems:
            raise ValueError("sampling: " + "; ".join(problems))
        starts, banned = (torch.tensor(ids, device=device) for ids in (prefix, never))
        return cls(sampling, starts, banned, captioner.end_id, max_length)


class Decoded(NamedTuple):
    """A caption's tokens from start to end, its log-probability, and whether the limit ended it (see Caption)."""

    tokens: list[int]
    logprob: float
    truncated: bool


class DecodedPicture(NamedTuple):
    """A request's captions, and its picture's normalised features (E,) in float32, if there is one."""

    key: str
    features: Tensor | None
    captions: list[Decoded]


def each_on_host(features: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """The features (E,) of each of so many pictures in float32, or as many None."""
    return [None] * count if features is None else list(features.float().cpu())
