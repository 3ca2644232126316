"""The 19 image types on the whole CT, by the calls that pyradiomics makes: slow, and the reference of the fast filters.

`filters_match` compares both, bit for bit, on a small volume of noise. If they differ with the installed SimpleITK,
PyWavelets or numpy, the extraction uses the filters of this module.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.radiomics.image_filters import (
    LOG_SIGMAS_MM,
    FilterInput,
    Voxels,
    every_image,
    log_name,
    make_filter_input,
    to_image,
)
from tmi.toolkit.radiomics.libraries import rejecting
from tmi.toolkit.radiomics.mask_region import find_region
from tmi.toolkit.radiomics.settings import SETTINGS


def every_whole_image(source: FilterInput) -> dict[str, Voxels]:
    """Compute all image types on the whole CT: name -> values of the N voxels, as `every_image`."""
    x_DHW = source.ct_DHW.astype(np.float64)
    largest = np.max(np.abs(x_DHW))
    logarithm_DHW = np.copysign(np.log(np.abs(x_DHW) + 1), x_DHW)
    images = {
        "original": source.ct_DHW,
        "square": ((1 / np.sqrt(largest)) * x_DHW) ** 2,
        "squareroot": np.copysign(np.sqrt(np.abs(x_DHW) * largest), x_DHW),
        "logarithm": logarithm_DHW * (largest / np.max(np.abs(logarithm_DHW))),
        "exponential": np.exp((np.log(largest) / largest) * x_DHW),
        "gradient": _gradient(source),
        **_wavelet_bands(source.ct_DHW),
        **_laplacians(source),
    }
    return {name: image_DHW[source.box][source.mask_DHW] for name, image_DHW in images.items()}


def _gradient(source: FilterInput) -> NDArray[Any]:
    import SimpleITK

    magnitude = SimpleITK.GradientMagnitudeImageFilter()
    magnitude.SetUseImageSpacing(SETTINGS["imageType"]["Gradient"]["gradientUseSpacing"])
    with rejecting("SimpleITK"):
        gradient_DHW: NDArray[Any] = SimpleITK.GetArrayFromImage(
            magnitude.Execute(to_image(source.ct_DHW, source.spacing_DHW_mm))
        )
    return gradient_DHW


def _wavelet_bands(ct_DHW: NDArray[Any]) -> dict[str, NDArray[Any]]:
    import pywt

    d, h, w = ct_DHW.shape
    wavelet = pywt.Wavelet(SETTINGS["imageType"]["Wavelet"]["wavelet"])
    data = np.pad(ct_DHW, [(0, size % 2) for size in ct_DHW.shape], mode="wrap")  # swtn requires even sizes
    with rejecting("PyWavelets"):
        bands = pywt.swtn(data, wavelet, level=1, start_level=0, axes=(2, 1, 0))[0]
    return {f"wavelet-{name.replace('a', 'L').replace('d', 'H')}": band[:d, :h, :w] for name, band in bands.items()}


def _laplacians(source: FilterInput) -> dict[str, NDArray[Any]]:
    import SimpleITK

    shape, spacing = np.array(source.ct_DHW.shape), np.array(source.spacing_DHW_mm)
    if shape.min() < 4:
        return {}
    images = {}
    for sigma in LOG_SIGMAS_MM:
        if not (shape >= np.ceil(sigma / spacing) + 1).all():
            continue
        laplacian = SimpleITK.LaplacianRecursiveGaussianImageFilter()
        laplacian.SetNormalizeAcrossScale(True)
        laplacian.SetSigma(sigma)
        with rejecting("SimpleITK"):
            images[log_name(sigma)] = SimpleITK.GetArrayFromImage(
                laplacian.Execute(to_image(source.ct_DHW, source.spacing_DHW_mm))
            )
    return images


def noise_volume() -> FilterInput:
    """Return a small CT of noise with a ragged mask, on which filters are compared."""
    rng = np.random.default_rng(0)
    ct_DHW = rng.normal(60, 90, (33, 34, 35)).astype(np.int16)
    mask_DHW = np.zeros(ct_DHW.shape, dtype=np.bool_)
    mask_DHW[12:18, 10:20, 9:22] = rng.random((6, 10, 13)) < 0.8
    return make_filter_input(ct_DHW, (2.5, 0.9, 0.7), find_region(mask_DHW))


@cache
def filters_match() -> bool:
    """Return whether every fast filter equals the one on the whole CT bit for bit on a small volume of noise."""
    source = noise_volume()
    fast, whole = every_image(source), every_whole_image(source)
    return fast.keys() == whole.keys() and all(np.array_equal(fast[name], whole[name]) for name in whole)
