"""TorchScript on the CPU, and on an NVIDIA GPU. Imports torch; the torch-free engines never import this module.

The files are not frozen, so that their weights can be audited. On a CPU the CT encoders are frozen on loading: their
batch norms are folded into the convolutions, which saves a fifth of the time. Freezing the text encoder saves nothing.
On a GPU nothing is frozen: freezing fuses convolution and ReLU into an operator of cuDNN with settings of its own. A
trace holds the permission to use TF32 in every convolution. Graphs of earlier exports permit it, and the parity checks
reject them on a GPU.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import GraphSpec
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.graph_engine import GraphEngine
from tmi.runtime.engines.torch_cuda import DEVICE, full_float32
from tmi.runtime.engines.torch_threads import ThreadCount
from tmi.toolkit.compute.silence import Ignored, quiet


class TorchScriptEngine(GraphEngine):
    """`torch.jit.load` in inference mode, float32.

    torch has one thread count for the whole process; closing the last engine restores it.
    """

    name: ClassVar[str] = "torchscript"
    device: ClassVar[str] = "cpu"
    """torch's name of the device."""

    def __init__(self) -> None:
        super().__init__()
        self._thread_count: ThreadCount | None = None

    def _start(self, bundle: Bundle) -> None:
        self._thread_count = ThreadCount(self.threads)

    def _load(self, spec: GraphSpec, path: Path, read: Callable[[], bytes]) -> Any:
        # TorchScript is deprecated in favour of torch.export; the constraints pin a torch version that still loads it.
        with quiet([Ignored(r".*torch\.jit\.(load|freeze).*", DeprecationWarning)]):
            module = torch.jit.load(io.BytesIO(read()), map_location=self.device).eval()  # type: ignore[no-untyped-call]
            return torch.jit.freeze(module) if spec.role == "ct" and self.device == "cpu" else module

    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            output = loaded(*(torch.from_numpy(array).to(self.device) for array in inputs.values()))
        tensors = (output,) if isinstance(output, torch.Tensor) else tuple(output)
        return {t.name: tensor.cpu().numpy() for t, tensor in zip(spec.outputs, tensors, strict=True)}

    def close(self) -> None:
        """Free all resources; may be called twice."""
        super().close()
        if self._thread_count is not None:
            self._thread_count.release()


class TorchScriptCudaEngine(TorchScriptEngine):
    """TorchScript on the first NVIDIA GPU, in float32 without TF32."""

    name: ClassVar[str] = "torchscript-cuda"
    device: ClassVar[str] = DEVICE

    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        with full_float32():
            return super()._run(spec, loaded, inputs)
