"""Folds trained side by side: the models of one after another, and no fold's end is another's."""

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

SPLITS = (FoldSplit(fold=0, train=IDS[8:], validation=IDS[4:8], test=IDS[:4]), SPLIT)
FILES = ("model.safetensors", "scaler.json", "tokenizer.json", "predictions.csv", "history.csv", "metrics.json")
TWO = HardwareConfig(accelerator="cpu", parallel_folds=2)
Told = Callable[[int, int], None]


@pytest.fixture(scope="module")
def config(micro_config: Config) -> Config:
    return small_config(micro_config)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def one_after_another(folder: Path, config: Config) -> dict[int, dict[str, bytes]]:
    """In one thread, as each of two processes on two threads has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            s.fold: contents(train_small(folder / f"fold{s.fold}", make_arrays(), config, s).folder) for s in SPLITS
        }
    finally:
        torch.set_num_threads(before)


def side_by_side(
    folder: Path, config: Config, splits: tuple[FoldSplit, ...] = SPLITS, told: Told = lambda *_: None
) -> dict[int, str]:
    """Train in two processes of one thread; returns what was told of folds that failed."""
    failed: dict[int, str] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train_folds_in_parallel(
            splits,
            make_arrays(),
            config,
            lambda number: FoldFolder.of(folder, number),
            tokenizer=None,
            initial=None,
            hardware=TWO,
            epoch_callback=lambda split: lambda epoch, *losses: told(split.fold, epoch),
            on_fold_failed=lambda split, why: failed.update({split.fold: why}),
        )
    except (TmiError, FoldFailedError) as error:
        error.failed = failed
        raise
    finally:
        torch.set_num_threads(before)
        assert not multiprocessing.active_children()
    return failed


@pytest.mark.timeout(280)
def test_two_folds_in_two_processes_have_the_files_of_one_after_another_bit_for_bit(config, tmp_path):
    epochs: dict[int, list[int]] = {0: [], 1: []}
    assert side_by_side(tmp_path / "two", config, told=lambda fold, epoch: epochs[fold].append(epoch)) == {}
    assert epochs == {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}
    expected = one_after_another(tmp_path / "one", config)
    for fold, files in expected.items():
        assert contents(tmp_path / "two" / f"fold{fold}") == files


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_fold_that_fails_is_told_and_the_other_is_trained(config, tmp_path):
    damaged = FoldFolder.of(tmp_path, 0)
    damaged.checkpoint.parent.mkdir(parents=True)
    damaged.checkpoint.write_bytes(b"no checkpoint")
    with pytest.raises(DamagedError, match=r"last\.ckpt cannot be read") as caught:
        side_by_side(tmp_path, config)
    assert list(caught.value.failed) == [0]
    assert "fix: delete the fold's folder" in caught.value.failed[0]
    assert FoldFolder.of(tmp_path, 1).done
    assert not damaged.done


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_of_an_unexpected_error_the_kind_is_told_and_its_text_only_with_the_traceback(config, tmp_path):
    (tmp_path / "fold0").write_text("no folder")
    with pytest.raises(FoldFailedError, match="fold 0: unexpected ") as caught:
        side_by_side(tmp_path, config)
    assert caught.value.failed[0].startswith("fold 0: unexpected ")
    assert "Traceback" not in caught.value.failed[0]
    assert "Traceback" in caught.value.args[1]
    assert FoldFolder.of(tmp_path, 1).done


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_killed_process_fails_its_fold_alone_and_the_fold_goes_on_to_the_same_model(config, tmp_path):
    config = replace(config, train=replace(config.train, epochs=40))

    def kill(fold: int, epoch: int) -> None:
        if (fold, epoch) == (1, 1):  # of the last that was begun: the first may have come to its end meanwhile
            (victim,) = (p for p in multiprocessing.active_children() if p.name == "fold 1")
            os.kill(victim.pid, signal.SIGKILL)

    with pytest.raises(UnavailableError, match="fold 1: its process was killed"):
        side_by_side(tmp_path / "two", config, told=kill)
    assert FoldFolder.of(tmp_path / "two", 0).done
    assert FoldFolder.of(tmp_path / "two", 1).checkpoint.is_file()
    side_by_side(tmp_path / "two", config, SPLITS[1:])
    expected = one_after_another(tmp_path / "one", config)
    assert {fold: contents(tmp_path / "two" / f"fold{fold}") for fold in expected} == expected


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_ctrl_c_ends_every_process_and_all_folds_go_on_to_the_same_models(config, tmp_path):
    config = replace(config, train=replace(config.train, epochs=40))
    begun: set[int] = set()

    def stop(fold: int, epoch: int) -> None:
        begun.add(fold)
        if len(begun) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side(tmp_path / "two", config, told=stop)
    assert not FoldFolder.of(tmp_path / "two", 1).done
    side_by_side(tmp_path / "two", config, tuple(s for s in SPLITS if not FoldFolder.of(tmp_path / "two", s.fold).done))
    expected = one_after_another(tmp_path / "one", config)
    assert {fold: contents(tmp_path / "two" / f"fold{fold}") for fold in expected} == expected


# On the command line


def command(cohort: Path, run: Path, *more: str) -> list[str]:
    hear = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    main = f"{hear}; from tmi.toolkit.cli.main import main; sys.exit(main())"
    options = ["--preset", "tiny", "--folds", "2", "--epochs", "40", "--accelerator", "cpu", *NANO_OPTIONS, *more]
    return [sys.executable, "-c", main, "train", str(cohort), "--out", str(run), *options]


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def wait_for(what: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_command_stopped_by_a_signal_leaves_no_process_and_resumes_to_the_models_of_one_after_another(
    tmp_path, number
):
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
        ({"parallel_folds": 2, "nodes": 2}, "--nodes 2 spreads a fold over 2"),
        ({"parallel_folds": 2, "devices": 2}, "--devices 2 --nodes 1 spreads a fold over 2"),
    ],
)
def test_folds_side_by_side_that_are_spread_as_well_are_refused(config, hardware, text):
    with pytest.raises(UsageError, match=text):
        HardwareConfig(accelerator="cpu", **hardware).check(replace(config, train=replace(config.train, batch_size=8)))


def test_gpus_are_dealt_out_in_turn_and_threads_divided(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv(VISIBLE_DEVICES, raising=False)
    three = HardwareConfig(accelerator="gpu", parallel_folds=3)
    assert [(p.visible_gpu, p.threads) for p in assign_devices(three, workers=3)] == [("0", 2), ("1", 2), ("0", 2)]
    monkeypatch.setenv(VISIBLE_DEVICES, "5,7")
    assert [p.visible_gpu for p in assign_devices(three, workers=3)] == ["5", "7", "5"]
    cpu = assign_devices(replace(three, accelerator="cpu"), workers=3)
    assert [(p.visible_gpu, p.threads) for p in cpu] == [(None, 2)] * 3
