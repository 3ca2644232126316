"""Cases in memory: the same result as their folders to the last bit, typed rejections, and clear type errors."""

from __future__ import annotations

import json
import pydoc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import tmi.runtime
from tmi.runtime import CaseArrays, Prediction, Predictor, RejectedCase
from tmi.runtime.serving.results import document
from tmi.toolkit.cases.case import open_case
from tmi.toolkit.radiomics.table import read_table

SECONDS = ("seconds", "overlapped")


def in_memory(folder: Path, **changes: object) -> CaseArrays:
    """The case of a folder as arrays, as a program that loads it with nibabel has them."""
    ct, mask = (nib.load(folder / name) for name in ("ct.nii.gz", "liver.nii.gz"))
    given = {
        "case_id": folder.name,
        "ct_XYZ": np.asanyarray(ct.dataobj),
        "affine_xyz": ct.affine,
        "mask_XYZ": np.asanyarray(mask.dataobj),
        "radiomics_F": read_table(folder / "radiomics.csv", case_id=folder.name),
        "record": json.loads((folder / "clinical.json").read_text()),
    }
    return CaseArrays(**given | changes)  # type: ignore[arg-type]


def content(result) -> dict:
    """A result without its seconds, which no two predictions share."""
    return {key: value for key, value in result.to_dict().items() if key not in SECONDS}


def only(results) -> Prediction:
    (result,) = results
    assert isinstance(result, Prediction), result
    return result


def test_arrays_give_the_result_of_the_folder(predictor, good_cases):
    """Every field of the result is equal, the probabilities to the last bit, alone and in one batch with folders."""
    folders = [content(result) for result in predictor.predict(good_cases[:2])]
    assert [content(result) for result in predictor.predict([in_memory(case) for case in good_cases[:2]])] == folders
    mixed = predictor.predict([in_memory(good_cases[0]), good_cases[1]], batch=2)
    assert [content(r) for r in mixed] == [content(r) for r in predictor.predict(good_cases[:2], batch=2)]


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "i4", "f4", "f8"])
def test_every_type_of_voxel_gives_the_result_of_its_file(predictor, good_cases, tmp_path, dtype):
    """A CT of any stored type, in another orientation and with a mask of labels."""
    source = nib.load(good_cases[0] / "ct.nii.gz")
    hu = np.asanyarray(source.dataobj).astype(np.float64)
    hu += 0.25 if dtype in ("f4", "f8") else 0
    flipped = np.asfortranarray(hu[::-1].transpose(1, 0, 2).astype(dtype))
    turned = source.affine @ np.array([[0, -1, 0, hu.shape[0] - 1], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    mask = np.asanyarray(nib.load(good_cases[0] / "liver.nii.gz").dataobj)[::-1].transpose(1, 0, 2).astype(np.uint8) * 5
    case = tmp_path / good_cases[0].name
    case.mkdir()
    for name in ("clinical.json", "radiomics.csv"):
        (case / name).write_bytes((good_cases[0] / name).read_bytes())
    nib.save(nib.Nifti1Image(flipped, turned, dtype=flipped.dtype), case / "ct.nii.gz")
    nib.save(nib.Nifti1Image(mask, turned), case / "liver.nii.gz")
    folder = only(predictor.predict(open_case(case, mask_label=5)))
    arrays = in_memory(case, ct_XYZ=flipped, mask_XYZ=mask, mask_label=5)
    assert content(only(predictor.predict(arrays))) == content(folder)


def test_features_are_extracted_from_the_mask(predictor, good_cases, tmp_path):
    """Without a vector of features they are extracted, as for a folder without radiomics.csv."""
    case = tmp_path / good_cases[0].name
    case.mkdir()
    for name in ("ct.nii.gz", "liver.nii.gz", "clinical.json"):
        (case / name).write_bytes((good_cases[0] / name).read_bytes())
    arrays = in_memory(good_cases[0], radiomics_F=None)
    assert content(only(predictor.predict(arrays))) == content(only(predictor.predict(case)))


def test_arrays_stay_as_they_were(predictor, good_cases):
    """A prediction neither changes an array nor makes it read-only; a mask of booleans is read as labels."""
    case = in_memory(good_cases[0])
    mask = case.mask_XYZ.astype(bool)
    copies = case.ct_XYZ.copy(), case.radiomics_F.copy()
    result = only(predictor.predict(in_memory(good_cases[0], ct_XYZ=case.ct_XYZ, mask_XYZ=mask)))
    assert content(result) == content(only(predictor.predict(case)))
    assert np.array_equal(case.ct_XYZ, copies[0])
    assert np.array_equal(case.radiomics_F, copies[1])
    assert case.radiomics_F.flags.writeable
    assert mask.flags.writeable


FAULTS = {
    "ct-missing": {"ct_XYZ": None},
    "ct-not-3d": {"ct_XYZ": np.zeros((4, 4))},
    "ct-unreadable": {"ct_XYZ": np.zeros((0, 4, 4))},
    "ct-affine": {"affine_xyz": np.zeros((4, 4))},
    "ct-nan": {"ct_XYZ": np.full((32, 28, 24), np.nan)},
    "mask-grid": {"mask_XYZ": np.ones((3, 4, 5), np.uint8)},
    "mask-affine": {"mask_affine_xyz": np.zeros((4, 4))},
    "mask-empty": {"mask_XYZ": np.zeros((32, 28, 24), bool)},
    "mask-values": {"mask_XYZ": np.full((32, 28, 24), 0.5)},
    "radiomics-missing": {"radiomics_F": None, "mask_XYZ": None},
    "radiomics-columns": {"radiomics_F": np.zeros(7)},
    "radiomics-value": {"radiomics_F": np.full(1781, np.inf)},
    "clinical-missing": {"record": None},
    "clinical-malformed": {"record": {"albumin": 38}},
    "clinical-unknown-field": {"record": {"values": {"albumine": 38}}},
    "clinical-type": {"record": {"values": {"albumin": "38"}}},
    "clinical-range": {"record": {"values": {"albumin": float("nan")}}},
    "patient-mismatch": {"patient_id": "another"},
}


@pytest.mark.parametrize("code", FAULTS)
def test_faulty_arrays_are_rejected_with_the_codes_of_files(predictor, good_cases, code):
    """A faulty array is one rejected case, with a code and a fix; its neighbour is predicted."""
    faulty, good = predictor.predict([in_memory(good_cases[0], **FAULTS[code]), in_memory(good_cases[1])])
    assert isinstance(faulty, RejectedCase)
    assert faulty.code == code
    assert faulty.fix
    assert isinstance(good, Prediction)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ct_XYZ": [[1]]}, "ct_XYZ must be a numpy array of numbers, not list"),
        ({"ct_XYZ": np.array(["a"])}, "ct_XYZ must be a numpy array of numbers, not an array of <U1"),
        ({"mask_XYZ": "liver.nii.gz"}, "mask_XYZ must be a numpy array of numbers, not str"),
        ({"affine_xyz": np.eye(3)}, r"affine_xyz must be a 4x4 matrix, not an array of shape \(3, 3\)"),
        ({"affine_xyz": None}, "ct_XYZ needs affine_xyz"),
        ({"radiomics_F": {"a": 1.0}}, "radiomics_F must be a numpy array of numbers, not dict"),
        ({"record": "clinical.json"}, "record must be a dict, not str"),
        ({"record": {"values": {"albumin": object()}}}, "record must hold texts, numbers, None and dicts of them"),
        ({"case_id": 7}, "case_id must be a str, not int"),
        ({"mask_label": "5"}, "mask_label must be an int or a tuple, not str"),
    ],
)
def test_wrong_type_of_an_array_is_named(good_cases, changes, text):
    """A wrong type is a TypeError that names the argument and both types, before anything is predicted."""
    with pytest.raises(TypeError, match=text):
        in_memory(good_cases[0], **changes)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"cases": 7}, "cases must be Case or Path or str or Iterable, not int"),
        ({"cases": None}, "cases must be Case or Path or str or Iterable, not NoneType"),
        ({"cases": ["a", 7]}, r"cases\[1\] must be Case or Path or str, not int"),
        ({"cases": [np.zeros((2, 2, 2))]}, r"cases\[0\] must be Case or Path or str, not ndarray"),
        ({"cases": "a", "batch": "2"}, "batch must be int, not str"),
        ({"cases": "a", "batch": True}, "batch must be int, not bool"),
        ({"cases": "a", "mask_label": "5"}, "mask_label must be int or tuple or None, not str"),
    ],
)
def test_wrong_type_of_a_prediction_is_named(predictor, arguments, text):
    """A wrong type of an argument of `predict` is a TypeError, not an error of a library below."""
    with pytest.raises(TypeError, match=text):
        predictor.predict(**arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"bundle": 3}, "bundle must be Path or str or Bundle, not int"),
        ({"bundle": "b", "engine": 1}, "engine must be str, not int"),
        ({"bundle": "b", "precision": 32}, "precision must be str, not int"),
        ({"bundle": "b", "threads": "2"}, "threads must be int or None, not str"),
    ],
)
def test_wrong_type_of_open_is_named(arguments, text):
    """A wrong type of an argument of `Predictor.open` is a TypeError."""
    with pytest.raises(TypeError, match=text):
        Predictor.open(**arguments)


def test_to_dict_equals_the_document(predictor, good_cases, tmp_path):
    """`to_dict` of a result and its parts is their entry in the JSON document, after a round through JSON."""
    results = predictor.predict([good_cases[0], tmp_path / "missing"])
    entries = json.loads(
        json.dumps(
            document(
                results,
                bundle=predictor.bundle,
                engine=predictor.engine_record,
                batch=1,
                created="2026-01-01T00:00:00+00:00",
                version=tmi.runtime.__version__,
            )
        )
    )["results"]
    assert [result.to_dict() for result in results] == entries
    assert [entry["status"] for entry in entries] == ["predicted", "refused"]
    assert [fold.to_dict() for fold in results[0].folds] == entries[0]["folds"]
    assert results[0].warnings
    assert [notice.to_dict() for notice in results[0].warnings] == entries[0]["warnings"]


def test_help_names_every_field_and_the_version():
    """`help(tmi.runtime)` shows an example, the version, and every field of cases and results in words."""
    text = pydoc.render_doc(tmi.runtime, renderer=pydoc.plaintext)
    assert "isinstance(result, RejectedCase)" in text
    assert tmi.runtime.__version__[0].isdigit()
    for kind in (CaseArrays, Prediction, RejectedCase, tmi.runtime.FoldPrediction, tmi.runtime.Issue):
        documented = kind.__doc__ or ""
        names = [name for name in kind.__dataclass_fields__ if name != "folder"]
        assert [name for name in names if f"    {name}: " not in documented] == []
