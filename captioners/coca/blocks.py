"""The parts of open_clip's transformer blocks. Cached decoding and the image tower are composed of them.

A residual branch is not added to its input x at once. It is passed on as `added`, and the next layer norm adds it,
because on a GPU one kernel does both.

Dimensions: B rows or pictures, n tokens, t positions attended to, H heads, D width of a head, W = H * D.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from captioners.machine import triton_lacks

if triton_lacks():
    kernels = None
else:
    from captioners.coca import block_kernels as kernels

Block = Any  # open_clip's ResidualAttentionBlock; torch types every attribute of a module as "tensor or module"
Tower = Any  # open_clip's towers and decoder, for the same reason
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # of x (..., K), weight (N, K) and bias (N,) to (..., N)


def project(
    x: Tensor, attention: nn.MultiheadAttention, part: slice = slice(None), *, linear: Linear = F.linear
) -> Tensor:
    """Project x (B, n, W) to queries, keys and values side by side (B, n, 3 W), or to the slice `part` of them."""
    return linear(x, attention.in_proj_weight[part], attention.in_proj_bias[part])


def heads(x: Tensor, attention: nn.MultiheadAttention) -> Tensor:
    """Split x (B, n, W) into heads (B, H, n, D)."""
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of queries (B, H, n, D) over keys and values (B, H, t, D); returns (B, n, W).

    On a CPU, plain matrix products are used: for few queries they are faster than scaled_dot_product_attention.
    """
    if queries.is_cuda:
        return F.scaled_dot_product_attention(queries, keys, values, mask).transpose(1, 2).flatten(2)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)  # (B, H, n, t)
    if mask is not None:
        scores += mask
    return (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)


def add_norm(x: Tensor, added: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return x + added (B, n, W), and the layer norm of this sum."""
    if kernels and x.is_cuda:
        return kernels.add_norm(x, added, norm.weight, bias=norm.bias, epsilon=norm.eps)
    x = x if added is None else x + added
    return x, norm(x)


def after_attention(block: Block, x: Tensor, attended: Tensor, *, linear: Linear = F.linear) -> tuple[Tensor, Tensor]:
    """Do the rest of open_clip's ResidualAttentionBlock after its attention; returns x (B, n, W) and `added`."""
    out, fc, proj = block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj
    x, normed = add_norm(x, block.ls_1(linear(attended, out.weight, out.bias)), block.ln_2)
    hidden = block.mlp.gelu(linear(normed, fc.weight, fc.bias))
    return x, block.ls_2(linear(hidden, proj.weight, proj.bias))


def encode_tokens(blocks: Iterable[Block], x: Tensor) -> Tensor:
    """Return x (B, n, W) after the blocks of an image tower, without the copies of torch's multi-head attention."""
    added = None
    for block in blocks:
        x, normed = add_norm(x, added, block.ln_1)
        queries, keys, values = (heads(part, block.attn) for part in project(normed, block.attn).chunk(3, dim=-1))
        x, added = after_attention(block, x, attend(queries, keys, values))
    return x if added is None else x + added
