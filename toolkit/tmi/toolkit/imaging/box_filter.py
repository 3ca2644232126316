"""Area averaging along one axis: each output voxel is the mean of the input over its own extent.

Output voxel i of n_out covers [i, i + 1) * n_in / n_out of an axis of n_in voxels. An input voxel that it covers in
part counts with that part. Interpolation between the two nearest voxels would ignore the others: of 200 slices that
become 64 it reads 128. Averaging r voxels leaves about 1 / sqrt(r) of their independent noise.

Used by `tmi.toolkit.imaging.ct_resampling` for the axes that shrink, if `ct.antialias` is set. K taps of an output
voxel, O output voxels of an axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray


@dataclass(frozen=True)
class BoxTaps:
    """Input indices that each output voxel averages, and their weights."""

    index_KO: Int[np.ndarray, "K O"]
    """Input index; unused taps repeat the last one, with weight 0."""
    weight_KO: Float[np.ndarray, "K O"]
    """Parts of the output voxel's extent, float32; the sum over K is 1."""

    def planes(self, o: int) -> list[tuple[int, np.float32]]:
        """Index and weight of each input voxel of output voxel `o`, without the unused taps."""
        return [(int(z), w) for z, w in zip(self.index_KO[:, o], self.weight_KO[:, o], strict=True) if w]


def box_taps(n_in: int, n_out: int) -> BoxTaps:
    """Taps of an axis that shrinks from `n_in` to `n_out` voxels."""
    # in units of 1 / n_out of an input voxel all edges are integers, so the parts are exact
    begin_O = np.arange(n_out) * n_in
    end_O = begin_O + n_in
    count = int(np.max(-(-end_O // n_out) - begin_O // n_out))
    index_KO = begin_O // n_out + np.arange(count)[:, None]
    overlap_KO = np.minimum((index_KO + 1) * n_out, end_O) - np.maximum(index_KO * n_out, begin_O)
    last_O = (end_O - 1) // n_out
    return BoxTaps(np.minimum(index_KO, last_O), (np.maximum(overlap_KO, 0) / n_in).astype(np.float32))


def averaged(plane_HW: NDArray[np.float32], taps: BoxTaps, *, axis: int) -> NDArray[np.float32]:
    """Average a plane along one axis; float32."""
    total: NDArray[np.float32] | None = None
    for index_O, weight_O in zip(taps.index_KO, taps.weight_KO, strict=True):
        part: NDArray[np.float32] = np.take(plane_HW, index_O, axis=axis)
        part *= weight_O[:, None] if axis == 0 else weight_O
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None  # an output voxel covers at least one input voxel
    return total
