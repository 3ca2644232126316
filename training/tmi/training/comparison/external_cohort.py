"""Checks of an external cohort before anything is trained: labels, and no patient of the training cohort."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tmi.toolkit.cases.case import Cohort
from tmi.toolkit.config.schema import POSITIVE
from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.hashing import sha256_file
from tmi.training.data.splits import patient_key

MIN_PER_CLASS = 2
"""Cases of each class below which no AUC can be compared."""


def require_external(cohort: Cohort, external: Cohort) -> None:
    """Check that no case of the external cohort is one of the cohort's.

    Raises:
        UsageError: a patient, or a CT file of the same bytes, is in both; a case has no label; a class has fewer than
            two cases.
    """
    unlabelled = [case.case_id for case in external.cases if case.label is None]
    if unlabelled:
        raise UsageError(
            f"external cases without a label: {len(unlabelled)}, case {unlabelled[0]} among them",
            fix=f"add the column `label` to {external.folder / 'cohort.csv'}",
        )
    bad = sum(case.label == POSITIVE for case in external.cases)
    if min(bad, len(external.cases) - bad) < MIN_PER_CLASS:
        raise UsageError(
            f"the external cohort has {bad} cases of a bad prognosis and {len(external.cases) - bad} of a good one, "
            f"and needs {MIN_PER_CLASS} of each",
            fix="name a larger cohort with --external",
        )
    known = {patient_key(case.patient_id or case.case_id) for case in cohort.cases}
    common = [c.case_id for c in external.cases if patient_key(c.patient_id or c.case_id) in known]
    common += _same_images(cohort, external)
    if common:
        count = len(set(common))
        raise UsageError(
            f"{count} external case{'s are' if count > 1 else ' is'} of a patient of the cohort that the models are "
            f"trained on: case {common[0]}" + (" and others" if count > 1 else ""),
            fix="remove these cases from the external cohort",
        )


def _same_images(cohort: Cohort, external: Cohort) -> Iterator[str]:
    """Ids of the external cases whose CT file is one of the cohort's; only files of equal size are read."""
    sizes: dict[int, list[Path]] = {}
    for case in cohort.cases:
        if case.ct.is_file():
            sizes.setdefault(case.ct.stat().st_size, []).append(case.ct)
    for case in external.cases:
        if case.ct.is_file() and (same := sizes.get(case.ct.stat().st_size)):
            digest = sha256_file(case.ct)
            if any(sha256_file(path) == digest for path in same):
                yield case.case_id
