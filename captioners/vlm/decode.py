"""Decoding on the cache of a transformers model: picture and prompt once, then its captions side by side.

Dimensions: N pictures, R rows (captions in flight, of one picture after the other), P tokens of the longest prompt,
n new tokens, t positions of a caption attended to, V vocabulary, S image tokens, D width.
"""

import contextlib
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from captioners.vlm.cache import CrossCache, SharedCache, nbytes, sharing
from captioners.vlm.family import CACHE, Llava, Prompt, spans

GRAPH_POSITIONS = 64  # a graph attends to a multiple of so many positions


class Continuing:
    """Captions in flight on the model's own layers, after a picture and the prompt (see `captioners.decoding.rows.Rows`).

    Starts with one row per picture, whose picture and prompt are seen in one pass; their keys and values are kept once for all
    captions of the picture. The first token that rows are fed is the start token, for which the prompt stands: what follows is
    known. Rows may be of unequal length. `limit` is the most tokens a row will be fed, start token aside. `ends`: tokens that
    end a caption, of which the first stands for all: with the probability of all, or, where `greedy`, of the best, as greedy
    search takes the best token. On a GPU the steps of the same rows are one CUDA graph, launched as a whole.
    """

    def __init__(
        self,
        family: Llava,
        pictures: Sequence[Tensor],
        prompts: Sequence[Prompt],
        *,
        limit: int,
        ends: Sequence[int],
        greedy: bool,
    ):
        device = pictures[0].device
        self.family, self.limit, self.greedy, self.end = family, limit, greedy, ends[0]
        self.ends = torch.tensor(ends, device=device)
        prompt_lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=device)
        longest, shortest = int(prompt_lengths.max()), int(prompt_lengths.min())
        ids = torch.tensor([[*ids, *ids[-1:] * (longest - len(ids))] for ids, *_ in prompts], device=device)  # (N, P)
        mask = torch.arange(ids.shape[1], device=device) < prompt_lengths[:, None]  # (N, P)
        cache, seen = family.cache(), []
        hook = family.model.get_submodule(family.vision).register_forward_hook(
            lambda module, args, output: seen.append(family.states(output))
        )
        try:
            logits = family.forward(
                family.inputs(pictures, prompts, ids, mask.long()),
                use_cache=True,
                logits_to_keep=longest - shortest + 1,
                **{CACHE: cache},
            )  # (N, that many, V)
        finally:
            hook.remove()
        last = prompt_lengths - ids.shape[1] - 1  # counted from the end, as a family may give more
        logits = logits[torch.arange(len(ids), device=device), last][:, None]
        states = seen[0].float().split(spans(len(seen[0]), [family.size(picture) for picture in pictures]))
        self.features = F.normalize(torch.stack([of.flatten(0, -2).mean(0) for of in states]), dim=-1)  # (N, D)
        self.dtype, self.first = logits.dtype, self._one_end(logits)  # (N, 1, V), until it is asked for
        self.begin = family.next_positions(prompt_lengths)  # (R,), the positions of captions' first tokens
        self.config = family.model.get_submodule(family.language).config
        self.cross: CrossCache | None = None
        if isinstance(cache, EncoderDecoderCache):
            self.cross = CrossCache(cache.cross_attention_cache, [len(prompt.asked) for prompt in prompts])
        # other layers would not let `attend` do their attention
        self.shares = self.config._attn_implementation == "sdpa" and self.cross is None
        own = cache if self.cross is None else cache.self_attention_cache
        pictures_aside = own.get_seq_length() - ids.shape[1]  # of GIT's pictures, the cache holds what has no ids
        self.own = SharedCache(own, prompt_lengths + pictures_aside, limit=limit, parts=self.shares)
        self.cache = self.own if self.cross is None else EncoderDecoderCache(self.own, self.cross)
        self.lengths, self.longest = (
            torch.zeros_like(ids[:, 0]),
            0,
        )  # (R,), tokens fed; and no fewer than the most of them
        self.graphs = ids.is_cuda and family.steps_are_alike()
        self.room, self.warm, self.graph = 0, False, None

    def extend(self, tokens: Tensor) -> Tensor:
        """Feeds tokens (R, n) and returns the logits (R, n, V), float32, of what follows; the next call may overwrite them."""
        if self.first is None:
            return self._feed(tokens)
        first, self.first = self.first, None
        return first if tokens.shape[1] == 1 else torch.cat([first, self._feed(tokens[:, 1:])], dim=1)

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows, in this order; rows of a picture stay together, and may be repeated."""
        self.lengths, self.begin = self.lengths[rows], self.begin[rows]
        self.longest = int(self.lengths.max())
        self.own.keep(rows, self.longest)
        if self.cross is not None:
            self.cross.keep(rows)
        self.warm, self.graph = False, None

    def join(self, other: Self) -> None:
        """Adds the rows of other pictures, after its own."""
        self.own.join(other.own, self.longest, other.longest)
        if self.cross is not None:
            self.cross.join(other.cross)
        self.lengths, self.longest = torch.cat([self.lengths, other.lengths]), max(self.longest, other.longest)
        self.begin = torch.cat([self.begin, other.begin])
        self.warm, self.graph = False, None

    def bytes_per_picture(self, captions: int) -> int:
        """What a picture with so many captions takes here, from rows of one caption a picture."""
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
        if not self.shares:
            mask = F.pad(mask, (self.own.get_seq_length() - length, 0))  # (R, 1, n, P + t)
            if self.own.padding is not None:
                mask[..., :-length] += self.own.padding[self.own.pictures]
        with sharing(self.config) if self.shares else contextlib.nullcontext():
            return self._one_end(self.family.step(tokens, self.begin[:, None] + positions, mask, self.cache))

    def _one_end(self, logits: Tensor) -> Tensor:
        """Logits (R, n, V), in which one end token stands for all, in float32."""
        logits = logits.float()
        if len(self.ends) == 1:
            return logits
        ended = logits[..., self.ends]  # (R, n, ends)
        logits.index_fill_(-1, self.ends, float("-inf"))
        logits[..., self.end] = ended.amax(-1) if self.greedy else ended.logsumexp(-1)
        return logits
