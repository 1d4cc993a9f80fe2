"""Read pictures and prompts into a cache in one pass of a vision-language model; their captions continue from it.

Dimensions: N pictures, P tokens of the longest prompt, V vocabulary, D width of the vision tower.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from captioners.decoding.cache import CACHE, CrossCache, SharedCache
from captioners.decoding.continuing import Continuing
from captioners.vlm.family import Llava, Prompt, spans


def begin_rows(
    family: Llava,
    pictures: Sequence[Tensor],
    prompts: Sequence[Prompt],
    *,
    limit: int,
    ends: Sequence[int],
    greedy: bool,
) -> tuple[Tensor, Continuing]:
    """Return the normalised features (N, D) of pictures, and a row for each, after the picture and its prompt.

    limit: maximum tokens that a row is fed, without the start token. ends, greedy: see `Continuing`.
    """
    device = pictures[0].device
    prompt_lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=device)
    longest, shortest = int(prompt_lengths.max()), int(prompt_lengths.min())
    ids = torch.tensor([[*ids, *ids[-1:] * (longest - len(ids))] for ids, *_ in prompts], device=device)  # (N, P)
    mask = torch.arange(ids.shape[1], device=device) < prompt_lengths[:, None]  # (N, P)
    cache = family.cache()
    vision_states: list[Tensor] = []
    hook = family.model.get_submodule(family.vision).register_forward_hook(
        lambda module, args, output: vision_states.append(family.states(output))
    )
    try:
        # only those of the positions at which a prompt ends (N, longest - shortest + 1, V)
        logits = family.forward(
            family.inputs(pictures, prompts, ids, mask=mask.long()),
            use_cache=True,
            logits_to_keep=longest - shortest + 1,
            **{CACHE: cache},
        )
    finally:
        hook.remove()
    last = prompt_lengths - ids.shape[1] - 1  # counted from the end, because a family may return more logits
    logits = logits[torch.arange(len(ids), device=device), last][:, None]  # (N, 1, V)
    [states] = vision_states
    config = family.model.get_submodule(family.language).config
    prompt_cache, cross = cache, None
    if isinstance(cache, EncoderDecoderCache):
        prompt_cache = cache.self_attention_cache
        cross = CrossCache(cache.cross_attention_cache, [len(prompt.encoder_ids) for prompt in prompts])
    # only layers with this implementation call `attend`
    parts = config._attn_implementation == "sdpa" and cross is None
    # GIT's cache also holds the tokens of pictures, which have no ids
    tokens_without_ids = prompt_cache.get_seq_length() - ids.shape[1]
    return _features(family, pictures, states), Continuing(
        family.step,
        config,
        cache=SharedCache(prompt_cache, prompt_lengths + tokens_without_ids, limit=limit, parts=parts),
        first=logits,
        begin=family.next_positions(prompt_lengths),
        ends=ends,
        greedy=greedy,
        cross=cross,
        graphs=family.steps_are_alike(),
    )


def _features(family: Llava, pictures: Sequence[Tensor], states: Tensor) -> Tensor:
    """The normalised features (N, D) of pictures, the mean of each picture's states in the vision tower."""
    picture_states = states.float().split(spans(len(states), [family.size(picture) for picture in pictures]))
    return F.normalize(torch.stack([picture.flatten(0, -2).mean(0) for picture in picture_states]), dim=-1)
