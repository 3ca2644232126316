"""The extraction settings: one pyradiomics parameter dictionary, stored as JSON next to this module.

`docs/radiomics.md` gives the reason for each value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from tmi.toolkit.storage.hashing import sha256_json

AXES = "RAS"
"""Directions that the axes x, y, z of the volume lead to when features are extracted. They matter: the wavelet bands of
a mirrored volume are others. SimpleITK gives LPS for an axial DICOM series."""
PYRADIOMICS_VERSION = "3.0.1"
"""The version of pyradiomics whose features are computed: their names, definitions and rounding."""


def _load() -> Mapping[str, Any]:
    text = files("tmi.toolkit.radiomics").joinpath("data/radiomics_settings.json").read_text(encoding="utf-8")
    return MappingProxyType(json.loads(text))


SETTINGS: Mapping[str, Any] = _load()
"""`setting`, `imageType` and `featureClass` of a pyradiomics parameter file."""

SETTINGS_DIGEST: str = sha256_json(dict(SETTINGS))
"""SHA-256 of the settings' canonical JSON form."""
