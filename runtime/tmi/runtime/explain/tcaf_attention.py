"""What the triple-modal cross-attention did, in the two figures that say anything.

C tokens of width 1 a modality. On the ring clinical -> radiomics -> image -> clinical, modality i attends to j:

    P_i = softmax(q_i k_j^T)  [C,C];    out_i = w_h (P_i v_j) + w_o F_i + b

- effective tokens: exp of the mean entropy of P_i's rows, from 1 (one token is looked at) to C (all alike: the
  attention hands on the mean of j, whatever i is). The keys are one number a token, so that a row can only lean to the
  largest or to the smallest keys: which token gets the weight is no place and no meaning, and is not reported.
- share of the other: sum |w_h (P_i v_j)| / (sum |w_h (P_i v_j)| + sum |w_o F_i|): how much of what reaches the head in
  i's place came from j.

The IMA's attention is a softmax over one token and always 1: there is nothing to report.
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
    """One arc of the ring."""

    own: str
    """Modality that attends."""
    other: str
    """Modality attended to."""
    effective_tokens: float
    """1 to `tokens`."""
    tokens: int
    """C."""
    share_of_other: float
    """0 to 1."""


@torch.inference_mode()
def ring_attention(
    tcaf: TripleModalCrossAttention | None, features: tuple[Float[Tensor, "1 C"], ...]
) -> tuple[RingAttention, ...]:
    """The three arcs for one case; empty where the network has no TCAF.

    Args:
        tcaf: the module.
        features: after the IMA, in the order of `MODALITIES`.
    """
    if tcaf is None:
        return ()
    tokens = {m: f[0].unsqueeze(-1) for m, f in zip(MODALITIES, features, strict=True)}
    arcs: list[RingAttention] = []
    for i, own in enumerate(MODALITIES):
        other = MODALITIES[(i + 1) % len(MODALITIES)]
        weights = (tcaf.query[own](tokens[own]) @ tcaf.key[other](tokens[other]).T).softmax(dim=-1)
        hidden = weights @ tcaf.value[other](tokens[other])
        entropy = -(weights * weights.clamp_min(1e-30).log()).sum(dim=-1).mean()
        output: Tensor = tcaf.output[own].get_parameter("weight")[0]
        from_other = float((output[0] * hidden).abs().sum())
        from_own = float((output[1] * tokens[own]).abs().sum())
        both = from_other + from_own
        arcs.append(
            RingAttention(
                own=own,
                other=other,
                effective_tokens=math.exp(float(entropy)),
                tokens=weights.shape[0],
                share_of_other=from_other / both if both > 0 else 0.0,
            )
        )
    return tuple(arcs)
