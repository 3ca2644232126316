"""Outputs of the complete pipeline: features of every encoder and logits of every fold, from an engine or a reference.

B cases, F folds, K classes, C channels of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.registry import Arrays, Engine
from tmi.runtime.inference.ensemble import probabilities, run_folds
from tmi.runtime.verification.golden_inputs import GoldenInputs

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64

FLOAT64_PREFIX = "float64."
"""Prefix of the float64 reference in `golden.safetensors`."""
PIPELINE = "pipeline"
"""Graph name of a check that covers all graphs together."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Outputs of the pipeline, computed by an engine or by the eager reference."""

    features: Mapping[str, NDArray[np.float32]]
    """Name of an encoder's graph -> features [B,C]."""
    logits_BFK: Float32[NDArray[np.float32], "B F K"]
    """Logits of every fold."""

    def rows(self, index: list[int]) -> Outputs:
        """The cases of `index`, in that order."""
        return Outputs(
            features={name: f[index] for name, f in self.features.items()}, logits_BFK=self.logits_BFK[index]
        )

    def by_graph(self) -> dict[str, NDArray[np.float32]]:
        """Features by encoder graph, and the logits as `pipeline`."""
        return {**self.features, PIPELINE: self.logits_BFK}

    @property
    def probabilities_BK(self) -> Float64[NDArray[np.float64], "B K"]:
        """Probabilities of the ensemble: mean over folds of the softmax."""
        return probabilities(self.logits_BFK)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Named arrays for `golden.safetensors`: features by graph, logits, probabilities of the ensemble."""
        return {
            **{f"{name}.features": f for name, f in self.features.items()},
            "logits": self.logits_BFK,
            "probabilities": self.probabilities_BK.astype(np.float32),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.float32]], *, prefix: str = "") -> Outputs:
        """Inverse of `tensors`.

        Args:
            tensors: named arrays.
            prefix: only names with this prefix are used; without one, those of the float64 reference are left out.
        """
        ending = ".features"
        named = {
            n: t for n, t in tensors.items() if n.startswith(prefix) and (prefix or not n.startswith(FLOAT64_PREFIX))
        }
        arrays = {name.removeprefix(prefix): t for name, t in named.items()}
        # Sorted, because safetensors gives tensors that it reads from bytes in another order in every process.
        features = {name.removesuffix(ending): t for name, t in sorted(arrays.items()) if name.endswith(ending)}
        return cls(features=features, logits_BFK=arrays["logits"])


class RecordingEngine:
    """Wraps an engine and records the outputs of each graph, so that one run of the pipeline checks every graph."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self._engine = engine
        self.recorded: dict[str, list[NDArray[np.float32]]] = {}

    @property
    def copied_seconds(self) -> float | None:
        """Copy seconds of the wrapped engine."""
        return self._engine.copied_seconds

    def open(self, bundle: Bundle, *, threads: int | None) -> None:
        """Open the wrapped engine."""
        self._engine.open(bundle, threads=threads)

    def run(self, graph: str, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Run a graph and record its outputs."""
        outputs = self._engine.run(graph, inputs)
        self.recorded.setdefault(graph, []).extend(outputs.values())
        return outputs

    def close(self) -> None:
        """Close the wrapped engine."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def evaluate(engine: Engine, manifest: Manifest, golden: GoldenInputs) -> Outputs:
    """Run one batch through the pipeline of predictions and record the encoders' features.

    Args:
        engine: an engine that has the bundle of `manifest` open.
        manifest: manifest of the bundle.
        golden: inputs of the batch.

    Raises:
        RuntimeError: a graph cannot run this batch.
        ValueError: a graph returns another shape or type than the manifest states.
    """
    recorder = RecordingEngine(engine)
    logits_BFK = run_folds(
        recorder, manifest, ct_B1DHW=golden.ct_B1DHW, texts=golden.texts, radiomics_BFR=golden.radiomics_BFR
    )
    encoders = {name for fold in manifest.folds for name in (fold.ct, fold.text)} - {None}
    # An encoder that several folds share runs once, so the recorded calls hold each row of the batch once.
    features = {name: np.concatenate(parts) for name, parts in recorder.recorded.items() if name in encoders}
    return Outputs(features=features, logits_BFK=logits_BFK)
