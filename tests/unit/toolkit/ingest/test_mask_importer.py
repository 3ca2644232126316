"""Import of masks: exact placement by world coordinates, and selection of the label."""

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
from tmi.toolkit.ingest.dicom.contours import fill_even_odd
from tmi.toolkit.ingest.dicom.ct import read_dicom_ct
from tmi.toolkit.ingest.image_files import LoadedCt
from tmi.toolkit.ingest.mask_importer import import_mask
from tmi.toolkit.ingest.mask_labels import totalsegmentator_labels

SPEC = SeriesSpec()


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Path:
    return write_slices(tmp_path_factory.mktemp("series"), make_slices(), shuffle=2)


@pytest.fixture(scope="module")
def ct(series) -> LoadedCt:
    return read_dicom_ct(series, series=None, fixes=(), case_id="x")


def liver_of(volume: Volume) -> np.ndarray:
    return liver_at(positions_of_volume(volume.array_DHW.shape, volume.affine_xyz))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def write_labels(path: Path, ct: LoadedCt, *, liver: int = 5, turn: str = "RAS", dtype: type = np.uint8) -> Path:
    """Write a label map with the liver and a spleen (1) on the CT grid, in the voxel order `turn`."""
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


def imported(path: Path, ct: LoadedCt, wanted: str | int | None = None, fixes: tuple[str, ...] = ()) -> np.ndarray:
    return import_mask(path, ct, wanted=wanted, fixes=fixes, case_id="x").volume.array_DHW


@pytest.mark.parametrize("turn", ["RAS", "LPS", "LAS", "SPL", "AIR"])
@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_mask_in_any_voxel_order_is_placed_exactly(turn, ending, ct, tmp_path):
    """Masks in every voxel order and format equal the liver voxel for voxel."""
    path = write_labels(tmp_path / f"mask.{ending}", ct, turn=turn)
    assert np.array_equal(imported(path, ct, "liver"), liver_of(ct.volume))


@pytest.mark.parametrize("wanted", ["liver", 5, "5", "total:liver", "total_v1:liver"])
def test_label_is_selected_by_number_or_name(wanted, ct, tmp_path):
    """A label is selected by number or by a TotalSegmentator class name."""
    path = write_labels(tmp_path / "mask.nii.gz", ct)
    assert np.array_equal(imported(path, ct, wanted), liver_of(ct.volume))


def test_totalsegmentator_tables_are_complete():
    """The packaged tables hold all 117 classes of version 2 and 104 of version 1."""
    labels = totalsegmentator_labels()
    assert {t: len(n) for t, n in labels.items()} == {"total": 117, "total_v1": 104}
    assert labels["total"]["liver"] == labels["total_v1"]["liver"] == 5
    assert labels["total"]["aorta"] == 52
    assert labels["total_v1"]["aorta"] == 7
    assert labels["total"]["costal_cartilages"] == 117


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (None, "several labels; its labels are 1, 5"),
        ("7", "no label 7; its labels are 1, 5"),
        ("pancreas", r"no label 7 \(TotalSegmentator's pancreas\)"),
        ("hepar", "TotalSegmentator has no class of the requested name"),
    ],
)
def test_ambiguous_label_is_rejected_with_list(wanted, message, ct, tmp_path):
    """A missing or ambiguous label is rejected, and the message lists the labels."""
    with pytest.raises(InputRejectedError, match=message) as error:
        imported(write_labels(tmp_path / "mask.nii.gz", ct), ct, wanted)
    assert error.value.code == "mask-label"


def test_only_label_is_the_default(ct, tmp_path):
    """A mask with one label needs no selection."""
    labels = liver_of(ct.volume).astype(np.float32) * 7
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), ct.volume.affine_xyz), tmp_path / "mask.nii")
    result = import_mask(tmp_path / "mask.nii", ct, wanted=None, fixes=(), case_id="x")
    assert np.array_equal(result.volume.array_DHW, liver_of(ct.volume))
    assert result.label.explanation == "label 7, the only label"


def write_slicer(path: Path, ct: LoadedCt, *, crop: int = 0) -> Path:
    """Write a segmentation like 3D Slicer: names in the header, cropped by `crop` slices at both ends."""
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
def test_nrrd_segment_is_selected_by_header_name(wanted, crop, ct, tmp_path):
    """Names in an NRRD header select the segment, in a cropped file too."""
    path = write_slicer(tmp_path / "mask.seg.nrrd", ct, crop=crop)
    assert np.array_equal(imported(path, ct, wanted), liver_of(ct.volume))


@pytest.mark.parametrize("wanted", [None, "hepar", "Liver", "10200004", 1])
def test_seg_segment_is_selected_by_number_or_code(wanted, ct, tmp_path):
    """A SEG segment is selected by number, label, code value or code meaning."""
    mask = liver_masks(SPEC)
    path = write_seg(tmp_path / "seg.dcm", make_slices(), [mask, ~mask], ["hepar", "rest"])
    assert np.array_equal(imported(path, ct, wanted), liver_of(ct.volume))


def test_seg_with_reversed_frames_is_placed_exactly(ct, tmp_path):
    """The order of the frames does not matter."""
    path = write_seg(tmp_path / "seg.dcm", make_slices()[::-1], [liver_masks(SPEC)[::-1]], ["hepar"])
    assert np.array_equal(imported(path, ct), liver_of(ct.volume))


def test_single_frame_seg_is_placed_on_its_slice(ct, tmp_path):
    """A SEG with one frame fills exactly one slice."""
    mask = liver_masks(SPEC)
    path = write_seg(tmp_path / "seg.dcm", make_slices()[11:12], [mask[11:12]], ["hepar"])
    mask = imported(path, ct)
    assert np.array_equal(mask[11], liver_of(ct.volume)[11])
    assert not np.delete(mask, 11, axis=0).any()


def write_contours(path: Path, **rois: list[np.ndarray]) -> Path:
    return write_rtstruct(path, make_slices()[0], rois)


def outlines(*, every: int = 1, scale: float = 1.0, spec: SeriesSpec = SPEC) -> list[np.ndarray]:
    found = [liver_contour(spec, k, scale=scale) for k in range(0, spec.slices, every)]
    return [c for c in found if c is not None]


@pytest.mark.parametrize("wanted", [None, "liver", "LIVER"])
def test_contours_are_filled_at_their_coordinates(wanted, ct, tmp_path):
    """RTSTRUCT contours reproduce the liver (Dice above 0.998)."""
    path = write_contours(tmp_path / "rt.dcm", Liver=outlines(), body=outlines(scale=1.3))
    assert dice(imported(path, ct, wanted), liver_of(ct.volume)) > 0.998


def test_contour_inside_another_is_a_hole(ct, tmp_path):
    """Contours are filled by the even-odd rule."""
    path = write_contours(tmp_path / "rt.dcm", Liver=outlines() + outlines(scale=0.5))
    mask = imported(path, ct)
    hole = imported(write_contours(tmp_path / "in.dcm", Liver=outlines(scale=0.5)), ct)
    assert np.array_equal(mask, imported(write_contours(tmp_path / "all.dcm", Liver=outlines()), ct) & ~hole)


def test_contour_between_slices_uses_nearest_slice(ct, tmp_path):
    """Contours on finer planes are assigned to the nearest slice."""
    fine = SeriesSpec(slices=69, step_mm=2.0)  # three planes per CT slice, one of them on it
    path = write_contours(tmp_path / "rt.dcm", Liver=outlines(spec=fine))
    assert dice(imported(path, ct), liver_of(ct.volume)) > 0.97


def test_slices_without_contour_are_reported(ct, tmp_path):
    """Slices without a contour inside the structure give the warning mask-gap."""
    path = write_contours(tmp_path / "rt.dcm", Liver=outlines(every=2))
    result = import_mask(path, ct, wanted=None, fixes=(), case_id="x")
    assert [f.code for f in result.findings] == ["mask-gap"]


def test_contours_oblique_to_slices_are_rejected(ct, tmp_path):
    """Contours that cross the slices reject the mask."""
    steep = [c + c[:, :1] * (0.0, 0.0, 0.3) for c in outlines()]
    with pytest.raises(InputRejectedError, match="do not lie in the slices of the CT") as error:
        imported(write_contours(tmp_path / "rt.dcm", Liver=steep), ct)
    assert error.value.code == "mask-grid"


def test_unknown_roi_is_rejected_with_list(series, tmp_path):
    """An unknown ROI is rejected, and the message lists the ROIs."""
    path = write_contours(tmp_path / "rt.dcm", Liver=outlines(), spleen=outlines())
    with pytest.raises(InputRejectedError, match=r"its labels are 1 \(Liver\), 2 \(spleen\)") as error:
        import_case(tmp_path / "case", ct=series, mask=path, roi="pancreas")
    assert error.value.code == "mask-label"


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_mask_of_another_patient_is_rejected(kind, ct, tmp_path):
    """A different PatientID rejects the mask; the message quotes no id."""
    other_slices = make_slices()
    for data in other_slices:
        data.PatientID = "P-TWO"
    if kind == "seg":
        path = write_seg(tmp_path / "m.dcm", other_slices, [liver_masks(SPEC)], ["hepar"])
    else:
        path = write_rtstruct(tmp_path / "m.dcm", other_slices[0], {"Liver": outlines()})
    with pytest.raises(InputRejectedError, match="different patient ids") as error:
        imported(path, ct)
    assert error.value.code == "dicom-patient-mismatch"
    assert "P-TWO" not in str(error.value) + error.value.fix


def test_different_frame_of_reference_is_reported(ct, tmp_path):
    """A different FrameOfReferenceUID gives the warning dicom-frame-mismatch."""
    other_slices = make_slices(seed=4)
    result = import_mask(
        write_rtstruct(tmp_path / "m.dcm", other_slices[0], {"Liver": outlines()}),
        ct,
        wanted=None,
        fixes=(),
        case_id="x",
    )
    assert [f.code for f in result.findings] == ["dicom-frame-mismatch"]


def coronal_mask(path: Path) -> Path:
    """Write the liver on a finer coronal grid."""
    spec = SeriesSpec(slices=70, rows=80, columns=90, spacing_mm=(3.1, 3.3), step_mm=3.7, orientation=CORONAL)
    column = np.array(spec.orientation[3:])
    axes = np.stack([np.array(spec.orientation[:3]), column, np.cross(spec.orientation[:3], column)], axis=1)
    affine = np.eye(4)
    affine[:3, :3] = axes * (spec.spacing_mm[1], spec.spacing_mm[0], spec.step_mm)
    affine[:3, 3] = spec.position_of(0)
    labels = liver_masks(spec).astype(np.uint8).transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(labels, np.diag([-1, -1, 1, 1]) @ affine), path)
    return path


def test_mask_on_other_grid_is_rejected_or_resampled(series, ct, tmp_path):
    """A mask on another grid is rejected by default and resampled with `mask-grid`."""
    path = coronal_mask(tmp_path / "m.nii.gz")
    with pytest.raises(InputRejectedError, match="another grid") as error:
        imported(path, ct)
    assert error.value.code == "mask-grid"
    assert "--fix mask-grid" in error.value.fix
    result: ImportedCase = import_case(tmp_path / "case", ct=series, mask=path, fixes=["mask-grid"])
    assert [r.code for r in result.repairs] == ["mask-grid"]
    mask = np.asarray(nib.load(result.case.mask).dataobj).transpose(2, 1, 0).astype(bool)
    assert dice(mask, liver_of(ct.volume)) > 0.96


def test_mask_with_fewer_slices_is_rejected(ct, tmp_path):
    """A label map that does not cover the CT is rejected by default."""
    image = nib.load(write_labels(tmp_path / "all.nii.gz", ct)).slicer[:, :, 2:]
    nib.save(image, tmp_path / "mask.nii.gz")
    with pytest.raises(InputRejectedError) as error:
        imported(tmp_path / "mask.nii.gz", ct, 5)
    assert error.value.code == "mask-grid"
    assert np.array_equal(imported(tmp_path / "mask.nii.gz", ct, 5, ("mask-grid",)), liver_of(ct.volume))


def test_placing_and_resampling_on_same_grid_are_exact():
    """Placing and resampling a mask with coinciding voxels are exact."""
    rng = np.random.default_rng(0)
    mask = Volume(array_DHW=rng.integers(0, 9, (5, 6, 7)), affine_xyz=np.diag([2.0, 3.0, 4.0, 1.0]))
    assert np.array_equal(resample_mask(mask, mask).array_DHW, mask.array_DHW)
    turned = Volume(  # stored with x and z exchanged and y reversed
        array_DHW=mask.array_DHW.transpose(2, 1, 0)[:, ::-1],
        affine_xyz=mask.affine_xyz @ np.array([[0, 0, 1, 0], [0, -1, 0, 5], [1, 0, 0, 0], [0, 0, 0, 1.0]]),
    )
    placed = place_mask(turned, mask)
    assert placed is not None
    assert (placed.outside, placed.covers) == (0, True)
    assert np.array_equal(placed.volume.array_DHW, mask.array_DHW)
    assert np.array_equal(resample_mask(turned, mask).array_DHW, mask.array_DHW)


def test_placing_reports_outside_and_coverage():
    """Placing counts voxels outside the CT and states whether the mask covers it."""
    ct = Volume(array_DHW=np.zeros((5, 6, 7)), affine_xyz=np.eye(4))
    shifted = np.eye(4)
    shifted[2, 3] = 2
    placed = place_mask(Volume(array_DHW=np.ones((5, 6, 7), dtype=bool), affine_xyz=shifted), ct)
    assert placed is not None
    assert (placed.outside, placed.covers) == (2 * 6 * 7, False)
    assert list(placed.volume.array_DHW.any(axis=(1, 2))) == [False, False, True, True, True]
    shifted[2, 3] = 2.2
    assert place_mask(Volume(array_DHW=np.ones((5, 6, 7), dtype=bool), affine_xyz=shifted), ct) is None


def test_even_odd_rule_uses_pixel_centres():
    """A pixel is inside if its centre is; two equal polygons cancel out."""
    square = np.array([[0.5, 0.5], [3.5, 0.5], [3.5, 4.5], [0.5, 4.5]])
    filled = fill_even_odd([square], (6, 7))
    assert filled.sum() == 3 * 4
    assert filled[1:4, 1:5].all()
    assert not fill_even_odd([square, square], (6, 7)).any()
    assert fill_even_odd([square * 1e5 - 5e4], (6, 7)).all()


@pytest.mark.parametrize(
    ("content", "code"),
    [("fractions", "mask-values"), ("nan", "mask-nan"), ("zeros", "mask-empty"), ("image", "mask-unreadable")],
)
def test_file_without_labels_is_rejected(content, code, ct, tmp_path):
    """Fractions, NaN, zeros and images are rejected as masks."""
    array = np.zeros(ct.volume.array_DHW.shape[::-1], dtype=np.float32)
    if content == "fractions":
        array[3] = 0.4
    elif content == "nan":
        array[3] = np.nan
    elif content == "image":
        array = np.arange(array.size, dtype=np.float32).reshape(array.shape)
    nib.save(nib.Nifti1Image(array, ct.volume.affine_xyz), tmp_path / "m.nii.gz")
    with pytest.raises(InputRejectedError) as error:
        imported(tmp_path / "m.nii.gz", ct)
    assert error.value.code == code


def test_ct_slice_as_mask_is_rejected(series, ct):
    """A CT slice is rejected, and a folder with several DICOM files is a usage error."""
    with pytest.raises(InputRejectedError, match="neither SEG nor RTSTRUCT"):
        imported(sorted(series.iterdir())[0], ct)
    with pytest.raises(UsageError, match="24 DICOM files"):
        imported(series, ct)
