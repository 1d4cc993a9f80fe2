"""What needs open_clip's internals: trimmed training, and cached decoding on its own modules and parameters.

Dimensions: B pictures with a caption each, L tokens, V vocabulary, W width, E embedding; in decoding N pictures,
C captions of each, R rows (captions in flight, of one picture after the other), S image tokens, H heads, D width of
a head, n new tokens, t positions cached.
"""

import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from torch import Tensor, nn

from captioners.linear import linear


def initialise_decoder(model: CoCa) -> None:
    """Gives a CoCa's decoder its initial weights, with torch's global seed, its vocabulary's stored as a linear layer's are.

    open_clip leaves `text_projection` as torch.empty made it, and the method that would fill it fails (3.3.0).
    """
    decoder = model.text_decoder
    width, layers = decoder.width, decoder.layers
    for block in (*decoder.resblocks, *decoder.cross_attn):
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
    nn.init.normal_(decoder.text_projection, std=width**-0.5)
    decoder.text_projection.data = decoder.text_projection.data.T.contiguous().T  # (W, V) in the order of (V, W)


def forward_trimmed(model: CoCa, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """open_clip's training forward on captions cut to the batch's longest: same features, logits, gradients, less work.

    images (B, 3, H, W); tokens (B, at most the context), padded at the end with the text tower's pad id to any width.
    Returns image_features and text_features (B, E), normalised, and with L the longest caption's tokens
    logits (B, L-1, V) and their labels (B, L-1); labels past L are padding in open_clip's forward too.
    """
    image_features, image_tokens = model._encode_image(images)
    text_features, states, tokens = encode_text_trimmed(model, tokens)
    logits = model.text_decoder(image_tokens, states[:, :-1])
    return {"image_features": image_features, "text_features": text_features, "logits": logits, "labels": tokens[:, 1:]}


def encode_text_trimmed(model: CoCa, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The text tower on captions cut to the batch's longest, L tokens, from tokens as in `forward_trimmed`.

    Returns features (B, E), normalised, token states (B, L, W) and tokens (B, L).
    """
    tower = model.text
    longest = int((tokens != tower.pad_id).any(0).nonzero().max()) + 1
    # one pad column stays: open_clip's pad mask is shifted by one, so that the CLS token sees that column
    width = min(longest + 1, tower.context_length)
    tokens = F.pad(tokens[:, :width], (0, width - min(width, tokens.shape[1])), value=tower.pad_id)  # (B, L+1)
    features, states = _encode_text(tower, tokens)
    return features, states[:, :longest], tokens[:, :longest]


def _encode_text(tower: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The text tower on tokens (B, L) narrower than its context: features (B, E), token states (B, L, W).

    The CLS token keeps the last position, whatever the width.
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


class Decoding:
    """Captions in flight: every key and value is computed once, with open_clip's own modules (see `captioners.rows.Rows`).

    Image tokens (N, S, W) become cross-attention keys and values once per picture, never replicated: the captions of
    a picture are the query axis of one attention call. Rows may be of unequal length. `limit` is the most tokens a row
    will be fed. Starts with one row per picture.
    """

    def __init__(self, model: CoCa, image_tokens: Tensor, *, limit: int):
        self.tower, self.decoder, self.limit = model.text, model.text_decoder, limit
        self.cross = [_cross_keys_values(block, image_tokens) for block in self.decoder.cross_attn]
        self.text_caches, self.decoder_caches = (
            [KeyValueCache(*image_tokens.new_zeros(2, len(image_tokens), heads, limit, image_tokens.shape[-1] // heads))
             for heads in (block.attn.num_heads for block in blocks)]
            for blocks in (self.tower.transformer.resblocks, self.decoder.resblocks))
        pictures = torch.arange(len(image_tokens), device=image_tokens.device)
        self.lengths, self.longest = torch.zeros_like(pictures), 0  # (R,), tokens fed; and no fewer than the most of them
        self.pad_mask = image_tokens.new_zeros(len(image_tokens), limit + 1)  # (R, limit + 1), added to the text tower's scores
        self._place_rows(pictures)

    def extend(self, tokens: Tensor) -> Tensor:
        """Feeds tokens (R, n) and returns the logits (R, n, V) of what follows each."""
        new = torch.arange(tokens.shape[1], device=tokens.device)
        # a finished row that has not left yet may be at its end: what it is fed is not looked at
        positions = self.lengths[:, None].clamp(max=self.limit - len(new)) + new  # (R, n)
        self.lengths = positions[:, -1] + 1
        self.longest = length = min(self.longest + len(new), self.limit)  # not looked up: a GPU would be waited for
        # open_clip's pad mask is shifted by one: the position after a pad token, which is a word piece too, is hidden
        pads = torch.zeros_like(tokens, dtype=self.pad_mask.dtype).masked_fill(tokens == self.tower.pad_id, float("-inf"))
        self.pad_mask.scatter_(1, positions + 1, pads)
        later = torch.arange(length, device=tokens.device) > positions[..., None]  # (R, n, t)
        causal = torch.zeros_like(later, dtype=self.pad_mask.dtype).masked_fill(later, float("-inf"))[:, None]
        mask = causal + self.pad_mask[:, None, None, :length]  # (R, 1, n, t)
        x = self.tower.token_embedding(tokens) + self.tower.positional_embedding[positions]  # (R, n, W)
        for block, cache in zip(self.tower.transformer.resblocks, self.text_caches, strict=True):
            x = _self_attention(block, x, cache, positions, mask)
        blocks = zip(self.decoder.resblocks, self.decoder_caches, self.decoder.cross_attn, self.cross, strict=True)
        for block, cache, cross_block, keys_values in blocks:
            x = _self_attention(block, x, cache, positions, causal)
            x = self._cross_attention(cross_block, x, *keys_values)
        return linear(self.decoder.ln_final(x), self.decoder.text_projection.T)  # (R, n, V)

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
        self.cross = [tuple(map(torch.cat, zip(ours, theirs))) for ours, theirs in zip(self.cross, other.cross, strict=True)]
        for name in ("text_caches", "decoder_caches"):
            for ours, theirs in zip(getattr(self, name), getattr(other, name), strict=True):
                ours.join(theirs, self.longest, other.longest)
        self.lengths, self.longest = torch.cat([self.lengths, other.lengths]), max(self.longest, other.longest)
        self.pad_mask = torch.cat([self.pad_mask, other.pad_mask])
        self._place_rows(torch.cat([self.pictures, pictures + other.pictures]))

    def bytes_per_picture(self, captions: int) -> int:
        """What a picture with so many captions takes here, from rows of one caption a picture."""
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

    def _cross_attention(self, block: nn.Module, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x (R, n, W) over the image tokens of each row's picture: keys (N, H, D, S), values (N, H, S, D)."""
        _, new, width = x.shape
        queries = _linear(block.ln_1(x), block.attn, slice(0, width))  # (R, n, W)
        if self.cells is not None:  # unequal numbers of captions are left: the empty cells are computed in vain
            grid = queries.new_zeros(len(keys) * self.most, new, width)
            grid[self.cells] = queries
            queries = grid
        out = _attend(_heads(queries.view(len(keys), -1, width), block.attn), keys, values).view(-1, new, width)
        return _residual(block, x, out if self.cells is None else out[self.cells])


class KeyValueCache:
    """Keys and values (R, H, limit, D) of one self-attention, in room for `limit` positions; unused ones are zero, never NaN."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values

    def put(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Writes keys and values (R, H, n, D) at positions (R, n)."""
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        self.keys[rows, :, positions] = keys.transpose(1, 2)
        self.values[rows, :, positions] = values.transpose(1, 2)

    def keep(self, rows: Tensor, used: int) -> None:
        """Goes on with the first `used` positions of these rows."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(len(rows), *old.shape[1:])
            torch.index_select(old[:, :, :used], 0, rows, out=new[:, :, :used])
            setattr(self, name, new)

    def join(self, other: "KeyValueCache", used: int, others_used: int) -> None:
        """Adds the other's rows after its own; so many positions of either are written."""
        for name in ("keys", "values"):
            ours, theirs = getattr(self, name), getattr(other, name)
            new = ours.new_zeros(len(ours) + len(theirs), *ours.shape[1:])
            new[:len(ours), :, :used] = ours[:, :, :used]
            new[len(ours):, :, :others_used] = theirs[:, :, :others_used]
            setattr(self, name, new)


def _cross_keys_values(block: nn.Module, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous keys (N, H, D, S) and values (N, H, S, D) of the image tokens (N, S, W)."""
    width = image_tokens.shape[-1]
    keys, values = _linear(block.ln_1_kv(image_tokens), block.attn, slice(width, None)).chunk(2, dim=-1)
    return _heads(keys, block.attn).transpose(-1, -2).contiguous(), _heads(values, block.attn).contiguous()


def _self_attention(block: nn.Module, x: Tensor, cache: KeyValueCache, positions: Tensor, mask: Tensor) -> Tensor:
    """x (R, n, W) at positions (R, n) over all that the cache then holds up to the mask's (R, 1, n, t) width."""
    queries, keys, values = (_heads(part, block.attn) for part in _linear(block.ln_1(x), block.attn, slice(None)).chunk(3, dim=-1))
    cache.put(keys, values, positions)
    keys, values = (cached[:, :, :mask.shape[-1]] for cached in (cache.keys, cache.values))
    return _residual(block, x, _attend(queries, keys.transpose(-1, -2), values, mask))


def _linear(x: Tensor, attention: nn.Module, part: slice) -> Tensor:
    """The rows `part` of an attention's joint projection to queries, keys and values."""
    return linear(x, attention.in_proj_weight[part], attention.in_proj_bias[part])


def _heads(x: Tensor, attention: nn.Module) -> Tensor:
    """(R, n, W) to (R, H, n, D)."""
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of queries (R, H, n, D) over keys (R, H, D, t) and values (R, H, t, D): (R, n, W).

    Plain matrix products: for few queries on a CPU faster than scaled_dot_product_attention.
    """
    scores = (queries * queries.shape[-1] ** -0.5) @ keys  # (R, H, n, t)
    if mask is not None:
        scores += mask
    return (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)


def _residual(block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of open_clip's ResidualAttentionBlock, after its attention."""
    out, fc, proj = block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj
    x = x + block.ls_1(linear(attended, out.weight, out.bias))
    hidden = block.mlp.gelu(linear(block.ln_2(x), fc.weight, fc.bias))
    return x + block.ls_2(linear(hidden, proj.weight, proj.bias))
