"""What needs open_clip's internals: trimmed training, and cached decoding on its own modules and parameters.

Dimensions: B pictures with a caption each, L tokens, V vocabulary, W width, E embedding; in decoding N pictures,
C captions of each, R rows (captions in flight, of one picture after the other), S image tokens, H heads, D width of
a head, n new tokens, t tokens cached.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from torch import Tensor, nn

from captioners.base import SamplingConfig
from captioners.sampling import Draws, choose

COMPACT_BELOW = 0.8  # of the rows alive: copying the caches costs less than going on with finished captions


def initialise_decoder(model: CoCa) -> None:
    """Gives a CoCa's decoder its initial weights, with torch's global seed.

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


def forward_trimmed(model: CoCa, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """open_clip's training forward on captions cut to the batch's longest: same features, logits, gradients, less work.

    images (B, 3, H, W); tokens (B, at most the context), padded at the end with the text tower's pad id to any width.
    Returns image_features and text_features (B, E), normalised, and with L the longest caption's tokens
    logits (B, L-1, V) and their labels (B, L-1); labels past L are padding in open_clip's forward too.
    """
    tower = model.text
    image_features, image_tokens = model._encode_image(images)
    longest = int((tokens != tower.pad_id).any(0).nonzero().max()) + 1
    # one pad column stays: open_clip's pad mask is shifted by one, so that the CLS token sees that column
    width = min(longest + 1, tower.context_length)
    tokens = F.pad(tokens[:, :width], (0, width - min(width, tokens.shape[1])), value=tower.pad_id)  # (B, L+1)
    text_features, states = _encode_text(tower, tokens)
    logits = model.text_decoder(image_tokens, states[:, : longest - 1])
    labels = tokens[:, 1:longest]
    return {"image_features": image_features, "text_features": text_features, "logits": logits, "labels": labels}


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


class Decoded(NamedTuple):
    """A caption's tokens from start to end, its log-probability, and whether the limit ended it (see Caption)."""

    tokens: list[int]
    logprob: float
    truncated: bool


@torch.no_grad()
def decode(
    model: CoCa,
    images: Tensor,
    keys: Sequence[str],
    sampling: SamplingConfig,
    *,
    prefix: Sequence[int],
    end_id: int,
    never: Sequence[int],
    max_length: int,
    first_index: int = 0,
) -> tuple[Tensor, list[list[Decoded]]]:
    """Draws captions of images (N, 3, H, W), whose sample keys are `keys`: normalised image features (N, E), captions.

    Captions start with the tokens `prefix`, never hold the tokens `never`, and have at most max_length tokens; where
    the limit comes, the last one is the end token, not looked for. The last token is never fed back.
    """
    features, image_tokens = model._encode_image(images)
    decoding = Decoding(model, image_tokens, limit=max_length - 2)
    device, pictures, captions = images.device, len(images), sampling.num_captions
    prefix, never = torch.tensor(prefix, device=device), torch.tensor(never, device=device)
    # all captions of a picture start alike: one row each, until the first choice
    logits = decoding.extend(prefix.expand(pictures, -1))[:, -1].float()  # (N, V)
    decoding.keep(torch.arange(pictures, device=device).repeat_interleave(captions))
    logits = logits.repeat_interleave(captions, dim=0)  # (R, V)

    draws = Draws(sampling.seed, keys, captions, first_index, logits.shape[1], device)
    rows = torch.arange(len(logits), device=device)  # whose caption each row of the decoding is
    sequences = torch.full((len(rows), max_length), end_id, device=device)
    sequences[:, : len(prefix)] = prefix
    logprobs = torch.zeros(len(rows), device=device, dtype=torch.float64)
    lengths = torch.full_like(rows, max_length)  # until a caption ends
    for length in range(len(prefix), max_length - 1):
        noise = draws.at(rows, length)
        tokens, logprob = choose(logits, sequences[rows, :length], sampling, never=never, end_id=end_id, noise=noise)
        alive = lengths[rows] == max_length
        tokens[~alive] = end_id
        sequences[rows, length] = tokens
        logprobs[rows] += logprob * alive
        lengths[rows[alive & (tokens == end_id)]] = length + 1
        alive &= tokens != end_id
        if length == max_length - 2 or not alive.any():
            break
        if alive.sum() < COMPACT_BELOW * len(rows):
            rows, tokens = rows[alive], tokens[alive]
            decoding.keep(alive.nonzero()[:, 0])
        logits = decoding.extend(tokens[:, None])[:, -1].float()
    return features.float(), _collect(sequences, logprobs, lengths, captions)


def _collect(sequences: Tensor, logprobs: Tensor, lengths: Tensor, captions: int) -> list[list[Decoded]]:
    """Rows' tokens (R, max_length), log-probabilities and lengths (R,) as each picture's captions."""
    max_length = sequences.shape[1]
    rows = zip(sequences.tolist(), logprobs.tolist(), lengths.tolist(), strict=True)
    done = [Decoded(tokens[:length], logprob, length == max_length) for tokens, logprob, length in rows]
    return [done[start : start + captions] for start in range(0, len(done), captions)]


class Decoding:
    """Captions in flight of N pictures: every key and value is computed once, with open_clip's own modules.

    Image tokens (N, S, W) become cross-attention keys and values once per picture, never replicated: the captions of
    a picture are the query axis of one attention call. `limit` is the most tokens a row will be fed. Starts with one
    row per picture.
    """

    def __init__(self, model: CoCa, image_tokens: Tensor, *, limit: int):
        self.tower, self.decoder = model.text, model.text_decoder
        self.cross = [_cross_keys_values(block, image_tokens) for block in self.decoder.cross_attn]
        self.text_caches = [KeyValueCache(limit) for _ in self.tower.transformer.resblocks]
        self.decoder_caches = [KeyValueCache(limit) for _ in self.decoder.resblocks]
        self.pad_mask = image_tokens.new_zeros(len(image_tokens), 1)  # (R, t + 1), added to the text tower's scores
        self.length = 0
        self._place_rows(torch.arange(len(image_tokens), device=image_tokens.device))

    def extend(self, tokens: Tensor) -> Tensor:
        """Feeds tokens (R, n) and returns the logits (R, n, V) of what follows each."""
        start, self.length = self.length, self.length + tokens.shape[1]
        causal = self.decoder.attn_mask[start : self.length, : self.length]  # (n, t)
        # open_clip's pad mask is shifted by one: the position after a pad token, which is a word piece too, is hidden
        hidden = torch.zeros_like(tokens, dtype=self.pad_mask.dtype).masked_fill(tokens == self.tower.pad_id, float("-inf"))
        self.pad_mask = torch.cat([self.pad_mask, hidden], dim=1)
        mask = causal + self.pad_mask[:, None, None, : self.length]  # (R, 1, n, t)
        x = self.tower.token_embedding(tokens) + self.tower.positional_embedding[start : self.length]  # (R, n, W)
        for block, cache in zip(self.tower.transformer.resblocks, self.text_caches, strict=True):
            x = _self_attention(block, x, cache, mask)
        blocks = zip(self.decoder.resblocks, self.decoder_caches, self.decoder.cross_attn, self.cross, strict=True)
        for block, cache, cross_block, keys_values in blocks:
            x = _self_attention(block, x, cache, causal)
            x = self._cross_attention(cross_block, x, *keys_values)
        return self.decoder.ln_final(x) @ self.decoder.text_projection  # (R, n, V)

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows, in this order; rows of a picture stay together, and may be repeated."""
        self.pad_mask = self.pad_mask[rows]
        for cache in (*self.text_caches, *self.decoder_caches):
            cache.keep(rows)
        alive, pictures = self.pictures[rows].unique_consecutive(return_inverse=True)
        if len(alive) < len(self.cross[0][0]):
            self.cross = [(keys[alive], values[alive]) for keys, values in self.cross]
        self._place_rows(pictures)

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
    """Keys and values (R, H, t, D) of one self-attention, in room for `limit` positions."""

    def __init__(self, limit: int):
        self.limit, self.length = limit, 0
        self.keys = self.values = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds keys and values (R, H, n, D), and returns all (R, H, t, D)."""
        if self.keys is None:
            rows, heads, _, width = keys.shape
            self.keys, self.values = (keys.new_empty(rows, heads, self.limit, width) for _ in range(2))
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows."""
        if self.keys is None:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), *old.shape[1:])
            torch.index_select(old[:, :, : self.length], 0, rows, out=new[:, :, : self.length])
            setattr(self, name, new)


def _cross_keys_values(block: nn.Module, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous keys (N, H, D, S) and values (N, H, S, D) of the image tokens (N, S, W)."""
    width = image_tokens.shape[-1]
    keys, values = _linear(block.ln_1_kv(image_tokens), block.attn, slice(width, None)).chunk(2, dim=-1)
    return _heads(keys, block.attn).transpose(-1, -2).contiguous(), _heads(values, block.attn).contiguous()


def _self_attention(block: nn.Module, x: Tensor, cache: KeyValueCache, mask: Tensor | None) -> Tensor:
    queries, keys, values = _linear(block.ln_1(x), block.attn, slice(None)).chunk(3, dim=-1)  # (R, n, W) each
    keys, values = cache.append(_heads(keys, block.attn), _heads(values, block.attn))
    return _residual(block, x, _attend(_heads(queries, block.attn), keys.transpose(-1, -2), values, mask))


def _linear(x: Tensor, attention: nn.Module, part: slice) -> Tensor:
    """The rows `part` of an attention's joint projection to queries, keys and values."""
    return F.linear(x, attention.in_proj_weight[part], attention.in_proj_bias[part])


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
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
