"""The one contract of every engine, and the import-free table of engines.

An engine opens a bundle's graphs, runs one by name, and closes. It knows nothing of cases, folds or files beyond the
bundle it was given; `tmi.runtime.serving.predictor` does.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.nvidia_driver import require_gpu
from tmi.toolkit.errors import UnavailableError, UsageError

Arrays = Mapping[str, NDArray[np.generic]]


class Engine(Protocol):
    """Runs a bundle's graphs. Use as a context manager: leaving the block closes it.

    `run` takes every input of the graph by name, in the manifest's dtypes and shapes, and returns every output by name
    as float32. The batch may be of any size from 1.
    """

    name: str
    """Name in `ENGINES`."""

    @property
    def copied_seconds(self) -> float | None:
        """Seconds of all runs so far that passed with nothing but copying to and from a device; None: there is none."""

    def open(self, bundle: Bundle, *, threads: int | None) -> None:
        """Load every graph; `threads=None` takes all cores.

        Raises:
            UnavailableError: the bundle holds no artefact for this engine, or its package is missing.
        """

    def run(self, graph: str, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Outputs of one graph by name."""

    def close(self) -> None:
        """Free everything; may be called twice."""

    def __enter__(self) -> Self:
        """The engine itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One row of the engine table."""

    target: str | None
    """`module:Class`, imported when the engine is opened; None: an emulator, which the export alone can open."""
    artefact: str
    """Artefact kind of the bundle it runs."""
    package: str
    """Import name of the package it needs."""
    extra: str | None
    """Extra that installs it; None: the base install."""
    max_abs_err: float
    """Declared bound on |probability - eager float32 probability| for any case."""
    gpu: bool = False
    """Whether it needs an NVIDIA GPU with its driver."""
    precision: str = "float32"
    """Number format that it computes in; a plan's is the bundle's to say (`tmi.runtime.engines.precision`)."""
    optional: bool = False
    """Whether its gates decide about itself alone: where they fail the bundle stands, and `auto` takes the next one."""
    requirement_check: str | None = None
    """`module:function` that says what this machine lacks for it, or None; None: its package is all it needs."""


FLOAT16_MAX_ABS_ERR = 5e-3
"""Declared error of engines that may compute in FP16."""
BFLOAT16_MAX_ABS_ERR = 1e-2
"""Declared error of engines that compute in bfloat16, whose rounding is eight times FP16's."""

ENGINES: Mapping[str, EngineSpec] = MappingProxyType(
    {
        "trt": EngineSpec(
            target="tmi.runtime.engines.tensorrt:TrtEngine",
            artefact="trt",
            package="tensorrt",
            extra="trt",
            max_abs_err=FLOAT16_MAX_ABS_ERR,
            gpu=True,
        ),
        "trt-rtx": EngineSpec(
            target="tmi.runtime.engines.tensorrt:TrtRtxEngine",
            artefact="trt-rtx",
            package="tensorrt_rtx",
            extra="trt-rtx",
            max_abs_err=FLOAT16_MAX_ABS_ERR,
            gpu=True,
        ),
        "torch-trt": EngineSpec(
            target="tmi.runtime.engines.tensorrt:TorchTrtEngine",
            artefact="torch-trt",
            package="tensorrt",
            extra="trt",
            max_abs_err=FLOAT16_MAX_ABS_ERR,
            gpu=True,
        ),
        "openvino-bf16": EngineSpec(
            target="tmi.runtime.engines.openvino:OpenVinoBf16Engine",
            artefact="onnx",
            package="openvino",
            extra="openvino",
            max_abs_err=BFLOAT16_MAX_ABS_ERR,
            precision="bfloat16",
            optional=True,
            requirement_check="tmi.runtime.engines.openvino:missing_bfloat16",
        ),
        "openvino": EngineSpec(
            target="tmi.runtime.engines.openvino:OpenVinoEngine",
            artefact="onnx",
            package="openvino",
            extra="openvino",
            max_abs_err=1e-4,
        ),
        "onnx": EngineSpec(
            target="tmi.runtime.engines.onnxruntime:OnnxEngine",
            artefact="onnx",
            package="onnxruntime",
            extra=None,
            max_abs_err=1e-4,
        ),
        "torchscript": EngineSpec(
            target="tmi.runtime.engines.torchscript:TorchScriptEngine",
            artefact="torchscript",
            package="torch",
            extra="torch",
            max_abs_err=1e-4,
        ),
        "eager": EngineSpec(
            target="tmi.runtime.engines.eager:EagerEngine",
            artefact="weights",
            package="torch",
            extra="torch",
            max_abs_err=0.0,
        ),
    }
)
"""Engine name -> where it is. The order is the order of preference of `auto`."""

EMULATORS: Mapping[str, EngineSpec] = MappingProxyType(
    {
        "fp16-emulation": EngineSpec(
            target=None,
            artefact="onnx-typed",
            package="onnx",
            extra="export",
            max_abs_err=FLOAT16_MAX_ABS_ERR,
        ),
    }
)
"""Engines that judge graphs and are never chosen to answer."""


def engine_spec(name: str) -> EngineSpec:
    """The table's row.

    Raises:
        UsageError: no such engine; the text lists the known ones.
    """
    if name in EMULATORS:
        return EMULATORS[name]
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}", fix=f"choose one of {', '.join(ENGINES)}")
    return ENGINES[name]


def installed(name: str) -> bool:
    """Whether the engine's package can be found, without importing it."""
    return importlib.util.find_spec(engine_spec(name).package) is not None


def missing_requirement(name: str) -> str | None:
    """What this machine's processor lacks for an installed engine, in a few words; None where it lacks nothing."""
    spec = engine_spec(name)
    if spec.requirement_check is None:
        return None
    module, _, function = spec.requirement_check.partition(":")
    said: str | None = getattr(importlib.import_module(module), function)()
    return said


def open_engine(name: str, bundle: Bundle, *, threads: int | None = None) -> Engine:
    """A named engine, opened on a bundle.

    Raises:
        UsageError: no such engine.
        UnavailableError: its package, its GPU or what its processor must have is missing, or the bundle has no
            artefact for it.
    """
    spec = engine_spec(name)
    if spec.target is None:
        raise UsageError(
            f"{name} emulates an engine to check graphs at an export; it cannot predict",
            fix=f"choose one of {', '.join(ENGINES)}",
        )
    if not installed(name):
        raise UnavailableError(
            f"engine {name} needs the package {spec.package}, which is not installed",
            fix=f"pip install 'tmi-clnet[{spec.extra}]'" if spec.extra else "reinstall tmi-clnet",
        )
    if not bundle.has(spec.artefact):
        raise UnavailableError(
            f"bundle {bundle.folder} holds no {spec.artefact} graphs, which engine {name} runs",
            fix=f"export it with --engine {spec.artefact}, or choose another engine",
        )
    if spec.gpu:
        require_gpu(f"engine {name}")
    lack = missing_requirement(name)
    if lack is not None:
        raise UnavailableError(f"engine {name} cannot run here: {lack}", fix="take --engine auto, or another engine")
    module, _, attribute = spec.target.partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)()
    engine.open(bundle, threads=threads)
    return engine
