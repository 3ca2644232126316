"""Folds trained in parallel give the models of sequential training, and a failed fold does not end the others."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factories.cases import write_cohort
from factories.nano import NANO_OPTIONS
from factories.small_fold import IDS, SPLIT, make_arrays, small_config, train_small
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import DamagedError, TmiError, UnavailableError, UsageError
from tmi.toolkit.run_folder import FoldFolder, FoldSplit
from tmi.training.loop.hardware import HardwareConfig
from tmi.training.loop.parallel_folds import VISIBLE_DEVICES, FoldFailedError, assign_devices, train_folds_in_parallel
from tmi.training.loop.run_spec import FoldContext

SPLITS = (FoldSplit(fold=0, train=IDS[8:], validation=IDS[4:8], test=IDS[:4]), SPLIT)
FILES = ("model.safetensors", "scaler.json", "tokenizer.json", "predictions.csv", "history.csv", "metrics.json")
TWO = HardwareConfig(accelerator="cpu", parallel_folds=2)
FoldEpochCallback = Callable[[int, int], None]


@pytest.fixture(scope="module")
def config(micro_config: Config) -> Config:
    return small_config(micro_config)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def train_sequentially(folder: Path, config: Config) -> dict[int, dict[str, bytes]]:
    """Train the folds one after another in one thread, as each of two workers on two threads does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            s.fold: contents(train_small(folder / f"fold{s.fold}", make_arrays(), config, s).folder) for s in SPLITS
        }
    finally:
        torch.set_num_threads(before)


def train_in_parallel(
    folder: Path,
    config: Config,
    splits: tuple[FoldSplit, ...] = SPLITS,
    on_epoch: FoldEpochCallback = lambda *_: None,
    on_step: Callable[..., None] = lambda *_: None,
) -> dict[int, str]:
    """Train in two processes of one thread each; return the reported reason of each failed fold."""
    failed: dict[int, str] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train_folds_in_parallel(
            FoldContext(arrays=make_arrays(), config=config, tokenizer=None, hardware=TWO),
            splits,
            lambda number: FoldFolder.of(folder, number),
            epoch_callback=lambda split: lambda epoch, *losses: on_epoch(split.fold, epoch),
            on_fold_failed=lambda split, why: failed.update({split.fold: why}),
            on_step=on_step,
        )
    except (TmiError, FoldFailedError) as error:
        error.failed = failed
        raise
    finally:
        torch.set_num_threads(before)
        assert not multiprocessing.active_children()
    return failed


@pytest.mark.long
@pytest.mark.timeout(280)
def test_parallel_folds_match_sequential_bit_for_bit(config, tmp_path):
    """Two folds in two processes have the files of sequential training."""
    epochs: dict[int, list[int]] = {0: [], 1: []}
    steps: dict[int, set[tuple[int, int, int]]] = {0: set(), 1: set()}
    failed = train_in_parallel(
        tmp_path / "two",
        config,
        on_epoch=lambda fold, epoch: epochs[fold].append(epoch),
        on_step=lambda split, *step: steps[split.fold].add(step),
    )
    assert failed == {}
    for seen in steps.values():  # the last batch of every epoch among them
        assert {epoch for epoch, done, total in seen if done == total} == {0, 1, 2, 3}
    assert epochs == {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}
    expected = train_sequentially(tmp_path / "one", config)
    for fold, files in expected.items():
        assert contents(tmp_path / "two" / f"fold{fold}") == files


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_failed_fold_does_not_stop_the_other(config, tmp_path):
    """A fold with a damaged checkpoint is reported with its fix, and the other fold is trained."""
    damaged = FoldFolder.of(tmp_path, 0)
    damaged.checkpoint.parent.mkdir(parents=True)
    damaged.checkpoint.write_bytes(b"no checkpoint")
    with pytest.raises(DamagedError, match=r"last\.ckpt cannot be read") as caught:
        train_in_parallel(tmp_path, config)
    assert list(caught.value.failed) == [0]
    assert "fix: delete the fold's folder" in caught.value.failed[0]
    assert FoldFolder.of(tmp_path, 1).done
    assert not damaged.done


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_unexpected_error_is_reported_by_type(config, tmp_path):
    """The reported reason holds the error's type; its text is in the traceback alone."""
    (tmp_path / "fold0").write_text("no folder")
    with pytest.raises(FoldFailedError, match="fold 0: unexpected ") as caught:
        train_in_parallel(tmp_path, config)
    assert caught.value.failed[0].startswith("fold 0: unexpected ")
    assert "Traceback" not in caught.value.failed[0]
    assert "Traceback" in caught.value.args[1]
    assert FoldFolder.of(tmp_path, 1).done


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_killed_worker_fails_its_fold_alone(config, tmp_path):
    """The other fold is trained, and the killed fold continues to the same model."""
    config = replace(config, train=replace(config.train, epochs=40))

    def kill(fold: int, epoch: int) -> None:
        if (fold, epoch) == (1, 1):  # the fold started last: the first one may be finished by now
            (victim,) = (p for p in multiprocessing.active_children() if p.name == "fold 1")
            os.kill(victim.pid, signal.SIGKILL)

    with pytest.raises(UnavailableError, match="fold 1: its process was killed"):
        train_in_parallel(tmp_path / "two", config, on_epoch=kill)
    assert FoldFolder.of(tmp_path / "two", 0).done
    assert FoldFolder.of(tmp_path / "two", 1).checkpoint.is_file()
    train_in_parallel(tmp_path / "two", config, SPLITS[1:])
    expected = train_sequentially(tmp_path / "one", config)
    assert {fold: contents(tmp_path / "two" / f"fold{fold}") for fold in expected} == expected


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_ctrl_c_ends_workers_and_folds_resume(config, tmp_path):
    """Ctrl-C ends every worker, and all folds resume to the same models."""
    config = replace(config, train=replace(config.train, epochs=40))
    started: set[int] = set()

    def stop(fold: int, epoch: int) -> None:
        started.add(fold)
        if len(started) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_in_parallel(tmp_path / "two", config, on_epoch=stop)
    assert not FoldFolder.of(tmp_path / "two", 1).done
    train_in_parallel(
        tmp_path / "two", config, tuple(s for s in SPLITS if not FoldFolder.of(tmp_path / "two", s.fold).done)
    )
    expected = train_sequentially(tmp_path / "one", config)
    assert {fold: contents(tmp_path / "two" / f"fold{fold}") for fold in expected} == expected


# On the command line


def command(cohort: Path, run: Path, *more: str) -> list[str]:
    handle_sigint = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    main = f"{handle_sigint}; from tmi.toolkit.cli.main import main; sys.exit(main())"
    options = ["--preset", "tiny", "--folds", "2", "--epochs", "40", "--accelerator", "cpu", *NANO_OPTIONS, *more]
    return [sys.executable, "-c", main, "train", str(cohort), "--out", str(run), *options]


def children(pid: int) -> list[int]:
    pids = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        pids += map(int, (task / "children").read_text().split())
    return pids


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signal_leaves_no_worker_and_run_resumes(tmp_path, number):
    """A command stopped by SIGINT or SIGKILL leaves no process and resumes to the models of sequential training."""
    cohort = write_cohort(tmp_path / "cohort", cases=12, with_mask=False)
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(
        command(cohort, tmp_path / "run", "--parallel-folds", "2"),
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: all((tmp_path / "run" / f"fold{k}" / "history.csv").is_file() for k in (0, 1)), 240)
    started = children(process.pid)
    assert started
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in errors.decode()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), 20)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"

    subprocess.run(command(cohort, tmp_path / "run", "--parallel-folds", "2", "--resume"), env=env, check=True)
    subprocess.run(command(cohort, tmp_path / "one"), env={**env, "OMP_NUM_THREADS": "1"}, check=True)
    for fold in ("fold0", "fold1"):
        assert contents(tmp_path / "run" / fold) == contents(tmp_path / "one" / fold)


@pytest.mark.parametrize(
    ("hardware", "text"),
    [
        ({"parallel_folds": 0}, "--parallel-folds 0"),
        ({"parallel_folds": 2, "nodes": 2}, "--nodes 2 distributes a fold over 2"),
        ({"parallel_folds": 2, "devices": 2}, "--devices 2 --nodes 1 distributes a fold over 2"),
    ],
)
def test_parallel_and_distributed_folds_are_rejected(config, hardware, text):
    """`parallel_folds` cannot be combined with several devices for each fold."""
    with pytest.raises(UsageError, match=text):
        HardwareConfig(accelerator="cpu", **hardware).check(replace(config, train=replace(config.train, batch_size=8)))


def test_workers_get_gpus_in_turn_and_divided_threads(monkeypatch):
    """GPUs are assigned in round-robin order; CPU threads are divided."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv(VISIBLE_DEVICES, raising=False)
    three = HardwareConfig(accelerator="gpu", parallel_folds=3)
    assert [(p.visible_gpu, p.threads) for p in assign_devices(three, workers=3)] == [("0", 2), ("1", 2), ("0", 2)]
    monkeypatch.setenv(VISIBLE_DEVICES, "5,7")
    assert [p.visible_gpu for p in assign_devices(three, workers=3)] == ["5", "7", "5"]
    cpu = assign_devices(replace(three, accelerator="cpu"), workers=3)
    assert [(p.visible_gpu, p.threads) for p in cpu] == [(None, 2)] * 3
