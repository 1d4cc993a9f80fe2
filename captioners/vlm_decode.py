"""Decoding on the cache of a transformers model: picture and prompt once, then its captions side by side.

Dimensions: N pictures, R rows (captions in flight, of one picture after the other), P tokens of the prompt, n new tokens,
t positions cached, V vocabulary, S image tokens, D width.
"""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache

from captioners.vlm_families import Llava


class Continuing:
    """Captions in flight on the model's own cache, after a picture and the prompt (see `captioners.rows.Rows`).

    Starts with one row per picture, whose picture and prompt are seen in one pass. The first token that rows are fed is the
    start token, for which the prompt stands: what follows is known. Rows of unequal length end together, the shorter ones
    hidden in front. `limit` is the most tokens a row will be fed, start token aside. `ends`: tokens that end a caption, of which
    the first stands for all: with the probability of all, or, where `greedy`, of the best, as greedy search takes the best token.
    """

    def __init__(self, family: Llava, pictures: Tensor, prompt: Tensor, *, limit: int, ends: Tensor, greedy: bool):
        self.family, self.ends, self.greedy = family, ends, greedy
        ids = prompt.expand(len(pictures), -1)  # (N, P)
        self.cache, seen = family.cache(), []
        hook = family.model.get_submodule(family.vision).register_forward_hook(
            lambda module, args, output: seen.append(output.last_hidden_state))
        try:
            inputs = family.inputs(pictures, ids, torch.ones_like(ids))
            logits = family.forward(inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        finally:
            hook.remove()
        states = seen[0].float().reshape(len(pictures), -1, seen[0].shape[-1])  # (N, S, D)
        self.features = F.normalize(states.mean(1), dim=-1)  # (N, D)
        self.dtype, self.first = logits.dtype, self._one_end(logits)  # (N, 1, V), until it is asked for
        self.positions = torch.full_like(ids[:, 0], family.next_position(len(prompt)))  # (R,), of the next token
        self.last = int(self.positions[0]) + limit - 1
        self.hidden = torch.zeros(len(ids), self.cache.get_seq_length(), dtype=torch.bool, device=ids.device)  # (R, t)

    def extend(self, tokens: Tensor) -> Tensor:
        """Feeds tokens (R, n) and returns the logits (R, n, V), float32, of what follows each."""
        if self.first is None:
            return self._feed(tokens)
        first, self.first = self.first, None
        return first if tokens.shape[1] == 1 else torch.cat([first, self._feed(tokens[:, 1:])], dim=1)

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows, in this order; rows of a picture stay together, and may be repeated."""
        self.cache.batch_select_indices(rows)
        self.positions, self.hidden = self.positions[rows], self.hidden[rows]
        spare = int(self.hidden.sum(1).min())  # columns of the longest that left
        self.hidden = self.hidden[:, spare:]
        for layer in self._layers():
            layer.keys, layer.values = layer.keys[:, :, spare:], layer.values[:, :, spare:]

    def join(self, other: Self) -> None:
        """Adds the rows of other pictures, after its own."""
        longest = max(self.hidden.shape[1], other.hidden.shape[1])
        for each in (self, other):
            each._hide(longest - each.hidden.shape[1])
        for ours, theirs in zip(_all_layers(self.cache), _all_layers(other.cache), strict=True):
            ours.keys, ours.values = torch.cat([ours.keys, theirs.keys]), torch.cat([ours.values, theirs.values])
        self.positions, self.hidden = torch.cat([self.positions, other.positions]), torch.cat([self.hidden, other.hidden])

    def bytes_per_picture(self, captions: int, tokens: int) -> int:
        """What a picture takes here with so many captions of so many tokens, from rows of one caption a picture."""
        rows, held = self.hidden.shape
        grown = (held + tokens) / held
        own = sum(layer.keys.nbytes + layer.values.nbytes for layer in self._layers())
        everything = sum(layer.keys.nbytes + layer.values.nbytes for layer in _all_layers(self.cache))
        return int(captions * (everything + (grown - 1) * own) / rows)

    def _feed(self, tokens: Tensor) -> Tensor:
        held, new = self.hidden.shape[1], torch.arange(tokens.shape[1], device=tokens.device)
        # a finished row that has not left yet may be at its end: what it is fed is not looked at
        positions = self.positions[:, None].clamp(max=self.last + 1 - len(new)) + new  # (R, n)
        self.positions = positions[:, -1] + 1
        self.hidden = F.pad(self.hidden, (0, len(new)))
        later = torch.arange(held + len(new), device=tokens.device) > held + new[:, None]  # (n, t + n)
        away = (self.hidden[:, None] | later)[:, None]  # (R, 1, n, t + n)
        mask = torch.zeros(away.shape, dtype=self.dtype, device=tokens.device).masked_fill(away, float("-inf"))
        return self._one_end(self.family.step(tokens, positions, mask, self.cache))

    def _one_end(self, logits: Tensor) -> Tensor:
        """Logits (R, n, V) in which one end token stands for all."""
        logits = logits.float()
        if len(self.ends) == 1:
            return logits
        ended = logits[..., self.ends]  # (R, n, ends)
        logits = logits.index_fill(-1, self.ends, float("-inf"))
        logits[..., self.ends[0]] = ended.amax(-1) if self.greedy else ended.logsumexp(-1)
        return logits

    def _hide(self, columns: int) -> None:
        """Puts so many columns that hold nothing in front."""
        self.hidden = F.pad(self.hidden, (columns, 0), value=True)
        for layer in self._layers():
            layer.keys, layer.values = (F.pad(each, (0, 0, columns, 0)) for each in (layer.keys, layer.values))

    def _layers(self) -> list:
        """Of the cache, those of self-attention."""
        return (self.cache.self_attention_cache if isinstance(self.cache, EncoderDecoderCache) else self.cache).layers


def _all_layers(cache: Cache) -> list:
    if isinstance(cache, EncoderDecoderCache):
        return [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    return cache.layers
