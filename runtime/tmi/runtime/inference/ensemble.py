"""Numeric pipeline of a prediction: prepared arrays -> encoder features -> fold logits -> probabilities.

B batch, T tokens, F folds (in the order of the manifest), C channels, R = 1781 features, K classes::

    ct_features[b, f]   = output of the CT graph of fold f; a graph that several folds share runs once
    text_features[b, f] = likewise
    logits[b, f]        = fusion(ct_features, text_features, scaled radiomics), as far as the bundle uses them
    p[b, f]             = softmax over K of logits[b, f], in float64
    p[b]                = mean over f; spread = standard deviation over f of the positive class (population, ddof 0)

It reads no case and no file. The parity checks of an export and the predictor both use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import FUSION, GraphSpec, Manifest
from tmi.runtime.engines.registry import Engine
from tmi.runtime.inference.embedding_cache import EmbeddingCache, lookup_rows
from tmi.runtime.inference.token_padding import trim_padding


class TokenIds(Protocol):
    """Input of a text graph: the output of a tokenizer, or golden inputs."""

    @property
    def input_ids_BT(self) -> Int64[NDArray[np.int64], "B T"]:
        """Ids, padded."""

    @property
    def attention_mask_BT(self) -> Int64[NDArray[np.int64], "B T"]:
        """1 for tokens, 0 for padding."""


Features = Mapping[str, NDArray[np.float32]]
"""Name of an encoder's graph -> its output [B, C]."""


@dataclass(frozen=True, kw_only=True)
class EncodedBranch:
    """Outputs of the encoders of one branch for a batch."""

    features: Features
    """Name of an encoder's graph -> its output [B, C]; no entry if the modality is not used."""
    reused_B: tuple[bool, ...]
    """For each row, whether the features of all encoders came from the embedding cache."""


def encoder_graphs(manifest: Manifest, role: str) -> tuple[GraphSpec, ...]:
    """The distinct encoder graphs of all folds in the order of first use; empty if the modality is not used.

    Args:
        manifest: of the bundle.
        role: `ct` or `text`.
    """
    names = dict.fromkeys(fold.ct if role == "ct" else fold.text for fold in manifest.folds)
    return tuple(manifest.graph(name) for name in names if name is not None)


def encode_ct(
    engine: Engine,
    manifest: Manifest,
    ct_B1DHW: Float32[NDArray[np.float32], "B 1 D H W"],
    *,
    cache: EmbeddingCache | None = None,
) -> EncodedBranch:
    """Features of every distinct CT encoder, each run once; `cache` stores them by content."""
    graphs = encoder_graphs(manifest, "ct")
    return _branch({spec.name: _encoded(engine, spec, {"ct": ct_B1DHW}, cache=cache) for spec in graphs})


def encode_text(
    engine: Engine, manifest: Manifest, texts: Mapping[str, TokenIds], *, cache: EmbeddingCache | None = None
) -> EncodedBranch:
    """Features of every distinct text encoder, each run once at the texts' real length.

    Args:
        engine: an open engine.
        manifest: of the bundle that the engine has opened.
        texts: name of a text graph -> its own tokens; each graph has its own tokenizer.
        cache: returns and stores features by content.
    """
    longest = manifest.config.clinical.max_length
    encoded = {}
    for spec in encoder_graphs(manifest, "text"):
        padded = texts[spec.name]
        tokens = trim_padding(padded.input_ids_BT, padded.attention_mask_BT, longest=longest)
        inputs = {"input_ids": tokens.input_ids_BT, "attention_mask": tokens.attention_mask_BT}
        encoded[spec.name] = _encoded(engine, spec, inputs, cache=cache)
    return _branch(encoded)


def fuse(
    engine: Engine,
    manifest: Manifest,
    ct: Features,
    text: Features,
    radiomics_BFR: Float32[NDArray[np.float32], "B F R"],
) -> Float32[NDArray[np.float32], "B F K"]:
    """Logits of every fold."""
    return _single(engine, manifest.graph(FUSION), fusion_inputs(manifest, ct, text, radiomics_BFR))


def fusion_inputs(
    manifest: Manifest, ct: Features, text: Features, radiomics_BFR: Float32[NDArray[np.float32], "B F R"]
) -> dict[str, Float32[NDArray[np.float32], "B F C"]]:
    """Inputs of the fusion graph: encoder features of each fold [B,F,C], and scaled radiomics [B,F,1781] if used."""
    inputs: dict[str, NDArray[np.float32]] = {}
    for name, features, graphs in (
        ("ct_features", ct, [fold.ct for fold in manifest.folds]),
        ("text_features", text, [fold.text for fold in manifest.folds]),
    ):
        # Folds that share an encoder share its features, so the fold axis is built by name.
        rows = [features[graph] for graph in graphs if graph is not None]
        if rows:
            inputs[name] = np.stack(rows, axis=1)
    return inputs | ({"radiomics": radiomics_BFR} if manifest.uses("radiomics") else {})


def run_folds(
    engine: Engine,
    manifest: Manifest,
    *,
    ct_B1DHW: Float32[NDArray[np.float32], "B 1 D H W"],
    texts: Mapping[str, TokenIds],
    radiomics_BFR: Float32[NDArray[np.float32], "B F R"],
) -> Float32[NDArray[np.float32], "B F K"]:
    """Logits of every fold from prepared arrays: encoders, then fusion."""
    ct = encode_ct(engine, manifest, ct_B1DHW).features
    text = encode_text(engine, manifest, texts).features
    return fuse(engine, manifest, ct, text, radiomics_BFR)


def softmax(logits: Float32[NDArray[np.float32], "*N K"]) -> Float64[NDArray[np.float64], "*N K"]:
    """exp(x - max) / sum, over the last axis, in float64."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def probabilities(logits_BFK: Float32[NDArray[np.float32], "B F K"]) -> Float64[NDArray[np.float64], "B K"]:
    """Ensemble probability: the mean over folds of the softmax of each fold."""
    mean: NDArray[np.float64] = softmax(logits_BFK).mean(axis=1)
    return mean


def fold_std(logits_BFK: Float32[NDArray[np.float32], "B F K"], positive: int) -> Float64[NDArray[np.float64], "B"]:
    """Standard deviation over the folds (population) of the positive class's probability; 0 for one fold."""
    deviation: NDArray[np.float64] = softmax(logits_BFK)[:, :, positive].std(axis=1)
    return deviation


def _single(engine: Engine, spec: GraphSpec, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    """The one output of a graph."""
    (output,) = engine.run(spec.name, inputs).values()
    return output


def _encoded(
    engine: Engine, spec: GraphSpec, inputs: Mapping[str, NDArray[np.generic]], *, cache: EmbeddingCache | None
) -> tuple[Float32[NDArray[np.float32], "B C"], list[bool]]:
    """Output of an encoder, and whether each row was cached; only the other rows are computed."""
    if cache is None:
        features_BC = _single(engine, spec, inputs)
        return features_BC, [False] * len(features_BC)
    keys, rows = lookup_rows(cache, spec, inputs)
    missing = [row for row, features in enumerate(rows) if features is None]
    if missing:
        computed_BC = _single(engine, spec, {name: array[missing] for name, array in inputs.items()})
        for row, features_C in zip(missing, computed_BC, strict=True):
            cache.put(keys[row], features_C)
            rows[row] = features_C
    features_BC = np.stack([features for features in rows if features is not None])
    return features_BC, [row not in missing for row in range(len(rows))]


def _branch(encoded: Mapping[str, tuple[NDArray[np.float32], list[bool]]]) -> EncodedBranch:
    """Combine the outputs of the encoders of a branch; a row is reused if it is in every encoder."""
    reused = zip(*(rows for _, rows in encoded.values()), strict=True)
    return EncodedBranch(
        features={name: features_BC for name, (features_BC, _) in encoded.items()},
        reused_B=tuple(all(row) for row in reused),
    )
