"""The cached keys and values of a self-attention, for captions in flight.

Dimensions: R rows (captions in flight), H heads, D width of a head, n new tokens.
"""

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values (R, H, limit, D) of one self-attention, with space for `limit` positions.

    Unused positions are zero, and never NaN, because attention multiplies them by a weight of 0.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values

    def put(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Write keys and values (R, H, n, D) at positions (R, n)."""
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        self.keys[rows, :, positions] = keys.transpose(1, 2)
        self.values[rows, :, positions] = values.transpose(1, 2)

    def keep(self, rows: Tensor, used: int) -> None:
        """Continue with these rows, of which the first `used` positions are in use."""
        for name in ("keys", "values"):
            before = getattr(self, name)
            after = before.new_zeros(len(rows), *before.shape[1:])
            torch.index_select(before[:, :, :used], 0, rows, out=after[:, :, :used])
            setattr(self, name, after)

    def join(self, other: "KeyValueCache", used: int, others_used: int) -> None:
        """Append the rows of another cache; `used` positions are in use here, and `others_used` there."""
        for name in ("keys", "values"):
            ours, theirs = getattr(self, name), getattr(other, name)
            joined = ours.new_zeros(len(ours) + len(theirs), *ours.shape[1:])
            joined[: len(ours), :, :used] = ours[:, :, :used]
            joined[len(ours) :, :, :others_used] = theirs[:, :, :others_used]
            setattr(self, name, joined)
