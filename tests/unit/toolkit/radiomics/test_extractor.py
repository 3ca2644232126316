"""Extraction of the 1,781 features: names, order, and the fast path against one call of pyradiomics."""

from __future__ import annotations

import numpy as np
import pytest

import tmi.toolkit.radiomics.extractor as extractor
import tmi.toolkit.radiomics.fast_extractor as fast_extractor
from factories.real_case import LIVER_LABEL, write_real_case
from tmi.toolkit.cases.case import open_case
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import Volume, read_ct, read_mask
from tmi.toolkit.radiomics.extractor import extract, extract_reference, extract_with_note
from tmi.toolkit.radiomics.feature_names import CLASS_FEATURES, FEATURE_NAMES, IMAGE_TYPES, SHAPE_FEATURES
from tmi.toolkit.radiomics.formulas.shape_mesh import measure_mesh
from tmi.toolkit.radiomics.pyradiomics import load, pyradiomics_quiet, reference_extractor
from tmi.toolkit.radiomics.table import missing_features
from tmi.toolkit.radiomics.whole_filters import filters_match

TOLERANCE = 1e-6


def volumes(ct_DHW, mask_DHW, spacing_DHW_mm=(2.5, 0.9, 0.7)) -> tuple[Volume, Volume]:
    affine = np.diag([*spacing_DHW_mm[::-1], 1.0])
    return Volume(array_DHW=ct_DHW, affine_xyz=affine), Volume(array_DHW=mask_DHW, affine_xyz=affine)


def require_equal(actual_F, expected_F) -> None:
    """Require NaN at the same features and a relative error of at most 1e-6 elsewhere."""
    differ = np.flatnonzero(np.isnan(actual_F) != np.isnan(expected_F))
    assert not len(differ), f"missing in one of the two only: {FEATURE_NAMES[differ[0]]}"
    error_F = np.abs(actual_F - expected_F) / np.where(expected_F == 0, 1e-300, np.abs(expected_F))
    error_F[(actual_F == expected_F) | np.isnan(expected_F)] = 0
    worst = int(error_F.argmax())
    assert error_F[worst] <= TOLERANCE, f"{FEATURE_NAMES[worst]}: {actual_F[worst]!r} for {expected_F[worst]!r}"


def test_feature_names_are_1781_in_fixed_order():
    """Names are unique, and their number is the sum over classes and image types."""
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == 1781
    assert (FEATURE_NAMES[0], FEATURE_NAMES[-1]) == ("original_shape_Elongation", "gradient_ngtdm_Strength")
    assert len(IMAGE_TYPES) == 19
    counts = {kind: len(names) for kind, names in CLASS_FEATURES.items()}
    assert counts == {"firstorder": 18, "glcm": 24, "glrlm": 16, "glszm": 16, "gldm": 14, "ngtdm": 5}
    assert len(SHAPE_FEATURES) + len(IMAGE_TYPES) * sum(counts.values()) == 1781


@pytest.fixture(scope="module")
def blob() -> tuple[Volume, Volume]:
    """A CT of noise, 24 x 30 x 28 voxels, and an ellipsoid mask with a ragged surface."""
    rng = np.random.default_rng(1)
    z, y, x = np.mgrid[:24, :30, :28]
    mask_DHW = ((z - 11) / 7) ** 2 + ((y - 15) / 11) ** 2 + ((x - 13) / 9) ** 2 < 1 + rng.normal(0, 0.1, (24, 30, 28))
    return volumes(rng.normal(70, 60, mask_DHW.shape).astype(np.int16), mask_DHW)


def test_names_and_order_match_pyradiomics(blob):
    """Pyradiomics returns exactly `FEATURE_NAMES`, in that order."""
    ct, mask = blob
    image, region = (extractor.to_image(v.array_DHW, ct.spacing_DHW_mm) for v in (ct, mask))
    with pyradiomics_quiet():
        assert tuple(reference_extractor().execute(image, region)) == FEATURE_NAMES


MASKS = {
    "ragged blob": lambda full, rng: full & (rng.random(full.shape) < 0.9),
    "touching the volume's ends": lambda full, rng: rng.random(full.shape) < 0.7,
    "one slice": lambda full, rng: _plane(full, 0),
    "one sagittal plane": lambda full, rng: _plane(full, 2),
    "27 voxels": lambda full, rng: _cube(full, 3),
    "two voxels": lambda full, rng: _two_voxels(full),
    "scattered": lambda full, rng: rng.random(full.shape) < 0.03,
    "two parts": lambda full, rng: _two_parts(full),
}


def _plane(full, axis):
    mask = np.zeros_like(full)
    index = [slice(1, -1)] * 3
    index[axis] = 4
    mask[tuple(index)] = True
    return mask


def _cube(full, edge):
    mask = np.zeros_like(full)
    mask[2 : 2 + edge, 3 : 3 + edge, 4 : 4 + edge] = True
    return mask


def _two_voxels(full):
    mask = np.zeros_like(full)
    mask[3, 4, 5] = mask[4, 5, 5] = True
    return mask


def _two_parts(full):
    mask = _cube(full, 3)
    mask[-3:, -3:, -3:] = True
    return mask


@pytest.mark.parametrize("dtype", [np.int16, np.float32], ids=["int16", "float32"])
@pytest.mark.parametrize("name", MASKS)
def test_fast_path_equals_reference_for_every_mask(name, dtype):
    """Fast and reference path agree to 1e-6 for masks of every shape, on int16 and float32 CTs."""
    rng = np.random.default_rng([len(name), np.dtype(dtype).itemsize])
    shape = tuple(int(n) for n in rng.integers(9, 14, 3))
    ct_DHW = rng.normal(60, 45, shape).astype(dtype)
    mask_DHW = MASKS[name](np.ones(shape, dtype=np.bool_), rng)
    ct, mask = volumes(ct_DHW, mask_DHW, tuple(rng.uniform(0.6, 5.0, 3)))
    require_equal(extract(ct, mask, jobs=1), extract_reference(ct, mask))


CONTENTS = {
    "a flat CT": lambda rng, shape: np.full(shape, 75, dtype=np.int16),
    "a flat CT of floats": lambda rng, shape: np.full(shape, 75.3, dtype=np.float32),
    "negative values only": lambda rng, shape: rng.normal(-300, 40, shape).astype(np.int16),
    "metal": lambda rng, shape: np.where(rng.random(shape) < 0.02, 3071, rng.normal(50, 30, shape)).astype(np.int16),
    "edges of bins": lambda rng, shape: (rng.integers(-4, 5, shape) * 25).astype(np.int16),
    "below one unit": lambda rng, shape: rng.uniform(-0.5, 0.5, shape).astype(np.float32),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_fast_path_equals_reference_for_every_content(name):
    """Fast and reference path agree to 1e-6 for constant, negative, extreme and bin-edge intensities."""
    rng = np.random.default_rng(len(name))
    shape = (9, 11, 10)
    ct, mask = volumes(CONTENTS[name](rng, shape), rng.random(shape) < 0.5, (3.0, 1.0, 1.0))
    require_equal(extract(ct, mask, jobs=1), extract_reference(ct, mask))


def test_ct_too_thin_for_filter_has_missing_features():
    """Both paths give NaN for the widest Laplacian of Gaussian if the CT is too thin for it, and only for that."""
    rng = np.random.default_rng(5)
    ct, mask = volumes(rng.normal(60, 30, (5, 12, 12)).astype(np.int16), rng.random((5, 12, 12)) < 0.5, (1.0, 1.0, 1.0))
    values_F = extract(ct, mask, jobs=1)
    require_equal(values_F, extract_reference(ct, mask))
    missing = {n.partition("_")[0] for n in missing_features(values_F)}
    assert missing == {"log-sigma-5-0-mm-3D"}


def test_number_of_jobs_does_not_change_values(blob):
    """The values are bitwise equal for any number of threads."""
    single_F = extract(*blob, jobs=1)
    np.testing.assert_array_equal(extract(*blob, jobs=3), single_F)
    np.testing.assert_array_equal(extract(*blob), single_F)


def test_fast_path_equals_reference_on_real_liver(shared_data, tmp_path):
    """On a real liver all features are finite and agree to 1e-6."""
    case = open_case(write_real_case(tmp_path / "R001", shared_data), mask_label=LIVER_LABEL)
    ct = read_ct(case)
    mask = read_mask(case, ct)
    assert mask.array_DHW.sum() == 41692
    values_F = extract(ct, mask)
    require_equal(values_F, extract_reference(ct, mask))
    assert np.isfinite(values_F).all()


def test_filter_check_detects_one_bit_differences(monkeypatch):
    """`filters_match` holds for the installed packages and fails if any filter rounds differently."""
    assert filters_match()
    import tmi.toolkit.radiomics.image_filters as filters

    for name in ("laplacian_of_gaussian", "_gradient", "_exponential"):
        with pytest.MonkeyPatch.context() as patch:
            if name in ("_gradient", "_exponential"):
                exact = filters.POINTWISE[name[1:]]
                patch.setitem(
                    filters.POINTWISE, name[1:], lambda s, exact=exact: np.nextafter(exact(s), np.float32(9e9))
                )
            else:
                exact = filters.laplacian_of_gaussian
                patch.setattr(filters, name, lambda s, sigma, exact=exact: exact(s, sigma) * np.float32(1.0000002))
            assert not filters_match.__wrapped__(), name


def test_unsupported_packages_use_reference_with_warning(monkeypatch, blob):
    """If the fast filters differ with the installed packages, the whole CT is filtered, and the case reports it."""
    expected_F = extract(*blob)
    monkeypatch.setattr(fast_extractor, "filters_match", lambda: False)
    extracted = extract_with_note(*blob)
    assert "image filters differ" in (extracted.note or "")
    np.testing.assert_array_equal(extracted.values_F, expected_F)
    with pytest.warns(RuntimeWarning, match="extracted by the slow reference path"):
        extract(*blob)


EMPTY = np.zeros((6, 7, 8), dtype=np.bool_)


def _with(*indices):
    mask = EMPTY.copy()
    for index in indices:
        mask[index] = True
    return mask


@pytest.mark.parametrize("path", [extract, extract_reference], ids=["fast", "reference"])
@pytest.mark.parametrize(
    ("mask_DHW", "message"),
    [
        (EMPTY, "too small for radiomics"),
        (_with((1, 2, 3)), "too small for radiomics"),
        (_with((1, 2, 3), (4, 2, 3)), "too small for radiomics"),
        (~EMPTY, "covers the whole CT"),
    ],
    ids=["empty", "one voxel", "a line", "whole CT"],
)
def test_mask_without_texture_is_rejected(path, mask_DHW, message):
    """Both paths reject a mask that is empty, one voxel, one line or the whole CT."""
    ct, mask = volumes(np.arange(336, dtype=np.int16).reshape(6, 7, 8), mask_DHW)
    with pytest.raises(InputRejectedError, match=message) as error:
        path(ct, mask)
    assert error.value.code == "radiomics-mask"


def test_ct_of_zeros_is_rejected():
    """A CT that is zero everywhere is rejected before any filter divides by its largest intensity."""
    ct, mask = volumes(np.zeros((6, 7, 8), dtype=np.int16), _with((1, 2, 3), (2, 3, 3)))
    with pytest.raises(InputRejectedError, match="zero everywhere"):
        extract(ct, mask)


@pytest.mark.parametrize("seed", range(6))
def test_mesh_equals_pyradiomics_c_code(seed):
    """Area, volume and diameters of random masks equal those of pyradiomics' C code."""
    rng = np.random.default_rng(seed)
    mask_DHW = rng.random(tuple(rng.integers(2, 20, 3))) < rng.choice([0.1, 0.5, 0.9])
    mask_DHW[0, 0, 0] = mask_DHW[-1, -1, -1] = True
    spacing = tuple(float(s) for s in rng.uniform(0.5, 5.0, 3))
    mesh = measure_mesh(mask_DHW, spacing)
    area, volume, diameters = load().cShape.calculate_coefficients(np.pad(mask_DHW, 1), np.array(spacing))
    assert mesh.area_mm2 == pytest.approx(area, rel=1e-9)
    assert mesh.volume_mm3 == pytest.approx(volume, rel=1e-9)
    assert mesh.diameters_mm == pytest.approx(diameters, rel=1e-12)
