"""Schedule, average of the weights, training of the encoders alone, and selection of the epoch."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from factories.small_fold import make_arrays, small_config
from factories.small_fold import train_small as train
from tmi.toolkit.config.schema import Config, TrainConfig
from tmi.toolkit.errors import UsageError
from tmi.toolkit.run_folder import FoldFolder
from tmi.training.evaluation.epoch_selection import criterion, selected_epoch
from tmi.training.loop.lightning_module import FoldModule
from tmi.training.loop.optimization.learning_rate import learning_rate_factor
from tmi.training.loop.optimization.weight_average import averaged_copy
from tmi.training.systems.factory import encoders

EVERYTHING = {"schedule": "cosine", "warmup_epochs": 1, "ema": 0.8, "select_over": 2, "encoder_epochs": 1}


@pytest.fixture(scope="module")
def config(micro_config: Config) -> Config:
    return small_config(micro_config)


def with_train(config: Config, **fields: object) -> Config:
    return replace(config, train=replace(config.train, **fields))


def test_learning_rate_rises_linearly_and_falls_as_half_a_cosine():
    """Ten steps an epoch, two epochs of warm-up: 0.05 to 1, then 1 to 0 with 0.5 in the middle."""
    factor = learning_rate_factor(TrainConfig(epochs=10, warmup_epochs=2, schedule="cosine"), 100)
    assert [factor(s) for s in (0, 9, 19, 20)] == pytest.approx([0.05, 0.5, 1.0, 1.0])
    assert factor(60) == pytest.approx(0.5)
    assert factor(99) == pytest.approx(0.5 * (1 + math.cos(math.pi * 79 / 80)))
    assert factor(100) == pytest.approx(0.0, abs=1e-12)


def test_constant_schedule_stays_at_one_after_the_warm_up():
    """Without cosine every later step has the factor 1."""
    factor = learning_rate_factor(TrainConfig(epochs=4, warmup_epochs=1), 8)
    assert [factor(s) for s in range(8)] == [0.5] + [1.0] * 7


def test_average_equals_the_closed_form():
    """After weights w0, w1, w2 the average is d^2 w0 + (1 - d) (d w1 + w2); BatchNorm's statistics likewise."""
    network = torch.nn.BatchNorm1d(1)
    average = averaged_copy(network, 0.75)
    for value in (1.0, 2.0, 4.0):
        for tensor in (network.weight, network.running_mean):
            tensor.data.fill_(value)
        average.update_parameters(network)
    expected = 0.75**2 * 1.0 + 0.25 * (0.75 * 2.0 + 4.0)
    assert average.module.weight.item() == pytest.approx(expected)
    assert average.module.running_mean.item() == pytest.approx(expected)
    assert not any(p.requires_grad for p in average.parameters())


@pytest.mark.parametrize(
    ("train", "losses", "epoch"),
    [
        (TrainConfig(), [3.0, 1.0, 1.0, 2.0], 1),
        (TrainConfig(select_over=2), [0.5, 3.0, 1.0, 1.0, 2.0], 3),
        (TrainConfig(select_by="last"), [0.5, 3.0, 1.0], 2),
        (TrainConfig(encoder_epochs=2), [0.1, 0.2, 1.0, 0.9], 3),
        (TrainConfig(encoder_epochs=2, select_over=3, epochs=4), [0.1, 0.2, 1.0, 0.9], 3),
    ],
)
def test_epoch_with_the_best_mean_is_selected(train, losses, epoch):
    """The mean of the latest epochs decides, epochs that train encoders alone are not candidates, ties go early."""
    assert selected_epoch(losses, losses, train) == epoch


def test_epoch_with_too_few_epochs_before_it_is_no_candidate():
    """A mean of five is compared from the fifth epoch on; a training of three epochs has one mean, of all three."""
    losses = [0.1, 4.0, 4.0, 4.0, 3.0]
    values = [criterion(losses[: i + 1], losses, TrainConfig(select_over=5)) for i in range(5)]
    assert values == [None, None, None, None, pytest.approx(3.02)]
    assert criterion([1.0, 2.0, 3.0], [], TrainConfig(select_over=5, epochs=3)) == 2.0


def test_encoders_are_trained_alone_first(config, tmp_path):
    """In the encoder epochs the encoders' weights change and those behind them keep their initial values."""
    other = with_train(config, epochs=2, encoder_epochs=1)
    module = FoldModule(other, fold=1)
    before = {k: v.clone() for k, v in module.network.state_dict().items()}
    _steps(module, epoch=0)
    after = module.network.state_dict()
    names = [k for k, p in module.network.named_parameters() if p.requires_grad]
    inside = {id(p) for encoder in encoders(module.network).values() for p in encoder.parameters()}
    parameters = dict(module.network.named_parameters())
    changed = {k for k in names if not torch.equal(before[k], after[k])}
    assert changed
    assert all(id(parameters[k]) in inside for k in changed)
    _steps(module, epoch=1)
    assert any(id(parameters[k]) not in inside for k in names if not torch.equal(before[k], parameters[k]))


def _steps(module: FoldModule, *, epoch: int) -> None:
    """One step of Adam on a batch of all training cases of the small fold, in the given epoch."""
    from factories.small_fold import SPLIT
    from tmi.training.data.fold_dataset import FoldDataset

    data = FoldDataset(make_arrays(), SPLIT, module.config, tokenizer=None)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    type(module).current_epoch, original = epoch, type(module).current_epoch
    try:
        module.network.train()
        module.loss_of(data.batch(SPLIT.train)).backward()
    finally:
        type(module).current_epoch = original
    optimizer.step()


@pytest.mark.parametrize("fields", [{"schedule": "cosine"}, {"ema": 0.8}, {"encoder_epochs": 1}, {"warmup_epochs": 2}])
def test_each_ingredient_changes_the_weights(fields, config, tmp_path):
    """No field is ignored: each changes the saved model, and with none of them it is that of the plain config."""
    plain = train(tmp_path / "plain", make_arrays(), config)
    other = train(tmp_path / "other", make_arrays(), with_train(config, **fields))
    first, second = load_file(plain.model), load_file(other.model)
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[k], second[k]) for k in first)


def test_interrupted_training_with_everything_ends_at_the_same_weights(config, tmp_path):
    """Schedule, average, encoders alone and selection resume: killed after two epochs, the weights are the same."""
    other = with_train(config, **EVERYTHING)
    whole = train(tmp_path / "whole", make_arrays(), other)

    def kill(epoch: int, *_: float) -> None:
        if epoch == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(tmp_path / "part", make_arrays(), other, epoch_callback=kill)
    files = _resumed(tmp_path / "part", other)
    assert files.model.read_bytes() == whole.model.read_bytes()
    assert files.history.read_text() == whole.history.read_text()


def _resumed(folder, config: Config) -> FoldFolder:
    from factories.small_fold import SPLIT
    from tmi.training.loop.fold_training import train_fold
    from tmi.training.loop.hardware import HardwareConfig
    from tmi.training.loop.run_spec import FoldContext

    files = FoldFolder(folder=folder, fold=SPLIT.fold)
    context = FoldContext(
        arrays=make_arrays(), config=config, tokenizer=None, hardware=HardwareConfig(accelerator="cpu")
    )
    train_fold(context, SPLIT, files, epoch_callback=lambda *_: None)
    return files


def test_average_works_with_a_frozen_encoder_whose_output_is_cached(config, tmp_path):
    """The averaged network passes cached features through as the trained one does, and keeps the frozen weights."""
    frozen = with_train(config, ema=0.5, freeze=("text", "ct"))
    files = train(tmp_path / "fold1", make_arrays(), frozen)
    metrics = json.loads(files.metrics.read_text())
    rows = list(csv.DictReader(io.StringIO(files.history.read_text())))
    assert metrics["validation_loss"] == float(rows[metrics["picked_epoch"]]["validation_loss"])


@pytest.mark.parametrize(
    "fields",
    [{"ema": 1.0}, {"select_over": 0}, {"warmup_epochs": 300}, {"encoder_epochs": 300}, {"encoder_epochs": -1}],
)
def test_impossible_settings_are_rejected(fields):
    """A decay of 1 would keep the initial weights, and no epoch would be left to train or to select."""
    with pytest.raises(UsageError):
        TrainConfig(**fields)
