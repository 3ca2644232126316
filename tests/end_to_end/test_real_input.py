"""Real input through the whole pipeline: an abdominal CT, a mask with many labels, a row of a trial's table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from factories.real_case import LIVER_LABEL, write_real_case
from factories.tmi_command import tmi
from tmi.runtime.engines.registry import ENGINES, missing_requirement
from tmi.toolkit.cases.case import open_case
from tmi.toolkit.clinical.record import read_clinical
from tmi.toolkit.clinical.schema import load_schema
from tmi.toolkit.imaging.volume import read_ct, read_mask
from tmi.toolkit.radiomics.feature_names import FEATURE_NAMES
from tmi.toolkit.radiomics.table import read_table, write_table


@pytest.fixture(scope="module")
def real_case(tmp_path_factory, shared_data) -> Path:
    """A real case without a radiomics table, as a user provides it; read only."""
    return write_real_case(tmp_path_factory.mktemp("real") / "R001", shared_data)


@pytest.fixture(scope="module")
def features(real_case) -> np.ndarray:
    """The 1,781 features of the liver."""
    from tmi.toolkit.radiomics.extractor import extract

    case = open_case(real_case, mask_label=LIVER_LABEL)
    ct = read_ct(case)
    return extract(ct, read_mask(case, ct))


@pytest.fixture(scope="module")
def extracted_case(tmp_path_factory, real_case, features) -> Path:
    """The same case with its features in a table, so that they are extracted once; read only."""
    copy = Path(shutil.copytree(real_case, tmp_path_factory.mktemp("extracted") / "R001"))
    write_table(copy / "radiomics.csv", features)
    return copy


def predict(case: Path, bundle: Path, engine: str) -> dict[str, object]:
    outcome = tmi(
        "predict", case, "--bundle", bundle, "--engine", engine, "--mask-label", LIVER_LABEL, "--threads", 1, "--json"
    )
    assert outcome.code == 0, outcome.err
    (result,) = outcome.document["results"]
    return result


def test_record_is_in_schema_units(real_case, shared_data):
    """The values of the record are in the units of the clinical schema."""
    values = read_clinical(open_case(real_case), load_schema()).values
    # Row 1 of the table: bilirubin 14.5 mg/dL, albumin 2.6 g/dL, cholesterol 261 mg/dL.
    assert values["total_bilirubin"] == pytest.approx(248.0, abs=0.1)
    assert values["albumin"] == pytest.approx(26.0)
    assert values["cholesterol"] == pytest.approx(6.75, abs=0.01)
    assert values["height"] is None


def test_1781_finite_features_are_extracted(features):
    """All features are finite, and the volume is that of the mask."""
    assert features.shape == (1781,)
    assert np.isfinite(features).all()
    # 41,692 voxels of 3 mm: the mesh's volume is within a percent of the voxels'.
    volume_mm3 = features[FEATURE_NAMES.index("original_shape_VoxelVolume")]
    assert volume_mm3 == pytest.approx(41692 * 27, rel=1e-6)


def test_missing_features_are_extracted_with_a_warning(real_case, extracted_case, features, tiny_bundle):
    """A case without a table is predicted as with its table, and a warning reports the extraction."""
    extracted = predict(real_case, tiny_bundle, "onnx")
    assert any("extracted" in w["message"] for w in extracted["warnings"])
    assert extracted["seconds"]["radiomics"] > 0.2
    given = predict(extracted_case, tiny_bundle, "onnx")
    assert not any("extracted" in w["message"] for w in given["warnings"])
    assert extracted["probability"] == pytest.approx(given["probability"], abs=1e-9)
    np.testing.assert_array_equal(read_table(extracted_case / "radiomics.csv", case_id="R001"), features)


@pytest.fixture(scope="module")
def eager_probability(tiny_bundle, extracted_case) -> dict[str, float]:
    from tmi.runtime import Predictor

    with Predictor.open(tiny_bundle, engine="eager", threads=1) as predictor:
        (prediction,) = predictor.predict(extracted_case, mask_label=LIVER_LABEL)
    return dict(prediction.probability)


# INT8 graphs need a cohort to be calibrated on: tests/unit/export/quantization compares them.
@pytest.mark.parametrize(
    "engine",
    [
        name
        for name, spec in ENGINES.items()
        if not spec.gpu and missing_requirement(name) is None and spec.artefact != "onnx-int8"
    ],
)
def test_engine_matches_eager_on_real_case(extracted_case, tiny_bundle, eager_probability, engine):
    """Every engine agrees with eager within its declared error."""
    result = predict(extracted_case, tiny_bundle, engine)
    assert result["engine"] == engine
    assert result["probability"] == pytest.approx(eager_probability, abs=max(ENGINES[engine].max_abs_err, 1e-9))


def test_mask_label_selects_the_organ(real_case):
    """Another label gives another mask."""
    case = open_case(real_case, mask_label=LIVER_LABEL)
    ct = read_ct(case)
    assert int(read_mask(case, ct).array_DHW.sum()) == 41692
    spleen = open_case(real_case, mask_label=1)
    assert int(read_mask(spleen, ct).array_DHW.sum()) != 41692


def test_result_has_no_patient_value(extracted_case, tiny_bundle):
    """The JSON result has neither the patient id nor a value of the record."""
    record = json.loads((extracted_case / "clinical.json").read_text())
    text = json.dumps(predict(extracted_case, tiny_bundle, "onnx"))
    assert record["patient_id"] not in text
    assert str(record["values"]["age"]) not in text
