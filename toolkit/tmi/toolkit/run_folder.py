"""Layout of a training run on disk, and the integrity checks made before a run is used.

A run is a folder::

    run.json            schema, name, status, times, versions, cohort fingerprint; digests of all files once finished
    config.json         complete config
    clinical_schema.json    clinical schema that rendered the texts
    pretrained.json     pre-trained weight files and the tensors loaded from them; only if any were used
    folds.json          train, validation and test cases of each fold
    summary.json/.md    mean and standard deviation over the folds
    fold<k>/
      model.safetensors   weights of the selected epoch
      trust.safetensors   statistics of what the fold was trained on (`tmi.toolkit.trust`); absent in earlier runs
      scaler.json         radiomics scaler, fitted on the fold's training part
      tokenizer.json      tokenizer, trained on the fold's training part if the preset trains one
      machine.json        processor, threads, devices and versions that the fold was trained with
      metrics.json        metrics on the fold's held-out cases, and the selected epoch
      predictions.csv     probability of the positive class (raw and calibrated) and logits of the held-out cases
      validation.csv      the same for the inner validation cases; temperature and threshold are fitted on them
      history.csv         one row per epoch
      augmentation.csv    augmentations applied to each CT in each epoch; only if any were applied
      checkpoints/        state that `--resume` continues from; not part of the finished run
    tracking/           output of experiment trackers, if enabled; not part of the finished run
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmi.toolkit.clinical.rendering import RENDERING_VERSIONS
from tmi.toolkit.clinical.schema import SCHEMA_FILE, Schema, store_schema, stored_schema
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import DamagedError, TmiError, UsageError
from tmi.toolkit.model_registry import UnknownModelError
from tmi.toolkit.storage.atomic_files import read_json, write_json
from tmi.toolkit.storage.bounded_files import WEIGHTS_BYTES
from tmi.toolkit.storage.hashing import sha256_file
from tmi.toolkit.storage.outputs import LOCK_FILE
from tmi.toolkit.storage.serialization import from_json, to_json

SCHEMA = "tmi-run/1"
RUN_FILE = "run.json"
CONFIG_FILE = "config.json"
FOLDS_FILE = "folds.json"
SUMMARY_FILE = "summary.json"
SUMMARY_TEXT_FILE = "summary.md"
PRETRAINED_FILE = "pretrained.json"
CHECKPOINTS = "checkpoints"
TRACKING = "tracking"
"""Folder of experiment trackers; not part of the finished run."""


UNSTARTED_FILES = tuple(
    name + suffix
    for name in (CONFIG_FILE, SCHEMA_FILE, FOLDS_FILE, PRETRAINED_FILE, RUN_FILE)
    for suffix in ("", ".part")
    if name + suffix != RUN_FILE
)
"""Files that a training may have written before run.json."""


@dataclass(frozen=True, kw_only=True)
class FoldSplit:
    """Case ids of the parts of one fold."""

    fold: int
    """Number of the fold, from 0."""
    train: tuple[str, ...]
    """Cases that the weights, scaler and tokenizer are fitted on."""
    validation: tuple[str, ...]
    """Cases that the epoch is selected on."""
    test: tuple[str, ...]
    """Held-out cases that the metrics are reported on."""


@dataclass(frozen=True, kw_only=True)
class FoldFolder:
    """Files of one fold."""

    folder: Path
    """`fold<k>`."""
    fold: int
    """Number of the fold."""

    @classmethod
    def of(cls, run: Path, number: int) -> FoldFolder:
        """Create the paths of fold `number` of the run at `run`."""
        return cls(folder=run / f"fold{number}", fold=number)

    @property
    def model(self) -> Path:
        """Weights of the selected epoch."""
        return self.folder / "model.safetensors"

    @property
    def scaler(self) -> Path:
        """Radiomics scaler."""
        return self.folder / "scaler.json"

    @property
    def tokenizer(self) -> Path:
        """Tokenizer."""
        return self.folder / "tokenizer.json"

    @property
    def trust(self) -> Path:
        """Statistics for out-of-distribution detection; absent in runs of earlier versions and of small cohorts."""
        return self.folder / "trust.safetensors"

    @property
    def machine(self) -> Path:
        """Machine that the fold was trained on; absent if an earlier version trained it."""
        return self.folder / "machine.json"

    @property
    def metrics(self) -> Path:
        """Metrics; written last, so the fold is complete if this file exists."""
        return self.folder / "metrics.json"

    @property
    def predictions(self) -> Path:
        """Out-of-fold predictions."""
        return self.folder / "predictions.csv"

    @property
    def validation(self) -> Path:
        """Predictions of the inner validation cases."""
        return self.folder / "validation.csv"

    @property
    def augmentation(self) -> Path:
        """Augmentations applied to the training CTs."""
        return self.folder / "augmentation.csv"

    @property
    def history(self) -> Path:
        """Training history, one row per epoch."""
        return self.folder / "history.csv"

    @property
    def checkpoint(self) -> Path:
        """Checkpoint that a resumed run continues from."""
        return self.folder / CHECKPOINTS / "last.ckpt"

    @property
    def temperature(self) -> float:
        """Calibration temperature: divisor of the fold's logits; 1 if the fold was not calibrated.

        Raises:
            DamagedError: metrics.json is missing or malformed.
        """
        return _positive_number(read_json(self.metrics, kind="run"), "temperature", 1.0)

    @property
    def done(self) -> bool:
        """Whether the fold is complete."""
        return self.metrics.is_file()


def is_unstarted(path: Path) -> bool:
    """Whether a folder holds no run yet: it is missing or empty, or a training was killed before it wrote run.json."""
    if not path.is_dir():
        return not os.path.lexists(path)
    return {p.name for p in path.iterdir()} <= {*UNSTARTED_FILES, LOCK_FILE}


def select_folds(fold: str, folds: Sequence[int], *, of: str) -> tuple[int, ...]:
    """Return the fold numbers of `ensemble`, or of a single number.

    Args:
        fold: `ensemble` or a number.
        folds: the existing folds.
        of: what they are of, for the message: `bundle ./bundle`.

    Raises:
        UsageError: no such fold.
    """
    if fold == "ensemble":
        return tuple(folds)
    if not fold.isascii() or not fold.isdigit() or int(fold) not in folds:
        raise UsageError(f"{of} has no fold {fold!r}", fix=f"give ensemble, or one of {', '.join(map(str, folds))}")
    return (int(fold),)


def _positive_number(document: Any, name: str, default: float) -> float:
    """Read a positive finite number from a document's `calibration` part."""
    part = document.get("calibration", {}) if isinstance(document, dict) else None
    value = part.get(name, default) if isinstance(part, dict) else None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise DamagedError(f"run: the calibration's {name} is {value!r}", fix="train the run again")
    return float(value)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run on disk."""

    path: Path
    """The run's folder."""
    config: Config
    """Config of the run."""
    folds: tuple[FoldSplit, ...]
    """Folds of the run."""
    schema: Schema
    """Clinical schema of the run."""

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        name: str,
        config: Config,
        schema: Schema,
        folds: Sequence[FoldSplit],
        cohort: Mapping[str, Any],
        versions: Mapping[str, str],
        vocabulary: Mapping[str, Any] | None = None,
        pretrained: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """Create a run folder and write its initial files; run.json is the last.

        `cohort` holds the keys `cases`, `fingerprint` and `synthetic`, and no patient data. `vocabulary` records the
        origin of the tokenizers, `pretrained` the loaded weights. What a training left that was killed before it wrote
        run.json is replaced.

        Raises:
            UsageError: `path` exists and is not empty.
        """
        if not is_unstarted(path):
            raise UsageError(f"run {path} exists", fix="give another --out, or use --resume or --force")
        for leftover in UNSTARTED_FILES:
            (path / leftover).unlink(missing_ok=True)
        if pretrained is not None:
            write_json(path / PRETRAINED_FILE, pretrained)
        write_json(path / CONFIG_FILE, to_json(config))
        store_schema(path, schema)
        write_json(path / FOLDS_FILE, {"folds": [to_json(f) for f in folds]})
        write_json(
            path / RUN_FILE,
            {
                "schema": SCHEMA,
                "name": name,
                "status": "running",
                "started_at": _now(),
                "versions": dict(versions),
                "cohort": dict(cohort),
                "rendering_version": RENDERING_VERSIONS[config.clinical.rendering],
                **({} if vocabulary is None else {"vocabulary": dict(vocabulary)}),
            },
        )
        return cls(path=path, config=config, folds=tuple(folds), schema=schema)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Read a run, finished or not.

        Raises:
            UsageError: `path` is not a run.
            DamagedError: a file is missing, unreadable, or has another schema.
        """
        if not (path / RUN_FILE).exists():
            if (path / CONFIG_FILE).exists() or (path / FOLDS_FILE).exists():
                raise DamagedError(f"run {path}: {RUN_FILE} is missing", fix="train the run again")
            raise UsageError(
                f"{path} is not a run: {RUN_FILE} is missing", fix="give a run folder that `tmi train` wrote"
            )
        state = read_json(path / RUN_FILE, kind="run")
        if not isinstance(state, dict) or state.get("schema") != SCHEMA:
            raise DamagedError(
                f"run {path}: {RUN_FILE} does not have schema {SCHEMA!r}", fix="use the version of tmi that trained it"
            )
        try:
            config = from_json(Config, read_json(path / CONFIG_FILE, kind="run"), where=CONFIG_FILE)
            rows = read_json(path / FOLDS_FILE, kind="run")["folds"]
            folds = tuple(from_json(FoldSplit, row, where=FOLDS_FILE) for row in rows)
        except (UsageError, KeyError, TypeError) as error:
            what = error.what if isinstance(error, TmiError) else f"{FOLDS_FILE} is malformed"
            package = "install the package that adds the model, or " if isinstance(error, UnknownModelError) else ""
            raise DamagedError(f"run {path}: {what}", fix=f"{package}train the run again") from error
        return cls(path=path, config=config, folds=folds, schema=stored_schema(path, kind="run"))

    @property
    def state(self) -> dict[str, Any]:
        """Current content of run.json."""
        state: dict[str, Any] = read_json(self.path / RUN_FILE, kind="run")
        return state

    @property
    def rendering_version(self) -> int | None:
        """Version of the rendering that produced the texts; None if run.json does not record one."""
        version = self.state.get("rendering_version")
        return version if isinstance(version, int) else None

    @property
    def vocabulary(self) -> dict[str, Any]:
        """Origin of the tokenizers, with `min_patients` if they were trained; empty if run.json does not record it."""
        record = self.state.get("vocabulary")
        return record if isinstance(record, dict) else {}

    @property
    def finished(self) -> bool:
        """Whether all folds and the summary are complete."""
        return self.state.get("status") == "finished"

    @property
    def pretrained(self) -> Path:
        """Record of the loaded pre-trained weights; the file is absent if all weights were initialised randomly."""
        return self.path / PRETRAINED_FILE

    @property
    def threshold(self) -> float:
        """Calibrated probability at or above which the ensemble's decision is positive; 0.5 if none was fitted.

        Raises:
            DamagedError: summary.json is malformed.
        """
        path = self.path / SUMMARY_FILE
        return _positive_number(read_json(path, kind="run") if path.is_file() else {}, "threshold", 0.5)

    def fold(self, number: int) -> FoldFolder:
        """Paths of a fold's files."""
        return FoldFolder.of(self.path, number)

    def finish(self) -> None:
        """Mark the run as finished and record the digest of each of its files."""
        files = {name: sha256_file(self.path / name) for name in self._contents()}
        write_json(self.path / RUN_FILE, self.state | {"status": "finished", "finished_at": _now(), "files": files})

    def _contents(self) -> list[str]:
        names = (p.relative_to(self.path) for p in sorted(self.path.rglob("*")) if p.is_file())
        return [
            n.as_posix()
            for n in names
            if n.as_posix() not in (RUN_FILE, LOCK_FILE) and not {CHECKPOINTS, TRACKING} & {*n.parts}
        ]

    def require_status(self) -> None:
        """Check that the run is finished by its own record, without reading its other files.

        Raises:
            UsageError: the run is not finished.
        """
        if not self.finished:
            raise UsageError(f"run {self.path} is not finished", fix=f"finish it: tmi train --out {self.path} --resume")

    def require_finished(self) -> RunFolder:
        """Return the run after checking that it is finished and that no file has changed since.

        Raises:
            UsageError: the run is not finished.
            DamagedError: a file is missing or was modified.
        """
        self.require_status()
        state = self.state
        recorded = state.get("files")
        if not isinstance(recorded, dict) or not recorded:
            raise DamagedError(f"run {self.path}: {RUN_FILE} records no files", fix="train the run again")
        for name, digest in recorded.items():
            file = self.path / name
            try:
                current = sha256_file(file, max_bytes=WEIGHTS_BYTES)
            except (OSError, ValueError) as error:  # missing, no regular file, or no possible name
                raise DamagedError(
                    f"run {self.path}: {name[:100]} is missing or cannot be read",
                    fix="restore it, or train the run again",
                ) from error
            if current != digest:
                raise DamagedError(
                    f"run {self.path}: {name} was changed after the training", fix="restore it, or train the run again"
                )
        for split in self.folds:
            fold = self.fold(split.fold)
            for file in (fold.model, fold.scaler, fold.tokenizer, fold.metrics):
                if file.relative_to(self.path).as_posix() not in recorded:
                    raise DamagedError(
                        f"run {self.path}: {file.relative_to(self.path)} is not recorded", fix="train the run again"
                    )
        return self
