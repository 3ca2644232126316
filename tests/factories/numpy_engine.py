"""A manifest of a few small graphs and an engine that computes them in numpy and records its calls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tmi.runtime.bundle.manifest import FoldSpec, GraphSpec, Manifest, TensorSpec
from tmi.runtime.bundle.manifest_records import ClinicalSpec, GoldenRecord, RunRecord
from tmi.runtime.engines.registry import Arrays
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.config.schema import MODALITIES

C = 3


def tensor(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def make_manifest(folds: Sequence[tuple[str, str]]) -> Manifest:
    """A manifest without files; `folds` has the names of the CT and text graph of each fold."""
    config = tiny()
    ct = [
        GraphSpec(
            name=name,
            role="ct",
            inputs=(tensor("ct", "float32", "B", 1, *config.ct.shape_DHW),),
            outputs=(tensor("ct_features", "float32", "B", C),),
            artefacts={},
        )
        for name in sorted({ct for ct, _ in folds})
    ]
    text = [
        GraphSpec(
            name=name,
            role="text",
            inputs=(tensor("input_ids", "int64", "B", "T"), tensor("attention_mask", "int64", "B", "T")),
            outputs=(tensor("text_features", "float32", "B", C),),
            artefacts={},
            tokenizer=f"tokenizers/{name}.json",
        )
        for name in sorted({text for _, text in folds})
    ]
    count = len(folds)
    fusion = GraphSpec(
        name="fusion",
        role="fusion",
        inputs=(
            tensor("ct_features", "float32", "B", count, C),
            tensor("text_features", "float32", "B", count, C),
            tensor("radiomics", "float32", "B", count, 1781),
        ),
        outputs=(tensor("logits", "float32", "B", count, 2),),
        artefacts={},
    )
    return Manifest(
        preset="tiny",
        config=config,
        graphs=(*ct, *text, fusion),
        folds=tuple(FoldSpec(fold=i, ct=c, text=t, scaler=f"scalers/fold{i}.json") for i, (c, t) in enumerate(folds)),
        clinical=ClinicalSpec(schema="clinical_schema.json", rendering="values", rendering_version=1),
        files={},
        golden=GoldenRecord(seed=0, count=2, vocabularies={}, digests={}),
        parity=(),
        versions={},
        run=RunRecord(name="run"),
        created="2026-01-01T00:00:00+00:00",
        modalities=MODALITIES,
    )


class NumpyEngine:
    """ct-<n>: mean * (n + 1); text-<n>: sum of the attended ids * (n + 1); fusion: logits (ct, text + radiomics)."""

    name = "numpy"
    copied_seconds: float | None = None

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def run(self, graph: str, inputs: Arrays) -> dict[str, np.ndarray]:
        first = next(iter(inputs.values()))
        self.calls.append((graph, first.shape[0]))
        role, _, number = graph.partition("-")
        if role == "fusion":
            ct, text, radiomics = (inputs[n] for n in ("ct_features", "text_features", "radiomics"))
            logits = np.stack([ct[..., 0], text[..., 0] + radiomics.sum(axis=-1)], axis=-1)
            return {"logits": logits.astype(np.float32)}
        values = first.mean(axis=(1, 2, 3, 4)) if role == "ct" else (first * inputs["attention_mask"]).sum(axis=1)
        column = (values * (int(number) + 1)).astype(np.float32)
        return {f"{role}_features": np.repeat(column[:, None], C, axis=1)}
