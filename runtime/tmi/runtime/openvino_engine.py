"""OpenVINO on the CPU, from the same ONNX files.

On a CPU with bfloat16 or AMX units OpenVINO would lower the precision by itself; the hint is therefore set to float32
and read back from every compiled graph. Shapes stay dynamic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from tmi.runtime.graph_engine import GraphEngine
from tmi.toolkit.bundle import Bundle
from tmi.toolkit.errors import UnavailableError
from tmi.toolkit.manifest import GraphSpec

DEVICE = "CPU"


class OpenVinoEngine(GraphEngine):
    """The CPU plugin with the latency hint and explicit float32."""

    name = "openvino"

    def __init__(self) -> None:
        super().__init__()
        self._core: Any = None

    def _start(self, bundle: Bundle) -> None:
        self._core = openvino.Core()

    def _load(self, spec: GraphSpec, path: Path) -> Any:
        compiled = self._core.compile_model(
            self._core.read_model(path),
            DEVICE,
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": self.threads,
            },
        )
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if precision != "f32":
            raise UnavailableError(
                f"OpenVINO compiled graph {spec.name} in {precision} although float32 was asked for",
                fix="predict with --engine onnx",
            )
        return compiled

    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        # share_inputs: no copy of the volume. The outputs are copied, because the next call reuses their memory.
        results = loaded(inputs, share_inputs=True, share_outputs=False)
        return {t.name: results[t.name] for t in spec.outputs}

    def close(self) -> None:
        """Free everything; may be called twice."""
        super().close()
        self._core = None
