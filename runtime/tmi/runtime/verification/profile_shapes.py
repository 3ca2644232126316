"""Checks at the limits of a TensorRT plan's optimisation profiles: the smallest and largest shapes it accepts.

TensorRT selects kernels for a range of shapes. An error at the end of the range does not show for shapes inside it. B
cases, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.engines.registry import Engine
from tmi.runtime.inference.ensemble import TokenIds, encoder_graphs
from tmi.runtime.verification.golden_inputs import GoldenInputs, GoldenText, padded


def largest_profile(engine: str, manifest: Manifest) -> int | None:
    """Largest batch size for which an engine's plans were built; None for an engine without plans."""
    plans = None if manifest.tensorrt is None else manifest.tensorrt.plans.get(engine)
    if plans is None:
        return None
    # A profile lists the smallest, optimal and largest shape of each input; axis 0 is the batch.
    return max(
        (shapes[-1][0] for plan in plans.graphs.values() for profile in plan.profiles for shapes in profile.values()),
        default=None,
    )


def text_length_checks(
    engine: Engine, manifest: Manifest, golden: GoldenInputs, batch: int
) -> Iterator[tuple[str, str, Any, Any]]:
    """Run texts of one token and of maximum length, each alone and in the largest batch.

    Args:
        engine: an engine that has the bundle open.
        manifest: manifest of the bundle.
        golden: golden inputs whose tokens are used.
        batch: largest batch size.

    Yields:
        Description, graph name, features of the first case in the batch [1,C], and its features alone [1,C].
    """
    if not golden.texts:
        return
    longest = manifest.config.clinical.max_length
    rows = [row % golden.count for row in range(batch)]
    for length, texts in ((1, _first_token(golden)), (longest, padded(golden, longest))):
        batched = text_features(engine, manifest, texts.rows(rows).texts)
        alone = text_features(engine, manifest, texts.rows([0]).texts)
        for graph, features in batched.items():
            yield (
                f"a batch of {batch} texts of {length} tokens, against the first one alone",
                graph,
                features[:1],
                alone[graph],
            )


def text_features(engine: Engine, manifest: Manifest, texts: Mapping[str, TokenIds]) -> dict[str, NDArray[np.float32]]:
    """Features [B,C] of every distinct text encoder, with the texts at their given width.

    Predictions trim the padding; these checks must not, because the width is what they vary.
    """
    features = {}
    for spec in encoder_graphs(manifest, "text"):
        tokens = texts[spec.name]
        inputs = {"input_ids": tokens.input_ids_BT, "attention_mask": tokens.attention_mask_BT}
        (features[spec.name],) = engine.run(spec.name, inputs).values()
    return features


def _first_token(golden: GoldenInputs) -> GoldenInputs:
    texts = {
        name: GoldenText(input_ids_BT=t.input_ids_BT[:, :1], attention_mask_BT=t.attention_mask_BT[:, :1])
        for name, t in golden.texts.items()
    }
    return GoldenInputs(seed=golden.seed, ct_B1DHW=golden.ct_B1DHW, texts=texts, radiomics_BFR=golden.radiomics_BFR)
