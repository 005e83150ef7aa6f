"""The best class of each pixel, merged only where a class can be it.

From a crop's logits to the scores of a picture there are only averages, with weights >= 0 that sum
to 1, and the sigmoid, which is monotone. So within a cell of the picture each class lies between
bounds that the least and the largest logit of the cell's neighbourhood give, and a class whose
upper bound is below another's lower bound is the label of no pixel there. What is left, about one
class a cell, is computed as it always was. Labels and scores are those of all maps.

T classes, h and w the size of a crop's logits, S_y and S_x of the merged map, H and W the picture,
Y and X rows and columns of cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from cat_seg.modeling.sliding_window import TileGrid

# Cells along a side of the merged map: fewer are looser, more cost more to bound.
CELLS = 32
# Bounds are as far apart as rounding can bring a score beyond them, several times over.
SLACK = 2e-6

Span = tuple[int, int]  # first and last position


@dataclass(frozen=True)
class Resizing:
    """Bilinear resizing along one side, as `F.interpolate` does it without aligned corners."""

    low: Tensor  # (n,) the position below
    high: Tensor  # (n,) the one above
    weight: Tensor  # (n,) of the one above

    @classmethod
    def of(cls, positions: int, size: int, scale: float | None = None) -> Resizing:
        """From `positions` to `size`; `scale` is that of the whole, by default their ratio."""
        step = torch.tensor(positions / size if scale is None else 1 / scale)
        # Rounded once, as PyTorch's kernel does: at 600 a float32 is only good to 6e-5.
        at = ((torch.arange(size).double() + 0.5) * step - 0.5).float().clamp(min=0)
        low = at.long().clamp(max=positions - 1)
        return cls(low, (low + 1).clamp(max=positions - 1), (at - low).clamp(0, 1))

    def span(self, first: int, last: int) -> Span:
        """The positions that results `first` to `last` are made of."""
        return int(self.low[first]), int(self.high[last])


@dataclass(frozen=True)
class Side:
    """The rows, or the columns, of cells."""

    resizing: Resizing  # from the merged map to the picture
    places: list[slice]  # of each cell in the picture
    spans: list[list[Span | None]]  # of each crop, what each cell sees of it; None for nothing
    covered: list[list[bool]]  # of each crop, whether it covers all that the cell is made of

    @classmethod
    def of(cls, positions: int, resizing: Resizing, tiles: TileGrid | None, axis: int) -> Side:
        """
        Args:
            positions: h or w.
            resizing: from the merged map to the picture.
            tiles: of the sliding window, or None.
            axis: 0 for rows, 1 for columns.
        """
        side = tiles.resolution if tiles else positions
        step = -(-side // CELLS)
        starts = torch.arange(0, side + step, step)
        bounds = torch.searchsorted(resizing.low, starts).tolist()
        places = [slice(a, b) for a, b in pairwise(bounds)]
        # A pixel is made of a position and the next, which may be of the next cell.
        cells = [(first, min(first + step, side - 1)) for first in range(0, side, step)]
        if tiles is None:
            return cls(resizing, places, [list(cells)], [[True] * len(cells)])
        K = tiles.kernel
        within = Resizing.of(positions, K)
        shrunk = Resizing.of(K, side)
        spans: list[list[Span | None]] = []
        covered = []
        for corner in tiles.corners:
            start = corner[axis]
            seen = [(max(a - start, 0), min(b - start, K - 1)) for a, b in cells]
            spans.append([within.span(a, b) if a <= b else None for a, b in seen])
            covered.append([start <= a and b < start + K for a, b in cells])
        spans.append([within.span(*shrunk.span(a, b)) for a, b in cells])
        covered.append([True] * len(cells))
        return cls(resizing, places, spans, covered)


class Merging:
    """How the logits of an image's crops become the scores of a picture."""

    def __init__(self, rows: Side, columns: Side) -> None:
        self.rows = rows
        self.columns = columns

    @classmethod
    def of_tiles(cls, map_size: Sequence[int], tiles: TileGrid, size: tuple[int, int]) -> Merging:
        """Of a sliding window whose crops have logits of (h, w)."""
        sides = [
            Side.of(n, Resizing.of(tiles.resolution, out), tiles, axis)
            for axis, (n, out) in enumerate(zip(map_size, size, strict=True))
        ]
        return cls(*sides)

    @classmethod
    def of_whole(
        cls,
        map_size: Sequence[int],
        seen: tuple[int, int],
        canvas: tuple[int, int],
        size: tuple[int, int],
    ) -> Merging:
        """Of an image seen once, see `resize_without_padding`."""
        sides = []
        for n, image, whole, out in zip(map_size, seen, canvas, size, strict=True):
            scale = None if seen == canvas else out / (n * image / whole)
            sides.append(Side.of(n, Resizing.of(n, out, scale), None, 0))
        return cls(*sides)

    def bounds(self, logits: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Bound the scores of classes in each cell.

        Args:
            logits: of each crop (T, h, w), the whole image's last.

        Returns:
            (T, Y, X) each, below and above.
        """
        lows: list[Tensor] = []
        highs: list[Tensor] = []
        for maps, rows, columns in zip(logits, self.rows.spans, self.columns.spans, strict=True):
            seen = _seen(rows, columns).to(maps.device)
            # Where it is not seen, a tile is to count for neither bound.
            lows.append(_reduced(maps, rows, columns, torch.amin).sigmoid_().masked_fill_(~seen, 2))
            highs.append(
                _reduced(maps, rows, columns, torch.amax).sigmoid_().masked_fill_(~seen, -1)
            )
        if len(lows) == 1:
            return lows[0], highs[0]
        count, mixed = (grid.to(lows[0].device) for grid in self._tiles_of_cells())
        # The mean of the tiles that cover a cell; where others do in part, any of them may count.
        low = sum(x.masked_fill(x > 1, 0) for x in lows[:-1]) / count
        high = sum(x.masked_fill(x < 0, 0) for x in highs[:-1]) / count
        low = torch.where(mixed, torch.stack(lows[:-1]).amin(0), low)
        high = torch.where(mixed, torch.stack(highs[:-1]).amax(0), high)
        return (low + lows[-1]) / 2, (high + highs[-1]) / 2

    def _tiles_of_cells(self) -> tuple[Tensor, Tensor]:
        """How many tiles each cell sees, and whether it sees one of them in part: (Y, X) each."""
        count, mixed = torch.zeros(2, len(self.rows.places), len(self.columns.places))
        for i in range(len(self.rows.spans) - 1):
            seen = _seen(self.rows.spans[i], self.columns.spans[i])
            across = torch.tensor(self.columns.covered[i])
            count += seen
            mixed += seen & ~(torch.tensor(self.rows.covered[i])[:, None] & across)
        return count, mixed > 0

    def best(
        self,
        chunks: Iterable[Tensor],
        logits: Callable[[Tensor], Iterable[Tensor]],
        merged: Callable[[Tensor], Tensor],
        labels: Tensor,
        scores: Tensor,
    ) -> None:
        """Find the best class of each pixel.

        Args:
            chunks: indices of the classes, ascending.
            logits: of indices, those of each crop, (n, h, w).
            merged: of indices, the merged maps, (n, S_y, S_x).
            labels: (H, W), overwritten where a class has a higher score.
            scores: (H, W), likewise.
        """
        for index, cells in self._candidates(chunks, logits):
            one = merged(torch.tensor([index], device=scores.device))[0]
            for row, first, last in _runs(cells):
                down = self.rows.places[row]
                across = slice(self.columns.places[first].start, self.columns.places[last].stop)
                if down.start == down.stop or across.start == across.stop:
                    continue  # the picture is smaller than the map, or it is padding
                here = self._resized(one, down, across)
                there = scores[down, across]
                labels[down, across].masked_fill_(here > there, index)
                torch.maximum(there, here, out=there)

    def _candidates(
        self, chunks: Iterable[Tensor], logits: Callable[[Tensor], Iterable[Tensor]]
    ) -> Iterable[tuple[int, Tensor]]:
        """Classes that may be the best somewhere, ascending, and where: (Y, X) bool."""
        surest = torch.zeros(len(self.rows.places), len(self.columns.places))
        found: list[tuple[Tensor, Tensor, Tensor]] = []  # classes, cells, upper bounds
        for chunk in chunks:
            low, high = (bound.cpu() for bound in self.bounds(logits(chunk)))
            torch.maximum(surest, low.amax(0), out=surest)
            at, cell = (high >= surest - SLACK).flatten(1).nonzero().unbind(1)
            found.append((chunk.cpu()[at], cell, high.flatten(1)[at, cell]))
        classes, cells, highs = (torch.cat(parts) for parts in zip(*found, strict=True))
        alive = highs >= surest.flatten()[cells] - SLACK
        classes, cells = classes[alive], cells[alive]
        order = classes.argsort(stable=True)
        names, counts = classes[order].unique_consecutive(return_counts=True)
        for index, where in zip(names.tolist(), cells[order].split(counts.tolist()), strict=True):
            mask = torch.zeros(surest.numel(), dtype=torch.bool)
            mask[where] = True
            yield index, mask.view(surest.shape)

    def _resized(self, one: Tensor, down: slice, across: slice) -> Tensor:
        """A rectangle of the picture, of a merged map (S_y, S_x)."""
        rows, columns = self.rows.resizing, self.columns.resizing
        first, last = int(rows.low[down.start]), int(rows.high[down.stop - 1])
        part = one[first : last + 1]
        part = _between(
            part[:, columns.low[across]], part[:, columns.high[across]], columns.weight[across]
        )
        low, high = (part.index_select(0, at[down] - first) for at in (rows.low, rows.high))
        return _between(low, high, rows.weight[down, None])


def _between(low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """low (1 - weight) + high weight, into high; rounded as PyTorch's own resizing rounds."""
    return high.mul_(weight).addcmul_(low, 1 - weight)


def _seen(rows: list[Span | None], columns: list[Span | None]) -> Tensor:
    """Whether a crop is seen in each cell, (Y, X)."""
    y = torch.tensor([span is not None for span in rows])
    return y[:, None] & torch.tensor([span is not None for span in columns])


def _reduced(
    maps: Tensor,
    rows: list[Span | None],
    columns: list[Span | None],
    reduce: Callable[..., Tensor],
) -> Tensor:
    """The least or the largest value that each cell sees: (T, h, w) -> (T, Y, X)."""
    for spans in (rows, columns):  # and transposed each time, which brings back the order
        parts = [maps[:, a : b + 1] for a, b in (span or (0, 0) for span in spans)]
        maps = torch.stack([reduce(part, 1) for part in parts], dim=2)
    return maps


def _runs(cells: Tensor) -> Iterable[tuple[int, int, int]]:
    """Runs of true cells in each row: row, first and last column."""
    for row, flags in enumerate(cells.tolist()):
        start = None
        for column, flag in enumerate([*flags, False]):
            if flag and start is None:
                start = column
            elif not flag and start is not None:
                yield row, start, column - 1
                start = None
