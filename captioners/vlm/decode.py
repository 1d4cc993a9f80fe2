"""Pictures and their prompts before captions: what a family's model sees in one pass, and the rows that go on after it.

Dimensions: N pictures, P tokens of the longest prompt, V vocabulary, S image tokens, D width.
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
    """The pictures' normalised features (N, D), and a row for each, after the picture and its prompt.

    limit: the most tokens that a row will be fed, start token aside. ends, greedy: see `Continuing`.
    """
    device = pictures[0].device
    prompt_lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=device)
    longest, shortest = int(prompt_lengths.max()), int(prompt_lengths.min())
    ids = torch.tensor([[*ids, *ids[-1:] * (longest - len(ids))] for ids, *_ in prompts], device=device)  # (N, P)
    mask = torch.arange(ids.shape[1], device=device) < prompt_lengths[:, None]  # (N, P)
    cache, seen = family.cache(), []
    hook = family.model.get_submodule(family.vision).register_forward_hook(
        lambda module, args, output: seen.append(family.states(output))
    )
    try:
        # of the last tokens alone, (N, that many, V)
        logits = family.forward(
            family.inputs(pictures, prompts, ids, mask.long()),
            use_cache=True,
            logits_to_keep=longest - shortest + 1,
            **{CACHE: cache},
        )
    finally:
        hook.remove()
    last = prompt_lengths - ids.shape[1] - 1  # counted from the end, as a family may give more
    logits = logits[torch.arange(len(ids), device=device), last][:, None]  # (N, 1, V)
    states = seen[0].float().split(spans(len(seen[0]), [family.size(picture) for picture in pictures]))
    features = F.normalize(torch.stack([picture.flatten(0, -2).mean(0) for picture in states]), dim=-1)  # (N, D)
    config = family.model.get_submodule(family.language).config
    own, cross = cache, None
    if isinstance(cache, EncoderDecoderCache):
        own = cache.self_attention_cache
        cross = CrossCache(cache.cross_attention_cache, [len(prompt.asked) for prompt in prompts])
    # other layers would not let `attend` do their attention
    parts = config._attn_implementation == "sdpa" and cross is None
    pictures_aside = own.get_seq_length() - ids.shape[1]  # of GIT's pictures, the cache holds what has no ids
    return features, Continuing(
        family.step,
        config,
        SharedCache(own, prompt_lengths + pictures_aside, limit=limit, parts=parts),
        logits,
        family.next_positions(prompt_lengths),
        ends=ends,
        greedy=greedy,
        cross=cross,
        graphs=family.steps_are_alike(),
    )
