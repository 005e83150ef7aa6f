"""The best class of each pixel, merged only where a class can be it.

From a crop's logits to the scores of a picture there are only averages, with weights >= 0 that sum
to 1, and the sigmoid, which is monotone. So within a cell of the picture each class lies between
bounds that the least and the largest logit of the cell's neighbourhood give, and a class whose
upper bound is below a score that another has everywhere in the cell is the label of no pixel there.
First come the classes whose lower bound is the highest somewhere; their scores leave few others.
Of each of these a rectangle is computed, as it always was. Labels and scores are those of all maps.

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
CELLS = 16
# Bounds are as far apart as rounding can bring a score beyond them, several times over.
SLACK = 2e-6
# It pays from so many pixels of all classes on, and so many pixels for each logit.
LEAST_PIXELS, PIXELS_A_LOGIT = 12_000_000, 16
# Rectangles may hold that share of all pixels of all classes: of the first, and of all candidates.
# Beyond it merging everything, in large pieces, is faster.
FIRST_SHARE, SHARE = 1 / 6, 1 / 2

# Pixels that are computed at a time: no array is as large as a large picture.
PIECE = 1 << 19

Span = tuple[int, int]  # first and last position


@dataclass(frozen=True)
class Resizing:
    """Bilinear resizing along one side, as `F.interpolate` does it without aligned corners."""

    low: Tensor  # (n,) the position below
    high: Tensor  # (n,) the one above
    weight: Tensor  # (n,) of the one above
    positions: int

    @classmethod
    def of(cls, positions: int, size: int, scale: float | None = None) -> Resizing:
        """From `positions` to `size`; `scale` is that of the whole, by default their ratio."""
        step = torch.tensor(positions / size if scale is None else 1 / scale)
        # Rounded once, as PyTorch's kernel does: at 600 a float32 is only good to 6e-5.
        at = ((torch.arange(size).double() + 0.5) * step - 0.5).float().clamp(min=0)
        low = at.long().clamp(max=positions - 1)
        weight = (at - low).clamp(0, 1)
        return cls(low, (low + 1).clamp(max=positions - 1), weight, positions)

    def span(self, first: int, last: int) -> Span:
        """The positions that results `first` to `last` are made of."""
        return int(self.low[first]), int(self.high[last])

    def source(self, results: slice) -> slice:
        """The positions that some results, at least one, are made of."""
        first, last = self.span(results.start, results.stop - 1)
        return slice(first, last + 1)

    def apply(self, x: Tensor, results: slice, start: int, dim: int) -> Tensor:
        """Some results of a part of the positions, which begins at `start`, along a dimension."""
        low, high = (x.index_select(dim, at[results] - start) for at in (self.low, self.high))
        weight = self.weight[results] if dim else self.weight[results, None]
        # Rounded as PyTorch's own resizing rounds.
        return high.mul_(weight).addcmul_(low, 1 - weight)


@dataclass(frozen=True)
class Side:
    """The rows, or the columns, of cells."""

    resizing: Resizing  # from the merged map to the picture
    places: list[slice]  # of each cell in the picture
    spans: list[list[Span | None]]  # of each crop, what each cell sees of it; None for nothing
    covered: list[list[bool]]  # of each crop, whether it covers all that the cell is made of
    within: Resizing  # from logits to a crop of a sliding window
    shrunk: Resizing  # from the crop that is the whole image to the merged map

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
            same = Resizing.of(positions, positions)
            return cls(resizing, places, [list(cells)], [[True] * len(cells)], same, same)
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
        return cls(resizing, places, spans, covered, within, shrunk)


class Merging:
    """How the logits of an image's crops become the scores of a picture."""

    def __init__(self, rows: Side, columns: Side, tiles: TileGrid | None = None) -> None:
        self.rows = rows
        self.columns = columns
        self.tiles = tiles

    @classmethod
    def of_tiles(cls, map_size: Sequence[int], tiles: TileGrid, size: tuple[int, int]) -> Merging:
        """Of a sliding window whose crops have logits of (h, w)."""
        sides = [
            Side.of(n, Resizing.of(tiles.resolution, out), tiles, axis)
            for axis, (n, out) in enumerate(zip(map_size, size, strict=True))
        ]
        rows, columns = sides
        return cls(rows, columns, tiles)

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
        rows, columns = sides
        return cls(rows, columns)

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

    def pays(self, T: int) -> bool:
        """Whether `best` is faster than merging T classes, however little can be left out."""
        pixels = self.rows.resizing.low.numel() * self.columns.resizing.low.numel()
        logits = len(self.rows.spans) * self.rows.within.positions * self.columns.within.positions
        if self.tiles is not None:
            pixels += self.tiles.count * self.tiles.kernel**2 + self.tiles.resolution**2
        return T * pixels >= LEAST_PIXELS and pixels >= PIXELS_A_LOGIT * logits

    def best(
        self,
        chunks: Iterable[Tensor],
        logits: Callable[[Tensor], Sequence[Tensor]],
        labels: Tensor,
        scores: Tensor,
    ) -> bool:
        """Find the best class of each pixel.

        Args:
            chunks: indices of the classes, ascending.
            logits: of indices, those of each crop, (n, h, w).
            labels: (H, W), overwritten where a class has a higher score.
            scores: (H, W), likewise.

        Returns:
            False, with labels and scores half done, where too many classes may be the best for this
            to be faster than merging all.
        """
        chunks = list(chunks)
        length, cells = len(chunks[0]), len(self.rows.places) * len(self.columns.places)
        room = SHARE * cells * sum(map(len, chunks))
        found, surest, first = self._candidates(chunks, logits)
        chosen = torch.isin(found[0], first)
        classes, boxes = self._boxes(found[0][chosen], found[1][chosen])
        room -= _area(boxes)
        if room < (SHARE - FIRST_SHARE) * cells * sum(map(len, chunks)):
            return False
        self._compare(classes, boxes, length, logits, labels, scores)
        least = torch.maximum(surest, self._least(scores)).flatten()
        chosen = ~chosen & (found[2] >= least[found[1]] - SLACK)
        classes, boxes = self._boxes(found[0][chosen], found[1][chosen])
        if room < _area(boxes):
            return False
        self._compare(classes, boxes, length, logits, labels, scores)
        return True

    def _candidates(
        self, chunks: Sequence[Tensor], logits: Callable[[Tensor], Sequence[Tensor]]
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
        """What may be the best: classes, cells and upper bounds, by class.

        Returns:
            them; (Y, X) the highest lower bound of each cell; the classes that it is of.
        """
        surest = torch.zeros(len(self.rows.places), len(self.columns.places))
        first = torch.full(surest.shape, -1)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for chunk in chunks:
            low, high = (bound.cpu() for bound in self.bounds(logits(chunk)))
            most, at = low.max(0)
            first = torch.where(most > surest, chunk.cpu()[at], first)
            torch.maximum(surest, most, out=surest)
            at, cell = (high >= surest - SLACK).flatten(1).nonzero().unbind(1)
            found.append((chunk.cpu()[at], cell, high.flatten(1)[at, cell]))
        classes, cells, highs = (torch.cat(parts) for parts in zip(*found, strict=True))
        alive = highs >= surest.flatten()[cells] - SLACK
        return (classes[alive], cells[alive], highs[alive]), surest, first.unique()

    def _least(self, scores: Tensor) -> Tensor:
        """The least score of each cell, (Y, X); 2 where it has no pixel."""
        for side in (self.rows, self.columns):  # and transposed each time
            parts = [scores[place] for place in side.places]
            none = scores.new_full((scores.shape[1],), 2)
            scores = torch.stack([p.amin(0) if len(p) else none for p in parts], dim=1)
        return scores

    def _boxes(self, classes: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Rectangles that hold the cells of each class.

        Returns:
            (n,) classes, ascending, and (n, 4) first and last row, first and last column.
        """
        names, owner = classes.unique_consecutive(return_inverse=True)
        sides = []
        for at in (cells // len(self.columns.places), cells % len(self.columns.places)):
            for reduce in ("amin", "amax"):
                empty = at.new_zeros(len(names))
                sides.append(empty.scatter_reduce_(0, owner, at, reduce, include_self=False))
        return names, torch.stack(sides, dim=1)

    def _compare(
        self,
        classes: Tensor,
        boxes: Tensor,
        length: int,
        logits: Callable[[Tensor], Sequence[Tensor]],
        labels: Tensor,
        scores: Tensor,
    ) -> None:
        """Enter classes where they are the best in their boxes; logits of `length` at a time."""
        if not len(classes):
            return
        for some, of_some in zip(classes.split(length), boxes.split(length), strict=True):
            crops = logits(some.to(labels.device))
            for i, (index, box) in enumerate(zip(some.tolist(), of_some.tolist(), strict=True)):
                self._enter(index, [crop[i] for crop in crops], box, labels, scores)

    def _enter(
        self,
        index: int,
        crops: Sequence[Tensor],
        box: Sequence[int],
        labels: Tensor,
        scores: Tensor,
    ) -> None:
        """Enter one class, of crops of (h, w), where it is the best in its box."""
        top, bottom, left, right = box
        down = slice(self.rows.places[top].start, self.rows.places[bottom].stop)
        across = slice(self.columns.places[left].start, self.columns.places[right].stop)
        if down.start == down.stop or across.start == across.stop:
            return  # the picture is smaller than the map, or it is padding
        height = max(1, PIECE // (across.stop - across.start))
        for start in range(down.start, down.stop, height):
            piece = slice(start, min(start + height, down.stop))
            here, there = self._scores(crops, piece, across), scores[piece, across]
            names = labels[piece, across]
            # Of equals the first, in whatever order they come.
            better = (here > there).logical_or_((here == there).logical_and_(names > index))
            names.masked_fill_(better, index)
            torch.maximum(there, here, out=there)

    def _scores(self, crops: Sequence[Tensor], down: slice, across: slice) -> Tensor:
        """A rectangle of the picture, of one class's crops (h, w)."""
        rows, columns = self.rows, self.columns
        y, x = rows.resizing.source(down), columns.resizing.source(across)
        merged = self._tiles(crops, y, x) if self.tiles else _sigmoid(crops[0][y, x])
        merged = columns.resizing.apply(merged, across, x.start, 1)
        return rows.resizing.apply(merged, down, y.start, 0)

    def _tiles(self, crops: Sequence[Tensor], y: slice, x: slice) -> Tensor:
        """A rectangle of the merged map, as `TileGrid.merge` makes it."""
        assert self.tiles is not None
        K = self.tiles.kernel
        total, count = torch.zeros(2, y.stop - y.start, x.stop - x.start)
        for crop, (top, left) in zip(crops[:-1], self.tiles.corners, strict=True):
            down = slice(max(y.start, top), min(y.stop, top + K))
            across = slice(max(x.start, left), min(x.stop, left + K))
            if down.start < down.stop and across.start < across.stop:
                here = _moved(down, y.start), _moved(across, x.start)
                total[here] += self._crop(crop, _moved(down, top), _moved(across, left))
                count[here] += 1
        down, across = self.rows.shrunk.source(y), self.columns.shrunk.source(x)
        whole = self._crop(crops[-1], down, across)
        whole = self.columns.shrunk.apply(whole, x, across.start, 1)
        whole = self.rows.shrunk.apply(whole, y, down.start, 0)
        return total.div_(count).add_(whole).div_(2)

    def _crop(self, logits: Tensor, down: slice, across: slice) -> Tensor:
        """Probabilities in a rectangle of a crop, of its logits (h, w)."""
        y, x = self.rows.within.source(down), self.columns.within.source(across)
        part = self.columns.within.apply(logits[y, x], across, x.start, 1)
        return _sigmoid(self.rows.within.apply(part, down, y.start, 0))


def _moved(span: slice, start: int) -> slice:
    return slice(span.start - start, span.stop - start)


def _area(boxes: Tensor) -> int:
    """Cells of all boxes, (n, 4)."""
    top, bottom, left, right = boxes.unbind(1)
    return int(((bottom - top + 1) * (right - left + 1)).sum())


def _sigmoid(x: Tensor) -> Tensor:
    """The sigmoid, equal for equal numbers: PyTorch rounds a tensor's last few another way."""
    filled = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % 64))
    return filled.sigmoid_()[: x.numel()].view(x.shape)


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
