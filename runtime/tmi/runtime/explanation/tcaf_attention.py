"""Two metrics of the attention in the triple-modal cross-attention (TCAF).

Each modality has C tokens of width 1. On the ring clinical -> radiomics -> image -> clinical, modality i attends to j:

    P_i = softmax(q_i k_j^T)  [C,C];    out_i = w_h (P_i v_j) + w_o F_i + b

- effective tokens: exp of the mean entropy of P_i's rows, from 1 (a single token) to C (uniform: the output is the mean
  of j, whatever i is). Each key is one number, so that a row can only favour the largest or the smallest keys. Which
  token has the weight has no spatial or semantic meaning and is not reported.
- share of the other: sum |w_h (P_i v_j)| / (sum |w_h (P_i v_j)| + sum |w_o F_i|), the fraction of the head's input at
  i's position that comes from j.

The attention of the IMA is a softmax over one token, always 1, and is not reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tmi.toolkit.config.schema import MODALITIES
from tmi.toolkit.models.tmi_clnet.tcaf import TripleModalCrossAttention


@dataclass(frozen=True, kw_only=True)
class RingAttention:
    """Metrics of one arc of the ring."""

    own: str
    """Modality that attends."""
    other: str
    """Modality attended to."""
    effective_tokens: float
    """Effective number of tokens, 1 to `tokens`."""
    tokens: int
    """Number of tokens C."""
    share_of_other: float
    """Share of the other modality, 0 to 1."""


@torch.inference_mode()
def ring_attention(
    tcaf: TripleModalCrossAttention | None, features: tuple[Float[Tensor, "1 C"], ...]
) -> tuple[RingAttention, ...]:
    """Metrics of the three arcs for one case; empty for a network without TCAF.

    Args:
        tcaf: the module.
        features: features after the IMA, in the order of `MODALITIES`.
    """
    if tcaf is None:
        return ()
    tokens = {m: f[0].unsqueeze(-1) for m, f in zip(MODALITIES, features, strict=True)}
    arcs: list[RingAttention] = []
    for i, own in enumerate(MODALITIES):
        other = MODALITIES[(i + 1) % len(MODALITIES)]
        weights = (tcaf.query[own](tokens[own]) @ tcaf.key[other](tokens[other]).T).softmax(dim=-1)
        hidden = weights @ tcaf.value[other](tokens[other])
        # The lower clamp makes 0 * log 0 = 0.
        entropy = -(weights * weights.clamp_min(1e-30).log()).sum(dim=-1).mean()
        output: Tensor = tcaf.output[own].get_parameter("weight")[0]
        # output holds (w_h, w_o), the weights of the attended value and of the own feature.
        from_other = float((output[0] * hidden).abs().sum())
        from_own = float((output[1] * tokens[own]).abs().sum())
        total = from_other + from_own
        arcs.append(
            RingAttention(
                own=own,
                other=other,
                effective_tokens=math.exp(float(entropy)),
                tokens=weights.shape[0],
                share_of_other=from_other / total if total > 0 else 0.0,
            )
        )
    return tuple(arcs)
