"""Finds cases that have the same CT under two ids. N cases, D H W voxels.

The prepared CTs are compared, after orientation, window and grid are applied, so a copy that was saved mirrored,
compressed or in another data type is still found. Two images are near duplicates if their mean absolute difference is
below a thousandth of the window's width (0.2 HU of 200), far below the noise between two scans of one patient.

Copies that were shifted, flipped or rescaled are found by phase correlation: with F, G the spectra of two images and *
the complex conjugate, the peak over all shifts of

    c = IFFT( F G* / |F G*| ),  frequencies up to `BAND` of the sampling rate, scaled so that equal images give 1.

A shift moves the peak, a linear rescaling of the values does not change c, and all 8 flips are tried. Among 1,128 pairs
of synthetic CTs, whose bodies are far more alike than those of patients, the largest value is 0.57; copies that were
shifted by one or two voxels, flipped, resampled or rescaled give 0.90 and more, those of a real CT 0.69 and more.
Source: C. D. Kuglin and D. C. Hines 1975.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Complex, Float
from scipy import fft

from tmi.toolkit.storage.hashing import sha256_bytes

RELATIVE_TOLERANCE = 1e-3
"""Mean absolute difference of near duplicates, as a fraction of the window's width."""
SAMPLED_VOXELS = 4096
"""Approximate number of voxels of each image for the preselection of pairs."""
GRID_DHW, COARSE_GRID_DHW = (24, 48, 48), (12, 24, 24)
"""Largest size of the images whose phases are compared; the coarse ones preselect pairs."""
MIN_VOXELS = 24 * 48 * 48 // 2
"""Smallest image whose phases are compared: smaller ones of two patients can be alike by chance."""
BAND = 0.3
"""Highest spatial frequency that is compared, in cycles per voxel; noise and interpolation change those above."""
COARSE_SIMILARITY, COPY_SIMILARITY = 0.65, 0.65
"""Phase correlation at which a pair is preselected, and at which one image is a copy of the other."""
FLIPS = tuple(itertools.product((1, -1), repeat=3))
"""Steps of an index along each axis."""


def find_duplicates(ct_N1DHW: Float[np.ndarray, "N 1 D H W"], *, span: float) -> Iterator[tuple[int, int, bool]]:
    """Yield pairs of duplicate rows, the lower row first, and whether they are bit-identical.

    Args:
        ct_N1DHW: prepared CTs.
        span: width of the intensity window after scaling.
    """
    # a regular subsample preselects pairs; the full images decide
    step = max(1, int(np.ceil((np.prod(ct_N1DHW.shape[2:]) / SAMPLED_VOXELS) ** (1 / 3))))
    sampled = np.stack([np.asarray(ct[0, ::step, ::step, ::step]).ravel() for ct in ct_N1DHW])
    digests = [sha256_bytes(np.ascontiguousarray(ct).data.cast("B")) for ct in ct_N1DHW]
    for a in range(len(sampled)):
        differences = np.abs(sampled[a + 1 :] - sampled[a]).mean(axis=1) / span
        for b in a + 1 + np.flatnonzero(differences < 5 * RELATIVE_TOLERANCE):
            exact = digests[a] == digests[b]
            if exact or float(np.abs(ct_N1DHW[a] - ct_N1DHW[b]).mean()) / span < RELATIVE_TOLERANCE:
                yield a, int(b), exact


def can_find_copies(ct_N1DHW: Float[np.ndarray, "N 1 D H W"]) -> bool:
    """Whether the images have enough voxels for `find_copies`."""
    return int(np.prod(ct_N1DHW.shape[2:])) >= MIN_VOXELS


def find_copies(ct_N1DHW: Float[np.ndarray, "N 1 D H W"]) -> Iterator[tuple[int, int, float]]:
    """Yield pairs of rows of which one is a shifted, flipped or rescaled copy of the other, and their similarity.

    Args:
        ct_N1DHW: prepared CTs; nothing is yielded if they have fewer than `MIN_VOXELS` voxels.
    """
    if not can_find_copies(ct_N1DHW):
        return
    images = [_averaged(np.asarray(ct[0]), GRID_DHW) for ct in ct_N1DHW]
    coarse = [_averaged(image, COARSE_GRID_DHW) for image in images]
    spectra = np.stack([_phases(image) for image in coarse])
    for a in range(len(images) - 1):
        similarity = _peaks(coarse[a], spectra[a + 1 :])
        for b in a + 1 + np.flatnonzero(similarity >= COARSE_SIMILARITY):
            (value,) = _peaks(images[a], _phases(images[b])[None])
            if value >= COPY_SIMILARITY:
                yield a, int(b), float(value)


def _averaged(image_DHW: Float[np.ndarray, "D H W"], size: tuple[int, int, int]) -> Float[np.ndarray, "d h w"]:
    """Mean over blocks of equal size, so that no axis is longer than `size`; float32."""
    for axis, (n, largest) in enumerate(zip(image_DHW.shape, size, strict=True)):
        step = -(-n // largest)
        kept = np.take(image_DHW, range(n // step * step), axis=axis)
        blocks = (*kept.shape[:axis], n // step, step, *kept.shape[axis + 1 :])
        image_DHW = kept.reshape(blocks).mean(axis=axis + 1)
    return image_DHW.astype(np.float32)


def _phases(image_DHW: Float[np.ndarray, "D H W"]) -> Complex[np.ndarray, "D H W2"]:
    """Spectrum with magnitude 1 in the compared band and 0 elsewhere; 0 everywhere for a uniform image."""
    spectrum = fft.rfftn(image_DHW - image_DHW.mean())
    size = np.abs(spectrum)
    kept = _band(image_DHW.shape) & (size > 1e-6 * max(float(size.max()), 1e-6))
    return np.where(kept, spectrum / np.where(kept, size, 1.0), 0.0).astype(np.complex64)


def _band(shape: tuple[int, ...]) -> np.ndarray:
    """Whether each frequency of a real spectrum is compared; the mean is not."""
    axes = (fft.fftfreq(shape[0]), fft.fftfreq(shape[1]), fft.rfftfreq(shape[2]))
    frequency = np.sqrt(sum(part**2 for part in np.meshgrid(*axes, indexing="ij")))
    band: np.ndarray = (frequency > 0) & (frequency < BAND)
    return band


def _peaks(image_DHW: Float[np.ndarray, "D H W"], spectra: Complex[np.ndarray, "n D H W2"]) -> Float[np.ndarray, " n"]:
    """Largest phase correlation of an image with each of n others over all shifts and flips."""
    shape = image_DHW.shape
    largest = float(fft.irfftn(_band(shape).astype(np.complex64), s=shape).max())  # that of equal images
    peaks = np.zeros(len(spectra))
    for d, h, w in FLIPS:
        own = _phases(image_DHW[::d, ::h, ::w])
        correlation = fft.irfftn(spectra * own.conj(), s=shape, axes=(1, 2, 3))
        peaks = np.maximum(peaks, correlation.reshape(len(spectra), -1).max(axis=1) / largest)
    return peaks
