"""Enhanced multi-frame CT: equal to its single-frame twin, and rejected with the same codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from factories.dicom_series import (
    CORONAL,
    OBLIQUE,
    SeriesSpec,
    compress_with_gdcm,
    liver_masks,
    make_slices,
    set_hounsfield,
    write_seg,
    write_slices,
)
from factories.enhanced_ct import ENHANCED, LEGACY, to_enhanced
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.imaging.volume import read_ct, read_mask
from tmi.toolkit.ingest.case_importer import import_case
from tmi.toolkit.ingest.dicom.ct import read_dicom_ct
from tmi.toolkit.ingest.image_files import LoadedCt

SPEC = SeriesSpec(slices=12)
SHARED = ("PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence")


def read(folder: Path, *fixes: str) -> LoadedCt:
    return read_dicom_ct(folder, series=None, fixes=fixes, case_id="x")


def shuffled(slices: Sequence[Dataset]) -> list[Dataset]:
    return [slices[k] for k in np.random.default_rng(5).permutation(len(slices))]


def assert_twins(tmp_path: Path, slices: Sequence[Dataset], objects: Sequence[Dataset], *fixes: str) -> LoadedCt:
    """Both forms give the same voxels, affine, findings, repairs and header values."""
    single = read(write_slices(tmp_path / "single", slices), *fixes)
    multi = read(write_slices(tmp_path / "multi", objects), *fixes)
    assert multi.volume.array_DHW.dtype == single.volume.array_DHW.dtype
    assert np.array_equal(multi.volume.array_DHW, single.volume.array_DHW)
    assert np.array_equal(multi.volume.affine_xyz, single.volume.affine_xyz)
    for name in ("findings", "repairs", "patient_id", "frame_of_reference", "date"):
        assert getattr(multi, name) == getattr(single, name), name
    for name in ("images", "planning_views_left_out", "rescale"):
        assert multi.source[name] == single.source[name], name
    return multi


@pytest.mark.parametrize("sop_class", [ENHANCED, LEGACY])
@pytest.mark.parametrize("shared", [(), SHARED], ids=["per frame", "shared"])
@pytest.mark.parametrize("orientation", [CORONAL, OBLIQUE])
def test_enhanced_ct_equals_its_single_frame_twin(sop_class, shared, orientation, tmp_path):
    """Frames in any order, with groups in either place, give the volume of the single-frame series."""
    slices = make_slices(replace(SPEC, orientation=orientation))
    assert_twins(tmp_path, slices, [to_enhanced(shuffled(slices), sop_class=sop_class, shared=shared)])


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_compressed_frames_equal_the_twin(syntax, tmp_path):
    """Every frame of a compressed object is decoded by itself."""
    slices = make_slices(SPEC)
    data = to_enhanced(shuffled(slices))
    data.compress(syntax, generate_instance_uid=False)
    assert_twins(tmp_path, slices, [data])


def test_lossless_jpeg_frames_equal_the_twin(tmp_path):
    """Lossless JPEG, decoded by GDCM, gives each frame its own codestream."""
    slices = make_slices(SPEC)
    data = to_enhanced(slices)
    codestreams = []
    for k, source in enumerate(slices):
        compress_with_gdcm(source, tmp_path / f"{k}.dcm")
        coded = pydicom.dcmread(tmp_path / f"{k}.dcm")
        codestreams.append(get_frame(coded.PixelData, 0, number_of_frames=1))
        data.file_meta.TransferSyntaxUID = coded.file_meta.TransferSyntaxUID
    data.PixelData = encapsulate(codestreams)
    data["PixelData"].is_undefined_length = True
    assert_twins(tmp_path, make_slices(SPEC), [data])


def test_seg_of_a_multiframe_ct_is_its_mask(tmp_path):
    """A SEG whose source is the frames of an enhanced CT gives the mask of the SEG of the single-frame twin."""
    slices = make_slices(SPEC)
    order = np.random.default_rng(5).permutation(len(slices))
    data = to_enhanced([slices[k] for k in order], shared=SHARED)
    masks = liver_masks(SPEC)
    single = write_seg(tmp_path / "single.dcm", slices, [masks], ["hepar"])
    multi = write_seg(tmp_path / "multi.dcm", [data], [masks[order]], ["hepar"])
    cases = [
        import_case(tmp_path / "a", ct=write_slices(tmp_path / "s", slices), mask=single).case,
        import_case(tmp_path / "b", ct=write_slices(tmp_path / "m", [data]), mask=multi).case,
    ]
    first, second = (read_mask(case, read_ct(case)) for case in cases)
    assert first.array_DHW.sum() == masks.sum()
    assert np.array_equal(first.array_DHW, second.array_DHW)


def test_rescale_of_each_frame_is_applied(tmp_path):
    """Slope and intercept may differ between frames: a warning, as for files."""
    slices = make_slices(SPEC)
    for data in slices[::2]:
        hu = np.frombuffer(data.PixelData, "<i2").astype(float) + float(data.RescaleIntercept)
        data.RescaleSlope, data.RescaleIntercept = 0.5, -1000
        set_hounsfield(data, hu)
    multi = assert_twins(tmp_path, slices, [to_enhanced(slices)])
    assert [f.code for f in multi.findings] == ["dicom-rescale-differs"]


def test_files_of_one_series_are_joined(tmp_path):
    """A volume split over several multi-frame files is one series, and a localizer frame is left out."""
    slices = make_slices(SPEC)
    slices[3].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    extra = make_slices(SPEC)[3]
    extra.SOPInstanceUID = extra.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    every = [*slices, extra]
    multi = assert_twins(tmp_path, every, [to_enhanced(every[::2]), to_enhanced(every[1::2])])
    assert multi.source["images"] == 12
    assert multi.source["planning_views_left_out"] == 1


def without(*names: str, every: int = 1) -> Callable[[list[Dataset]], list[Dataset]]:
    def edit(slices: list[Dataset]) -> list[Dataset]:
        for data in slices[::every]:
            for name in names:
                delattr(data, name)
        return slices

    return edit


def put(every: int, **values: object) -> Callable[[list[Dataset]], list[Dataset]]:
    def edit(slices: list[Dataset]) -> list[Dataset]:
        for data in slices[::every]:
            for name, value in values.items():
                setattr(data, name, value)
        return slices

    return edit


def brighter(slices: list[Dataset]) -> list[Dataset]:
    for data in slices:
        data.PixelData = (np.frombuffer(data.PixelData, "<i2") + 30).astype("<i2").tobytes()
    return slices


FAULTS: dict[str, tuple[str, Callable[[list[Dataset]], list[Dataset]]]] = {
    "gap": ("dicom-missing-slice", lambda s: s[:4] + s[5:]),
    "two gaps": ("dicom-missing-slice", lambda s: s[:3] + s[4:8] + s[9:]),
    "a frame twice": ("dicom-duplicate-slice", lambda s: [*s, s[4]]),
    "every frame twice": ("dicom-duplicate-slice", lambda s: s + s),
    "two time points": ("dicom-4d", lambda s: s + brighter(make_slices(SPEC))),
    "another image at one position": ("dicom-mixed-series", lambda s: s + brighter(make_slices(SPEC)[:1])),
    "two orientations": ("dicom-mixed-series", put(30, ImageOrientationPatient=list(CORONAL))),
    "two thicknesses": ("dicom-mixed-series", put(3, SliceThickness=1.5)),
    "two kernels": ("dicom-mixed-series", put(2, ConvolutionKernel="B70f")),
    "no position": ("dicom-no-geometry", without("ImagePositionPatient", every=5)),
    "no spacing": ("dicom-no-geometry", without("PixelSpacing")),
    "no orientation": ("dicom-no-geometry", without("ImageOrientationPatient")),
    "no slope": ("dicom-no-rescale", without("RescaleSlope")),
    "no intercept in one frame": ("dicom-no-rescale", without("RescaleIntercept", every=20)),
    "slope of 0": ("ct-not-hu", put(1, RescaleSlope=0)),
    "electron density": ("ct-not-hu", put(1, RescaleType="ED")),
    "8 bits": ("ct-8bit", put(1, BitsStored=8, HighBit=7)),
    "MR": ("dicom-not-ct", put(1, Modality="MR")),
    "planning views only": ("dicom-not-ct", put(1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    "gantry tilt": ("dicom-gantry-tilt", lambda s: make_slices(replace(SPEC, tilt_deg=12))),
    "one position": ("ct-few-slices", lambda s: s[:1]),
}


@pytest.mark.parametrize("sop_class", [ENHANCED, LEGACY])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_a_frame_has_the_code_of_a_slice(fault, sop_class, tmp_path):
    """A fault in functional groups is rejected with the code of the same fault in single-frame files."""
    code, edit = FAULTS[fault]
    folder = write_slices(tmp_path, [to_enhanced(edit(make_slices(SPEC)), sop_class=sop_class)])
    with pytest.raises(InputRejectedError) as error:
        read(folder)
    assert error.value.code == code


def one_more(data: Dataset) -> None:
    data.NumberOfFrames += 1


def no_groups(data: Dataset) -> None:
    del data.PerFrameFunctionalGroupsSequence


def second_stack(data: Dataset) -> None:
    for groups in data.PerFrameFunctionalGroupsSequence[6:]:
        groups.FrameContentSequence[0].StackID = "2"


def short(data: Dataset) -> None:
    data.PixelData = data.PixelData[:-4800]


@pytest.mark.parametrize(
    ("code", "edit"),
    [
        ("dicom-multiframe", one_more),
        ("dicom-multiframe", no_groups),
        ("dicom-mixed-series", second_stack),
        ("dicom-unreadable", short),
    ],
)
def test_faulty_object_is_rejected(code, edit, tmp_path):
    """Groups for another number of frames, no groups, two stacks and missing pixels are named."""
    data = to_enhanced(make_slices(SPEC))
    edit(data)
    with pytest.raises(InputRejectedError) as error:
        read(write_slices(tmp_path, [data]))
    assert error.value.code == code


def test_repairs_of_slices_apply_to_frames(tmp_path):
    """A gap is interpolated in both forms to the same values."""
    slices = make_slices(SPEC)
    del slices[5]
    assert_twins(tmp_path, slices, [to_enhanced(slices)], "dicom-missing-slice")


def test_real_series_equals_its_multiframe_twin(shared_data, tmp_path):
    """A real CT gives the same volume as one enhanced object of its pixels."""
    files = sorted((shared_data / "totalsegmentator-ct-dicom").rglob("*.dcm"))
    slices = [data for data in map(pydicom.dcmread, files) if data.get("Modality") == "CT"]
    for data in slices:
        if data.file_meta.TransferSyntaxUID.is_compressed:
            data.decompress(generate_instance_uid=False)
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SeriesInstanceUID = "1.2.3"
    multi = assert_twins(tmp_path, slices, [to_enhanced(shuffled(slices))])
    assert multi.volume.array_DHW.shape[0] == len(slices)
