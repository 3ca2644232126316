"""From a finished run to a bundle that may be believed: cut, write, audit, judge, and only then put in place."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors
from torch import nn

from tmi.export.bundle.model_card import class_counts, model_card, releasable_counts
from tmi.export.bundle.out_of_memory import out_of_memory_as_error
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
from tmi.export.checks.eager_reference import eager_reference, float32_noise, float64_reference
from tmi.export.checks.preprocessing_reference import golden_case_reference
from tmi.export.checks.real_cases import read_real_cases, write_real_cases
from tmi.export.checks.validation_set import ValidationSet, write_engine_outputs
from tmi.export.checks.weight_audit import epsilons
from tmi.export.graphs.partition import FoldModels, GraphPartition, StateDict, example_inputs, graph_spec, partition_run
from tmi.export.graphs.registry import EXPORTERS, import_target, require_exporter
from tmi.export.graphs.requirements import require_exportable
from tmi.export.tensorrt.builder import BuildOptions
from tmi.export.tensorrt.engines import PLANS, PlanRequest, add_plans
from tmi.export.tensorrt.typed_graphs import add_typed_graphs, require_precision
from tmi.runtime.bundle.check_result import CheckResult, require_passed
from tmi.runtime.bundle.manifest import (
    FUSION,
    GOLDEN_CASE_FILE,
    GOLDEN_FILE,
    MANIFEST_FILE,
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
from tmi.runtime.verification.parity import FLOAT64_PREFIX
from tmi.runtime.verification.preprocessing_check import check_preprocessing, output_metadata
from tmi.toolkit.clinical.rendering import require_rendering
from tmi.toolkit.clinical.schema import SCHEMA_FILE
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.run_folder import SUMMARY_FILE, RunFolder
from tmi.toolkit.storage.atomic_files import read_json, require_absent, staged_folder, write_text
from tmi.toolkit.storage.serialization import to_json

GOLDEN_SEED = 20_240_601
"""Seed of the golden inputs of every bundle; any integer would do."""
WEIGHTS = "weights"
"""Artefact kind of the eager weights."""
PACKAGES = ("tmi-clnet", "numpy", "torch", "transformers", "monai", "tokenizers", "safetensors", "onnx", "onnxscript",
            "onnxruntime", "openvino", "onnx-ir", "tensorrt", "tensorrt_rtx", "torch_tensorrt")  # fmt: skip
"""Distributions whose versions the manifest records, those that are installed."""


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
) -> Bundle:
    """Export a finished run; the bundle appears at `out` whole and judged, or not at all.

    Args:
        run: folder of a finished run.
        out: folder of the bundle.
        artefacts: names in `EXPORTERS`.
        force: replace the bundle that is at `out`.
        weights: put the eager weights into the bundle, so that the engine `eager` can answer from it.
        cases: real case or cohort folders that the engines are judged on beside the golden inputs; of them only hashes
            and outputs get into the bundle.
        precision: of TensorRT engines; a key of `tmi.export.tensorrt.typed_graphs.PRECISIONS`.
        options: how TensorRT engines are built; None: for batches up to 4 and the run's longest text.
        progress: told one line of what is being done.

    An engine of TensorRT that cannot be built here is pending in the bundle (`tmi.export.tensorrt.engines.pending`).

    Raises:
        UsageError: no such run, an unfinished one, an unknown artefact, or something is at `out`.
        UnavailableError: an artefact cannot be written here, or memory ran out.
        DamagedError: the run was changed after the training.
        InputRejectedError: one of `cases` cannot be used.
        ParityError: a gate failed; nothing was written.
    """
    names = list(dict.fromkeys(artefacts))
    for name in names:
        require_exporter(name)
    if not names:
        raise UsageError("nothing to export", fix=f"name one of {', '.join(EXPORTERS)} with --engine")
    require_precision(precision)
    require_replaceable(out, force=force)
    tell = progress or (lambda line: None)
    tell("checking the run")
    folder = RunFolder.open(run)
    require_exportable(folder)
    folder.require_finished()
    with out_of_memory_as_error("the export", tell) as tell, staged_folder(out) as stage:
        export = _Export(folder, stage, names, weights=weights, cases=cases, progress=tell)
        export.plan(precision, options)
        write_manifest(stage, export.write())
    return open_bundle(out)


def require_replaceable(out: Path, *, force: bool) -> None:
    """Refuse to overwrite without `force`, and to replace anything but a bundle even with it.

    Raises:
        UsageError: something is at `out`.
    """
    require_absent(out, force=force, kind="bundle")
    occupied = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if occupied and not (out / MANIFEST_FILE).is_file():
        raise UsageError(
            f"{out} is there and is no bundle; --force replaces bundles only", fix="name another with --out"
        )


class _Export:
    """One export into a staged folder."""

    def __init__(
        self,
        run: RunFolder,
        stage: Path,
        artefacts: Sequence[str],
        *,
        weights: bool,
        cases: Sequence[Path],
        progress: Progress,
    ) -> None:
        self.run, self.stage = run, stage
        self.plans = tuple(name for name in artefacts if name in PLANS)
        written = [name for name in artefacts if name not in PLANS]
        # Every engine of TensorRT starts from the float32 ONNX graphs.
        self.artefacts = ["onnx", *written] if self.plans and "onnx" not in written else written
        self.weights, self.cases, self.progress = weights, cases, progress
        self.config = run.config
        self.records: list[CheckResult] = []

    def plan(self, precision: str, options: BuildOptions | None) -> None:
        """How engines of TensorRT are to be built."""
        self.precision = precision
        longest = self.config.clinical.max_length
        self.request = PlanRequest(kinds=self.plans, options=replace(options or BuildOptions(), max_length=longest))

    def write(self) -> Manifest:
        """Every file of the bundle but the manifest, which is returned."""
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
        self.progress(f"asking the eager model about {count} golden cases")
        reference = eager_reference(models, partition, golden)
        require_finite(reference)
        reference_float64 = float64_reference(models, partition, golden)
        validation_set = ValidationSet(
            golden=golden,
            reference=reference,
            reference_float64=reference_float64,
            real_cases=read_real_cases(self.cases, self.run, partition, models),
        )
        manifest = self._manifest(partition, tuple(self._graphs(partition, models)), clinical)
        del models
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
            manifest = self._tensorrt(manifest, validation_set)
        if validation_set.real_cases:  # every engine has left its answers there
            write_real_cases(self._path(REAL_CASES_FILE), validation_set.real_cases)
        manifest = replace(manifest, parity=tuple(self.records))
        write_text(self.stage / MODEL_CARD_FILE, model_card(manifest))
        write_text(self.stage / SBOM_FILE, sbom(manifest))
        self.progress("taking fingerprints")
        return replace(manifest, files=fingerprint(self.stage))

    def _write_references(self, manifest: Manifest, partition: GraphPartition, validation_set: ValidationSet) -> None:
        """The answers to the golden inputs, and what the golden case must become."""
        exact = {} if validation_set.reference_float64 is None else validation_set.reference_float64.tensors()
        named = {f"{FLOAT64_PREFIX}{name}": value for name, value in exact.items()}
        save_arrays({**validation_set.reference.tensors(), **named}, self.stage / GOLDEN_FILE)
        with tempfile.TemporaryDirectory(prefix="tmi-golden-") as folder:
            arrays = golden_case_reference(self.run, partition, Path(folder) / "golden", seed=GOLDEN_SEED)
        save_arrays(arrays, self.stage / GOLDEN_CASE_FILE, metadata=output_metadata(manifest))

    def _validate_engines(self, manifest: Manifest, validation_set: ValidationSet) -> Manifest:
        """Every engine; the manifest then says which engine that may fail alone has failed."""
        bundle = Bundle(folder=self.stage, manifest=manifest, digest="")

        self.records.append(audit_fold_files(self.stage, manifest, self.run))
        self.progress("preparing the golden case")
        self.records += check_preprocessing(bundle)
        keep = partial(write_engine_outputs, self.stage)
        judged = validate_engines(bundle, self.artefacts, validation_set, progress=self.progress, keep=keep)
        kept, refused = split_failed_optional(judged)
        self.records += kept
        require_passed(self.records)
        return replace(manifest, extra={**manifest.extra, ENGINES_REJECTED: refused}) if refused else manifest

    def _tensorrt(self, manifest: Manifest, validation_set: ValidationSet) -> Manifest:
        """Typed graphs and plans; their records are judged before anything is built from them."""
        manifest, records = add_typed_graphs(
            self.stage, manifest, self.precision, validation_set, progress=self.progress
        )
        self.records += records
        require_passed(self.records)
        manifest, records = add_plans(self.stage, manifest, self.request, validation_set, progress=self.progress)
        self.records += records
        require_passed(self.records)
        return manifest

    def _graphs(self, partition: GraphPartition, models: FoldModels) -> Iterator[GraphSpec]:
        """Write and audit every graph, one in memory at a time."""
        for plan in partition.encoders:
            tokenizer = self._copy(plan.tokenizer, f"tokenizers/{plan.name}.json") if plan.tokenizer else None
            spec = graph_spec(self.config, plan.role, plan.name, folds=len(partition.folds), tokenizer=tokenizer)
            states = partial(_encoder_states, models, spec, plan.folds)
            yield self._graph(spec, models.encoder(plan), states)
        spec = graph_spec(self.config, "fusion", FUSION, folds=len(partition.folds))
        state = {
            f"folds.{i}.{key}": tensor
            for i, fold in enumerate(partition.folds)
            for key, tensor in models.state(spec, fold=fold).items()
        }
        yield self._graph(spec, models.fusion(partition.folds), lambda: iter([state]))

    def _graph(self, spec: GraphSpec, module: nn.Module, states: Callable[[], Iterator[StateDict]]) -> GraphSpec:
        """Every artefact of one graph; `states` gives the weights as each fold that uses it has them, one by one."""
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
            save_tensors(_stored(spec, next(states())), self._path(files[WEIGHTS]))
            self.records.append(
                audit_stored_weights(self.stage / files[WEIGHTS], spec, map(partial(_stored, spec), states()))
            )
        return replace(spec, artefacts=files)

    def _manifest(self, partition: GraphPartition, graphs: tuple[GraphSpec, ...], clinical: ClinicalSpec) -> Manifest:
        """The manifest without files, golden inputs and evidence."""
        state = self.run.state
        scaled = "radiomics" in active_modalities(self.config)
        folds = tuple(
            FoldSpec(
                fold=fold,
                ct=partition.graph("ct", fold),
                text=partition.graph("text", fold),
                scaler=self._copy(self.run.fold(fold).scaler, f"scalers/fold{fold}.json") if scaled else None,
            )
            for fold in partition.folds
        )
        engines = [e for name in self.artefacts for e in EXPORTERS[name].engines]
        not_judged = {e: "not installed at the export" for e in engines if not installed(e)}
        lacked = {e: why for e in engines if e not in not_judged and (why := missing_requirement(e)) is not None}
        return Manifest(
            preset=self.config.preset,
            config=to_json(self.config),
            graphs=graphs,
            folds=folds,
            clinical=clinical,
            files={},
            golden={},
            parity=(),
            versions=_versions(),
            run=_run_record(self.run, state),
            threshold=self.run.threshold,
            modalities=active_modalities(self.config),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            synthetic=bool(state["cohort"].get("synthetic", False)),
            extra={
                "engines_not_judged": not_judged | lacked,
                "hardware": hardware(),
                "temperatures": [self.run.fold(fold).temperature for fold in partition.folds],
            },
        )

    def _clinical(self) -> ClinicalSpec:
        """The schema and the rendering that the run was trained with."""
        rendering, version = self.config.clinical.rendering, self.run.rendering_version
        if version is None:
            raise DamagedError(f"run {self.run.path}: run.json names no rendering_version", fix="train the run again")
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


def _stored(spec: GraphSpec, state: StateDict) -> StateDict:
    """Weights under the names of the bundle: `fold<i>.` for what `FusionOfFolds` names `folds.<i>.`."""
    named = {key.replace("folds.", "fold", 1) if spec.name == FUSION else key: t for key, t in state.items()}
    return {key: t.contiguous() for key, t in named.items()}


def _versions() -> dict[str, str]:
    there = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    found = {name: there[name] for name in PACKAGES if name in there}
    return {"python": platform.python_version(), "machine": platform.machine(), **found}


def _run_record(run: RunFolder, state: dict[str, Any]) -> dict[str, Any]:
    """What the run says of itself: figures and fingerprints, no case ids."""
    kept: dict[str, Any] = {"class_counts": releasable_counts(class_counts(run))} | {
        key: state[key] for key in ("name", "started_at", "finished_at", "cohort", "versions") if key in state
    }
    refused = kept.get("cohort", {}).get("refused")
    if isinstance(refused, list):  # the run names the cases; a bundle names none
        kept["cohort"] = {**kept["cohort"], "refused": len(refused)}
    summary = run.path / SUMMARY_FILE
    return kept | {"summary": read_json(summary, kind="run")} if summary.is_file() else kept
