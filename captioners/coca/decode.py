"""Cached decoding of CoCa with open_clip's modules and parameters.

Dimensions: N pictures, C captions of each, R rows (captions in flight, grouped by picture), S image tokens, H heads,
D width of a head, n new tokens, t cached positions, V vocabulary, W width.
"""

import torch
from open_clip.coca_model import CoCa
from torch import Tensor

from captioners.coca.blocks import Block, Tower, add_norm, after_attention, attend, heads, kernels, project
from captioners.coca.products import Products, linear_by
from captioners.decoding.key_values import Grid, KeyValueCache


class Decoding:
    """The rows of captions in flight, with their cached keys and values (see `captioners.decoding.rows.Rows`).

    Image tokens (N, S, W) become keys and values of cross-attention once per picture and are not copied per caption:
    the captions of a picture form the query axis of one attention call. Rows may differ in length.

    Starts with one row per picture. limit: maximum tokens that a row is fed.
    products: the library of float32 products on a CPU.
    """

    tower: Tower  # the text tower; the decoder's input is the tower's output
    decoder: Tower

    def __init__(self, model: CoCa, image_tokens: Tensor, *, limit: int, products: Products = "onednn"):
        self.tower, self.decoder, self.limit = model.text, model.text_decoder, limit
        self.linear = linear_by(products)
        self.cross = [self._cross_keys_values(block, image_tokens) for block in self.decoder.cross_attn]
        pictures, _, width = image_tokens.shape

        def empty_cache(block: Block) -> KeyValueCache:
            shape = (pictures, block.attn.num_heads, limit, width // block.attn.num_heads)
            return KeyValueCache(*image_tokens.new_zeros(2, *shape))

        self.text_caches = list(map(empty_cache, self.tower.transformer.resblocks))
        self.decoder_caches = list(map(empty_cache, self.decoder.resblocks))
        rows = torch.arange(pictures, device=image_tokens.device)  # one for each picture
        self.lengths = torch.zeros_like(rows)  # tokens fed to each row (R,)
        self.longest = 0  # an upper bound of the lengths, known without waiting for a GPU
        # added to the text tower's attention scores (R, limit + 1)
        self.pad_mask = image_tokens.new_zeros(pictures, limit + 1)
        self._assign_rows(rows)

    def extend(self, tokens: Tensor) -> Tensor:
        """Feed tokens (R, n); return the logits (R, n, V) of the token that follows each."""
        # computed, not read from `lengths`, which would wait for a GPU
        self.longest = min(self.longest + tokens.shape[1], self.limit)
        return self.step(tokens, self.longest)

    def step(self, tokens: Tensor, length: int) -> Tensor:
        """Do as `extend`, with attention over the first `length` positions.

        Shapes and memory addresses depend only on the number of rows and on `length`, as a CUDA graph requires.
        """
        offsets = torch.arange(tokens.shape[1], device=tokens.device)
        # a finished row that has not been removed yet may be at its limit; its logits are not used
        positions = self.lengths[:, None].clamp(max=self.limit - len(offsets)) + offsets  # (R, n)
        self.lengths.copy_(positions[:, -1] + 1)
        # open_clip's pad mask is shifted by one: it hides the position after a pad token, whose id is a word piece
        pads = torch.zeros_like(tokens, dtype=self.pad_mask.dtype).masked_fill(
            tokens == self.tower.pad_id, float("-inf")
        )
        self.pad_mask.scatter_(1, positions + 1, pads)
        x = self.tower.token_embedding(tokens) + self.tower.positional_embedding[positions]  # (R, n, W)
        if kernels and tokens.is_cuda and tokens.shape[1] == 1:
            step_positions, text_mask, decoder_mask = positions[:, 0], self.pad_mask, None
        else:
            later = torch.arange(length, device=tokens.device) > positions[..., None]  # (R, n, t)
            causal = torch.zeros_like(later, dtype=self.pad_mask.dtype).masked_fill(later, float("-inf"))[:, None]
            step_positions, text_mask = positions, causal + self.pad_mask[:, None, None, :length]  # (R, 1, n, t)
            decoder_mask = causal
        added = None  # residual branch that the next layer norm adds to x
        for block, cache in zip(self.tower.transformer.resblocks, self.text_caches, strict=True):
            x, added = self._self_attention(block, x, added, cache=cache, positions=step_positions, mask=text_mask)
        blocks = zip(self.decoder.resblocks, self.decoder_caches, self.decoder.cross_attn, self.cross, strict=True)
        for block, cache, cross_block, keys_values in blocks:
            x, added = self._self_attention(block, x, added, cache=cache, positions=step_positions, mask=decoder_mask)
            x, added = self._cross_attention(cross_block, x, added, *keys_values)
        normed = add_norm(x, added, self.decoder.ln_final)[1]
        return self.linear(normed, self.decoder.text_projection.T, None)  # (R, n, V)

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows, in this order. Rows of a picture stay together; a row may be repeated."""
        self.lengths, self.pad_mask = self.lengths[rows], self.pad_mask[rows]
        self.longest = int(self.lengths.max())
        for cache in (*self.text_caches, *self.decoder_caches):
            cache.keep(rows, self.longest)
        alive, pictures = self.pictures[rows].unique_consecutive(return_inverse=True)
        if len(alive) < len(self.cross[0][0]):
            self.cross = [(keys[alive], values[alive]) for keys, values in self.cross]
        self._assign_rows(pictures)

    def join(self, other: "Decoding") -> None:
        """Append the rows of other pictures."""
        pictures = len(self.cross[0][0])
        self.cross = [
            tuple(map(torch.cat, zip(ours, theirs))) for ours, theirs in zip(self.cross, other.cross, strict=True)
        ]
        for name in ("text_caches", "decoder_caches"):
            for ours, theirs in zip(getattr(self, name), getattr(other, name), strict=True):
                ours.join(theirs, self.longest, other.longest)
        self.lengths, self.longest = torch.cat([self.lengths, other.lengths]), max(self.longest, other.longest)
        self.pad_mask = torch.cat([self.pad_mask, other.pad_mask])
        self._assign_rows(torch.cat([self.pictures, pictures + other.pictures]))

    def restart(self, slots: Tensor, image_tokens: Tensor) -> None:
        """Restart in place the rows of pictures number `slots` (M,), with image tokens (M, S, W) of new pictures."""
        for (keys, values), block in zip(self.cross, self.decoder.cross_attn, strict=True):
            joint = self._cross_joint(block, image_tokens)
            if kernels and joint.is_cuda:
                kernels.write_keys_values(joint, slots, keys, values=values)
                continue
            for cached, part in zip((keys, values), joint.chunk(2, dim=-1)):
                cached.index_copy_(0, slots, heads(part, block.attn))
        captions = self.grid.shape[1]
        self.lengths.view(-1, captions).index_fill_(0, slots, 0)
        self.pad_mask.view(-1, captions, self.limit + 1).index_fill_(0, slots, 0)

    def bytes_per_picture(self, captions: int) -> int:
        """The bytes that a picture with this many captions takes here; there must be one row per picture now."""
        caches = sum(cache.keys.nbytes + cache.values.nbytes for cache in (*self.text_caches, *self.decoder_caches))
        cross = sum(keys.nbytes + values.nbytes for keys, values in self.cross)
        return (captions * caches + cross) // len(self.lengths)

    def _assign_rows(self, pictures: Tensor) -> None:
        """Set the number of each row's picture (R,), and the row's cell in the grid for cross-attention."""
        self.pictures, self.grid = pictures, Grid(pictures)

    def _cross_attention(
        self, block: Block, x: Tensor, added: Tensor | None, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A cross-attention block of x (R, n, W) over the image tokens of each row's picture; returns x and `added`.

        keys, values: of the image tokens (N, H, S, D).
        """
        _, num_tokens, width = x.shape
        cells = self.grid.cells
        x, normed = add_norm(x, added, block.ln_1)
        queries = project(normed, block.attn, slice(0, width), linear=self.linear)  # (R, n, W)
        if kernels and x.is_cuda and num_tokens == 1 and cells is None:
            attended = kernels.attend_images(queries[:, 0], keys, values)[:, None]
            return after_attention(block, x, attended, linear=self.linear)
        if cells is not None:  # pictures have unequal numbers of rows left, so some cells stay empty
            filled = queries.new_zeros(len(keys) * self.grid.shape[1], num_tokens, width)
            filled[cells] = queries
            queries = filled
        queries = heads(queries.view(len(keys), -1, width), block.attn)
        attended = attend(queries, keys, values).view(-1, num_tokens, width)
        attended = attended if cells is None else attended[cells]
        return after_attention(block, x, attended, linear=self.linear)

    def _self_attention(
        self,
        block: Block,
        x: Tensor,
        added: Tensor | None,
        *,
        cache: KeyValueCache,
        positions: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """A self-attention block of x (R, n, W), whose keys and values go to the cache; returns x and `added`.

        positions: of the new tokens (R, n). mask: added to the scores (R, 1, n, t); the first t positions are attended
        to. With positions (R,), of one new token per row, a Triton kernel attends to the positions up to the new one;
        its mask is (R, t) or None.
        """
        x, normed = add_norm(x, added, block.ln_1)
        joint = project(normed, block.attn, linear=self.linear)
        if mask is None or positions.ndim == 1:
            attended = kernels.attend_cached(joint[:, 0], cache.keys, cache.values, positions=positions, mask=mask)
            return after_attention(block, x, attended[:, None], linear=self.linear)
        queries, keys, values = (heads(part, block.attn) for part in joint.chunk(3, dim=-1))
        cache.put(keys, values, positions)
        keys, values = (cached[:, :, : mask.shape[-1]] for cached in (cache.keys, cache.values))
        return after_attention(block, x, attend(queries, keys, values, mask=mask), linear=self.linear)

    def _cross_keys_values(self, block: Block, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Contiguous keys and values (N, H, S, D) of the image tokens (N, S, W)."""
        keys, values = self._cross_joint(block, image_tokens).chunk(2, dim=-1)
        return heads(keys, block.attn).contiguous(), heads(values, block.attn).contiguous()

    def _cross_joint(self, block: Block, image_tokens: Tensor) -> Tensor:
        """Keys and values side by side (N, S, 2 W) of the image tokens (N, S, W)."""
        normed = block.ln_1_kv(image_tokens)
        return project(normed, block.attn, slice(image_tokens.shape[-1], None), linear=self.linear)
