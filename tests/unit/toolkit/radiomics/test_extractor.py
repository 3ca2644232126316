"""The 1,781 features: their names and order, and the quick road against one plain call of pyradiomics."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tmi.toolkit.radiomics.extractor as radiomics
import tmi.toolkit.radiomics.fast_extractor as quick
from factories.real_case import LIVER_LABEL, write_real_case
from tmi.toolkit.cases.case import open_case
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import Volume, read_ct, read_mask
from tmi.toolkit.radiomics.extractor import extract, extract_reference, extract_with_note
from tmi.toolkit.radiomics.feature_names import CLASS_FEATURES, FEATURE_NAMES, IMAGE_TYPES, SHAPE_FEATURES
from tmi.toolkit.radiomics.image_filters import matches_pyradiomics
from tmi.toolkit.radiomics.pyradiomics import load, pyradiomics_quiet, reference_extractor
from tmi.toolkit.radiomics.shape_mesh import measure_mesh

TOLERANCE = 1e-6


def volumes(ct_DHW, mask_DHW, spacing_DHW_mm=(2.5, 0.9, 0.7)) -> tuple[Volume, Volume]:
    affine = np.diag([*spacing_DHW_mm[::-1], 1.0])
    return Volume(array_DHW=ct_DHW, affine_xyz=affine), Volume(array_DHW=mask_DHW, affine_xyz=affine)


def require_equal(found_F, plain_F) -> None:
    """NaN in the same places; elsewhere equal to 1e-6 of the plain value."""
    differ = np.flatnonzero(np.isnan(found_F) != np.isnan(plain_F))
    assert not len(differ), f"missing in one of the two only: {FEATURE_NAMES[differ[0]]}"
    error_F = np.abs(found_F - plain_F) / np.where(plain_F == 0, 1e-300, np.abs(plain_F))
    error_F[(found_F == plain_F) | np.isnan(plain_F)] = 0
    worst = int(error_F.argmax())
    assert error_F[worst] <= TOLERANCE, f"{FEATURE_NAMES[worst]}: {found_F[worst]!r} for {plain_F[worst]!r}"


def test_there_are_1781_names_in_one_fixed_order():
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == 1781
    assert (FEATURE_NAMES[0], FEATURE_NAMES[-1]) == ("original_shape_Elongation", "gradient_ngtdm_Strength")
    assert len(IMAGE_TYPES) == 19
    counts = {kind: len(names) for kind, names in CLASS_FEATURES.items()}
    assert counts == {"firstorder": 18, "glcm": 24, "glrlm": 16, "glszm": 16, "gldm": 14, "ngtdm": 5}
    assert len(SHAPE_FEATURES) + len(IMAGE_TYPES) * sum(counts.values()) == 1781


@pytest.fixture(scope="module")
def blob() -> tuple[Volume, Volume]:
    """Noise of 24 x 30 x 28 voxels and a ragged mask inside."""
    rng = np.random.default_rng(1)
    z, y, x = np.mgrid[:24, :30, :28]
    inside = ((z - 11) / 7) ** 2 + ((y - 15) / 11) ** 2 + ((x - 13) / 9) ** 2 < 1 + rng.normal(0, 0.1, (24, 30, 28))
    return volumes(rng.normal(70, 60, inside.shape).astype(np.int16), inside)


def test_the_names_are_what_pyradiomics_gives_in_its_order(blob):
    ct, mask = blob
    image, region = (radiomics.to_image(v.array_DHW, ct.spacing_DHW_mm) for v in (ct, mask))
    with pyradiomics_quiet():
        assert tuple(reference_extractor().execute(image, region)) == FEATURE_NAMES


SHAPES = {
    "ragged blob": lambda inside, rng: inside & (rng.random(inside.shape) < 0.9),
    "touching the volume's ends": lambda inside, rng: rng.random(inside.shape) < 0.7,
    "one slice": lambda inside, rng: _only(inside, 0),
    "one sagittal plane": lambda inside, rng: _only(inside, 2),
    "27 voxels": lambda inside, rng: _cube(inside, 3),
    "two voxels": lambda inside, rng: _two(inside),
    "scattered": lambda inside, rng: rng.random(inside.shape) < 0.03,
    "two parts": lambda inside, rng: _parts(inside),
}


def _only(inside, axis):
    answer = np.zeros_like(inside)
    place = [slice(1, -1)] * 3
    place[axis] = 4
    answer[tuple(place)] = True
    return answer


def _cube(inside, edge):
    answer = np.zeros_like(inside)
    answer[2 : 2 + edge, 3 : 3 + edge, 4 : 4 + edge] = True
    return answer


def _two(inside):
    answer = np.zeros_like(inside)
    answer[3, 4, 5] = answer[4, 5, 5] = True
    return answer


def _parts(inside):
    answer = _cube(inside, 3)
    answer[-3:, -3:, -3:] = True
    return answer


@pytest.mark.parametrize("dtype", [np.int16, np.float32], ids=["int16", "float32"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_quick_road_equals_the_plain_one_for_every_shape_of_mask(name, dtype):
    rng = np.random.default_rng([len(name), np.dtype(dtype).itemsize])
    shape = tuple(int(n) for n in rng.integers(9, 14, 3))
    ct_DHW = rng.normal(60, 45, shape).astype(dtype)
    mask_DHW = SHAPES[name](np.ones(shape, dtype=np.bool_), rng)
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
def test_the_quick_road_equals_the_plain_one_for_every_content(name):
    rng = np.random.default_rng(len(name))
    shape = (9, 11, 10)
    ct, mask = volumes(CONTENTS[name](rng, shape), rng.random(shape) < 0.5, (3.0, 1.0, 1.0))
    require_equal(extract(ct, mask, jobs=1), extract_reference(ct, mask))


def test_a_ct_too_thin_for_a_filter_lacks_its_features_on_both_roads():
    rng = np.random.default_rng(5)
    ct, mask = volumes(rng.normal(60, 30, (5, 12, 12)).astype(np.int16), rng.random((5, 12, 12)) < 0.5, (1.0, 1.0, 1.0))
    found_F = extract(ct, mask, jobs=1)
    require_equal(found_F, extract_reference(ct, mask))
    missing = {n.partition("_")[0] for n in radiomics.missing_features(found_F)}
    assert missing == {"log-sigma-5-0-mm-3D"}


def test_the_number_of_jobs_changes_no_bit(blob):
    one_F = extract(*blob, jobs=1)
    np.testing.assert_array_equal(extract(*blob, jobs=3), one_F)
    np.testing.assert_array_equal(extract(*blob), one_F)


def test_the_real_liver_is_equal_on_every_feature(shared_data, tmp_path):
    case = open_case(write_real_case(tmp_path / "R001", shared_data), mask_label=LIVER_LABEL)
    ct = read_ct(case)
    mask = read_mask(case, ct)
    assert mask.array_DHW.sum() == 41692
    found_F = extract(ct, mask)
    require_equal(found_F, extract_reference(ct, mask))
    assert np.isfinite(found_F).all()


def test_filters_are_checked_bit_for_bit_and_a_difference_is_noticed(monkeypatch):
    assert matches_pyradiomics()
    import tmi.toolkit.radiomics.image_filters as filters

    for name in ("laplacian_of_gaussian", "_gradient", "_exponential"):
        with pytest.MonkeyPatch.context() as patch:
            if name in ("_gradient", "_exponential"):
                true = filters.POINTWISE[name[1:]]
                patch.setitem(filters.POINTWISE, name[1:], lambda s, true=true: np.nextafter(true(s), np.float32(9e9)))
            else:
                whole = filters.laplacian_of_gaussian
                patch.setattr(filters, name, lambda s, sigma, whole=whole: whole(s, sigma) * np.float32(1.0000002))
            assert not matches_pyradiomics.__wrapped__(), name


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (lambda patch: patch.setattr(quick, "matches_pyradiomics", lambda: False), "filter otherwise"),
        (lambda patch: patch.setattr(quick, "is_pinned", lambda: False), "was checked against 3.0.1"),
    ],
    ids=["filters", "version"],
)
def test_where_the_quick_road_does_not_hold_the_plain_one_is_taken_and_told(monkeypatch, blob, plant, told):
    plant(monkeypatch)
    monkeypatch.setattr(radiomics, "extract_reference", lambda ct, mask: np.full(1781, math.pi))
    extracted = extract_with_note(*blob)
    assert told in (extracted.note or "")
    assert extracted.values_F[0] == math.pi
    with pytest.warns(RuntimeWarning, match="extracted the slow way"):
        extract(*blob)


EMPTY = np.zeros((6, 7, 8), dtype=np.bool_)


def _with(*places):
    answer = EMPTY.copy()
    for place in places:
        answer[place] = True
    return answer


@pytest.mark.parametrize("road", [extract, extract_reference], ids=["quick", "plain"])
@pytest.mark.parametrize(
    ("mask_DHW", "told"),
    [
        (EMPTY, "too small for radiomics"),
        (_with((1, 2, 3)), "too small for radiomics"),
        (_with((1, 2, 3), (4, 2, 3)), "too small for radiomics"),
        (~EMPTY, "covers the whole CT"),
    ],
    ids=["empty", "one voxel", "a line", "everything"],
)
def test_a_mask_without_texture_is_refused(road, mask_DHW, told):
    ct, mask = volumes(np.arange(336, dtype=np.int16).reshape(6, 7, 8), mask_DHW)
    with pytest.raises(InputRejectedError, match=told) as refused:
        road(ct, mask)
    assert refused.value.code == "radiomics-mask"


def test_a_ct_of_zeros_is_refused():
    ct, mask = volumes(np.zeros((6, 7, 8), dtype=np.int16), _with((1, 2, 3), (2, 3, 3)))
    with pytest.raises(InputRejectedError, match="zero everywhere"):
        extract(ct, mask)


@pytest.mark.parametrize("seed", range(6))
def test_the_mesh_equals_that_of_the_c_code(seed):
    rng = np.random.default_rng(seed)
    mask_DHW = rng.random(tuple(rng.integers(2, 20, 3))) < rng.choice([0.1, 0.5, 0.9])
    mask_DHW[0, 0, 0] = mask_DHW[-1, -1, -1] = True
    spacing = tuple(float(s) for s in rng.uniform(0.5, 5.0, 3))
    mesh = measure_mesh(mask_DHW, spacing)
    area, volume, diameters = load().cShape.calculate_coefficients(np.pad(mask_DHW, 1), np.array(spacing))
    assert mesh.area_mm2 == pytest.approx(area, rel=1e-9)
    assert mesh.volume_mm3 == pytest.approx(volume, rel=1e-9)
    assert mesh.diameters_mm == pytest.approx(diameters, rel=1e-12)
