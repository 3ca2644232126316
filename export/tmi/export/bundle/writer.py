"""`tmi export`: writes a finished run as a bundle.

Stages: partition the networks into graphs, compute reference outputs, write and audit the graph files, validate every
engine, add TensorRT engines, write the documents. All files are written into a staged folder that replaces the target
only if every check passes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors
from torch import nn

from tmi.export.bundle.model_card import model_card
from tmi.export.bundle.out_of_memory import out_of_memory_as_error
from tmi.export.bundle.reproducible import export_time, sort_metadata
from tmi.export.bundle.request_checks import check_request, require_replaceable
from tmi.export.bundle.run_record import recorded_versions, run_record
from tmi.export.bundle.sbom import sbom
from tmi.export.checks.acceptance import (
    Progress,
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
from tmi.export.checks.real_cases import read_real_cases, write_real_cases
from tmi.export.checks.validation_set import ValidationSet, write_engine_outputs
from tmi.export.checks.weight_audit import epsilons
from tmi.export.graphs.partition import (
    FoldModels,
    GraphPartition,
    StateDict,
    example_inputs,
    partition_run,
    require_exportable,
)
from tmi.export.graphs.registry import EXPORTERS, import_target
from tmi.export.tensorrt.builder import BuildOptions
from tmi.export.tensorrt.engines import PLANS, PlanRequest, add_plans
from tmi.export.tensorrt.typed_graphs import add_typed_graphs
from tmi.runtime.bundle.check_result import CheckResult, require_passed
from tmi.runtime.bundle.consistency import graph_spec
from tmi.runtime.bundle.manifest import (
    FUSION,
    GOLDEN_CASE_FILE,
    GOLDEN_FILE,
    MODEL_CARD_FILE,
    REAL_CASES_FILE,
    SBOM_FILE,
    ClinicalSpec,
    FoldSpec,
    GraphSpec,
    Manifest,
)
from tmi.runtime.bundle.reader import Bundle, fingerprint, open_bundle, write_manifest
from tmi.runtime.engines.host import hardware
from tmi.runtime.engines.precision import ENGINES_REJECTED
from tmi.runtime.engines.registry import installed, missing_requirement
from tmi.runtime.verification.golden_inputs import golden_count, largest_batch, make_golden
from tmi.runtime.verification.outputs import FLOAT64_PREFIX
from tmi.runtime.verification.preprocessing_check import check_preprocessing, output_metadata
from tmi.toolkit.clinical.rendering import require_rendering
from tmi.toolkit.clinical.schema import SCHEMA_FILE
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.run_folder import RunFolder
from tmi.toolkit.storage.atomic_files import staged_folder, write_text
from tmi.toolkit.storage.outputs import output_lock
from tmi.toolkit.storage.serialization import to_json

GOLDEN_SEED = 20_240_601
"""Seed of the golden inputs of every bundle; the value is arbitrary."""
WEIGHTS = "weights"
"""Artefact kind of the eager weights."""


def export_run(
    run: Path,
    out: Path,
    *,
    artefacts: Sequence[str] = ("onnx",),
    force: bool = False,
    weights: bool = True,
    cases: Sequence[Path] = (),
    precision: str = "fp16",
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    created: str | None = None,
) -> Bundle:
    """Export a finished run as a bundle. The bundle is written only if every check passes.

    The same run, versions, machine and threads give the same bytes, except for the recorded time of the export (and
    for TensorRT engines, whose builder measures times).

    A TensorRT engine that cannot be built on this machine is recorded as pending in the bundle
    (`tmi.export.tensorrt.engines.pending_engines`).

    Args:
        run: folder of a finished run.
        out: folder of the bundle.
        artefacts: names in `EXPORTERS`.
        force: replace an existing bundle at `out`.
        weights: store the eager weights in the bundle. The engine `eager` needs them.
        cases: real case or cohort folders to validate the engines on, in addition to the golden inputs. Only their
            hashes and outputs are stored in the bundle.
        precision: precision of TensorRT engines; a key of `tmi.export.tensorrt.precision_choice.PRECISIONS`.
        options: build options of TensorRT engines; None: the defaults. The maximum text length is always the run's.
        progress: called with one line for each step.
        created: time to record as that of the export; None: `tmi.export.bundle.reproducible.export_time`.

    Raises:
        UsageError: no such run, an unfinished run, an unknown artefact, or `out` exists, cannot be written or is being
            written by another process.
        UnavailableError: an artefact cannot be written on this machine, or memory or disk space ran out.
        DamagedError: the run was changed after the training.
        InputRejectedError: one of `cases` cannot be used.
        ParityError: a check failed; nothing was written.
    """
    names = list(dict.fromkeys(artefacts))
    folder = check_request(run, out, artefacts=names, precision=precision, force=force)
    recorded = created or export_time()
    on_step = progress or (lambda line: None)
    on_step("checking the run")
    require_exportable(folder)
    with output_lock(out, kind="bundle"):  # before the work, so that a second export ends at once
        require_replaceable(out, force=force)  # again: another export may have ended meanwhile
        folder.require_finished()
        with out_of_memory_as_error("the export", on_step) as on_step, staged_folder(out) as stage:
            writer = _BundleWriter(
                folder, stage, names, weights=weights, cases=cases, progress=on_step, created=recorded
            )
            writer.configure_tensorrt(precision, options)
            write_manifest(stage, writer.write())
        return open_bundle(out)


class _BundleWriter:
    """Writes one bundle into a staged folder."""

    def __init__(
        self,
        run: RunFolder,
        stage: Path,
        artefacts: Sequence[str],
        *,
        weights: bool,
        cases: Sequence[Path],
        progress: Progress,
        created: str,
    ) -> None:
        self.run, self.stage = run, stage
        self.plans = tuple(name for name in artefacts if name in PLANS)
        graph_artefacts = [name for name in artefacts if name not in PLANS]
        # Every TensorRT engine is built from the float32 ONNX graphs.
        needs_onnx = self.plans and "onnx" not in graph_artefacts
        self.artefacts = ["onnx", *graph_artefacts] if needs_onnx else graph_artefacts
        self.weights, self.cases, self.progress = weights, cases, progress
        self.config = run.config
        self.records: list[CheckResult] = []
        self.created = created

    def configure_tensorrt(self, precision: str, options: BuildOptions | None) -> None:
        """Set precision and build options of the TensorRT engines."""
        self.precision = precision
        longest = self.config.clinical.max_length
        self.request = PlanRequest(kinds=self.plans, options=replace(options or BuildOptions(), max_length=longest))

    def write(self) -> Manifest:
        """Write every file of the bundle except the manifest, and return the manifest."""
        clinical = self._clinical()
        self.progress("finding which folds share an encoder")
        partition = partition_run(self.run)
        vocabularies = {e.name: Tokenizer.load(e.tokenizer).vocab_size for e in partition.encoders if e.tokenizer}
        _require_vocabularies(vocabularies, self.config)
        count = golden_count(self.config)
        golden = make_golden(
            self.config, seed=GOLDEN_SEED, count=count, folds=len(partition.folds), vocabularies=vocabularies
        )
        models = FoldModels(self.run)
        self.progress(f"running the eager model on {count} golden cases")
        reference = compute_eager_reference(models, partition, golden)
        require_finite(reference)
        reference_float64 = float64_reference(models, partition, golden)
        validation_set = ValidationSet(
            golden=golden,
            reference=reference,
            reference_float64=reference_float64,
            real_cases=read_real_cases(self.cases, self.run, partition, models),
        )
        manifest = self._manifest(partition, tuple(self._graphs(partition, models)), clinical)
        del models  # frees the fold model before the engines load their graphs
        manifest = replace(
            manifest,
            golden={
                "seed": golden.seed,
                "count": golden.count,
                "vocabularies": vocabularies,
                "digests": golden.digests(),
                "float32_noise": float32_noise(reference, reference_float64),
                "largest_batch": largest_batch(self.config),
            },
        )
        self._write_references(manifest, partition, validation_set)
        manifest = self._validate_engines(manifest, validation_set)
        if self.plans:
            manifest = self._add_tensorrt(manifest, validation_set)
        if validation_set.real_cases:  # by now every engine's outputs are stored in them
            write_real_cases(self._path(REAL_CASES_FILE), validation_set.real_cases)
        manifest = replace(manifest, parity=tuple(self.records))
        write_text(self.stage / MODEL_CARD_FILE, model_card(manifest))
        write_text(self.stage / SBOM_FILE, sbom(manifest))
        self.progress("hashing the files")
        return replace(manifest, files=fingerprint(self.stage))

    def _write_references(self, manifest: Manifest, partition: GraphPartition, validation_set: ValidationSet) -> None:
        """Write the reference outputs of the golden inputs, and the expected network inputs of the golden case."""
        exact = {} if validation_set.reference_float64 is None else validation_set.reference_float64.tensors()
        exact = {f"{FLOAT64_PREFIX}{name}": value for name, value in exact.items()}
        save_arrays({**validation_set.reference.tensors(), **exact}, self.stage / GOLDEN_FILE)
        with tempfile.TemporaryDirectory(prefix="tmi-golden-") as folder:
            arrays = golden_case_reference(self.run, partition, Path(folder) / "golden", seed=GOLDEN_SEED)
        bundle = Bundle(folder=self.stage, manifest=manifest, digest="")
        save_arrays(arrays, self.stage / GOLDEN_CASE_FILE, metadata=output_metadata(bundle))
        sort_metadata(self.stage / GOLDEN_CASE_FILE)

    def _validate_engines(self, manifest: Manifest, validation_set: ValidationSet) -> Manifest:
        """Validate every engine. The returned manifest records the optional engines that failed."""
        bundle = Bundle(folder=self.stage, manifest=manifest, digest="")
        self.records.append(audit_fold_files(self.stage, manifest, self.run))
        self.progress("preparing the golden case")
        self.records += check_preprocessing(bundle)
        records = validate_engines(
            bundle,
            self.artefacts,
            validation_set,
            progress=self.progress,
            on_outputs=partial(write_engine_outputs, self.stage),
        )
        records, rejected = split_failed_optional(records)
        self.records += records
        require_passed(self.records)
        return replace(manifest, extra={**manifest.extra, ENGINES_REJECTED: rejected}) if rejected else manifest

    def _add_tensorrt(self, manifest: Manifest, validation_set: ValidationSet) -> Manifest:
        """Add typed graphs and TensorRT engines."""
        manifest, records = add_typed_graphs(
            self.stage, manifest, self.precision, validation_set, progress=self.progress
        )
        self.records += records
        require_passed(self.records)  # before a build, which may take minutes
        manifest, records = add_plans(self.stage, manifest, self.request, validation_set, progress=self.progress)
        self.records += records
        require_passed(self.records)
        return manifest

    def _graphs(self, partition: GraphPartition, models: FoldModels) -> Iterator[GraphSpec]:
        """Write and audit every graph, with one module in memory at a time."""
        for encoder in partition.encoders:
            tokenizer = self._copy(encoder.tokenizer, f"tokenizers/{encoder.name}.json") if encoder.tokenizer else None
            spec = graph_spec(self.config, encoder.role, encoder.name, folds=len(partition.folds), tokenizer=tokenizer)
            states = partial(_encoder_states, models, spec, encoder.folds)
            yield self._write_graph(spec, models.encoder(encoder), states)
        spec = graph_spec(self.config, "fusion", FUSION, folds=len(partition.folds))
        state = {
            f"folds.{i}.{key}": tensor
            for i, fold in enumerate(partition.folds)
            for key, tensor in models.state(spec, fold=fold).items()
        }
        yield self._write_graph(spec, models.fusion(partition.folds), lambda: iter([state]))

    def _write_graph(self, spec: GraphSpec, module: nn.Module, states: Callable[[], Iterator[StateDict]]) -> GraphSpec:
        """Write and audit every artefact of one graph; `states` yields the weights of each fold that uses it."""
        example, eps = example_inputs(spec), epsilons(module)
        files: dict[str, str] = {}
        for name in self.artefacts:
            exporter = EXPORTERS[name]
            files[exporter.artefact] = f"graphs/{spec.name}{exporter.suffix}"
            path = self._path(files[exporter.artefact])
            self.progress(f"writing {files[exporter.artefact]}")
            write_file(import_target(exporter.writer), module, spec, name, example, path)
            self.progress(f"auditing {files[exporter.artefact]}")
            self.records += audit_file(
                path, spec, name, expected=states(), epsilons=eps, module=module, example=example
            )
        if self.weights:
            files[WEIGHTS] = f"weights/{spec.name}.safetensors"
            save_tensors(_rename_fold_weights(spec, next(states())), self._path(files[WEIGHTS]))
            expected = map(partial(_rename_fold_weights, spec), states())
            self.records.append(audit_stored_weights(self.stage / files[WEIGHTS], spec, expected))
        return replace(spec, artefacts=files)

    def _manifest(self, partition: GraphPartition, graphs: tuple[GraphSpec, ...], clinical: ClinicalSpec) -> Manifest:
        """The manifest, still without file digests, golden inputs and parity records."""
        state = self.run.state
        has_radiomics = "radiomics" in active_modalities(self.config)
        folds = tuple(
            FoldSpec(
                fold=fold,
                ct=partition.encoder_name("ct", fold),
                text=partition.encoder_name("text", fold),
                scaler=self._copy(self.run.fold(fold).scaler, f"scalers/fold{fold}.json") if has_radiomics else None,
            )
            for fold in partition.folds
        )
        engines = [e for name in self.artefacts for e in EXPORTERS[name].engines]
        not_installed = {e: "not installed at the export" for e in engines if not installed(e)}
        unsupported = {
            e: reason for e in engines if e not in not_installed and (reason := missing_requirement(e)) is not None
        }
        return Manifest(
            preset=self.config.preset,
            config=to_json(self.config),
            graphs=graphs,
            folds=folds,
            clinical=clinical,
            files={},
            golden={},
            parity=(),
            versions=recorded_versions(),
            run=run_record(self.run, state),
            threshold=self.run.threshold,
            modalities=active_modalities(self.config),
            created=self.created,
            synthetic=bool(state["cohort"].get("synthetic", False)),
            extra={
                "engines_not_judged": not_installed | unsupported,
                "hardware": hardware(),
                "temperatures": [self.run.fold(fold).temperature for fold in partition.folds],
            },
        )

    def _clinical(self) -> ClinicalSpec:
        """Clinical schema and rendering version that the run was trained with."""
        rendering, version = self.config.clinical.rendering, self.run.rendering_version
        if version is None:
            raise DamagedError(f"run {self.run.path}: run.json has no rendering_version", fix="train the run again")
        if "clinical" in active_modalities(self.config):
            require_rendering(rendering, version, kind="run")
        schema = self._copy(self.run.path / SCHEMA_FILE, SCHEMA_FILE)
        return ClinicalSpec(schema=schema, rendering=rendering, rendering_version=version)

    def _path(self, name: str) -> Path:
        path = self.stage / name
        path.parent.mkdir(exist_ok=True)
        return path

    def _copy(self, source: Path, name: str) -> str:
        shutil.copyfile(source, self._path(name))
        return name


def _require_vocabularies(vocabularies: Mapping[str, int], config: Config) -> None:
    rows = config.network.text_encoder.vocab_size
    for name, size in vocabularies.items():
        if size > rows:
            raise DamagedError(
                f"run: the tokenizer of {name} has {size} tokens, the embedding table {rows}",
                fix="train the run again with a tokenizer that fits",
            )


def _encoder_states(models: FoldModels, spec: GraphSpec, folds: tuple[int, ...]) -> Iterator[StateDict]:
    for fold in folds:
        yield models.state(spec, fold=fold)


def _rename_fold_weights(spec: GraphSpec, state: StateDict) -> StateDict:
    """Weights under their names in a bundle: `fold<i>.` for `folds.<i>.` of `MultiFoldFusion`."""
    renamed = {key.replace("folds.", "fold", 1) if spec.name == FUSION else key: t for key, t in state.items()}
    return {key: t.contiguous() for key, t in renamed.items()}
