"""Selection of a fold's epoch from the values of its inner validation split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tmi.toolkit.config.schema import TrainConfig


def criterion(losses: Sequence[float], accuracies: Sequence[float], train: TrainConfig) -> float | None:
    """Value of the latest epoch by which epochs are compared, lower is better; None: it cannot be selected.

    Args:
        losses: cross entropy of every epoch so far.
        accuracies: accuracy of every epoch so far.
        train: criterion, number of epochs that it averages, and first epochs that train the encoders alone.
    """
    # a mean of fewer epochs, such as that of the first alone, would be as noisy as without averaging
    first = len(losses) - min(train.select_over, train.epochs - train.encoder_epochs)
    if first < train.encoder_epochs:
        return None
    if train.select_by == "last":
        return -float(len(losses))
    by_accuracy = train.select_by == "accuracy"
    value = float(np.mean(accuracies[first:] if by_accuracy else losses[first:]))
    return -value if by_accuracy else value


def selected_epoch(losses: Sequence[float], accuracies: Sequence[float], train: TrainConfig) -> int:
    """The epoch with the best criterion, the earliest of equals."""
    values = [criterion(losses[: i + 1], accuracies[: i + 1], train) for i in range(len(losses))]
    return min((value, i) for i, value in enumerate(values) if value is not None)[1]
