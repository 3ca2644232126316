"""A case on which a library raises is rejected with a code; the other cases of the command are not lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from factories.cases import write_case
from factories.paths import ROOT
from factories.tmi_command import tmi
from tmi.toolkit.cases.case import Case, open_cohort
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.compute.third_party import library_call
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.preprocessing.pipeline import PreparedCase, prepare_case
from tmi.training.data import dataset
from tmi.training.data.dataset import prepare_cohort

BUNDLE = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2" / "bundle"
FAILED = "radiomics-failed"


def write_plain_case(folder: Path, *, report: str | None = None, **options: object) -> Path:
    """A valid case without a table, whose record has the fields of the published bundle's schema."""
    write_case(folder, with_radiomics=False, **options)  # type: ignore[arg-type]
    record = {"patient_id": None, "values": {"sex": "male", "albumin": 40}, "report": report}
    (folder / "clinical.json").write_text(json.dumps(record))
    return folder


def voxel(value: int) -> Callable[[Path], object]:
    """Set one voxel under the mask."""

    def plant(folder: Path) -> None:
        image = nib.load(folder / "ct.nii.gz")
        array = np.asarray(image.dataobj).astype(np.int16)
        at = tuple(np.argwhere(np.asarray(nib.load(folder / "liver.nii.gz").dataobj) > 0)[99])
        array[at] = value
        nib.save(nib.Nifti1Image(array, image.affine), folder / "ct.nii.gz")

    return plant


def half_pair(key: str) -> Callable[[Path], object]:
    """Put half a surrogate pair into the record."""

    def plant(folder: Path) -> None:
        record = json.loads((folder / "clinical.json").read_text())
        (folder / "clinical.json").write_text(json.dumps({**record, key: "Zirrhose \ud83d"}))

    return plant


def no_utf8(folder: Path) -> None:
    """Give the folder a name that is not UTF-8."""
    os.rename(os.fsencode(folder), os.fsencode(folder.parent) + b"/B\xff")


BAD = {
    "voxel of -32768": (voxel(-32768), FAILED),
    "voxel of -32760": (voxel(-32760), FAILED),
    "half a pair in the report": (half_pair("report"), "clinical-malformed"),
    "half a pair in the patient id": (half_pair("patient_id"), "clinical-malformed"),
    "name that is not UTF-8": (no_utf8, "case-name"),
}


@pytest.fixture(params=BAD, ids=lambda name: name.replace(" ", "-"))
def bad(request, tmp_path) -> tuple[Path, str]:
    """Folder of a good case, a bad one and a good one; code of the bad one."""
    folder = tmp_path / "cases"
    for seed, name in enumerate("ABC"):
        write_plain_case(folder / name, seed=seed)
    plant, code = BAD[request.param]
    plant(folder / "B")
    return folder, code


def test_predict_rejects_the_case_alone(bad, tmp_path):
    """The bad case has its code in table and file, the others are predicted; the file is UTF-8."""
    folder, code = bad
    words = ("predict", folder, "--bundle", BUNDLE, "--engine", "onnx", "--threads", 1, "-o", tmp_path / "out.json")
    outcome = tmi(*words)
    assert outcome.code == 3, outcome.err
    results = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["results"]
    assert [r.get("code") for r in results] == [None, code, None]
    csv = tmi(*words[:-1], tmp_path / "out.csv")
    assert (csv.code, code in (tmp_path / "out.csv").read_text(encoding="utf-8")) == (3, True)


def test_radiomics_rejects_the_case_alone(bad):
    """`tmi radiomics` writes the tables of the other cases."""
    folder, code = bad
    outcome = tmi("radiomics", folder, "--jobs", 1)
    assert len(list(folder.glob("[AC]/radiomics.csv"))) == 2, outcome.err
    if not code.startswith("clinical"):
        assert (outcome.code, f"[{code}]" in outcome.err + outcome.out) == (3, True)


def test_check_goes_on_after_the_case(bad):
    """`tmi check` has a finding with the case's id, with --recompute for what only the extraction finds."""
    folder, code = bad
    if code == FAILED:
        for name in "ABC":
            shutil.copy(write_case(folder.parent / f"t{name}") / "radiomics.csv", folder / name / "radiomics.csv")
    outcome = tmi("check", folder, "--json", *(["--recompute"] if code == FAILED else []))
    found = {f["case_id"] for f in outcome.document["findings"] if f["code"] == code}
    assert (outcome.code, len(found)) == (3, 1)
    assert found < {"B", "B\\udcff"}


@pytest.mark.parametrize("bad", ["voxel of -32768", "name that is not UTF-8"], indirect=True)
def test_explain_and_report_reject_the_case_alone(bad, tmp_path):
    """Both write the files of the other cases."""
    folder, code = bad
    words = ("--bundle", BUNDLE, "--threads", 1, "--out")
    explained = tmi("explain", folder, *words, tmp_path / "explained", "--quick")
    assert (explained.code, f"[{code}]" in explained.err) == (3, True), explained.err
    assert sorted(p.name for p in (tmp_path / "explained").iterdir()) == ["A", "C"]
    reported = tmi("report", folder, *words, tmp_path / "report", "--engine", "onnx")
    assert (reported.code, f"[{code}]" in reported.err) == (3, True), reported.err
    assert sorted(p.name for p in (tmp_path / "report" / "cases").iterdir()) == ["A.html", "C.html"]


@pytest.mark.parametrize("name", ["voxel of -32760", "half a pair in the patient id"])
def test_training_prepares_the_other_cases(tmp_path, name):
    """The preparation of a training leaves the case out and reports it."""
    rows = ["case_id,patient_id,label"]
    for seed, case in enumerate("ABC"):
        write_case(tmp_path / "cohort" / case, seed=seed, with_radiomics=False, patient_id=f"P{case}")
        rows.append(f"{case},P{case},good")
    (tmp_path / "cohort" / "cohort.csv").write_text("\n".join(rows) + "\n")
    plant, code = BAD[name]
    plant(tmp_path / "cohort" / "B")
    arrays = prepare_cohort(open_cohort(tmp_path / "cohort"), tiny(), load_schema(), store=tmp_path / "store")
    assert [c.case_id for c in arrays.cases] == ["A", "C"]
    assert [(e.case_id, e.code) for e in arrays.rejected] == [("B", code)]


def test_training_rejects_an_unreadable_file(tmp_path, monkeypatch):
    """A disk error on one case's file is `case-unreadable`."""
    for case in "AB":
        write_case(tmp_path / case)
    (tmp_path / "cohort.csv").write_text("case_id,patient_id,label\nA,patient-A,good\nB,patient-B,bad\n")

    def failing(case: Case, *arguments: Any, **options: Any) -> PreparedCase:
        if case.case_id == "A":
            raise OSError(5, "Input/output error", str(case.ct))
        return prepare_case(case, *arguments, **options)

    monkeypatch.setattr(dataset, "prepare_case", failing)
    arrays = prepare_cohort(open_cohort(tmp_path), tiny(), load_schema(), store=tmp_path / "store")
    assert [c.case_id for c in arrays.cases] == ["B"]
    assert [(e.case_id, e.code) for e in arrays.rejected] == [("A", "case-unreadable")]


def test_dollars_of_a_case_id_are_no_formula(tmp_path):
    """Matplotlib would parse a title between dollars as mathematics and raise."""
    folder = write_plain_case(tmp_path / "a$\\frac{$b")
    outcome = tmi("explain", folder, "--bundle", BUNDLE, "--threads", 1, "--quick", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err


def test_error_of_a_library_names_it():
    """A panic, which is no `Exception`, becomes a rejection; an own error and Ctrl-C pass."""

    class PanicException(BaseException):
        pass

    def block(error: BaseException) -> None:
        with library_call("lib", code="c-d", task="do it", fix="fix", case_id="P1"):
            raise error

    with pytest.raises(InputRejectedError, match=r"case P1: lib failed to do it \(PanicException\)"):
        block(PanicException())
    for passed in (UsageError("what", fix="fix"), KeyboardInterrupt()):
        with pytest.raises(type(passed)):
            block(passed)
