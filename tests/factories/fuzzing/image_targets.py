"""Readers of images: NIfTI, NRRD, MetaImage and DICOM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from factories.cases import AFFINE
from factories.fuzzing import mutators as m
from factories.fuzzing.registry import Prepare, Read, target

LABELS = b"""<?xml version="1.0"?><CaretExtension><VolumeInformation Index="0"><LabelTable>
<Label Key="1" Red="1"><![CDATA[liver]]></Label><Label Key="2" Red="0"><![CDATA[spleen]]></Label>
</LabelTable></VolumeInformation></CaretExtension>"""


def _image(name: str, kind: str) -> Prepare:
    def prepare(folder: Path) -> Read:
        from tmi.toolkit.ingest.image_files import read_image

        write_image(folder, name, kind)
        return lambda: read_image(folder / name, kind=kind, case_id="C")

    return prepare


def write_image(folder: Path, name: str, kind: str) -> None:
    """Write a small volume in any format."""
    import SimpleITK

    array = np.random.default_rng(3).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
    if kind == "mask":
        array = (array > 0).astype(np.uint8) + (array > 500).astype(np.uint8)
    if ".nii" in name:
        image = nib.Nifti1Image(array, AFFINE)
        if kind == "mask":
            image.header.extensions.append(nib.nifti1.Nifti1Extension(0, LABELS))
        nib.save(image, folder / name)
        return
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((1.5, 2.0, 3.0))
    if kind == "mask":
        for key, value in {"Segment0_Name": "liver", "Segment0_LabelValue": "1", "Segment1_Name": "spleen",
                           "Segment1_LabelValue": "2"}.items():  # fmt: skip
            image.SetMetaData(key, value)
    SimpleITK.WriteImage(image, str(folder / name), not name.endswith("hd"))


target("CT in NIfTI", "ct.nii", m.plain_nifti)(_image("ct.nii", "ct"))
target("mask with names", "mask.nii", m.any_bytes)(_image("mask.nii", "mask"))
for _name in ("ct.nrrd", "ct.nhdr", "ct.mha", "ct.mhd"):
    _end = b"\n\n" if _name.startswith("ct.n") else b"ElementDataFile"
    target(f"CT in {_name[3:]}", _name, m.header_and_data(_end))(_image(_name, "ct"))
target("mask in seg.nrrd", "mask.seg.nrrd", m.header_and_data(b"\n\n"))(_image("mask.seg.nrrd", "mask"))


def _series_spec() -> Any:
    from factories.dicom_series import SeriesSpec

    return SeriesSpec(slices=5, rows=12, columns=16, spacing_mm=(22.0, 22.0), step_mm=28.0)


@target("DICOM slice", "series/IM0002.dcm", m.dicom)
def _dicom(folder: Path) -> Read:
    from factories.dicom_series import make_slices, write_slices
    from tmi.toolkit.ingest.dicom.ct import read_dicom_ct

    write_slices(folder / "series", make_slices(_series_spec()))
    return lambda: read_dicom_ct(folder / "series", series=None, fixes=(), case_id="C")


def _dicom_mask(name: str) -> Prepare:
    def prepare(folder: Path) -> Read:
        from factories.dicom_series import (
            liver_contour,
            liver_masks,
            make_slices,
            write_rtstruct,
            write_seg,
            write_slices,
        )
        from tmi.toolkit.ingest.dicom.ct import read_dicom_ct
        from tmi.toolkit.ingest.mask_importer import import_mask

        spec = _series_spec()
        write_slices(folder / "series", make_slices(spec))
        ct = read_dicom_ct(folder / "series", series=None, fixes=(), case_id="C")
        if name == "seg.dcm":
            write_seg(folder / name, make_slices(spec), [liver_masks(spec)], ["hepar"])
        else:
            contours = [c for k in range(spec.slices) if (c := liver_contour(spec, k, points=20)) is not None]
            write_rtstruct(folder / name, make_slices(spec)[0], {"liver": contours})
        return lambda: import_mask(folder / name, ct, wanted=None, fixes=(), case_id="C")

    return prepare


target("DICOM SEG", "seg.dcm", m.dicom)(_dicom_mask("seg.dcm"))
target("RTSTRUCT", "rt.dcm", m.dicom)(_dicom_mask("rt.dcm"))
