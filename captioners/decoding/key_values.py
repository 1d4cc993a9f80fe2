"""Keys and values of a self-attention that captions in flight share a model's decoding with.

Dimensions: R rows (captions in flight), H heads, D width of a head, n new tokens.
"""

import torch
from torch import Tensor


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
            new[: len(ours), :, :used] = ours[:, :, :used]
            new[len(ours) :, :, :others_used] = theirs[:, :, :others_used]
            setattr(self, name, new)
