"""Parity: does an engine answer like the eager model that was validated? Bounds, comparisons, and the gates. numpy only.

B cases, F folds, K classes, C channels of a feature. Every comparison is relative to the size of what is compared:

    error(a, r) = max over rows b of  max |a_b - r_b| / max(max |r_b|, max |r| / 16)

so that a case with weak features is not hidden behind one with strong features. The same gates judge an artefact when it is
exported and when a bundle is verified; `docs/parity.md` says what each gate catches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.engine import Arrays, Engine, engine_spec
from tmi.runtime.ensemble import probabilities, run_folds
from tmi.toolkit.golden import GoldenInputs, GoldenText, extreme_case, join
from tmi.toolkit.manifest import GateRecord, Manifest

if TYPE_CHECKING:
    from jaxtyping import Float32

PIPELINE = "pipeline"
"""Graph name of a record that judges all graphs together."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the figures of one precision must not exceed."""

    relative: float
    """Bound on `relative_error` of features and logits, against eager and between two batches of one engine."""


BOUNDS: Mapping[str, Bounds] = MappingProxyType({"float32": Bounds(relative=2.0**-14)})
"""Precision -> bounds, declared here and nowhere else.

float32 rounds to 2^-24, so 2^-14 leaves room for a thousand roundings in a row; what was measured stays below a thirtieth of it.
TF32 and float16 round to 2^-11, bfloat16 to 2^-8: a graph that silently ran in one of them cannot pass for float32.
"""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the pipeline answers: by an engine, or by the eager reference."""

    features: Mapping[str, NDArray[np.float32]]
    """Encoder graph name -> features [B,C]."""
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

    def tensors(self, manifest: Manifest) -> dict[str, NDArray[np.float32]]:
        """Named arrays for `golden.safetensors`: features, logits, and the ensemble's probabilities."""
        return {
            **{f"{name}.features": f for name, f in self.features.items()},
            "logits": self.logits_BFK,
            "probabilities": probabilities(self.logits_BFK).astype(np.float32),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.float32]]) -> Outputs:
        """What `tensors` gave."""
        ending = ".features"
        return cls(
            features={n.removesuffix(ending): t for n, t in tensors.items() if n.endswith(ending)},
            logits_BFK=tensors["logits"],
        )


class RecordingEngine:
    """Passes every call on to an engine and keeps what each graph answered, so that one run judges all graphs."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self._engine = engine
        self.seen: dict[str, list[NDArray[np.float32]]] = {}

    def run(self, graph: str, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """The engine's answer, kept."""
        outputs = self._engine.run(graph, inputs)
        self.seen.setdefault(graph, []).extend(outputs.values())
        return outputs
