"""The extraction: the same 1,781 values as one call of pyradiomics, without repeated work and without pyradiomics.

The mask is cropped and its voxels are sorted once. Each image type is filtered only where the mask needs it. Voxels are
binned once for all feature classes, and the texture matrices are counted with numpy. Image types are distributed over
threads: ITK, PyWavelets and numpy release the GIL for most of the work, and threads share the CT and start at no cost.
`docs/radiomics.md` lists the time saved by each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.compute.silence import quiet
from tmi.toolkit.radiomics.features import image_features
from tmi.toolkit.radiomics.formulas.shape import shape_features
from tmi.toolkit.radiomics.image_filters import (
    LOG_SIGMAS_MM,
    POINTWISE,
    FilterInput,
    Voxels,
    laplacian_of_gaussian,
    log_name,
    make_filter_input,
    wavelet_bands,
)
from tmi.toolkit.radiomics.libraries import require_libraries
from tmi.toolkit.radiomics.mask_region import Region, find_region
from tmi.toolkit.radiomics.whole_filters import every_whole_image, filters_match

FeatureValues = Mapping[str, Any]
"""Feature name -> value."""


def reference_path_reason() -> str | None:
    """Return why the fast filters cannot be used with the installed packages; None if they can.

    Raises:
        UnavailableError: SimpleITK or PyWavelets is not installed.
    """
    require_libraries()
    if not filters_match():
        return "the image filters differ from those on the whole CT with the installed SimpleITK, PyWavelets or numpy"
    return None


def extract_fast(
    ct_DHW: NDArray[Any],
    mask_DHW: NDArray[np.bool_],
    spacing_DHW_mm: tuple[float, float, float],
    *,
    jobs: int,
    whole: bool = False,
) -> FeatureValues:
    """Compute the features by name.

    Args:
        ct_DHW: CT in Hounsfield units, int16 or float32, not zero everywhere.
        mask_DHW: bool, at least two voxels wide along two axes.
        spacing_DHW_mm: voxel size in millimetres along D, H, W.
        jobs: number of threads.
        whole: filter the whole CT, which is slower and needs no assumption on the filters.

    Returns:
        Feature name -> value; features of an image type for which the CT is too thin are left out.

    Raises:
        UnavailableError: SimpleITK or PyWavelets is not installed.
        InputRejectedError: radiomics-failed.
    """
    require_libraries()
    region = find_region(mask_DHW)
    source = make_filter_input(ct_DHW, spacing_DHW_mm, region)
    with quiet(), ThreadPoolExecutor(max(1, jobs)) as pool:
        if whole:
            images = every_whole_image(source)
            tasks = [partial(_image, source, region, name, values_N) for name, values_N in images.items()]
            futures = [pool.submit(task) for task in (partial(_shape, region, spacing_DHW_mm), *tasks)]
            return {name: value for future in futures for name, value in future.result().items()}
        # The widest Laplacian of Gaussian takes longest, so it starts first. The other LoG filters, which release the
        # GIL, alternate with image types whose time goes into texture formulas, which hold it.
        first = [pool.submit(_log, source, region, sigma) for sigma in LOG_SIGMAS_MM[:1]]
        first.append(pool.submit(_shape, region, spacing_DHW_mm))
        logs = [partial(_log, source, region, sigma) for sigma in LOG_SIGMAS_MM[1:]]
        direct = [partial(_pointwise, source, region, name) for name in POINTWISE]
        bands = [
            partial(_image, source, region, f"wavelet-{band}", values_N)
            for band, values_N in wavelet_bands(source).items()
        ]
        futures = first + [pool.submit(task) for task in _interleave(logs, bands + direct)]
        return {name: value for future in futures for name, value in future.result().items()}


def _interleave(
    few: Sequence[Callable[[], FeatureValues]], many: Sequence[Callable[[], FeatureValues]]
) -> list[Callable[[], FeatureValues]]:
    """Alternate the tasks of both lists until `few` is exhausted, then append the rest of `many`."""
    tasks: list[Callable[[], FeatureValues]] = []
    for k, task in enumerate(many):
        tasks += [*few[k : k + 1], task]
    return tasks


def _image(source: FilterInput, region: Region, image_type: str, values_N: Voxels) -> FeatureValues:
    features = image_features(values_N, region, source.spacing_DHW_mm)
    return {f"{image_type}_{name}": value for name, value in features.items()}


def _pointwise(source: FilterInput, region: Region, name: str) -> FeatureValues:
    return _image(source, region, name, POINTWISE[name](source))


def _log(source: FilterInput, region: Region, sigma_mm: float) -> FeatureValues:
    values_N = laplacian_of_gaussian(source, sigma_mm)
    return {} if values_N is None else _image(source, region, log_name(sigma_mm), values_N)


def _shape(region: Region, spacing_DHW_mm: tuple[float, float, float]) -> FeatureValues:
    return {f"original_shape_{name}": value for name, value in shape_features(region.mask_DHW, spacing_DHW_mm).items()}
