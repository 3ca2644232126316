"""pyradiomics' published feature values, by class, against the installed packages and against the fast path.

shape2D is left out: the shared data lack its published masks, and none of the 1,781 features is of that class.
"""

from __future__ import annotations

import ast
import csv
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tmi.toolkit.radiomics.feature_names import CLASS_FEATURES, SHAPE_FEATURES
from tmi.toolkit.radiomics.features import image_features
from tmi.toolkit.radiomics.formulas.shape import shape_features
from tmi.toolkit.radiomics.mask_region import find_region
from tmi.toolkit.radiomics.pyradiomics import load, pyradiomics_quiet

CLASSES = {"shape": SHAPE_FEATURES, **CLASS_FEATURES}
IMAGES = ("brain1", "breast1")
SHIFTED = {"Energy", "TotalEnergy", "RootMeanSquared"}
"""First-order features that depend on the offset of 2000 in the published settings."""
TOLERANCE = {("shape", "brain1"): 1e-3}
"""Relative tolerance; 1e-9 for all others. The shape of brain1 was published by pyradiomics 2.0.1, whose mesh differs
by up to 0.09 percent; the resampled brain1, published by 2.1.0, agrees."""


@cache
def published(folder: Path, kind: str) -> dict[str, dict[str, str]]:
    """Return the published table: test case -> row name -> cell."""
    with (folder / "baseline" / f"baseline_{kind}.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    return {case: {row[0]: row[k] for row in rows} for k, case in enumerate(header) if k}


def values_of(cells: dict[str, str]) -> dict[str, float]:
    return {name: float(cell) for name, cell in cells.items() if cell and not name.startswith("diagnostics_")}


def settings_of(cells: dict[str, str]) -> dict[str, Any]:
    return ast.literal_eval(cells["diagnostics_Configuration_Settings"])


def image_of(case: str) -> str:
    return case.partition("_")[0]


def require_equal(actual: dict[str, float], expected: dict[str, float], tolerance: float) -> None:
    for name, value in expected.items():
        assert float(np.real(actual[name])) == pytest.approx(value, rel=tolerance, abs=1e-12), name


@pytest.mark.parametrize("kind", CLASSES)
def test_installed_packages_reproduce_published_values(shared_data, kind):
    """The installed pyradiomics reproduces the published values of every class under every published setting."""
    folder = shared_data / "pyradiomics-baseline"
    package, cases = load(), 0
    for case, cells in published(folder, kind).items():
        if image_of(case) not in IMAGES:
            continue
        with pyradiomics_quiet():
            extractor = package.featureextractor.RadiomicsFeatureExtractor(**settings_of(cells))
            extractor.disableAllImageTypes()
            extractor.enableImageTypes(**ast.literal_eval(cells["diagnostics_Configuration_EnabledImageTypes"]))
            extractor.disableAllFeatures()
            extractor.enableFeatureClassByName(kind)
            features = extractor.execute(
                *(str(folder / f"{image_of(case)}_{part}.nrrd") for part in ("image", "label"))
            )
        expected = values_of(cells)
        assert {name.rpartition("_")[2] for name in expected} == set(CLASSES[kind])
        require_equal(features, expected, TOLERANCE.get((kind, case), 1e-9))
        cases += 1
    assert cases >= 4


def has_default_settings(settings: dict[str, Any]) -> bool:
    """Return whether the published settings equal those of this package, except for the intensity offset."""
    unset = ("normalize", "force2D", "resampledPixelSpacing", "resegmentRange", "weightingNorm", "binCount", "gldm_a")
    return settings.get("binWidth", 25) == 25 and not any(settings.get(name) for name in unset)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("kind", CLASSES)
def test_fast_path_reproduces_published_values(shared_data, kind, image):
    """The fast path's matrices and formulas reproduce the published values of every class."""
    import SimpleITK

    folder = shared_data / "pyradiomics-baseline"
    cells = published(folder, kind)[image]
    assert has_default_settings(settings_of(cells))
    intensity, label = (SimpleITK.ReadImage(str(folder / f"{image}_{part}.nrrd")) for part in ("image", "label"))
    x, y, z = intensity.GetSpacing()
    region = find_region(SimpleITK.GetArrayFromImage(label) == settings_of(cells)["label"])
    if kind == "shape":
        features = {f"original_shape_{n}": v for n, v in shape_features(region.mask_DHW, (z, y, x)).items()}
    else:
        values_N = SimpleITK.GetArrayFromImage(intensity)[region.box][region.mask_DHW]
        features = {f"original_{n}": v for n, v in image_features(values_N, region, (z, y, x)).items()}
    shifted = SHIFTED if settings_of(cells).get("voxelArrayShift") and kind == "firstorder" else set()
    expected = {n: v for n, v in values_of(cells).items() if n.rpartition("_")[2] not in shifted}
    assert len(expected) == len(CLASSES[kind]) - len(shifted)
    require_equal(features, expected, TOLERANCE.get((kind, image), 1e-9))
