"""Bytes that one step of decoding moves in a vision-language model of Qwen2.5-VL-3B's shape, without a GPU or weights.

Every kernel counts what it reads and writes; tensors have shapes alone (torch's meta device). A row for each caption, with
transformers' own cache and a mask, against the prompt's keys and values once for each picture.
Dimensions: N pictures, C captions of each, P tokens of the prompt, t of a caption.
"""

import argparse
import json
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from captioners.decoding.cache import CACHE, Grid, SharedCache, sharing
from captioners.decoding.key_values import KeyValueCache

LAYERS, HEADS, WIDTH = 36, 2, 128  # of keys and values


class Bytes(TorchDispatchMode):
    """Counts the bytes that each kernel reads and writes."""

    def __init__(self):
        super().__init__()
        self.moved, self.kernels = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or name in ("_unsafe_view", "empty", "detach")):
            wrote = sum(each.nbytes for each in tree_leaves(output) if isinstance(each, Tensor))
            read = sum(each.nbytes for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor))
            if name in ("index_put_", "embedding", "index"):  # only what is chosen
                read = wrote = args[2].nbytes if name == "index_put_" else wrote
            self.moved[name] += read + wrote
            self.kernels[name] += 1
        return output


class FusedAttention(TorchFunctionMode):
    """Attention as one kernel, as on a GPU: it reads queries, keys, values and mask, and writes as much as there are queries."""

    def __init__(self, counted: Bytes):
        super().__init__()
        self.counted = counted

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.counted.moved["attention"] += 2 * args[0].nbytes + sum(
            each.nbytes for each in (*args[1:], kwargs["attn_mask"])
        )
        self.counted.kernels["attention"] += 1
        return args[0]


class EvenCache(SharedCache):
    """With rows of so many captions of every picture from the start; the meta device cannot say which rows are whose."""

    def __init__(self, prompts: DynamicCache, *, captions: int, limit: int):
        self.captions = captions
        lengths = torch.empty(len(prompts.layers[0].keys), dtype=torch.long, device="meta")
        super().__init__(prompts, lengths, limit=limit, parts=True)
        self.positions, self.length = torch.empty(len(self.pictures), 1, dtype=torch.long, device="meta"), limit

    def _assign_rows(self, pictures: Tensor) -> None:
        self.grid = Grid.__new__(Grid)
        self.grid.shape, self.grid.cells = (len(pictures), self.captions), None
        self.pictures = pictures.repeat_interleave(self.captions)
        self.head_length, self.head_mask, self.prompt_mask = 0, None, None
        self.caption_layers = [
            KeyValueCache(*(each.repeat_interleave(self.captions, 0) for each in (layer.keys, layer.values)))
            for layer in self.caption_layers
        ]


def shape_of_3b() -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 16,
        "num_key_value_heads": HEADS,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text)).to(torch.bfloat16).eval()


def keys_and_values(rows: int, tokens: int) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(LAYERS):
        cache.update(*torch.empty(2, rows, HEADS, tokens, WIDTH, dtype=torch.bfloat16, device="meta"), layer)
    return cache


def step(
    model: Qwen2_5_VLForConditionalGeneration, cache: DynamicCache | SharedCache, rows: int, attended: int
) -> Bytes:
    """A step of rows (R,), with a mask (R, 1, 1, attended)."""
    tokens = torch.empty(rows, 1, dtype=torch.long, device="meta")
    mask = torch.empty(rows, 1, 1, attended, dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), Bytes() as counted, FusedAttention(counted):
        model(input_ids=tokens, attention_mask=mask, position_ids=tokens.expand(3, -1, -1), **{CACHE: cache})
    return counted


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("pictures", 64), ("captions", 5), ("prompt", 400), ("tokens", 30), ("room", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    model, rows = shape_of_3b(), asked.pictures * asked.captions
    held = asked.prompt + asked.tokens
    apart = step(model, keys_and_values(rows, held - 1), rows, held)
    shared = EvenCache(keys_and_values(asked.pictures, asked.prompt), captions=asked.captions, limit=asked.room)
    with sharing(model.get_submodule("model.language_model").config):
        ours = step(model, shared, rows, asked.room)
    for name, counted in (("a row for each caption", apart), ("prompts shared", ours)):
        largest = [("all", counted.moved.total()), *counted.moved.most_common(4)]
        gigabytes = {kernel: round(moved / 1e9, 2) for kernel, moved in largest}
        print(json.dumps({"cache": name, "kernels": counted.kernels.total(), "GB": gigabytes}))
