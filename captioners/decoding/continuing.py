"""Decoding on the cache of a transformers model: what is known of prompts, then their captions side by side.

Dimensions: N prompts, R rows (captions in flight, of one prompt after the other), P tokens of the longest prompt, n new tokens,
t positions of a caption attended to, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, EncoderDecoderCache

from captioners.decoding.cache import CrossCache, SharedCache, nbytes, sharing

GRAPH_POSITIONS = 64  # a graph attends to a multiple of so many positions
# Logits (R, n, V) of what follows tokens (R, n) at positions (R, n), by a cache; a mask (R, 1, n, t) is added to the scores
Step = Callable[[Tensor, Tensor, Tensor, Cache], Tensor]


class Continuing:
    """Captions in flight on a model's own layers, after prompts that it has seen (see `captioners.decoding.rows.Rows`).

    Starts with one row per prompt, whose keys and values are kept once for all its captions. The first token that rows are fed
    is the start token, for which the prompt stands: what follows, `first` (N, 1, V), is known. `begin` (N,): the position of
    a caption's first token. Rows may be of unequal length. `ends`: tokens that end a caption, of which the first stands for all:
    with the probability of all, or, where `greedy`, of the best, as greedy search takes the best token. `cross`: keys and
    values of a cross-attention, of which the config is that of the layers that attend. `graphs`: on a GPU the steps of the same
    rows are one CUDA graph, launched as a whole.
    """

    def __init__(
        self,
        step: Step,
        config: PreTrainedConfig,
        own: SharedCache,
        first: Tensor,
        begin: Tensor,
        *,
        ends: Sequence[int],
        greedy: bool,
        cross: CrossCache | None = None,
        graphs: bool = False,
    ):
        self.step, self.config, self.own, self.begin, self.cross = step, config, own, begin, cross
        self.greedy, self.end, self.ends = greedy, ends[0], torch.tensor(ends, device=first.device)
        self.dtype, self.limit = first.dtype, own.limit
        self.first: Tensor | None = self._one_end(first)  # (N, 1, V), until it is asked for
        self.cache = own if cross is None else EncoderDecoderCache(own, cross)
        self.lengths, self.longest = torch.zeros_like(begin), 0  # (R,), tokens fed; and no fewer than the most of them
        self.graphs, self.room, self.warm, self.graph = graphs and first.is_cuda, 0, False, None

    def extend(self, tokens: Tensor) -> Tensor:
        """Feeds tokens (R, n) and returns the logits (R, n, V), float32, of what follows; the next call may overwrite them."""
        if self.first is None:
            return self._feed(tokens)
        first, self.first = self.first, None
        return first if tokens.shape[1] == 1 else torch.cat([first, self._feed(tokens[:, 1:])], dim=1)

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows, in this order; rows of a prompt stay together, and may be repeated."""
        self.lengths, self.begin = self.lengths[rows], self.begin[rows]
        self.longest = int(self.lengths.max())
        self.own.keep(rows, self.longest)
        if self.cross is not None:
            self.cross.keep(rows)
        self.warm, self.graph = False, None

    def join(self, other: Self) -> None:
        """Adds the rows of other prompts, after its own."""
        self.own.join(other.own, self.longest, other.longest)
        if self.cross is not None and other.cross is not None:  # both are of one model
            self.cross.join(other.cross)
        self.lengths, self.longest = torch.cat([self.lengths, other.lengths]), max(self.longest, other.longest)
        self.begin = torch.cat([self.begin, other.begin])
        self.warm, self.graph = False, None

    def bytes_per_picture(self, captions: int) -> int:
        """The bytes that a prompt with so many captions takes here, judged from rows of one caption a prompt."""
        cross = [] if self.cross is None else self.cross.layers
        return self.own.bytes_per_picture(captions) + captions * nbytes(cross) // len(self.lengths)

    def _feed(self, tokens: Tensor) -> Tensor:
        self.longest = min(self.longest + tokens.shape[1], self.limit)  # not looked up: a GPU would be waited for
        if not self.graphs or tokens.shape[1] > 1:
            return self._step(tokens, self.longest)
        room = min(-(-self.longest // GRAPH_POSITIONS) * GRAPH_POSITIONS, self.limit)
        if room != self.room:
            self.room, self.warm, self.graph = room, False, None
        if not self.warm:  # the first step of these rows also sets up what a capture may not
            self.warm = True
            return self._step(tokens, room)
        if self.graph is None:
            self.graph, self.fed = torch.cuda.CUDAGraph(), tokens.clone()
            # of the rows' own GPU, whatever the current one is; other threads may pin memory
            with torch.cuda.device(tokens.device), torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.logits = self._step(self.fed, room)
        self.fed.copy_(tokens)
        self.graph.replay()
        return self.logits

    def _step(self, tokens: Tensor, length: int) -> Tensor:
        """`_feed`, with attention over the first `length` positions; of the same shapes and memory for the same rows."""
        new = torch.arange(tokens.shape[1], device=tokens.device)
        # a finished row that has not left yet may be at its end: what it is fed is not looked at
        positions = self.lengths[:, None].clamp(max=self.limit - len(new)) + new  # (R, n)
        self.lengths.copy_(positions[:, -1] + 1)
        self.own.positions, self.own.length = positions, length
        later = torch.arange(length, device=tokens.device) > positions[..., None]  # (R, n, t)
        mask = torch.zeros_like(later, dtype=self.dtype).masked_fill(later, float("-inf"))[:, None]
        if not self.own.parts:
            mask = self.own.with_prompts(mask)
        with sharing(self.config) if self.own.parts else contextlib.nullcontext():
            return self._one_end(self.step(tokens, self.begin[:, None] + positions, mask, self.cache))

    def _one_end(self, logits: Tensor) -> Tensor:
        """Logits (R, n, V), in which one end token stands for all, in float32."""
        logits = logits.float()
        if len(self.ends) == 1:
            return logits
        ended = logits[..., self.ends]  # (R, n, ends)
        logits.index_fill_(-1, self.ends, float("-inf"))
        logits[..., self.end] = ended.amax(-1) if self.greedy else ended.logsumexp(-1)
        return logits
