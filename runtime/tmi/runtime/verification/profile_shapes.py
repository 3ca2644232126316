"""The edges of a plan's optimisation profiles, asked of the engine: the smallest and largest shapes that it may get.

TensorRT chooses kernels for a range of shapes, and what is wrong at its end is not seen in between. B cases, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.engines.precision import TENSORRT
from tmi.runtime.engines.registry import Engine
from tmi.runtime.inference.ensemble import TokenIds, encoder_graphs
from tmi.runtime.verification.golden_inputs import GoldenInputs, GoldenText, padded


def largest_profile(engine: str, manifest: Manifest) -> int | None:
    """The largest batch that an engine's plans were built for; None for an engine that runs no plans."""
    plans: Mapping[str, Any] = manifest.extra.get(TENSORRT, {}).get("plans", {}).get(engine, {}).get("graphs", {})
    return max(
        (shapes[-1][0] for plan in plans.values() for profile in plan["profiles"] for shapes in profile.values()),
        default=None,
    )


def text_length_checks(
    engine: Engine, manifest: Manifest, golden: GoldenInputs, batch: int
) -> Iterator[tuple[str, str, Any, Any]]:
    """Texts of one token and of the longest length, alone and in the largest batch.

    Args:
        engine: open.
        manifest: of its bundle.
        golden: gives the tokens.
        batch: the largest.

    Yields:
        A sentence, the graph, the first case's features in the batch [1,C], and alone [1,C].
    """
    if not golden.texts:
        return
    longest = manifest.parsed_config().clinical.max_length
    rows = [row % golden.count for row in range(batch)]
    for length, texts in ((1, _first_token(golden)), (longest, padded(golden, longest))):
        many = text_features(engine, manifest, texts.rows(rows).texts)
        alone = text_features(engine, manifest, texts.rows([0]).texts)
        for graph, features in many.items():
            yield (
                f"a batch of {batch} texts of {length} tokens, against one of them alone",
                graph,
                features[:1],
                alone[graph],
            )


def text_features(engine: Engine, manifest: Manifest, texts: Mapping[str, TokenIds]) -> dict[str, NDArray[np.float32]]:
    """Features of every distinct text encoder at the width that its texts have: predictions would cut the padding."""
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
