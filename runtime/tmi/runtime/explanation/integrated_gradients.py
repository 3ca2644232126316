"""Integrated gradients of radiomics and clinical text: contribution of each feature to the log-odds of a bad prognosis.

    IG_i = (x_i - x'_i) * integral over a in [0,1] of df/dx_i (x' + a (x - x')) da        sum_i IG_i = f(x) - f(x')

f is the log-odds of one fold's model with the other two modalities fixed. x' is the baseline:

- radiomics: 0 after scaling, which is the middle of the training range (or the mean) and the value of missing features;
- text: the same sequence with every token except [CLS] and [SEP] replaced by [PAD], on the input embeddings. The
  attributions of a token's embedding are summed, and then those of the tokens of each field's sentence.

Positive values contribute towards `bad`, negative ones towards `good`. The integral is a Gauss-Legendre sum. The number
of its points is doubled until the completeness error is within 1 % or 0.001, or until `MAX_STEPS`; the error is
reported. Source: M. Sundararajan et al. 2017; captum is the reference of the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import roots_legendre
from torch import Tensor

from tmi.runtime.explanation.inputs import EncodedCase, FoldInputs, log_odds
from tmi.toolkit.compute.third_party import library_call
from tmi.toolkit.models.tmi_clnet.model import TmiClnet

INITIAL_STEPS = 16
"""Initial number of points of the integral."""
MAX_STEPS = {"radiomics": 2048, "clinical": 128}
"""Maximum number of points. A point of the text is a run of BERT, a point of radiomics a small matrix product."""
TOLERANCE = 0.01
"""Allowed completeness error as a fraction of |f(x) - f(x')|."""
ABSOLUTE_TOLERANCE = 1e-3
"""Allowed completeness error in log-odds: at most a quarter of a thousandth in probability."""
RADIOMICS_BATCH_SIZE = 256
"""Points of radiomics in one run of the fusion."""
TEXT_BATCH_BYTES = 1_250_000_000
"""Memory of the points of a text in one run of BERT."""
MAX_TEXT_BATCH_SIZE = 16
"""Larger runs of BERT are no faster per point."""
TEXT_BYTES_PER_VALUE = 64
"""Memory of a point for each token, hidden value and layer: 0.3 GB for 512 tokens with the full-size preset."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Attributions of one modality in one fold."""

    values_N: Float[NDArray[np.float64], " N"]
    """One value for each feature or token."""
    output: float
    """f(x), the log-odds of the case."""
    baseline: float
    """f(x'), the log-odds of the baseline."""
    error: float
    """Completeness error: sum of the values - (f(x) - f(x'))."""
    steps: int
    """Number of points of the integral."""


def radiomics_attribution(network: TmiClnet, inputs: FoldInputs, encoded: EncodedCase, positive: int) -> Attribution:
    """Attributions of the 1,781 scaled features."""
    ct, text = encoded.ct_features, encoded.text_features

    def f(radiomics: Tensor) -> Tensor:
        rows = len(radiomics)
        return log_odds(network.fuse(ct.expand(rows, -1), text.expand(rows, -1), radiomics).logits_BK, positive)

    end = inputs.radiomics
    start = torch.zeros_like(end)
    return _integrate_until_complete(
        lambda points: integrated_gradients(f, start, end, points=points, batch_size=RADIOMICS_BATCH_SIZE),
        lambda: (f(end), f(start)),
        max_steps=MAX_STEPS["radiomics"],
    )


def text_attribution(
    network: TmiClnet, inputs: FoldInputs, encoded: EncodedCase, positive: int, offsets: Sequence[tuple[int, int]]
) -> Attribution:
    """Attributions of the tokens.

    Args:
        network: network of the fold.
        inputs: inputs of the case.
        encoded: encoder outputs of the case.
        positive: index of the positive class.
        offsets: token offsets from `Tokenizer.offsets`; (0, 0) marks a special token, which is unchanged in the
            baseline.
    """
    ct = encoded.ct_features

    def f(input_ids: Tensor) -> Tensor:
        rows = len(input_ids)
        text = network.encode_text(input_ids, inputs.attention_mask.expand(rows, -1))
        logits = network.fuse(ct.expand(rows, -1), text, inputs.radiomics.expand(rows, -1)).logits_BK
        return log_odds(logits, positive)

    baseline = inputs.input_ids.clone()
    content = [position for position, (start, end) in enumerate(offsets) if end > start]
    baseline[0, content] = 0  # [PAD] has id 0
    words = network.text_encoder.bert.embeddings.word_embeddings

    def f_of_embeddings(embedded: Tensor) -> Tensor:
        handle = words.register_forward_hook(lambda module, ids, output: embedded)
        try:
            return f(inputs.input_ids.expand(len(embedded), -1))
        finally:
            handle.remove()

    def integrate(points: int) -> Tensor:
        return integrated_gradients(
            f_of_embeddings,
            words(baseline),
            words(inputs.input_ids),
            points=points,
            batch_size=text_batch_size(network, inputs.input_ids.shape[1]),
        ).sum(dim=-1)

    return _integrate_until_complete(
        integrate, lambda: (f(inputs.input_ids), f(baseline)), max_steps=MAX_STEPS["clinical"]
    )


def text_batch_size(network: TmiClnet, tokens: int) -> int:
    """Points of a text in one run of BERT: as many as fit into `TEXT_BATCH_BYTES`, at most `MAX_TEXT_BATCH_SIZE`."""
    config = network.text_encoder.bert.config
    point_bytes = TEXT_BYTES_PER_VALUE * tokens * config.hidden_size * config.num_hidden_layers
    return int(min(max(1, TEXT_BATCH_BYTES // point_bytes), MAX_TEXT_BATCH_SIZE))


@cache
def gauss_legendre(points: int) -> tuple[Float[NDArray[np.float64], " points"], Float[NDArray[np.float64], " points"]]:
    """Points in [0, 1] of a Gauss-Legendre sum, and their weights. Computed once for each number of points."""
    roots, weights = roots_legendre(points)
    return 0.5 * (1.0 + roots), 0.5 * weights


def integrated_gradients(
    f: Callable[[Tensor], Tensor],
    start: Float[Tensor, "1 *x"],
    end: Float[Tensor, "1 *x"],
    *,
    points: int,
    batch_size: int,
) -> Float[Tensor, " *x"]:
    """Integrated gradients of `f` from `start` to `end`. The case is rejected (`attribution-failed`) if torch fails.

    Args:
        f: one value for each row; a row's value depends on no other row.
        start: the baseline.
        end: the explained input.
        points: number of points of the Gauss-Legendre sum.
        batch_size: number of points in one run of `f`.
    """
    fix = "explain it on a machine with more memory, or predict it without an explanation (tmi predict)"
    rows = (-1, *[1] * (start.ndim - 1))
    alphas, weights = (torch.from_numpy(v).to(start.dtype).reshape(rows) for v in gauss_legendre(points))
    change = end - start
    gradient = torch.zeros_like(start[0])
    with library_call("torch", code="attribution-failed", task="attribute the prediction", fix=fix):
        for first in range(0, points, batch_size):
            weight = weights[first : first + batch_size]
            with torch.enable_grad():
                path = (start + alphas[first : first + batch_size] * change).requires_grad_()
                (slope,) = torch.autograd.grad(f(path).sum(), path)
            gradient += (weight * slope).sum(dim=0)
    return gradient * change[0]


def _integrate_until_complete(
    integrate: Callable[[int], Tensor], ends: Callable[[], tuple[Tensor, Tensor]], *, max_steps: int
) -> Attribution:
    """Attributions with as many points as the completeness error requires."""
    with torch.no_grad():
        output, baseline = (float(v) for v in ends())
    bound = max(TOLERANCE * abs(output - baseline), ABSOLUTE_TOLERANCE)
    steps = INITIAL_STEPS
    while True:
        values = integrate(steps).detach().double().numpy()
        error = float(values.sum()) - (output - baseline)
        if abs(error) <= bound or steps >= max_steps:
            return Attribution(values_N=values, output=output, baseline=baseline, error=error, steps=steps)
        steps *= 2


def sum_by_field(
    values_T: Float[NDArray[np.float64], " T"],
    offsets: Sequence[tuple[int, int]],
    spans: Sequence[tuple[str | None, int, int]],
) -> dict[str | None, float | None]:
    """Sum of the tokens of each field; None for a field whose tokens were all cut off. The report's name is None.

    Args:
        values_T: one value for each token; padding at the end is ignored.
        offsets: token offsets.
        spans: spans from `field_spans`.
    """
    sums: dict[str | None, float | None] = {name: None for name, _, _ in spans}
    current = 0
    # Tokens and spans are both sorted by position: one pass over both.
    for value, (start, end) in zip(values_T, offsets, strict=False):
        if end <= start:
            continue
        while current < len(spans) - 1 and start >= spans[current][2]:
            current += 1
        name = spans[current][0]
        sums[name] = (sums[name] or 0.0) + float(value)
    return sums
