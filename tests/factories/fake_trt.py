"""A fake `tensorrt` module that records the calls of the plan builder.

It reproduces the differences between TensorRT 10.x and 11.x, which cannot be installed without a GPU. Other tests run
the builder with TensorRT-RTX.
"""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class Logger:
    Severity = Severity


def fake_trt(*, version: str, strongly_typed_flag: bool, refit: bool = True, caches: bool = True) -> Any:
    """A module like `tensorrt` of that version; its attribute `calls` lists the recorded calls in order."""
    calls: list[tuple[Any, ...]] = []

    def recorded(name: str, result: Any = True) -> Any:
        return lambda *arguments, **_: (calls.append((name, *arguments)), result)[1]

    flags = {"TF32": "TF32", "STRIP_PLAN": "STRIP_PLAN"} | ({"REFIT": "REFIT"} if refit else {})
    tensor = SimpleNamespace(name="x", shape=(-1, 4), dtype=SimpleNamespace(name="HALF"))
    layer = SimpleNamespace(
        name="node_y", metadata="[ONNX Layer: node_y]", type=SimpleNamespace(name="MATRIX_MULTIPLY"),
        get_output=lambda i: tensor, num_inputs=0,
    )  # fmt: skip
    network = SimpleNamespace(num_inputs=1, get_input=lambda i: tensor, num_layers=1, get_layer=lambda i: layer)
    cache = SimpleNamespace(serialize=lambda: b"timings")
    config = SimpleNamespace(
        set_flag=recorded("set_flag"),
        clear_flag=recorded("clear_flag"),
        set_memory_pool_limit=recorded("set_memory_pool_limit"),
        add_optimization_profile=recorded("add_optimization_profile"),
        create_timing_cache=recorded("create_timing_cache", cache if caches else None),
        set_timing_cache=recorded("set_timing_cache", caches),
        get_timing_cache=lambda: cache,
    )
    builder = SimpleNamespace(
        create_network=recorded("create_network", network),
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: SimpleNamespace(set_shape=recorded("set_shape")),
        build_serialized_network=recorded("build_serialized_network", b"plan"),
    )
    creation = {"STRONGLY_TYPED": 1} if strongly_typed_flag else {}
    return SimpleNamespace(
        __name__="tensorrt",
        __version__=version,
        calls=calls,
        config=config,
        ILogger=Logger,
        Builder=lambda log: builder,
        OnnxParser=lambda network, log: SimpleNamespace(parse_from_file=recorded("parse_from_file")),
        NetworkDefinitionCreationFlag=SimpleNamespace(**creation),
        BuilderFlag=SimpleNamespace(**flags),
        MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
        HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS"),
    )
