"""The gates of an export: audits of each file as it is written, then every engine on all files together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from tmi.export.checks.graph_summary import GraphSummary
from tmi.export.checks.validation_set import ValidationSet, validate_real_cases
from tmi.export.checks.weight_audit import audit_epsilons, audit_signature, audit_weights, make_output_depends
from tmi.export.graphs.partition import StateDict, read_weights, weights_digest
from tmi.export.graphs.registry import EXPORTERS, import_target
from tmi.runtime.bundle.check_result import CheckResult, ParityError, require_passed
from tmi.runtime.bundle.manifest import GraphSpec, Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.precision import engine_precision
from tmi.runtime.engines.registry import engine_spec, installed, missing_requirement, open_engine
from tmi.runtime.verification.parity import ENGINE_ERRORS, PIPELINE, Outputs, check_engine
from tmi.runtime.verification.verify import failure_summary, load_failure
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.hashing import sha256_file

Progress = Callable[[str], None]
"""Told one line of what is being done."""


def write_file(
    writer: Callable[[nn.Module, GraphSpec, tuple[Tensor, ...], Path], None],
    module: nn.Module,
    spec: GraphSpec,
    artefact: str,
    example: tuple[Tensor, ...],
    path: Path,
) -> None:
    """Write one graph.

    Raises:
        ParityError: the module cannot be written as this artefact with its batch and lengths free.
    """
    try:
        writer(module, spec, example, path)
    except RuntimeError as error:
        detail = f"cannot be written: {' '.join(str(error).split())[:400]}"
        require_passed([_file_check("writes", spec, artefact, [detail], "")])


def audit_stored_weights(path: Path, spec: GraphSpec, expected: Iterable[StateDict]) -> CheckResult:
    """The weights file of the eager engine, read back, is what each fold's model has."""
    digest = weights_digest(read_weights(path))
    wrong = [f"{path.name} is not the run's" for state in expected if weights_digest(state) != digest]
    return _file_check("weights", spec, "weights", wrong[:1], "equal the run's bit by bit")


def audit_file(
    path: Path,
    spec: GraphSpec,
    artefact: str,
    *,
    expected: Iterable[StateDict],
    epsilons: dict[str, float],
    module: nn.Module,
    example: tuple[Tensor, ...],
) -> list[CheckResult]:
    """Read an exported file back and audit it.

    Args:
        path: the file.
        spec: its graph.
        artefact: its kind.
        expected: the run's weights, read apart from `module`; one set for each fold that uses the graph.
        epsilons: of the network as its config builds it.
        module: the eager module, asked only about weights that the graph does not read.
        example: inputs for it.
    """
    summary: GraphSummary = import_target(EXPORTERS[artefact].reader)(path)
    depends = make_output_depends(module, example)
    return [
        audit_signature(summary, spec, artefact),
        *(audit_weights(summary, spec, artefact, state, depends) for state in expected),
        audit_epsilons(summary, spec, artefact, epsilons),
    ]


def require_finite(reference: Outputs) -> None:
    """A model whose own eager answers are not numbers is not exported.

    Raises:
        ParityError: the training diverged.
    """
    broken = sorted(name for name, answer in reference.by_graph().items() if not np.isfinite(answer).all())
    if broken:
        raise ParityError(
            f"the eager model itself gives outputs that are not finite ({', '.join(broken)}); no bundle was written",
            fix="look at the run's history: its training diverged; train it again",
        )


def audit_fold_files(folder: Path, manifest: Manifest, run: RunFolder) -> CheckResult:
    """Each fold's scaler and tokenizer in the bundle are those that the run recorded for that fold."""
    recorded = run.state["files"]
    wrong = []
    for fold in manifest.folds:
        files = run.fold(fold.fold)
        pairs = [(fold.scaler, files.scaler)] if manifest.uses("radiomics") else []
        pairs += [(manifest.graph(fold.text).tokenizer, files.tokenizer)] if fold.text is not None else []
        for mine, theirs in pairs:
            name = theirs.relative_to(run.path).as_posix()
            if mine is None or sha256_file(folder / mine) != recorded.get(name):
                wrong.append(f"{mine} is not the run's {name}")
    return CheckResult(
        gate="fold-files",
        artefact="files",
        graph=PIPELINE,
        passed=not wrong,
        measured=float(len(wrong)),
        bound=0.0,
        detail="; ".join(wrong) or "every fold has the scaler and tokenizer of its own, where it needs them",
    )


def validate_engines(
    bundle: Bundle,
    artefacts: Sequence[str],
    validation_set: ValidationSet,
    *,
    progress: Progress,
    keep: Callable[[str, Outputs], None] = lambda engine, outputs: None,
) -> list[CheckResult]:
    """Every installed engine of every artefact kind on the golden inputs; the first of a kind must be installed.

    Args:
        bundle: with its files in place.
        artefacts: names in `EXPORTERS`.
        validation_set: inputs and references.
        progress: told one line of what is being done.
        keep: given each engine's name and its answers to the golden inputs.
    """
    records: list[CheckResult] = []
    for artefact in artefacts:
        first, *others = EXPORTERS[artefact].engines
        for name in (first, *(n for n in others if installed(n) and missing_requirement(n) is None)):
            progress(f"judging {artefact} on engine {name}")
            records += _validate_engine(name, bundle, artefact, validation_set, partial(keep, name))
    return records


def _file_check(gate: str, spec: GraphSpec, artefact: str, wrong: Sequence[str], right: str) -> CheckResult:
    return CheckResult(
        gate=gate,
        artefact=artefact,
        graph=spec.name,
        passed=not wrong,
        measured=float(len(wrong)),
        bound=0.0,
        detail="; ".join(wrong) or right,
    )


def _validate_engine(
    name: str, bundle: Bundle, artefact: str, validation_set: ValidationSet, keep: Callable[[Outputs], None]
) -> list[CheckResult]:
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
            keep=keep,
        )
        return records + validate_real_cases(
            engine, bundle.manifest, validation_set.real_cases, artefact=artefact, precision=precision
        )


def split_failed_optional(records: Sequence[CheckResult]) -> tuple[list[CheckResult], dict[str, str]]:
    """The records without those of engines that yield and failed, and why each of these failed."""
    by_engine = {name: [r for r in records if r.engine == name] for name in {r.engine for r in records if r.engine}}
    refused = {
        name: why
        for name, mine in by_engine.items()
        if engine_spec(name).optional and (why := failure_summary(mine)) is not None
    }
    return [r for r in records if r.engine not in refused], refused
