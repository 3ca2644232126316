"""Acceptance checks of an export: audits of each written file, then validation of every engine on all files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from tmi.export.checks.graph_summary import GraphSummary
from tmi.export.checks.validation_set import ValidationSet, validate_real_cases
from tmi.export.checks.weight_audit import (
    audit_epsilons,
    audit_signature,
    audit_weights,
    epsilons,
    make_output_depends,
)
from tmi.export.graphs.partition import StateDict, read_weights, weights_digest
from tmi.export.graphs.registry import EXPORTERS
from tmi.runtime.bundle.check_result import CheckResult, ParityError, require_passed
from tmi.runtime.bundle.contents import bundled_trust
from tmi.runtime.bundle.manifest import GraphSpec, Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.precision import engine_precision
from tmi.runtime.engines.registry import Engine, engine_spec, installed, missing_requirement, open_engine
from tmi.runtime.verification.outputs import PIPELINE, Outputs
from tmi.runtime.verification.parity import ENGINE_ERRORS, check_engine
from tmi.runtime.verification.verify import failure_summary, load_failure
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.hashing import sha256_file

Progress = Callable[[str], None]
"""Called with one line that describes the current step."""


def write_file(
    writer: Callable[[nn.Module, GraphSpec, tuple[Tensor, ...], Path], None],
    module: nn.Module,
    spec: GraphSpec,
    artefact: str,
    example: tuple[Tensor, ...],
    path: Path,
) -> None:
    """Write one graph with an exporter's writer.

    Raises:
        ParityError: the module cannot be written as this artefact with dynamic batch and lengths.
    """
    try:
        writer(module, spec, example, path)
    except RuntimeError as error:
        detail = f"cannot be written: {' '.join(str(error).split())[:400]}"
        require_passed([_file_check("writes", spec, artefact, [detail], "")])


def audit_stored_weights(path: Path, spec: GraphSpec, expected: Iterable[StateDict]) -> CheckResult:
    """Check that the eager engine's weights file, read back, equals each fold's weights."""
    digest = weights_digest(read_weights(path))
    mismatches = [f"{path.name} is not the run's" for state in expected if weights_digest(state) != digest]
    return _file_check("weights", spec, "weights", mismatches[:1], "equal the run's bit by bit")


@dataclass(frozen=True, kw_only=True)
class AuditedGraph:
    """What the files of one graph are compared with, beside the weights."""

    spec: GraphSpec
    """The graph."""
    module: nn.Module
    """Its eager module, another one than the one that was written. It runs only if a file does not read some weight."""
    example: tuple[Tensor, ...]
    """Inputs of `module`."""


def audit_file(path: Path, artefact: str, graph: AuditedGraph, *, expected: Iterable[StateDict]) -> list[CheckResult]:
    """Read an exported file back and audit its signature, weights and epsilons.

    Args:
        path: the file.
        artefact: its artefact kind.
        graph: its graph.
        expected: the run's weights, read independently of the written module; one set for each fold that uses the
            graph.
    """
    summary: GraphSummary = EXPORTERS[artefact].function("reader")(path)
    spec, depends = graph.spec, make_output_depends(graph.module, graph.example)
    return [
        audit_signature(summary, spec, artefact),
        *(audit_weights(summary, spec, artefact, state, depends) for state in expected),
        audit_epsilons(summary, spec, artefact, epsilons(graph.module)),
    ]


def require_finite(reference: Outputs) -> None:
    """Check that the eager reference outputs are finite.

    Raises:
        ParityError: some are not, because the training diverged.
    """
    broken = sorted(name for name, output in reference.by_graph().items() if not np.isfinite(output).all())
    if broken:
        raise ParityError(
            f"the eager model itself gives outputs that are not finite ({', '.join(broken)}); no bundle was written",
            fix="train the run again: its history shows that the training diverged",
        )


def audit_fold_files(folder: Path, manifest: Manifest, run: RunFolder) -> CheckResult:
    """Check that scaler, tokenizer and trust statistics of each fold are the files that the run recorded for it."""
    recorded = run.state["files"]
    mismatches = []
    trust = (None,) * len(manifest.folds) if manifest.trust is None else manifest.trust.files
    for fold, statistics in zip(manifest.folds, trust, strict=True):
        files = run.fold(fold.fold)
        pairs = [(fold.scaler, files.scaler)] if manifest.uses("radiomics") else []
        pairs += [(manifest.graph(fold.text).tokenizer, files.tokenizer)] if fold.text is not None else []
        pairs += [(statistics, files.trust)] if statistics is not None else []
        for bundle_file, run_file in pairs:
            name = run_file.relative_to(run.path).as_posix()
            if bundle_file is None or sha256_file(folder / bundle_file) != recorded.get(name):
                mismatches.append(f"{bundle_file} is not the run's {name}")
    return CheckResult(
        check="fold-files",
        artefact="files",
        graph=PIPELINE,
        passed=not mismatches,
        measured=float(len(mismatches)),
        bound=0.0,
        detail="; ".join(mismatches) or "every fold has its own scaler and tokenizer, if it uses them",
    )


def validate_engines(
    bundle: Bundle,
    artefacts: Sequence[str],
    validation_set: ValidationSet,
    *,
    progress: Progress,
    on_outputs: Callable[[str, Outputs], None] = lambda engine, outputs: None,
) -> list[CheckResult]:
    """Run the parity checks of every installed engine of every artefact kind.

    The first engine of a kind is required; the others run if they are installed.

    Args:
        bundle: bundle whose files are written.
        artefacts: names in `EXPORTERS`.
        validation_set: inputs and reference outputs.
        progress: called with one line for each step.
        on_outputs: called with each engine's name and its outputs for the golden inputs.

    Raises:
        UnavailableError: a required engine is not installed.
    """
    records: list[CheckResult] = []
    for artefact in artefacts:
        first, *others = EXPORTERS[artefact].engines
        for name in (first, *(n for n in others if installed(n) and missing_requirement(n) is None)):
            progress(f"validating {artefact} on engine {name}")
            records += validate_engine(name, bundle, artefact, validation_set, partial(on_outputs, name))
    return records


def _file_check(
    check: str, spec: GraphSpec, artefact: str, mismatches: Sequence[str], passed_detail: str
) -> CheckResult:
    return CheckResult(
        check=check,
        artefact=artefact,
        graph=spec.name,
        passed=not mismatches,
        measured=float(len(mismatches)),
        bound=0.0,
        detail="; ".join(mismatches) or passed_detail,
    )


def validate_engine(
    name: str,
    bundle: Bundle,
    artefact: str,
    validation_set: ValidationSet,
    on_outputs: Callable[[Outputs], None],
    *,
    more: Callable[[Engine], list[CheckResult]] = lambda engine: [],
) -> list[CheckResult]:
    """Run the parity checks of one engine on golden inputs and real cases.

    Args:
        name: the engine.
        bundle: bundle whose files are written.
        artefact: artefact kind that it runs.
        validation_set: inputs and reference outputs.
        on_outputs: called with its outputs for the golden inputs.
        more: further checks of the open engine.
    """
    try:
        engine = open_engine(name, bundle)
    except ENGINE_ERRORS as error:
        return [load_failure(name, artefact, error)]
    precision = engine_precision(name, bundle.manifest)
    with engine:
        records = check_engine(
            engine,
            bundle.manifest,
            validation_set.golden,
            validation_set.reference,
            artefact=artefact,
            reference_float64=validation_set.reference_float64,
            precision=precision,
            trust=bundled_trust(bundle),
            keep=on_outputs,
        )
        return (
            records
            + validate_real_cases(
                engine, bundle.manifest, validation_set.real_cases, artefact=artefact, precision=precision
            )
            + more(engine)
        )


def split_failed_optional(records: Sequence[CheckResult]) -> tuple[list[CheckResult], dict[str, str]]:
    """Remove the records of optional engines that failed; return the other records, and why each engine failed."""
    by_engine = {name: [r for r in records if r.engine == name] for name in {r.engine for r in records if r.engine}}
    rejected = {
        name: reason
        for name, engine_records in by_engine.items()
        if engine_spec(name).optional and (reason := failure_summary(engine_records)) is not None
    }
    return [r for r in records if r.engine not in rejected], rejected
