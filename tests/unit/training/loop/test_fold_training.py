"""Training of one fold: held-out cases do not influence the model, and the epoch is selected on the inner split."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from factories.small_fold import SPLIT, make_arrays, small_config
from factories.small_fold import train_small as train
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.models.tmi_clnet.model import build
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.run_folder import FoldFolder
from tmi.training.data.dataset import CohortArrays
from tmi.training.data.fold_dataset import EpochBatches, FoldDataset
from tmi.training.evaluation.calibration import calibrate
from tmi.training.evaluation.fold_inference import predict_logits
from tmi.training.evaluation.metrics import binary_metrics
from tmi.training.evaluation.prediction_tables import read_predictions
from tmi.training.loop import fold_training
from tmi.training.loop.checkpointing import BestEpochCheckpoint, _save_weights
from tmi.training.loop.lightning_module import FoldModule


@pytest.fixture(scope="module")
def config(micro_config: Config) -> Config:
    return small_config(micro_config)


def changed(ids: tuple[str, ...], *, labels: bool = True) -> CohortArrays:
    """The cohort with all data of the given cases replaced."""
    arrays = make_arrays()
    rows = arrays.rows(ids)
    arrays.ct_N1DHW[rows] = 0.25
    arrays.radiomics_NF[rows] = 1e6
    if labels:
        arrays.labels_N[rows] = 1 - arrays.labels_N[rows]
    texts = tuple("Ünknown ZZZ 999" if i in rows else text for i, text in enumerate(arrays.texts))
    return replace(arrays, texts=texts)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, config: Config) -> FoldFolder:
    return train(tmp_path_factory.mktemp("fold") / "fold1", make_arrays(), config)


def history(files: FoldFolder) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(files.history.read_text())))


def test_held_out_cases_do_not_influence_training(trained, config, tmp_path):
    """Replacing the held-out cases leaves weights, scaler, vocabulary, history and calibration unchanged."""
    other = train(tmp_path / "fold1", changed(SPLIT.test), config)
    for file in ("model.safetensors", "scaler.json", "tokenizer.json", "history.csv", "validation.csv"):
        assert (other.folder / file).read_bytes() == (trained.folder / file).read_bytes(), file
    first, second = (json.loads(files.metrics.read_text())["calibration"] for files in (trained, other))
    assert [first[k] == second[k] for k in ("temperature", "threshold", "validation", "test")] == [True] * 3 + [False]
    assert other.predictions.read_bytes() != trained.predictions.read_bytes()


def test_another_seed_gives_other_weights(trained, config, tmp_path):
    """Counterpart of the same-seed test in `test_resume`: weights depend on the seed, the scaler does not."""
    other = train(tmp_path / "fold1", make_arrays(), replace(config, train=replace(config.train, seed=43)))
    assert other.model.read_bytes() != trained.model.read_bytes()
    assert other.scaler.read_bytes() == trained.scaler.read_bytes()


def test_training_case_influences_every_fitted_file(trained, config, tmp_path):
    """Counterpart of the held-out test: the same change to a training case changes every fitted file."""
    other = train(tmp_path / "fold1", changed(SPLIT.train[:1]), config)
    for file in ("model.safetensors", "scaler.json", "tokenizer.json", "history.csv"):
        assert (other.folder / file).read_bytes() != (trained.folder / file).read_bytes(), file


def test_selected_epoch_has_lowest_validation_loss(trained):
    """The selected epoch is the first minimum of the validation loss in history.csv."""
    rows = history(trained)
    losses = [float(r["validation_loss"]) for r in rows]
    metrics = json.loads(trained.metrics.read_text())
    assert [r["epoch"] for r in rows] == ["0", "1", "2", "3"]
    assert metrics["picked_epoch"] == losses.index(min(losses))
    assert metrics["validation_loss"] == min(losses)
    assert [r["picked"] for r in rows] == [str(int(v < min([9e9, *losses[:i]]))) for i, v in enumerate(losses)]


@pytest.mark.parametrize(("select_by", "epoch"), [("accuracy", 1), ("loss", 3)])
def test_epoch_is_selected_by_loss_or_accuracy(select_by, epoch, config, tmp_path, monkeypatch):
    """By accuracy the first epoch with the most correct cases is selected, by loss that with the lowest loss."""

    def scripted(*_):
        labels = make_arrays().labels_N[make_arrays().rows(SPLIT.validation)]
        margin = np.array(next(script)) * np.where(labels == 1, 1.0, -1.0)
        return torch.from_numpy(np.stack([np.zeros_like(margin), margin], axis=1))

    # margins of the right class: accuracies 0.5, 1.0, 1.0, 0.75; the last has the lowest loss
    script = iter([[-1.0, 1.0, -1.0, 1.0], [0.1, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2], [9.0, 9.0, 9.0, -0.1]])
    monkeypatch.setattr("tmi.training.loop.checkpointing.predict_logits", scripted)
    files = train(tmp_path / "fold1", make_arrays(), replace(config, train=replace(config.train, select_by=select_by)))
    rows = history(files)
    assert [float(row["validation_accuracy"]) for row in rows] == [0.5, 1.0, 1.0, 0.75]
    assert json.loads(files.metrics.read_text())["picked_epoch"] == epoch
    assert max(i for i, row in enumerate(rows) if row["picked"] == "1") == epoch


def test_saved_weights_belong_to_selected_epoch(trained, config):
    """The saved weights reproduce the validation loss of the selected epoch."""
    network = build(config.network, seed=0)
    network.load_state_dict(load_file(trained.model))
    data = FoldDataset(make_arrays(), SPLIT, config, tokenizer=None)
    logits = predict_logits(network, data, SPLIT.validation, torch.device("cpu"))
    loss = float(cross_entropy(logits.double(), data.batch(SPLIT.validation).labels))
    assert loss == pytest.approx(json.loads(trained.metrics.read_text())["validation_loss"], rel=1e-6)


def test_validation_cases_do_not_train_weights(trained, config, tmp_path):
    """Other validation labels change the validation losses and leave the training losses unchanged."""
    arrays = make_arrays()
    arrays.labels_N[arrays.rows(SPLIT.validation)] ^= 1
    other = train(tmp_path / "fold1", arrays, config)
    first, second = history(trained), history(other)
    assert [r["train_loss"] for r in first] == [r["train_loss"] for r in second]
    assert [r["validation_loss"] for r in first] != [r["validation_loss"] for r in second]


def test_metrics_match_out_of_fold_predictions(trained):
    """metrics.json holds the metrics of predictions.csv, which lists the held-out cases."""
    rows = list(csv.DictReader(io.StringIO(trained.predictions.read_text())))
    assert [r["case_id"] for r in rows] == list(SPLIT.test)
    assert [r["label"] for r in rows] == ["bad", "good", "bad", "good"]
    labels = np.array([int(r["label"] == "bad") for r in rows])
    probability = np.array([float(r["probability_bad"]) for r in rows])
    metrics = json.loads(trained.metrics.read_text())
    assert metrics["test"] == binary_metrics(labels, probability)
    assert metrics["cases"] == {"train": 5, "validation": 4, "test": 4}


def test_calibration_can_be_refitted_from_validation_predictions(trained):
    """Refitting on validation.csv gives the recorded temperature and threshold."""
    table = read_predictions(trained.validation)
    recorded = json.loads(trained.metrics.read_text())["calibration"]
    assert table.case_ids == SPLIT.validation
    fitted = calibrate(table.logits_NK, table.labels_N)
    assert (fitted.temperature, fitted.threshold) == (recorded["temperature"], recorded["threshold"])
    assert recorded["fitted_on"] == 4
    assert recorded["temperature"] != 1.0
    assert trained.temperature == recorded["temperature"]


def test_finished_fold_has_no_checkpoint(trained):
    """A finished fold holds the documented files and nothing else."""
    names = "history.csv machine.json metrics.json model.safetensors predictions.csv scaler.json tokenizer.json"
    assert sorted(p.name for p in trained.folder.iterdir()) == [*names.split(), "validation.csv"]


def test_only_cohort_wide_scaler_uses_held_out_cases(config):
    """`radiomics.fit_on=cohort` fits on all cases; the default fits on the training cases alone."""
    leaky = replace(config, radiomics=replace(config.radiomics, fit_on="cohort"))
    scalers: dict[str, list[RadiomicsScaler]] = {"training": [], "cohort": []}
    for arrays in (make_arrays(), changed(SPLIT.test)):
        for which in (config, leaky):
            scalers[which.radiomics.fit_on].append(FoldDataset(arrays, SPLIT, which, tokenizer=None).scaler)
    before, after = scalers["training"]
    np.testing.assert_array_equal(before.half_width_F, after.half_width_F)
    assert (before.fitted_on, scalers["cohort"][0].fitted_on) == (5, 13)
    before, after = scalers["cohort"]
    assert (before.half_width_F != after.half_width_F).all()


def test_held_out_value_is_clipped_to_training_range(config):
    """Scaled values of held-out cases stay within the range of the training cases."""
    data = FoldDataset(changed(SPLIT.test), SPLIT, config, tokenizer=None)
    assert (data.batch(SPLIT.test).radiomics == 1.0).all()
    assert float(data.batch(SPLIT.train).radiomics.abs().max()) == 1.0


def test_truncated_texts_are_counted(config):
    """Texts longer than `clinical.max_length` tokens are counted."""
    long = replace(make_arrays(), texts=tuple("3 " * (40 if k < 4 else 2) for k in range(13)))
    short = replace(config, clinical=replace(config.clinical, max_length=32))
    assert FoldDataset(long, SPLIT, short, tokenizer=None).truncated_texts == 4
    assert FoldDataset(long, SPLIT, config, tokenizer=None).truncated_texts == 0


# Batches


def data_of(config: Config, batch_size: int) -> FoldDataset:
    return FoldDataset(
        make_arrays(), SPLIT, replace(config, train=replace(config.train, batch_size=batch_size)), tokenizer=None
    )


@pytest.mark.parametrize(("batch_size", "sizes"), [(2, [2, 3]), (3, [3, 2]), (4, [5]), (5, [5]), (8, [5])])
def test_last_batch_of_one_joins_previous_batch(config, batch_size, sizes):
    """No batch has a single case, and every training case is in one batch."""
    data = data_of(config, batch_size)
    for epoch in range(3):
        batches = data.epoch_batches(epoch)
        assert [len(b) for b in batches] == sizes
        assert sorted(i for b in batches for i in b) == sorted(SPLIT.train)
    assert [len(b.labels) for b in EpochBatches(data, lambda: 0)] == sizes


def test_order_follows_from_seed_fold_and_epoch(config):
    """The order of cases is the same for the same epoch and differs between epochs."""
    data = data_of(config, 2)
    assert data.epoch_batches(1) == data_of(config, 2).epoch_batches(1)
    orders = {tuple(data.epoch_batches(e)) for e in range(6)}
    assert len(orders) > 3


def test_batch_of_one_is_skipped(config):
    """A batch of one case has no loss and does not count in the epoch."""
    module = FoldModule(config, fold=0).train()
    one = FoldDataset(make_arrays(), SPLIT, config, tokenizer=None).batch(SPLIT.train[:1])
    assert module.training_step(one, 0) is None
    assert module.epoch_cases == 0


def test_optimiser_is_adam_at_configured_rate(config):
    """The optimiser is Adam with the configured learning rate and weight decay."""
    optimiser = FoldModule(config, fold=0).configure_optimizers()
    assert type(optimiser) is torch.optim.Adam
    assert {(g["lr"], g["betas"], g["weight_decay"]) for g in optimiser.param_groups} == {(3e-3, (0.9, 0.999), 0.0)}


@pytest.mark.parametrize(
    ("part", "prefix"), [("ct", "ct_encoder."), ("text", "text_encoder."), ("radiomics", "fusion.radiomics_encoder.")]
)
def test_frozen_encoder_keeps_initial_weights(config, tmp_path, part, prefix):
    """Training leaves the weights of a frozen encoder unchanged and changes those of the other parts."""
    frozen = replace(config, train=replace(config.train, freeze=(part,), epochs=1))
    after = load_file(train(tmp_path / "fold1", make_arrays(), frozen).model)
    before = build(frozen.network, seed=frozen.train.seed + SPLIT.fold).state_dict()
    same = {n for n in before if torch.equal(before[n], after[n])}
    assert {n for n in before if n.startswith(prefix)} <= same
    for other in ("ct_encoder.", "text_encoder.", "fusion.radiomics_encoder.", "fusion.head."):
        assert other == prefix or any(n.startswith(other) and n not in same for n in before)


def test_diverged_training_reports_fold_and_fix(config, tmp_path):
    """A validation loss that is not finite raises a `UsageError` and leaves no model."""
    wild = replace(config, train=replace(config.train, learning_rate=1e30))
    with pytest.raises(UsageError, match="fold 1 diverged: after epoch 0") as error:
        train(tmp_path / "fold1", make_arrays(), wild)
    assert "learning_rate" in error.value.fix
    assert not (tmp_path / "fold1" / "model.safetensors").exists()


def test_checkpoint_state_keeps_its_published_key(config, tmp_path):
    """Lightning stores a callback's state under its class name; another key would resume without the best epoch."""
    data = FoldDataset(make_arrays(), SPLIT, config, tokenizer=None)
    callback = BestEpochCheckpoint(data, FoldFolder(folder=tmp_path, fold=0), lambda *_: None)
    assert callback.state_key == "EpochEnd"


@pytest.mark.parametrize("fault", ["pipe", "folder", "dangling link", "large", "packed"])
def test_special_or_huge_checkpoint_is_not_loaded(tmp_path, monkeypatch, fault):
    """A checkpoint that is no regular file, or larger than one can be, is damaged before it is loaded."""
    files = FoldFolder(folder=tmp_path, fold=0)
    files.checkpoint.parent.mkdir(parents=True)
    if fault == "pipe":
        os.mkfifo(files.checkpoint)
    elif fault == "folder":
        files.checkpoint.mkdir()
    elif fault == "dangling link":
        files.checkpoint.symlink_to("nowhere")
    elif fault == "large":
        files.checkpoint.touch()
        os.truncate(files.checkpoint, 17 * 2**30)
    else:
        monkeypatch.setattr(fold_training, "CHECKPOINT_BYTES", 2**20)
        with zipfile.ZipFile(files.checkpoint, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("last/data/0", bytes(2**24))
    with pytest.raises(DamagedError, match=r"checkpoint .*last\.ckpt cannot be read"):
        fold_training._run(None, None, None, files)


def test_weights_follow_the_umask(tmp_path):
    """The weights of a run have the mode of its other files: safetensors alone would write for the owner only."""
    (tmp_path / "new").touch()
    _save_weights(torch.nn.Linear(1, 1), tmp_path / "model.safetensors")
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "new").stat().st_mode
    )
