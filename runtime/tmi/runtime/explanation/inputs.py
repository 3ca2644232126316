"""Input tensors of one case for one fold's model, and the log-odds that attributions explain.

T tokens, R = 1781 features, K classes. Log-odds = logit(bad) - logit(good); above 0 the model favours a bad prognosis.
Maps explain the logit of one class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tmi.runtime.explanation.model_source import FoldModel
from tmi.toolkit.config.schema import Config
from tmi.toolkit.preprocessing.pipeline import PreparedCase


@dataclass(frozen=True, kw_only=True)
class FoldInputs:
    """The network's inputs for one case, scaled and tokenised as by the fold."""

    ct: Float[Tensor, "1 1 D H W"]
    """CT volume."""
    input_ids: Int[Tensor, "1 T"]
    """Token ids."""
    attention_mask: Int[Tensor, "1 T"]
    """1 for a token, 0 for padding."""
    radiomics: Float[Tensor, "1 1781"]
    """Scaled features."""
    truncated: bool
    """Whether the text was longer than the encoder's maximum length."""


def fold_inputs(case: PreparedCase, model: FoldModel, config: Config) -> FoldInputs:
    """Convert a preprocessed case to tensors."""
    clinical = config.clinical
    tokens = model.tokenizer.encode([case.text], max_length=clinical.max_length, pad_to_max=clinical.pad_to_max)
    return FoldInputs(
        ct=torch.from_numpy(np.ascontiguousarray(case.ct_1DHW[None])),
        input_ids=torch.from_numpy(tokens.input_ids_BT),
        attention_mask=torch.from_numpy(tokens.attention_mask_BT),
        radiomics=torch.from_numpy(model.scaler.transform(case.radiomics_F[None]).values_NF),
        truncated=bool(tokens.truncated_B[0]),
    )


def log_odds(logits_BK: Float[Tensor, "B K"], positive: int) -> Float[Tensor, " B"]:
    """logit(positive) - logit(other)."""
    return logits_BK[:, positive] - logits_BK[:, 1 - positive]


@dataclass(frozen=True, kw_only=True)
class EncodedCase:
    """Outputs of the encoders for one case; the CT's features are the expensive ones."""

    ct_features: Float[Tensor, "1 C"]
    """CT features."""
    text_features: Float[Tensor, "1 C"]
    """Text features."""
