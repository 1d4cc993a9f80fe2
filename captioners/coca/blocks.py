"""The parts of open_clip's transformer blocks, of which cached decoding and the image tower are composed.

A block's output is not added at once: the next layer norm adds it, which on a GPU is one kernel.

Dimensions: B rows or pictures, n tokens, t positions attended to, H heads, D width of a head, W = H * D.
"""

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from captioners.coca.onednn import linear

try:
    from captioners.coca import block_kernels as kernels
except ImportError:  # Triton comes with torch's CUDA builds alone
    kernels = None

Block = Any  # open_clip's ResidualAttentionBlock: torch's types say of a module's parts "tensor or module"
Tower = Any  # likewise its towers and its decoder


def project(x: Tensor, attention: nn.MultiheadAttention, part: slice = slice(None)) -> Tensor:
    """The rows `part` of an attention's joint projection to queries, keys and values."""
    return linear(x, attention.in_proj_weight[part], attention.in_proj_bias[part])


def heads(x: Tensor, attention: nn.MultiheadAttention) -> Tensor:
    """(B, n, W) to (B, H, n, D)."""
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of queries (B, H, n, D) over keys and values (B, H, t, D): (B, n, W).

    On a CPU plain matrix products: for few queries they are faster than scaled_dot_product_attention.
    """
    if queries.is_cuda:
        return F.scaled_dot_product_attention(queries, keys, values, mask).transpose(1, 2).flatten(2)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)  # (B, H, n, t)
    if mask is not None:
        scores += mask
    return (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)


def add_norm(x: Tensor, added: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """The sum of x and what is to be added (B, n, W), and its layer norm."""
    if kernels and x.is_cuda:
        return kernels.add_norm(x, added, norm.weight, norm.bias, norm.eps)
    x = x if added is None else x + added
    return x, norm(x)


def after_attention(block: Block, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    """The rest of open_clip's ResidualAttentionBlock, after its attention: x (B, n, W), and what is to be added to it."""
    out, fc, proj = block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj
    x, normed = add_norm(x, block.ls_1(linear(attended, out.weight, out.bias)), block.ln_2)
    hidden = block.mlp.gelu(linear(normed, fc.weight, fc.bias))
    return x, block.ls_2(linear(hidden, proj.weight, proj.bias))


def encode_tokens(blocks: Iterable[Block], x: Tensor) -> Tensor:
    """x (B, n, W) after an image tower's blocks, without the copies that torch's multi-head attention makes."""
    added = None
    for block in blocks:
        x, normed = add_norm(x, added, block.ln_1)
        queries, keys, values = (heads(part, block.attn) for part in project(normed, block.attn).chunk(3, dim=-1))
        x, added = after_attention(block, x, attend(queries, keys, values))
    return x if added is None else x + added
