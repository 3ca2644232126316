"""The quick road: the same 1,781 values as one plain call of pyradiomics, from work that is done once.

One mask is cropped and sorted once, every image type is worked out only where the mask needs it, voxels are binned once
for all classes, and the texture matrices are counted with numpy. Image types are spread over threads: ITK, PyWavelets
and numpy let go of Python's lock for most of the work, and threads need no second copy of the CT, no start-up and no
guarded main module. `docs/radiomics.md` tells what each step gained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.radiomics.features import image_features, shape_features
from tmi.toolkit.radiomics.image_filters import (
    LOG_SIGMAS_MM,
    POINTWISE,
    FilterInput,
    Voxels,
    laplacian_of_gaussian,
    log_name,
    make_filter_input,
    matches_pyradiomics,
    wavelet_bands,
)
from tmi.toolkit.radiomics.mask_region import Region, find_region
from tmi.toolkit.radiomics.pyradiomics import is_pinned, load, pyradiomics_quiet, version
from tmi.toolkit.radiomics.settings import PYRADIOMICS_VERSION

FeatureValues = Mapping[str, Any]
"""Feature names and values."""


def reference_path_reason() -> str | None:
    """Why the quick road cannot be taken with the packages that are installed; None where it can.

    Raises:
        UnavailableError: pyradiomics is not installed.
    """
    if not is_pinned():
        return f"pyradiomics {version()} is installed, and the quick road was checked against {PYRADIOMICS_VERSION}"
    if not matches_pyradiomics():
        return "the installed SimpleITK, PyWavelets or numpy filter otherwise than pyradiomics through them"
    return None


def extract_fast(
    ct_DHW: NDArray[Any], mask_DHW: NDArray[np.bool_], spacing_DHW_mm: tuple[float, float, float], *, jobs: int
) -> FeatureValues:
    """Every feature that can be had, by name.

    Args:
        ct_DHW: Hounsfield units, int16 or float32, not zero everywhere.
        mask_DHW: at least two voxels wide along two axes.
        spacing_DHW_mm: voxel size.
        jobs: threads.
    """
    load()
    region = find_region(mask_DHW)
    source = make_filter_input(ct_DHW, spacing_DHW_mm, region)
    with pyradiomics_quiet(), ThreadPoolExecutor(max(1, jobs)) as pool:
        # a filter that takes long beside images that need none: the former run free of Python's lock
        first = [pool.submit(_log, source, region, sigma) for sigma in LOG_SIGMAS_MM[:1]]
        first.append(pool.submit(_shape, region, spacing_DHW_mm))
        rest = [partial(_log, source, region, sigma) for sigma in LOG_SIGMAS_MM[1:]]
        direct = [partial(_pointwise, source, region, name) for name in POINTWISE]
        bands = [
            partial(_image, source, region, f"wavelet-{band}", values_N)
            for band, values_N in wavelet_bands(source).items()
        ]
        futures = first + [pool.submit(task) for task in _interleave(rest, bands + direct)]
        return {name: value for future in futures for name, value in future.result().items()}


def _interleave(
    few: Sequence[Callable[[], FeatureValues]], many: Sequence[Callable[[], FeatureValues]]
) -> list[Callable[[], FeatureValues]]:
    """The few spread evenly among the first of the many."""
    tasks: list[Callable[[], FeatureValues]] = []
    for k, task in enumerate(many):
        tasks += [*few[k : k + 1], task]
    return tasks


def _image(source: FilterInput, region: Region, image_type: str, values_N: Voxels) -> FeatureValues:
    found = image_features(values_N, region, source.spacing_DHW_mm)
    return {f"{image_type}_{name}": value for name, value in found.items()}


def _pointwise(source: FilterInput, region: Region, name: str) -> FeatureValues:
    return _image(source, region, name, POINTWISE[name](source))


def _log(source: FilterInput, region: Region, sigma_mm: float) -> FeatureValues:
    values_N = laplacian_of_gaussian(source, sigma_mm)
    return {} if values_N is None else _image(source, region, log_name(sigma_mm), values_N)


def _shape(region: Region, spacing_DHW_mm: tuple[float, float, float]) -> FeatureValues:
    return {f"original_shape_{name}": value for name, value in shape_features(region, spacing_DHW_mm).items()}
