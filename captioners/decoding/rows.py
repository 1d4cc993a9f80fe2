"""The interface between a model and the search for captions. Sampling and beam search use a model only through it.

Dimensions: N pictures, R rows (captions in flight, grouped by picture), n new tokens, P tokens of the prefix,
V vocabulary, E embedding.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from captioners.base import Request, SamplingConfig
from captioners.decoding.stops import Stops


class LocalCaptioner(Protocol):
    """What the rules need of a captioner that chooses its tokens in this process."""

    name: str
    context_length: int  # maximum tokens, start and end included
    start_id: int
    end_id: int

    def encode_text_ids(self, text: str) -> list[int]:
        """The token ids of a text, from start to end token."""
        ...


class Rows(Protocol):
    """Captions in flight, with the model's state that their next tokens depend on. Starts with a row per picture."""

    def extend(self, tokens: Tensor) -> Tensor:
        """Feed tokens (R, n); return the logits (R, n, V) of the token that follows each."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows, in this order. Rows of a picture stay together; a row may be repeated."""

    def join(self, other: Self) -> None:
        """Append the rows of other pictures."""


# Encodes the pictures and prompts of N requests and begins their rows. Returns the normalised image features (N, E),
# or None if there are none, and the rows.
Begin = Callable[[Sequence[Request]], tuple[Tensor | None, Rows]]


class Rules(NamedTuple):
    """The rules for every caption of a run.

    prefix: the tokens (P,) that every caption starts with.
    banned: the tokens that no caption contains.
    max_length: maximum tokens. At the limit, the end token is appended without choosing it. The last token of a
        caption is never fed to the model.
    stops: texts that also end a caption.
    masked: a function of the captions in flight and their logits (R, V) that masks the logits of tokens that must not
        come next, before any other rule.
    """

    sampling: SamplingConfig
    prefix: Tensor
    banned: Tensor
    end_id: int
    max_length: int
    stops: Stops | None = None
    masked: Callable[[Any, Tensor], Tensor] | None = None

    @classmethod
    def of_captioner(
        cls, captioner: LocalCaptioner, sampling: SamplingConfig, banned: Sequence[int], device: torch.device
    ) -> Self:
        """Make the rules of a captioner from token ids; ValueError with everything that the captioner cannot do."""
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
        return cls(
            sampling,
            torch.tensor(prefix, device=device),
            torch.tensor(banned, device=device),
            end_id=captioner.end_id,
            max_length=max_length,
        )


def peak_bytes(sampling: SamplingConfig, bytes_of: Callable[[int], int], vocabulary: int) -> int:
    """Estimate the peak memory, in bytes, of a picture or prompt in flight and its captions.

    bytes_of: from the number of captions in flight, beams included, to the bytes that their rows take.
    """
    captions = sampling.num_beams if sampling.strategy == "beam" else sampling.num_captions
    # Twice the rows, because rows that leave or join are copied. Choosing a token takes about eight float32 numbers
    # for each token of the vocabulary.
    return 2 * bytes_of(captions) + 8 * 4 * captions * vocabulary


class Decoded(NamedTuple):
    """The tokens of a generated caption."""

    tokens: list[int]  # start and end token included
    logprob: float  # as Caption.logprob
    truncated: bool  # whether the length limit ended the caption


class DecodedPicture(NamedTuple):
    """The captions of a request as tokens, and the normalised features (E,) of its picture in float32, or None."""

    key: str
    features: Tensor | None
    captions: list[Decoded]


def each_on_host(features: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """Copy the features of `count` pictures to the host: a tensor (E,) in float32, or None, for each picture."""
    return [None] * count if features is None else list(features.float().cpu())
