"""Keys and values of a transformers model in decoding: what prompts begin with once for all of them, the rest of a prompt once for
all captions of its picture, or of what else it is of, and those of captions row by row.

Dimensions: N pictures (or prompts without), C captions of the one that has the most, R rows (captions in flight, of one picture after
the other), S tokens that prompts begin with, P further tokens of a prompt, n new tokens, t positions of a caption attended to, H heads
of keys and values, G heads of queries for each of them, D width of a head.
"""

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, OPTForCausalLM, PreTrainedConfig
from transformers.cache_utils import Cache

from captioners.decoding.key_values import KeyValueCache

SHARED = "shared_prompt"  # the name by which transformers knows `attend`
# the name that transformers has for the cache of keys and values
CACHE = "cache" if "cache" in inspect.signature(OPTForCausalLM.forward).parameters else "past_key_values"


class FilledLayer(Protocol):
    """A layer of a cache that holds keys and values (rows, H, tokens, D): transformers' own types allow empty ones."""

    keys: Tensor
    values: Tensor


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


class Head(NamedTuple):
    """The tokens of one prompt, and their keys and values (1, H, S or more, D) in each layer: others begin with some of them."""

    ids: Sequence[int]
    layers: Sequence[tuple[Tensor, Tensor]]


class Parts(NamedTuple):
    """Keys, or values, that rows attend to: the head's (H, S, D), their prompts' further ones (N, H, P, D), and their own (R, H, t, D).

    `beyond` (N, 1, 1, S) is added to the scores of the head, where prompts do not all begin with as much of it, and `padding`
    (N, 1, 1, P) to those of the prompts, where these are not all of one length.
    """

    head: Tensor | None
    prompt: Tensor
    own: Tensor
    grid: Grid
    beyond: Tensor | None
    padding: Tensor | None


class SharedCache(Cache):
    """A cache that starts with N prompts, one row for each, with room for `limit` more tokens of every row.

    lengths (N,): the tokens of each prompt, after which its keys and values are padding.
    head: what prompts begin with, before those tokens, and `begun` (N,) how much of it each of them does.
    Its layers, as transformers knows them, hold the prompts; `own` what the rows are fed.
    A model is given Parts if it attends by `attend`, as it does within `sharing`; otherwise every row's keys and values are put
    together at each step. `positions` (R, n) and `length`, set before a step, are where its tokens go, and how many positions it
    attends to.
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
        begun: Tensor | None = None,
    ):
        super().__init__(layers=prompts.layers)
        self.lengths, self.head, self.limit = lengths, head, limit
        self.begun = torch.zeros_like(lengths) if begun is None else begun
        self.own = [
            KeyValueCache(
                *(seen.new_zeros(*seen.shape[:2], limit, seen.shape[-1]) for seen in (layer.keys, layer.values))
            )
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
        heads = self.head.layers[layer_idx] if self.head is not None and self.most else (None, None)
        parts = []
        for head, shared, held in zip(heads, (prompt.keys, prompt.values), (own.keys, own.values), strict=True):
            head, held = None if head is None else head[0, :, : self.most], held[:, :, : self.length]
            if self.parts:
                parts.append(Parts(head, shared, held, self.grid, self.beyond, self.padding))
            else:
                before = [] if head is None else [head.expand(len(held), -1, -1, -1)]
                parts.append(torch.cat([*before, shared[self.pictures], held], dim=2))
        return tuple(parts)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.most + super().get_seq_length(layer_idx) + self.length

    def with_prompts(self, mask: Tensor) -> Tensor:
        """A mask (R, 1, n, t) of rows' own positions, with that of their heads and prompts before it, where these are put together."""
        for hidden, length in ((self.padding, self.layers[0].keys.shape[2]), (self.beyond, self.most)):
            mask = F.pad(mask, (length, 0))
            if hidden is not None:
                mask[..., :length] += hidden[self.pictures]
        return mask

    def keep(self, rows: Tensor, used: int) -> None:
        """Goes on with these rows, of which the first `used` positions are taken, and with their pictures."""
        for own in self.own:
            own.keep(rows, used)
        alive, pictures = self.pictures[rows].unique_consecutive(return_inverse=True)
        if len(alive) < self.grid.shape[0]:
            self.batch_select_indices(alive)
            self.lengths, self.begun = self.lengths[alive], self.begun[alive]
            pad_layers(self.layers, int(self.lengths.max()))
        self._place(pictures)

    def join(self, other: Self, used: int, others_used: int) -> None:
        """Adds the rows of other pictures, with the same head, after its own; so many positions of either are taken."""
        for ours, theirs in zip(self.own, other.own, strict=True):
            ours.join(theirs, used, others_used)
        join_layers(self.layers, other.layers)
        self.lengths, self.begun = torch.cat([self.lengths, other.lengths]), torch.cat([self.begun, other.begun])
        self._place(torch.cat([self.pictures, self.grid.shape[0] + other.pictures]))

    def bytes_per_picture(self, captions: int) -> int:
        """The bytes that a picture with so many captions takes here, judged from rows of one caption a picture."""
        return (nbytes(self.layers) + captions * nbytes(self.own)) // len(self.pictures)

    def _place(self, pictures: Tensor) -> None:
        self.pictures, self.grid, keys = pictures, Grid(pictures), self.layers[0].keys
        self.most = 0 if self.head is None else int(self.begun.max())
        self.beyond = padding_after(self.begun, self.most, keys)
        self.padding = padding_after(self.lengths, keys.shape[2], keys)


class CrossCache(Cache):
    """A cache of what an encoder has seen for each row, which a decoder attends to.

    lengths: how much each row has, after which its keys and values are padding; 0: all of it. `padding` is as that of Parts.
    """

    layers: Sequence[FilledLayer]

    def __init__(self, seen: Cache, lengths: Sequence[int]):
        super().__init__(layers=seen.layers)
        keys = self.layers[0].keys
        self._set(torch.tensor([length or keys.shape[2] for length in lengths], device=keys.device))

    def keep(self, rows: Tensor) -> None:
        self.batch_select_indices(rows)
        self._set(self.lengths[rows])

    def join(self, other: Self) -> None:
        join_layers(self.layers, other.layers)
        self._set(torch.cat([self.lengths, other.lengths]))

    def _set(self, lengths: Tensor) -> None:
        keys = self.layers[0].keys
        self.lengths, self.padding = lengths, padding_after(lengths, keys.shape[2], keys)


def padding_after(lengths: Tensor, longest: int, like: Tensor) -> Tensor | None:
    """The mask (rows, 1, 1, longest) that hides the keys of each row after its length; None where nothing is hidden."""
    hidden = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    padding = torch.zeros_like(hidden, dtype=like.dtype).masked_fill(hidden, float("-inf"))[:, None, None]
    return padding if hidden.any() else None


def pad_layers(layers: Sequence[FilledLayer], length: int) -> None:
    """Pads, or cuts, keys and values to so many."""
    more = length - layers[0].keys.shape[2]
    for layer in layers if more else ():
        layer.keys, layer.values = (F.pad(tensor, (0, 0, 0, more)) for tensor in (layer.keys, layer.values))


def join_layers(layers: Sequence[FilledLayer], others: Sequence[FilledLayer]) -> None:
    """Adds another cache's keys and values after those of this one, the shorter ones padded."""
    longest = max(each[0].keys.shape[2] for each in (layers, others))
    for each in (layers, others):
        pad_layers(each, longest)
    for ours, theirs in zip(layers, others, strict=True):
        ours.keys, ours.values = torch.cat([ours.keys, theirs.keys]), torch.cat([ours.values, theirs.values])


def nbytes(layers: Iterable[FilledLayer]) -> int:
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
    """Attention (R, n, G * H, D) of queries (R, G * H, n, D) over head, prompt and caption, as transformers' layers call it.

    The captions of a picture, and the queries that share a head of keys, are the query axis of one product with the prompt's
    keys, and those of all pictures that of one product with what prompts begin with: nothing is replicated. The mask
    (R, 1, n, t) is of the captions' own positions.
    """
    grid, (rows, heads, new, width) = key.grid, query.shape
    query = (query * scaling).reshape(rows, key.own.shape[1], -1, width)  # (R, H, G * n, D)
    own = query @ key.own.mT + attention_mask.repeat(1, 1, query.shape[2] // new, 1)  # (R, H, G * n, t)
    query = grid.spread(query)  # (N, H, C * G * n, D)
    scores = [plus(query @ key.prompt.mT, key.padding), grid.spread(own)]  # (N, H, C * G * n, P or t)
    if key.head is not None:
        scores.append(plus(times_head(query, key.head.mT), key.beyond))
    weights = torch.cat(scores, dim=-1).softmax(-1).split([part.shape[-1] for part in scores], dim=-1)
    out = weights[0] @ value.prompt
    if value.head is not None:
        out = out + times_head(weights[2], value.head)
    out = grid.gather(out) + grid.gather(weights[1]) @ value.own
    return out.reshape(rows, heads, new, -1).transpose(1, 2), None


def plus(scores: Tensor, mask: Tensor | None) -> Tensor:
    return scores if mask is None else scores + mask


def times_head(rows: Tensor, head: Tensor) -> Tensor:
    """(N, H, m, a) times (H, a, b), all N in one product: (N, H, m, b)."""
    return (rows.transpose(0, 1).flatten(1, 2) @ head).unflatten(1, (len(rows), -1)).transpose(0, 1)


AttentionInterface.register(SHARED, attend)
