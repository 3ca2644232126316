"""A case of real data: an abdominal CT with its liver mask, and a row of the table of the Mayo PBC trial.

CT and record belong to different people. The case tests the pipeline on real data; its prediction has no
meaning.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

LIVER_LABEL = 5
"""Label of the liver in the mask file."""
CONVERTED = {
    "total_bilirubin": ("bili", 17.104),  # mg/dL -> umol/L
    "cholesterol": ("chol", 0.02586),  # mg/dL -> mmol/L
    "albumin": ("albumin", 10.0),  # g/dL -> g/L
    "alp": ("alk.phos", 1.0),  # U/L
    "ast": ("ast", 1.0),  # U/L
    "triglycerides": ("trig", 0.01129),  # mg/dL -> mmol/L
    "platelets": ("platelet", 1.0),  # 10^9/L
}
"""Field of the clinical schema -> column of the table, and factor to the unit of the schema."""


def write_real_case(folder: Path, shared_data: Path, *, row: int = 0) -> Path:
    """Write the case without a radiomics table, so that its 1,781 features must be extracted."""
    folder.mkdir(parents=True)
    source = shared_data / "totalsegmentator-ct-3mm"
    shutil.copy(source / "example_ct.nii.gz", folder / "ct.nii.gz")
    shutil.copy(source / "example_seg_fast_force_split.nii.gz", folder / "liver.nii.gz")
    with (shared_data / "mayo-pbc" / "pbc.csv").open(newline="") as stream:
        patient = list(csv.DictReader(stream))[row]
    values: dict[str, object] = {
        "sex": {"f": "female", "m": "male"}[patient["sex"]],
        "age": float(patient["age"]),
        "aetiology": "primary biliary cholangitis",
    }
    for field, (column, factor) in CONVERTED.items():
        values[field] = float(patient[column]) * factor if patient[column] else None
    record = {"patient_id": f"pbc-{patient['id']}", "values": values, "report": None}
    (folder / "clinical.json").write_text(json.dumps(record))
    return folder
