"""Decoding with a transformers model: the captions of prompts that are in the model's cache already.

Dimensions: N prompts, R rows (captions in flight, grouped by prompt), n new tokens, t positions of a caption that are
attended to, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, EncoderDecoderCache

from captioners.decoding.cache import CrossCache, SharedCache, nbytes, sharing

GRAPH_POSITIONS = 64  # a CUDA graph attends to a multiple of this number of positions
# From tokens (R, n), their positions (R, n), a mask (R, 1, n, t) that is added to the scores, and the cache, to the
# logits (R, n, V) of the token that follows each.
Step = Callable[[Tensor, Tensor, Tensor, Cache], Tensor]


class Continuing:
    """The rows of captions in flight, after prompts that are cached (see `captioners.decoding.rows.Rows`).

    Starts with one row per prompt; a prompt's keys and values are stored once for all its captions. Rows may differ in
    length. The first token that rows are fed is the start token. It is not fed to the model: the prompt stands in its
    place, and the logits after the prompt are known.

    step: runs the model.
    config: of the layers whose attention uses the shared cache.
    cache: the keys and values of prompts and captions.
    first: the logits after each prompt (N, 1, V).
    begin: the position of each caption's first token (N,).
    ends: the tokens that end a caption. The first one represents them all, with the sum of their probabilities, or, if
        `greedy`, with the greatest of them, because greedy search compares single tokens.
    cross: keys and values of a cross-attention.
    graphs: whether the steps of the same rows run as one CUDA graph on a GPU.
    """

    def __init__(
        self,
        step: Step,
        config: PreTrainedConfig,
        *,
        cache: SharedCache,
        first: Tensor,
        begin: Tensor,
        ends: Sequence[int],
        greedy: bool,
        cross: CrossCache | None = None,
        graphs: bool = False,
    ):
        self.step, self.config, self.begin = step, config, begin
        self.greedy, self.end, self.ends = greedy, ends[0], torch.tensor(ends, device=first.device)
        self.dtype, self.limit = first.dtype, cache.limit
        self.first: Tensor | None = self._merge_ends(first)  # (N, 1, V), until the first call of `extend`
        self.shared_cache, self.cross = cache, cross
        self.model_cache = cache if cross is None else EncoderDecoderCache(cache, cross)
        self.lengths = torch.zeros_like(begin)  # tokens fed to each row (R,)
        self.longest = 0  # an upper bound of the lengths, known without waiting for a GPU
        self.graphs = graphs and first.is_cuda and not steps_wait(config)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.graph_length = 0  # number of positions that the graph attends to
        self.is_warm = False  # whether these rows have made a step outside a graph

    def extend(self, tokens: Tensor) -> Tensor:
        """Feed tokens (R, n); return the logits (R, n, V), in float32, of the token that follows each.

        The next call may overwrite the result.
        """
        if self.first is None:
            return self._feed(tokens)
        first, self.first = self.first, None
        return first if tokens.shape[1] == 1 else torch.cat([first, self._feed(tokens[:, 1:])], dim=1)

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows, in this order. Rows of a prompt stay together; a row may be repeated."""
        self.lengths, self.begin = self.lengths[rows], self.begin[rows]
        self.longest = int(self.lengths.max())
        self.shared_cache.keep(rows, self.longest)
        if self.cross is not None:
            self.cross.keep(rows)
        self.is_warm, self.graph = False, None

    def join(self, other: Self) -> None:
        """Append the rows of other prompts."""
        self.shared_cache.join(other.shared_cache, self.longest, other.longest)
        if self.cross is not None and other.cross is not None:  # both belong to the same model
            self.cross.join(other.cross)
        self.lengths, self.longest = torch.cat([self.lengths, other.lengths]), max(self.longest, other.longest)
        self.begin = torch.cat([self.begin, other.begin])
        self.is_warm, self.graph = False, None

    def bytes_per_picture(self, captions: int) -> int:
        """The bytes that a prompt with this many captions takes here; there must be one row per prompt now."""
        cross = [] if self.cross is None else self.cross.layers
        return self.shared_cache.bytes_per_picture(captions) + captions * nbytes(cross) // len(self.lengths)

    def _feed(self, tokens: Tensor) -> Tensor:
        """Feed tokens (R, n) to the model, by a CUDA graph if possible; return the logits (R, n, V)."""
        # computed, not read from `lengths`, which would wait for a GPU
        self.longest = min(self.longest + tokens.shape[1], self.limit)
        if not self.graphs or tokens.shape[1] > 1:
            return self._step(tokens, self.longest)
        length = min(-(-self.longest // GRAPH_POSITIONS) * GRAPH_POSITIONS, self.limit)
        if length != self.graph_length:
            self.graph_length, self.is_warm, self.graph = length, False, None
        if not self.is_warm:  # the first step of these rows may initialise libraries, which a capture must not
            self.is_warm = True
            return self._step(tokens, length)
        if self.graph is None:
            self.graph, self.graph_tokens = torch.cuda.CUDAGraph(), tokens.clone()
            # on the rows' GPU, which need not be the current one; thread_local, because other threads may pin memory
            with torch.cuda.device(tokens.device), torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.logits = self._step(self.graph_tokens, length)
        self.graph_tokens.copy_(tokens)
        self.graph.replay()
        return self.logits

    def _step(self, tokens: Tensor, length: int) -> Tensor:
        """Feed tokens (R, n), with attention over the first `length` positions.

        Shapes and memory addresses depend only on the rows and on `length`, as a CUDA graph requires.
        """
        offsets = torch.arange(tokens.shape[1], device=tokens.device)
        # a finished row that has not been removed yet may be at its limit; its logits are not used
        positions = self.lengths[:, None].clamp(max=self.limit - len(offsets)) + offsets  # (R, n)
        self.lengths.copy_(positions[:, -1] + 1)
        cache = self.shared_cache
        cache.positions, cache.length = positions, length
        later = torch.arange(length, device=tokens.device) > positions[..., None]  # (R, n, t)
        mask = torch.zeros_like(later, dtype=self.dtype).masked_fill(later, float("-inf"))[:, None]
        if not cache.parts:
            mask = cache.with_prompts(mask)
        with sharing(self.config) if cache.parts else contextlib.nullcontext():
            logits = self.step(tokens, self.begin[:, None] + positions, mask, self.model_cache)
        return self._merge_ends(logits)

    def _merge_ends(self, logits: Tensor) -> Tensor:
        """The logits (R, n, V) in float32, in which the first end token represents all end tokens."""
        logits = logits.float()
        if len(self.ends) == 1:
            return logits
        ended = logits[..., self.ends]  # (R, n, ends)
        logits.index_fill_(-1, self.ends, float("-inf"))
        logits[..., self.end] = ended.amax(-1) if self.greedy else ended.logsumexp(-1)
        return logits


def steps_wait(config: PreTrainedConfig) -> bool:
    """Whether a step of these layers waits for a GPU, so that no CUDA graph can be made of it.

    For experts, torch reads on the host how many tokens each of them gets, in some dtypes. Falcon's layers select
    heads by Python lists, which each step copies to the GPU.
    """
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return config.model_type == "falcon" or any(getattr(config, name, None) for name in names)
