"""Reference engine: the network itself, built from the manifest's config and the bundle's weights, in eager float32.

Parity checks compare every other engine with it; one of them is `eager-cuda`, the same network on an NVIDIA GPU.
Imports torch; the torch-free engines never import this module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as parse_tensors

from tmi.runtime.bundle.manifest import GraphSpec, Role
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.graph_engine import GraphEngine
from tmi.runtime.engines.torch_cuda import DEVICE, full_float32
from tmi.runtime.engines.torch_threads import ThreadCount
from tmi.toolkit.config.schema import Config
from tmi.toolkit.errors import DamagedError


class EagerEngine(GraphEngine):
    """Encoders and the fusion of every fold as `nn.Module`s in evaluation mode.

    torch has one thread count for the whole process; closing the last engine restores it.
    """

    name: ClassVar[str] = "eager"
    device: ClassVar[str] = "cpu"
    """torch's name of the device."""

    def __init__(self) -> None:
        super().__init__()
        self._thread_count: ThreadCount | None = None
        self._config: Config | None = None
        self._folds = 0

    def _start(self, bundle: Bundle) -> None:
        self._config = bundle.manifest.config
        self._folds = len(bundle.manifest.folds)
        self._thread_count = ThreadCount(self.threads)

    def _load(self, spec: GraphSpec, path: Path, read: Callable[[], bytes]) -> Any:
        weights = parse_tensors(read())
        if spec.role != "fusion":
            return self._load_part(spec.role, weights, path).to(self.device)
        prefixes = [f"fold{fold}." for fold in range(self._folds)]
        unknown = sorted(key for key in weights if not key.startswith(tuple(prefixes)))
        if unknown:
            raise DamagedError(f"bundle: {path.name} holds the unknown weight {unknown[0]}", fix="export it again")
        fusions = (self._load_part("fusion", _without_prefix(weights, prefix), path) for prefix in prefixes)
        return [fusion.to(self.device) for fusion in fusions]

    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            tensors = [torch.from_numpy(array).to(self.device) for array in inputs.values()]
            if spec.role == "fusion":
                # Each fold reads its own slice [B, C] of every input [B, F, C]; logits are stacked to [B, F, K].
                output = torch.stack(
                    [fusion(*(t[:, fold] for t in tensors))[0] for fold, fusion in enumerate(loaded)], dim=1
                )
            else:
                output = loaded(*tensors)
        return {spec.outputs[0].name: output.cpu().numpy()}

    def module(self, graph: str) -> Any:
        """Module of an encoder graph, or the list of the folds' modules of the fusion graph."""
        return self._loaded[graph]

    def _load_part(self, role: Role, weights: dict[str, torch.Tensor], path: Path) -> torch.nn.Module:
        """A network part with exactly these weights, in evaluation mode; torch's random state is unchanged."""
        from tmi.toolkit.models.factory import create_network_part
        from tmi.toolkit.models.weights import create_with_weights

        assert self._config is not None
        return create_with_weights(
            partial(create_network_part, self._config, role),
            weights,
            where=f"bundle: the weights in {path.name}",
            fix="export the bundle again with the version of tmi that trained it",
        )

    def close(self) -> None:
        """Free all resources; may be called twice."""
        super().close()
        if self._thread_count is not None:
            self._thread_count.release()


class EagerCudaEngine(EagerEngine):
    """The eager network on the first NVIDIA GPU, in float32 without TF32."""

    name: ClassVar[str] = "eager-cuda"
    device: ClassVar[str] = DEVICE

    def _run(self, spec: GraphSpec, loaded: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        with full_float32():
            return super()._run(spec, loaded, inputs)


def _without_prefix(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
