"""How much faster is CT preprocessing than MONAI's transforms, and than SimpleITK's read with torch's resampling?

The benchmark goes from `ct.nii.gz` to the network's input of 64x512x512 voxels at either size. The three volumes must
be equal within 1e-5. It uses a synthetic CT of typical size, and the real one if TMI_TEST_DATA has it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing_paths import PIPELINES, write_body_ct

TOLERANCE = 1e-5
NAMES = {"tmi": "tmi", "monai": "MONAI", "simpleitk": "SimpleITK + torch"}


def compare(record: Any, path: Path) -> None:
    """Time the implementations in turn and compare their volumes."""
    volumes: dict[str, np.ndarray[Any, Any]] = {}

    def prepare_with(name: str) -> Any:
        def prepare() -> None:
            volumes[name] = PIPELINES[name](path)

        return prepare

    record.paired({NAMES[name]: prepare_with(name) for name in PIPELINES}, against="MONAI")
    for name, volume in volumes.items():
        difference = float(np.abs(volumes["tmi"] - volume).max())
        assert difference <= TOLERANCE, f"{name} differs by {difference:.2g}"
    tmi, simpleitk = (record.metrics[f"{NAMES[name]} s"]["rounds"] for name in ("tmi", "simpleitk"))
    rounds = [a / b for a, b in zip(tmi, simpleitk, strict=True)]
    record.note("tmi / SimpleITK + torch", float(np.median(rounds)), "x", lowest=min(rounds), highest=max(rounds))


def test_preparing_a_full_size_ct(record, tmp_path) -> None:
    compare(record, write_body_ct(tmp_path / "ct.nii.gz"))


def test_preparing_the_real_ct(record, tmp_path) -> None:
    source = Path(os.environ.get("TMI_TEST_DATA", "../shared/data")) / "totalsegmentator-ct-3mm" / "example_ct.nii.gz"
    if not source.is_file():
        pytest.skip("the real CT was not found: set TMI_TEST_DATA")
    compare(record, Path(shutil.copy(source, tmp_path / "ct.nii.gz")))
