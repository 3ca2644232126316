"""Compute the 19 image types (filtered versions of the CT) only where the mask needs them.

pyradiomics filters the whole CT and crops afterwards. Here each filter reads only the voxels that the mask depends on
and gives the same bits. With x the intensity in HU and m = max(|x|) over the whole CT:

- square (x / sqrt(m))^2; squareroot sign(x) sqrt(m |x|); logarithm sign(x) m log(|x| + 1) / log(m + 1); exponential
  exp(x log(m) / m). Each needs the voxel and m.
- gradient: magnitude per millimetre; needs the direct neighbours.
- wavelet: 8 sub-bands of one level of the stationary wavelet transform; needs as many neighbours as the wavelet's
  length.
- Laplacian of Gaussian: recursive filters along lines; needs only the lines that later passes read. 25 sigma beyond the
  mask a voxel's weight is below 1e-15, less than the rounding error.

`tmi.toolkit.radiomics.whole_filters` compares all filters bit for bit with those on the whole CT, so that a version of
SimpleITK or PyWavelets with other rounding is detected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.radiomics.libraries import rejecting
from tmi.toolkit.radiomics.mask_region import Box, Region
from tmi.toolkit.radiomics.settings import SETTINGS

LOG_RADIUS_SIGMA = 25.0
"""Margin around the mask that the recursive Gaussian filters read, in sigmas."""

Voxels = NDArray[Any]
"""Values of the mask's N voxels, in C order of its bounding box."""


@dataclass(frozen=True, kw_only=True)
class FilterInput:
    """The CT and the position of its mask."""

    ct_DHW: NDArray[Any]
    """Whole CT in HU, int16 or float32."""
    spacing_DHW_mm: tuple[float, float, float]
    """Voxel size in millimetres."""
    mask_DHW: NDArray[np.bool_]
    """The mask, cropped to its bounding box."""
    box: Box
    """The mask's bounding box in the CT."""
    largest: float
    """Largest absolute intensity of the whole CT."""

    @property
    def voxels_N(self) -> Voxels:
        """Intensities of the CT inside the mask."""
        voxels_N: Voxels = self.ct_DHW[self.box][self.mask_DHW]
        return voxels_N


def make_filter_input(ct_DHW: NDArray[Any], spacing_DHW_mm: tuple[float, float, float], region: Region) -> FilterInput:
    """Combine a CT with the region of its mask."""
    return FilterInput(
        ct_DHW=ct_DHW,
        spacing_DHW_mm=spacing_DHW_mm,
        mask_DHW=region.mask_DHW,
        box=region.box,
        largest=float(max(abs(float(ct_DHW.min())), abs(float(ct_DHW.max())))),
    )


def to_image(array_DHW: NDArray[Any], spacing_DHW_mm: tuple[float, float, float]) -> Any:
    """Convert an array to a SimpleITK image with the given spacing; bool becomes uint8."""
    import SimpleITK

    array_DHW = array_DHW.astype(np.uint8) if array_DHW.dtype == np.bool_ else array_DHW
    with rejecting("SimpleITK"):
        image = SimpleITK.GetImageFromArray(array_DHW)
        image.SetSpacing([float(s) for s in spacing_DHW_mm[::-1]])  # SimpleITK orders axes x, y, z
    return image


def _grow(box: Box, shape: tuple[int, ...], by: tuple[int, ...]) -> Box:
    """Extend a box by `by` voxels on every side, limited to the volume."""
    z, y, x = (slice(max(0, s.start - n), min(size, s.stop + n)) for s, size, n in zip(box, shape, by, strict=True))
    return z, y, x


def _within(box: Box, outer: Box) -> Box:
    """Return the coordinates of a box relative to a larger one."""
    z, y, x = (slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, outer, strict=True))
    return z, y, x


def _square(source: FilterInput) -> Voxels:
    # pyradiomics' order of operations in this and the next functions: another one would round differently
    square_N: Voxels = ((1 / np.sqrt(source.largest)) * source.voxels_N.astype(np.float64)) ** 2
    return square_N


def _square_root(source: FilterInput) -> Voxels:
    x_N = source.voxels_N.astype(np.float64)
    return np.copysign(np.sqrt(np.abs(x_N) * source.largest), x_N)


def _logarithm(source: FilterInput) -> Voxels:
    x_N = source.voxels_N.astype(np.float64)
    scale = source.largest / np.log(np.array([source.largest]) + 1)
    logarithm_N: Voxels = np.copysign(np.log(np.abs(x_N) + 1), x_N) * scale
    return logarithm_N


def _exponential(source: FilterInput) -> Voxels:
    rate = np.log(np.array([source.largest])) / source.largest
    exponential_N: Voxels = np.exp(rate * source.voxels_N.astype(np.float64))
    return exponential_N


def _gradient(source: FilterInput) -> Voxels:
    import SimpleITK

    outer = _grow(source.box, source.ct_DHW.shape, (2, 2, 2))
    magnitude = SimpleITK.GradientMagnitudeImageFilter()
    magnitude.SetUseImageSpacing(SETTINGS["imageType"]["Gradient"]["gradientUseSpacing"])
    magnitude.SetNumberOfThreads(1)  # image types run in parallel threads already
    start = to_image(source.ct_DHW[outer], source.spacing_DHW_mm)
    with rejecting("SimpleITK"):
        image = magnitude.Execute(start)
    gradient_N: Voxels = SimpleITK.GetArrayViewFromImage(image)[_within(source.box, outer)][source.mask_DHW]
    return gradient_N


def wavelet_bands(source: FilterInput) -> dict[str, Voxels]:
    """Compute the 8 wavelet sub-bands, `LLH` to `LLL`; the letters are the filters (low, high) along x, y, z.

    The transform is periodic, so an axis on which the mask is close to the border of the CT is not cropped.
    """
    import pywt

    wavelet = pywt.Wavelet(SETTINGS["imageType"]["Wavelet"]["wavelet"])
    outer: list[slice] = []
    for span, size in zip(source.box, source.ct_DHW.shape, strict=True):
        start, stop = span.start - wavelet.dec_len, span.stop + wavelet.dec_len
        stop += (stop - start) % 2  # swtn requires even sizes
        outer.append(slice(start, stop) if start >= 0 and stop <= size else slice(0, size))
    crop = (outer[0], outer[1], outer[2])
    data = source.ct_DHW[crop]
    # an uncropped odd axis is extended by its first plane, as in pyradiomics
    data = np.pad(data, [(0, size % 2) for size in data.shape], mode="wrap")
    with rejecting("PyWavelets"):
        bands = pywt.swtn(data, wavelet, level=1, start_level=0, axes=(2, 1, 0))[0]
    inside = _within(source.box, crop)
    return {name.replace("a", "L").replace("d", "H"): band[inside][source.mask_DHW] for name, band in bands.items()}


def laplacian_of_gaussian(source: FilterInput, sigma_mm: float) -> Voxels | None:
    """Compute sigma^2 times the Laplacian of the CT smoothed with a Gaussian; None if the CT is too thin.

    The passes, their order and their rounding to float32 are those of ITK's LaplacianRecursiveGaussianImageFilter.
    After a pass along an axis only the mask's span of that axis is kept.

    Args:
        source: CT and mask.
        sigma_mm: standard deviation of the Gaussian in millimetres.
    """
    import SimpleITK

    shape, spacing = np.array(source.ct_DHW.shape), np.array(source.spacing_DHW_mm)
    # pyradiomics' limits: ITK's recursive filter needs 4 voxels, and each axis must be longer than sigma
    if shape.min() < 4 or not (shape >= np.ceil(sigma_mm / spacing) + 1).all():
        return None
    reach = tuple(max(8, int(np.ceil(LOG_RADIUS_SIGMA * sigma_mm / s))) for s in spacing)
    outer = _grow(source.box, source.ct_DHW.shape, reach)
    start = to_image(np.ascontiguousarray(source.ct_DHW[outer]), source.spacing_DHW_mm)
    inside_xyz = _within(source.box, outer)[::-1]
    sum_DHW: NDArray[Any] = np.zeros(source.mask_DHW.shape, dtype=np.float32)
    for derivative_axis in range(3):  # SimpleITK's axes: 0 is x
        image = start
        # ITK takes the derivative first and then smooths the other axes in ascending order
        for axis in (derivative_axis, *(a for a in range(3) if a != derivative_axis)):
            gaussian = SimpleITK.RecursiveGaussianImageFilter()
            gaussian.SetSigma(sigma_mm)
            gaussian.SetNormalizeAcrossScale(True)
            gaussian.SetOrder(2 if axis == derivative_axis else 0)
            gaussian.SetDirection(axis)
            gaussian.SetNumberOfThreads(1)
            keep: list[slice] = [slice(None)] * 3
            keep[axis] = inside_xyz[axis]
            with rejecting("SimpleITK"):
                image = gaussian.Execute(image)[tuple(keep)]
        term_DHW = SimpleITK.GetArrayViewFromImage(image).astype(np.float64)
        term_DHW *= 1 / spacing[2 - derivative_axis] ** 2
        # ITK accumulates in float32 after each term
        sum_DHW = (sum_DHW.astype(np.float64) + term_DHW).astype(np.float32)
    return sum_DHW[source.mask_DHW]


POINTWISE: dict[str, Callable[[FilterInput], Voxels]] = {
    "original": lambda source: source.voxels_N,
    "square": _square,
    "squareroot": _square_root,
    "logarithm": _logarithm,
    "exponential": _exponential,
    "gradient": _gradient,
}
"""Image types that a single cheap function computes from the CT."""

LOG_SIGMAS_MM: tuple[float, ...] = tuple(sorted(SETTINGS["imageType"]["LoG"]["sigma"], reverse=True))
"""Standard deviations of the Laplacian of Gaussian in descending order: the widest takes longest and starts first."""


def log_name(sigma_mm: float) -> str:
    """Return the image type's name of a Laplacian of Gaussian."""
    return f"log-sigma-{str(sigma_mm).replace('.', '-')}-mm-3D"


def every_image(source: FilterInput) -> dict[str, Voxels]:
    """Compute all image types: name -> values of the N voxels. Types for which the CT is too thin are left out."""
    logs = {log_name(sigma): laplacian_of_gaussian(source, sigma) for sigma in LOG_SIGMAS_MM}
    bands = {f"wavelet-{band}": values_N for band, values_N in wavelet_bands(source).items()}
    direct = {name: image(source) for name, image in POINTWISE.items()}
    return direct | bands | {name: values_N for name, values_N in logs.items() if values_N is not None}
