"""Attention of one new token a row over its own cached positions, as one Triton kernel: for decoding on a GPU.

Each program is a row and a head: it writes the new key and value into the cache and reads no more positions than the row has,
so that one launch, and one CUDA graph, serves rows of every length.

Dimensions: R rows, H heads, D width of a head, W = H * D, t positions cached.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

POSITIONS = 32  # read at a time


@triton.jit
def _attend(joint, keys, values, positions, mask, out, scale, limit, mask_width, HEADS: tl.constexpr, DEPTH: tl.constexpr,
            WIDE: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    depth = tl.arange(0, WIDE)  # WIDE >= DEPTH
    inside = depth < DEPTH
    joint += row * (3 * HEADS * DEPTH) + head * DEPTH + depth
    query = tl.load(joint, mask=inside, other=0.0).to(tl.float32) * scale
    new_key = tl.load(joint + HEADS * DEPTH, mask=inside, other=0.0)
    new_value = tl.load(joint + 2 * HEADS * DEPTH, mask=inside, other=0.0)
    position = tl.load(positions + row)
    cached = (row * HEADS + head) * limit * DEPTH
    tl.store(keys + cached + position * DEPTH + depth, new_key, mask=inside)
    tl.store(values + cached + position * DEPTH + depth, new_value, mask=inside)

    most = tl.sum(query * new_key.to(tl.float32), axis=0)
    if MASKED:
        most += tl.load(mask + row * mask_width + position).to(tl.float32)
    most = tl.maximum(most, -1e30)  # finite, so that a hidden position weighs nothing and not NaN
    total = tl.where(most > -1e29, 1.0, 0.0)
    found = new_value.to(tl.float32) * total
    for start in range(0, position, BLOCK):
        at = start + tl.arange(0, BLOCK)
        seen = at < position
        places = cached + at[:, None] * DEPTH + depth[None, :]
        both = seen[:, None] & inside[None, :]
        scores = tl.sum(query[None, :] * tl.load(keys + places, mask=both, other=0.0).to(tl.float32), axis=1)
        if MASKED:
            scores += tl.load(mask + row * mask_width + at, mask=seen, other=0.0).to(tl.float32)
        scores = tl.where(seen, scores, float("-inf"))
        larger = tl.maximum(most, tl.max(scores, axis=0))
        weights = tl.exp(scores - larger)
        shrink = tl.exp(most - larger)
        block = tl.sum(weights[:, None] * tl.load(values + places, mask=both, other=0.0).to(tl.float32), axis=0)
        found, total, most = found * shrink + block, total * shrink + tl.sum(weights, axis=0), larger
    tl.store(out + (row * HEADS + head) * DEPTH + depth, (found / total).to(out.dtype.element_ty), mask=inside)


def attend_cached(joint: Tensor, keys: Tensor, values: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention (R, W) of the new tokens over all that their rows have cached and themselves, which the cache then holds.

    joint (R, 3 W): queries, keys and values of the new tokens, whose positions are `positions` (R,). keys, values (R, H, t, D): the
    cache. mask (R, at least t) is added to the scores of a row's positions; its first position is never hidden.
    """
    rows, heads, limit, depth = keys.shape
    out = joint.new_empty(rows, heads * depth)
    _attend[(rows, heads)](joint, keys, values, positions, mask if mask is not None else joint, out, depth**-0.5, limit,
                           mask.stride(0) if mask is not None else 0, HEADS=heads, DEPTH=depth, WIDE=triton.next_power_of_2(depth),
                           MASKED=mask is not None, BLOCK=POSITIONS, num_warps=1)
    return out
