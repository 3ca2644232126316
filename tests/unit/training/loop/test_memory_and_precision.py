"""Activation checkpointing, mixed precision, gradient accumulation, and the estimate of a step's memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from factories.cases import write_cohort
from factories.small_fold import make_arrays, small_config, train_small
from factories.tmi_command import tmi
from tmi.toolkit.config.presets import paper, tiny
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UnavailableError, UsageError
from tmi.toolkit.model_registry import MODELS
from tmi.training.loop import lightning_module
from tmi.training.loop.hardware import HardwareConfig
from tmi.training.loop.lightning_module import FoldModule
from tmi.training.loop.memory_estimate import estimate_memory


@pytest.fixture(scope="module")
def config(micro_config: Config) -> Config:
    small = small_config(micro_config)
    return replace(small, train=replace(small.train, epochs=2))


def set_train(config: Config, **more: object) -> Config:
    return replace(config, train=replace(config.train, **more))


def test_checkpointing_keeps_weights_bit_identical(config, tmp_path, monkeypatch):
    """Activation checkpointing, set or chosen for the machine, changes neither weights nor BatchNorm statistics."""
    used = []
    checkpoint = lightning_module.checkpoint_activations
    monkeypatch.setattr(lightning_module, "checkpoint_activations", lambda net: used.append(1) or checkpoint(net))
    expected = load_file(train_small(tmp_path / "without", make_arrays(), config).model)
    set_in_config = train_small(tmp_path / "with", make_arrays(), set_train(config, activation_checkpointing=True))
    chosen = HardwareConfig(accelerator="cpu", checkpointing=True)
    for files in (set_in_config, train_small(tmp_path / "chosen", make_arrays(), config, hardware=chosen)):
        checkpointed = load_file(files.model)
        assert expected.keys() == checkpointed.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, checkpointed[name]), name
    assert len(used) == 2


def test_bfloat16_training_keeps_float32_weights(config, tmp_path):
    """Weights stay float32 and the cross entropy is near that of float32.

    The alignment loss is off, since it multiplies the rounding error of bfloat16 by 50.
    """
    config = replace(config, loss=replace(config.loss, alpha=0.0))
    losses, weights = [], []
    for precision in ("32", "bf16-mixed"):
        files = train_small(tmp_path / precision, make_arrays(), set_train(config, precision=precision))
        losses.append(float(files.history.read_text().splitlines()[1].split(",")[1]))
        weights.append(load_file(files.model))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert {t.dtype for t in weights[1].values()} == {torch.float32, torch.int64}


def test_loss_is_computed_in_float32(config, monkeypatch):
    """The loss function gets float32 tensors under autocast to bfloat16."""
    dtypes = []
    module = FoldModule(config, fold=0)
    original = module.loss_function
    monkeypatch.setattr(
        module, "loss_function", lambda output, *more: dtypes.extend(t.dtype for t in output) or original(output, *more)
    )
    from tmi.training.data.fold_dataset import FoldDataset

    batch = FoldDataset(make_arrays(), _split(), config, tokenizer=None).batch(_split().train)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module.training_step(batch, 0)
    assert set(dtypes) == {torch.float32}


def _split():
    from factories.small_fold import SPLIT

    return SPLIT


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 2), (2, 1)])
def test_accumulated_batches_make_one_step(config, tmp_path, accumulate, steps, monkeypatch):
    """`train.accumulate` batches share one optimiser step."""
    counted = []
    original = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *a, **k: counted.append(1) or original(self, *a, **k))
    train_small(tmp_path / "run", make_arrays(), set_train(config, batch_size=2, accumulate=accumulate, epochs=1))
    assert len(counted) == steps  # five cases in batches of two and three


def test_frozen_batch_norm_keeps_every_statistic(config, tmp_path):
    """`train.frozen_batch_norm` leaves every running mean at its initial value."""
    after = load_file(train_small(tmp_path / "run", make_arrays(), set_train(config, frozen_batch_norm=True)).model)
    means = [t for name, t in after.items() if name.endswith("running_mean")]
    assert len(means) > 5
    assert all(float(t.abs().max()) == 0 for t in means)


# Memory

MEASURED = """
import json, resource, sys, torch
from dataclasses import replace
from tmi.toolkit.storage.serialization import from_json
from tmi.toolkit.config.schema import Config
from tmi.training.loop.lightning_module import FoldModule
from tmi.training.data.fold_dataset import Batch
torch.set_num_threads(1)
config = from_json(Config, json.loads(sys.argv[1]))
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"): return int(line.split()[1]) * 1024
def now():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"): return int(line.split()[1]) * 1024
n = config.train.batch_size
def step(shape, tokens):
    batch = Batch(ct=torch.rand(n, 1, *shape), input_ids=torch.ones(n, tokens, dtype=torch.int64),
                  attention_mask=torch.ones(n, tokens, dtype=torch.int64), radiomics=torch.rand(n, 1781),
                  labels=torch.arange(n) % 2)
    module.training_step(batch, 0).backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
before = now()
module = FoldModule(config, fold=0).train()
optimiser = module.configure_optimizers()
step((8, 16, 16), 8)  # libraries load and start their threads
warm = now()
open("/proc/self/clear_refs", "w").write("5")
base = now()
step(config.ct.shape_DHW, config.clinical.max_length)
print(json.dumps({"step": peak() - base}))
"""


@pytest.mark.parametrize("checkpointing", [False, True])
def test_estimate_matches_measured_memory(checkpointing):
    """The estimate is within 25% of the peak resident memory of one step, less weights and Adam's moments."""
    wide = tiny().network
    config = replace(
        tiny(),
        ct=replace(tiny().ct, shape_DHW=(48, 160, 160)),
        network=replace(wide, ct_encoder=replace(wide.ct_encoder, layers=(2, 2, 1, 1), planes=(16, 16, 32, 32))),
        train=replace(tiny().train, batch_size=2, activation_checkpointing=checkpointing),
    )
    from tmi.toolkit.storage.serialization import to_json

    process = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(to_json(config))],
        capture_output=True,
        text=True,
        check=True,
        # freed memory is returned to the system at once, so it is not counted
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)},
    )
    measured = json.loads(process.stdout)["step"]
    estimate = estimate_memory(config)
    expected = estimate.activations + estimate.batch + 4 * estimate.trained  # the gradients
    assert measured == pytest.approx(expected, rel=0.25)


def test_paper_preset_fits_forty_gigabytes():
    """The `paper` preset fits a 40 GB device, and each memory option reduces the estimate."""
    estimates = {
        name: estimate_memory(set_train(paper(), **settings)).total / 2**30
        for name, settings in {
            "default": {},
            "bfloat16": {"precision": "bf16-mixed"},
            "checkpointed": {"activation_checkpointing": True},
            "both": {"precision": "bf16-mixed", "activation_checkpointing": True},
            "frozen CT": {"freeze": ("ct",)},
        }.items()
    }
    assert 22 < estimates["default"] < 28
    assert estimates["default"] > estimates["bfloat16"] > estimates["both"] > estimates["frozen CT"]
    assert estimates["default"] > estimates["checkpointed"] > estimates["both"]
    # the stem's output is 64 x 64 x 256 x 256 floats per case: 1.07 GB, saved twice (before and after its BatchNorm)
    assert estimate_memory(paper()).activations > 2 * 2 * 64 * 64 * 256 * 256 * 4


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if spec.trainer == "torch"])
def test_every_network_has_a_memory_estimate(name):
    """The estimate works for every registered network."""
    config = replace(tiny(), system=replace(tiny().system, name=name))
    estimate = estimate_memory(config)
    assert estimate.trained > 0
    assert estimate.activations > 0
    assert estimate.batch > 4 * 24 * 48 * 48 * 4


def test_plan_option_prints_memory_and_trains_nothing(tmp_path):
    """`tmi train --plan` prints the estimate and writes no file."""
    outcome = tmi("train", "--preset", "paper", "--precision", "bf16-mixed", "--plan", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "163,391,709 parameters trained, 0 frozen" in outcome.out
    assert "expected" in outcome.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.07 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_exit_code_5(tmp_path, monkeypatch, error):
    """An out-of-memory error of a step ends with exit code 5, the estimate and ways to reduce it."""
    cohort = write_cohort(tmp_path / "cohort", cases=8, with_mask=False)

    def step(*_):
        raise error

    monkeypatch.setattr(FoldModule, "training_step", step)
    small = ["--set", "ct.shape_DHW=[8,16,16]", "--set", "clinical.max_length=32"]
    outcome = tmi(
        "train", cohort, "--out", tmp_path / "run", "--preset", "tiny", "--folds", "2", "--epochs", "1", *small
    )
    assert outcome.code == 5
    assert "fold 0: the cpu's memory is too small for a training step, which needs about" in outcome.err
    assert "--precision bf16-mixed" in outcome.err


def test_other_step_error_is_not_out_of_memory(config, tmp_path, monkeypatch):
    """Another error of a training step is raised unchanged."""

    def step(*_):
        raise RuntimeError("expected scalar type Float")

    monkeypatch.setattr(FoldModule, "training_step", step)
    with pytest.raises(RuntimeError, match="expected scalar type"):
        train_small(tmp_path / "run", make_arrays(), config)


@pytest.mark.parametrize(
    ("hardware", "settings", "kind", "text"),
    [
        ({"devices": 3}, {}, UsageError, "is split over 3 processes, which need at least 6 cases"),
        ({"devices": 0}, {}, UsageError, "--devices 0"),
        ({}, {"precision": "16-mixed"}, UsageError, "16-mixed needs a GPU"),
        ({"track": ("wandb",)}, {}, UsageError, "unknown tracker 'wandb'"),
    ],
)
def test_impossible_hardware_settings_are_rejected(config, hardware, settings, kind, text):
    """`HardwareConfig.check` rejects settings that cannot work."""
    with pytest.raises(kind, match=text):
        HardwareConfig(**({"accelerator": "cpu"} | hardware)).check(set_train(config, **settings))


def test_more_gpus_than_available_are_rejected(config, monkeypatch):
    """Requesting more GPUs than exist raises an `UnavailableError`."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UnavailableError, match=r"this machine has 1 GPU\(s\)"):
        HardwareConfig(accelerator="gpu", devices=2).check(set_train(config, batch_size=4))
