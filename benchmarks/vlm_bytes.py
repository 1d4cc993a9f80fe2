"""Bytes that one decoding step moves in a vision-language model of Qwen2.5-VL-3B's shape, without a GPU or weights.

For every kernel, the bytes that it reads and writes are counted; tensors have only shapes (torch's meta device). Two
ways are compared: a row for each caption, with transformers' own cache and a mask; and our cache, which holds the
prompt's keys and values once for each picture.
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

from captioners.decoding.cache import CACHE, SharedCache, sharing
from captioners.decoding.key_values import Grid, KeyValueCache

LAYERS, HEADS, WIDTH = 36, 2, 128  # layers, heads of keys and values, width of a head


class Bytes(TorchDispatchMode):
    """Counts the bytes that each kernel reads and writes."""

    def __init__(self):
        super().__init__()
        self.moved, self.kernels = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or name in ("_unsafe_view", "empty", "detach")):
            bytes_written = sum(tensor.nbytes for tensor in tree_leaves(output) if isinstance(tensor, Tensor))
            bytes_read = sum(tensor.nbytes for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor))
            if name in ("index_put_", "embedding", "index"):  # these touch only the chosen rows
                bytes_read = bytes_written = args[2].nbytes if name == "index_put_" else bytes_written
            self.moved[name] += bytes_read + bytes_written
            self.kernels[name] += 1
        return output


class FusedAttention(TorchFunctionMode):
    """Counts attention as one kernel, as on a GPU: it reads queries, keys, values and mask, and writes the outputs."""

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
    """A cache in which every picture has `captions` rows from the start.

    The meta device has no values, so the cache cannot find out which row belongs to which picture.
    """

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
    """Count one decoding step with `rows` rows (R), each of which attends to `attended` positions."""
    tokens = torch.empty(rows, 1, dtype=torch.long, device="meta")
    mask = torch.empty(rows, 1, 1, attended, dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), Bytes() as counted, FusedAttention(counted):
        model(input_ids=tokens, attention_mask=mask, position_ids=tokens.expand(3, -1, -1), **{CACHE: cache})
    return counted


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("pictures", 64), ("captions", 5), ("prompt", 400), ("tokens", 30), ("room", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    model, rows = shape_of_3b(), args.pictures * args.captions
    length = args.prompt + args.tokens
    separate = step(model, keys_and_values(rows, length - 1), rows, attended=length)
    cache = EvenCache(keys_and_values(args.pictures, args.prompt), captions=args.captions, limit=args.room)
    with sharing(model.get_submodule("model.language_model").config):
        shared = step(model, cache, rows, attended=args.room)
    for name, counted in (("a row for each caption", separate), ("prompts shared", shared)):
        largest = [("all", counted.moved.total()), *counted.moved.most_common(4)]
        gigabytes = {kernel: round(moved / 1e9, 2) for kernel, moved in largest}
        print(json.dumps({"cache": name, "kernels": counted.kernels.total(), "GB": gigabytes}))
