"""Clinical records without a missing value, and a report of ordinary length."""

from __future__ import annotations

import numpy as np

from tmi.toolkit.clinical.record import ClinicalRecord, Value
from tmi.toolkit.clinical.schema import Schema

REPORT = (
    "CT abdomen with contrast, portal venous phase. The liver is shrunken with a nodular surface contour and "
    "hypertrophy of the caudate lobe, consistent with cirrhosis. No arterially hyperenhancing lesion with washout. "
    "Recanalised paraumbilical vein, splenomegaly of 15.2 cm and moderate perisplenic varices indicate portal "
    "hypertension. The portal vein is patent, 14 mm in diameter. Moderate ascites in all quadrants. Gallbladder wall "
    "thickening, most likely reactive. Pancreas, adrenal glands and kidneys are unremarkable. No enlarged lymph nodes. "
    "Degenerative changes of the lumbar spine. Impression: Decompensated cirrhosis, Child-Pugh B, with portal "
    "hypertension and ascites; no focal liver lesion suspicious for hepatocellular carcinoma."
)
"""A radiologist's report of 100 words, written for these tests."""


def complete_record(schema: Schema, *, seed: int, optional: bool = True) -> ClinicalRecord:
    """A record with every field, numbers log-uniform over the plausible range with four significant digits."""
    random = np.random.default_rng(seed)
    values: dict[str, Value] = {}
    for field in schema.fields:
        if field.optional and not optional:
            values[field.name] = None
        elif field.choices is not None:
            values[field.name] = field.choices[random.integers(len(field.choices))]
        else:
            low, high = field.plausible or (1.0, 1000.0)
            values[field.name] = float(np.exp(random.uniform(np.log(max(low, high / 1e4, 0.01)), np.log(high))))
    return ClinicalRecord(patient_id=None, values=values)
