"""Stages of an export that need the run's network: partition, reference, write, audit, validate.

The weights of a fold are read twice: once for the networks that are run and written, and once for the audit, which
compares the written files with weights that nothing else has touched.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors

from tmi.export.bundle.additions import require_same_references, require_same_run, require_same_weights
from tmi.export.bundle.context import WEIGHTS, ExportContext
from tmi.export.bundle.memory_fit import require_export_memory
from tmi.export.bundle.reproducible import sort_metadata
from tmi.export.bundle.run_record import recorded_versions, run_record
from tmi.export.checks.acceptance import (
    AuditedGraph,
    audit_file,
    audit_fold_files,
    audit_stored_weights,
    require_finite,
    split_failed_optional,
    validate_engines,
    write_file,
)
from tmi.export.checks.eager_reference import compute_eager_reference, float32_noise, float64_reference
from tmi.export.checks.preprocessing_reference import golden_case_reference
from tmi.export.checks.real_cases import read_real_cases
from tmi.export.checks.validation_set import CalibratedCase, ValidationSet, write_engine_outputs
from tmi.export.graphs.partition import FoldModels, GraphPartition, StateDict, example_inputs, partition_run
from tmi.export.graphs.registry import EXPORTERS, TYPED
from tmi.export.tensorrt.typed_graphs import audit_typed_file
from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.consistency import graph_spec
from tmi.runtime.bundle.manifest import (
    FUSION,
    GOLDEN_CASE_FILE,
    GOLDEN_FILE,
    FoldSpec,
    GraphSpec,
    Manifest,
)
from tmi.runtime.bundle.manifest_records import ClinicalSpec, GoldenRecord, Hardware, TrustRecord
from tmi.runtime.engines.host import hardware
from tmi.runtime.engines.registry import installed, missing_requirement
from tmi.runtime.verification.golden_inputs import golden_count, golden_from_manifest, largest_batch, make_golden
from tmi.runtime.verification.outputs import FLOAT64_PREFIX
from tmi.runtime.verification.preprocessing_check import check_preprocessing, output_metadata
from tmi.toolkit.clinical.rendering import require_rendering
from tmi.toolkit.clinical.schema import SCHEMA_FILE
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.trust.p_values import TRUST_LEVEL
from tmi.toolkit.trust.statistics import FoldTrust

GOLDEN_SEED = 20_240_601
"""Seed of the golden inputs of every bundle; the value is arbitrary."""


def partition(context: ExportContext) -> None:
    """Find the graphs, and copy the files of the run that a prediction reads; with `base`, compare them instead.

    Raises:
        DamagedError: the run records no rendering version, or a tokenizer does not fit its embedding table.
        UsageError: `base` is an export of another run.
        UnavailableError: the machine has too little memory.
    """
    run = context.run
    context.models = models = FoldModels(run)
    context.progress("finding which folds share an encoder")
    context.partition = found = partition_run(run, models.weights)
    if context.settings.check_memory:
        require_export_memory(run.config, found, simulated=bool(context.plans), adding=context.base is not None)
    _require_vocabularies(_vocabularies(found), run.config)
    manifest, copied = _new_manifest(context)
    if context.base is not None:
        require_same_run(context, context.base, manifest, copied)
        # The files are compared when they are complete: some are written again.
        known = replace(context.base.manifest, files={})
        context.manifest = _with_engines_not_validated(known, context.checked_artefacts)
        return
    for name, source in copied.items():
        target = context.folder / name
        target.parent.mkdir(exist_ok=True)
        copy_run_file(source, target)
    context.manifest = _with_engines_not_validated(manifest, context.checked_artefacts)


def copy_run_file(source: Path, target: Path) -> None:
    """Copy one file of a run into the bundle."""
    shutil.copyfile(source, target)


def reference(context: ExportContext) -> None:
    """Run the eager network on the golden inputs and on the real cases, and write its outputs.

    Raises:
        ParityError: an output is not finite.
        DamagedError: the outputs of `base` are not those of the run.
        UsageError: no case was found, or those of `base` are others.
        InputRejectedError: a real case cannot be used.
    """
    models, found, config = context.models, context.partition, context.run.config
    assert models is not None  # set by `partition`
    if context.base is None:
        stated = context.manifest.golden
        golden = make_golden(
            config,
            seed=stated.seed,
            count=stated.count,
            folds=len(found.folds),
            vocabularies=stated.vocabularies,
        )
    else:
        golden = golden_from_manifest(context.manifest)
    context.progress(f"running the eager model on {golden.count} golden cases")
    outputs = compute_eager_reference(models, found, golden)
    require_finite(outputs)
    outputs_float64 = float64_reference(models, found, golden)
    context.validation_set = ValidationSet(
        golden=golden,
        reference=outputs,
        reference_float64=outputs_float64,
        real_cases=read_real_cases(context.settings.cases, context.run, found, models),
        calibration=_calibration_cases(context, models),
    )
    if context.base is not None:
        require_same_references(context, context.base)
        return
    exact = {} if outputs_float64 is None else outputs_float64.tensors()
    exact = {f"{FLOAT64_PREFIX}{name}": value for name, value in exact.items()}
    save_arrays({**outputs.tensors(), **exact}, context.folder / GOLDEN_FILE)
    with tempfile.TemporaryDirectory(prefix="tmi-golden-") as folder:
        arrays = golden_case_reference(context.run, found, Path(folder) / "golden", seed=GOLDEN_SEED)
    save_arrays(arrays, context.folder / GOLDEN_CASE_FILE, metadata=output_metadata(context.staged()))
    sort_metadata(context.folder / GOLDEN_CASE_FILE)
    record = replace(
        context.manifest.golden,
        digests=golden.digests(),
        float32_noise=float32_noise(outputs, outputs_float64),
        largest_batch=largest_batch(config),
    )
    context.manifest = replace(context.manifest, golden=record)


def _calibration_cases(context: ExportContext, models: FoldModels) -> list[CalibratedCase]:
    if not context.calibrates:
        return []
    from tmi.export.quantization.calibration_cases import read_calibration_cases

    assert context.settings.calibration is not None  # `check_request` requires it
    context.progress("preparing the calibration cases")
    try:
        return read_calibration_cases(context.settings.calibration, context.run, context.partition, models)
    except UsageError as error:
        if not context.settings.int8_optional:
            raise
        context.int8_reason = error.what
        return []


def write(context: ExportContext) -> None:
    """Write every graph as every artefact, with one module in memory at a time.

    Raises:
        ParityError: a module cannot be written as an artefact with dynamic batch and lengths.
    """
    models, found, stage = context.models, context.partition, context.folder
    assert models is not None  # set by `partition`
    writers = {name: EXPORTERS[name].function("writer") for name in context.graph_artefacts}
    for folder in ("graphs", WEIGHTS) if context.weights and context.base is None else ("graphs",):
        (stage / folder).mkdir(exist_ok=True)
    graphs = []
    for spec in context.manifest.graphs:
        files = dict(spec.artefacts)
        module, example = models.module(found, spec), example_inputs(spec)
        for name, writer in writers.items():
            exporter = EXPORTERS[name]
            files[exporter.artefact] = f"graphs/{spec.name}{exporter.suffix}"
            context.progress(f"writing {files[exporter.artefact]}")
            write_file(writer, module, spec, name, example, stage / files[exporter.artefact])
        if context.weights and context.base is None:
            files[WEIGHTS] = f"weights/{spec.name}.safetensors"
            state = next(models.states(found, spec))
            save_tensors(_rename_fold_weights(spec, state), stage / files[WEIGHTS])
        graphs.append(replace(spec, artefacts=files))
    context.manifest = replace(context.manifest, graphs=tuple(graphs))
    context.models = None  # frees the fold model and its weights before the files are read back


def audit(context: ExportContext) -> None:
    """Read every written file back and compare it with the run, whose weights are read again.

    The files that `base` already had are audited too, because TensorRT engines are built from its typed graphs, which
    are compared with the float32 graphs.

    Raises:
        DamagedError: a file of `base` does not hold the run's weights.
    """
    models, found, new = FoldModels(context.run), context.partition, context.graph_artefacts
    names = (*new, *context.old_graph_artefacts)
    for spec in context.manifest.graphs:
        states = partial(models.states, found, spec)
        graph = AuditedGraph(spec=spec, module=models.module(found, spec), example=example_inputs(spec))
        old: list[CheckResult] = []
        for name in names:
            file = spec.artefacts[EXPORTERS[name].artefact]
            context.progress(f"auditing {file}")
            results = audit_file(context.folder / file, name, graph, expected=states())
            (context.records if name in new else old).extend(results)
        if WEIGHTS in spec.artefacts:
            expected = map(partial(_rename_fold_weights, spec), states())
            result = audit_stored_weights(context.folder / spec.artefacts[WEIGHTS], spec, expected)
            (context.records if context.base is None else old).append(result)
        if context.base is not None:
            typed, float32 = spec.artefacts.get(TYPED), spec.artefacts.get("onnx")
            if typed is not None and float32 is not None and typed != float32:
                old.append(audit_typed_file(context.folder, spec, context.manifest))
            require_same_weights(context, old)


def validate(context: ExportContext) -> None:
    """Validate every installed engine of the new artefacts. Optional engines that fail are recorded as rejected.

    Raises:
        ParityError: a check failed.
        UnavailableError: a required engine is not installed.
    """
    bundle = context.staged()
    if context.base is None:
        context.records.append(audit_fold_files(context.folder, context.manifest, context.run))
        context.progress("preparing the golden case")
        context.records += check_preprocessing(bundle)
    records = validate_engines(
        bundle,
        context.graph_artefacts,
        context.validation_set,
        progress=context.progress,
        on_outputs=partial(write_engine_outputs, context.folder),
    )
    records, rejected = split_failed_optional(records)
    context.records += records
    context.require_passed()
    if rejected:
        known = context.manifest.engines_rejected
        context.manifest = replace(context.manifest, engines_rejected={**known, **rejected})


def _new_manifest(context: ExportContext) -> tuple[Manifest, dict[str, Path]]:
    """The manifest of a new bundle without artefacts, digests and records, and the files to copy by name."""
    run, found, config = context.run, context.partition, context.run.config
    copied: dict[str, Path] = {}

    def copy(source: Path, name: str) -> str:
        copied[name] = source
        return name

    clinical = ClinicalSpec(
        schema=copy(run.path / SCHEMA_FILE, SCHEMA_FILE),
        rendering=config.clinical.rendering,
        rendering_version=_rendering_version(run),
    )
    graphs = []
    for encoder in found.encoders:
        tokenizer = copy(encoder.tokenizer, f"tokenizers/{encoder.name}.json") if encoder.tokenizer else None
        graphs.append(graph_spec(config, encoder.role, encoder.name, folds=len(found.folds), tokenizer=tokenizer))
    graphs.append(graph_spec(config, "fusion", FUSION, folds=len(found.folds)))
    has_radiomics = "radiomics" in active_modalities(config)
    folds = tuple(
        FoldSpec(
            fold=fold,
            ct=found.encoder_name("ct", fold),
            text=found.encoder_name("text", fold),
            scaler=copy(run.fold(fold).scaler, f"scalers/fold{fold}.json") if has_radiomics else None,
        )
        for fold in found.folds
    )
    trust = _trust_record(run, found.folds)
    for fold, name in zip(found.folds, () if trust is None else trust.files, strict=False):
        copy(run.fold(fold).trust, name)
    state = run.state
    manifest = Manifest(
        preset=config.preset,
        config=config,
        graphs=tuple(graphs),
        folds=folds,
        clinical=clinical,
        files={},
        golden=GoldenRecord(
            seed=GOLDEN_SEED, count=golden_count(config), vocabularies=_vocabularies(found), digests={}
        ),
        parity=(),
        versions=recorded_versions(),
        run=run_record(run, state),
        threshold=run.threshold,
        modalities=active_modalities(config),
        created=context.created,
        synthetic=bool(state["cohort"].get("synthetic", False)),
        trust=trust,
        hardware=Hardware(**hardware()),
        temperatures=tuple(run.fold(fold).temperature for fold in found.folds),
    )
    return manifest, copied


def _trust_record(run: RunFolder, folds: Sequence[int]) -> TrustRecord | None:
    """Record of the trust statistics; None unless every fold has them, as in runs of earlier versions.

    Raises:
        DamagedError: a file is malformed, or of another fold.
    """
    if not all(run.fold(fold).trust.is_file() for fold in folds):
        return None
    found = [FoldTrust.load(run.fold(fold).trust, fold=fold) for fold in folds]
    files = tuple(f"trust/fold{fold}.safetensors" for fold in folds)
    return TrustRecord(level=TRUST_LEVEL, cases=sum(fold.held_out for fold in found), files=files)


def _with_engines_not_validated(manifest: Manifest, artefacts: Iterable[str]) -> Manifest:
    """Record the engines of some artefacts that cannot run here, with the reason."""
    engines = [e for name in artefacts for e in EXPORTERS[name].engines]
    not_installed = {e: "not installed at the export" for e in engines if not installed(e)}
    unsupported = {
        e: reason for e in engines if e not in not_installed and (reason := missing_requirement(e)) is not None
    }
    recorded = {**manifest.engines_not_validated, **not_installed, **unsupported}
    return replace(manifest, engines_not_validated=recorded)


def _rendering_version(run: RunFolder) -> int:
    version = run.rendering_version
    if version is None:
        raise DamagedError(f"run {run.path}: run.json has no rendering_version", fix="train the run again")
    if "clinical" in active_modalities(run.config):
        require_rendering(run.config.clinical.rendering, version, kind="run")
    return version


def _vocabularies(found: GraphPartition) -> dict[str, int]:
    return {e.name: Tokenizer.load(e.tokenizer).vocab_size for e in found.encoders if e.tokenizer}


def _require_vocabularies(vocabularies: Mapping[str, int], config: Config) -> None:
    rows = config.network.text_encoder.vocab_size
    for name, size in vocabularies.items():
        if size > rows:
            raise DamagedError(
                f"run: the tokenizer of {name} has {size} tokens, the embedding table {rows}",
                fix="train the run again with a tokenizer that fits",
            )


def _rename_fold_weights(spec: GraphSpec, state: StateDict) -> StateDict:
    """Weights under their names in a bundle: `fold<i>.` for `folds.<i>.` of `MultiFoldFusion`."""
    renamed = {key.replace("folds.", "fold", 1) if spec.name == FUSION else key: t for key, t in state.items()}
    return {key: t.contiguous() for key, t in renamed.items()}
