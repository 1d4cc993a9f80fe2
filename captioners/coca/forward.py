"""A cheaper training forward of CoCa with open_clip's modules: without padding, several captions per picture.

Dimensions: B pictures, or captions of the text tower, K captions of each picture, L positions of a caption, R rows
(positions that are not padding, of all captions), T tokens to predict in total, S image tokens, V vocabulary, W width,
E embedding.
"""

import contextlib
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from captioners.coca.blocks import Block, Tower, encode_tokens, heads
from captioners.coca.onednn import fast_products
from captioners.coca.products import Products
from captioners.decoding.search import evaluating


def initialise_decoder(model: CoCa) -> None:
    """Initialise the weights of a CoCa's decoder with torch's global seed.

    open_clip 3.3.0 leaves `text_projection` uninitialised, and its method that would initialise it fails.
    `text_projection` is stored in memory as a linear layer's weight, which is faster.
    """
    decoder: Tower = model.text_decoder
    width, layers = decoder.width, decoder.layers
    for block in (*decoder.resblocks, *decoder.cross_attn):
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
    nn.init.normal_(decoder.text_projection, std=width**-0.5)
    decoder.text_projection.data = decoder.text_projection.data.T.contiguous().T  # (W, V), in memory (V, W)


@torch.no_grad()
def encode_images(model: CoCa, images: Tensor, *, products: Products = "onednn") -> tuple[Tensor, Tensor]:
    """Return normalised features (B, E) and tokens (B, S, W) of pictures (B, 3, H, W).

    The image tower runs in eval mode and without gradients. products: the library of float32 products on a CPU.
    """
    tower: Tower = model.visual
    with evaluating(tower):
        if images.is_cuda and _has_plain_blocks(tower):
            return _encode_plainly(tower, images)
        in_onednn = products == "onednn" and images.device.type == "cpu"
        with fast_products() if in_onednn else contextlib.nullcontext():
            return model._encode_image(images)


def _has_plain_blocks(tower: nn.Module) -> bool:
    """Return whether this is open_clip's image tower with its usual blocks."""
    return isinstance(tower, VisionTransformer) and all(
        isinstance(block, ResidualAttentionBlock) for block in tower.transformer.resblocks
    )


def _encode_plainly(tower: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Do as `encode_images`, without the copies of torch's multi-head attention: they take a third of a GPU's time."""
    return _pool(tower, encode_tokens(tower.transformer.resblocks, tower._embeds(images)))


def _pool(tower: VisionTransformer, states: Tensor) -> tuple[Tensor, Tensor]:
    """Return normalised features (B, E) and tokens (B, S, W) for the last block's states (B, S', W)."""
    pooled, tokens = tower._pool(states)
    return F.normalize(pooled if tower.proj is None else pooled @ tower.proj, dim=-1), tokens


def forward_trimmed(
    model: CoCa, images: Tensor | tuple[Tensor, Tensor], tokens: Tensor, *, trim: bool = True
) -> dict[str, Tensor]:
    """Compute open_clip's training forward with several captions per picture: same features, logits and gradients.

    It is cheaper, because each picture is encoded once, the captions of a picture are the queries of one
    cross-attention, padding passes through no layer but attention, and attention makes fewer copies.

    images: pixels (B, 3, H, W), or the result of `encode_images` for them.
    tokens: (B, K, L), padded at the end with the text tower's pad id. All after the context must be padding.
    trim: whether to leave padding out, which waits for a GPU.
    Returns image_features (B, E) and text_features (B, K, E), normalised, and the logits (T, V) and labels (T,) of all
    tokens but padding, caption by caption.
    """
    image_features, image_tokens = _encode_pixels(model, images) if isinstance(images, Tensor) else images
    pictures, captions = tokens.shape[:2]
    text: Tower = model.text
    tokens = tokens.flatten(0, 1)[:, : text.context_length].to(text.cls_emb.device)
    text_features, states = encode_text_trimmed(model, tokens, trim=trim)
    layout = Layout.of(_until_last(tokens, text.pad_id)[:, 1:], trim=trim)  # the last token predicts nothing
    hidden = _decode(model.text_decoder, image_tokens, layout.collect(states[:, :-1]), layout)
    labels = layout.collect(tokens[:, 1:, None])[:, 0]
    real = (labels != text.pad_id).nonzero()[:, 0]  # this waits for a GPU
    return {
        "image_features": image_features,
        "text_features": text_features.unflatten(0, (pictures, captions)),
        "logits": hidden.index_select(0, real) @ model.text_decoder.text_projection,
        "labels": labels[real],
    }


class Layout(NamedTuple):
    """Where rows lie in a grid of captions x positions. Attention takes the grid, all other layers take the rows.

    cells: the cell of each row (R,); None if every cell has a row.
    """

    captions: int
    positions: int
    cells: Tensor | None

    @classmethod
    def of(cls, filled: Tensor, *, trim: bool) -> "Layout":
        """Return the layout with a row for each filled cell of the grid (B, L), or, without `trim`, for every cell."""
        return cls(*filled.shape, cells=filled.flatten().nonzero()[:, 0] if trim else None)

    def collect(self, grid: Tensor) -> Tensor:
        """Return the rows (R, W) of a grid (..., W) of as many cells."""
        rows = grid.reshape(self.captions * self.positions, grid.shape[-1])
        return rows if self.cells is None else rows.index_select(0, self.cells)

    def spread(self, rows: Tensor) -> Tensor:
        """Return the grid (B, L, W) of rows (R, W), with zeros in empty cells."""
        if self.cells is not None:
            cells = rows.new_zeros(self.captions * self.positions, rows.shape[-1])
            rows = cells.index_copy_(0, self.cells, rows)
        return rows.view(self.captions, self.positions, -1)


def _until_last(tokens: Tensor, pad_id: int) -> Tensor:
    """Return which tokens (B, L) are not padding at the end; within a caption, the pad id may be a word piece."""
    return (tokens != pad_id).flip(1).cumsum(1).flip(1) > 0


def _run(block: Block, x: Tensor, layout: Layout, *, recompute: bool, **inputs: Any) -> Tensor:
    """Return the block's output by `_forward_block`.

    It is called as the block's own forward, because the block has hooks if its weights are sharded.
    recompute: whether to compute the block again in the backward pass instead of storing its activations.
    """

    def run(x: Tensor) -> Tensor:
        block.forward = partial(_forward_block, block, layout=layout, **inputs)
        try:
            return block(x)
        finally:
            del block.forward

    return checkpoint(run, x, use_reentrant=False) if recompute else run(x)


def _forward_block(
    block: Block,
    x: Tensor,
    layout: Layout,
    *,
    context: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Do as open_clip's ResidualAttentionBlock for rows x (R, W), without the copies of torch's multi-head attention.

    context: image tokens (B, S, W) of a cross-attention. mask: added to the scores (B, 1, L, L).
    causal: whether a position attends to none after it.
    """
    attention, normed = block.attn, block.ln_1(x)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if context is None:
        queries, keys, values = layout.spread(F.linear(normed, weight, bias)).chunk(3, dim=-1)
    else:
        sizes = [x.shape[-1], 2 * x.shape[-1]]
        (query_weight, weight), (query_bias, bias) = weight.split(sizes), bias.split(sizes)
        queries = layout.spread(F.linear(normed, query_weight, query_bias)).view(len(context), -1, x.shape[-1])
        keys, values = F.linear(block.ln_1_kv(context), weight, bias).chunk(2, dim=-1)
    queries, keys, values = (heads(part, attention) for part in (queries, keys, values))
    attended = F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=causal)
    attended = layout.collect(attended.transpose(1, 2).flatten(2))
    x = x + block.ls_1(F.linear(attended, attention.out_proj.weight, attention.out_proj.bias))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _encode_pixels(model: CoCa, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return normalised features (B, E) and tokens (B, S, W) of pixels (B, 3, H, W), with gradients."""
    tower: Tower = model.visual
    if not _has_plain_blocks(tower):
        return model._encode_image(images)
    x = tower._embeds(images)
    layout = Layout(x.shape[0], x.shape[1], cells=None)
    rows = layout.collect(x)
    for block in tower.transformer.resblocks:
        rows = _run(block, rows, layout, recompute=tower.transformer.grad_checkpointing)
    return _pool(tower, layout.spread(rows))


def _decode(decoder: Tower, image_tokens: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """The decoder's last states (R, W) for token states x (R, W) and image tokens (B, S, W)."""
    recompute = decoder.grad_checkpointing
    for block, cross_block in zip(decoder.resblocks, decoder.cross_attn, strict=True):
        x = _run(block, x, layout, recompute=recompute, causal=True)
        x = _run(cross_block, x, layout, recompute=recompute, context=image_tokens)
    return decoder.ln_final(x)


def encode_text_trimmed(model: CoCa, tokens: Tensor, *, trim: bool = True) -> tuple[Tensor, Tensor]:
    """Encode captions with the text tower: normalised features (B, E) and token states (B, L, W).

    tokens: (B, L), L at most the context, padded as for `forward_trimmed`. trim: as there; padding has no states then.
    The CLS token always has the context's last position.
    """
    tower: Tower = model.text
    batch, width = tokens.shape
    # by open_clip's pad mask, which is shifted by one, the CLS token attends to one pad
    length = min(width + 1, tower.context_length)
    tokens = F.pad(tokens.to(tower.cls_emb.device), (0, length - width), value=tower.pad_id)
    filled = F.pad(_until_last(tokens, tower.pad_id), (1, 0), value=True)  # (B, L+1), with that pad
    filled[:, -1] = True  # the CLS token
    layout = Layout.of(filled, trim=trim)
    embedded = torch.cat([tower.token_embedding(tokens), tower.cls_emb.expand(batch, 1, -1)], dim=1)  # (B, L+1, W)
    positions = torch.cat([tower.positional_embedding[:length], tower.positional_embedding[-1:]])
    padding = tower._build_additive_mask(tokens, length + 1, embedded.dtype).view(batch, -1, length + 1, length + 1)
    mask = tower.attn_mask[: length + 1, : length + 1] + padding[:, :1]
    rows = layout.collect(embedded + positions)
    for block in tower.transformer.resblocks:
        rows = _run(block, rows, layout, recompute=tower.transformer.grad_checkpointing, mask=mask)
    states = layout.spread(rows)
    pooled = tower.ln_final(states[:, -1])
    if isinstance(tower.text_projection, nn.Linear):
        pooled = tower.text_projection(pooled)
    elif tower.text_projection is not None:
        pooled = pooled @ tower.text_projection
    return F.normalize(pooled, dim=-1), states[:, :width]
