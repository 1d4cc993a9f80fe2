"""Cached keys and values of a transformers model, without copies of what captions share.

They have three parts: the head, which all prompts begin with, is stored once; the rest of a prompt is stored once for
all its captions; and each caption's own tokens are stored row by row.

Dimensions: N prompts (one per picture or text), C captions of the prompt that has the most, R rows (captions in
flight, grouped by prompt), S tokens of the head, P further tokens of a prompt, n new tokens, t positions of a caption
that are attended to, H heads of keys and values, G heads of queries per head of keys, D width of a head.
"""

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, OPTForCausalLM, PreTrainedConfig
from transformers.cache_utils import Cache

from captioners.decoding.key_values import Grid, KeyValueCache

SHARED = "shared_prompt"  # the name under which `attend` is registered with transformers
# The name of the argument by which transformers' models take the cache of keys and values.
CACHE = "cache" if "cache" in inspect.signature(OPTForCausalLM.forward).parameters else "past_key_values"


class FilledLayer(Protocol):
    """A layer of a cache with keys and values (rows, H, tokens, D). Transformers' types also allow empty layers."""

    keys: Tensor
    values: Tensor


class Head(NamedTuple):
    """Tokens that prompts begin with, and their keys and values (1, H, S or more, D) in each layer.

    A prompt may begin with only some of the tokens.
    """

    ids: Sequence[int]
    layers: Sequence[tuple[Tensor, Tensor]]


class Parts(NamedTuple):
    """The keys, or the values, that rows attend to, in three parts."""

    head: Tensor | None  # (H, S, D)
    prompt: Tensor  # (N, H, P, D)
    caption: Tensor  # (R, H, t, D)
    grid: Grid
    head_mask: Tensor | None  # (N, 1, 1, S), added to the scores of the head; None if all prompts begin with all of it
    prompt_mask: Tensor | None  # (N, 1, 1, P), added to the scores of prompts; None if all have the same length


class SharedCache(Cache):
    """A cache that starts with N prompts, one row for each, with space for `limit` more tokens of every row.

    The cache's `layers` contain the prompts, and `caption_layers` the tokens that rows were fed.

    lengths: number of tokens of each prompt (N,), without the head; keys and values after them are padding.
    head: the tokens that prompts begin with. head_lengths: how many of them each prompt begins with (N,).
    parts: whether the model gets Parts, which only `attend` can take, so that it must run within `sharing`. Otherwise
        the keys and values of every row are concatenated at each step.
    positions (R, n), length: set before a step; the positions of its tokens, and the number of positions attended to.
    """

    layers: Sequence[FilledLayer]
    positions: Tensor
    length: int = 0

    def __init__(
        self,
        prompts: Cache,
        lengths: Tensor,
        *,
        limit: int,
        parts: bool,
        head: Head | None = None,
        head_lengths: Tensor | None = None,
    ):
        super().__init__(layers=prompts.layers)
        self.lengths, self.head, self.limit = lengths, head, limit
        self.head_lengths = torch.zeros_like(lengths) if head_lengths is None else head_lengths
        self.caption_layers = []
        for layer in self.layers:
            room = (
                prompt.new_zeros(*prompt.shape[:2], limit, prompt.shape[-1]) for prompt in (layer.keys, layer.values)
            )
            self.caption_layers.append(KeyValueCache(*room))
        self.parts = parts
        keys = self.layers[0].keys
        self._assign_rows(torch.arange(len(keys), device=keys.device))

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_, **__
    ) -> tuple[Tensor, Tensor] | tuple[Parts, Parts]:
        """Store keys and values (R, H, n, D) of a step; return all keys and values that the rows attend to."""
        prompt, caption = self.layers[layer_idx], self.caption_layers[layer_idx]
        caption.put(keys, values, self.positions)
        head_keys, head_values = (
            self.head.layers[layer_idx] if self.head is not None and self.head_length else (None, None)
        )
        return (
            self._attended(head_keys, prompt.keys, caption.keys),
            self._attended(head_values, prompt.values, caption.values),
        )

    def _attended(self, head: Tensor | None, prompt: Tensor, caption: Tensor) -> Any:
        """The keys, or values, of a layer that rows attend to: Parts, or all of a row in one tensor."""
        head = None if head is None else head[0, :, : self.head_length]
        caption = caption[:, :, : self.length]
        if self.parts:
            return Parts(head, prompt, caption, self.grid, self.head_mask, self.prompt_mask)
        before = [] if head is None else [head.expand(len(caption), -1, -1, -1)]
        return torch.cat([*before, prompt[self.pictures], caption], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of keys that a row attends to, padding included."""
        return self.head_length + super().get_seq_length(layer_idx) + self.length

    def with_prompts(self, mask: Tensor) -> Tensor:
        """Extend a mask (R, 1, n, t) of the captions' positions to the left by those of heads and prompts."""
        for part_mask, length in (
            (self.prompt_mask, self.layers[0].keys.shape[2]),
            (self.head_mask, self.head_length),
        ):
            mask = F.pad(mask, (length, 0))
            if part_mask is not None:
                mask[..., :length] += part_mask[self.pictures]
        return mask

    def keep(self, rows: Tensor, used: int) -> None:
        """Continue with these rows, of which the first `used` positions are in use, and with their pictures."""
        for layer in self.caption_layers:
            layer.keep(rows, used)
        alive, pictures = self.pictures[rows].unique_consecutive(return_inverse=True)
        if len(alive) < self.grid.shape[0]:
            self.batch_select_indices(alive)
            self.lengths, self.head_lengths = self.lengths[alive], self.head_lengths[alive]
            pad_layers(self.layers, int(self.lengths.max()))
        self._assign_rows(pictures)

    def join(self, other: Self, used: int, others_used: int) -> None:
        """Append the rows of other pictures, which must have the same head.

        used, others_used: the number of positions in use in the rows of either cache.
        """
        for ours, theirs in zip(self.caption_layers, other.caption_layers, strict=True):
            ours.join(theirs, used, others_used)
        join_layers(self.layers, other.layers)
        self.lengths = torch.cat([self.lengths, other.lengths])
        self.head_lengths = torch.cat([self.head_lengths, other.head_lengths])
        self._assign_rows(torch.cat([self.pictures, self.grid.shape[0] + other.pictures]))

    def bytes_per_picture(self, captions: int) -> int:
        """The bytes that a picture with this many captions takes here; there must be one row per picture now."""
        return (nbytes(self.layers) + captions * nbytes(self.caption_layers)) // len(self.pictures)

    def _assign_rows(self, pictures: Tensor) -> None:
        """Set the picture of each row (R,), and all that depends on it."""
        self.pictures, self.grid, keys = pictures, Grid(pictures), self.layers[0].keys
        self.head_length = 0 if self.head is None else int(self.head_lengths.max())
        self.head_mask = mask_after(self.head_lengths, self.head_length, keys)
        self.prompt_mask = mask_after(self.lengths, keys.shape[2], keys)


class CrossCache(Cache):
    """A cache of the keys and values that an encoder made for each row, which a decoder attends to.

    encoded: transformers' cache of them.
    lengths: the number of keys of each row; the others are padding. 0: none is padding.
    mask: (R, 1, 1, keys), added to the scores of the cross-attention; None if no row has padding.
    """

    layers: Sequence[FilledLayer]

    def __init__(self, encoded: Cache, lengths: Sequence[int]):
        super().__init__(layers=encoded.layers)
        keys = self.layers[0].keys
        self._set_lengths(torch.tensor([length or keys.shape[2] for length in lengths], device=keys.device))

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows."""
        self.batch_select_indices(rows)
        self._set_lengths(self.lengths[rows])

    def join(self, other: Self) -> None:
        """Append the rows of another cache."""
        join_layers(self.layers, other.layers)
        self._set_lengths(torch.cat([self.lengths, other.lengths]))

    def _set_lengths(self, lengths: Tensor) -> None:
        keys = self.layers[0].keys
        self.lengths, self.mask = lengths, mask_after(lengths, keys.shape[2], keys)


def mask_after(lengths: Tensor, longest: int, like: Tensor) -> Tensor | None:
    """The mask (rows, 1, 1, longest) that hides the keys of each row after its length; None if it hides none.

    like: a tensor of the dtype that the mask gets.
    """
    hidden = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    mask = torch.zeros_like(hidden, dtype=like.dtype).masked_fill(hidden, float("-inf"))[:, None, None]
    return mask if hidden.any() else None


def pad_layers(layers: Sequence[FilledLayer], length: int) -> None:
    """Pad or cut the keys and values of all layers to this number of positions."""
    missing = length - layers[0].keys.shape[2]
    if missing == 0:
        return
    for layer in layers:
        layer.keys, layer.values = (F.pad(tensor, (0, 0, 0, missing)) for tensor in (layer.keys, layer.values))


def join_layers(layers: Sequence[FilledLayer], others: Sequence[FilledLayer]) -> None:
    """Append the keys and values of another cache's layers, after padding the shorter ones."""
    longest = max(cached[0].keys.shape[2] for cached in (layers, others))
    for cached in (layers, others):
        pad_layers(cached, longest)
    for ours, theirs in zip(layers, others, strict=True):
        ours.keys, ours.values = torch.cat([ours.keys, theirs.keys]), torch.cat([ours.values, theirs.values])


def nbytes(layers: Iterable[FilledLayer]) -> int:
    """The bytes of all keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


@contextlib.contextmanager
def sharing(config: PreTrainedConfig) -> Iterator[None]:
    """A context in which layers with this config compute attention with `attend`."""
    before, config._attn_implementation = config._attn_implementation, SHARED
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    module: nn.Module, query: Tensor, key: Parts, value: Parts, attention_mask: Tensor, scaling: float, **_
) -> tuple[Tensor, None]:
    """Attention (R, n, G * H, D) of queries (R, G * H, n, D) over head, prompt and caption.

    Transformers' layers call it, by the signature of its attention functions.
    attention_mask: (R, 1, n, t), added to the scores of the captions' positions.

    No keys or values are copied. The queries of all captions of a prompt, and of all heads of queries that share a
    head of keys, form the query axis of one product with the prompt's keys; those of all prompts form the query axis
    of one product with the head's keys.
    """
    grid, (rows, heads, num_tokens, width) = key.grid, query.shape
    query = (query * scaling).reshape(rows, key.caption.shape[1], -1, width)  # (R, H, G * n, D)
    mask = attention_mask.repeat(1, 1, query.shape[2] // num_tokens, 1)
    caption_scores = query @ key.caption.mT + mask  # (R, H, G * n, t)
    query = grid.spread(query)  # (N, H, C * G * n, D)
    scores = [_add_mask(query @ key.prompt.mT, key.prompt_mask), grid.spread(caption_scores)]  # (N, H, C * G * n, ...)
    if key.head is not None:
        scores.append(_add_mask(_times_head(query, key.head.mT), key.head_mask))
    weights = torch.cat(scores, dim=-1).softmax(-1).split([part.shape[-1] for part in scores], dim=-1)
    attended = weights[0] @ value.prompt
    if value.head is not None:
        attended = attended + _times_head(weights[2], value.head)
    attended = grid.gather(attended) + grid.gather(weights[1]) @ value.caption
    return attended.reshape(rows, heads, num_tokens, -1).transpose(1, 2), None


def _add_mask(scores: Tensor, mask: Tensor | None) -> Tensor:
    return scores if mask is None else scores + mask


def _times_head(rows: Tensor, head: Tensor) -> Tensor:
    """Multiply (N, H, m, a) by (H, a, b) in one product for all N; returns (N, H, m, b)."""
    return (rows.transpose(0, 1).flatten(1, 2) @ head).unflatten(1, (len(rows), -1)).transpose(0, 1)


AttentionInterface.register(SHARED, attend)
