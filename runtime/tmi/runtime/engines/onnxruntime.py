"""ONNX Runtime on the CPU.

Its memory arena keeps what a run took and, with axes of free size, takes more with every run: at the paper's size the
CT encoders grew by 2 GiB a case. The arena of an encoder is therefore given back after each run, which costs no time
that can be measured there.
"""

from __future__ import annotations

from collections.abc import Iterator
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

ERRORS_ONLY = 3


class OnnxEngine(GraphEngine):
    """`CPUExecutionProvider` alone, float32; one session a graph."""

    name = "onnx"

    def __init__(self) -> None:
        super().__init__()
        self._shrink_options = onnxruntime.RunOptions()
        self._shrink_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def _start(self, bundle: Bundle) -> None:
        onnxruntime.set_default_logger_severity(ERRORS_ONLY)

    def _load(self, spec: GraphSpec, path: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # The graphs run one after another: the threads of one session must not spin while the next one computes.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        with as_runtime_errors():
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        names = [t.name for t in spec.outputs]
        # the fusion graph is small, and quicker than giving its memory back
        options = None if spec.role == "fusion" else self._shrink_options
        with as_runtime_errors():
            return dict(zip(names, loaded.run(names, inputs, options), strict=True))


@contextmanager
def as_runtime_errors() -> Iterator[None]:
    """ONNX Runtime's own exceptions share no class but `Exception`; what a caller can name is `RuntimeError`."""
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
