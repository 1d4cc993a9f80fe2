"""A cheaper training forward of CoCa with open_clip's modules: trimmed captions, several captions per picture.

Dimensions: B pictures, K captions of each, L tokens of the longest caption, T tokens to predict in total, S image
tokens, V vocabulary, W width, E embedding.
"""

import contextlib
from functools import partial

import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from captioners.coca.blocks import Block, Tower, encode_tokens
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
    tower = model.visual
    with evaluating(tower):
        if (
            images.is_cuda
            and type(tower) is VisionTransformer
            and {*map(type, tower.transformer.resblocks)} == {ResidualAttentionBlock}
        ):
            return _encode_plainly(tower, images)
        in_onednn = products == "onednn" and images.device.type == "cpu"
        with fast_products() if in_onednn else contextlib.nullcontext():
            return model._encode_image(images)


def _encode_plainly(tower: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Do as `encode_images`, without the copies of torch's multi-head attention: they take a third of a GPU's time."""
    pooled, tokens = tower._pool(encode_tokens(tower.transformer.resblocks, tower._embeds(images)))
    return F.normalize(pooled if tower.proj is None else pooled @ tower.proj, dim=-1), tokens


def forward_trimmed(
    model: CoCa, images: Tensor | tuple[Tensor, Tensor], tokens: Tensor, *, trim: bool = True
) -> dict[str, Tensor]:
    """Compute open_clip's training forward with several captions per picture: same features, logits and gradients.

    It is cheaper, because each picture is encoded once, the captions of a picture are the queries of one
    cross-attention, captions are trimmed to the longest of the batch, and padding gets no logits.

    images: pixels (B, 3, H, W), or the result of `encode_images` for them.
    tokens: (B, K, at most the context), padded at the end with the text tower's pad id.
    trim: whether to trim captions to the longest, which waits for a GPU.
    Returns image_features (B, E) and text_features (B, K, E), normalised, and the logits (T, V) and labels (T,) of all
    tokens but padding, caption by caption.
    """
    image_features, image_tokens = model._encode_image(images) if isinstance(images, Tensor) else images
    pictures, captions = tokens.shape[:2]
    text_features, states, tokens = encode_text_trimmed(model, tokens.flatten(0, 1), trim=trim)
    hidden = _decode(model.text_decoder, image_tokens, states[:, :-1])  # (B K, L-1, W)
    labels = tokens[:, 1:]
    tower: Tower = model.text
    real = (labels != tower.pad_id).flatten().nonzero()[:, 0]  # this waits for a GPU
    return {
        "image_features": image_features,
        "text_features": text_features.unflatten(0, (pictures, captions)),
        "logits": hidden.flatten(0, 1)[real] @ model.text_decoder.text_projection,
        "labels": labels.flatten()[real],
    }


def _decode(decoder: Tower, image_tokens: Tensor, x: Tensor) -> Tensor:
    """The decoder's last states (B K, L, W) for token states x (B K, L, W) and image tokens (B, S, W)."""

    def run(block: Block, x: Tensor, **inputs: Tensor) -> Tensor:
        if decoder.grad_checkpointing:
            return checkpoint(partial(block, **inputs), x, use_reentrant=False)
        return block(x, **inputs)

    rows, length, width = x.shape
    for block, cross_block in zip(decoder.resblocks, decoder.cross_attn, strict=True):
        x = run(block, x, attn_mask=decoder.attn_mask[:length, :length])
        queries = x.reshape(len(image_tokens), -1, width)  # (B, K L, W)
        x = run(cross_block, queries, k_x=image_tokens, v_x=image_tokens).view(rows, length, width)
    return decoder.ln_final(x)


def encode_text_trimmed(model: CoCa, tokens: Tensor, *, trim: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Encode captions, trimmed to the longest, with the text tower.

    tokens: (B, at most the context), padded as for `forward_trimmed`. On the host, trimming waits for no device.
    trim: whether to trim to the longest caption of L tokens; otherwise L is the width of `tokens`.
    Returns normalised features (B, E), token states (B, L, W) and tokens (B, L).
    """
    tower: Tower = model.text
    longest = min(tokens.shape[1], tower.context_length)
    if trim:
        longest = int((tokens != tower.pad_id).any(0).nonzero().max()) + 1
    # one pad column is kept: by open_clip's pad mask, which is shifted by one, the CLS token attends to that column
    width = min(longest + 1, tower.context_length)
    tokens = F.pad(tokens[:, :width], (0, width - min(width, tokens.shape[1])), value=tower.pad_id)  # (B, L+1)
    tokens = tokens.to(tower.cls_emb.device)
    features, states = _encode_text(tower, tokens)
    return features, states[:, :longest], tokens[:, :longest]


def _encode_text(tower: Tower, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Encode tokens (B, L), which may be narrower than the context: features (B, E), token states (B, L, W).

    The CLS token always has the context's last position.
    """
    batch, length = tokens.shape
    embedded = torch.cat([tower.token_embedding(tokens), tower.cls_emb.expand(batch, 1, -1)], dim=1)  # (B, L+1, W)
    positions = torch.cat([tower.positional_embedding[:length], tower.positional_embedding[-1:]])
    padding = tower._build_additive_mask(tokens, length + 1, embedded.dtype)
    states = tower.transformer(embedded + positions, attn_mask=tower.attn_mask[: length + 1, : length + 1] + padding)
    pooled = tower.ln_final(states[:, -1])
    if isinstance(tower.text_projection, nn.Linear):
        pooled = tower.text_projection(pooled)
    elif tower.text_projection is not None:
        pooled = pooled @ tower.text_projection
    return F.normalize(pooled, dim=-1), states[:, :-1]
