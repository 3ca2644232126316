"""Texture formulas, zones, mesh and whole-CT filters against pyradiomics, to the last bit."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import tmi.toolkit.radiomics.features as features
from factories.pyradiomics_formulas import pyradiomics_formulas, zones_of_c_code
from tmi.toolkit.compute.silence import quiet
from tmi.toolkit.errors import InputRejectedError, UnavailableError
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.radiomics.extractor import extract
from tmi.toolkit.radiomics.formulas import shape_mesh
from tmi.toolkit.radiomics.image_filters import to_image
from tmi.toolkit.radiomics.mask_region import find_region
from tmi.toolkit.radiomics.pyradiomics import load, pyradiomics_quiet
from tmi.toolkit.radiomics.settings import SETTINGS
from tmi.toolkit.radiomics.texture_matrices import count_zones, sort_into_levels
from tmi.toolkit.radiomics.whole_filters import every_whole_image, noise_volume

MANY_LEVELS = "more than 255 levels"
"""Left out where the time grows with the third power of the number of levels."""
SHAPES = {
    "blob": (9, 12, 11),
    "one slice": (1, 14, 13),
    "one plane of one column": (7, 1, 2),
    "two voxels": (1, 1, 2),
    "larger": (16, 18, 17),
}
CONTENTS = {
    "noise": lambda rng, n: rng.normal(60, 90, n),
    "one level": lambda rng, n: np.full(n, 75.0),
    "two levels": lambda rng, n: rng.integers(0, 2, n) * 40.0,
    "few large zones": lambda rng, n: np.where(np.arange(n) < n // 2, 10.0, 90.0),
    MANY_LEVELS: lambda rng, n: rng.uniform(-9000, 9000, n),
}


def region_of(shape, rng):
    mask_DHW = rng.random(shape) < 0.8
    mask_DHW.flat[0] = mask_DHW.flat[-1] = True
    return find_region(mask_DHW)


@pytest.mark.parametrize("content", [c for c in CONTENTS if c != MANY_LEVELS])
@pytest.mark.parametrize("shape", SHAPES)
def test_texture_features_have_the_bits_of_pyradiomics(shape, content):
    """The features of the five texture classes equal those of pyradiomics' own methods on the same matrices."""
    rng = np.random.default_rng([len(shape), len(content)])
    region = region_of(SHAPES[shape], rng)
    values_N = CONTENTS[content](rng, region.count).astype(np.float32)
    with quiet():
        actual = features.image_features(values_N, region, (2.5, 0.9, 0.7))
    levels = sort_into_levels(values_N, features.bin_edges(values_N))
    for kind, named in pyradiomics_formulas(region, levels).items():
        for name, value in named.items():
            np.testing.assert_array_equal(np.asarray(actual[f"{kind}_{name}"]), value, err_msg=f"{kind}_{name}")


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_zones_equal_those_of_pyradiomics_c_code(shape, content):
    """Zones and their sizes are the same, and so is the memory layout, by which numpy's sums round."""
    rng = np.random.default_rng([len(shape), len(content)])
    region = region_of(SHAPES[shape], rng)
    levels = sort_into_levels(*(lambda v: (v, features.bin_edges(v)))(CONTENTS[content](rng, region.count)))
    actual_LS, sizes_S = count_zones(region, levels)
    expected_LS, expected_S = zones_of_c_code(region, levels)
    np.testing.assert_array_equal(sizes_S, expected_S)
    np.testing.assert_array_equal(actual_LS, expected_LS)
    assert actual_LS.sum(axis=0).tobytes() == expected_LS.sum(axis=0).tobytes()


@pytest.mark.parametrize("spacing", [(2.5, 0.9, 0.7), (1.0, 1.0, 1.0), (5.0, 0.683594, 0.683594)])
def test_surface_of_every_cube_has_the_bits_of_pyradiomics(spacing):
    """Area, volume and change of volume of the 256 kinds of cube equal those of the C code."""
    measure = load().cShape.calculate_coefficients
    area, volume, shifts = shape_mesh._cube_measures(spacing)
    corners = np.array([[(kind >> bit) & 1 for bit in range(8)] for kind in range(256)], dtype=np.int8)
    corners = corners.reshape(256, 2, 2, 2)
    expected = np.array([measure(cube, np.array(spacing))[:2] for cube in corners])
    np.testing.assert_array_equal(area, expected[:, 0])
    np.testing.assert_array_equal(volume, expected[:, 1])
    for kind, cube in enumerate(corners):
        for axis in range(3):
            first = cube.take([0], axis=axis)
            both = measure(np.concatenate([first, cube], axis=axis), np.array(spacing))[1]
            before = int((np.concatenate([first, first], axis=axis).ravel().astype(np.int64) << np.arange(8)).sum())
            assert shifts[kind, axis] == both - expected[before, 1] - expected[kind, 1]


def test_whole_filters_have_the_bits_of_pyradiomics():
    """Each of the 19 image types on the whole CT equals pyradiomics' image, voxel by voxel."""
    import SimpleITK

    source = noise_volume()
    images = every_whole_image(source)
    image = to_image(source.ct_DHW, source.spacing_DHW_mm)
    with pyradiomics_quiet():
        for image_type, options in SETTINGS["imageType"].items():
            for filtered, name, _ in getattr(load().imageoperations, f"get{image_type}Image")(image, None, **options):
                expected_N = SimpleITK.GetArrayFromImage(filtered)[source.box][source.mask_DHW]
                np.testing.assert_array_equal(images.pop(name), expected_N, err_msg=name)
    assert images == {}


def small_case(value=60):
    rng = np.random.default_rng(3)
    ct_DHW = rng.normal(60, 30, (10, 11, 12)).astype(np.int16)
    mask_DHW = np.zeros(ct_DHW.shape, dtype=np.bool_)
    mask_DHW[2:7, 3:8, 3:9] = True
    ct_DHW[4, 5, 6] = value
    return tuple(Volume(array_DHW=a, affine_xyz=np.eye(4)) for a in (ct_DHW, mask_DHW))


def test_extraction_needs_no_pyradiomics(monkeypatch):
    """The same values come out where pyradiomics cannot be imported."""
    expected_F = extract(*small_case(), jobs=1)
    for module in [name for name in sys.modules if name.partition(".")[0] == "radiomics"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "radiomics", None)
    np.testing.assert_array_equal(extract(*small_case(), jobs=1), expected_F)
    with pytest.raises(UnavailableError, match="comparing with pyradiomics needs the package radiomics"):
        load()


@pytest.mark.parametrize(("module", "package"), [("SimpleITK", "SimpleITK"), ("pywt", "PyWavelets")])
def test_missing_library_is_named_with_its_extra(monkeypatch, module, package):
    """Without one of the libraries, the error names the package and the extra that installs it."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnavailableError, match=f"needs the package {package}, which is not installed") as error:
        extract(*small_case(), jobs=1)
    assert "pip install 'tmi-clnet[radiomics]'" in (error.value.fix or "")


@pytest.mark.parametrize("value", [-32768, 32767])
def test_intensity_at_the_limits_of_int16_is_rejected(value):
    """The bins of such a voxel overflow; the case is rejected with its reason."""
    with pytest.raises(InputRejectedError, match="radiomics of CT and mask") as error:
        extract(*small_case(value), jobs=1)
    assert error.value.code == "radiomics-failed"
