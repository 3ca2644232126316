"""The Lightning module: one fold's network, its loss and its optimiser."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor

from tmi.toolkit.config import Config
from tmi.training.fold_data import Batch
from tmi.training.systems.build import build_network, frozen_encoders, loss_function


class FoldModule(lightning.LightningModule):
    """Trains the configured system by its own loss."""

    def __init__(self, config: Config, *, fold: int) -> None:
        super().__init__()
        self.config = config
        self.fold = fold
        self.network = build_network(config, seed=config.train.seed + fold)
        self.loss_function = loss_function(config)
        for encoder in frozen_encoders(self.network, config):
            encoder.requires_grad_(False)
        self.epoch_loss = 0.0
        self.epoch_cases = 0

    def on_train_epoch_start(self) -> None:
        """Every draw of the epoch follows from (seed, fold, epoch), so a resumed run draws the same."""
        self.epoch_loss, self.epoch_cases = 0.0, 0
        torch.manual_seed((self.config.train.seed * 1_000_003 + self.fold) * 1_000_003 + self.current_epoch)
        for encoder in frozen_encoders(self.network, self.config):
            encoder.eval()  # its BatchNorm statistics and dropout stay still too

    def training_step(self, batch: Batch, index: int) -> Tensor | None:
        """Loss of one batch; a batch of one (a training part of one case) cannot train BatchNorm and is passed over."""
        if len(batch.labels) < 2:
            return None
        output = self.network(batch.ct, batch.input_ids, batch.attention_mask, batch.radiomics)
        loss = self.loss_function(output, batch.labels, self.config.loss).total
        self.epoch_loss += float(loss.detach()) * len(batch.labels)
        self.epoch_cases += len(batch.labels)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as published."""
        train = self.config.train
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, lr=train.learning_rate, weight_decay=train.weight_decay)
