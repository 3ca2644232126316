"""Distributed training on two processes equals training on one process with the same global batch.

Equality needs a step that depends on the batch alone: BatchNorm statistics are frozen (they are not synchronised on a
CPU) and dropout is off (its masks differ between processes); the text encoder's dropout is off because the encoder is
frozen. The order of sums differs, so the comparison has a tolerance.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import multiprocessing

from factories.cases import write_cohort
from factories.small_fold import SPLIT, make_arrays, small_config, train_small
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import UsageError
from tmi.training.data.fold_dataset import EpochBatches, FoldDataset
from tmi.training.loop.distributed import restore_mapped_ct, strip_mapped_ct
from tmi.training.loop.hardware import HardwareConfig
from tmi.training.losses.total import total_loss


@pytest.fixture(scope="module")
def config(micro_config: Config) -> Config:
    small = small_config(micro_config)
    fusion = replace(small.network.fusion, ima_attention_dropout=0.0, ima_dense_dropout=0.0)
    train = replace(small.train, epochs=2, batch_size=4, freeze=("text",), frozen_batch_norm=True, learning_rate=1e-3)
    return replace(small, network=replace(small.network, fusion=fusion), train=train)


def losses(folder: Path) -> list[tuple[float, float]]:
    rows = csv.DictReader(io.StringIO((folder / "history.csv").read_text()))
    return [(float(r["train_loss"]), float(r["validation_loss"])) for r in rows]


@pytest.mark.long
@pytest.mark.timeout(280)
def test_two_processes_match_one_with_same_global_batch(config, tmp_path, monkeypatch):
    """Losses and weights match. Five cases in batches of four make one batch of five, split into three and two."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = train_small(tmp_path / "one", make_arrays(), config)
    two = train_small(tmp_path / "two", make_arrays(), config, hardware=HardwareConfig(accelerator="cpu", devices=2))
    np.testing.assert_allclose(losses(two.folder), losses(one.folder), rtol=1e-4)
    weights, expected = load_file(two.model), load_file(one.model)
    for name, tensor in expected.items():
        if ".tcaf.key." in name and name.endswith(".bias"):
            continue  # shifts all scores of a softmax equally: its gradient is rounding noise, which Adam amplifies
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert "LOCAL_RANK" not in os.environ
    assert not torch.distributed.is_initialized()
    assert json.loads(two.metrics.read_text())["cases"] == {"train": 5, "validation": 4, "test": 4}


def gradients(rank: int, world: int, port: int, weight: torch.Tensor, x: torch.Tensor, labels: torch.Tensor, path: str):
    """Save the gradient of the whole-batch loss, computed from each process's share and averaged as by DDP."""
    from factories.small_fold import small_config as small
    from tmi.toolkit.config.presets import tiny
    from tmi.training.loop.gather import gather_batch

    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"})
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    weight = weight.clone().requires_grad_()
    output, all_labels = gather_batch(outputs(x[rank::world], weight), labels[rank::world])
    (total_loss(output, all_labels, small(tiny()).loss).total * world).backward()
    torch.distributed.all_reduce(weight.grad)
    if rank == 0:
        torch.save(weight.grad / world, path)
    torch.distributed.destroy_process_group()


def outputs(x: torch.Tensor, weight: torch.Tensor):
    from tmi.toolkit.models.tmi_clnet.fusion import FusionOutput

    return FusionOutput(x @ weight[0, :, :2], *(x @ weight[i] for i in (1, 2, 3)))


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_gathered_gradient_equals_whole_batch_gradient(micro_config, tmp_path):
    """The averaged gradient of two processes equals the gradient of the loss of the whole batch."""
    from tmi.training.loop.distributed import _free_port

    torch.manual_seed(0)
    weight, x = torch.randn(4, 6, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0, 1])
    arguments = (2, _free_port(), weight, x, labels, str(tmp_path / "gradient"))
    multiprocessing.spawn(gradients, arguments, nprocs=2)
    expected = weight.clone().requires_grad_()
    order = torch.tensor([0, 2, 4, 1, 3])  # ranks take every second case
    total_loss(outputs(x[order], expected), labels[order], micro_config.loss).total.backward()
    torch.testing.assert_close(
        torch.load(tmp_path / "gradient", weights_only=True), expected.grad, rtol=1e-9, atol=1e-9
    )


def test_too_few_training_cases_for_processes_are_rejected(config, tmp_path):
    """Every process needs two cases of a batch unless BatchNorm is frozen."""
    three = replace(SPLIT, train=SPLIT.train[:3])
    unfrozen = replace(config, train=replace(config.train, frozen_batch_norm=False))
    with pytest.raises(UsageError, match="fold 1 trains on 3 cases, too few for 2 processes"):
        train_small(
            tmp_path / "run", make_arrays(), unfrozen, three, hardware=HardwareConfig(accelerator="cpu", devices=2)
        )


def test_batches_are_split_over_ranks_without_loss(config):
    """Every rank gets a share of every batch, and every case belongs to one share."""
    data = FoldDataset(make_arrays(), SPLIT, replace(config, train=replace(config.train, batch_size=2)), tokenizer=None)
    shares = [list(EpochBatches(data, lambda: 0, rank=rank, world_size=2, min_cases=2)) for rank in (0, 1)]
    assert [[len(b.labels) for b in share] for share in shares] == [[1, 2], [1, 1]]
    together = torch.cat([b.radiomics for share in shares for b in share])
    assert len(torch.unique(together, dim=0)) == len(SPLIT.train)
    wide = FoldDataset(make_arrays(), SPLIT, config, tokenizer=None)  # batches of four
    assert [len(batch) for batch in wide.epoch_batches(0, min_cases=4)] == [5]


def test_memory_mapped_cts_are_not_copied_to_ranks(tmp_path):
    """A CT array stored in a file is sent as a reference and mapped again; an array in memory is sent as it is."""
    arrays = make_arrays()
    stored = np.lib.format.open_memmap(tmp_path / "ct.npy", mode="w+", dtype=np.float32, shape=(15, 1, 8, 16, 16))
    stored[:13] = arrays.ct_N1DHW
    small, mapped = strip_mapped_ct(replace(arrays, ct_N1DHW=stored[:13]))
    assert small.ct_N1DHW.nbytes == 0
    restored = restore_mapped_ct(small, mapped)
    np.testing.assert_array_equal(restored.ct_N1DHW, arrays.ct_N1DHW)
    assert isinstance(restored.ct_N1DHW, np.memmap)
    assert strip_mapped_ct(arrays) == (arrays, None)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_train_one_run(tmp_path):
    """Two commands with different NODE_RANK train one run in a shared folder; node 0 reports it."""
    from tmi.training.loop.distributed import _free_port

    cohort = write_cohort(tmp_path / "cohort", cases=24, with_mask=False)
    program = "import sys; from tmi.toolkit.cli.main import main; sys.exit(main())"
    settings = ("ct.shape_DHW=[8,16,16]", "clinical.max_length=64", "train.batch_size=4")
    options = ["--preset", "tiny", "--folds", "2", "--epochs", "2", "--accelerator", "cpu", "--nodes", "2"]
    arguments = ["train", str(cohort), "--out", str(tmp_path / "run"), *options]
    arguments += [part for setting in settings for part in ("--set", setting)]
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env={**os.environ, **rendezvous, "NODE_RANK": str(node)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    ]
    outputs_of_nodes = [command.communicate(timeout=500) for command in commands]
    assert [command.returncode for command in commands] == [0, 0], outputs_of_nodes
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    assert "metrics" in outputs_of_nodes[0][0]
    assert outputs_of_nodes[1][0] == ""
