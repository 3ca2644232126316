"""Interface of the engines, and an import-free table of them.

An engine opens the graphs of a bundle, runs one graph by name, and closes. Cases and folds are handled by
`tmi.runtime.serving.predictor`.
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
from tmi.runtime.engines.nvidia_driver import find_gpu, require_gpu
from tmi.toolkit.errors import UnavailableError, UsageError

Arrays = Mapping[str, NDArray[np.generic]]


class Engine(Protocol):
    """Runs the graphs of a bundle. Use it as a context manager, which closes it.

    `run` takes all inputs of the graph by name, with the manifest's dtypes and shapes, and returns all outputs by name
    as float32. The batch size is at least 1 and otherwise free.
    """

    name: str
    """Name in `ENGINES`."""

    @property
    def copied_seconds(self) -> float | None:
        """Seconds of all runs so far spent only on copies to and from a device; None without a device."""

    def open(self, bundle: Bundle, *, threads: int | None) -> None:
        """Load every graph; `threads=None` uses all cores.

        Raises:
            UnavailableError: the bundle has no artefact for this engine, or its package is missing.
        """

    def run(self, graph: str, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Run one graph; returns its outputs by name."""

    def close(self) -> None:
        """Free all resources; may be called twice."""

    def __enter__(self) -> Self:
        """Return the engine."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One row of the engine table."""

    target: str | None
    """`module:Class`, imported when the engine is opened; None for an emulator, which only the export opens."""
    artefact: str
    """Artefact kind that it runs."""
    package: str
    """Import name of the package it needs."""
    extra: str | None
    """Extra of the distribution that installs it; None: the base installation."""
    max_abs_err: float
    """Declared bound on |probability - eager float32 probability| for any case."""
    gpu: bool = False
    """Whether it needs an NVIDIA GPU with its driver."""
    plans: bool = False
    """Whether its artefact is TensorRT plans, which only a GPU can run."""
    precision: str | None = "float32"
    """Number format in which it computes; None: the manifest records it, for plans and the typed graphs that they are
    built from (`tmi.runtime.engines.precision`)."""
    optional: bool = False
    """If a parity check fails, only this engine is disabled; the bundle stays valid and `auto` falls back to the next
    engine.
    """
    requirement_check: str | None = None
    """`module:function` that returns the requirement this machine does not meet, or None; None: only the package is
    required.
    """


NO_GPU = "no NVIDIA GPU with its driver"
"""Requirement of every GPU engine on a machine without one."""
FLOAT16_MAX_ABS_ERR = 5e-3
"""Declared error of engines that may compute in float16."""
BFLOAT16_MAX_ABS_ERR = 1e-2
"""Declared error of engines that compute in bfloat16, whose rounding error is eight times float16's."""
INT8_MAX_ABS_ERR = 1e-2
"""Declared error of engines that compute in INT8, whose steps are at least 1/255 of the largest magnitude."""

ENGINES: Mapping[str, EngineSpec] = MappingProxyType(
    {
        "trt": EngineSpec(
            target="tmi.runtime.engines.tensorrt:TrtEngine",
            artefact="trt",
            package="tensorrt",
            extra="trt",
            max_abs_err=FLOAT16_MAX_ABS_ERR,
            gpu=True,
            plans=True,
            precision=None,
        ),
        "trt-rtx": EngineSpec(
            target="tmi.runtime.engines.tensorrt:TrtRtxEngine",
            artefact="trt-rtx",
            package="tensorrt_rtx",
            extra="trt-rtx",
            max_abs_err=FLOAT16_MAX_ABS_ERR,
            gpu=True,
            plans=True,
            precision=None,
        ),
        "torch-trt": EngineSpec(
            target="tmi.runtime.engines.tensorrt:TorchTrtEngine",
            artefact="torch-trt",
            package="tensorrt",
            extra="trt",
            max_abs_err=FLOAT16_MAX_ABS_ERR,
            gpu=True,
            plans=True,
            precision=None,
        ),
        "onnx-cuda-fp16": EngineSpec(
            target="tmi.runtime.engines.onnxruntime:OnnxCudaFp16Engine",
            artefact="onnx-typed",
            package="onnxruntime",
            extra="gpu",
            max_abs_err=FLOAT16_MAX_ABS_ERR,
            gpu=True,
            precision=None,
            optional=True,
            requirement_check="tmi.runtime.engines.onnxruntime:missing_cuda_provider",
        ),
        "onnx-cuda": EngineSpec(
            target="tmi.runtime.engines.onnxruntime:OnnxCudaEngine",
            artefact="onnx",
            package="onnxruntime",
            extra="gpu",
            max_abs_err=1e-4,
            gpu=True,
            optional=True,
            requirement_check="tmi.runtime.engines.onnxruntime:missing_cuda_provider",
        ),
        "torchscript-cuda": EngineSpec(
            target="tmi.runtime.engines.torchscript:TorchScriptCudaEngine",
            artefact="torchscript",
            package="torch",
            extra="torch",
            max_abs_err=1e-4,
            gpu=True,
            optional=True,
            requirement_check="tmi.runtime.engines.torch_cuda:missing_cuda",
        ),
        "openvino-int8": EngineSpec(
            target="tmi.runtime.engines.openvino:OpenVinoInt8Engine",
            artefact="onnx-int8",
            package="openvino",
            extra="openvino",
            max_abs_err=INT8_MAX_ABS_ERR,
            precision="int8",
            optional=True,
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
        "onnx-int8": EngineSpec(
            target="tmi.runtime.engines.onnxruntime:OnnxInt8Engine",
            artefact="onnx-int8",
            package="onnxruntime",
            extra=None,
            max_abs_err=INT8_MAX_ABS_ERR,
            precision="int8",
            optional=True,
        ),
        "torchscript": EngineSpec(
            target="tmi.runtime.engines.torchscript:TorchScriptEngine",
            artefact="torchscript",
            package="torch",
            extra="torch",
            max_abs_err=1e-4,
        ),
        "eager-cuda": EngineSpec(
            target="tmi.runtime.engines.eager:EagerCudaEngine",
            artefact="weights",
            package="torch",
            extra="torch",
            max_abs_err=1e-4,
            gpu=True,
            optional=True,
            requirement_check="tmi.runtime.engines.torch_cuda:missing_cuda",
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
"""Engine name -> its entry, in the order of preference of `auto`."""

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
"""Engines that only validate graphs at an export; they are never used to predict."""


def engine_spec(name: str) -> EngineSpec:
    """The table entry of an engine.

    Raises:
        UsageError: no such engine; the message lists the known ones.
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
    """Requirement of an installed engine that this machine does not meet; None if it meets all."""
    spec = engine_spec(name)
    if spec.gpu and find_gpu() is None:
        return NO_GPU
    if spec.requirement_check is None:
        return None
    module, _, function = spec.requirement_check.partition(":")
    missing: str | None = getattr(importlib.import_module(module), function)()
    return missing


def unavailable_reason(name: str, bundle: Bundle) -> str | None:
    """Why an engine cannot run a bundle here: no graphs, package, GPU or processor feature; None if it can.

    This is the only place that decides it, for `auto`, `tmi verify`, `tmi bench` and `tmi inspect`.
    """
    spec = engine_spec(name)
    if not bundle.has(spec.artefact):
        return f"the bundle holds no {spec.artefact} graphs"
    return unavailable_here(name)


def unavailable_here(name: str) -> str | None:
    """Why an engine cannot run any bundle here: no package, GPU or processor feature; None if it can."""
    return missing_requirement(name) if installed(name) else f"{engine_spec(name).package} is not installed"


def is_out_of_scope(name: str, bundle: Bundle) -> bool:
    """Whether a list of skipped engines need not name an engine: most bundles hold no plans and no INT8 graphs, and
    most machines have no GPU.
    """
    spec = engine_spec(name)
    if spec.precision == "int8":
        return not bundle.has(spec.artefact)
    return spec.gpu and (not bundle.has(spec.artefact) or (not spec.plans and find_gpu() is None))


def open_engine(name: str, bundle: Bundle, *, threads: int | None = None) -> Engine:
    """Open an engine on a bundle.

    Raises:
        UsageError: no such engine.
        UnavailableError: its package, its GPU or another requirement is missing, or the bundle has no artefact
            for it.
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
    missing = missing_requirement(name)
    if missing is not None:
        raise UnavailableError(f"engine {name} cannot run here: {missing}", fix="use --engine auto, or another engine")
    module, _, attribute = spec.target.partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)()
    engine.open(bundle, threads=threads)
    return engine
