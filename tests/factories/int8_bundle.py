"""A bundle with INT8 graphs, made without a cohort."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tmi.export.checks.validation_set import CalibratedCase, RealCase, ValidationSet
from tmi.export.quantization.int8_graphs import add_int8_graphs
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.int8_records import CalibrationCase, case_digest
from tmi.runtime.bundle.reader import Bundle, fingerprint, open_bundle, write_manifest
from tmi.runtime.engines.registry import open_engine
from tmi.runtime.verification.golden_inputs import golden_from_manifest, make_golden
from tmi.runtime.verification.outputs import evaluate
from tmi.runtime.verification.verify import read_references
from tmi.toolkit.run_folder import RunFolder


def calibration_cases(base: Bundle, nano_run: Path) -> list[CalibratedCase]:
    """Two calibration cases of each CT graph, with the outputs of the float32 engine."""
    run = RunFolder.open(nano_run)
    vocabularies = base.manifest.golden.vocabularies
    inputs = make_golden(base.manifest.config, seed=3, count=4, folds=2, vocabularies=vocabularies)
    found = []
    with open_engine("onnx", base, threads=1) as engine:
        for fold, split in zip(base.manifest.folds, run.folds, strict=True):
            for row, case_id in zip((0, 2), split.train, strict=True):
                one = inputs.rows([row])
                record = CalibrationCase(
                    case=case_digest(run.state["cohort"]["fingerprint"], case_id), volume=one.digests()["ct"]
                )
                case = RealCase(inputs=one, reference=evaluate(engine, base.manifest, one))
                found.append(CalibratedCase(record=record, graphs=(str(fold.ct),), case=case))
    return found


def validation_set(base: Bundle, cases: Sequence[CalibratedCase]) -> ValidationSet:
    """The golden inputs of a bundle with its references, and calibration cases."""
    return ValidationSet(
        golden=golden_from_manifest(base.manifest), reference=read_references(base).float32, calibration=cases
    )


def with_int8_graphs(base: Bundle, cases: Sequence[CalibratedCase], folder: Path) -> tuple[Bundle, list[CheckResult]]:
    """A copy of a bundle with INT8 graphs, and the records of their checks."""
    shutil.copytree(base.folder, folder)
    manifest, records = add_int8_graphs(folder, base.manifest, validation_set(base, cases), progress=lambda line: None)
    manifest = replace(manifest, parity=(*manifest.parity, *records))
    write_manifest(folder, replace(manifest, files=fingerprint(folder)))
    return open_bundle(folder), records
