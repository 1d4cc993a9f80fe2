"""Cached decoding of CoCa on open_clip's own modules and parameters.

Dimensions: N pictures, C captions of each, R rows (captions in flight, of one picture after the other), S image tokens,
H heads, D width of a head, n new tokens, t positions cached, V vocabulary, W width.
"""

import torch
from open_clip.coca_model import CoCa
from torch import Tensor

from captioners.coca.blocks import Block, Tower, add_norm, after_attention, attend, heads, kernels, project
from captioners.coca.onednn import linear
from captioners.decoding.key_values import KeyValueCache


class Decoding:
    """Captions in flight: every key and value is computed once, with open_clip's own modules (see `captioners.decoding.rows.Rows`).

    Image tokens (N, S, W) become cross-attention keys and values once per picture, never replicated: the captions of
    a picture are the query axis of one attention call. Rows may be of unequal length. `limit` is the most tokens a row
    will be fed. Starts with one row per picture.
    """

    tower: Tower  # the text tower, which the decoder goes on after
    decoder: Tower

    def __init__(self, model: CoCa, image_tokens: Tensor, *, limit: int):
        self.tower, self.decoder, self.limit = model.text, model.text_decoder, limit
        self.cross = [_cross_keys_values(block, image_tokens) for block in self.decoder.cross_attn]
        self.text_caches, self.decoder_caches = (
            [
                KeyValueCache(
                    *image_tokens.new_zeros(2, len(image_tokens), heads, limit, image_tokens.shape[-1] // heads)
                )
                for heads in (block.attn.num_heads for block in blocks)
            ]
            for blocks in (self.tower.transformer.resblocks, self.decoder.resblocks)
        )
        pictures = torch.arange(len(image_tokens), device=image_tokens.device)
        # tokens fed to each row (R,), and a number that none of them exceeds
        self.lengths, self.longest = torch.zeros_like(pictures), 0
        # (R, limit + 1), added to the text tower's scores
        self.pad_mask = image_tokens.new_zeros(len(image_tokens), limit + 1)
        self._place_rows(pictures)

    def extend(self, tokens: Tensor) -> Tensor:
        """Feeds tokens (R, n) and returns the logits (R, n, V) of what follows each."""
        self.longest = min(self.longest + tokens.shape[1], self.limit)  # not looked up: a GPU would be waited for
        return self.step(tokens, self.longest)

    def step(self, tokens: Tensor, length: int) -> Tensor:
        """`extend`, with attention over the first `length` positions; of the same shapes and memory whenever rows and length are."""
        new = torch.arange(tokens.shape[1], device=tokens.device)
        # a finished row that has not left yet may be at its end: what it is fed is not looked at
        positions = self.lengths[:, None].clamp(max=self.limit - len(new)) + new  # (R, n)
        self.lengths.copy_(positions[:, -1] + 1)
        # open_clip's pad mask is shifted by one: the position after a pad token, which is a word piece too, is hidden
        pads = torch.zeros_like(tokens, dtype=self.pad_mask.dtype).masked_fill(
            tokens == self.tower.pad_id, float("-inf")
        )
        self.pad_mask.scatter_(1, positions + 1, pads)
        x = self.tower.token_embedding(tokens) + self.tower.positional_embedding[positions]  # (R, n, W)
        if kernels and tokens.is_cuda and tokens.shape[1] == 1:
            text, decoder = (positions[:, 0], self.pad_mask), (positions[:, 0], None)
        else:
            later = torch.arange(length, device=tokens.device) > positions[..., None]  # (R, n, t)
            causal = torch.zeros_like(later, dtype=self.pad_mask.dtype).masked_fill(later, float("-inf"))[:, None]
            text = positions, causal + self.pad_mask[:, None, None, :length]  # (R, 1, n, t)
            decoder = positions, causal
        added = None  # to x, by the next norm
        for block, cache in zip(self.tower.transformer.resblocks, self.text_caches, strict=True):
            x, added = _self_attention(block, x, added, cache, *text)
        blocks = zip(self.decoder.resblocks, self.decoder_caches, self.decoder.cross_attn, self.cross, strict=True)
        for block, cache, cross_block, keys_values in blocks:
            x, added = _self_attention(block, x, added, cache, *decoder)
            x, added = self._cross_attention(cross_block, x, added, *keys_values)
        return linear(add_norm(x, added, self.decoder.ln_final)[1], self.decoder.text_projection.T)  # (R, n, V)

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows, in this order; rows of a picture stay together, and may be repeated."""
        self.lengths, self.pad_mask = self.lengths[rows], self.pad_mask[rows]
        self.longest = int(self.lengths.max())
        for cache in (*self.text_caches, *self.decoder_caches):
            cache.keep(rows, self.longest)
        alive, pictures = self.pictures[rows].unique_consecutive(return_inverse=True)
        if len(alive) < len(self.cross[0][0]):
            self.cross = [(keys[alive], values[alive]) for keys, values in self.cross]
        self._place_rows(pictures)

    def join(self, other: "Decoding") -> None:
        """Adds the rows of other pictures, after its own."""
        pictures = len(self.cross[0][0])
        self.cross = [
            tuple(map(torch.cat, zip(ours, theirs))) for ours, theirs in zip(self.cross, other.cross, strict=True)
        ]
        for name in ("text_caches", "decoder_caches"):
            for ours, theirs in zip(getattr(self, name), getattr(other, name), strict=True):
                ours.join(theirs, self.longest, other.longest)
        self.lengths, self.longest = torch.cat([self.lengths, other.lengths]), max(self.longest, other.longest)
        self.pad_mask = torch.cat([self.pad_mask, other.pad_mask])
        self._place_rows(torch.cat([self.pictures, pictures + other.pictures]))

    def restart(self, slots: Tensor, image_tokens: Tensor) -> None:
        """Begins the rows of pictures number `slots` (M,) anew, in place, with the image tokens (M, S, W) of others."""
        for (keys, values), block in zip(self.cross, self.decoder.cross_attn, strict=True):
            joint = _cross_joint(block, image_tokens)
            if kernels and joint.is_cuda:
                kernels.place(joint, slots, keys, values)
                continue
            for old, new in zip((keys, values), joint.chunk(2, dim=-1)):
                old.index_copy_(0, slots, heads(new, block.attn))
        self.lengths.view(-1, self.most).index_fill_(0, slots, 0)
        self.pad_mask.view(-1, self.most, self.limit + 1).index_fill_(0, slots, 0)

    def bytes_per_picture(self, captions: int) -> int:
        """The bytes that a picture with so many captions takes here, judged from rows of one caption a picture."""
        caches = sum(cache.keys.nbytes + cache.values.nbytes for cache in (*self.text_caches, *self.decoder_caches))
        cross = sum(keys.nbytes + values.nbytes for keys, values in self.cross)
        return (captions * caches + cross) // len(self.lengths)

    def _place_rows(self, pictures: Tensor) -> None:
        """Places rows (R,) of these pictures in a grid of N x most cells; `cells` is None where rows fill it in order."""
        self.pictures = pictures
        counts = pictures.bincount()
        self.most = int(counts.max())
        within = torch.arange(len(pictures), device=pictures.device) - (counts.cumsum(0) - counts)[pictures]
        self.cells = None if self.most * len(counts) == len(pictures) else pictures * self.most + within

    def _cross_attention(
        self, block: Block, x: Tensor, added: Tensor | None, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x (R, n, W) over the image tokens of each row's picture, keys and values (N, H, S, D); and what is to be added to it."""
        _, new, width = x.shape
        x, normed = add_norm(x, added, block.ln_1)
        queries = project(normed, block.attn, slice(0, width))  # (R, n, W)
        if kernels and x.is_cuda and new == 1 and self.cells is None:
            return after_attention(block, x, kernels.attend_images(queries[:, 0], keys, values)[:, None])
        if self.cells is not None:  # unequal numbers of captions are left: the empty cells are computed in vain
            grid = queries.new_zeros(len(keys) * self.most, new, width)
            grid[self.cells] = queries
            queries = grid
        out = attend(heads(queries.view(len(keys), -1, width), block.attn), keys, values).view(-1, new, width)
        return after_attention(block, x, out if self.cells is None else out[self.cells])


def _cross_keys_values(block: Block, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous keys and values (N, H, S, D) of the image tokens (N, S, W)."""
    keys, values = _cross_joint(block, image_tokens).chunk(2, dim=-1)
    return heads(keys, block.attn).contiguous(), heads(values, block.attn).contiguous()


def _cross_joint(block: Block, image_tokens: Tensor) -> Tensor:
    """Keys and values, side by side (N, S, 2 W), of the image tokens (N, S, W)."""
    return project(block.ln_1_kv(image_tokens), block.attn, slice(image_tokens.shape[-1], None))


def _self_attention(
    block: Block, x: Tensor, added: Tensor | None, cache: KeyValueCache, positions: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """x (R, n, W) at positions (R, n) over all that the cache then holds up to the mask's (R, 1, n, t) width; and what is to be added.

    Where positions are (R,), of one new token each, a kernel looks at no later ones; its mask is (R, t) or None.
    """
    x, normed = add_norm(x, added, block.ln_1)
    joint = project(normed, block.attn)
    if mask is None or positions.ndim == 1:
        return after_attention(
            block, x, kernels.attend_cached(joint[:, 0], cache.keys, cache.values, positions, mask)[:, None]
        )
    queries, keys, values = (heads(part, block.attn) for part in joint.chunk(3, dim=-1))
    cache.put(keys, values, positions)
    keys, values = (cached[:, :, : mask.shape[-1]] for cached in (cache.keys, cache.values))
    return after_attention(block, x, attend(queries, keys, values, mask))
