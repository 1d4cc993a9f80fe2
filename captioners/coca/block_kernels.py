"""Parts of a transformer's blocks as Triton kernels: for decoding on a GPU, where what a step reads and how often is its time.

Dimensions: R rows, N pictures with C = R / N rows each, H heads, D width of a head, W = H * D, t positions cached, S image tokens.
"""

# pyright: reportCallIssue=false
# Triton's types know no options of a launch, such as num_warps.

import torch
import triton
import triton.language as tl
from torch import Tensor

POSITIONS = 32  # of a cache, read at a time
TOKENS = 64  # of an image, read at a time


@triton.jit
def _attend(
    joint,
    keys,
    values,
    positions,
    mask,
    out,
    scale,
    limit,
    mask_width,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
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


def attend_cached(
    joint: Tensor, keys: Tensor, values: Tensor, positions: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Attention (R, W) of one new token a row over all that its row has cached and itself, which the cache then holds.

    A program is a row and a head, and reads no more positions than the row has: one launch, and so one CUDA graph, serves rows of
    every length.

    joint (R, 3 W): queries, keys and values of the new tokens, whose positions are `positions` (R,). keys, values (R, H, t, D): the
    cache. mask (R, at least t) is added to the scores of a row's positions; its first position is never hidden.
    """
    rows, heads, limit, depth = keys.shape
    out = joint.new_empty(rows, heads * depth)
    _attend[(rows, heads)](
        joint,
        keys,
        values,
        positions,
        mask if mask is not None else joint,
        out,
        depth**-0.5,
        limit,
        mask.stride(0) if mask is not None else 0,
        HEADS=heads,
        DEPTH=depth,
        WIDE=triton.next_power_of_2(depth),
        MASKED=mask is not None,
        BLOCK=POSITIONS,
        num_warps=1,
    )
    return out


@triton.jit
def _attend_images(
    queries,
    keys,
    values,
    out,
    scale,
    tokens,
    captions,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    picture, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    depth, row = tl.arange(0, WIDE), tl.arange(0, ROWS)  # WIDE >= DEPTH, ROWS >= captions
    inside = depth < DEPTH
    at_rows = ((picture * captions + row) * HEADS + head)[:, None] * DEPTH + depth[None, :]
    is_row = (row < captions)[:, None] & inside[None, :]
    query = tl.load(queries + at_rows, mask=is_row, other=0.0)
    most, total = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, WIDE], tl.float32)
    for start in range(0, tokens, BLOCK):
        at = start + tl.arange(0, BLOCK)
        places = ((picture * HEADS + head) * tokens + at)[:, None] * DEPTH + depth[None, :]
        both = (at < tokens)[:, None] & inside[None, :]
        key, value = tl.load(keys + places, mask=both, other=0.0), tl.load(values + places, mask=both, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where((at < tokens)[None, :], scores, float("-inf"))
        larger = tl.maximum(most, tl.max(scores, axis=1))
        weights, shrink = tl.exp(scores - larger[:, None]), tl.exp(most - larger)
        found = found * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        total, most = total * shrink + tl.sum(weights, axis=1), larger
    tl.store(out + at_rows, (found / total[:, None]).to(out.dtype.element_ty), mask=is_row)


def attend_images(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention (R, W) of queries (R, W) over the tokens of each row's picture: keys and values (N, H, S, D), contiguous.

    The rows of a picture, one after the other, share one reading of its keys and values.
    """
    pictures, heads, tokens, depth = keys.shape
    out, captions = torch.empty_like(queries), len(queries) // pictures
    _attend_images[(pictures, heads)](
        queries,
        keys,
        values,
        out,
        depth**-0.5,
        tokens,
        captions,
        HEADS=heads,
        DEPTH=depth,
        WIDE=max(16, triton.next_power_of_2(depth)),
        ROWS=max(16, triton.next_power_of_2(captions)),
        BLOCK=TOKENS,
        num_warps=4,
        num_stages=3,
    )
    return out


@triton.jit
def _add_norm(
    x, added, weight, bias, total, normed, epsilon, WIDTH: tl.constexpr, WIDE: tl.constexpr, ADDS: tl.constexpr
):
    at = tl.arange(0, WIDE)  # WIDE >= WIDTH
    inside, row = at < WIDTH, tl.program_id(0).to(tl.int64) * WIDTH + at
    value = tl.load(x + row, mask=inside, other=0.0)
    if ADDS:
        value = (value.to(tl.float32) + tl.load(added + row, mask=inside, other=0.0).to(tl.float32)).to(value.dtype)
        tl.store(total + row, value, mask=inside)
    value = value.to(tl.float32)
    mean = tl.sum(value, axis=0) / WIDTH
    away = tl.where(inside, value - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(away * away, axis=0) / WIDTH + epsilon)
    result = away * scale * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32) + tl.load(
        bias + at, mask=inside, other=0.0
    ).to(tl.float32)
    tl.store(normed + row, result.to(normed.dtype.element_ty), mask=inside)


def add_norm(x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x + added (..., W), and its layer norm; x itself where nothing is added."""
    x = x.contiguous()
    total, normed = x if added is None else torch.empty_like(x), torch.empty_like(x)
    width = x.shape[-1]
    _add_norm[(x.numel() // width,)](
        x,
        x if added is None else added.contiguous(),
        weight,
        bias,
        total,
        normed,
        epsilon,
        WIDTH=width,
        WIDE=triton.next_power_of_2(width),
        ADDS=added is not None,
        num_warps=4 if width > 512 else 2,
    )
    return total, normed


@triton.jit
def _place(joint, slots, keys, values, tokens, HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr):
    picture, token = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at, width = tl.arange(0, WIDE), HEADS * DEPTH  # WIDE >= HEADS * DEPTH
    inside = at < width
    joint += (picture * tokens + token) * 2 * width + at
    place = ((tl.load(slots + picture) * HEADS + at // DEPTH) * tokens + token) * DEPTH + at % DEPTH
    tl.store(keys + place, tl.load(joint, mask=inside), mask=inside)
    tl.store(values + place, tl.load(joint + width, mask=inside), mask=inside)


def place(joint: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """Writes the keys and values of M pictures, side by side in joint (M, S, 2 W), into slots (M,) of keys and values (N, H, S, D)."""
    _, heads, tokens, depth = keys.shape
    _place[(len(slots), tokens)](
        joint.contiguous(),
        slots.contiguous(),
        keys,
        values,
        tokens,
        HEADS=heads,
        DEPTH=depth,
        WIDE=triton.next_power_of_2(heads * depth),
        num_warps=2,
    )
