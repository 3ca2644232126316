"""Lightning module of one fold: network, loss and optimiser."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor

from tmi.toolkit.config.schema import Config
from tmi.training.data.fold_dataset import Batch
from tmi.training.loop.activation_checkpointing import checkpoint_activations
from tmi.training.loop.freezing import frozen_modules, set_frozen_eval
from tmi.training.loop.gather import gather_batch
from tmi.training.loop.optimization.encoder_heads import EncoderHeads
from tmi.training.loop.optimization.learning_rate import is_scheduled, learning_rate_factor
from tmi.training.loop.optimization.weight_average import averaged_copy
from tmi.training.systems.factory import build_network, loss_function


class FoldModule(lightning.LightningModule):
    """Trains the configured model with its own loss.

    Args:
        config: settings of the run.
        fold: number of the fold; offsets the seed of the initial weights.
        checkpointing: use activation checkpointing even if the config does not.
    """

    def __init__(self, config: Config, *, fold: int, checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.fold = fold
        self.network = build_network(config, seed=config.train.seed + fold)
        self.loss_function = loss_function(config)
        for part in frozen_modules(self.network, config):
            part.requires_grad_(False)
        train = config.train
        # a submodule, so that a checkpoint holds it
        self.average = averaged_copy(self.network, train.ema) if train.ema else None
        heads = EncoderHeads(self.network, config, seed=train.seed + fold) if train.encoder_epochs else None
        self.encoder_heads = heads if heads is not None and len(heads.heads) else None
        if checkpointing or config.train.activation_checkpointing:
            checkpoint_activations(self.network)
        self.epoch_loss = 0.0
        self.epoch_cases = 0

    @property
    def evaluated(self) -> torch.nn.Module:
        """The network to validate and to save: with the averaged weights if there are any."""
        return self.network if self.average is None else self.average.module

    @property
    def is_distributed(self) -> bool:
        """Whether a batch is distributed over processes."""
        return self._trainer is not None and self.trainer.world_size > 1

    def on_train_epoch_start(self) -> None:
        """Seed the epoch from (seed, fold, epoch), so that a resumed run samples the same values."""
        self.epoch_loss, self.epoch_cases = 0.0, 0
        seed = (self.config.train.seed * 1_000_003 + self.fold) * 1_000_003 + self.current_epoch
        rank = self.trainer.global_rank if self.is_distributed else 0  # dropout differs between processes
        torch.manual_seed(seed + rank * 1_000_000_007)
        set_frozen_eval(self.network, self.config)

    def training_step(self, batch: Batch, index: int) -> Tensor | None:
        """Loss of one batch; a batch of one case is skipped, since BatchNorm cannot be trained on it.

        The loss is computed in float32 at every precision: the alignment loss multiplies similarities by 50, for which
        the 8 significant bits of bfloat16 are too few. In distributed training it is the loss of the whole batch.
        """
        if len(batch.labels) < 2 and not self.is_distributed:
            return None
        loss = self.loss_of(batch)
        # DDP averages gradients over the processes, but the gradient of the whole batch is their sum
        return loss * self.trainer.world_size if self.is_distributed else loss

    def loss_of(self, batch: Batch) -> Tensor:
        """Loss of one batch; it is added to the epoch's mean."""
        if self.encoder_heads is not None and self.current_epoch < self.config.train.encoder_epochs:
            smoothing = self.config.loss.label_smoothing
            return self._counted(self.encoder_heads(self.network, batch, label_smoothing=smoothing), batch.labels)
        output = self.network(batch.ct, batch.input_ids, batch.attention_mask, batch.radiomics)
        labels = batch.labels
        with torch.autocast(labels.device.type, enabled=False):
            output = in_float32(output)
            if self.is_distributed:
                output, labels = gather_batch(output, labels)
            loss: Tensor = self.loss_function(output, labels, self.config.loss).total
        return self._counted(loss, labels)

    def _counted(self, loss: Tensor, labels: Tensor) -> Tensor:
        """The loss, after adding it to the epoch's mean."""
        self.epoch_loss += float(loss.detach()) * len(labels)
        self.epoch_cases += len(labels)
        return loss

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Take the step, then add the weights to their average."""
        super().optimizer_step(*args, **options)
        if self.average is not None:
            self.average.update_parameters(self.network)

    def configure_optimizers(self) -> Any:
        """Adam, as in the paper, over the parameters that are not frozen; with a schedule if one is configured."""
        train = self.config.train
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=train.learning_rate, weight_decay=train.weight_decay)
        if not is_scheduled(train):
            return optimizer
        factor = learning_rate_factor(train, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def in_float32(output: Any) -> Any:
    """Convert every tensor of a named tuple to float32."""
    return type(output)(*(tensor.float() for tensor in output))
