"""Trains a fold again from the run's config, seed and machine, and compares the weights bit for bit.

A run whose files were made to agree with each other passes every other check. Weights that were fitted on other cases
than the recorded ones, or with other settings, are not those of a second training. Equality can be expected on a CPU of
the same kind with the same number of threads and the same versions; otherwise a difference is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from tmi.toolkit.clinical.rendering import require_rendering
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.run_folder import FoldFolder, FoldSplit, RunFolder
from tmi.toolkit.storage.atomic_files import read_json
from tmi.toolkit.storage.bounded_files import WEIGHTS_BYTES, require_bounded
from tmi.training.data.dataset import CohortArrays
from tmi.training.evaluation.prediction_tables import read_predictions
from tmi.training.leakage_audit.run_checks import AuditResult
from tmi.training.loop.fold_training import train_fold
from tmi.training.loop.hardware import HardwareConfig
from tmi.training.loop.machine import machine_differences, machine_facts, recorded_machines
from tmi.training.loop.memory_fit import fit_memory
from tmi.training.loop.run_spec import FoldContext
from tmi.training.pretrained.initial_weights import InitialWeights, prepare_initialization

CHECK = "replay"
EpochCallback = Callable[[int, float, float], None]


def select_folds(run: RunFolder, numbers: list[int]) -> tuple[FoldSplit, ...]:
    """The named folds of a run; all of them if none is named.

    Raises:
        UsageError: the run has no such fold.
    """
    known = {split.fold: split for split in run.folds}
    unknown = [n for n in numbers if n not in known]
    if unknown:
        raise UsageError(f"--fold {unknown[0]}: the run has no such fold", fix=f"its folds are {sorted(known)}")
    return tuple(split for split in run.folds if not numbers or split.fold in numbers)


def replay_weights(run: RunFolder, *, ct: Path | None, text: Path | None) -> InitialWeights | None:
    """Read the weights that a run was started from, and check that they are the recorded ones.

    Returns:
        The weights; None if every encoder started from random weights.

    Raises:
        UsageError: a file is missing, or is not the recorded one.
    """
    recorded = read_json(run.pretrained, kind="run") if run.pretrained.is_file() else {}
    given = {"ct": ct, "text": text}
    for name in given:
        if (name in recorded) != (given[name] is not None):
            need = "needs" if name in recorded else "was trained without"
            fix = "give" if name in recorded else "omit"
            raise UsageError(
                f"--replay {need} the file or folder of --{name}-weights", fix=f"{fix} --{name}-weights PATH"
            )
    if not recorded:
        return None
    chosen = ("network.ct_encoder.dilation", "network.ct_encoder.stem_stride_DHW")  # the run's config stays as it is
    weights = prepare_initialization(run.config, ct=ct, text=text, chosen=chosen, schema=run.schema).weights
    digests = {name: report["sha256"] for name, report in weights.document().items()}
    for name, report in recorded.items():
        if digests[name] != report["sha256"]:
            raise UsageError(
                f"--{name}-weights {given[name]} is not the file that the run was started from",
                fix="give the file with the SHA-256 digest in pretrained.json",
            )
    return weights


def replay_fold(
    run: RunFolder,
    split: FoldSplit,
    arrays: CohortArrays,
    *,
    initial: InitialWeights | None,
    scratch: Path,
    epoch_callback: EpochCallback,
) -> AuditResult:
    """Train a fold again and compare its weights with the recorded ones.

    Args:
        run: the finished run.
        split: the fold.
        arrays: the run's cohort, prepared with the run's config.
        initial: weights that the run was started from.
        scratch: folder for the files of the second training.
        epoch_callback: called after each epoch.

    Returns:
        `holds` for equal weights; for different ones `leak`, or `warning` if the machine or a version differs.

    Raises:
        DamagedError: this version of the package renders the clinical text differently.
        UnavailableError: the machine has too little memory to train the fold.
    """
    require_rendering(run.config.clinical.rendering, run.rendering_version, kind="run")
    files = run.fold(split.fold)
    machines = recorded_machines(files.machine)
    hardware = _recorded_hardware(machines)
    if hardware is None:
        detail = "the fold was trained on several nodes, or on a GPU that this machine does not have"
        return AuditResult(check=CHECK, status="not checked", detail=detail, fold=split.fold)
    memory = fit_memory(run.config, hardware)  # the weights do not depend on what it chooses
    hardware = replace(hardware, checkpointing=memory is not None and memory.checkpointing)
    again = FoldFolder.of(scratch, split.fold)
    again.folder.mkdir(parents=True, exist_ok=True)
    with _threads(machines):
        reasons = _reasons_for_difference(machines, machine_facts(hardware))
        context = FoldContext(
            arrays=arrays,
            config=run.config,
            tokenizer=Tokenizer.load(files.tokenizer),  # the check `vocabulary` covers it
            initial=initial,
            hardware=hardware,
        )
        train_fold(context, split, again, epoch_callback=epoch_callback)
    return _compare(files, again, split, reasons)


def _recorded_hardware(machines: list[dict[str, Any]]) -> HardwareConfig | None:
    """Hardware of the second training; None if this machine does not have it."""
    facts: Mapping[str, Any] = machines[-1] if machines else {}
    accelerator, devices = facts.get("accelerator", "cpu"), facts.get("devices", 1)
    if facts.get("nodes", 1) != 1 or accelerator not in ("cpu", "gpu") or not isinstance(devices, int) or devices < 1:
        return None
    if accelerator == "gpu" and torch.cuda.device_count() < devices:
        return None
    return HardwareConfig(accelerator=accelerator, devices=devices)


@contextmanager
def _threads(machines: list[dict[str, Any]]) -> Iterator[None]:
    """Use the recorded number of threads: sums are split over them, which changes their last bits."""
    before = torch.get_num_threads()
    recorded = machines[-1].get("threads") if machines else None
    if isinstance(recorded, int) and 1 <= recorded <= 1024:
        torch.set_num_threads(recorded)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _reasons_for_difference(machines: list[dict[str, Any]], now: Mapping[str, Any]) -> list[str]:
    """Why equal weights cannot be expected; empty if they can."""
    if not machines:
        return ["an earlier version trained the fold and did not record its machine"]
    reasons = machine_differences(machines[-1], now)
    if len(machines) > 1:
        reasons.append(f"the fold was trained on {len(machines)} machines or versions in turn")
    if now["accelerator"] == "gpu":
        reasons.append("sums on a GPU are not in a fixed order")
    return reasons


def _compare(recorded: FoldFolder, again: FoldFolder, split: FoldSplit, reasons: list[str]) -> AuditResult:
    before, after = _tensors(recorded.model), _tensors(again.model)
    differing = sorted(n for n in before.keys() | after.keys() if not _same_bits(before.get(n), after.get(n)))
    if not differing:
        detail = f"training again gives the same {len(before)} tensors, bit for bit"
        return AuditResult(check=CHECK, status="holds", detail=detail, fold=split.fold)
    aucs = [read_predictions(f.predictions).metrics()["roc_auc"] for f in (recorded, again)]
    recorded_auc, replayed_auc = ("undefined" if auc is None else f"{auc:.3f}" for auc in aucs)
    detail = (
        f"training again gives other weights: {len(differing)} of {len(before)} tensors differ; AUC of the held-out "
        f"cases {recorded_auc} in the run, {replayed_auc} in the second training"
    )
    if reasons:
        detail += f". Equal weights cannot be expected: {'; '.join(reasons)}"
        return AuditResult(check=CHECK, status="warning", detail=detail, fold=split.fold)
    detail += ". Machine, settings and versions are the recorded ones: the weights are not those of this training"
    return AuditResult(check=CHECK, status="leak", detail=detail, fold=split.fold)


def _tensors(file: Path) -> dict[str, np.ndarray]:
    try:
        require_bounded(file, max_bytes=WEIGHTS_BYTES)
        tensors: dict[str, np.ndarray] = load_file(file)
    except Exception as error:
        raise DamagedError(f"run: {file} cannot be read", fix="train the run again") from error
    return tensors


def _same_bits(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.tobytes() == b.tobytes()  # NaN equals NaN, and -0 differs from 0
