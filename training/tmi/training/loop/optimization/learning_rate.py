"""Learning rate over the steps of a training: linear warm-up, then constant or half a cosine.

    step s of W warm-up steps        (s + 1) / W
    later, `constant`                1
    later, `cosine`, S steps in all  (1 + cos(pi (s - W) / (S - W))) / 2

Cosine: I. Loshchilov and F. Hutter, SGDR, 2017, without restarts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tmi.toolkit.config.schema import TrainConfig


def is_scheduled(train: TrainConfig) -> bool:
    """Whether the learning rate changes during the training."""
    return train.schedule != "constant" or train.warmup_epochs > 0


def learning_rate_factor(train: TrainConfig, steps: int) -> Callable[[int], float]:
    """Function of the step, from 0, that returns the factor of `train.learning_rate`.

    Args:
        train: settings.
        steps: optimizer steps of the whole training, the same number in each epoch.
    """
    warmup = steps * train.warmup_epochs // train.epochs

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if train.schedule == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 0.5 * (1.0 + math.cos(math.pi * done))

    return factor
