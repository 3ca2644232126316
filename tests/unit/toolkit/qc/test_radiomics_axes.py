"""Radiomics depend on the directions of the axes: they are recorded, and named if they explain a difference."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest

from factories.good_cohort import AFFINE, phantom, write_good_cohort, write_volume
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import Case
from tmi.toolkit.imaging.volume import Volume, read_ct, read_mask
from tmi.toolkit.preprocessing.radiomics_batch import ExtractionOptions, make_tables
from tmi.toolkit.qc.radiomics_comparison import to_axes
from tmi.toolkit.qc.report import document_schema
from tmi.toolkit.radiomics.extractor import extract, extract_reference
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.provenance import read_record, record_path, table_axes
from tmi.toolkit.radiomics.table import write_table


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_good_cohort(tmp_path_factory.mktemp("axes") / "good")


@pytest.fixture
def case(cohort) -> Case:
    return Case(folder=cohort / "C1", case_id="C1")


def simple_itk_features(volumes: list[np.ndarray]) -> np.ndarray:
    """Features of arrays [x, y, z] whose axes lead to L, P and S, by one call of pyradiomics."""
    flipped = [np.ascontiguousarray(v[::-1, ::-1].transpose(2, 1, 0)) for v in volumes]
    return extract_reference(*(Volume(array_DHW=a, affine_xyz=AFFINE) for a in flipped))


def test_axes_are_flipped_and_exchanged():
    """`to_axes` gives the array as it is stored with these axes, with its spacing."""
    array_XYZ = np.arange(24).reshape(2, 3, 4)
    volume = Volume(array_DHW=array_XYZ.transpose(2, 1, 0), affine_xyz=np.diag([1.0, 2.0, 3.0, 1.0]))
    assert np.array_equal(to_axes(volume, "LPS").array_DHW.transpose(2, 1, 0), array_XYZ[::-1, ::-1])
    assert to_axes(volume, "LPS").spacing_DHW_mm == (3.0, 2.0, 1.0)
    coronal = to_axes(volume, "RSP")
    assert np.array_equal(coronal.array_DHW.transpose(2, 1, 0), array_XYZ.transpose(0, 2, 1)[:, :, ::-1])
    assert coronal.spacing_DHW_mm == (2.0, 3.0, 1.0)
    assert to_axes(volume, "RAS") is volume


def test_table_in_the_axes_of_a_dicom_series_is_explained(case):
    """A table of plain pyradiomics on the DICOM series differs in hundreds of features; LPS is named as the reason."""
    made = phantom(1)
    write_table(case.radiomics, simple_itk_features([made.hu_XYZ, made.liver_XYZ.astype(np.uint8)]))
    outcome = tmi("check", case.folder, "--recompute", "--json")
    jsonschema.validate(outcome.document, document_schema())
    (comparison,) = outcome.document["recomputed"]
    assert comparison["differ"] > 400
    assert (comparison["axes"], comparison["axes_differ"]) == ("LPS", 0)
    text = tmi("check", case.folder, "--recompute").out
    assert "computed in the axes LPS, not RAS: in LPS all agree [radiomics-differ]" in text
    assert f"; in the axes LPS: {len(FEATURE_NAMES)}" in text


def test_axes_of_the_stored_file_are_explained(case):
    """A table of a program that reads the NIfTI file in its stored axes is explained by these."""
    made = phantom(1)
    for name, array in (("ct.nii.gz", made.hu_XYZ), ("liver.nii.gz", made.liver_XYZ.astype(np.uint8))):
        write_volume(case.folder / name, array[:, ::-1], AFFINE @ np.diag([1.0, -1.0, 1.0, 1.0]))
    ct = read_ct(case)
    values = extract(to_axes(ct, "RPS"), to_axes(read_mask(case, ct), "RPS"))
    write_table(case.radiomics, values)
    (comparison,) = tmi("check", case.folder, "--recompute", "--json").document["recomputed"]
    assert (comparison["axes"], comparison["axes_differ"]) == ("RPS", 0)


def test_other_differences_are_not_blamed_on_the_axes(case):
    """A table of another case has no axes; one value that was edited in an LPS table remains."""
    ct = read_ct(case)
    values = extract(ct, read_mask(case, ct))
    write_table(case.radiomics, values * 1.5)
    (comparison,) = tmi("check", case.folder, "--recompute", "--json").document["recomputed"]
    assert (comparison["axes"], comparison["axes_differ"]) == (None, None)
    values = extract(to_axes(ct, "LPS"), to_axes(read_mask(case, ct), "LPS"))
    values[3] *= 2
    write_table(case.radiomics, values)
    assert "in LPS all but 1 agree" in tmi("check", case.folder, "--recompute").out


def test_axes_are_recorded(case, tmp_path):
    """An extracted table records RAS, an external one is of unknown axes, and earlier records are read."""
    list(make_tables([case], ExtractionOptions(force=True, use_cache=False), jobs=1))
    record = read_record(case)
    assert record is not None
    assert record.axes == "RAS"
    assert table_axes(case) == "RAS"
    earlier = json.loads(record_path(case).read_text())
    del earlier["axes"]
    record_path(case).write_text(json.dumps(earlier))
    assert table_axes(case) == "RAS"
    (tmp_path / "t.csv").write_text(f"case_id,{','.join(FEATURE_NAMES)}\nC1{',1' * len(FEATURE_NAMES)}\n")
    outcome = tmi("radiomics", case.folder, "--from", tmp_path / "t.csv", "--force")
    assert "the axes of the table are unknown; this package extracts in RAS" in outcome.err
    assert table_axes(case) == "unknown"
    case.radiomics.unlink()
    assert table_axes(case) == "RAS"
