"""OpenVINO on the CPU, from the same ONNX files: in float32, and as separate engines in bfloat16 and INT8.

On a CPU with bfloat16 instructions OpenVINO lowers the precision by default. The precision hint is therefore always
set, and read back from every compiled graph. The bfloat16 engine runs the encoders in bfloat16, which take most of the
time; the fusion graph takes a thousandth of it and stays in float32. The INT8 engine runs the quantised graphs of the
bundle, and all that they leave in float32 in float32. Shapes stay dynamic: a text of another length needs no other
graph.

Compiled graphs are stored in the user's cache (`tmi.runtime.engines.compiled_cache`) and memory-mapped. A compiled
graph keeps the activations of its last run. If a bundle has several encoders of one role, their activations are
released after each run, so that only one encoder's activations are in memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import openvino
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import GraphSpec
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.compiled_cache import CompiledCache, MappedFile
from tmi.runtime.engines.graph_engine import GraphEngine
from tmi.runtime.engines.host import cpu_name
from tmi.runtime.engines.memory_file import memory_file
from tmi.runtime.engines.registry import engine_spec
from tmi.toolkit.errors import UnavailableError

DEVICE = "CPU"
PRECISION = "INFERENCE_PRECISION_HINT"
FLOAT32, BFLOAT16 = "f32", "bf16"
"""OpenVINO's names."""
LONG_NAMES = {FLOAT32: "float32", BFLOAT16: "bfloat16"}


@cache
def shared_core() -> Any:
    """The single `openvino.Core` of this process, which is never destroyed.

    Every core installs an alternative signal stack for the thread. Two cores that are not destroyed in reverse order
    leave the thread with a freed stack, and the next signal, for example Ctrl-C, crashes the process.
    """
    return openvino.Core()


@cache
def missing_bfloat16() -> str | None:
    """The requirement for bfloat16 that the processor does not meet, or None.

    The processor must support bfloat16 and OpenVINO must prefer it: where the instructions are emulated, float32 is
    faster.
    """
    core = shared_core()
    supported = "BF16" in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    preferred = core.get_property(DEVICE, PRECISION).get_type_name() == BFLOAT16
    return None if supported and preferred else "this processor has no bfloat16 instructions"


class OpenVinoEngine(GraphEngine):
    """OpenVINO's CPU plugin with the latency hint, one stream, and explicit float32."""

    name = "openvino"
    encoder_precision: ClassVar[str] = FLOAT32
    """Precision of the encoders; the fusion graph is always float32."""

    def __init__(self) -> None:
        super().__init__()
        self._core: Any = None
        self._mapped: dict[str, MappedFile] = {}
        self._cached_blobs: dict[str, Future[MappedFile | None]] = {}
        self._cache = CompiledCache()
        self._keys: dict[str, str] = {}
        self._multi_encoder_roles: set[str] = set()

    def _start(self, bundle: Bundle) -> None:
        self._core = shared_core()
        graphs = bundle.manifest.graphs
        roles = [g.role for g in graphs]
        self._multi_encoder_roles = {role for role in roles if roles.count(role) > 1}
        self._keys = {g.name: key for g in graphs if (key := self._key(bundle, g)) is not None}
        # Reading and hashing release the GIL, so the cached files of all graphs are checked in parallel.
        with ThreadPoolExecutor(max_workers=self.threads) as pool:
            self._cached_blobs = {name: pool.submit(self._cache.open, key) for name, key in self._keys.items()}

    def _key(self, bundle: Bundle, spec: GraphSpec) -> str | None:
        """Everything a compiled graph depends on; None while a bundle is being exported and has no fingerprints yet."""
        file = bundle.manifest.files.get(spec.artefacts.get(engine_spec(self.name).artefact, ""))
        if file is None:
            return None
        return "\n".join(
            ("openvino", openvino.__version__, cpu_name(), str(self.threads), self._precision(spec), file.sha256)
        )

    def _precision(self, spec: GraphSpec) -> str:
        return FLOAT32 if spec.role == "fusion" else self.encoder_precision

    def _settings(self, spec: GraphSpec) -> dict[str, Any]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            PRECISION: self._precision(spec),
        }

    def _load(self, spec: GraphSpec, path: Path, read: Callable[[], bytes]) -> Any:
        compiled = self._from_cache(spec)
        if compiled is None:
            with memory_file(read) as source:
                compiled = self._core.compile_model(self._core.read_model(source), DEVICE, self._settings(spec))
            self._store(spec, compiled)
        expected, actual = self._precision(spec), compiled.get_property(PRECISION).get_type_name()
        if actual != expected:
            raise UnavailableError(
                f"OpenVINO compiled graph {spec.name} in {actual} although {LONG_NAMES[expected]} was requested",
                fix="predict with --engine onnx",
            )
        return compiled

    def _from_cache(self, spec: GraphSpec) -> Any | None:
        future = self._cached_blobs.pop(spec.name, None)
        mapped = None if future is None else future.result()
        if mapped is None:
            return None
        blob = openvino.Tensor(np.frombuffer(mapped.payload, dtype=np.uint8), shared_memory=True)
        try:
            compiled = self._core.import_model(blob, DEVICE, self._settings(spec))
        except RuntimeError:
            # The file is intact, but this OpenVINO cannot import it: compile again.
            return None
        self._mapped[spec.name] = mapped  # the compiled graph reads its weights from the mapping
        return compiled

    def _store(self, spec: GraphSpec, compiled: Any) -> None:
        key = self._keys.get(spec.name)
        if key is not None and self._cache.enabled:
            stream = io.BytesIO()
            compiled.export_model(stream)
            self._cache.put(key, stream.getbuffer())

    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        # share_inputs avoids a copy of the volume. The outputs are copied: the next call reuses their memory.
        results = loaded(inputs, share_inputs=True, share_outputs=False)
        outputs = {t.name: results[t.name] for t in spec.outputs}
        if spec.role in self._multi_encoder_roles:
            loaded.release_memory()
        return outputs

    def close(self) -> None:
        """Free all resources; may be called twice."""
        super().close()
        self._core = None
        self._cached_blobs.clear()
        self._mapped.clear()


class OpenVinoBf16Engine(OpenVinoEngine):
    """OpenVINO with the encoders in bfloat16; needs a processor with bfloat16 instructions."""

    name = "openvino-bf16"
    encoder_precision = BFLOAT16


class OpenVinoInt8Engine(OpenVinoEngine):
    """OpenVINO on the quantised encoders of the bundle; their float32 layers stay in float32."""

    name = "openvino-int8"
