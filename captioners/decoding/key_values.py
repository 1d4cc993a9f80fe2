"""The cached keys and values of a self-attention, for captions in flight, and which picture each caption belongs to.

Dimensions: N pictures or prompts, C captions of the one that has the most, R rows (captions in flight, grouped by
picture), H heads, D width of a head, n new tokens.
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


class Grid:
    """Assigns each row (R,) a cell of a grid of N pictures x C captions.

    pictures: the number of each row's picture (R,). Some cells are empty if pictures have unequal numbers of rows.
    shape: (N, C). cells: the cell of each row (R,), or None if the rows fill the grid in order.
    """

    def __init__(self, pictures: Tensor):
        counts = pictures.bincount()
        self.shape = len(counts), int(counts.max())
        within = torch.arange(len(pictures), device=pictures.device) - (counts.cumsum(0) - counts)[pictures]
        self.cells = None if self.shape[0] * self.shape[1] == len(pictures) else pictures * self.shape[1] + within

    def spread(self, rows: Tensor) -> Tensor:
        """Put rows (R, H, m, ...) into the grid (N, H, C * m, ...), with 0 in empty cells."""
        if self.cells is not None:
            rows = rows.new_zeros(self.shape[0] * self.shape[1], *rows.shape[1:]).index_copy_(0, self.cells, rows)
        return rows.unflatten(0, self.shape).transpose(1, 2).flatten(2, 3)

    def gather(self, cells: Tensor) -> Tensor:
        """Take rows (R, H, m, ...) out of the grid (N, H, C * m, ...)."""
        cells = cells.unflatten(2, (self.shape[1], -1)).transpose(1, 2).flatten(0, 1)
        return cells if self.cells is None else cells[self.cells]
