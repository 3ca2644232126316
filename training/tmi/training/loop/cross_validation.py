"""Cross-validation: prepare the cohort, train one model for each fold, write the summary; or resume a run."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tmi.toolkit.cases.case import Case, Cohort, open_cohort
from tmi.toolkit.cases.fingerprint import cohort_fingerprint
from tmi.toolkit.clinical.rendering import require_rendering
from tmi.toolkit.clinical.schema import SCHEMA_FILE, Schema, find_schema
from tmi.toolkit.clinical.tokenizer import MIN_PATIENTS, Tokenizer
from tmi.toolkit.config.presets import preset
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import InputRejectedError, UsageError
from tmi.toolkit.preprocessing.cache import PreparedCache
from tmi.toolkit.radiomics.provenance import table_axes
from tmi.toolkit.run_folder import FoldFolder, FoldSplit, RunFolder, is_unstarted
from tmi.toolkit.storage.atomic_files import read_json, require_absent
from tmi.toolkit.storage.outputs import output_lock
from tmi.toolkit.storage.serialization import to_json
from tmi.toolkit.synthetic.cohort import is_synthetic
from tmi.training.data.dataset import CohortArrays, prepare_cohort
from tmi.training.data.splits import make_folds
from tmi.training.evaluation.summary import write_summary
from tmi.training.loop.hardware import HardwareConfig, resolve_accelerator
from tmi.training.loop.machine import RECORDED_PACKAGES
from tmi.training.loop.memory_fit import MemoryFit, fit_memory, record_memory
from tmi.training.loop.run_spec import FoldContext, RunSpec
from tmi.training.pretrained.origin import vocabulary_record

if TYPE_CHECKING:
    from tmi.training.pretrained.initial_weights import InitialWeights  # torch

TRAINED = "training texts"
"""`source` in the record of a vocabulary that each fold trains; that of a given one is `given`."""


class TrainingCallbacks(Protocol):
    """Progress hooks; implemented by the CLI."""

    def on_preparation_start(self, total: int) -> Callable[[Case], None]:
        """Preparation starts; returns a function that is called after each case."""

    def on_training_start(self, folds: int) -> None:
        """The training of so many folds starts; those of an earlier run do not count."""

    def on_fold_start(self, split: FoldSplit, epochs: int) -> Callable[[int, float, float], None]:
        """A fold starts; returns a function that is called after each epoch with its number and two losses."""

    def on_step(self, split: FoldSplit, epoch: int, done: int, total: int) -> None:
        """So many of an epoch's batches are done; not called for a model without a network."""

    def on_fold_end(self, split: FoldSplit, metrics: Mapping[str, float | None]) -> None:
        """A fold is finished, with these metrics on its held-out cases (`tmi.training.evaluation.metrics`)."""

    def on_case_rejected(self, error: InputRejectedError) -> None:
        """A case is rejected and left out of the run."""

    def on_warning(self, message: str) -> None:
        """A property of the cohort that should be looked into before the training; the training continues."""

    def on_fold_failed(self, split: FoldSplit, why: str) -> None:
        """A fold failed while folds are trained in parallel; the other folds continue."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Result of a cross-validation run."""

    run: RunFolder
    """The finished run."""
    summary: dict[str, Any]
    """Content of summary.json."""
    rejected: tuple[InputRejectedError, ...]
    """One error for each case that was left out."""

    def __repr__(self) -> str:
        auc = self.summary.get("over_folds", {}).get("roc_auc", {}).get("mean")
        known = "" if auc is None else f", AUC {auc:.3f}"
        return f"RunResult({str(self.run.path)!r}, {len(self.run.folds)} folds{known}, {len(self.rejected)} rejected)"


class _Silent(TrainingCallbacks):
    """Reports nothing."""

    def on_preparation_start(self, total: int) -> Callable[[Case], None]:
        return lambda case: None

    def on_fold_start(self, split: FoldSplit, epochs: int) -> Callable[[int, float, float], None]:
        return lambda epoch, training_loss, validation_loss: None

    def on_training_start(self, folds: int) -> None:
        return

    def on_step(self, split: FoldSplit, epoch: int, done: int, total: int) -> None:
        return

    def on_fold_end(self, split: FoldSplit, metrics: Mapping[str, float | None]) -> None:
        return

    def on_case_rejected(self, error: InputRejectedError) -> None:
        return

    def on_warning(self, message: str) -> None:
        return

    def on_fold_failed(self, split: FoldSplit, why: str) -> None:
        return


def train(
    cohort: Cohort | Path | str,
    out: Path | str,
    *,
    config: Config | str,
    schema: Schema | None = None,
    tokenizer: Tokenizer | None = None,
    name: str | None = None,
    hardware: HardwareConfig | None = None,
    cache: PreparedCache | None = None,
    callbacks: TrainingCallbacks | None = None,
    resume: bool = False,
) -> RunResult:
    """Train one model for each fold of a cohort, as `tmi train` does; a run with other weights is a `RunSpec`.

    Args:
        cohort: cohort folder, or an opened cohort.
        out: folder of the run.
        config: a config, or the name of a preset.
        schema: clinical schema of the records; None: the cohort's, or the packaged one.
        tokenizer: vocabulary of every fold, which the presets `paper` and `released` need; None: each fold trains one.
        name: name of the run; None: the name of its folder.
        hardware: devices; None: the GPU if there is one, else the CPU.
        cache: cache of prepared images; None: images are prepared for this run alone.
        callbacks: progress hooks; None: nothing is reported.
        resume: continue an interrupted run.

    Raises:
        UsageError, InputRejectedError, DamagedError, UnavailableError, KeyboardInterrupt: as in `cross_validate`; a
            run exists at `out` and `resume` is not set.
    """
    opened = cohort if isinstance(cohort, Cohort) else open_cohort(Path(cohort))
    hardware = hardware or HardwareConfig(accelerator=resolve_accelerator("auto"))
    if not resume and not hardware.node_rank:  # the first node creates the run, the others write folds into it
        require_absent(Path(out), force=False, kind="run")
    spec = RunSpec(
        cohort=opened,
        config=preset(config) if isinstance(config, str) else config,
        schema=schema or find_schema(None, None, [opened.folder])[0],
        out=Path(out),
        name=name,
        tokenizer=tokenizer,
        hardware=hardware,
        cache=cache,
    )
    return cross_validate(spec, callbacks or _Silent(), resume=resume)


def cross_validate(spec: RunSpec, callbacks: TrainingCallbacks, *, resume: bool = False) -> RunResult:
    """Train a run in `spec.out`, or continue an interrupted one to the same result.

    On a node other than the first, the function trains its share, writes nothing and returns an empty summary.

    Args:
        spec: the run.
        callbacks: progress hooks.
        resume: continue the run in `spec.out`; if none was started there, start it.

    Raises:
        UsageError: too few cases; a tokenizer is needed and not given; the run to resume was started with other
            options, another cohort or other weights; another process trains in `out`, or it cannot be written.
        InputRejectedError: every case was rejected.
        KeyboardInterrupt: Ctrl-C; the run can be resumed.
        DamagedError: the run to resume is damaged.
        UnavailableError: devices, memory or the disk are too small; memory is compared with the estimate of a training
            step before any case is prepared.
    """
    spec.hardware.check(spec.config)
    memory = fit_memory(spec.config, spec.hardware, cases=len(spec.cohort.cases))
    hardware = replace(spec.hardware, checkpointing=memory is not None and memory.checkpointing)
    spec = replace(spec, hardware=hardware)
    _require_tokenizer(spec.config, spec.tokenizer)
    # Node 0 alone creates, checks and finishes the run folder; the others write folds into it.
    with nullcontext() if hardware.node_rank else output_lock(spec.out, kind="run"):
        resume = resume and not is_unstarted(spec.out)
        return _cross_validate(spec, callbacks, resume, memory)


def _cross_validate(spec: RunSpec, callbacks: TrainingCallbacks, resume: bool, memory: MemoryFit | None) -> RunResult:
    from tmi.training.data.truncated_texts import text_truncation  # torch

    cohort, config, out, hardware = spec.cohort, spec.config, spec.out, spec.hardware
    scratch = out.with_name(f".{out.name}.prepared{hardware.node_rank or ''}")
    cohort_digest = cohort_fingerprint(cohort)
    is_follower = hardware.node_rank > 0
    if resume and not is_follower:
        run = _open_for_resume(spec, cohort_digest)
    if memory is not None and memory.checkpointing:
        callbacks.on_warning(memory.summary())
    try:
        progress = callbacks.on_preparation_start(len(cohort.cases))
        arrays = prepare_cohort(
            cohort, config, spec.schema, store=scratch / "ct.npy", cache=spec.cache, progress=progress
        )
        for error in arrays.rejected:
            callbacks.on_case_rejected(error)
        if not arrays.cases:
            raise InputRejectedError(
                f"none of the {len(cohort.cases)} cases of {cohort.folder} can be used for training",
                fix="fix the problems reported above; `tmi check` reports details",
                code="cohort-refused",
            )
        context = FoldContext(
            arrays=arrays, config=config, tokenizer=spec.tokenizer, initial=spec.initial, hardware=hardware
        )
        if is_follower:
            pending = [s for s in make_folds(arrays.cases, config.train) if not FoldFolder.of(out, s.fold).done]
            _train_folds(context, pending, out, callbacks)
            return RunResult(run=RunFolder.open(out), summary={}, rejected=arrays.rejected)
        if not resume:
            run = _create_run(spec, arrays, cohort_digest)
        else:
            _require_anonymous_vocabulary(run, arrays)
        if resume and _all_case_ids(run.folds) != {c.case_id for c in arrays.cases}:
            raise UsageError(f"run {out} was started with a different set of cases", fix="train a new run")
        if (warning := text_truncation(arrays, run.folds, config, spec.tokenizer)) is not None:
            callbacks.on_warning(warning)
        if memory is not None:
            record_memory(run, memory)
        pending = [split for split in run.folds if not run.fold(split.fold).done]
        _train_folds(context, pending, out, callbacks)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    summary = write_summary(run, rejected=len(arrays.rejected))
    run.finish()
    return RunResult(run=run, summary=summary, rejected=arrays.rejected)


def _train_folds(context: FoldContext, splits: Sequence[FoldSplit], out: Path, callbacks: TrainingCallbacks) -> None:
    from tmi.training.loop.fold_training import train_fold  # Lightning, torch
    from tmi.training.loop.freezing import FrozenFeatures
    from tmi.training.loop.parallel_folds import train_folds_in_parallel

    hardware, epochs = context.hardware, context.config.train.epochs

    def on_fold_end(split: FoldSplit) -> None:
        if not hardware.node_rank:
            callbacks.on_fold_end(split, read_json(FoldFolder.of(out, split.fold).metrics, kind="run")["test"])

    callbacks.on_training_start(len(splits))
    if hardware.parallel_folds > 1:
        train_folds_in_parallel(
            context,
            splits,
            lambda number: FoldFolder.of(out, number),
            epoch_callback=lambda split: callbacks.on_fold_start(split, epochs),
            on_fold_end=on_fold_end,
            on_fold_failed=callbacks.on_fold_failed,
            on_step=callbacks.on_step,
        )
        return
    features = FrozenFeatures()  # shared by all folds that start from the same weights
    for split in splits:
        train_fold(
            context,
            split,
            FoldFolder.of(out, split.fold),
            epoch_callback=callbacks.on_fold_start(split, epochs),
            step_callback=partial(callbacks.on_step, split),
            features=features,
        )
        on_fold_end(split)


def _create_run(spec: RunSpec, arrays: CohortArrays, cohort_digest: str) -> RunFolder:
    cohort, config = spec.cohort, spec.config
    folds = make_folds(arrays.cases, config.train)
    cohort_record = {
        "cases": len(arrays.cases),
        "refused": sorted(e.case_id or "" for e in arrays.rejected),
        "fingerprint": cohort_digest,
        "synthetic": is_synthetic(cohort.folder),
        # axes of the features -> number of cases; features depend on them
        "radiomics_axes": dict(Counter(table_axes(case) for case in cohort.cases)),
    }
    return RunFolder.create(
        spec.out,
        name=spec.name or spec.out.resolve().name,
        config=config,
        schema=spec.schema,
        folds=folds,
        cohort=cohort_record,
        versions={package: version(package) for package in RECORDED_PACKAGES},
        vocabulary=_vocabulary_record(spec),
        pretrained=None if spec.initial is None else spec.initial.document(),
    )


def require_same_options(spec: RunSpec) -> None:
    """Check that a run, finished or not, was started with these options; a resumed training can change none of them.

    Raises:
        UsageError: config, schema, cohort, initial weights or vocabulary differ.
        DamagedError: the run is damaged.
    """
    _open_for_resume(spec, cohort_fingerprint(spec.cohort))


def _vocabulary_record(spec: RunSpec) -> Mapping[str, Any]:
    if spec.tokenizer is None:
        return {"source": TRAINED, "min_patients": MIN_PATIENTS}
    return vocabulary_record(spec.tokenizer, None) if spec.vocabulary is None else spec.vocabulary


def _open_for_resume(spec: RunSpec, cohort_digest: str) -> RunFolder:
    out, config, schema = spec.out, spec.config, spec.schema
    run = RunFolder.open(out)
    require_rendering(run.config.clinical.rendering, run.rendering_version, kind=f"run {out}")
    if run.schema != schema:
        raise UsageError(
            f"run {out} was started with a different clinical schema",
            fix=f"resume it with --schema {out / SCHEMA_FILE}, or train a new run",
        )
    if run.config != config:
        before, now = to_json(run.config), to_json(config)
        section = next(k for k in before if before[k] != now[k])
        setting = _first_difference(section, before[section], now[section])
        raise UsageError(
            f"run {out} was started with a different config ({section} differs: {setting})",
            fix="resume it with the options it was started with, or train a new run",
        )
    if run.state["cohort"]["fingerprint"] != cohort_digest:
        raise UsageError(
            f"run {out} was started on a different cohort, or the cohort has changed since",
            fix="restore the cohort, or train a new run",
        )
    require_same_initial_weights(run, spec.initial)
    _require_same_vocabulary(run, _vocabulary_record(spec))
    return run


def _first_difference(name: str, before: Any, now: Any) -> str:
    """Name of the first setting that differs, with both values: `train.epochs was 20, is 7`."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(k for k in {**before, **now} if before.get(k) != now.get(k))
        return _first_difference(f"{name}.{key}", before.get(key), now.get(key))
    return f"{name} was {before}, is {now}"


def require_same_initial_weights(run: RunFolder, initial: InitialWeights | None) -> None:
    """Check that a run resumes from the pre-trained weights that it was started from.

    Raises:
        UsageError: the SHA-256 digests of the weight files differ.
    """
    before = read_json(run.pretrained, kind="run") if run.pretrained.is_file() else {}
    now = {} if initial is None else initial.document()
    if {k: v["sha256"] for k, v in before.items()} != {k: v["sha256"] for k, v in now.items()}:
        raise UsageError(
            f"run {run.path} was started from different pre-trained weights",
            fix="resume it with the --ct-weights and --text-weights it was started with, or train a new run",
        )


def _require_same_vocabulary(run: RunFolder, vocabulary: Mapping[str, Any]) -> None:
    """Check that a run resumes with the vocabulary that it was started with; an earlier version's run records none.

    Raises:
        UsageError: the tokens differ, or one of the two trains its own.
    """
    before = run.vocabulary
    if before and (before.get("source"), before.get("sha256")) != (vocabulary["source"], vocabulary.get("sha256")):
        raise UsageError(
            f"run {run.path} was started with a different vocabulary",
            fix="resume it with the --vocab or --text-weights it was started with, or train a new run",
        )


def _require_anonymous_vocabulary(run: RunFolder, arrays: CohortArrays) -> None:
    """Reject a run whose first folds put the words of single patients' reports in their vocabularies.

    Raises:
        UsageError: an earlier version started the run, and cases have reports.
    """
    trained = run.config.clinical.vocab_size is not None
    if trained and any(arrays.reports) and run.vocabulary.get("min_patients") != MIN_PATIENTS:
        raise UsageError(
            f"run {run.path} was started by an earlier version, whose vocabularies hold words of single patients' "
            "reports",
            fix="train a new run",
        )


def _all_case_ids(folds: tuple[FoldSplit, ...]) -> set[str]:
    return {case_id for split in folds for case_id in split.test}


def _require_tokenizer(config: Config, tokenizer: Tokenizer | None) -> None:
    embedding_rows = config.network.text_encoder.vocab_size
    if tokenizer is None and config.clinical.vocab_size is None:
        raise UsageError(
            f"preset {config.preset} needs a BERT vocabulary, but none was given",
            fix="give one with --vocab vocab.txt (BioBERT v1.1 uses bert-base-cased's), or train one on the cohort's "
            "texts with --set clinical.vocab_size=2048",
        )
    if tokenizer is not None and tokenizer.vocab_size > embedding_rows:
        raise UsageError(
            f"the vocabulary has {tokenizer.vocab_size} tokens, but the text encoder only {embedding_rows} rows",
            fix=f"--set network.text_encoder.vocab_size={tokenizer.vocab_size}",
        )
