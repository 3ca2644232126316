"""Warns before a training of the clinical fields that the text encoder does not receive."""

from __future__ import annotations

from collections.abc import Sequence

from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.clinical.truncation import lost_fields, truncation_fix, truncation_warning
from tmi.toolkit.config.schema import Config
from tmi.toolkit.models.registry import active_modalities, configured_model
from tmi.toolkit.run_folder import FoldSplit
from tmi.training.data.dataset import CohortArrays
from tmi.training.data.fold_dataset import train_vocabulary


def text_truncation(
    arrays: CohortArrays, folds: Sequence[FoldSplit], config: Config, tokenizer: Tokenizer | None
) -> str | None:
    """Warning on the texts that are longer than the text encoder takes, with the fields that it does not receive.

    Args:
        arrays: the cohort.
        folds: folds of the training. The warning is that of the fold in which most texts are truncated.
        config: settings of the run.
        tokenizer: the given tokenizer; None: each fold trains one on its training texts.

    Returns:
        The warning with its fix; None if no text is truncated or the model has no text encoder.
    """
    clinical = config.clinical
    if configured_model(config).trainer != "torch" or "clinical" not in active_modalities(config) or not arrays.spans:
        return None
    tokenizers = [tokenizer] if tokenizer is not None else []
    if tokenizer is None and clinical.vocab_size is not None:
        tokenizers = [train_vocabulary(arrays, split.train, clinical.vocab_size) for split in folds]
    lost = [
        [
            lost_fields(text, spans, each, max_length=clinical.max_length)
            for text, spans in zip(arrays.texts, arrays.spans, strict=True)
        ]
        for each in tokenizers
    ]
    most = max(lost, key=lambda texts: sum(map(bool, texts)), default=[])
    message = truncation_warning(most, max_length=clinical.max_length)
    return None if message is None else f"{message}; to fix it, {truncation_fix(clinical.rendering)}"
