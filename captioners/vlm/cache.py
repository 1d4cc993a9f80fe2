"""Keys and values of a transformers model in decoding: those of the prompt once for each picture, those of captions row by row.

Dimensions: N pictures, C captions of the picture that has the most, R rows (captions in flight, of one picture after the other),
P tokens of the prompt, n new tokens, t positions of a caption attended to, H heads of keys and values, G heads of queries for
each of them, D width of a head.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from captioners.decoding.key_values import KeyValueCache

SHARED = "shared_prompt"  # the name by which transformers knows `attend`


class Grid:
    """Rows (R,) of these pictures as cells of a grid of N x C, of which some are empty where pictures have unequal numbers."""

    def __init__(self, pictures: Tensor):
        counts = pictures.bincount()
        self.shape = len(counts), int(counts.max())
        within = torch.arange(len(pictures), device=pictures.device) - (counts.cumsum(0) - counts)[pictures]
        self.cells = None if self.shape[0] * self.shape[1] == len(pictures) else pictures * self.shape[1] + within

    def spread(self, rows: Tensor) -> Tensor:
        """(R, H, m, ...) to (N, H, C * m, ...), zero in empty cells."""
        if self.cells is not None:
            rows = rows.new_zeros(self.shape[0] * self.shape[1], *rows.shape[1:]).index_copy_(0, self.cells, rows)
        return rows.unflatten(0, self.shape).transpose(1, 2).flatten(2, 3)

    def gather(self, cells: Tensor) -> Tensor:
        """(N, H, C * m, ...) to (R, H, m, ...)."""
        cells = cells.unflatten(2, (self.shape[1], -1)).transpose(1, 2).flatten(0, 1)
        return cells if self.cells is None else cells[self.cells]


class Parts(NamedTuple):
    """Keys, or values, that rows attend to: the prompt's of their pictures (N, H, P, D), and their own (R, H, t, D).

    `padding` (N, 1, 1, P) is added to the prompts' scores, where these are not all of one length.
    """

    prompt: Tensor
    own: Tensor
    grid: Grid
    padding: Tensor | None


class SharedCache(Cache):
    """A cache that starts with prompts of N pictures, one row for each, with room for `limit` more tokens of every row.

    lengths (N,): the tokens of each prompt, after which its keys and values are padding.
    Its layers, as transformers knows them, hold the prompts; `own` what the rows are fed.
    A model is given Parts if it attends by `attend`, as it does within `sharing`; otherwise every row's keys and values are put
    together at each step. `positions` (R, n) and `length`, set before a step, are where its tokens go, and how many positions it
    attends to.
    """

    positions: Tensor
    length: int = 0

    def __init__(self, prompts: Cache, lengths: Tensor, *, limit: int, parts: bool):
        super().__init__(layers=prompts.layers)
        self.lengths = lengths
        self.own = [
            KeyValueCache(*(of.new_zeros(*of.shape[:2], limit, of.shape[-1]) for of in (layer.keys, layer.values)))
            for layer in self.layers
        ]
        self.parts = parts
        keys = self.layers[0].keys
        self._place(torch.arange(len(keys), device=keys.device))

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_, **__
    ) -> tuple[Tensor, Tensor] | tuple[Parts, Parts]:
        """Takes in keys and values (R, H, n, D) of a step, and returns all that the rows attend to."""
        prompt, own = self.layers[layer_idx], self.own[layer_idx]
        own.put(keys, values, self.positions)
        pairs = (prompt.keys, own.keys[:, :, : self.length]), (prompt.values, own.values[:, :, : self.length])
        if self.parts:
            return tuple(Parts(*pair, self.grid, self.padding) for pair in pairs)
        return tuple(torch.cat([shared[self.pictures], held], dim=2) for shared, held in pairs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(layer_idx) + self.length

    def keep(self, rows: Tensor, used: int) -> None:
        """Goes on with these rows, of which the first `used` positions are taken, and with their pictures."""
        for own in self.own:
            own.keep(rows, used)
        alive, pictures = self.pictures[rows].unique_consecutive(return_inverse=True)
        if len(alive) < self.grid.shape[0]:
            self.batch_select_indices(alive)
            self.lengths = self.lengths[alive]
            pad_layers(self, int(self.lengths.max()))
        self._place(pictures)

    def join(self, other: Self, used: int, others_used: int) -> None:
        """Adds the rows of other pictures after its own; so many positions of either are taken."""
        for ours, theirs in zip(self.own, other.own, strict=True):
            ours.join(theirs, used, others_used)
        join_layers(self, other)
        self.lengths = torch.cat([self.lengths, other.lengths])
        self._place(torch.cat([self.pictures, self.grid.shape[0] + other.pictures]))

    def bytes_per_picture(self, captions: int) -> int:
        """What a picture with so many captions takes here, from rows of one caption a picture."""
        return (nbytes(self.layers) + captions * nbytes(self.own)) // len(self.pictures)

    def _place(self, pictures: Tensor) -> None:
        self.pictures, self.grid = pictures, Grid(pictures)
        self.padding = padding_of(self, self.lengths)


class CrossCache(Cache):
    """A cache of what an encoder has seen for each row, which a decoder attends to.

    lengths: how much each row has, after which its keys and values are padding; 0: all of it. `padding` is as that of Parts.
    """

    def __init__(self, seen: Cache, lengths: Sequence[int]):
        super().__init__(layers=seen.layers)
        keys = self.layers[0].keys
        self.lengths = torch.tensor([length or keys.shape[2] for length in lengths], device=keys.device)
        self.padding = padding_of(self, self.lengths)

    def keep(self, rows: Tensor) -> None:
        self.batch_select_indices(rows)
        self.lengths = self.lengths[rows]
        self.padding = padding_of(self, self.lengths)

    def join(self, other: Self) -> None:
        join_layers(self, other)
        self.lengths = torch.cat([self.lengths, other.lengths])
        self.padding = padding_of(self, self.lengths)


def padding_of(cache: Cache, lengths: Tensor) -> Tensor | None:
    """What is added to scores (rows, 1, 1, t), so that nothing after so many keys of each row counts; None where all count."""
    keys = cache.layers[0].keys
    padded = torch.arange(keys.shape[2], device=keys.device) >= lengths[:, None]
    padding = torch.zeros_like(padded, dtype=keys.dtype).masked_fill(padded, float("-inf"))[:, None, None]
    return padding if padded.any() else None


def pad_layers(cache: Cache, length: int) -> None:
    """Pads, or cuts, keys and values to so many."""
    more = length - cache.layers[0].keys.shape[2]
    for layer in cache.layers if more else ():
        layer.keys, layer.values = (F.pad(of, (0, 0, 0, more)) for of in (layer.keys, layer.values))


def join_layers(cache: Cache, other: Cache) -> None:
    """Adds another cache's keys and values after those of this one, the shorter ones padded."""
    longest = max(each.layers[0].keys.shape[2] for each in (cache, other))
    for each in (cache, other):
        pad_layers(each, longest)
    for ours, theirs in zip(cache.layers, other.layers, strict=True):
        ours.keys, ours.values = torch.cat([ours.keys, theirs.keys]), torch.cat([ours.values, theirs.values])


def nbytes(layers: Iterable[CacheLayerMixin | KeyValueCache]) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


@contextlib.contextmanager
def sharing(config: PreTrainedConfig) -> Iterator[None]:
    """Within it the layers that ask this config how to attend do so by `attend`."""
    before, config._attn_implementation = config._attn_implementation, SHARED
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    module: nn.Module, query: Tensor, key: Parts, value: Parts, attention_mask: Tensor, scaling: float, **_
) -> tuple[Tensor, None]:
    """Attention (R, n, G * H, D) of queries (R, G * H, n, D) over prompt and caption, as transformers' layers call it.

    The captions of a picture, and the queries that share a head of keys, are the query axis of one product with the prompt's
    keys: nothing is replicated. The mask (R, 1, n, t) is of the captions' own positions.
    """
    grid, (rows, heads, new, width) = key.grid, query.shape
    query = (query * scaling).reshape(rows, key.own.shape[1], -1, width)  # (R, H, G * n, D)
    own = query @ key.own.mT + attention_mask.repeat(1, 1, query.shape[2] // new, 1)  # (R, H, G * n, t)
    prompt = grid.spread(query) @ key.prompt.mT  # (N, H, C * G * n, P)
    prompt = prompt if key.padding is None else prompt + key.padding
    scores = torch.cat([prompt, grid.spread(own)], dim=-1)  # of one softmax
    weights = scores.softmax(-1).split([prompt.shape[-1], own.shape[-1]], dim=-1)
    out = grid.gather(weights[0] @ value.prompt) + grid.gather(weights[1]) @ value.own
    return out.reshape(rows, heads, new, width).transpose(1, 2), None


AttentionInterface.register(SHARED, attend)
