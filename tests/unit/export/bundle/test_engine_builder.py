"""`tmi build` works on a copy of the bundle that it opened."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from factories.paths import ROOT
from tmi.export.bundle.engine_builder import _require_same_bundle
from tmi.runtime.bundle.reader import open_bundle, write_manifest
from tmi.toolkit.errors import DamagedError

PUBLISHED = ROOT / "tests" / "unit" / "runtime" / "bundle" / "data" / "tmi-bundle-2" / "bundle"


def test_copy_of_an_exchanged_bundle_is_rejected(tmp_path):
    """Engines are not built from a consistent bundle that took the opened one's place while it was copied."""
    copy = shutil.copytree(PUBLISHED, tmp_path / "copy")
    bundle = open_bundle(PUBLISHED)
    _require_same_bundle(bundle, copy)
    write_manifest(copy, replace(bundle.manifest, threshold=0.1))
    with pytest.raises(DamagedError, match="was exchanged during the build"):
        _require_same_bundle(bundle, copy)
