"""The best class of every pixel, from scores at the patch grid, without the scores of all pixels.

Between four samples of the grid, the resampled scores of a class are a bilinear form: over a
rectangle of pixels, they are largest and smallest at its corners. A class whose largest corner is
below another's smallest is not the best of any pixel in it. Most classes are left out between four
samples, and nearly all in a sixteenth of that. Only the others are computed for each pixel.

The result is exact: the first largest of all scores, resampled as in `bilinear.py`.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Classes = NDArray[np.uint8]

_STRIP_PAIRS = 2**17
"""Pairs of a class and four samples that are looked at together. If no class can be left out, a
pair takes up to 1,000 bytes."""

_THREAD_PAIRS = 2**16
"""The least work for a thread. With less, threads wait longer than they compute."""

_PARTS = 4
"""Along each axis, of the pixels between four samples."""


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """The pixels along an axis, in runs between the same two samples.

    Run r is the pixels from `cuts[r]` to `cuts[r + 1]`, between the samples `samples[r]` and the
    next, counted from one that repeats the border. `share` [pixels] is the weight of the second.
    """

    cuts: Indices
    samples: Indices
    share: Floats

    @classmethod
    def of(cls, samples: int, pixels: int) -> "_Axis":
        """The axis for half-pixel centres; see `bilinear_matrix` for the coordinate."""
        place = (2 * np.arange(pixels, dtype=np.int64) + 1) * samples - pixels
        before, rest = np.divmod(place, 2 * pixels)
        cuts = np.append(_starts(before), pixels)
        return cls(cuts, before[cuts[:-1]] + 1, (rest / (2 * pixels)).astype(np.float32))

    def runs(self, start: int, stop: int) -> "_Axis":
        """Some of the runs; pixels are counted as before."""
        return _Axis(self.cuts[start : stop + 1], self.samples[start:stop], self.share)

    def parts(self) -> Indices:
        """The cuts of the parts of every run, [runs, parts + 1]. Parts of short runs are empty."""
        at = np.arange(_PARTS + 1)
        return self.cuts[:-1, None] + np.diff(self.cuts)[:, None] * at // _PARTS

    def bounds(self) -> Floats:
        """Shares between the parts of every run, and at its ends, [parts + 1, runs]."""
        cuts, last = self.parts(), self.cuts[1:, None] - 1
        before, after = np.maximum(cuts - 1, self.cuts[:-1, None]), np.minimum(cuts, last)
        bounds: Floats = (self.share[before] + self.share[after]).T * np.float32(0.5)
        return bounds

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True, slots=True, eq=False)
class _Candidates:
    """Classes that may be the best of a pixel of a cell, which is the pixels between four samples.

    `cell` [P] ascends, and `of_class` [P] within a cell. The score is `base + down · y + across · x
    + both · x · y` at the shares y and x of a pixel.
    """

    cell: Indices
    of_class: Classes
    base: Floats
    across: Floats
    down: Floats
    both: Floats

    def scores(self, pairs: Indices | slice, y: Floats, x: Floats) -> Floats:
        """Scores [n, m, P] of some `pairs` [P], at the shares `y` [n, P] and `x` [m, P]."""
        left = self.base[pairs] + self.down[pairs] * y
        slope = self.across[pairs] + self.both[pairs] * y
        scores: Floats = slope[:, None] * x
        scores += left[:, None]
        return scores


def best_classes(scores: Floats, size: tuple[int, int], threads: int = 1) -> Classes:
    """The first best class of every pixel, uint8 [H, W].

    Args:
        scores: [K, h, w].
        size: height and width of the image, of at least a pixel for each row and column of scores.
        threads: strips of the image are computed by so many threads.
    """
    rows, columns = (_Axis.of(*sides) for sides in zip(scores.shape[1:], size, strict=True))
    bordered = np.pad(scores, ((0, 0), (1, 1), (1, 1)), mode="edge")
    bordered = bordered[:, :, columns.samples[0] : columns.samples[-1] + 2]
    classes = np.empty(size, np.uint8)

    def fill(strip: _Axis) -> None:
        samples = bordered[:, strip.samples[0] : strip.samples[-1] + 2]
        classes[strip.cuts[0] : strip.cuts[-1]] = _strip(samples, strip, columns)

    strips = list(_strips(rows, len(columns) * len(scores), threads))
    if len(strips) == 1:
        fill(*strips)
        return classes
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, strips))
    return classes


def _strips(rows: _Axis, pairs_a_row: int, threads: int) -> Iterator[_Axis]:
    """A few runs of rows at a time, so that memory is bounded if no class can be left out."""
    most, fewest = (max(1, pairs // pairs_a_row) for pairs in (_STRIP_PAIRS, _THREAD_PAIRS))
    step = min(most, max(fewest, -(-len(rows) // threads)))
    for start in range(0, len(rows), step):
        yield rows.runs(start, min(start + step, len(rows)))


def _strip(samples: Floats, rows: _Axis, columns: _Axis) -> Classes:
    candidates = _of_cells(samples)
    part, pair = _of_parts(candidates, rows, columns)
    starts = _starts(part)
    classes = _spread(candidates.of_class[pair[starts]], rows, columns)
    counts = np.diff(starts, append=len(part))
    counts[~_hold_pixels(rows, columns)] = 0
    several = np.flatnonzero(counts > 1)
    if len(several):
        several = several[np.argsort(-counts[several], kind="stable")]
        contested = _Contested(part[starts[several]], counts[several], starts[several])
        _settle(classes, candidates, pair, contested, rows, columns)
    return classes


def _of_cells(samples: Floats) -> _Candidates:
    """The candidates of every cell of `samples` [K, rows + 1, columns + 1]."""
    low, high = (_over_corners(reduce, samples) for reduce in (np.minimum, np.maximum))
    can_win = ~(high < low.max(axis=0))  # also where scores are NaN
    by_cell = np.ascontiguousarray(can_win.reshape(len(samples), -1).T)
    cell, of_class = np.divmod(np.flatnonzero(by_cell), len(samples))
    y, x = np.divmod(cell, can_win.shape[2])
    base, right = samples[of_class, y, x], samples[of_class, y, x + 1]
    below, opposite = samples[of_class, y + 1, x], samples[of_class, y + 1, x + 1]
    across = right - base
    return _Candidates(
        cell, of_class.astype(np.uint8), base, across, below - base, opposite - below - across
    )


def _over_corners(reduce: np.ufunc, samples: Floats) -> Floats:
    """The least or the largest of each cell's four samples, [K, rows, columns]."""
    pairs = reduce(samples[:, :, 1:], samples[:, :, :-1])
    reduced: Floats = reduce(pairs[:, 1:], pairs[:, :-1])
    return reduced


def _of_parts(candidates: _Candidates, rows: _Axis, columns: _Axis) -> tuple[Indices, Indices]:
    """The candidates of every part of every cell: the part, ascending, and which candidate it is.

    Part i · parts + j of cell c has the number (i · parts + j) · cells + c.
    """
    y, x = np.divmod(candidates.cell, len(columns))
    corners = candidates.scores(slice(None), rows.bounds()[:, y], columns.bounds()[:, x])
    low, high = (_over_bounds(reduce, corners) for reduce in (np.minimum, np.maximum))
    floor = np.maximum.reduceat(low, _starts(candidates.cell), axis=2)[:, :, candidates.cell]
    part, pair = np.divmod(np.flatnonzero(~(high < floor)), len(candidates.cell))
    return part * len(rows) * len(columns) + candidates.cell[pair], pair


def _over_bounds(reduce: np.ufunc, corners: Floats) -> Floats:
    """The least or the largest of each part's corners: [n + 1, m + 1, P] to [n, m, P]."""
    pairs = reduce(corners[1:], corners[:-1])
    reduced: Floats = reduce(pairs[:, 1:], pairs[:, :-1])
    return reduced


def _spread(of_part: Classes, rows: _Axis, columns: _Axis) -> Classes:
    """A class for each part as a class for each pixel."""
    parts = of_part.reshape(_PARTS, _PARTS, len(rows), len(columns)).transpose(2, 0, 3, 1)
    heights, widths = (np.diff(axis.parts(), axis=1).ravel() for axis in (rows, columns))
    flat = parts.reshape(len(heights), len(widths))
    return np.repeat(np.repeat(flat, heights, axis=0), widths, axis=1)


def _hold_pixels(rows: _Axis, columns: _Axis) -> NDArray[np.bool_]:
    """Whether a part has any pixels, for all parts in their order."""
    tall, wide = (np.diff(axis.parts(), axis=1).T > 0 for axis in (rows, columns))
    return (tall[:, None, :, None] & wide[None, :, None]).ravel()


@dataclass(frozen=True, slots=True, eq=False)
class _Contested:
    """Parts with several candidates: their numbers, `counts`, and where their first stands.

    Those with the most candidates come first.
    """

    part: Indices
    counts: Indices
    starts: Indices


def _settle(
    classes: Classes,
    candidates: _Candidates,
    pair: Indices,
    contested: _Contested,
    rows: _Axis,
    columns: _Axis,
) -> None:
    """Write the classes of the pixels of the `contested` parts, candidate after candidate."""
    sub, cell = np.divmod(contested.part, len(rows) * len(columns))
    (i, j), (r, c) = np.divmod(sub, _PARTS), np.divmod(cell, len(columns))
    y, x = _pixels(rows.parts(), r, i), _pixels(columns.parts(), c, j)
    down, across = rows.share[y], columns.share[x]
    first = pair[contested.starts]
    best = candidates.scores(first, down, across)
    winner = np.broadcast_to(candidates.of_class[first], best.shape).copy()
    for nth in range(1, int(contested.counts[0])):
        parts = slice(np.searchsorted(-contested.counts, -nth))  # those with more than `nth`
        other = pair[contested.starts[parts] + nth]
        scores = candidates.scores(other, down[:, parts], across[:, parts])
        is_better = scores > best[:, :, parts]
        np.copyto(best[:, :, parts], scores, where=is_better)
        np.copyto(winner[:, :, parts], candidates.of_class[other], where=is_better)
    classes[y[:, None] - rows.cuts[0], x[None]] = winner


def _pixels(parts: Indices, run: Indices, part: Indices) -> Indices:
    """The pixels of some parts along an axis, [longest, parts]; short parts repeat their last."""
    first, stop = parts[run, part], parts[run, part + 1]
    longest = int((stop - first).max())
    pixels: Indices = np.minimum(first + np.arange(longest)[:, None], stop - 1)
    return pixels


def _starts(ascending: Indices) -> Indices:
    """The indices at which a new value begins."""
    return np.flatnonzero(np.diff(ascending, prepend=ascending[0] - 1))
