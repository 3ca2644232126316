"""ONNX Runtime on the CPU.

ONNX Runtime's memory arena keeps the memory of a run and, with dynamic axes, grows with every run: with the full-size
preset the CT encoders grew by 2 GiB a case. The arena of an encoder is therefore shrunk after each run, at no
measurable cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tmi.runtime.bundle.manifest import GraphSpec
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.graph_engine import GraphEngine
from tmi.runtime.engines.memory_file import memory_file

ERRORS_ONLY = 3
"""ONNX Runtime's log severity for errors."""


class OnnxEngine(GraphEngine):
    """`CPUExecutionProvider` only, float32; one session for each graph."""

    name = "onnx"

    def __init__(self) -> None:
        super().__init__()
        self._shrink_options = onnxruntime.RunOptions()
        self._shrink_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def _start(self, bundle: Bundle) -> None:
        onnxruntime.set_default_logger_severity(ERRORS_ONLY)

    def _load(self, spec: GraphSpec, path: Path, read: Callable[[], bytes]) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Graphs run one after another: idle threads of one session must not spin while another session computes.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        with as_runtime_errors(), memory_file(read) as source:
            return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        names = [t.name for t in spec.outputs]
        # The fusion graph is small; shrinking its arena would take longer than running it.
        options = None if spec.role == "fusion" else self._shrink_options
        with as_runtime_errors():
            return dict(zip(names, loaded.run(names, inputs, options), strict=True))


@contextmanager
def as_runtime_errors() -> Iterator[None]:
    """Convert ONNX Runtime's exceptions, whose only common base is `Exception`, to `RuntimeError`."""
    try:
        yield
    except (
        state.EPFail,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
        state.RuntimeException,
    ) as error:
        raise RuntimeError(str(error)) from error
