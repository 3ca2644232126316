"""Count the texture matrices of one image type with numpy over a shared `Region`.

L gray levels that occur, N voxels, A directions, R longest possible run, S zone sizes that occur. Each matrix equals
that of pyradiomics' C code, without the levels that do not occur:

- GLCM P[i, j, a]: number of neighbour pairs with levels i and j along direction a, counted both ways (Haralick 1973).
- GLRLM P[i, r, a]: number of runs of level i and length r + 1 along direction a (Galloway 1975).
- GLSZM P[i, s]: number of connected zones of level i and size s (Thibault 2009).
- GLDM P[i, k]: number of voxels of level i with k neighbours of the same level (Sun 1983, alpha = 0).
- NGTDM P[i]: number of voxels of level i, and their summed |level - mean level of the neighbours| (Amadasun 1989).

GLSZM needs region growing, which is slow in numpy, so ITK connects its zones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from tmi.toolkit.radiomics.libraries import rejecting
from tmi.toolkit.radiomics.mask_region import Region


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Voxels sorted into bins, which are the gray levels of the texture matrices."""

    bin_N: Int[NDArray[np.int64], " N"]
    """Bin of each voxel, starting at 1."""
    rank_N: Int[NDArray[Any], " N"]
    """Index of each voxel's bin in `bins_L`, starting at 0, as uint8 or uint16."""
    bins_L: Int[NDArray[np.int64], " L"]
    """The bins that occur, ascending."""
    count_L: Int[NDArray[np.int64], " L"]
    """Number of voxels in each of these bins."""

    @property
    def highest(self) -> int:
        """The highest bin that occurs."""
        return int(self.bins_L[-1])


def sort_into_levels(values_N: NDArray[Any], edges: NDArray[Any]) -> Levels:
    """Sort voxels into half-open bins [lower edge, upper edge); bin 1 starts at the first edge.

    Args:
        values_N: intensities; all within [first edge, last edge).
        edges: edges of the bins, ascending.
    """
    bin_N = np.digitize(values_N, edges)
    count = np.bincount(bin_N)
    bins_L = np.flatnonzero(count)
    rank = np.zeros(len(count), dtype=np.uint8 if len(bins_L) < 256 else np.uint16)
    rank[bins_L] = np.arange(len(bins_L))
    return Levels(bin_N=bin_N, rank_N=rank[bin_N], bins_L=bins_L, count_L=count[bins_L])


@dataclass(frozen=True, kw_only=True)
class PairsAndRuns:
    """GLCM and GLRLM of every direction."""

    glcm_LLA: Float[NDArray[np.float64], "L L A"]
    """Number of pairs, counted both ways."""
    glrlm_LRA: Float[NDArray[np.float64], "L R A"]
    """Number of runs; all zero for a direction without a pair of voxels on one line."""


def count_pairs_and_runs(region: Region, levels: Levels) -> PairsAndRuns:
    """Count GLCM and GLRLM in one pass per direction.

    In the order of a direction, consecutive voxels are neighbours unless a line ends or has a gap between them.
    """
    n, longest = len(levels.bins_L), max(region.mask_DHW.shape)
    glcm = np.zeros((len(region.directions), n, n))
    glrlm = np.zeros((len(region.directions), n, longest))
    # pair codes i * n + j and n * n fit uint16 if n < 256, as in real images; narrow arrays halve the time of this loop
    narrow: Any = np.uint16 if n < 256 else np.int64
    rank_N = levels.rank_N.astype(narrow)
    for a, direction in enumerate(region.directions):
        sorted_N = rank_N.take(direction.order_N)
        pairs = sorted_N[:-1] * narrow(n)
        pairs += sorted_N[1:]
        pairs[direction.ends_E] = n * n  # no pair: counted in an extra bin that is cut off
        glcm[a] = np.bincount(pairs, minlength=n * n + 1)[: n * n].reshape(n, n)
        if not direction.has_pairs:
            continue
        # a run ends where the level changes or the line ends; the distance between ends is its length
        run_ends = sorted_N[:-1] != sorted_N[1:]
        run_ends[direction.ends_E] = True
        last = np.append(np.flatnonzero(run_ends), len(sorted_N) - 1)
        length = np.diff(last, prepend=-1)
        runs = sorted_N[last].astype(np.int64) * longest + (length - 1)
        glrlm[a] = np.bincount(runs, minlength=n * longest).reshape(n, longest)
    glcm += glcm.transpose(0, 2, 1)  # symmetric: each pair counts as (i, j) and (j, i)
    return PairsAndRuns(glcm_LLA=np.moveaxis(glcm, 0, 2), glrlm_LRA=np.moveaxis(glrlm, 0, 2))


def count_dependences(region: Region, levels: Levels) -> Float[NDArray[np.float64], "L 27"]:
    """Count GLDM: column k is the number of voxels with k neighbours of their own level."""
    n = len(levels.bins_L)
    # rank + 1, so that 0 is free for the background
    flat = _padded(region, levels.rank_N.astype(np.uint16) + 1, np.uint8 if n < 255 else np.uint16)
    same = np.zeros(len(flat), dtype=np.uint8)
    # Each shift is one of 13 neighbour directions; adding at both ends covers all 26 neighbours. The padding keeps a
    # shift from wrapping into mask voxels of the next row; equal background voxels are not read out below.
    for shift in region.shifts:
        equal = flat[shift:] == flat[:-shift]
        same[:-shift] += equal
        same[shift:] += equal
    counts = np.bincount(levels.rank_N.astype(np.int64) * 27 + same[region.flat_N], minlength=n * 27)
    return counts.reshape(n, 27).astype(np.float64)


def sum_tone_differences(region: Region, levels: Levels) -> Float[NDArray[np.float64], "L 3"]:
    """Sum NGTDM; columns: number of voxels, summed |level - mean level of the neighbours|, level."""
    # the sum of 26 levels must fit the dtype
    flat = _padded(region, levels.bin_N, np.uint16 if levels.highest * 27 < 2**16 else np.uint32)
    total = np.zeros_like(flat)
    for shift in region.shifts:
        total[:-shift] += flat[shift:]
        total[shift:] += flat[:-shift]
    neighbours_N = region.neighbours_N  # neighbours outside the mask are 0 in the sum and not counted
    mean_N = total[region.flat_N] / np.maximum(neighbours_N, 1)
    difference_N = np.where(neighbours_N > 0, np.abs(levels.bin_N - mean_N), 0.0)
    summed = np.bincount(levels.rank_N, weights=difference_N, minlength=len(levels.bins_L))
    return np.stack([levels.count_L, summed, levels.bins_L], axis=1).astype(np.float64)


def count_zones(region: Region, levels: Levels) -> tuple[Float[NDArray[np.float64], "L S"], NDArray[np.int64]]:
    """Count GLSZM over the zones that ITK finds.

    Returns:
        Number of connected zones by level and size, and the sizes that occur, in voxels.

    Raises:
        InputRejectedError: radiomics-failed.
    """
    import SimpleITK

    level_DHW = np.zeros(region.mask_DHW.shape, dtype=np.uint16)
    level_DHW[region.mask_DHW] = levels.rank_N
    with rejecting("SimpleITK"):
        connect = SimpleITK.ScalarConnectedComponentImageFilter()
        connect.SetDistanceThreshold(0)
        connect.SetFullyConnected(True)  # 26 neighbours
        connect.SetNumberOfThreads(1)  # image types run in parallel threads already
        zones = connect.Execute(
            SimpleITK.GetImageFromArray(level_DHW), SimpleITK.GetImageFromArray(region.mask_DHW.astype(np.uint8))
        )
        zone_N = SimpleITK.GetArrayViewFromImage(zones)[region.mask_DHW]
    size_Z = np.bincount(zone_N)
    level_Z = np.zeros(len(size_Z), dtype=np.int64)
    level_Z[zone_N] = levels.rank_N
    used_Z = size_Z > 0
    sizes_S, column_Z = np.unique(size_Z[used_Z], return_inverse=True)
    n = len(levels.bins_L)
    counts = np.bincount(column_Z * n + level_Z[used_Z], minlength=len(sizes_S) * n)
    return counts.reshape(-1, n).astype(np.float64).T, sizes_S


def _padded(region: Region, values_N: NDArray[Any], dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """Return values on the flattened, padded bounding box, with 0 outside the mask."""
    flat = np.zeros(int(np.prod(region.padded_shape)), dtype=dtype)
    flat[region.flat_N] = values_N
    return flat
