"""Prompts of a causal language model before captions: what they begin with once for all, the rest of each, and the rows that go on.

Dimensions: N prompts, S tokens of the head, T of the longest rest of a prompt, V vocabulary.
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
    """A prompt, seen alone."""
    cache = DynamicCache()
    model(input_ids=torch.tensor([ids], device=model.device), use_cache=True, **{CACHE: cache}, **last_logits(model))
    layers: list[Any] = cache.layers  # filled by now, of which transformers' types know nothing
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
    """A row for each prompt, of which only what it does not begin with of the head is computed: one token at least.

    How much that is, is a function of the two alone, and not of the others.
    limit: the most tokens that a row will be fed, start token aside. ends, greedy: see `Continuing`.
    """
    device, count = model.device, len(prompts)
    shared = [min(common(head.ids, prompt), len(prompt) - 1) for prompt in prompts]
    rests = [list(prompt[length:]) for prompt, length in zip(prompts, shared, strict=True)]
    begun, lengths = (torch.tensor(counts, device=device) for counts in (shared, [len(rest) for rest in rests]))
    longest = max(map(len, rests))
    ids = torch.tensor([[rest[0]] * (longest - len(rest)) + rest for rest in rests], device=device)  # (N, T)
    # (N, T), in the rests; below 0: padding
    places = torch.arange(longest, device=device) - (longest - lengths)[:, None]
    # of every prompt, keys and values come from its first token on; those of padding come after all, where nobody looks
    empty = DynamicCache()
    for layer, (keys, values) in enumerate(head.layers):
        empty.update(
            *(seen.new_zeros(count, seen.shape[1], 0, seen.shape[3]) for seen in (keys, values)), layer_idx=layer
        )
    cache = SharedCache(empty, torch.zeros_like(begun), limit=longest + 1, parts=False, head=head, begun=begun)
    cache.positions, cache.length = places.where(places >= 0, longest), longest
    seen = places.clamp(min=0)
    later = torch.arange(longest, device=device) > seen[..., None]  # (N, T, T)
    mask = torch.zeros_like(later, dtype=head.layers[0][0].dtype).masked_fill(later, float("-inf"))[:, None]
    first = step(model, ids, begun[:, None] + seen, cache.with_prompts(mask), cache, **last_logits(model))[:, -1:]
    prompts_only = DynamicCache()
    for layer, own in enumerate(cache.own):
        prompts_only.update(own.keys[:, :, :longest], own.values[:, :, :longest], layer)
    # other layers would not let `attend` do their attention
    parts = model.config._attn_implementation == "sdpa" and model._supports_attention_backend
    return Continuing(
        partial(step, model),
        model.config,
        SharedCache(prompts_only, lengths, limit=limit, parts=parts, head=head, begun=begun),
        first,
        begun + lengths,
        ends=ends,
        greedy=greedy,
        graphs=not stretches(model.config),
    )


def step(model: PreTrainedModel, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache, **options) -> Tensor:
    """Logits (R, n, V) of what follows tokens (R, n) at positions (R, n); `mask` (R, 1, n, t) is added to the scores."""
    fed = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, CACHE: cache}
    return model(**fed, use_cache=True, **options).logits


def last_logits(model: PreTrainedModel) -> dict[str, int]:
    """The option by which a model leaves out all logits but the last; {} where it has none."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def stretches(config: PreTrainedConfig) -> bool:
    """Whether rotary embeddings are others where one prompt of a batch is long."""
    rope = getattr(config, "rope_parameters", None) or {}
    return not {"dynamic", "longrope"}.isdisjoint(
        options.get("rope_type") for options in (rope, *rope.values()) if isinstance(options, dict)
    )


def common(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two lists of them begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, others)))
