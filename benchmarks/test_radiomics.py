"""How much quicker than one plain call of pyradiomics is the extraction of the 1,781 features?

`benchmarks/radiomics_extraction.py` measures it; here one round of it on the phantom's liver.
"""

from __future__ import annotations

import pytest

import radiomics_extraction
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.radiomics.fast_extractor import reference_path_reason


def test_radiomics_extraction(record) -> None:
    reason = reference_path_reason()
    if reason is not None:
        pytest.skip(f"the fast path is not available: {reason}")
    liver = radiomics_extraction.phantom_liver()
    found = record.once(lambda: radiomics_extraction.measure(liver, [available_cores()], min(3, record.repeats)))
    for road, seconds in found["seconds"].items():
        record.note(f"{road} s", seconds, "s")
    for road, gain in found["speedup"].items():
        record.note(f"{road} / plain", 1 / gain, "x")
    record.note("largest relative difference", max(found["largest_relative_difference"].values()))
