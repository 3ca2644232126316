"""Masks of every kind land on the liver by world coordinates, and only the label that is meant."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from factories.dicom_series import (
    CORONAL,
    SeriesSpec,
    liver_at,
    liver_contour,
    liver_masks,
    make_slices,
    positions_of_volume,
    write_rtstruct,
    write_seg,
    write_slices,
)
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.imaging.mask_resampling import place_mask, resample_mask
from tmi.toolkit.imaging.volume import Volume
from tmi.toolkit.ingest.case_importer import ImportedCase, import_case
from tmi.toolkit.ingest.dicom.ct import read_dicom_ct
from tmi.toolkit.ingest.dicom.rtstruct import fill_even_odd
from tmi.toolkit.ingest.image_files import ReadCt
from tmi.toolkit.ingest.mask_importer import import_mask
from tmi.toolkit.ingest.mask_labels import totalsegmentator_labels

SPEC = SeriesSpec()


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Path:
    return write_slices(tmp_path_factory.mktemp("series"), make_slices(), shuffle=2)


@pytest.fixture(scope="module")
def ct(series) -> ReadCt:
    return read_dicom_ct(series, series=None, fixes=(), case_id="x")


def liver_of(volume: Volume) -> np.ndarray:
    return liver_at(positions_of_volume(volume.array_DHW.shape, volume.affine_xyz))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def write_labels(path: Path, ct: ReadCt, *, liver: int = 5, turn: str = "RAS", dtype: type = np.uint8) -> Path:
    """A label map with the liver and a spleen (1) on the CT's grid, stored in another voxel order."""
    labels = np.zeros(ct.volume.array_DHW.shape, dtype=dtype)
    labels[liver_of(ct.volume)] = liver
    labels[2:4, 2:6, 2:6] = 1
    image = nib.Nifti1Image(labels.transpose(2, 1, 0), ct.volume.affine_xyz)
    wanted = nib.orientations.axcodes2ornt(tuple(turn))
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(turned, path)
    else:
        nib.save(turned, path.with_suffix(".nii"))
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(path.with_suffix(".nii"))), str(path))
    return path


def imported(path: Path, ct: ReadCt, wanted: str | int | None = None, fixes: tuple[str, ...] = ()) -> np.ndarray:
    return import_mask(path, ct, wanted=wanted, fixes=fixes, case_id="x").volume.array_DHW


@pytest.mark.parametrize("turn", ["RAS", "LPS", "LAS", "SPL", "AIR"])
@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_a_mask_in_any_voxel_order_lands_on_the_liver_exactly(turn, ending, ct, tmp_path):
    path = write_labels(tmp_path / f"mask.{ending}", ct, turn=turn)
    assert np.array_equal(imported(path, ct, "liver"), liver_of(ct.volume))


@pytest.mark.parametrize("wanted", ["liver", 5, "5", "total:liver", "total_v1:liver"])
def test_a_label_is_named_by_number_or_by_totalsegmentators_name(wanted, ct, tmp_path):
    path = write_labels(tmp_path / "mask.nii.gz", ct)
    assert np.array_equal(imported(path, ct, wanted), liver_of(ct.volume))


def test_totalsegmentators_tables_are_whole():
    labels = totalsegmentator_labels()
    assert {t: len(n) for t, n in labels.items()} == {"total": 117, "total_v1": 104}
    assert labels["total"]["liver"] == labels["total_v1"]["liver"] == 5
    assert labels["total"]["aorta"] == 52
    assert labels["total_v1"]["aorta"] == 7
    assert labels["total"]["costal_cartilages"] == 117


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (None, "several labels; there are 1, 5"),
        ("7", "no label 7; there are 1, 5"),
        ("pancreas", "no label 7, which is TotalSegmentator's pancreas"),
        ("hepar", "TotalSegmentator has none like the one asked for"),
    ],
)
def test_a_label_that_is_not_clear_is_refused_and_the_labels_are_listed(wanted, says, ct, tmp_path):
    with pytest.raises(InputRejectedError, match=says) as refused:
        imported(write_labels(tmp_path / "mask.nii.gz", ct), ct, wanted)
    assert refused.value.code == "mask-label"


def test_the_only_label_needs_no_name(ct, tmp_path):
    labels = liver_of(ct.volume).astype(np.float32) * 7
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), ct.volume.affine_xyz), tmp_path / "mask.nii")
    done = import_mask(tmp_path / "mask.nii", ct, wanted=None, fixes=(), case_id="x")
    assert np.array_equal(done.volume.array_DHW, liver_of(ct.volume))
    assert done.label.explanation == "label 7, the only one"


def write_slicer(path: Path, ct: ReadCt, *, crop: int = 0) -> Path:
    """A segmentation as 3D Slicer writes it: names in the header, often cropped to what is segmented."""
    depth = slice(crop, ct.volume.array_DHW.shape[0] - crop)
    labels = np.where(liver_of(ct.volume), 2, 0).astype(np.uint8)
    labels[crop : crop + 2, 2:6, 2:6] = 1
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), ct.volume.affine_xyz), path.with_suffix(".nii"))
    image = SimpleITK.ReadImage(str(path.with_suffix(".nii")))[:, :, depth]
    for number, (name, value) in enumerate({"Spleen": "1", "Liver": "2"}.items()):
        image.SetMetaData(f"Segment{number}_Name", name)
        image.SetMetaData(f"Segment{number}_LabelValue", value)
    SimpleITK.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("wanted", [None, "liver", "Liver", 2])
@pytest.mark.parametrize("crop", [0, 3])
def test_segments_of_an_nrrd_header_are_found_by_name_also_when_cropped(wanted, crop, ct, tmp_path):
    path = write_slicer(tmp_path / "mask.seg.nrrd", ct, crop=crop)
    assert np.array_equal(imported(path, ct, wanted), liver_of(ct.volume))


@pytest.mark.parametrize("wanted", [None, "hepar", "Liver", "10200004", 1])
def test_a_segment_of_dicom_seg_is_found_by_number_label_or_code(wanted, ct, tmp_path):
    mask = liver_masks(SPEC)
    path = write_seg(tmp_path / "seg.dcm", make_slices(), [mask, ~mask], ["hepar", "rest"])
    assert np.array_equal(imported(path, ct, wanted), liver_of(ct.volume))


def test_a_seg_of_slices_in_another_order_lands_on_the_liver(ct, tmp_path):
    path = write_seg(tmp_path / "seg.dcm", make_slices()[::-1], [liver_masks(SPEC)[::-1]], ["hepar"])
    assert np.array_equal(imported(path, ct), liver_of(ct.volume))


def test_a_seg_of_one_frame_lands_on_its_slice(ct, tmp_path):
    mask = liver_masks(SPEC)
    path = write_seg(tmp_path / "seg.dcm", make_slices()[11:12], [mask[11:12]], ["hepar"])
    got = imported(path, ct)
    assert np.array_equal(got[11], liver_of(ct.volume)[11])
    assert not np.delete(got, 11, axis=0).any()


def write_contours(path: Path, **rois: list[np.ndarray]) -> Path:
    return write_rtstruct(path, make_slices()[0], rois)


def outlines(*, every: int = 1, scale: float = 1.0, spec: SeriesSpec = SPEC) -> list[np.ndarray]:
    found = [liver_contour(spec, k, scale=scale) for k in range(0, spec.slices, every)]
    return [c for c in found if c is not None]


@pytest.mark.parametrize("wanted", [None, "liver", "LIVER"])
def test_contours_are_filled_where_their_coordinates_lie(wanted, ct, tmp_path):
    path = write_contours(tmp_path / "rt.dcm", Liver=outlines(), body=outlines(scale=1.3))
    assert dice(imported(path, ct, wanted), liver_of(ct.volume)) > 0.998


def test_a_contour_inside_another_is_a_hole(ct, tmp_path):
    path = write_contours(tmp_path / "rt.dcm", Liver=outlines() + outlines(scale=0.5))
    got = imported(path, ct)
    hole = imported(write_contours(tmp_path / "in.dcm", Liver=outlines(scale=0.5)), ct)
    assert np.array_equal(got, imported(write_contours(tmp_path / "all.dcm", Liver=outlines()), ct) & ~hole)


def test_contours_on_other_planes_belong_to_the_nearest_slice(ct, tmp_path):
    fine = SeriesSpec(slices=69, step_mm=2.0)  # three planes a slice of the CT, one of them on it
    path = write_contours(tmp_path / "rt.dcm", Liver=outlines(spec=fine))
    assert dice(imported(path, ct), liver_of(ct.volume)) > 0.97


def test_slices_without_a_contour_are_told(ct, tmp_path):
    path = write_contours(tmp_path / "rt.dcm", Liver=outlines(every=2))
    done = import_mask(path, ct, wanted=None, fixes=(), case_id="x")
    assert [f[0] for f in done.findings] == ["mask-gap"]


def test_contours_of_another_plane_than_the_slices_are_refused(ct, tmp_path):
    steep = [c + c[:, :1] * (0.0, 0.0, 0.3) for c in outlines()]
    with pytest.raises(InputRejectedError, match="do not lie in the CT's slices") as refused:
        imported(write_contours(tmp_path / "rt.dcm", Liver=steep), ct)
    assert refused.value.code == "mask-grid"


def test_a_roi_that_is_not_there_is_refused_and_the_names_are_listed(series, tmp_path):
    path = write_contours(tmp_path / "rt.dcm", Liver=outlines(), spleen=outlines())
    with pytest.raises(InputRejectedError, match=r"there are 1 \(Liver\), 2 \(spleen\)") as refused:
        import_case(tmp_path / "case", ct=series, mask=path, roi="pancreas")
    assert refused.value.code == "mask-label"


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_a_mask_of_another_patient_is_refused(kind, ct, tmp_path):
    others = make_slices()
    for data in others:
        data.PatientID = "P-TWO"
    if kind == "seg":
        path = write_seg(tmp_path / "m.dcm", others, [liver_masks(SPEC)], ["hepar"])
    else:
        path = write_rtstruct(tmp_path / "m.dcm", others[0], {"Liver": outlines()})
    with pytest.raises(InputRejectedError, match="different patients") as refused:
        imported(path, ct)
    assert refused.value.code == "dicom-patient-mismatch"
    assert "P-TWO" not in str(refused.value) + refused.value.fix


def test_another_frame_of_reference_is_told(ct, tmp_path):
    others = make_slices(seed=4)
    done = import_mask(
        write_rtstruct(tmp_path / "m.dcm", others[0], {"Liver": outlines()}), ct, wanted=None, fixes=(), case_id="x"
    )
    assert [f[0] for f in done.findings] == ["dicom-frame-mismatch"]


def coarse_mask(path: Path) -> Path:
    """The liver on a finer grid of its own, turned to coronal."""
    spec = SeriesSpec(slices=70, rows=80, columns=90, spacing_mm=(3.1, 3.3), step_mm=3.7, orientation=CORONAL)
    column = np.array(spec.orientation[3:])
    axes = np.stack([np.array(spec.orientation[:3]), column, np.cross(spec.orientation[:3], column)], axis=1)
    affine = np.eye(4)
    affine[:3, :3] = axes * (spec.spacing_mm[1], spec.spacing_mm[0], spec.step_mm)
    affine[:3, 3] = spec.position_of(0)
    labels = liver_masks(spec).astype(np.uint8).transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(labels, np.diag([-1, -1, 1, 1]) @ affine), path)
    return path


def test_a_mask_on_another_grid_is_refused_unless_resampling_was_asked_for(series, ct, tmp_path):
    path = coarse_mask(tmp_path / "m.nii.gz")
    with pytest.raises(InputRejectedError, match="another grid") as refused:
        imported(path, ct)
    assert refused.value.code == "mask-grid"
    assert "--fix mask-grid" in refused.value.fix
    done: ImportedCase = import_case(tmp_path / "case", ct=series, mask=path, fixes=["mask-grid"])
    assert [r.code for r in done.repairs] == ["mask-grid"]
    got = np.asarray(nib.load(done.case.mask).dataobj).transpose(2, 1, 0).astype(bool)
    assert dice(got, liver_of(ct.volume)) > 0.96


def test_a_mask_of_fewer_slices_is_another_grid(ct, tmp_path):
    image = nib.load(write_labels(tmp_path / "all.nii.gz", ct)).slicer[:, :, 2:]
    nib.save(image, tmp_path / "mask.nii.gz")
    with pytest.raises(InputRejectedError) as refused:
        imported(tmp_path / "mask.nii.gz", ct, 5)
    assert refused.value.code == "mask-grid"
    assert np.array_equal(imported(tmp_path / "mask.nii.gz", ct, 5, ("mask-grid",)), liver_of(ct.volume))


def test_resampling_onto_the_own_grid_changes_nothing_and_placing_is_exact():
    rng = np.random.default_rng(0)
    mask = Volume(array_DHW=rng.integers(0, 9, (5, 6, 7)), affine_xyz=np.diag([2.0, 3.0, 4.0, 1.0]))
    assert np.array_equal(resample_mask(mask, mask).array_DHW, mask.array_DHW)
    turned = Volume(  # stored with x and z exchanged and y the other way round
        array_DHW=mask.array_DHW.transpose(2, 1, 0)[:, ::-1],
        affine_xyz=mask.affine_xyz @ np.array([[0, 0, 1, 0], [0, -1, 0, 5], [1, 0, 0, 0], [0, 0, 0, 1.0]]),
    )
    placed = place_mask(turned, mask)
    assert placed is not None
    assert (placed.outside, placed.covers) == (0, True)
    assert np.array_equal(placed.volume.array_DHW, mask.array_DHW)
    assert np.array_equal(resample_mask(turned, mask).array_DHW, mask.array_DHW)


def test_placing_tells_what_falls_outside_and_what_is_not_covered():
    ct = Volume(array_DHW=np.zeros((5, 6, 7)), affine_xyz=np.eye(4))
    shifted = np.eye(4)
    shifted[2, 3] = 2
    placed = place_mask(Volume(array_DHW=np.ones((5, 6, 7), dtype=bool), affine_xyz=shifted), ct)
    assert placed is not None
    assert (placed.outside, placed.covers) == (2 * 6 * 7, False)
    assert list(placed.volume.array_DHW.any(axis=(1, 2))) == [False, False, True, True, True]
    shifted[2, 3] = 2.2
    assert place_mask(Volume(array_DHW=np.ones((5, 6, 7), dtype=bool), affine_xyz=shifted), ct) is None


def test_the_even_odd_rule_counts_pixel_centres():
    square = np.array([[0.5, 0.5], [3.5, 0.5], [3.5, 4.5], [0.5, 4.5]])
    filled = fill_even_odd([square], (6, 7))
    assert filled.sum() == 3 * 4
    assert filled[1:4, 1:5].all()
    assert not fill_even_odd([square, square], (6, 7)).any()
    assert fill_even_odd([square * 1e5 - 5e4], (6, 7)).all()


@pytest.mark.parametrize(
    ("content", "code"),
    [("fractions", "mask-unreadable"), ("nan", "mask-nan"), ("zeros", "mask-empty"), ("image", "mask-unreadable")],
)
def test_a_file_that_is_no_mask_is_refused(content, code, ct, tmp_path):
    array = np.zeros(ct.volume.array_DHW.shape[::-1], dtype=np.float32)
    if content == "fractions":
        array[3] = 0.4
    elif content == "nan":
        array[3] = np.nan
    elif content == "image":
        array = np.arange(array.size, dtype=np.float32).reshape(array.shape)
    nib.save(nib.Nifti1Image(array, ct.volume.affine_xyz), tmp_path / "m.nii.gz")
    with pytest.raises(InputRejectedError) as refused:
        imported(tmp_path / "m.nii.gz", ct)
    assert refused.value.code == code


def test_a_slice_given_as_mask_is_refused(series, ct):
    with pytest.raises(InputRejectedError, match="neither SEG nor RTSTRUCT"):
        imported(sorted(series.iterdir())[0], ct)
    with pytest.raises(UsageError, match="24 DICOM files"):
        imported(series, ct)
