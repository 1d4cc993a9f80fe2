"""Read the prompts of a causal language model into a cache, from which their captions continue.

The head, the tokens that all prompts begin with, is read once; then the remainder of each prompt is read.

Dimensions: N prompts, R rows (captions in flight), T tokens of the longest remainder of a prompt, n new tokens,
t positions attended to, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from captioners.decoding.cache import CACHE, Head, SharedCache
from captioners.decoding.continuing import Continuing


def read_head(model: PreTrainedModel, ids: Sequence[int]) -> Head:
    """Compute the keys and values of a prompt, with which other prompts may begin alike."""
    cache = DynamicCache()
    model(input_ids=torch.tensor([ids], device=model.device), use_cache=True, **{CACHE: cache}, **last_logits(model))
    layers: list[Any] = cache.layers  # Any: by transformers' types, layers may be empty, which they are not by now
    return Head(ids, [(layer.keys, layer.values) for layer in layers])


def begin_rows(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    head: Head,
    *,
    limit: int,
    ends: Sequence[int],
    greedy: bool,
) -> Continuing:
    """Begin a row for each prompt. Only the tokens that a prompt does not share with the head are computed.

    At least one token of a prompt is computed. The number depends only on the head and the prompt, and not on the
    other prompts.
    limit: maximum tokens that a row is fed, without the start token. ends, greedy: see `Continuing`.
    """
    device = model.device
    shared = [min(common_prefix_length(head.ids, prompt), len(prompt) - 1) for prompt in prompts]
    remainders = [list(prompt[length:]) for prompt, length in zip(prompts, shared, strict=True)]
    head_lengths = torch.tensor(shared, device=device)
    lengths = torch.tensor([len(remainder) for remainder in remainders], device=device)
    cache, logits = _read_remainders(model, remainders, lengths, head=head, head_lengths=head_lengths)
    # only layers with this implementation call `attend`
    parts = model.config._attn_implementation == "sdpa" and model._supports_attention_backend
    return Continuing(
        partial(step, model),
        model.config,
        cache=SharedCache(cache, lengths, limit=limit, parts=parts, head=head, head_lengths=head_lengths),
        first=logits,
        begin=head_lengths + lengths,
        ends=ends,
        greedy=greedy,
        graphs=not stretches(model.config),
    )


def _read_remainders(
    model: PreTrainedModel,
    remainders: Sequence[list[int]],
    lengths: Tensor,
    *,
    head: Head,
    head_lengths: Tensor,
) -> tuple[DynamicCache, Tensor]:
    """Compute the keys and values of the remainders of prompts, and the logits (N, 1, V) after each prompt.

    lengths: of the remainders (N,). head_lengths: how many tokens of the head come before each (N,).
    """
    device, count, longest = model.device, len(remainders), max(map(len, remainders))
    padded = [[remainder[0]] * (longest - len(remainder)) + remainder for remainder in remainders]
    ids = torch.tensor(padded, device=device)  # (N, T), padded at the left
    # the index of each token in its remainder (N, T); below 0 for padding
    indices = torch.arange(longest, device=device) - (longest - lengths)[:, None]
    empty = DynamicCache()
    for layer, (keys, values) in enumerate(head.layers):
        no_tokens = (cached.new_zeros(count, cached.shape[1], 0, cached.shape[3]) for cached in (keys, values))
        empty.update(*no_tokens, layer_idx=layer)
    cache = SharedCache(
        empty, torch.zeros_like(lengths), limit=longest + 1, parts=False, head=head, head_lengths=head_lengths
    )
    # A remainder's keys and values are stored from position 0 on. Those of padding go to position `longest`, to which
    # no token attends.
    cache.positions, cache.length = indices.where(indices >= 0, longest), longest
    indices = indices.clamp(min=0)
    later = torch.arange(longest, device=device) > indices[..., None]  # (N, T, T)
    mask = torch.zeros_like(later, dtype=head.layers[0][0].dtype).masked_fill(later, float("-inf"))[:, None]
    logits = step(
        model,
        ids,
        head_lengths[:, None] + indices,
        mask=cache.with_prompts(mask),
        cache=cache,
        **last_logits(model),
    )
    prompts_only = DynamicCache()
    for layer, remainder in enumerate(cache.caption_layers):
        prompts_only.update(remainder.keys[:, :, :longest], remainder.values[:, :, :longest], layer)
    return prompts_only, logits[:, -1:]


def step(model: PreTrainedModel, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache, **options) -> Tensor:
    """Feed tokens (R, n) at positions (R, n); return the logits (R, n, V) of the token that follows each.

    mask: (R, 1, n, t), added to the scores.
    """
    inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, CACHE: cache}
    return model(**inputs, use_cache=True, **options).logits


def last_logits(model: PreTrainedModel) -> dict[str, int]:
    """The option that makes a model compute the last logits only; {} if it has no such option."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def stretches(config: PreTrainedConfig) -> bool:
    """Whether the rotary embeddings of all prompts in a batch change if one of them is long."""
    rope = getattr(config, "rope_parameters", None) or {}
    return not {"dynamic", "longrope"}.isdisjoint(
        options.get("rope_type") for options in (rope, *rope.values()) if isinstance(options, dict)
    )


def common_prefix_length(ids: Sequence[int], others: Sequence[int]) -> int:
    """The number of tokens that two lists have in common at their start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, others)))
