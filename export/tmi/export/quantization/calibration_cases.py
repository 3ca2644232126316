"""Training cases on which INT8 is calibrated. A graph is never calibrated on a case that one of its folds holds out.

A case may be a training case of one fold and a held-out case of another. It therefore calibrates only the graphs all of
whose folds were trained on it. The bundle keeps digests of the cases alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tmi.export.checks.eager_reference import compute_eager_reference
from tmi.export.checks.real_cases import network_inputs
from tmi.export.checks.validation_set import CalibratedCase, RealCase
from tmi.export.graphs.partition import FoldModels, GraphPartition
from tmi.export.quantization.audit import MIN_CASES
from tmi.runtime.bundle.int8_records import CalibrationCase, case_digest
from tmi.toolkit.cases.case import open_cohort
from tmi.toolkit.cases.fingerprint import cohort_fingerprint
from tmi.toolkit.errors import UsageError
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.preprocessing.pipeline import prepare_case
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.hashing import sha256_json

LARGE_VOLUME = 2**22
"""Number of voxels from which fewer cases are used, because one case takes many seconds."""


def calibration_count(run: RunFolder) -> int:
    """Number of cases that calibrate a graph: 8, or 4 for large volumes."""
    return 4 if int(np.prod(run.config.ct.shape_DHW)) >= LARGE_VOLUME else 8


def read_calibration_cases(
    folder: Path, run: RunFolder, partition: GraphPartition, models: FoldModels
) -> list[CalibratedCase]:
    """Prepare the calibration cases of every CT encoder and compute their eager outputs.

    Args:
        folder: the cohort that the run was trained on.
        run: the run; gives splits, scalers and tokenizers.
        partition: graphs of the run.
        models: the fold models.

    Raises:
        UsageError: no cohort, another one than the run's, or too few cases for every CT encoder.
        InputRejectedError: a case cannot be prepared.
    """
    cohort = open_cohort(folder)
    fingerprint = cohort_fingerprint(cohort)
    if fingerprint != run.state["cohort"]["fingerprint"]:
        raise UsageError(
            f"cohort {folder} is not the cohort that run {run.path} was trained on, or has changed since",
            fix="name that cohort with --calibration: INT8 is calibrated on training cases alone",
        )
    chosen = choose_cases(run, partition, fingerprint, calibration_count(run))
    cases_of_graph = Counter(graph for graphs in chosen.values() for graph in graphs)
    if max(cases_of_graph.values(), default=0) < MIN_CASES:
        raise UsageError(
            f"run {run.path} has no CT encoder that INT8 can be calibrated for: no {MIN_CASES} cases are training "
            "cases of every fold that uses one",
            fix="export it without --precision int8",
        )
    folders = {case.case_id: case for case in cohort.cases}
    modalities = active_modalities(run.config)
    found = []
    for case_id, graphs in chosen.items():
        prepared = prepare_case(folders[case_id], run.config, run.schema, modalities=modalities)
        inputs = network_inputs(prepared, run, partition)
        record = CalibrationCase(case=case_digest(fingerprint, case_id), volume=inputs.digests()["ct"])
        reference = compute_eager_reference(models, partition, inputs)
        found.append(CalibratedCase(record=record, graphs=graphs, case=RealCase(inputs=inputs, reference=reference)))
    return found


def choose_cases(
    run: RunFolder, partition: GraphPartition, fingerprint: str, count: int
) -> Mapping[str, tuple[str, ...]]:
    """Choose calibration cases: for each CT encoder up to `count` cases that all of its folds were trained on.

    The order is that of a digest, so that it depends neither on outcomes nor on the table. Cases are shared between
    encoders as far as possible.

    Returns:
        Case id -> graphs that it calibrates.
    """
    trained = {split.fold: set(split.train) - set(split.test) - set(split.validation) for split in run.folds}
    chosen: dict[str, tuple[str, ...]] = {}
    for encoder in (e for e in partition.encoders if e.role == "ct"):
        eligible = set.intersection(*(trained[fold] for fold in encoder.folds))
        order = sorted(eligible, key=lambda case: (case not in chosen, sha256_json([fingerprint, case])))
        for case in order[:count]:
            chosen[case] = (*chosen.get(case, ()), encoder.name)
    return chosen


def cases_of(graph: str, cases: Sequence[CalibratedCase]) -> list[CalibratedCase]:
    """The cases that calibrate a graph."""
    return [case for case in cases if graph in case.graphs]
