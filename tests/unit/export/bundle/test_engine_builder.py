"""`tmi build` works on a copy of the bundle that it opened."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from factories.paths import ROOT
from tmi.export.bundle.additions import staged_copy
from tmi.runtime.bundle.reader import open_bundle, write_manifest
from tmi.toolkit.errors import DamagedError

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2" / "bundle"


def test_copy_of_an_exchanged_bundle_is_rejected(tmp_path):
    """Engines are not built from a consistent bundle that took the opened one's place while it was copied."""
    folder = Path(shutil.copytree(PUBLISHED, tmp_path / "bundle"))
    bundle = open_bundle(folder)
    assert staged_copy(bundle, tmp_path / "stage").digest == bundle.digest
    write_manifest(folder, replace(bundle.manifest, threshold=0.1))
    with pytest.raises(DamagedError, match="was exchanged during the build"):
        staged_copy(bundle, tmp_path / "stage")
