"""Texture matrices of one image type, counted with numpy over a shared `Region`.

L gray levels that occur, N voxels, A directions, R longest possible run. Each matrix equals the one that pyradiomics'
C code gives, with the levels that do not occur left out:

- GLCM P[i, j, a]: neighbours of level i and j along a, both ways (Haralick 1973).
- GLRLM P[i, r, a]: runs of level i and length r + 1 along a (Galloway 1975).
- GLDM P[i, k]: voxels of level i with k neighbours of the same level (Sun 1983, with alpha 0).
- NGTDM P[i]: voxels of level i, and their summed |level - mean level of the neighbours| (Amadasun 1989).

The zone matrix (GLSZM, Thibault 2009) grows regions, which numpy has no quick way to do: pyradiomics' C code does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from tmi.toolkit.radiomics.mask_region import Region
from tmi.toolkit.radiomics.pyradiomics import load


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Voxels sorted into bins."""

    bin_N: Int[NDArray[np.int64], " N"]
    """Bin of each voxel, from 1."""
    rank_N: Int[NDArray[Any], " N"]
    """The same with the empty bins left out, from 0, as uint8 or uint16."""
    bins_L: Int[NDArray[np.int64], " L"]
    """The bins that occur, ascending."""
    count_L: Int[NDArray[np.int64], " L"]
    """Voxels in each of them."""

    @property
    def highest(self) -> int:
        """The highest bin."""
        return int(self.bins_L[-1])


def sort_into_levels(values_N: NDArray[Any], edges: NDArray[Any]) -> Levels:
    """Bin 1 starts at the first edge; each bin holds its lower edge and not its upper one.

    Args:
        values_N: intensities, none below the first edge or at or above the last.
        edges: ascending.
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
    """Pairs, counted both ways."""
    glrlm_LRA: Float[NDArray[np.float64], "L R A"]
    """Runs; zero along a direction on which no line holds two voxels."""


def count_pairs_and_runs(region: Region, levels: Levels) -> PairsAndRuns:
    """One pass over each direction gives both matrices."""
    n, longest = len(levels.bins_L), max(region.mask_DHW.shape)
    glcm = np.zeros((len(region.directions), n, n))
    glrlm = np.zeros((len(region.directions), n, longest))
    # pairs and levels fit 16 bits in every real image; narrow arrays halve the time of this loop
    narrow: Any = np.uint16 if n < 256 else np.int64
    rank_N = levels.rank_N.astype(narrow)
    for a, direction in enumerate(region.directions):
        sorted_N = rank_N.take(direction.order_N)
        pairs = sorted_N[:-1] * narrow(n)
        pairs += sorted_N[1:]
        pairs[direction.ends_E] = n * n
        glcm[a] = np.bincount(pairs, minlength=n * n + 1)[: n * n].reshape(n, n)
        if not direction.has_pairs:
            continue
        differs = sorted_N[:-1] != sorted_N[1:]
        differs[direction.ends_E] = True
        last = np.append(np.flatnonzero(differs), len(sorted_N) - 1)
        length = np.diff(last, prepend=-1)
        runs = sorted_N[last].astype(np.int64) * longest + (length - 1)
        glrlm[a] = np.bincount(runs, minlength=n * longest).reshape(n, longest)
    glcm += glcm.transpose(0, 2, 1)
    return PairsAndRuns(glcm_LLA=np.moveaxis(glcm, 0, 2), glrlm_LRA=np.moveaxis(glrlm, 0, 2))


def count_dependences(region: Region, levels: Levels) -> Float[NDArray[np.float64], "L 27"]:
    """GLDM: column k counts the voxels with k neighbours of their own level."""
    n = len(levels.bins_L)
    # one above the rank, so that 0 is left for the background
    flat = _padded(region, levels.rank_N.astype(np.uint16) + 1, np.uint8 if n < 255 else np.uint16)
    same = np.zeros(len(flat), dtype=np.uint8)
    for shift in region.shifts:
        equal = flat[shift:] == flat[:-shift]
        same[:-shift] += equal
        same[shift:] += equal
    counts = np.bincount(levels.rank_N.astype(np.int64) * 27 + same[region.flat_N], minlength=n * 27)
    return counts.reshape(n, 27).astype(np.float64)


def sum_tone_differences(region: Region, levels: Levels) -> Float[NDArray[np.float64], "L 3"]:
    """NGTDM: voxels, summed difference from the neighbours' mean, bin."""
    flat = _padded(region, levels.bin_N, np.uint16 if levels.highest * 27 < 2**16 else np.uint32)
    total = np.zeros_like(flat)
    for shift in region.shifts:
        total[:-shift] += flat[shift:]
        total[shift:] += flat[:-shift]
    neighbours_N = region.neighbours_N
    mean_N = total[region.flat_N] / np.maximum(neighbours_N, 1)
    difference_N = np.where(neighbours_N > 0, np.abs(levels.bin_N - mean_N), 0.0)
    summed = np.bincount(levels.rank_N, weights=difference_N, minlength=len(levels.bins_L))
    return np.stack([levels.count_L, summed, levels.bins_L], axis=1).astype(np.float64)


def count_zones(region: Region, levels: Levels) -> tuple[Float[NDArray[np.float64], "L S"], NDArray[np.int64]]:
    """GLSZM: connected zones of level i and size s, and the sizes that occur."""
    image_DHW = np.zeros(region.mask_DHW.shape, dtype=np.int64)
    image_DHW[region.mask_DHW] = levels.rank_N.astype(np.int64) + 1
    count = load().cMatrices.calculate_glszm
    zones_LS = count(image_DHW, region.mask_DHW, len(levels.bins_L), region.count, False, 0)[0]
    sizes = np.flatnonzero(zones_LS.any(axis=0))
    return zones_LS[:, sizes], sizes + 1


def _padded(region: Region, values_N: NDArray[Any], dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """Values on the flattened, padded box, 0 outside the mask."""
    flat = np.zeros(int(np.prod(region.padded_shape)), dtype=dtype)
    flat[region.flat_N] = values_N
    return flat
