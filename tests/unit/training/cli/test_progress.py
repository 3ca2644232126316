"""Progress of a training: every fold, its epochs and metrics, the time left; the loop is a stub."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest

from factories.tmi_command import CommandResult, tmi
from tmi.toolkit.cli import progress as toolkit_progress
from tmi.toolkit.errors import InputRejectedError
from tmi.toolkit.run_folder import FoldFolder, FoldSplit
from tmi.toolkit.storage.atomic_files import write_json
from tmi.training.cli import progress as cli_progress
from tmi.training.evaluation.metrics import METRICS
from tmi.training.loop import cross_validation
from tmi.training.loop.hardware import HardwareConfig
from tmi.training.loop.run_spec import FoldContext

FOLDS, EPOCHS = 5, 4
SPLITS = tuple(FoldSplit(fold=k, train=(), validation=(), test=()) for k in range(FOLDS))


def trained(spec, callbacks, **_):
    """Stub of `cross_validate` that reports five folds of four epochs, a rejected case and a failed fold."""
    advance = callbacks.on_preparation_start(len(spec.cohort.cases))
    for case in spec.cohort.cases:
        advance(case)
    error = InputRejectedError("the CT is empty", fix="add it", code="ct-missing", case_id="P7")
    callbacks.on_case_rejected(error)
    callbacks.on_training_start(FOLDS)
    for split in SPLITS:
        epoch = callbacks.on_fold_start(split, EPOCHS)
        for number in range(EPOCHS):
            epoch(number, 0.5, 0.25)
        callbacks.on_fold_end(split, {"roc_auc": 0.75, "balanced_accuracy": None})
    metrics = dict.fromkeys(METRICS, 0.5)
    summary = {
        "folds": [
            {"fold": k, "test": metrics, "picked_epoch": 3, "cases": {"test": 2}} for k in range(FOLDS)
        ],
        "over_folds": {m: {"mean": 0.5, "std": 0.1} for m in METRICS},
        "notes": [],
    }  # fmt: skip
    return cross_validation.RunResult(run=SimpleNamespace(path=spec.out), summary=summary, rejected=(error,))


@pytest.fixture
def train(synthetic_cohort, tmp_path, monkeypatch):
    """Function that runs `tmi train` with the stub and further options."""
    monkeypatch.setattr(cross_validation, "cross_validate", trained)

    def run(*options: object, columns: int | None = None) -> CommandResult:
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
        arguments = ("train", synthetic_cohort, "--out", tmp_path / "run", "--preset", "tiny", "--folds", FOLDS)
        return tmi(*arguments, "--no-cache", *options)

    return run


def test_log_of_a_training_has_every_fold(train):
    """Without a terminal, standard error has the first and the last epoch of each fold, losses, metrics, time left."""
    outcome = train()
    assert outcome.code == 3
    lines = outcome.err.splitlines()
    assert "fold 0 (1 of 5): 1 of 4 epochs; loss 0.500, validation loss 0.250; about 0 s left" in lines
    for fold in range(FOLDS):
        assert f"fold {fold} ({fold + 1} of 5): done; held-out cases: ROC AUC 0.750" in lines
        assert any(line.startswith(f"fold {fold} ({fold + 1} of 5): 4 of 4 epochs; loss") for line in lines)
    assert "left out: case P7: the CT is empty [ct-missing]" in lines
    assert "fold 0 (1 of 5)" not in outcome.out


def test_long_epoch_has_lines_of_its_steps(monkeypatch):
    """Steps of 25 seconds, 40 an epoch: lines state fold, epoch, step and the time left, one at least every 75 s."""
    now, written = [0.0], list[tuple[float, str]]()
    for module in (cli_progress, toolkit_progress):
        monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    monkeypatch.setattr(toolkit_progress, "log", lambda level, text, **fields: written.append((now[0], text)))
    callbacks = cli_progress.ProgressCallbacks(toolkit_progress._Lines(clock=lambda: now[0]), folds=2)
    callbacks.on_training_start(2)
    epoch = callbacks.on_fold_start(SPLITS[0], 3)
    for number in range(3):
        for step in range(40):
            now[0] += 25
            callbacks.on_step(SPLITS[0], number, step + 1, 40)
        epoch(number, 0.5, 0.25)
    times = [0.0, *(time for time, _ in written)]
    assert max(after - before for before, after in pairwise(times)) <= 75
    assert (500.0, "fold 0 (1 of 2): epoch 1 of 3, step 20 of 40; about 1 h 32 min left") in written
    assert any(text.startswith("fold 0 (1 of 2): epoch 3 of 3, step ") for _, text in written)


def test_quiet_training_keeps_the_result(train):
    """With -q only the rejected case is left on standard error, and standard output is the same."""
    plain, outcome = train(), train("-q")
    assert outcome.err.splitlines() == ["left out: case P7: the CT is empty [ct-missing]", "  fix: add it"]
    assert outcome.out == plain.out


def test_json_log_holds_no_patient_data(train, synthetic_cohort):
    """With --log-json each line is an object with known keys; the one of a rejected case has its id alone."""
    documents = [json.loads(line) for line in train("--log-json").err.splitlines()]
    events = [d.get("event") for d in documents]
    assert events.count("progress") >= 2 * FOLDS
    assert events.count("fold") == FOLDS
    assert {key for d in documents for key in d} == {
        "time", "level", "logger", "message", "event", "task", "completed", "total", "unit", "seconds", "seconds_left",
        "loss", "validation_loss", "fold", "roc_auc", "fix", "code", "case_id",
    }  # fmt: skip
    first = next(d for d in documents if d.get("event") == "progress")
    assert (first["task"], first["completed"], first["total"]) == ("fold 0 (1 of 5)", 1, EPOCHS)
    record = next(synthetic_cohort.glob("*/clinical.json")).read_text()
    texts = {v for v in json.loads(record).values() if isinstance(v, str) and len(v) > 4}
    assert not any(text in d["message"] for d in documents for text in texts)


@pytest.mark.parametrize("columns", [40, 80])
def test_result_of_five_folds_fits_the_terminal(train, columns):
    """The table keeps fold, AUC and balanced accuracy at 40 columns, and every metric at 80."""
    lines = train(columns=columns).out.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("fold"))
    table = lines[start : start + 10]
    assert max(map(len, table)) <= columns
    assert {"fold", "ROC", "AUC", "Bal."} <= set(table[0].split())
    assert ("F1" in table[0]) == (columns == 80)
    assert [line.split()[0] for line in table if line[:1].isalnum()] == ["fold", *"01234", "mean", "SD"]


@pytest.mark.parametrize("parallel", [1, 2])
def test_loop_reports_folds_and_metrics(tmp_path, monkeypatch, nano_config, parallel):
    """The loop states the number of folds, then starts each and passes on its metrics, in parallel folds too."""
    seen: list[object] = []
    callbacks = SimpleNamespace(
        on_training_start=seen.append,
        on_fold_start=lambda split, epochs: seen.append(("start", split.fold)),
        on_fold_end=lambda split, metrics: seen.append((split.fold, metrics["roc_auc"])),
        on_fold_failed=None,
        on_step=lambda *_: None,
    )

    def train_fold(context, split, files, **_):
        files.folder.mkdir(parents=True, exist_ok=True)
        write_json(files.metrics, {"test": {"roc_auc": split.fold / 10}})

    def train_folds(context, splits, folder, *, epoch_callback, on_fold_end, **_):
        for split in splits:
            epoch_callback(split)
            train_fold(context, split, folder(split.fold))
            on_fold_end(split)

    monkeypatch.setattr("tmi.training.loop.fold_training.train_fold", train_fold)
    monkeypatch.setattr("tmi.training.loop.parallel_folds.train_folds_in_parallel", train_folds)
    hardware = HardwareConfig(accelerator="cpu", parallel_folds=parallel)
    context = FoldContext(arrays=None, config=nano_config, tokenizer=None, hardware=hardware)  # type: ignore[arg-type]
    cross_validation._train_folds(context, SPLITS[3:], tmp_path, callbacks)
    assert seen == [2, ("start", 3), (3, 0.3), ("start", 4), (4, 0.4)]
    assert FoldFolder.of(tmp_path, 3).done


def test_time_left_counts_resumed_folds(monkeypatch):
    """Epochs of an earlier run are neither counted as fast ones nor as work that is left."""
    from tmi.training.cli import progress as module

    times = iter([0.0, 0.0, 10.0, 20.0])
    monkeypatch.setattr(module, "perf_counter", lambda: next(times))
    left = []
    task = SimpleNamespace(update=lambda completed, **facts: left.append(facts["seconds_left"]))
    callbacks = module.ProgressCallbacks(SimpleNamespace(add=lambda *a, **k: task), folds=5)
    callbacks.on_training_start(2)  # three of five folds were trained before
    epoch = callbacks.on_fold_start(SPLITS[3], 10)
    epoch(7, 0.5, 0.5)  # resumed at the eighth of ten epochs
    epoch(8, 0.5, 0.5)
    assert left == [10 * 12, 10 * 11]


def test_time_left_within_a_resumed_epoch(monkeypatch):
    """Steps of a resumed fold count the epochs that are left, and a failed fold takes no part in the estimate."""
    from tmi.training.cli import progress as module

    now, left = [0.0], []
    monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    task = SimpleNamespace(step=lambda text, **facts: left.append(facts["seconds_left"]))
    lines = SimpleNamespace(add=lambda *a, **k: task, line=lambda *a, **k: None)
    callbacks = module.ProgressCallbacks(lines, folds=2)
    callbacks.on_training_start(2)
    for split in SPLITS[:2]:
        callbacks.on_fold_start(split, 20)
    now[0] = 200.0
    callbacks.on_step(SPLITS[0], 18, 20, 40)  # resumed at the 19th of 20 epochs: half of it takes 200 s
    callbacks.on_fold_failed(SPLITS[1], "broken")
    callbacks.on_step(SPLITS[0], 18, 20, 40)
    callbacks.on_step(SPLITS[1], 0, 20, 40)
    callbacks.on_fold_failed(SPLITS[1], "broken")
    callbacks.on_step(SPLITS[0], 18, 20, 40)
    assert left == pytest.approx([400 * (1.5 + 20), 400 * 1.5, 200 * (1.5 + 19.5), 400 * 1.5])
