"""ONNX Runtime on the CPU, and on an NVIDIA GPU.

ONNX Runtime's memory arena keeps the memory of a run and, with dynamic axes, grows with every run: with the full-size
preset the CT encoders grew by 2 GiB a case. The arena of an encoder is therefore shrunk after each run, at no
measurable cost.

`onnx-cuda` computes in full float32: the CUDA provider's default is TF32, with 10 bits of mantissa instead of 23.
`onnx-cuda-fp16` runs the typed graphs that TensorRT plans are built from, which hold the precision of every node; it
needs no TensorRT. The provider comes with the distribution `onnxruntime-gpu`, which replaces `onnxruntime` under the
same import name. ONNX Runtime silently falls back to the CPU if it cannot load the provider's libraries; these engines
raise an error instead.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tmi.runtime.bundle.manifest import GraphSpec
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.graph_engine import GraphEngine
from tmi.runtime.engines.memory_file import memory_file
from tmi.runtime.engines.precision import TF32, graph_precisions
from tmi.toolkit.errors import UnavailableError

ERRORS_ONLY = 3
"""ONNX Runtime's log severity for errors."""
FATAL_ONLY = 4
"""ONNX Runtime's log severity for errors that end the process."""
CUDA_PROVIDER = "CUDAExecutionProvider"
CUDA_FIX = (
    "pip uninstall onnxruntime, then pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]' (both have one import "
    "name), and check that `nvidia-smi` shows a driver for its CUDA version; or choose --engine onnx"
)


class OnnxEngine(GraphEngine):
    """`CPUExecutionProvider` only, float32; one session for each graph."""

    name: ClassVar[str] = "onnx"

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


class OnnxInt8Engine(OnnxEngine):
    """`CPUExecutionProvider` on the quantised encoders of the bundle."""

    name: ClassVar[str] = "onnx-int8"


def missing_cuda_provider() -> str | None:
    """The requirement of the CUDA engines that the installed ONNX Runtime does not meet, or None."""
    if CUDA_PROVIDER in onnxruntime.get_available_providers():
        return None
    return "this onnxruntime has no CUDA provider (onnxruntime-gpu has)"


class OnnxCudaEngine(GraphEngine):
    """`CUDAExecutionProvider` in float32 without TF32; one session for each graph."""

    name: ClassVar[str] = "onnx-cuda"

    def __init__(self) -> None:
        super().__init__()
        self._tf32: dict[str, bool] = {}
        """Graph -> whether its typed graph was validated in TF32."""

    def _start(self, bundle: Bundle) -> None:
        # With float16, cuDNN logs an error for every kernel that it tries in vain before it finds one.
        onnxruntime.set_default_logger_severity(FATAL_ONLY)
        # It prints which libraries it did not find; the check of the provider below raises an error for that.
        with redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()

    def _load(self, spec: GraphSpec, path: Path, read: Callable[[], bytes]) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        provider = {
            "device_id": "0",
            "use_tf32": "1" if self._tf32.get(spec.name, False) else "0",
            # The default, EXHAUSTIVE, times every algorithm at each new shape, and processes choose differently.
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
        }
        with as_runtime_errors(), memory_file(read) as source:
            session = onnxruntime.InferenceSession(
                source,
                options,
                providers=[(CUDA_PROVIDER, provider), "CPUExecutionProvider"],
                # This pass can crash on convolutions in float16.
                disabled_optimizers=["NchwcTransformer"],
            )
        session.disable_fallback()
        if session.get_providers()[0] != CUDA_PROVIDER:
            raise UnavailableError(
                f"engine {self.name}: ONNX Runtime cannot use its CUDA provider: its CUDA or cuDNN libraries are "
                "missing or do not match the driver",
                fix=CUDA_FIX,
            )
        return session

    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        names = [t.name for t in spec.outputs]
        with as_runtime_errors():
            return dict(zip(names, loaded.run(names, inputs), strict=True))


class OnnxCudaFp16Engine(OnnxCudaEngine):
    """`CUDAExecutionProvider` on the typed graphs, in the precision that the manifest records for each graph."""

    name: ClassVar[str] = "onnx-cuda-fp16"

    def _start(self, bundle: Bundle) -> None:
        super()._start(bundle)
        self._tf32 = {name: precision == TF32 for name, precision in graph_precisions(bundle.manifest).items()}


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
