"""A case in memory: arrays and a record in place of the files of a case folder.

    case = CaseArrays(case_id="P001", ct_XYZ=ct, affine_xyz=affine, mask_XYZ=liver, record={"values": {"albumin": 38}})

The arrays are what nibabel returns for the files: voxels in the order x, y, z, and the 4x4 affine from indices to RAS+
millimetres. They pass the same checks and give the same result as their files, and are not copied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.toolkit.cases.case import Case

IN_MEMORY = Path("in memory")
"""Folder of a case in memory; no such folder is read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseArrays(Case):
    """Inputs of one case in memory; those that the network does not use may be None.

    Args:
        case_id: id of the case in results and messages.
        patient_id: id of the patient, which is compared with the record's; None compares nothing.
        label: index of the outcome's class; predictions do not use it.
        mask_label: label of the liver in the mask, or several that are joined; None: every voxel that is not 0.
        ct_XYZ: CT in Hounsfield units: integers or floats, [x, y, z].
        affine_xyz: 4x4, index (x, y, z) of the CT -> RAS+ millimetres.
        mask_XYZ: liver mask, [x, y, z]: booleans or integer labels.
        mask_affine_xyz: 4x4 affine of the mask, which is compared with the CT's; None: the CT's.
        radiomics_F: 1,781 features in the order of `tmi.toolkit.radiomics.FEATURE_NAMES`, NaN where missing; None
            extracts them from the mask.
        record: clinical record with the keys of clinical.json: `values`, and optionally `patient_id`, `report`,
            `blood_date`.

    Raises:
        TypeError: an argument has another type than stated here; it names the argument and both types.
    """

    folder: Path = field(default=IN_MEMORY, init=False, repr=False)
    """A case in memory has no folder."""
    ct_XYZ: NDArray[Any] | None = field(default=None, repr=False)
    """CT in Hounsfield units: integers or floats, [x, y, z]."""
    affine_xyz: NDArray[Any] | None = field(default=None, repr=False)
    """4x4, index (x, y, z) of the CT -> RAS+ millimetres."""
    mask_XYZ: NDArray[Any] | None = field(default=None, repr=False)
    """Liver mask, [x, y, z]: booleans, or integer labels of which `mask_label` selects the liver."""
    mask_affine_xyz: NDArray[Any] | None = field(default=None, repr=False)
    """4x4 affine of the mask, which is compared with the CT's; None: the CT's."""
    radiomics_F: NDArray[Any] | None = field(default=None, repr=False)
    """1,781 features in the order of `tmi.toolkit.radiomics.FEATURE_NAMES`, NaN where missing; None extracts them from
    the mask."""
    record: Mapping[str, Any] | None = field(default=None, repr=False)
    """Clinical record with the keys of clinical.json: `values`, and optionally `patient_id`, `report`, `blood_date`."""

    def __post_init__(self) -> None:
        _require(isinstance(self.case_id, str), "case_id", self.case_id, "a str")
        for name in ("ct_XYZ", "mask_XYZ", "affine_xyz", "mask_affine_xyz", "radiomics_F"):
            value = getattr(self, name)
            numeric = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
            _require(value is None or numeric, name, value, "a numpy array of numbers")
        for name in ("affine_xyz", "mask_affine_xyz"):
            value = getattr(self, name)
            if value is not None and value.shape != (4, 4):
                raise TypeError(f"{name} must be a 4x4 matrix, not an array of shape {value.shape}")
        if self.ct_XYZ is not None and self.affine_xyz is None:
            raise TypeError("ct_XYZ needs affine_xyz, the 4x4 matrix from its indices to RAS+ millimetres")
        _require(self.record is None or isinstance(self.record, Mapping), "record", self.record, "a dict")
        _require(isinstance(self.mask_label, int | tuple | None), "mask_label", self.mask_label, "an int or a tuple")
        if self.record is not None:
            self.record_json()

    @property
    def has_mask(self) -> bool:
        """Whether the case has a liver mask."""
        return self.mask_XYZ is not None

    @property
    def has_radiomics(self) -> bool:
        """Whether the case has a vector of features."""
        return self.radiomics_F is not None

    @property
    def has_record(self) -> bool:
        """Whether the case has a clinical record."""
        return self.record is not None

    def record_json(self) -> str:
        """The record as the text of a clinical.json, so that it is read by the same rules.

        Raises:
            TypeError: a value is neither text, number, None, list nor dict.
        """
        try:
            return json.dumps(self.record, default=_plain)
        except (TypeError, ValueError) as error:
            raise TypeError(f"record must hold texts, numbers, None and dicts of them: {error}") from None


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is none of these")


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name} must be {wanted}, not {kind}")
