"""Triton kernels for parts of a transformer's blocks, for decoding on a GPU.

The time of a decoding step is the time of its memory reads, so each kernel reads its input once.

Dimensions: R rows, N pictures with C = R / N rows each, H heads, D width of a head, W = H * D, t cached positions,
S image tokens.
"""

# pyright: reportCallIssue=false
# Triton's type annotations lack the options of a launch, such as num_warps.

import torch
import triton
import triton.language as tl
from torch import Tensor

POSITIONS = 32  # positions of a cache that are read at a time
TOKENS = 64  # image tokens that are read at a time, at most
VALUES = 64 * 64  # of queries, keys or values that a program holds at a time, so that they fit on small cards


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
    row_start = (row * HEADS + head) * limit * DEPTH
    tl.store(keys + row_start + position * DEPTH + depth, new_key, mask=inside)
    tl.store(values + row_start + position * DEPTH + depth, new_value, mask=inside)

    highest = tl.sum(query * new_key.to(tl.float32), axis=0)
    if MASKED:
        highest += tl.load(mask + row * mask_width + position).to(tl.float32)
    highest = tl.maximum(highest, -1e30)  # finite, so that a hidden position gets weight 0 and not NaN
    total = tl.where(highest > -1e29, 1.0, 0.0)
    weighted = new_value.to(tl.float32) * total
    for start in range(0, position, BLOCK):
        earlier = start + tl.arange(0, BLOCK)
        is_earlier = earlier < position
        addresses = row_start + earlier[:, None] * DEPTH + depth[None, :]
        readable = is_earlier[:, None] & inside[None, :]
        scores = tl.sum(query[None, :] * tl.load(keys + addresses, mask=readable, other=0.0).to(tl.float32), axis=1)
        if MASKED:
            scores += tl.load(mask + row * mask_width + earlier, mask=is_earlier, other=0.0).to(tl.float32)
        scores = tl.where(is_earlier, scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, axis=0))
        weights = tl.exp(scores - new_highest)
        shrink = tl.exp(highest - new_highest)
        addend = tl.sum(
            weights[:, None] * tl.load(values + addresses, mask=readable, other=0.0).to(tl.float32), axis=0
        )
        weighted, total, highest = weighted * shrink + addend, total * shrink + tl.sum(weights, axis=0), new_highest
    tl.store(out + (row * HEADS + head) * DEPTH + depth, (weighted / total).to(out.dtype.element_ty), mask=inside)


def attend_cached(
    joint: Tensor, keys: Tensor, values: Tensor, positions: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Attention (R, W) of one new token per row over the row's cached positions and itself; writes it to the cache.

    Each program computes one row and head, and reads only the positions that the row has. Therefore one launch, and
    one CUDA graph, serves rows of all lengths.

    joint: queries, keys and values of the new tokens (R, 3 W).
    keys, values: the cache (R, H, t, D).
    positions: of the new tokens (R,).
    mask: (R, at least t), added to the scores of a row's positions; it must not hide the first position.
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
    depth, row = tl.arange(0, WIDE), tl.program_id(2) * ROWS + tl.arange(0, ROWS)  # WIDE >= DEPTH
    inside = depth < DEPTH
    row_addresses = ((picture * captions + row) * HEADS + head)[:, None] * DEPTH + depth[None, :]
    is_row = (row < captions)[:, None] & inside[None, :]
    query = tl.load(queries + row_addresses, mask=is_row, other=0.0)
    highest, total = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, WIDE], tl.float32)
    for start in range(0, tokens, BLOCK):
        token = start + tl.arange(0, BLOCK)
        addresses = ((picture * HEADS + head) * tokens + token)[:, None] * DEPTH + depth[None, :]
        readable = (token < tokens)[:, None] & inside[None, :]
        key = tl.load(keys + addresses, mask=readable, other=0.0)
        value = tl.load(values + addresses, mask=readable, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where((token < tokens)[None, :], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))
        weights, shrink = tl.exp(scores - new_highest[:, None]), tl.exp(highest - new_highest)
        weighted = weighted * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        total, highest = total * shrink + tl.sum(weights, axis=1), new_highest
    tl.store(out + row_addresses, (weighted / total[:, None]).to(out.dtype.element_ty), mask=is_row)


def attend_images(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention (R, W) of queries (R, W) over the image tokens of each row's picture.

    keys, values: of the image tokens (N, H, S, D), contiguous. The rows of a picture must be adjacent. Its keys and
    values are read once for each 64 of them, or for fewer where heads are wider than 64.
    """
    pictures, heads, tokens, depth = keys.shape
    out, captions = torch.empty_like(queries), len(queries) // pictures
    wide = max(16, triton.next_power_of_2(depth))
    block = max(16, VALUES // wide)
    rows = min(block, max(16, triton.next_power_of_2(captions)))
    _attend_images[(pictures, heads, triton.cdiv(captions, rows))](
        queries,
        keys,
        values,
        out,
        depth**-0.5,
        tokens,
        captions,
        HEADS=heads,
        DEPTH=depth,
        WIDE=wide,
        ROWS=rows,
        BLOCK=min(block, TOKENS),
        num_warps=4,
        num_stages=3 if keys.itemsize == 2 else 1,  # blocks of float32 that are read ahead do not fit on small cards
    )
    return out


@triton.jit
def _add_norm(
    x, added, weight, bias, total, normed, epsilon, WIDTH: tl.constexpr, WIDE: tl.constexpr, ADDS: tl.constexpr
):
    column = tl.arange(0, WIDE)  # WIDE >= WIDTH
    inside, addresses = column < WIDTH, tl.program_id(0).to(tl.int64) * WIDTH + column
    value = tl.load(x + addresses, mask=inside, other=0.0)
    if ADDS:
        value = (value.to(tl.float32) + tl.load(added + addresses, mask=inside, other=0.0).to(tl.float32)).to(
            value.dtype
        )
        tl.store(total + addresses, value, mask=inside)
    value = value.to(tl.float32)
    mean = tl.sum(value, axis=0) / WIDTH
    centred = tl.where(inside, value - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, axis=0) / WIDTH + epsilon)
    result = centred * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) + tl.load(
        bias + column, mask=inside, other=0.0
    ).to(tl.float32)
    tl.store(normed + addresses, result.to(normed.dtype.element_ty), mask=inside)


def add_norm(x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return x + added (..., W), or x itself if `added` is None, and the layer norm of this sum."""
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
def _write_keys_values(
    joint, slots, keys, values, tokens, HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr
):
    picture, token = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column, width = tl.arange(0, WIDE), HEADS * DEPTH  # WIDE >= HEADS * DEPTH
    inside = column < width
    joint += (picture * tokens + token) * 2 * width + column
    target = ((tl.load(slots + picture) * HEADS + column // DEPTH) * tokens + token) * DEPTH + column % DEPTH
    tl.store(keys + target, tl.load(joint, mask=inside), mask=inside)
    tl.store(values + target, tl.load(joint + width, mask=inside), mask=inside)


def write_keys_values(joint: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """Write the keys and values of M pictures into the slots (M,) of keys and values (N, H, S, D).

    joint: keys and values of the pictures side by side (M, S, 2 W).
    """
    _, heads, tokens, depth = keys.shape
    _write_keys_values[(len(slots), tokens)](
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
