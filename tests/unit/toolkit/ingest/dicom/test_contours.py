"""Combination of the contours of one plane: repeats, holes, islands, crossings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from factories.dicom_series import SeriesSpec, liver_contour, make_slices, write_rtstruct, write_slices
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.ingest.dicom import contours
from tmi.toolkit.ingest.dicom.contours import Contour, FilledPlane, fill_contours
from tmi.toolkit.ingest.dicom.ct import read_dicom_ct
from tmi.toolkit.ingest.image_files import LoadedCt
from tmi.toolkit.ingest.mask_importer import ImportedMask, import_mask

SHAPE = (60, 50)


def box(u0: float, u1: float, v0: float, v1: float) -> np.ndarray:
    return np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]])


def pixels(u0: int, u1: int, v0: int, v1: int) -> np.ndarray:
    """Pixels of `box(u0 - 0.5, u1 - 0.5, v0 - 0.5, v1 - 0.5)`."""
    mask = np.zeros(SHAPE, dtype=bool)
    mask[u0:u1, v0:v1] = True
    return mask


OUTER, OUTER_PIXELS = box(9.5, 39.5, 9.5, 29.5), pixels(10, 40, 10, 30)
HOLE, HOLE_PIXELS = box(14.5, 24.5, 14.5, 24.5), pixels(15, 25, 15, 25)
ISLAND, ISLAND_PIXELS = box(17.5, 20.5, 17.5, 20.5), pixels(18, 21, 18, 21)


def fill(*polygons: np.ndarray, xor: bool = False) -> FilledPlane:
    return fill_contours([Contour(points=p, is_xor=xor) for p in polygons], SHAPE)


REPEATS = {
    "same points": OUTER,
    "other start point": np.roll(OUTER, 2, axis=0),
    "other direction": OUTER[::-1],
    "closed by its first point": np.concatenate([OUTER, OUTER[:1]]),
    "rounded": OUTER + 2e-4,
}


@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize("times", [1, 2])
def test_repeated_contour_counts_once(repeat, times):
    """An exact repeat changes nothing, however often it occurs and whatever its start and direction."""
    filled = fill(OUTER, *[REPEATS[repeat]] * times)
    assert np.array_equal(filled.mask, OUTER_PIXELS)
    assert (filled.united, filled.self_crossing) == (0, 0)


@pytest.mark.parametrize("rounds", [2, 3])
def test_contour_traced_several_times_counts_once(rounds):
    """One contour whose points go round twice is filled, not emptied."""
    filled = fill(np.concatenate([OUTER] * rounds))
    assert np.array_equal(filled.mask, OUTER_PIXELS)
    assert filled.self_crossing == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_nested_contours_are_holes_and_islands(order):
    """A contour inside another is a hole, one inside the hole an island, repeats of each notwithstanding."""
    nested = [OUTER, HOLE, ISLAND]
    filled = fill(*[nested[k] for k in order], HOLE, OUTER)
    assert np.array_equal(filled.mask, OUTER_PIXELS & ~HOLE_PIXELS | ISLAND_PIXELS)
    assert filled.united == 0


def test_crossing_contours_are_united():
    """Two contours that overlap leave no hole; a hole of the overlap stays one."""
    left, right = box(9.5, 27.5, 9.5, 29.5), box(12.5, 39.5, 9.5, 29.5)
    assert np.array_equal(fill(left, right).mask, OUTER_PIXELS)
    filled = fill(left, right, HOLE)
    assert np.array_equal(filled.mask, OUTER_PIXELS & ~HOLE_PIXELS)
    assert filled.united == 2


def test_chain_of_crossing_contours_is_one_region():
    """Contours that cross only by way of others are united, and apart from them a far contour stays."""
    chain = [box(4.5 + 8 * k, 14.5 + 8 * k, 9.5, 29.5) for k in range(5)]
    filled = fill(*chain[::2], *chain[1::2], box(9.5, 12.5, 39.5, 42.5))
    assert np.array_equal(filled.mask, pixels(5, 47, 10, 30) | pixels(10, 13, 40, 43))
    assert filled.united == 5


@pytest.mark.parametrize("scale", [0.97, 0.999, 1.02])
def test_near_repeat_is_united(scale):
    """A contour drawn twice with small differences leaves no thin ring, and is reported."""
    centre = OUTER.mean(axis=0)
    filled = fill(OUTER, centre + (OUTER - centre) * scale)
    assert filled.mask.sum() >= OUTER_PIXELS.sum()
    assert filled.united == 2


def test_keyhole_is_a_hole():
    """One contour that encloses its hole by a channel is filled without the hole."""
    keyhole = np.concatenate([OUTER, OUTER[:1], HOLE[:1], HOLE[:0:-1], HOLE[:1]])
    filled = fill(keyhole)
    assert np.array_equal(filled.mask, OUTER_PIXELS & ~HOLE_PIXELS)
    assert filled.self_crossing == 0


def test_contour_that_crosses_itself_is_reported():
    """A contour whose filled area differs from the area of its points is counted."""
    loop = np.concatenate([OUTER, OUTER[:1], HOLE, HOLE[:1]])  # both rounds in one direction
    assert fill(loop).self_crossing == 1
    bow = np.array([[9.5, 9.5], [39.5, 29.5], [39.5, 9.5], [9.5, 29.5]])
    assert fill(bow).self_crossing == 1


def test_xor_contours_follow_the_standard():
    """Contours of type CLOSEDPLANAR_XOR cancel where they overlap."""
    assert not fill(OUTER, OUTER, xor=True).mask.any()
    mixed = [Contour(points=OUTER), Contour(points=HOLE, is_xor=True), Contour(points=OUTER)]
    assert np.array_equal(fill_contours(mixed, SHAPE).mask, OUTER_PIXELS & ~HOLE_PIXELS)


def test_many_overlapping_contours_are_rejected(monkeypatch):
    """The number of contours that are compared in pairs is bounded; disjoint ones are not counted."""
    monkeypatch.setattr(contours, "MAX_OVERLAPPING", 3)
    apart = [box(k - 0.4, k + 0.4, 0, 3) for k in range(9)]
    assert fill(*apart).mask.sum() == 9 * 3
    with pytest.raises(ValueError, match="overlapping"):
        fill(*[box(k - 0.4, k + 5.4, 0, 3) for k in range(4)])


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> LoadedCt:
    series = write_slices(tmp_path_factory.mktemp("series"), make_slices())
    return read_dicom_ct(series, series=None, fixes=(), case_id="x")


def imported(path: Path, ct: LoadedCt, drawn: list[np.ndarray]) -> ImportedMask:
    write_rtstruct(path, make_slices()[0], {"Liver": drawn})
    return import_mask(path, ct, wanted=None, fixes=(), case_id="x")


def liver(k: int, scale: float = 1.0) -> np.ndarray:
    contour = liver_contour(SeriesSpec(), k, scale=scale)
    assert contour is not None
    return contour


def test_file_with_repeated_contours_gives_the_same_mask(ct, tmp_path):
    """Repeats on two slices of an RTSTRUCT change no voxel and need no warning."""
    drawn = [liver(k) for k in range(8, 18)]
    plain = imported(tmp_path / "plain.dcm", ct, drawn)
    repeated = imported(tmp_path / "repeated.dcm", ct, [*drawn, drawn[3], drawn[5][::-1]])
    assert np.array_equal(plain.volume.array_DHW, repeated.volume.array_DHW)
    assert plain.findings == repeated.findings == ()


def test_file_with_crossing_contours_is_reported(ct, tmp_path):
    """Crossing contours of an RTSTRUCT are united and give `mask-contours` with the number of slices."""
    drawn = [liver(k) for k in range(8, 18)]
    shifted = [c + np.array([14.0, 0.0, 0.0]) for c in drawn[:4]]
    result = imported(tmp_path / "rt.dcm", ct, drawn + shifted)
    plain = imported(tmp_path / "plain.dcm", ct, drawn)
    assert result.volume.array_DHW[plain.volume.array_DHW].all()
    assert result.volume.array_DHW.sum() > plain.volume.array_DHW.sum()
    assert [f.code for f in result.findings] == ["mask-contours"]
    assert "on 4 slices" in result.findings[0].message


def test_slice_whose_contours_enclose_nothing_is_reported(ct, tmp_path):
    """A slice that has contours and comes out empty gives `mask-contours`."""
    drawn = [liver(k, scale=0.01 if k == 12 else 1.0) + np.array([0.5, 0.5, 0.0]) for k in range(8, 18)]
    result = imported(tmp_path / "rt.dcm", ct, drawn)
    assert [(f.code, f.message) for f in result.findings] == [
        ("mask-contours", "the contours of 1 slices enclose no voxel")
    ]


def edit_contours(path: Path, edit) -> None:
    data = pydicom.dcmread(path)
    edit(data)
    data.save_as(path)


@pytest.mark.parametrize("part", ["island", "hole"])
@pytest.mark.parametrize("distance_mm", [0.05, 0.3, -0.5])
def test_contours_of_one_slice_need_not_have_one_height(part, distance_mm, ct, tmp_path):
    """An island or a hole a little above or below the other contours of its slice is kept."""
    scale, shift = (0.4, 0.0) if part == "hole" else (1.0, 130.0)
    main, inner = [liver(k) for k in range(8, 18)], [liver(k, scale=scale) for k in range(8, 18)]
    plain = imported(tmp_path / "plain.dcm", ct, main + [c + np.array([shift, 0.0, 0.0]) for c in inner])
    moved = imported(tmp_path / "rt.dcm", ct, main + [c + np.array([shift, 0.0, distance_mm]) for c in inner])
    assert np.array_equal(plain.volume.array_DHW, moved.volume.array_DHW)
    assert moved.findings == ()


def test_planes_that_are_left_out_are_reported(ct, tmp_path):
    """Contours on planes between the slices, which no slice takes, give `mask-contours` with their number."""
    drawn = [liver(k) for k in range(8, 18)]
    result = imported(tmp_path / "rt.dcm", ct, drawn + [c + np.array([0.0, 0.0, 2.0]) for c in drawn[2:5]])
    assert [f.code for f in result.findings] == ["mask-contours"]
    assert "on 3 planes" in result.findings[0].message


@pytest.mark.parametrize("fault", ["two points", "open", "declared"])
def test_contours_without_an_area_are_reported(fault, ct, tmp_path):
    """Contours that are left out, and contours of another length than declared, give `mask-contours`."""
    drawn = [liver(k) for k in range(8, 18)]
    write_rtstruct(tmp_path / "rt.dcm", make_slices()[0], {"Liver": [*drawn[:-1], drawn[-1][:2]]})

    def edit(data) -> None:
        last = data.ROIContourSequence[0].ContourSequence[-1]
        if fault != "two points":
            last.ContourData = [round(float(v), 4) for v in drawn[-1].ravel()]
            last.NumberOfContourPoints = len(drawn[-1]) + (fault == "declared")
        if fault == "open":
            last.ContourGeometricType = "OPEN_PLANAR"

    edit_contours(tmp_path / "rt.dcm", edit)
    result = import_mask(tmp_path / "rt.dcm", ct, wanted=None, fixes=(), case_id="x")
    assert [f.code for f in result.findings] == ["mask-contours"]
    assert result.findings[0].message.startswith("1 contours")


@pytest.mark.parametrize("fault", ["number", "offset"])
def test_contradictory_structure_is_rejected(fault, ct, tmp_path):
    """Two ROIs of one number would be joined, and an offset vector would be ignored: both reject the file."""
    drawn = [liver(k) for k in range(8, 18)]
    write_rtstruct(tmp_path / "rt.dcm", make_slices()[0], {"spleen": [c + 9.0 for c in drawn], "Liver": drawn})

    def edit(data) -> None:
        if fault == "number":
            data.StructureSetROISequence[1].ROINumber = data.ROIContourSequence[1].ReferencedROINumber = 1
        else:
            data.ROIContourSequence[1].ContourSequence[0].add_new(0x30060045, "DS", ["0", "0", "24"])

    edit_contours(tmp_path / "rt.dcm", edit)
    with pytest.raises(InputRejectedError) as error:
        import_mask(tmp_path / "rt.dcm", ct, wanted=None, fixes=(), case_id="x")
    assert error.value.code == "mask-unreadable"


def test_contours_beside_the_ct_are_reported(ct, tmp_path):
    """Contours that reach beyond the rows or columns of the CT give `mask-outside`."""
    result = imported(tmp_path / "rt.dcm", ct, [liver(k) - np.array([110.0, 0.0, 0.0]) for k in range(8, 18)])
    assert [f.code for f in result.findings] == ["mask-outside"]
