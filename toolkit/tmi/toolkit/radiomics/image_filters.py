"""The 19 image types, worked out only where the mask needs them.

pyradiomics filters the whole CT and crops afterwards. A voxel of the mask depends on less than that, and everything
here gives it the same bits from less:

- `square`, `squareroot`, `logarithm`, `exponential` need the voxel and the largest |intensity| of the whole CT;
- `gradient` needs the direct neighbours, a wavelet band as many as the wavelet is long;
- Laplacian of Gaussian runs recursive filters along whole lines, but only along the lines that later passes read, and
  25 sigma beyond the mask a voxel's weight is below 1e-15, under the rounding of the arithmetic.

`matches_pyradiomics` compares all of it, bit for bit, on a small volume, so that another version of SimpleITK or
PyWavelets which rounds otherwise is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.radiomics.mask_region import Box, Region, find_region
from tmi.toolkit.radiomics.pyradiomics import load, pyradiomics_quiet
from tmi.toolkit.radiomics.settings import SETTINGS

LOG_RADIUS_SIGMA = 25.0
"""How far, in sigmas, a voxel is taken to reach in the recursive Gaussian filters."""

Voxels = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class FilterInput:
    """The CT and where its mask lies."""

    ct_DHW: NDArray[Any]
    """Whole CT in HU, int16 or float32."""
    spacing_DHW_mm: tuple[float, float, float]
    """Voxel size."""
    mask_DHW: NDArray[np.bool_]
    """The mask, cropped to its box."""
    box: Box
    """The mask's box in the CT."""
    largest: float
    """Largest |intensity| of the whole CT."""

    @property
    def voxels_N(self) -> Voxels:
        """The CT inside the mask."""
        inside_N: Voxels = self.ct_DHW[self.box][self.mask_DHW]
        return inside_N


def make_filter_input(ct_DHW: NDArray[Any], spacing_DHW_mm: tuple[float, float, float], region: Region) -> FilterInput:
    """A CT together with its mask's region."""
    return FilterInput(
        ct_DHW=ct_DHW,
        spacing_DHW_mm=spacing_DHW_mm,
        mask_DHW=region.mask_DHW,
        box=region.box,
        largest=float(max(abs(float(ct_DHW.min())), abs(float(ct_DHW.max())))),
    )


def to_image(array_DHW: NDArray[Any], spacing_DHW_mm: tuple[float, float, float]) -> Any:
    """An array as a SimpleITK image of the same spacing; bool becomes uint8."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array_DHW.astype(np.uint8) if array_DHW.dtype == np.bool_ else array_DHW)
    image.SetSpacing([float(s) for s in spacing_DHW_mm[::-1]])
    return image


def _grow(box: Box, shape: tuple[int, ...], by: tuple[int, ...]) -> Box:
    """A box with `by` voxels more on every side, as far as the volume goes."""
    z, y, x = (slice(max(0, s.start - n), min(size, s.stop + n)) for s, size, n in zip(box, shape, by, strict=True))
    return z, y, x


def _within(box: Box, outer: Box) -> Box:
    """The place of a box inside a larger one."""
    z, y, x = (slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, outer, strict=True))
    return z, y, x


def _square(source: FilterInput) -> Voxels:
    answer_N: Voxels = ((1 / np.sqrt(source.largest)) * source.voxels_N.astype(np.float64)) ** 2
    return answer_N


def _square_root(source: FilterInput) -> Voxels:
    x_N = source.voxels_N.astype(np.float64)
    return np.copysign(np.sqrt(np.abs(x_N) * source.largest), x_N)


def _logarithm(source: FilterInput) -> Voxels:
    x_N = source.voxels_N.astype(np.float64)
    scale = source.largest / np.log(np.array([source.largest]) + 1)
    answer_N: Voxels = np.copysign(np.log(np.abs(x_N) + 1), x_N) * scale
    return answer_N


def _exponential(source: FilterInput) -> Voxels:
    rate = np.log(np.array([source.largest])) / source.largest
    answer_N: Voxels = np.exp(rate * source.voxels_N.astype(np.float64))
    return answer_N


def _gradient(source: FilterInput) -> Voxels:
    import SimpleITK

    outer = _grow(source.box, source.ct_DHW.shape, (2, 2, 2))
    magnitude = SimpleITK.GradientMagnitudeImageFilter()
    magnitude.SetUseImageSpacing(SETTINGS["imageType"]["Gradient"]["gradientUseSpacing"])
    magnitude.SetNumberOfThreads(1)
    answer = magnitude.Execute(to_image(source.ct_DHW[outer], source.spacing_DHW_mm))
    answer_N: Voxels = SimpleITK.GetArrayViewFromImage(answer)[_within(source.box, outer)][source.mask_DHW]
    return answer_N


def wavelet_bands(source: FilterInput) -> dict[str, Voxels]:
    """All 8 sub-bands by name, `LLH` to `LLL`; the letters stand for x, y, z.

    The transform is periodic: an axis on which the mask lies near an end of the CT is kept whole.
    """
    import pywt

    wavelet = pywt.Wavelet(SETTINGS["imageType"]["Wavelet"]["wavelet"])
    outer: list[slice] = []
    for span, size in zip(source.box, source.ct_DHW.shape, strict=True):
        start, stop = span.start - wavelet.dec_len, span.stop + wavelet.dec_len
        stop += (stop - start) % 2
        outer.append(slice(start, stop) if start >= 0 and stop <= size else slice(0, size))
    near = (outer[0], outer[1], outer[2])
    data = source.ct_DHW[near]
    data = np.pad(data, [(0, size % 2) for size in data.shape], mode="wrap")
    bands = pywt.swtn(data, wavelet, level=1, start_level=0, axes=(2, 1, 0))[0]
    inside = _within(source.box, near)
    return {name.replace("a", "L").replace("d", "H"): band[inside][source.mask_DHW] for name, band in bands.items()}


def laplacian_of_gaussian(source: FilterInput, sigma_mm: float) -> Voxels | None:
    """Sum over the axes of the smoothed CT's second derivative, times sigma squared; None where the CT is too thin.

    The passes, their order and their rounding to float32 are those of ITK's LaplacianRecursiveGaussianImageFilter.
    After a pass along an axis only the mask's span of that axis is kept.
    """
    import SimpleITK

    shape, spacing = np.array(source.ct_DHW.shape), np.array(source.spacing_DHW_mm)
    if shape.min() < 4 or not (shape >= np.ceil(sigma_mm / spacing) + 1).all():
        return None
    reach = tuple(max(8, int(np.ceil(LOG_RADIUS_SIGMA * sigma_mm / s))) for s in spacing)
    outer = _grow(source.box, source.ct_DHW.shape, reach)
    start = to_image(np.ascontiguousarray(source.ct_DHW[outer]), source.spacing_DHW_mm)
    inside_xyz = _within(source.box, outer)[::-1]
    sum_DHW: NDArray[Any] = np.zeros(source.mask_DHW.shape, dtype=np.float32)
    for derived in range(3):
        image = start
        for axis in (derived, *(a for a in range(3) if a != derived)):
            one = SimpleITK.RecursiveGaussianImageFilter()
            one.SetSigma(sigma_mm)
            one.SetNormalizeAcrossScale(True)
            one.SetOrder(2 if axis == derived else 0)
            one.SetDirection(axis)
            one.SetNumberOfThreads(1)
            keep: list[slice] = [slice(None)] * 3
            keep[axis] = inside_xyz[axis]
            image = one.Execute(image)[tuple(keep)]
        term_DHW = SimpleITK.GetArrayViewFromImage(image).astype(np.float64)
        term_DHW *= 1 / spacing[2 - derived] ** 2
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
"""Image types that are one step from the CT."""

LOG_SIGMAS_MM: tuple[float, ...] = tuple(sorted(SETTINGS["imageType"]["LoG"]["sigma"], reverse=True))
"""Widths of the Laplacian of Gaussian, the widest, which takes longest, first."""


def log_name(sigma_mm: float) -> str:
    """Name of a Laplacian of Gaussian as an image type."""
    return f"log-sigma-{str(sigma_mm).replace('.', '-')}-mm-3D"


def every_image(source: FilterInput) -> dict[str, Voxels]:
    """All image types by name -> values of the N voxels; one that so thin a CT does not give is left out."""
    logs = {log_name(sigma): laplacian_of_gaussian(source, sigma) for sigma in LOG_SIGMAS_MM}
    bands = {f"wavelet-{band}": values_N for band, values_N in wavelet_bands(source).items()}
    direct = {name: image(source) for name, image in POINTWISE.items()}
    return direct | bands | {name: values_N for name, values_N in logs.items() if values_N is not None}


@cache
def matches_pyradiomics() -> bool:
    """Whether every filter gives pyradiomics' own voxels, bit for bit, on a small volume of noise."""
    operations = load().imageoperations
    rng = np.random.default_rng(0)
    ct_DHW = rng.normal(60, 90, (33, 34, 35)).astype(np.int16)
    spacing_DHW_mm = (2.5, 0.9, 0.7)
    mask_DHW = np.zeros(ct_DHW.shape, dtype=np.bool_)
    mask_DHW[12:18, 10:20, 9:22] = rng.random((6, 10, 13)) < 0.8
    source = make_filter_input(ct_DHW, spacing_DHW_mm, find_region(mask_DHW))
    ours = every_image(source)
    import SimpleITK

    image = to_image(ct_DHW, spacing_DHW_mm)
    with pyradiomics_quiet():
        for image_type, options in SETTINGS["imageType"].items():
            for answer, name, _ in getattr(operations, f"get{image_type}Image")(image, None, **options):
                theirs_N = SimpleITK.GetArrayViewFromImage(answer)[mask_DHW]
                if name not in ours or not np.array_equal(ours.pop(name), theirs_N):
                    return False
    return not ours
