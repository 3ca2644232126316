"""Similarity distribution matching (SDM) between two sets of features of one batch.

B batch, C channels. With L2-normalised a, b and ids y:

    s_ij = scale * <a_i, b_j>;  p_i = softmax_j(s_ij);  q_ij = [y_i = y_j] / sum_j [y_i = y_j]
    KL(a, b) = mean_i sum_j p_ij (log p_ij - log(q_ij + 1e-8));   SDM(a, b) = KL(a, b) + KL(b, a)

Source: D. Jiang and M. Ye 2023 (IRRA), equations 4 to 6. Ids are class labels here. A batch of one gives 0.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

EPSILON = 1e-8


def sdm(
    a_BC: Float[Tensor, "B C"], b_BC: Float[Tensor, "B C"], ids_B: Int[Tensor, " B"], *, scale: float
) -> Float[Tensor, ""]:
    """SDM of two feature sets as a scalar; 0 for a batch of one."""
    similarity_BB = scale * normalize(a_BC, dim=1) @ normalize(b_BC, dim=1).T
    if len(ids_B) == 1:
        return similarity_BB.sum() * 0.0  # p = q = 1, and EPSILON alone would give -2e-8
    # q_i is uniform over the cases with the id of case i, itself included
    same_BB = (ids_B[:, None] == ids_B[None, :]).to(similarity_BB.dtype)
    log_q_BB = (same_BB / same_BB.sum(dim=1, keepdim=True) + EPSILON).log()
    return _divergence(similarity_BB, log_q_BB) + _divergence(similarity_BB.T, log_q_BB)


def _divergence(similarity_BB: Float[Tensor, "B B"], log_q_BB: Float[Tensor, "B B"]) -> Float[Tensor, ""]:
    """KL(p || q), summed over columns and averaged over rows."""
    log_p_BB = log_softmax(similarity_BB, dim=1)
    return (log_p_BB.exp() * (log_p_BB - log_q_BB)).sum(dim=1).mean()
