"""How much faster than pyradiomics is the extraction of the 1,781 features?

The benchmark runs `benchmarks/radiomics_extraction.py` on the liver of the phantom.
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
    result = record.once(lambda: radiomics_extraction.measure(liver, [available_cores()], min(3, record.repeats)))
    for path, seconds in result["seconds"].items():
        record.note(f"{path} s", seconds, "s")
    for path, speedup in result["speedup"].items():
        record.note(f"{path} / plain", 1 / speedup, "x")
    record.note("largest relative difference", max(result["largest_relative_difference"].values()))
